"""Casts of whole arrays, against the definition."""

from functools import cache

import numpy as np
import pytest
from engine_cases import held_casts, held_formats, operands
from hypothesis import given
from hypothesis import strategies as st
from strategies import DETERMINISTIC, casts, codes

from emu import Cast, Format, Overflow, Rounding, engine, reference

INT64 = np.iinfo(np.int64)
# Every code of every format of 1 to 6 bits.
SMALL = list(range(-32, 64))
FOLDED = (61, 62, 63, 64, 65, 90, 124, 125, 126, 127, 200)  # shifts around a kernel's widest
WIDE = sorted({INT64.min, INT64.max, *(sign * (1 << k) + d for sign in (-1, 1) for d in (-1, 0, 1)
                                       for k in (0, 1, 31, 32, 61, 62))})


def all_casts(rounding: Rounding, rand_bits: int = 0, widths=range(1, 7)) -> list[Cast]:
    """Every cast to formats of these widths in one rounding."""
    return [Cast(Format(width, 0, signed), rounding, overflow, rand_bits)
            for width in widths for signed in (False, True) for overflow in Overflow
            if not (width == 1 and signed and overflow == Overflow.SAT_SYM)]


def check_full(x, shift, to, rand=None, dtype=np.int64):
    """cast_full on one array, against the parts of the definition; `to` has frac 0."""
    rounded = [reference.round_shift(code, shift, to, r)
               for code, r in zip(x, rand or [None] * len(x), strict=True)]
    want = [reference.fit(code, to) for code in rounded]
    inside = [not reference.overflows(code, to) for code in rounded]
    got = engine.cast_full(np.array(x, dtype), shift, to, rand)
    assert got.codes.tolist() == want
    assert got.inside.tolist() == inside
    assert got.outside == inside.count(False)


# Every code of every format of 1 to 10 bits, and what a path of the engine makes of them: int32
# lanes, int64 lanes, one by one.
TEN_BITS = np.arange(-512, 1024)
PATHS = {"int32": np.int32, "int64": np.int64, "plain": np.int64}


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """The dtype that leads the engine into one of its paths."""
    if request.param == "plain":
        monkeypatch.setattr(engine.casts, "lane_for", lambda c, bits: None)
    return PATHS[request.param]


@cache
def rounded_table(rounding):
    """shift -> the rounded TEN_BITS, by the definition."""
    some = Cast(Format(1), rounding)
    return {shift: np.array([reference.round_shift(x, shift, some) for x in TEN_BITS.tolist()])
            for shift in (-2, 0, 1, 2, 3, 4, 7, 9, 10, 11, 12)}


@cache
def fitted_table(width, signed, overflow):
    """(the cast of frac 0, {a rounded value - 4 * TEN_BITS[0]: its code}), by the definition."""
    to = Cast(Format(width, 0, signed), Rounding.TO_NEG, overflow)
    values = range(4 * TEN_BITS[0], 4 * TEN_BITS[-1] + 1)
    return np.array([reference.fit(x, to) for x in values])


@pytest.mark.parametrize("rounding", DETERMINISTIC)
def test_every_cast_of_ten_bits_agrees_in_every_code(rounding, path):
    x = TEN_BITS.astype(path)
    for shift, rounded in rounded_table(rounding).items():
        for to in all_casts(rounding, widths=(1, 2, 3, 5, 8, 9, 10, 11)):
            form = to.format
            want = fitted_table(form.width, form.signed, to.overflow)[rounded - 4 * TEN_BITS[0]]
            got = engine.cast_full(x, shift, to)
            assert (got.codes == want).all(), (str(to), shift)
            assert (got.inside == (want == rounded)).all(), (str(to), shift)
            assert got.outside == (want != rounded).sum(), (str(to), shift)


@pytest.mark.parametrize("rand_bits", [1, 2, 3])
def test_every_small_stochastic_cast_agrees_for_every_operand(rand_bits, path):
    pairs = [(x, rand) for x in SMALL for rand in range(1 << rand_bits)]
    x, rand = map(list, zip(*pairs, strict=True))
    some = Cast(Format(1), Rounding.STOCHASTIC, rand_bits=rand_bits)
    for shift in range(-2, 9):
        rounded = [reference.round_shift(code, shift, some, r) for code, r in pairs]
        for to in all_casts(Rounding.STOCHASTIC, rand_bits):
            want = [reference.fit(x, to) for x in rounded]
            got = engine.cast(np.array(x, path), shift, to, rand)
            assert got.tolist() == want, (str(to), shift)


@given(st.data(), held_casts, st.integers(-70, 130))
def test_wide_casts_agree(data, to, shift):
    x = data.draw(st.lists(codes(Format(64)) | st.sampled_from(WIDE), min_size=1, max_size=8))
    check_full(x, shift, to, data.draw(operands(to, len(x))))


# Around the bounds of int32 lanes and of int64 lanes: 30 and 62 bits dropped, 24 or 0 appended.
@pytest.mark.parametrize("shift", [-57, -56, -33, -32, -25, -24, -1, 0, 1, 29, 30, 31, 61, 62, 63])
@pytest.mark.parametrize("form", ["s8", "u31", "s32", "u32", "s33", "s63", "u63", "s64"])
@pytest.mark.parametrize("dtype", [np.int8, np.int32])
def test_a_cast_is_exact_on_both_sides_of_what_a_lane_holds(dtype, form, shift):
    limits = np.iinfo(dtype)
    x = [limits.min, limits.min + 1, -77, -1, 0, 1, 77, limits.max - 1, limits.max]
    for rounding in (Rounding.TO_NEG, Rounding.TO_AWAY, Rounding.TO_ODD, Rounding.TIES_EVEN):
        for overflow in Overflow:
            check_full(x, shift, Cast(Format.parse(form), rounding, overflow), dtype=dtype)
    rand = [0, 1, 2**31, 2**32 - 1, 5, 2**32 - 1, 0, 1, 2**32 - 1]
    check_full(x, shift, Cast(Format.parse(form), Rounding.STOCHASTIC, Overflow.SAT, 32), rand,
               dtype)


def test_lanes_grow_with_what_they_must_hold():
    lane = lambda text, frac, bits: engine.casts.lane_for(  # noqa: E731
        engine.casts.lane_cast(frac, Cast.parse(text)), bits)
    assert [lane(*case) for case in [
        ("s8", 30, 32), ("s8", 31, 32), ("s8", 62, 64), ("s8", 63, 64), ("s32", 0, 8),
        ("u32", 0, 8), ("s8", -24, 8), ("s8", -25, 8), ("s8", 0, 64), ("s8", -1, 64)]] == [
        np.int32, np.int64, np.int64, None, np.int32, np.int64, np.int32, np.int64, np.int64, None]


@given(st.data(), casts((1, 12), (-4, 12)), st.integers(-4, 20))
def test_the_binary_points_of_both_sides_give_the_shift(data, to, frac):
    x = data.draw(st.lists(codes(Format(16)), min_size=1, max_size=8))
    rand = data.draw(operands(to, len(x)))
    want = [reference.cast(code, frac, to, r) for code, r in zip(x, rand, strict=True)]
    assert engine.cast(np.array(x), frac, to, rand).tolist() == want


@pytest.mark.parametrize("n", FOLDED)
@pytest.mark.parametrize("rounding", DETERMINISTIC)
def test_rounding_is_exact_where_a_shift_is_folded(rounding, n):
    near_half = [sign * (1 << (n - 1)) + d for sign in (-1, 1) for d in (-1, 0, 1)]
    held = [x for x in near_half if INT64.min <= x <= INT64.max]
    check_full(WIDE + held, n, Cast(Format(64), rounding, Overflow.SAT))


@pytest.mark.parametrize("n", (1, 8, 31, 32, 33, *FOLDED))
@pytest.mark.parametrize("rand_bits", [1, 8, 31, 32])
def test_dither_is_exact_at_the_operand_that_first_rounds_up(rand_bits, n):
    pairs = []
    for x in WIDE:
        first = -(-((1 << n) - x % (1 << n) << rand_bits) >> n)  # least with rest + r >= 2^n
        pairs += [(x, rand) for rand in (0, first - 1, first, first + 1, (1 << rand_bits) - 1)
                  if 0 <= rand < 1 << rand_bits]
    x, rand = zip(*pairs, strict=True)
    check_full(x, n, Cast(Format(64), Rounding.STOCHASTIC, Overflow.SAT, rand_bits), rand)


@pytest.mark.parametrize("zeros", [0, 1, 31, 61, 62, 63, 64, 65, 70, 500])
@pytest.mark.parametrize("overflow", Overflow)
@pytest.mark.parametrize("form", ["s64", "u63", "s63", "u1", "s2"])
def test_appended_zeros_are_exact_up_to_and_beyond_64(form, overflow, zeros):
    check_full([*WIDE, 0], -zeros, Cast(Format.parse(form), Rounding.TO_NEG, overflow))


@given(st.data(), casts((1, 20), (0, 0)), st.integers(-3, 20))
def test_passes_is_the_definitions_gradient(data, to, shift):
    x = data.draw(st.lists(codes(Format(20)), min_size=1, max_size=8))
    rand = data.draw(operands(to, len(x)))
    want = [reference.passes(code, shift, to, r) for code, r in zip(x, rand, strict=True)]
    assert engine.passes(np.array(x), shift, to, rand).tolist() == want


@given(held_formats)
def test_the_result_is_in_the_smallest_dtype_that_holds_the_format(form):
    want = min(np.dtype(d).itemsize for d in ("int8", "int16", "int32", "int64")
               if np.iinfo(d).min <= form.lo and form.hi <= np.iinfo(d).max)
    got = engine.cast(np.array([0]), 0, Cast(form)).dtype
    assert (got.kind, got.itemsize) == ("i", want)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"])
def test_every_integer_dtype_is_taken_as_it_is(dtype):
    codes = np.array([0, 1, 100, 127], dtype)
    to = Cast.parse("s5f-2 ties_even sat")
    want = [reference.cast(x, 0, to) for x in codes.tolist()]
    assert engine.cast(codes, 0, to).tolist() == want


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0, 3), (2, 3, 4)])
def test_a_cast_keeps_the_shape(shape):
    got = engine.cast_full(np.zeros(shape, int), 0, Cast.parse("s8"))
    assert (got.codes.shape, got.inside.shape) == (shape, shape)


def test_strided_and_read_only_codes_are_read_in_their_own_order():
    codes = np.arange(-30, 30).reshape(6, 10).T[::2]
    codes.flags.writeable = False
    to = Cast.parse("s5f-1 ties_odd sat_zero")
    want = [[reference.cast(x, 0, to) for x in row] for row in codes.tolist()]
    assert engine.cast(codes, 0, to).tolist() == want


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
@pytest.mark.parametrize("shift", [-1, 0, 3, 40])
@pytest.mark.parametrize("rand_bits", [1, 8, 32])
def test_a_cast_draws_its_own_operands(rand_bits, shift, dtype):
    to, loads = Cast(Format(6), Rounding.STOCHASTIC, Overflow.SAT, rand_bits), list(range(1, 17))
    x = (np.arange(5000) % 256 - 128).astype(dtype)
    rand = reference.random_operands(x.size, rand_bits, loads)
    want = [reference.cast(code, shift, to, r) for code, r in zip(x.tolist(), rand, strict=True)]
    assert engine.cast(x, shift, to, loads=loads).tolist() == want


def test_a_list_of_codes_is_an_array_of_codes():
    assert engine.cast([24, 40, -24, 900], 4, Cast.parse("s4 ties_even sat")).tolist() == [
        2, 2, -2, 7]


S8 = Cast.parse("s8")
DITHER = Cast.parse("s8 stochastic4 sat")


@pytest.mark.parametrize(("codes", "to", "rand", "message"), [
    (np.array([0.5]), S8, None, "dtype float64 holds no codes"),
    (np.array([True]), S8, None, "dtype bool holds no codes"),
    (np.array([1], np.uint64), S8, None, "dtype uint64 holds no codes"),
    (np.array([1 << 70]), S8, None, "dtype object holds no codes"),
    (np.array([1]), Cast.parse("u64"), None, "format u64f0: its codes do not fit int64"),
    (np.array([1, 2]), DITHER, None, "rand None: s8f0 stochastic4 sat needs a random operand of 4"),
    (np.array([1, 2]), DITHER, [3], r"rand: shape \(1,\) for codes of shape \(2,\)"),
    (np.array([1, 2]), DITHER, [3, 16], "rand: code 16 is outside u4f0"),
    (np.array([1, 2]), DITHER, [-1, 3], "rand: code -1 is outside u4f0"),
])
def test_what_is_no_code_is_refused(codes, to, rand, message):
    with pytest.raises(ValueError, match=message):
        engine.cast(codes, 0, to, rand)


@pytest.mark.parametrize("call", [
    lambda to: engine.cast([1], 0, to), lambda to: engine.cast_full([1], 0, to),
    lambda to: engine.passes([1], 0, to), lambda to: engine.quantize([1.0], to)])
@pytest.mark.parametrize("to", ["s8 sat", None, Format(8), [S8]])
def test_the_text_of_a_cast_is_no_cast(to, call):
    with pytest.raises(ValueError, match=r"^to .*: needs a Cast; emu\.Cast\.parse reads one"):
        call(to)


def test_the_text_of_a_format_or_a_rescale_is_neither():
    with pytest.raises(ValueError, match="form 's8': needs a Format"):
        engine.dequantize([1], "s8")
    with pytest.raises(ValueError, match="spec 'x': needs a Rescale"):
        engine.rescale([1], "x")
