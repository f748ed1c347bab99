"""Casts of whole arrays, against the definition."""

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


def all_casts(rounding: Rounding, rand_bits: int = 0) -> list[Cast]:
    """Every cast to 1 to 6 bits in one rounding."""
    return [Cast(Format(width, 0, signed), rounding, overflow, rand_bits)
            for width in range(1, 7) for signed in (False, True) for overflow in Overflow
            if not (width == 1 and signed and overflow == Overflow.SAT_SYM)]


def check_full(x, shift, to, rand=None):
    """cast_full on one array, against the parts of the definition; `to` has frac 0."""
    rounded = [reference.round_shift(code, shift, to, r)
               for code, r in zip(x, rand or [None] * len(x), strict=True)]
    want = [reference.fit(code, to) for code in rounded]
    inside = [not reference.overflows(code, to) for code in rounded]
    got = engine.cast_full(np.array(x), shift, to, rand)
    assert got.codes.tolist() == want
    assert got.inside.tolist() == inside
    assert got.outside == inside.count(False)


@pytest.mark.parametrize("rounding", DETERMINISTIC)
def test_every_small_cast_agrees_in_every_code(rounding):
    for shift in range(-7, 9):
        some = Cast(Format(1), rounding)
        rounded = [reference.round_shift(x, shift, some) for x in SMALL]
        for to in all_casts(rounding):
            want = [reference.fit(x, to) for x in rounded]
            inside = [not reference.overflows(x, to) for x in rounded]
            got = engine.cast_full(np.array(SMALL), shift, to)
            assert got.codes.tolist() == want, (str(to), shift)
            assert got.inside.tolist() == inside, (str(to), shift)
            assert got.outside == inside.count(False), (str(to), shift)


@pytest.mark.parametrize("rand_bits", [1, 2, 3])
def test_every_small_stochastic_cast_agrees_for_every_operand(rand_bits):
    pairs = [(x, rand) for x in SMALL for rand in range(1 << rand_bits)]
    x, rand = map(list, zip(*pairs, strict=True))
    some = Cast(Format(1), Rounding.STOCHASTIC, rand_bits=rand_bits)
    for shift in range(-2, 9):
        rounded = [reference.round_shift(code, shift, some, r) for code, r in pairs]
        for to in all_casts(Rounding.STOCHASTIC, rand_bits):
            want = [reference.fit(x, to) for x in rounded]
            got = engine.cast(np.array(x), shift, to, rand)
            assert got.tolist() == want, (str(to), shift)


@given(st.data(), held_casts, st.integers(-70, 130))
def test_wide_casts_agree(data, to, shift):
    x = data.draw(st.lists(codes(Format(64)) | st.sampled_from(WIDE), min_size=1, max_size=8))
    check_full(x, shift, to, data.draw(operands(to, len(x))))


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
