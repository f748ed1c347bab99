"""Ranges that rules choose: the definition against fractions, the engine against the definition."""

from fractions import Fraction
from statistics import variance

import numpy as np
import oracle
import pytest
from engine_cases import filled
from hypothesis import given
from hypothesis import strategies as st
from strategies import codes, examples, modes

from emu import Format, Overflow, Rounding, Rule, engine, reference

SCALES = ["auto:max", "auto:3sigma", "auto:percentile99.9", "auto:percentile90", "auto:percentile5",
          "auto:sweep"]
TENSORS = st.lists(codes(Format(9)) | st.integers(-3, 3), min_size=1, max_size=12).filter(any)


def exponent(rule: Rule, chosen) -> int:
    """The e of a chosen range 2^e."""
    return rule.width - rule.signed - chosen.format.frac


def least_exponent(holds) -> int:
    """The least e for which 2^e holds, monotone in e."""
    e = 200
    while holds(Fraction(2) ** (e - 1)):
        e -= 1
    return e


@st.composite
def rules(draw, scale, widths=(2, 12)):
    """Any rule of a scale."""
    width, signed = draw(st.integers(*widths)), draw(st.booleans())
    return Rule(width, signed, scale, *draw(modes(signed, width)))


@given(rules("auto:3sigma"), TENSORS, st.integers(-20, 20))
@examples(80)
def test_three_sigma_is_the_least_range_that_holds_the_mean_and_three_deviations(rule, x, frac):
    real = [Fraction(code) / Fraction(2) ** frac for code in x]
    mean = abs(sum(real) / len(real))
    spread = 9 * variance(real) if len(real) > 1 else 0
    want = least_exponent(lambda bound: bound >= mean and (bound - mean) ** 2 >= spread)
    assert exponent(rule, reference.cast_for(rule, x, frac)) == want


@pytest.mark.parametrize(("x", "want"), [
    ([0, 1, 2], 2), ([1, 2, 3], 3), ([-1, -2, -3], 3), ([4], 2), ([5], 3), ([4, 4, 4], 2),
    ([-8, -8], 3), ([9, 9], 4), ([1] + 63 * [0], -1), ([1, -1], 3),
    ([24, 19], 6)])  # 21.5 + 3 * 3.536 = 32.1, just beyond 2^5
def test_three_sigma_at_what_one_finds_by_hand(x, want):
    rule = Rule.parse("s8 auto:3sigma")
    got = reference.cast_for(rule, x, 0), engine.cast_for_codes(rule, np.array(x), 0, None)
    assert [exponent(rule, chosen) for chosen in got] == [want, want]


@given(rules("auto:percentile70") | rules("auto:percentile99.9") | rules("auto:percentile0.01"),
       TENSORS, st.integers(-20, 20))
@examples(80)
def test_fewer_than_the_share_are_larger_than_a_percentile(rule, x, frac):
    magnitudes = [abs(code) for code in x]
    share = max(1, len(x) * (100 - rule.percent) // 100)
    bound = next(m for m in sorted(magnitudes) if sum(other > m for other in magnitudes) < share)
    want = rule.cast_for(bound or max(magnitudes), frac)
    assert reference.cast_for(rule, x, frac) == want


@pytest.mark.parametrize(("scale", "want"), [
    ("percentile90", 7), ("percentile50", 6), ("percentile10", 7), ("percentile2", 7),
    ("percentile36.5", 6), ("percentile36", 6), ("percentile37", 6)])
def test_percentiles_of_one_to_a_hundred(scale, want):
    # The 10th largest is 91, the 50th 51, the 63rd 38; the 90th and 98th are 11 and 3.
    want = {"percentile10": 4, "percentile2": 2}.get(scale, want)
    rule = Rule.parse(f"s8 auto:{scale}")
    assert exponent(rule, reference.cast_for(rule, list(range(1, 101)), 0)) == want


def test_a_percentile_that_is_zero_counts_the_others():
    rule = Rule.parse("s8 auto:percentile50")
    assert exponent(rule, reference.cast_for(rule, [0, 0, 0, 100], 0)) == 7


@given(rules("auto:sweep"), TENSORS, st.integers(-20, 20))
@examples(80)
def test_a_sweep_takes_the_first_of_three_ranges_with_the_least_error(rule, x, frac):
    widest = rule.cast_for(max(map(abs, x)), frac)
    mode = widest if rule.rounding != Rounding.STOCHASTIC else Rule(
        rule.width, rule.signed, "auto:max", Rounding.TIES_EVEN, rule.overflow).with_frac(0)
    errors = []
    for finer in range(3):
        to = mode.with_frac(widest.format.frac + finer)
        real = [Fraction(code) / Fraction(2) ** frac for code in x]
        errors.append(sum((oracle.value_of(oracle.cast(value, to), to.format) - value) ** 2
                          for value in real))
    want = widest.format.frac + errors.index(min(errors))
    assert reference.cast_for(rule, x, frac) == widest.with_frac(want)


@pytest.mark.parametrize(("x", "want"), [
    ([100] + 400 * [3, 5, -7], 5),  # one outlier is worth a quarter of the range
    ([100, 90, -100], 7), ([64] + 20 * [33], 6)])
def test_a_sweep_gives_up_an_outlier_for_the_many(x, want):
    rule = Rule.parse("s4 auto:sweep ties_even sat")
    assert exponent(rule, reference.cast_for(rule, x, 0)) == want


def test_a_sweep_weighs_the_errors_of_different_steps_alike():
    # Range 16 floors every code by 1; range 8 wraps 9 by 16, and range 4 by 8: 101, 256 and 64.
    rule, x = Rule.parse("s4 auto:sweep to_neg wrap"), [9] + 100 * [1]
    got = reference.cast_for(rule, x, 0), engine.cast_for_codes(rule, np.array(x), 0, None)
    assert [exponent(rule, chosen) for chosen in got] == [2, 2]


@pytest.mark.parametrize("scale", SCALES)
def test_zeros_keep_the_last_frac_of_every_scale(scale):
    rule = Rule.parse(f"s8 {scale}")
    assert [reference.cast_for(rule, x, 3, last).format.frac for x, last in
            (([0, 0], None), ([0, 0], 5), ([], -3))] == [0, 5, -3]
    assert [engine.cast_for_codes(rule, np.array(x, np.int8), 3, last).format.frac for x, last in
            (([0, 0], None), ([0, 0], 5), ([], -3))] == [0, 5, -3]
    assert engine.cast_for(rule, np.zeros(3), 7).format.frac == 7


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_the_engine_chooses_as_defined(scale, dtype):
    bits = 8 * np.dtype(dtype).itemsize

    @given(rules(scale, (2, 63)), st.integers(2, bits), st.integers(1, 60), st.integers(-150, 150),
           st.integers(0, 99), st.booleans())
    @examples(25)
    def check(rule, width, size, frac, seed, sparse):
        x = filled((size,), Format(width), seed).astype(dtype)
        if sparse:
            x[1:] //= 1 << (width - 2)
        want = reference.cast_for(rule, x.tolist(), frac)
        assert engine.cast_for_codes(rule, x, frac, None) == want

    check()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("text", ["s8 {} ties_even sat", "u5 {} stochastic4", "s62 {} to_odd sat"])
def test_the_engine_chooses_as_defined_for_the_widest_codes(scale, text):
    rule = Rule.parse(text.format(scale))
    least, most = -(2**63), 2**63 - 1
    for x in ([least], [most], [least, most, 0, 1], [2**62, -(2**62) - 1], [least] * 300 + [1]):
        assert engine.cast_for_codes(rule, np.array(x), 0, None) == reference.cast_for(rule, x, 0)


@pytest.mark.parametrize("scale", SCALES)
def test_the_engine_chooses_as_defined_for_many_codes(scale):
    rule = Rule.parse(f"s6 {scale} ties_away sat")
    x = (np.random.default_rng(0).normal(0, 900, (7, 5000))).astype(np.int32)
    want = reference.cast_for(rule, x.reshape(-1).tolist(), 8)
    assert engine.cast_for_codes(rule, x, 8, None) == want
    assert engine.cast_for_codes(rule, x.T[::1], 8, None) == want  # in no order


FLOATS = st.floats(-1e3, 1e3, width=32) | st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("scale", SCALES)
def test_floats_enter_a_statistic_as_defined(scale):
    @given(rules(scale), st.lists(FLOATS, min_size=1, max_size=6).filter(any))
    @examples(40)
    def check(rule, x):
        want = reference.cast_for(rule, *reference.float_codes(x))
        assert engine.cast_for(rule, np.array(x), None) == want

    check()


@given(st.lists(FLOATS, min_size=1, max_size=6))
@examples(100)
def test_floats_enter_with_sixty_bits_of_the_largest(x):
    found, frac = reference.float_codes(x)
    largest = max(map(abs, x))
    if 2.0**-400 < largest < 2.0**500:
        assert 2**59 <= max(map(abs, found)) < 2**60
    for code, value in zip(found, x, strict=True):
        exact = Fraction(value) * Fraction(2) ** frac
        assert code == exact or (abs(code - exact) < 1 and code % 2) or abs(exact) > 2**62


@pytest.mark.parametrize(("scale", "x", "want"), [  # those of the reference system's own tests
    ("max", [0.2513, -0.5, 0], -1), ("max", [0.2513, -0.52, 0], 0),
    ("3sigma", [0.1, 0.2, -0.3, 0.4], 0), ("3sigma", [0.2513, -0.52, 0], 1),
    ("percentile90", [k / 100 for k in range(1, 101)], 0)])
def test_ranges_that_nics_fix_documents(scale, x, want):
    rule = Rule.parse(f"s8 auto:{scale}")
    assert exponent(rule, engine.cast_for(rule, np.array(x), None)) == want


@pytest.mark.parametrize("overflow", Overflow)
def test_a_range_never_leaves_the_exponent_register(overflow):
    for scale in SCALES:
        rule = Rule(8, True, scale, Rounding.TIES_EVEN, overflow)
        for frac, want in ((300, 96), (-300, -96)):
            assert reference.cast_for(rule, [3, 100, -7], frac).format.frac == want
            assert engine.cast_for_codes(rule, np.array([3, 100, -7]), frac, None) == (
                rule.with_frac(want))


def test_choosing_a_range_leaves_no_record_of_a_cast():
    with engine.monitor() as seen:
        engine.cast_for_codes(Rule.parse("s8 auto:sweep"), np.array([3, 500]), 0, None)
    assert not seen


@given(rules("auto:max+1e-5") | rules("auto:max+0.25"),
       st.lists(codes(Format(9)), min_size=1, max_size=9), st.integers(-20, 24))
@examples(80)
def test_a_margin_is_added_before_the_range_is_chosen(rule, x, frac):
    bound = Fraction(max(map(abs, x))) / Fraction(2) ** frac + rule.margin
    want = least_exponent(lambda reach: reach >= bound)
    got = (reference.cast_for(rule, x, frac), engine.cast_for_codes(rule, np.array(x), frac, 3),
           engine.cast_for(rule, np.array(x) * 2.0**-frac, None))
    assert [exponent(rule, chosen) for chosen in got] == [want] * 3


@pytest.mark.parametrize(("most", "want"), [
    (0.0, -16), (0.5, 0), (1.0, 1), (0.49999, -1), (0.499995, 0), (256.0, 9), (-0.25, -1)])
def test_a_margin_of_1e_5_at_the_numbers_of_nics_fix(most, want):
    # 256 + 1e-5 is 256 in float32, where nics_fix stays at 8: here the sum is exact.
    rule = Rule.parse("s8 auto:max+1e-5 ties_even sat")
    assert exponent(rule, engine.cast_for(rule, np.array([most, 0.0]), None)) == want
