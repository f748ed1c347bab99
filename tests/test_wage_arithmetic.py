"""The arithmetic of WAGE and WAGEUBN: against their formulas on fractions, and against numbers that
one finds by hand. The engine against the definition on all codes.

Formulas: Q, R, SQ, CQ, flag-QE2 and the order of the update of arXiv 1909.02384, as yang-yk/wageubn
has them (`Quantize.py`); RNE is to nearest, ties to even.
"""

from fractions import Fraction
from itertools import product

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from emu import Cast, Format, Rounding, Rule, UpdateSpec, engine, reference
from emu.kind import ClosedCast, FlagCast
from emu.number import Overflow
from emu.rule import parse_cast

HALF, ONE = Fraction(1, 2), Fraction(1)
# A rule's exponent register ends at 2^96; smaller scales are not what the formulas are.
REALS = st.lists(st.floats(-4, 4, width=32).filter(lambda x: not 0 < abs(x) < 2**-60), min_size=1,
                 max_size=9)


def rne(x: Fraction) -> int:
    """To nearest, ties to even; Python's round of a fraction."""
    return round(x)


def d(k: int) -> Fraction:
    return Fraction(1, 2 ** (k - 1))


def q(x: Fraction, k: int) -> Fraction:
    """Direct quantisation."""
    return rne(x / d(k)) * d(k)


def r(values) -> Fraction:
    """2^RNE(log2 max|x|): the power of two whose ratio to the largest is within sqrt(2)."""
    most = max(abs(Fraction(x)) for x in values)
    return next(Fraction(2) ** e for e in range(-200, 40)
                if Fraction(2) ** (2 * e - 1) < most**2 < Fraction(2) ** (2 * e + 1))


def clip(x, most):
    return max(-most, min(most, x))


def sq(values, k: int) -> list[Fraction]:
    """Shift quantisation."""
    scale = r(values)
    return [scale * clip(q(Fraction(x) / scale, k), 1 - d(k)) for x in values]


def flag_qe2(values, k: int, scale: Fraction) -> list[Fraction]:
    """The value of each error, in the units that its size asks for."""
    found = []
    for x in map(Fraction, values):
        n = abs(x) / (scale * d(k))
        code = min(rne(n), 2 ** (k - 1) - 1) * 2 ** (k - 1) if n >= 1 else rne(n * 2 ** (k - 1))
        found.append((1 if x > 0 else -1) * code * scale * d(k) * d(k))
    return found


def values(codes, form: Format) -> list[Fraction]:
    return [int(code) / Fraction(2) ** form.frac for code in codes]


def by_rule(text: str, floats, rand=None) -> list[Fraction]:
    """Floats in the cast of a rule: by the definition, and the same by the engine."""
    rule = Rule.parse(text)
    codes, frac = reference.float_codes([float(x) for x in floats])
    got, form = reference.cast_by(rule, codes, frac, rand=rand)
    array = np.array([float(x) for x in floats])
    to = engine.cast_for(rule, array, None)
    assert engine.quantize_full(array, to, rand and np.array(rand)).codes.tolist() == got
    assert rule.read(to) == form
    return values(got, form)


def test_C01_the_scale_is_the_nearest_power_of_two_by_logarithms():
    rule = Rule.parse("s8 auto:shift ties_even sat_sym")
    for largest in range(1, 5000):
        exponent = 7 - rule.cast_for(largest, 0).format.frac
        assert 2 ** (2 * exponent - 1) < largest**2 < 2 ** (2 * exponent + 1) or (
            largest == 1 and exponent == 0)
    for k in (7, 20, 31, 60):  # just below and above 2^(k + 1/2)
        floor = int(oracle_root(2 ** (2 * k + 1)))
        assert [7 - rule.cast_for(floor + i, 0).format.frac for i in (0, 1)] == [k, k + 1]


def oracle_root(x: int) -> int:
    """The greatest whole number whose square is at most x, by halving."""
    low, high = 0, x
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle * middle <= x else (low, middle - 1)
    return low


@pytest.mark.parametrize(("most", "scale"), [(0.70, HALF), (0.71, 1), (1.4, 1), (1.5, 2)])
def test_C01_golden_scales(most, scale):
    for x in ([most], [-most, 0.1]):
        to = engine.cast_for(Rule.parse("s8 auto:shift"), np.array(x), None)
        assert Fraction(2) ** (7 - to.format.frac) == scale == r(x)


def test_C01_golden_shift_quantisation():
    assert by_rule("s4 auto:shift ties_even sat_sym", [.1, -.7, .3, 1.5]) == [
        0, Fraction(-3, 4), Fraction(1, 4), Fraction(3, 2)]


def test_C01_golden_direct_quantisation():
    x = [-1.5, -.996, -.5, .00390625, .01171875, .3, .9961, 1, 2.7]
    assert engine.quantize(np.array(x), Cast.parse("s12f7 ties_even sat")).tolist() == [
        -192, -127, -64, 0, 2, 38, 128, 128, 346]  # open: 12 bits hold what there is
    narrow = Cast.parse("s8f7 ties_even sat_sym")
    assert engine.quantize(np.array([-1.5, -.996, -.5, .3, 1, 2.7]), narrow).tolist() == [
        -127, -127, -64, 38, 127, 127]


ERRORS = [1.3, -.9, .5, .01, .004, -.0039, .0001, 3e-5, -2e-6, 0]


def test_C03_golden_flagged_errors():
    to = FlagCast.parse("flag s8f7 ties_even sat_sym")
    assert engine.cast_for(Rule.parse("flag s8 auto:shift ties_even sat_sym"),
                           np.array(ERRORS), None) == to  # the scale of these is 1
    codes = engine.quantize(np.array(ERRORS), to).tolist()
    assert codes == [127 << 7, -115 << 7, 64 << 7, 1 << 7, 66, -64, 2, 0, 0, 0]
    assert [float(x) for x in values(codes, to.format)] == [
        .9921875, -.8984375, .5, .0078125, .0040283203125, -.00390625, .0001220703125, 0, 0, 0]
    packed = [reference.flag_pack(code, to) for code in codes]
    assert [(bits >> 8, (bits & 255) - 256 * (bits >> 7 & 1)) for bits in packed] == [
        (1, 127), (1, -115), (1, 64), (1, 1), (0, 66), (0, -64), (0, 2), (0, 0), (0, 0), (0, 0)]


@pytest.mark.parametrize(("text", "first"), [
    ("closed s8 auto:shift ties_even sat", ONE), ("s8 auto:shift ties_even sat_sym", 1 - d(8))])
def test_golden_errors_at_activations_of_the_code_and_of_the_paper(text, first):
    got = by_rule(text, ERRORS)
    assert got == [first, *sq(ERRORS, 8)[1:]]


@given(REALS.filter(any), st.integers(2, 16))
@examples(60)
def test_C01_shift_quantisation_is_its_formula(x, k):
    assert by_rule(f"s{k} auto:shift ties_even sat_sym", x) == sq(x, k)


@given(REALS.filter(any), st.integers(2, 16))
@examples(60)
def test_C09_dropping_the_scale_is_the_formula_of_wage(x, k):
    assert by_rule(f"s{k} auto:shift=f{k - 1} ties_even sat_sym", x) == [
        value / r(x) for value in sq(x, k)]


@given(REALS.filter(any), st.integers(2, 16))
@examples(60)
def test_C03_flagged_errors_are_their_formula(x, k):
    got = by_rule(f"flag s{k} auto:shift ties_even sat_sym", x)
    assert got == flag_qe2(x, k, r(x))


@given(REALS.filter(any), st.integers(2, 16))
@examples(60)
def test_errors_at_activations_in_the_code_are_their_formula(x, k):
    got = by_rule(f"closed s{k} auto:shift ties_even sat", x)
    assert got == [r(x) * clip(q(Fraction(v) / r(x), k), ONE) for v in x]


@given(REALS.filter(any), st.sampled_from([2, 4, 6, 8]), st.data())
@examples(60)
def test_C01_constant_quantisation_is_its_formula(x, k, data):
    """Up from the floor with the dither; dr = 2^(k-1) is 128, 32, 8 and 2 for 8, 6, 4, 2 bits."""
    rand = [data.draw(st.integers(0, 2**16 - 1)) for _ in x]
    got = by_rule(f"s{k} auto:shift=f14 stochastic16 sat_sym", x, rand)
    dr = 2 ** (k - 1)
    want = [clip(oracle.dithered(dr * Fraction(v) / r(x), bits, 16), dr - 1) * d(15)
            for v, bits in zip(x, rand, strict=True)]
    assert got == want


@pytest.mark.parametrize("x", range(-40, 41))
def test_C01_dither_goes_away_from_zero_as_often_as_rounding_of_the_magnitude_does(x):
    """The official codes round |x| stochastically; here all 16 operands of 4 bits are tried."""
    to = Cast.parse("s8f0 stochastic4 sat_sym")
    floor, rest = divmod(abs(x), 16)
    ups = [abs(reference.cast(x, 4, to, rand)) for rand in range(16)]
    assert sorted(ups) == [floor] * (16 - rest) + [floor + 1] * rest


@pytest.mark.parametrize("text", [
    "s8 auto:shift ties_even sat_sym", "s8 auto:shift=f14 stochastic16 sat_sym",
    "flag s8 auto:shift ties_even sat_sym", "closed s8 auto:shift=f7 ties_even sat"])
def test_C10_zeros_choose_no_scale_and_stay_zeros(text):
    rule, zeros = Rule.parse(text), np.zeros(3)
    for last in (None, 5):
        to = engine.cast_for(rule, zeros, last)
        assert to == rule.with_frac(last or 0) == reference.cast_for(rule, [0, 0, 0], 3, last)
        assert not engine.quantize(zeros, to, np.zeros(3, np.int64)).any()


def kinds(width: int) -> list[FlagCast | ClosedCast]:
    """Every flagged and closed cast of this width and of each rounding and overflow."""
    found = []
    for rounding, overflow in product(Rounding, Overflow):
        to = Cast(Format(width, 1), rounding, overflow,
                  3 * (rounding == Rounding.STOCHASTIC))
        found += [FlagCast(to)] + ([ClosedCast(to)] if overflow == Overflow.SAT else [])
    return [*found, ClosedCast.parse(f"closed u{width}f1 ties_even sat")]


def restated(x: Fraction, to: FlagCast | ClosedCast, rand: int) -> tuple[int, bool]:
    """(code, whether the gradient passes), on fractions."""
    form = to.cast.format
    units = x * 2**form.frac

    def rounded(value):
        return (oracle.dithered(value, rand, to.rand_bits) if to.rand_bits
                else oracle.rounded(value, to.rounding.name))

    if isinstance(to, ClosedCast):
        most = 2 ** (form.width - form.signed)
        whole = rounded(units)
        code = max(-most * form.signed, min(most, whole))
        return code, code == whole
    fine = 2 ** (form.width - 1)
    if abs(units) < 1:
        return rounded(units * fine), True
    whole = rounded(units)
    low, high = oracle.limits(to.cast)
    return (oracle.fitted(whole, to.cast) * fine,
            to.overflow == Overflow.WRAP or low <= whole <= high)


@pytest.mark.parametrize("width", [2, 3, 4])
def test_casts_of_other_kinds_on_all_codes(width):
    x = np.arange(-128, 128)
    for to, frac in product(kinds(width), (-2, 1, 4, 9)):
        rand = np.arange(256) * 5 % 8 if to.rand_bits else None
        operands = [0] * 256 if rand is None else rand.tolist()
        want = [restated(Fraction(int(code)) / Fraction(2) ** frac, to, bits)
                for code, bits in zip(x, operands, strict=True)]
        given_ = zip(x.tolist(), [None if rand is None else bits for bits in operands],
                     strict=True)
        assert [(reference.cast(code, frac, to, bits), reference.passes(code, frac, to, bits))
                for code, bits in given_] == want, (to, frac)
        found = engine.cast_full(x, frac, to, rand)
        assert found.codes.tolist() == [code for code, _ in want]
        assert engine.passes(x, frac, to, rand).tolist() == [ok for _, ok in want]
        with engine.monitor() as seen:
            assert engine.cast(x, frac, to, rand).tolist() == found.codes.tolist()
        assert sum(part.overflows for part in seen[0].channels) == found.outside
        if isinstance(to, FlagCast) and to.overflow in (Overflow.SAT, Overflow.SAT_SYM):
            assert set(found.codes.tolist()) <= set(range(to.range[0], to.range[1] + 1))


@pytest.mark.parametrize("frac", [0, 40, 62, 63, 64, 70])
def test_flags_of_the_widest_codes(frac):
    to = FlagCast.parse("flag s8f0 ties_even sat_sym")
    x = np.array([-(1 << 63), (1 << 63) - 1, 1 << 62, 1, -1, 0])
    assert engine.cast(x, frac, to).tolist() == [reference.cast(code, frac, to)
                                                 for code in x.tolist()]


def test_the_operands_of_a_flagged_cast_are_drawn_once():
    to = FlagCast.parse("flag s6f5 stochastic9 sat_sym")
    x, loads = np.arange(-500, 500), engine.load_words(1, 2, "conv", "error", 0)
    rand = engine.random_operands(x.shape, 9, loads)
    assert np.array_equal(engine.cast(x, 12, to, loads=loads), engine.cast(x, 12, to, rand))


@pytest.mark.parametrize("width", [2, 3, 8])
def test_C03_every_flagged_number_survives_its_packing(width):
    to = FlagCast(Cast(Format(width), Rounding.TIES_EVEN, Overflow.SAT))
    one = 1 << width - 1
    codes = set(range(-one, one + 1)) | {one * x for x in range(-one, one)}
    assert {reference.cast(code, to.format.frac, to) for code in codes} == codes
    packed = {code: reference.flag_pack(code, to) for code in codes}
    assert len(set(packed.values())) == len(codes) and max(packed.values()) < 1 << width + 1
    assert all(reference.flag_unpack(bits, to) == code for code, bits in packed.items())


@pytest.mark.parametrize("code", [129, -16385, 1 << 14])
def test_what_is_no_flagged_number_is_not_packed(code):
    with pytest.raises(ValueError, match=f"code {code}: is none of flag s8f7"):
        reference.flag_pack(code, FlagCast.parse("flag s8f7 ties_even sat"))


def test_C03_a_mac_may_multiply_the_bits_and_shift():
    """The hardware of flagged errors: 8 x 8 products and a shift of 0 or 7, the same sums."""
    to = FlagCast.parse("flag s8f7 ties_even sat_sym")
    errors = engine.quantize(np.linspace(-1.2, 1.2, 64)**3, to).tolist()
    weights = [x * 37 % 255 - 127 for x in range(64)]
    shifted = 0
    for error, weight in zip(errors, weights, strict=True):
        bits = reference.flag_pack(error, to)
        code = (bits & 255) - 256 * (bits >> 7 & 1)
        shifted += code * weight << (7 if bits >> 8 else 0)
    assert shifted == sum(e * w for e, w in zip(errors, weights, strict=True))


@pytest.mark.parametrize(("text", "message"), [
    ("flag u8f7 ties_even sat", "a flagged number has a sign; write s8"),
    ("flag s17f7 ties_even sat", "use 2 to 16 bits"),
    ("closed s8f7 ties_even wrap", "a closed range saturates; write sat"),
    ("closed s32f7 ties_even sat", "use 2 to 31 bits"),
    ("flag s8 auto:sweep ties_even sat", "auto:sweep is of plain casts"),
    ("s8 auto:shift=7 ties_even sat", "unknown scale rule"),
    ("s8 auto:shifts ties_even sat", "did you mean 'auto:shift'"),
    ("s8 f7 ties_even sat", "unknown mode in .*'f7'")])
def test_other_kinds_are_refused_by_name(text, message):
    with pytest.raises(ValueError, match=message):
        parse_cast(text)


@pytest.mark.parametrize("text", [
    "flag s8f7 ties_even sat_sym", "closed s8f7 ties_even sat", "s2 f1=f4 ties_even sat_sym",
    "flag s8 auto:shift@previous=f14 ties_even sat_sym", "closed u8 auto:max=f-3 to_neg sat"])
def test_other_kinds_survive_their_text(text):
    assert str(parse_cast(text)) == text and parse_cast(parse_cast(text)) == parse_cast(text)


# ----- the order of the update

WIDTHS = {"weight": "s24f23 sat", "momentum": "s13f12 ties_even sat", "grad": "s15f14 sat",
          "lr": "s10f9 ties_even sat", "mu": "s3f2 ties_even sat", "direction": "s16f14"}


def test_C05_the_widths_of_the_paper_are_exact():
    spec = UpdateSpec.parse(WIDTHS)
    assert spec.sum_frac("weight") == spec.weight.format.frac == 23
    assert UpdateSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(("texts", "message"), [
    ({"grad": "s16f15"}, r"grad s16f15: breaks the width algebra kGC = kMom \+ kAcc - 1, as mu has "
                         "2 fraction bits and momentum 12; give grad a frac of 14"),
    ({"momentum": "s14f13"}, "kGC = kMom .* give grad a frac of 15"),
    ({"weight": "s23f22 sat"}, r"weight s23f22: breaks the width algebra kWU = kGC \+ klr - 1"),
    ({"lr": "s9f8"}, "kWU = kGC .* give weight a frac of 22"),
    ({"direction": "s15f14"}, "the exact sum takes s16f14; write that"),
    ({"direction": "s17f15"}, "the exact sum takes s16f14"),
    ({"nesterov": "s13f12"}, "leave out nesterov, decay and shrink"),
    ({"decay": "u8f8"}, "leave out nesterov, decay and shrink")])
def test_C05_widths_that_break_the_algebra_are_refused_with_the_rule(texts, message):
    with pytest.raises(ValueError, match=message):
        UpdateSpec.parse(WIDTHS | texts)


@given(st.integers(-(2**14), 2**14 - 1), st.integers(-(2**12), 2**12 - 1),
       st.integers(-(2**23), 2**23 - 1), st.integers(0, 511), st.integers(-4, 3))
@examples(200)
def test_C05_the_update_is_its_formula(g, acc, w, lr, mom):
    """Acc_i = Mom * Acc_q + g; W -= lr * Acc_i; Acc_q = Q(Acc_i, 13), in this order."""
    spec = UpdateSpec.parse(WIDTHS)
    acc_i = Fraction(mom, 4) * Fraction(acc, 2**12) + Fraction(g, 2**14)
    moved = Fraction(w, 2**23) - Fraction(lr, 2**9) * acc_i
    kept = max(-(2**12), min(2**12 - 1, rne(acc_i * 2**12)))
    want = max(-(2**23), min(2**23 - 1, moved * 2**23)), kept
    assert reference.sgd(w, acc, g, lr, mom, spec) == want
    found = engine.sgd(np.array([w]), np.array([acc]), np.array([g]), lr, mom, spec)
    assert (found.weight[0], found.momentum[0]) == want


@pytest.mark.parametrize("texts", [
    {}, {"momentum": "s4f2 stochastic3 sat"}, {"weight": "s8f6 wrap", "momentum": "s4f2 to_zero"},
    {"weight": "s40f6 sat"}, {"weight": "s50f6 sat", "grad": "s30f4"}])
def test_the_engine_updates_all_codes_of_small_formats(texts):
    small = {"weight": "s7f6 sat", "momentum": "s4f2 ties_even sat_sym", "grad": "s5f4 sat",
             "lr": "u3f2", "mu": "s3f2", "direction": "s32f4"} | texts
    spec = UpdateSpec.parse(small)
    weight, momentum, grad = (np.ravel(x) for x in np.meshgrid(
        np.arange(-64, 64, 9), np.arange(-7, 8), np.arange(-16, 16)))
    rand = np.arange(grad.size) % 8 if spec.momentum.rand_bits else None
    operands = [None] * grad.size if rand is None else rand.tolist()
    for lr, mu in ((0, 3), (5, -4), (7, 1)):
        want = [reference.sgd(*codes, lr, mu, spec, bits) for *codes, bits in
                zip(weight.tolist(), momentum.tolist(), grad.tolist(), operands, strict=True)]
        found = engine.sgd(weight, momentum, grad, lr, mu, spec, rand)
        with engine.monitor():
            seen = engine.sgd(weight, momentum, grad, lr, mu, spec, rand)
        for each in (found, seen):
            assert list(zip(each.weight.tolist(), each.momentum.tolist(), strict=True)) == want
