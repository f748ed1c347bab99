"""Affine requantisation: the value, the definition against fractions, the engine against it."""

from fractions import Fraction
from itertools import product

import numpy as np
import oracle
import pytest
from engine_cases import filled
from hypothesis import given
from hypothesis import strategies as st
from strategies import DETERMINISTIC, examples, rescales

import emu
from emu import Cast, Format, MacSpec, Overflow, Rescale, engine, multiplier_and_shift, reference

INT32 = (-(2**31), 2**31 - 1)
SINGLE, DOUBLE = "s8 ties_pos sat", "s8 ties_away sat, double: true"


def parse(text, multiplier=2**30, shift=32):
    """A rescale whose multiplier and shift matter little."""
    return Rescale.parse(f"{{multiplier: {multiplier}, shift: {shift}, to: {text}}}")


# The value.

@given(rescales())
@examples(200)
def test_every_rescale_is_read_back_from_its_text(spec):
    assert Rescale.parse(str(spec)) == spec
    assert eval(repr(spec)) == spec


def test_a_mapping_of_lists_is_the_value_of_its_text():
    want = parse("s8 ties_pos sat, input_zp: -3, output_zp: 7, clamp: 7 127", "5 6", "3 4")
    got = Rescale.parse({"multiplier": [5, 6], "shift": [3, 4], "to": Cast.parse(SINGLE),
                         "input_zp": -3, "output_zp": "7", "clamp": [7, 127]})
    assert got == want
    assert Rescale(np.array([5, 6]), (3, 4), want.to, False, -3, 7, (7, 127)) == want


@pytest.mark.parametrize(("texts", "same"), [
    (("s8 ties_pos sat", "s8 ties_pos sat, clamp: -128 127"), True),
    (("s8 ties_pos sat", "s8 ties_pos sat, double: false"), True),
    (("s8 sat_sym", "s8 sat_sym, clamp: -127 127"), True),
    (("s8 ties_away sat", "s8 ties_away sat, double: true"), False),
])
def test_equal_hardware_is_equal(texts, same):
    one, other = map(parse, texts)
    assert (one == other) == same


def test_up_to_31_bits_the_first_rounding_is_the_only_one():
    once, twice = (parse(text, "5 6", "31 9") for text in (SINGLE, DOUBLE))
    assert once == twice and hash(once) == hash(twice)
    assert parse(DOUBLE, "5 6", "31 32") != parse(SINGLE, "5 6", "31 32")


def test_one_shift_serves_all_channels():
    assert parse(SINGLE, "5 6", "3") == parse(SINGLE, "5 6", "3 3")
    assert "shift: 3," in str(parse(SINGLE, "5 6", "3 3"))


@pytest.mark.parametrize(("text", "message"), [
    ("{multiplier: 2147483648, shift: 1, to: s8}", "multiplier 2147483648.* 0 to 2147483647"),
    ("{multiplier: -1, shift: 1, to: s8}", "multiplier -1: needs a whole number from 0"),
    ("{multiplier: 1, shift: 63, to: s8}", "shift 63: .* from 0 to 62"),
    ("{multiplier: 1 2, shift: 1 2 3, to: s8}", "2 multipliers and 3 shifts: each channel"),
    ("{multiplier: , shift: 1, to: s8}", "0 multipliers"),
    ("{multiplier: 1.5, shift: 1, to: s8}", "'1.5': needs whole numbers"),
    ("{multiplier: 1, shift: 1, to: s8f1}", "s8f1: needs frac 0 and at most 32 bits"),
    ("{multiplier: 1, shift: 1, to: s33}", "s33f0: needs frac 0 and at most 32 bits"),
    ("{multiplier: 1, shift: 1, to: s8 stochastic4}", "no random operand; use a deterministic"),
    ("{multiplier: 1, shift: 1, to: u8, output_zp: -1}", "output_zp of u8f0 -1: .* 0 to 255"),
    ("{multiplier: 1, shift: 1, to: s8, input_zp: 2147483648}", "input_zp 2147483648"),
    ("{multiplier: 1, shift: 1, to: s8, input_zp: 1 2}", "'1 2': needs one whole number"),
    ("{multiplier: 1, shift: 1, to: s8, clamp: 3 2}", "clamp 3 2: the first is the lower"),
    ("{multiplier: 1, shift: 1, to: s8, clamp: 3}", "clamp '3': needs two"),
    ("{multiplier: 1, shift: 1, to: s8 sat_sym, clamp: -128 0}", "clamp .* -128: .* from -127"),
    ("{multiplier: 1, shift: 1, to: s8, double: 1}", "double '1': write true or false"),
    ("{multiplier: 1, shift: 1}", "'to' is missing"),
    ("{multiplier: 1, shift: 1, to: s8, zero: 1}", "unknown rescale key 'zero'"),
])
def test_what_no_hardware_has_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Rescale.parse(text)


def test_a_format_is_no_cast():
    with pytest.raises(ValueError, match=r"rescale to .*needs a Cast; Cast\.parse takes a text"):
        Rescale(1, 1, Format(8))


# The multiplier: (real, rule) -> (multiplier, shift).
@pytest.mark.parametrize(("real", "rule", "want"), [
    (1.0, "tflite", (2**30, 30)), (0.5, "tflite", (2**30, 31)), (0.25, "tflite", (2**30, 32)),
    (2.7, "tflite", (1449551462, 29)), (0.007247427341846, "tflite", (1992157658, 38)),
    (1e-10, "tflite", (0, 31)), (0, "tflite", (0, 31)),
    (2.0**-32, "tflite", (2**30, 62)), (np.nextafter(2.0**-32, 0), "tflite", (2**30, 62)),
    (2.0**-32 - 2.0**-64, "tflite", (2**30, 62)), (2.0**-32 - 2.0**-63, "tflite", (0, 31)),
    (2.0**29, "tflite", (2**30, 1)),
    (2.0**30 - 1, "tflite", (2**31 - 2, 1)), (2.0**30, "tflite", (2**31 - 1, 1)),
    (1e300, "tflite", (2**31 - 1, 1)), (5e-324, "tflite", (0, 31)),
    (1 - 2.0**-32, "tflite", (2**30, 30)), (1 - 2.0**-31, "tflite", (2**31 - 1, 31)),
    (1 - 3 * 2.0**-33, "tflite", (2**31 - 1, 31)), (Fraction(1, 3), "tflite", (1431655765, 32)),
    (np.float32(0.1), "tflite", (1717986944, 34)), (3, "tflite", (3 * 2**29, 29)),
    (1.0, "tosa32", (2**30, 30)), (1.0, "tosa16", (2**14, 14)), (2.7, "tosa16", (22118, 13)),
    (2.0**28, "tosa32", (2**30, 2)), (2.0**-33, "tosa32", (2**29, 62)),
    (3 * 2.0**-64, "tosa32", (0, 62)), (3 * 2.0**-63, "tosa32", (1, 62)),
    (3 * 2.0**-62, "tosa16", (3, 62)), (0.0, "tosa32", (0, 31)), (0.0, "tosa16", (0, 15)),
])
def test_a_real_multiplier_is_encoded_as_its_tool_does(real, rule, want):
    assert multiplier_and_shift(real, rule) == want


@given(st.floats(2.0**-32, 2.0**29, exclude_max=True) | st.fractions(Fraction(1, 2**32), 2**29),
       st.sampled_from([("tflite", 31), ("tosa16", 15)]))
@examples(300)
def test_a_multiplier_is_the_nearest_of_its_bits(real, rule):
    name, bits = rule
    real = min(Fraction(real), Fraction(2 ** (bits - 2) - 1))
    multiplier, shift = multiplier_and_shift(real, name)
    assert 2 ** (bits - 1) <= multiplier < 2**bits
    assert oracle.rounded(real * 2**shift, "TIES_AWAY") == multiplier or (
        oracle.rounded(real * 2 ** (shift + 1), "TIES_AWAY") == 2**bits == 2 * multiplier)


@pytest.mark.parametrize(("real", "rule", "message"), [
    (-0.5, "tflite", "-0.5: needs a number from 0 on"), (float("nan"), "tflite", "nan: needs"),
    (float("inf"), "tosa32", "inf: needs"), ("0.5", "tosa32", "'0.5': needs"),
    (2.0**29, "tosa32", r"shift of at least 2, so it ends below 2\^29"),
    (2.0**13, "tosa16", r"ends below 2\^13"),
    (0.5, "tosa8", "unknown multiplier rule 'tosa8': did you mean"),
])
def test_what_is_no_multiplier_is_refused(real, rule, message):
    with pytest.raises(ValueError, match=message):
        multiplier_and_shift(real, rule)


# The definition.

@pytest.mark.parametrize(("spec", "x", "want"), [
    (parse(SINGLE), [-6, -2, 1, 2, 3, 6], [-1, 0, 0, 1, 1, 2]),
    (parse(DOUBLE), [-6, -2, 1, 2, 3, 6], [-2, -1, 1, 1, 1, 2]),
    (parse("s8 ties_even sat", 3, 1), [-3, -1, 1, 3, 100], [-4, -2, 2, 4, 127]),
    (parse("s4 wrap, output_zp: 7", 1, 0), [0, 1, -20], [7, -8, 3]),
    (parse("s4 sat_zero, output_zp: 7", 1, 0), [0, 1, -20], [7, 0, 0]),
    (parse("u8 sat, input_zp: 3, output_zp: 5", 1, 1), [3, 6, -20, 900], [5, 6, 0, 255]),
    (parse("s8 sat, output_zp: -3, clamp: -3 21", 1, 1), [-9, 0, 8, 90], [-3, -3, 1, 21]),
])
def test_a_rescale_gives_what_one_finds_by_hand(spec, x, want):
    assert [reference.rescale(code, spec) for code in x] == want
    assert emu.rescale(x, spec).tolist() == want


def saturating_rounding_doubling_high_mul(a, b):
    """gemmlowp's, as C computes it: a nudge by the sign, then a division that truncates."""
    if a == b == INT32[0]:
        return INT32[1]
    nudged = a * b + (2**30 if a * b >= 0 else 1 - 2**30)
    return abs(nudged) // 2**31 * (1 if nudged >= 0 else -1)


def rounding_divide_by_pot(x, exponent):
    """gemmlowp's, as C computes it: a mask and a threshold that depends on the sign."""
    mask = 2**exponent - 1
    return (x >> exponent) + ((x & mask) > (mask >> 1) + (x < 0))


@given(st.integers(*INT32), st.integers(0, 2**31 - 1), st.integers(-31, 30))
@examples(500)
def test_double_rounding_is_that_of_gemmlowp(x, multiplier, left):
    spec = parse("s32 ties_away sat, double: true", multiplier, 31 - left)
    x >>= max(left, 0)  # what the left shift does not push out of int32
    for near in (x, x // 2**20, x // 2**28):
        high = saturating_rounding_doubling_high_mul(near << max(left, 0), multiplier)
        want = rounding_divide_by_pot(high, max(-left, 0))
        assert reference.rescale(near, spec) == want


@given(st.integers(*INT32), st.integers(0, 2**31 - 1), st.integers(2, 62), st.booleans())
@examples(500)
def test_both_roundings_are_those_of_tosa(x, multiplier, shift, double):
    spec = parse(f"s32 {'ties_away' if double else 'ties_pos'} sat, double: {double}", multiplier,
                 shift)
    for near in (x, x // 2**20, x // 2**28):  # apply_scale_32
        half = 1 << (shift - 1)
        if double and shift > 31:
            half += 1 << 30 if near >= 0 else -(1 << 30)
        want = max(INT32[0], min(INT32[1], (near * multiplier + half) >> shift))
        assert reference.rescale(near, spec) == want


def test_every_small_rescale_is_that_of_its_fraction():
    x = np.arange(-40, 41)
    for (to, rounding, overflow), multiplier, shift in product(
            product((Format(3), Format(4, 0, False)), DETERMINISTIC, Overflow),
            (0, 1, 3, 8), (0, 1, 2, 4, 7)):
        zp = (multiplier - 1, to.hi - shift % 3)
        spec = Rescale(multiplier, shift, Cast(to, rounding, overflow), False, *zp)
        want = [oracle.rescale(code, spec) for code in x.tolist()]
        assert [reference.rescale(code, spec) for code in x.tolist()] == want, str(spec)
        assert engine.rescale(x, spec).tolist() == want, str(spec)


@pytest.mark.parametrize("rounding", DETERMINISTIC)
def test_every_rounding_is_exact_around_both_halves_of_a_double_one(rounding):
    # 2^30 * x / 2^shift: the first rounding has its ties at odd x, the second where it drops half.
    for shift in (31, 32, 33, 36):
        spec = Rescale(2**30, shift, Cast(Format(8), rounding, Overflow.SAT), True)
        x = range(-200, 200)
        want = [oracle.rescale(code, spec) for code in x]
        assert [reference.rescale(code, spec) for code in x] == want
        assert engine.rescale(list(x), spec).tolist() == want


ACCUMULATORS = st.integers(*INT32) | st.integers(-300, 300) | st.sampled_from(INT32)


@given(st.data(), rescales())
@examples(300)
def test_any_rescale_is_that_of_its_fraction(data, spec):
    channel = data.draw(st.integers(0, len(spec.multiplier) - 1))
    x = data.draw(ACCUMULATORS | st.integers(-(2**47), 2**47))
    assert reference.rescale(x, spec, channel) == oracle.rescale(x, spec, channel)


# The engine.

@given(st.data(), rescales())
@examples(300)
def test_the_engine_agrees_in_every_channel(data, spec):
    channels = len(spec.multiplier)
    x = data.draw(st.lists(ACCUMULATORS, min_size=3 * channels, max_size=3 * channels))
    want = [reference.rescale(code, spec, i % channels) for i, code in enumerate(x)]
    got = engine.rescale(np.array(x).reshape(3, channels), spec)
    assert got.ravel().tolist() == want


@pytest.mark.parametrize(("shape", "axis"), [((4, 2, 3), 0), ((2, 4, 3), 1), ((2, 3, 4), 2),
                                             ((2, 3, 4), -1), ((4,), 0), ((2, 4, 1, 5), 1)])
def test_channels_lie_along_their_axis(shape, axis):
    spec = parse(f"{SINGLE}, output_zp: -9", "3 50 700 9000", "5 9 13 16")
    x = filled(shape, Format(12), 0)
    want = np.empty(shape, int)
    for index in np.ndindex(*shape):
        want[index] = reference.rescale(int(x[index]), spec, index[axis])
    assert engine.rescale(x, spec, axis).tolist() == want.tolist()


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"])
def test_every_integer_dtype_is_taken_as_it_is(dtype):
    x = np.array([0, 1, 100, 127], dtype)
    spec = parse("u16 ties_even sat", 77, 3)
    want = [reference.rescale(code, spec) for code in x.tolist()]
    got = engine.rescale(x, spec)
    assert (got.tolist(), got.dtype) == (want, np.int32)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (0, 3), (3, 0), (2, 3, 0)])
@pytest.mark.parametrize("text", ["1", "1 2 3"])
def test_the_shape_is_kept(shape, text):
    if text == "1" or 3 in shape:
        axis = shape.index(3) if text != "1" else 1
        assert engine.rescale(np.zeros(shape, int), parse(SINGLE, text), axis).shape == shape


def test_strided_and_read_only_codes_are_read_in_their_own_order():
    x = np.arange(-300, 300).reshape(6, 100).T[::7]
    x.flags.writeable = False
    spec = parse(SINGLE, "1 2 3 4 5 6", 3)
    want = [[reference.rescale(code, spec, c) for c, code in enumerate(row)] for row in x.tolist()]
    assert engine.rescale(x, spec).tolist() == want


def test_a_48_bit_accumulator_takes_multipliers_of_15_bits():
    spec = parse("s16 ties_pos sat", 2**15 - 1, 40)
    x = [-(2**47), 2**47 - 1, 12345678901234]
    assert engine.rescale(x, spec).tolist() == [reference.rescale(code, spec) for code in x]


@pytest.mark.parametrize(("codes", "spec", "axis", "message"), [
    ([[2**33]], parse(SINGLE), 1, "codes up to 8589934592 .* multiplier 1073741824: needs more"),
    ([-(2**63)], parse(f"{SINGLE}, input_zp: 1", 1), 1, "codes up to 9223372036854775809"),
    ([[1, 2]], parse(SINGLE, "1 2 3"), 1, r"codes \(1, 2\): 3 multipliers .* along axis 1"),
    ([1, 2, 3], parse(SINGLE, "1 2 3"), 1, r"codes \(3,\): 3 multipliers .* along axis 1"),
    ([[0.5]], parse(SINGLE), 1, "codes: dtype float64 holds no codes"),
])
def test_what_cannot_be_rescaled_is_refused(codes, spec, axis, message):
    with pytest.raises(ValueError, match=message):
        engine.rescale(codes, spec, axis)


# A quantised layer: the exact sum of (a - a_zp) * (b - b_zp), and its requantisation.

@pytest.mark.parametrize("form", [Format(8), Format(8, 0, signed=False)])
def test_codes_minus_a_zero_point_of_8_bits_fit_9(form):
    ends = [code - zp for code in (form.lo, form.hi) for zp in (form.lo, form.hi)]
    assert Format(9).lo <= min(ends) and max(ends) <= Format(9).hi


@pytest.mark.parametrize(("a", "b"), [(Format(3), Format(3)), (Format(3, 0, False), Format(3))])
def test_the_sum_of_shifted_codes_is_the_expanded_one(a, b):
    wide = Format(max(a.width, b.width) + 1)
    mac = MacSpec(wide, wide, Cast.parse("s32"))
    grid = lambda form: np.arange(form.lo, form.hi + 1)  # noqa: E731
    x = np.array(list(product(grid(a), repeat=2)))
    w = np.array(list(product(grid(b), repeat=2))).T
    for x_zp, w_zp in product((a.lo, -(a.lo + a.hi) // -2, a.hi), (b.lo, 0, b.hi)):
        want = x @ w - w_zp * x.sum(1)[:, None] - x_zp * w.sum(0) + 2 * x_zp * w_zp
        assert np.array_equal(engine.matmul(x - x_zp, w - w_zp, mac), want)
