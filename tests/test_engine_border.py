"""The border where floats become codes, against the definition and exact fractions."""

from fractions import Fraction
from itertools import product
from math import inf, ldexp, nan

import numpy as np
import pytest
from engine_cases import operands
from hypothesis import given
from hypothesis import strategies as st
from strategies import DETERMINISTIC, casts, codes, formats

from emu import Cast, Format, Overflow, Rounding, Rule, engine, reference
from emu.number import MAX_FRAC

TINY, HUGE = 5e-324, 1.7976931348623157e308
FINITE = st.floats(allow_nan=False, allow_infinity=False)
FINITE32 = st.floats(allow_nan=False, allow_infinity=False, width=32)


def exact(x: float) -> tuple[int, int]:
    """(code, frac) of a float."""
    top, bottom = x.as_integer_ratio()
    return top, bottom.bit_length() - 1


@st.composite
def border_casts(draw):
    """Casts that the border takes: the width and the bits it looks at need 61 bits."""
    to = draw(casts((1, 64), draw(st.sampled_from([(-8, 16), (-512, 512)]))))
    widest = 61 - to.rand_bits - 2
    return to if to.format.width <= widest else Cast(
        Format(widest, to.format.frac, to.format.signed), to.rounding, to.overflow, to.rand_bits)


def floats_near(to: Cast) -> st.SearchStrategy[float]:
    """Floats on, between and at the ties of the cast's grid, and a hair beside them."""
    code = codes(Format(min(to.format.width + 3, 48)))
    parts = st.sampled_from([0, 1, 2, 3, 4]) | st.integers(0, 4)
    grid = st.builds(lambda whole, part: ldexp(4 * whole + part, -to.format.frac - 2), code, parts)
    return grid | st.builds(np.nextafter, grid, st.sampled_from([-inf, inf])).map(float)


@given(st.data(), border_casts())
def test_quantize_rounds_once_from_the_exact_float64(data, to):
    x = data.draw(st.lists(floats_near(to) | FINITE, min_size=1, max_size=6))
    rand = data.draw(operands(to, len(x)))
    want = [reference.quantize(v, to, r) for v, r in zip(x, rand, strict=True)]
    assert engine.quantize(np.array(x), to, rand).tolist() == want


@given(st.data(), border_casts())
def test_quantize_rounds_once_from_the_exact_float32(data, to):
    near = floats_near(to).filter(lambda v: abs(v) < 2.0**127)
    x = np.array(data.draw(st.lists(near | FINITE32, min_size=1, max_size=6)), np.float32)
    rand = data.draw(operands(to, len(x)))
    want = [reference.quantize(v, to, r) for v, r in zip(x.tolist(), rand, strict=True)]
    assert engine.quantize(x, to, rand).tolist() == want


@pytest.mark.parametrize("overflow", Overflow)
@pytest.mark.parametrize("rounding", DETERMINISTIC)
def test_quantize_agrees_on_every_eighth_of_a_small_grid(rounding, overflow):
    x = np.arange(-100, 101) / 8
    for form in ("s3", "u3", "s4f1", "s2f-1"):
        to = Cast(Format.parse(form), rounding, overflow)
        want = [reference.quantize(v, to) for v in x.tolist()]
        assert engine.quantize(x, to).tolist() == want, form


@pytest.mark.parametrize("rand_bits", [1, 3])
def test_quantize_dithers_every_sixteenth_with_every_operand(rand_bits):
    to = Cast(Format(4), Rounding.STOCHASTIC, Overflow.SAT, rand_bits)
    pairs = [(v / 16, rand) for v in range(-140, 141) for rand in range(1 << rand_bits)]
    want = [reference.quantize(v, to, r) for v, r in pairs]
    x, rand = zip(*pairs, strict=True)
    assert engine.quantize(np.array(x), to, list(rand)).tolist() == want


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("text", [f"s12f{frac} {rounding} {overflow}" for frac in (-100, 0, 100)
                                  for rounding in ("to_neg", "to_odd", "ties_even", "to_away")
                                  for overflow in ("wrap", "sat", "sat_sym", "sat_zero")])
def test_quantize_is_exact_at_the_ends_of_the_floats(text, dtype):
    info = np.finfo(dtype)
    ends = [0.0, info.smallest_subnormal, info.tiny, info.max, info.eps, 1.0, 2.0**62, 2.0**61 + 1,
            2.0**70 + 2.0**50, 3 * 2.0**99, 2047 * 2.0**-100, 2048 * 2.0**-100]
    x = np.array(ends + [-v for v in ends], dtype)
    want = [reference.quantize(v, Cast.parse(text)) for v in x.tolist()]
    assert engine.quantize(x, Cast.parse(text)).tolist() == want


@given(st.data(), border_casts())
def test_the_border_counts_the_overflows_of_the_exact_values(data, to):
    x = data.draw(st.lists(floats_near(to) | FINITE, min_size=1, max_size=6))
    rand = data.draw(operands(to, len(x)))
    want = []
    for v, r in zip(x, rand, strict=True):
        code, frac = exact(v)
        rounded = reference.round_shift(code, frac - to.format.frac, to, r)
        want.append(not reference.overflows(rounded, to))
    got, frac = engine.encode_for(np.array(x), to)
    assert engine.cast_full(got, frac, to, rand).inside.tolist() == want


def test_a_wrapping_cast_counts_a_float_far_beyond_its_range():
    to = Cast.parse("s8 to_neg wrap")
    got, frac = engine.encode_for(np.array([2.0**80, -(2.0**80), 2.0**62 + 2.0**20, 0.5]), to)
    assert engine.cast_full(got, frac, to).inside.tolist() == [False, False, False, True]


def test_minus_zero_is_the_code_0():
    assert engine.quantize(np.array([-0.0]), Cast.parse("s4 to_neg")).tolist() == [0]


@st.composite
def within_62_bits(draw) -> list[float]:
    """Floats of which one grid holds all: mantissas of 53 bits, at most 9 bits apart."""
    exponent = draw(st.integers(-1074, 900))
    whole = st.integers(-100, 100) | st.integers(1 - 2**53, 2**53 - 1)
    pairs = draw(st.lists(st.tuples(whole, st.integers(0, 9)), min_size=1, max_size=6))
    return [ldexp(mantissa, exponent + shift) for mantissa, shift in pairs]


@given(within_62_bits())
def test_encode_is_exact(x):
    got, frac = engine.encode(np.array(x))
    assert [code * Fraction(2)**-frac for code in got.tolist()] == [Fraction(v) for v in x]


@given(within_62_bits())
def test_encode_takes_the_coarsest_grid(x):
    got, frac = engine.encode(np.array(x))
    assert any(code % 2 for code in got.tolist()) or (not got.any() and frac == 0)


@given(st.lists(FINITE, min_size=1, max_size=6), st.integers(-300, 600))
def test_encode_with_a_limit_rounds_to_odd_and_saturates_at_62_bits(x, limit):
    got, frac = engine.encode(np.array(x), limit)
    to = Cast(Format(63), Rounding.TO_ODD, Overflow.SAT_SYM)
    want = [reference.cast(code, f - frac, to) for code, f in map(exact, x)]
    assert got.tolist() == want


@given(st.lists(FINITE, min_size=1, max_size=6), st.integers(-300, 600))
def test_encode_stays_at_its_limit_or_on_the_coarsest_grid(x, limit):
    fracs = [frac - ((code & -code).bit_length() - 1) for code, frac in map(exact, x) if code]
    assert engine.encode(np.array(x), limit)[1] == max(
        -MAX_FRAC, min(limit, max(fracs, default=limit)))


@pytest.mark.parametrize(("x", "codes", "frac"), [
    ([0.0, -0.0], [0, 0], 0),
    ([], [], 0),
    ([6.0, -2.0], [3, -1], -1),
    ([0.75, 4.0], [3, 16], 2),
    ([1.0, 2.0**-61], [2**61, 1], 61),
    ([1.0, 2.0**62 - 2.0**9], [1, 2**62 - 2**9], 0),
    ([-TINY], [-1], 1074),
    ([HUGE], [2**53 - 1], -971),
])
def test_encode_of_a_few_floats(x, codes, frac):
    got = engine.encode(np.array(x, np.float64))
    assert (got[0].tolist(), got[1]) == (codes, frac)


@pytest.mark.parametrize(("x", "message"), [
    (np.array([1.0, nan]), "nan is not finite"),
    (np.array([1.0, -inf]), "-inf is not finite"),
    (np.array([inf], np.float32), "inf is not finite"),
    (np.array([1.0, 2.0**-62]), "the values span 63 bits, codes have at most 62"),
    (np.array([1.0, 2.0**50, 2.0**-13]), "the values span 64 bits"),
    (np.array([TINY, HUGE]), "off the grid: the values span 2098 bits"),
    (np.array([1, 2]), "dtype int64: the border takes float32 or float64"),
    (np.array([1.0], np.float16), "dtype float16: the border takes"),
    (np.array([True]), "dtype bool: the border takes"),
])
def test_encode_refuses_what_it_cannot_hold(x, message):
    with pytest.raises(ValueError, match=message):
        engine.encode(x)


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_quantize_refuses_what_is_not_finite(value):
    with pytest.raises(ValueError, match=f"{value} is not finite"):
        engine.quantize(np.array([0.0, value]), Cast.parse("s8 to_neg sat"))


def test_quantize_refuses_integers():
    with pytest.raises(ValueError, match="dtype int64: the border takes float32 or float64"):
        engine.quantize(np.array([1]), Cast.parse("s8"))


@pytest.mark.parametrize(("text", "total"), [
    ("s60 to_neg sat", 62), ("u60", 62), ("s28 stochastic32", 62), ("s64", 66),
])
def test_the_border_refuses_a_cast_that_leaves_no_room_for_guard_bits(text, total):
    with pytest.raises(ValueError, match=f"may take 61 bits, not {total}"):
        engine.encode_for(np.array([1.0]), Cast.parse(text))
    with pytest.raises(ValueError, match=f"may take 61 bits, not {total}"):
        engine.quantize_full(np.array([1.0]), Cast.parse(text), np.array([1]))


@pytest.mark.parametrize("text", ["s59 ties_even sat", "s27 stochastic32 sat"])
def test_the_border_takes_the_widest_cast_with_room_for_guard_bits(text):
    to, rand = Cast.parse(text), (1 << 32) - 1
    x = [v * 2.0**k for v in (1.0, -1.0, 1.5, -1.5) for k in (-34, -1, 0, 20, 57, 58)]
    want = [reference.quantize(v, to, rand) for v in x]
    assert engine.quantize(np.array(x), to, [rand] * len(x)).tolist() == want


@pytest.mark.parametrize(("form", "dtype"), [
    ("s8", np.int8), ("u7", np.int8), ("u8", np.int16), ("s9", np.int16), ("s16", np.int16),
    ("u16", np.int32), ("s32", np.int32), ("u32", np.int64), ("s33", np.int64)])
def test_quantize_gives_the_smallest_dtype(form, dtype):
    assert engine.quantize(np.array([1.0]), Cast.parse(form)).dtype == dtype


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (2, 3)])
def test_quantize_keeps_the_shape(shape):
    assert engine.quantize(np.ones(shape), Cast.parse("s8")).shape == shape


def test_strided_floats_are_read_in_their_own_order():
    x = np.arange(24.0).reshape(4, 6).T[::2]
    assert engine.quantize(x, Cast.parse("s8")).tolist() == x.tolist()


@given(st.data(), formats((1, 53), (-512, 512)))
def test_dequantize_is_exact(data, form):
    x = data.draw(st.lists(codes(form), min_size=1, max_size=6))
    want = [code * Fraction(2)**-form.frac for code in x]
    assert [Fraction(v) for v in engine.dequantize(np.array(x), form).tolist()] == want


@given(st.data(), formats((1, 53), (-512, 512)))
def test_what_is_dequantized_encodes_to_the_same_values(data, form):
    want = data.draw(st.lists(codes(form), min_size=1, max_size=6))
    got, frac = engine.encode(engine.dequantize(np.array(want), form))
    assert [code * Fraction(2)**(form.frac - frac) for code in got.tolist()] == want


@pytest.mark.parametrize("form", ["u54", "s55"])
def test_dequantize_refuses_more_bits_than_a_float64_holds(form):
    with pytest.raises(ValueError, match="54 magnitude bits, a float64 holds 53"):
        engine.dequantize(np.array([1]), Format.parse(form))


def test_dequantize_refuses_a_code_outside_its_format():
    with pytest.raises(ValueError, match="codes: code 8 is outside s4f0"):
        engine.dequantize(np.array([7, 8]), Format.parse("s4"))


def frac_for(rule: Rule, largest: Fraction) -> int:
    """The frac whose range is the least 2^exponent that holds `largest`, within +-96."""
    exponent = -1200
    while largest > Fraction(2)**exponent:
        exponent += 1
    return max(-96, min(96, rule.width - rule.signed - exponent))


RULES = st.builds(Rule, st.integers(1, 32), st.booleans())


@given(RULES, st.lists(FINITE | st.floats(-4, 4).map(lambda x: 2.0**round(x)), min_size=1,
                       max_size=5).filter(any))
def test_a_rule_takes_the_least_power_of_two_that_holds_the_floats(rule, x):
    want = frac_for(rule, max(abs(Fraction(v)) for v in x))
    assert engine.cast_for(rule, np.array(x), None) == rule.with_frac(want)


@given(RULES, st.lists(FINITE32, min_size=1, max_size=5).filter(any))
def test_a_rule_reads_float32_exactly(rule, x):
    want = frac_for(rule, max(abs(Fraction(v)) for v in x))
    assert engine.cast_for(rule, np.array(x, np.float32), None) == rule.with_frac(want)


@given(RULES, st.lists(codes(Format(64)) | codes(Format(8)), min_size=1, max_size=5).filter(any),
       st.integers(-120, 120))
def test_a_rule_takes_the_least_power_of_two_that_holds_the_codes(rule, x, frac):
    want = frac_for(rule, max(map(abs, x)) * Fraction(2)**-frac)
    assert engine.cast_for_codes(rule, np.array(x), frac, None) == rule.with_frac(want)


def test_a_rule_sees_the_magnitude_of_the_lowest_code_of_a_dtype():
    rule = Rule.parse("s8 auto:max")
    assert engine.cast_for_codes(rule, np.array([-128], np.int8), 0, None) == rule.with_frac(0)


@pytest.mark.parametrize(("last", "want"), [(None, 0), (5, 5), (-3, -3)])
def test_a_zero_tensor_keeps_the_last_frac(last, want):
    rule = Rule.parse("s8 auto:max ties_even sat")
    got = (engine.cast_for(rule, np.array([0.0, -0.0]), last),
           engine.cast_for_codes(rule, np.array([0, 0]), 3, last))
    assert got == (rule.with_frac(want),) * 2


def test_an_empty_tensor_keeps_the_last_frac():
    rule = Rule.parse("s8 auto:max")
    got = (engine.cast_for(rule, np.array([]), 4),
           engine.cast_for_codes(rule, np.array([], int), 3, 4))
    assert got == (rule.with_frac(4),) * 2


EDGES = [0.0, -0.0, 1e-40, -1e-40, 0.5, -0.5, 1.5, -2.5, 1e5, -1e5, 3e9, -3e9, 2.0**61, -(2.0**70)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("overflow", ["wrap", "sat", "sat_sym", "sat_zero"])
@pytest.mark.parametrize("form", ["s8f4", "u5", "s4f-1", "s24f20", "s31f8", "s8f-3", "s8f-9",
                                  "s55f4", "s8f118", "s8f119", "s8f126", "s8f512"])
def test_quantizing_in_one_pass_is_encoding_and_casting(form, overflow, dtype):
    rng = np.random.default_rng(0)
    step = 2.0**-Format.parse(form).frac
    least = np.finfo(dtype).smallest_subnormal
    x = np.concatenate([rng.normal(0, 4, 99), rng.normal(0, 1e-6, 20), EDGES[:12], [least, -least],
                        np.arange(-40, 41) * step / 4]).astype(dtype)
    for values in (x, np.concatenate([x, EDGES]).astype(dtype), x[:0]):
        for mode in [*(mode.name.lower() for mode in DETERMINISTIC), "stochastic4"]:
            to = Cast.parse(f"{form} {mode} {overflow}")
            rand = rng.integers(0, 16, values.shape) if to.rand_bits else None
            want = engine.cast_full(*engine.encode_for(values, to), to, rand)
            got = engine.quantize_full(values, to, rand)
            assert got.codes.dtype == want.codes.dtype and got.outside == want.outside
            assert np.array_equal(got.codes, want.codes)
            assert np.array_equal(got.inside, want.inside)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_quantizing_refuses_what_is_not_finite(value):
    with pytest.raises(ValueError, match="is not finite"):
        engine.quantize_full(np.array([1, value]), Cast.parse("s8 sat"))


@given(st.data(), formats((1, 40), (-130, 130)), st.sampled_from([np.float32, np.float64]))
def test_codes_are_found_where_all_floats_lie_on_the_grid(data, form, dtype):
    """Against fractions; a dtype that carries not every code finds none."""
    bits, least = {np.float32: (24, -126), np.float64: (53, -1022)}[dtype]
    magnitude = form.width - form.signed
    carried = magnitude <= bits and magnitude + least <= form.frac <= -least
    given = data.draw(st.lists(codes(form), min_size=1, max_size=5))
    with np.errstate(over="ignore", under="ignore"):
        x = np.array([ldexp(code, -form.frac) for code in given]).astype(dtype)
    found = engine.codes_on(x, form)
    assert (found is not None) == carried
    assert not carried or found.tolist() == given


@pytest.mark.parametrize(("dtype", "bits", "least"),
                         [(np.float32, 24, -126), (np.float64, 53, -1022)])
def test_every_format_is_carried_up_to_its_limits(dtype, bits, least):
    zero = np.zeros(1, dtype)
    for signed, width, frac in product((False, True), (1, 2, 8, 23, 24, 25, 26, 52, 53, 54, 55),
                                       (*range(-132, -95), 0, *range(124, 130), 512)):
        magnitude = width - signed
        assert (engine.codes_on(zero, Format(width, frac, signed)) is not None) == (
            magnitude <= bits and magnitude + least <= frac <= -least)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("text", ["s8f4", "u8f4", "s8f-100", "s8f100", "s24f0"])
def test_floats_beside_the_grid_have_no_codes(text, dtype):
    form = Format.parse(text)
    grid = np.array([form.lo, -1, 0, 1, form.hi]).clip(form.lo).astype(dtype) * dtype(form.step)
    assert engine.codes_on(grid, form) is not None
    tiny = np.finfo(dtype).smallest_subnormal
    for bad in (nan, inf, -inf, tiny, -tiny, dtype(1.5) * dtype(form.step),
                dtype(form.lo - 1) * dtype(form.step), dtype(form.hi + 1) * dtype(form.step)):
        assert engine.codes_on(np.append(grid, dtype(bad)), form) is None, bad


@given(st.lists(FINITE32 | FINITE, min_size=1, max_size=4), st.integers(-1100, 1100))
def test_a_grid_is_told_from_the_floats_beside_it(x, frac):
    for dtype in (np.float32, np.float64):
        with np.errstate(over="ignore"):
            floats = np.array(x).astype(dtype)
        floats = floats[np.isfinite(floats)]
        there = all((Fraction(v) * Fraction(2)**frac).denominator == 1 for v in floats.tolist())
        if abs(frac) > 1000:
            there = not floats.any()
        assert engine.on_grid(floats, frac) == there


@given(st.lists(st.integers(-2**63, 2**63 - 1), max_size=9))
def test_extremes_hold_zero_and_every_code(x):
    want = min([0, *x]), max([0, *x])
    assert engine.bounds(np.array(x, np.int64)) == want
    assert engine.largest(np.array(x, np.int64)) == max(-want[0], want[1])
    assert engine.bounds(np.array(x, np.int64)[::-1]) == want


@pytest.mark.parametrize("magnitude", [2.0**29, np.nextafter(np.float32(2.0**29), np.float32(0)),
                                       2.0**61, 2.0**62, 2.0**100])
@pytest.mark.parametrize("overflow", list(Overflow))
@pytest.mark.parametrize("rounding, frac", [  # of formats whose floats are taken times 1
    (Rounding.TIES_ZERO, -2), (Rounding.TIES_EVEN, 0), (Rounding.TO_NEG, 0)])
def test_float32_is_quantised_exactly_on_both_sides_of_a_lane(magnitude, overflow, rounding, frac):
    to = Cast(Format(8, frac), rounding, overflow)
    x = np.array([magnitude, -magnitude, 5.0, -6.0, 2.5, -3.5], np.float32)
    found = engine.quantize_full(x, to)
    assert found.codes.tolist() == [reference.quantize(v, to) for v in x.tolist()]
    low, high = to.range
    inside = [low <= v * 2.0**frac <= high for v in x.tolist()]
    assert found.inside.tolist() == inside and found.outside == 6 - sum(inside)
