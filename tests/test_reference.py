"""The reference against fractions and torch: every code of the small formats, then wide.

`oracle` restates the definitions on real values; torch knows the geometry of a convolution, and
an exact accumulator makes its order irrelevant.
"""

import math
from fractions import Fraction
from functools import cache
from itertools import product

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import DETERMINISTIC, casts, codes, examples, macs, updates

from emu import reference
from emu.number import Cast, Format, Overflow, Rounding
from emu.spec import MacSpec, UpdateSpec

CODES = range(-32, 64)  # every code of every format of 1 to 6 bits
SHIFTS = range(-3, 10)  # left shifts, and right shifts beyond the width
SMALL = [Format(width, 0, signed) for width in range(1, 7) for signed in (True, False)]


def to(rounding, form=SMALL[-1], overflow=Overflow.WRAP, rand_bits=0):
    """A cast from its parts."""
    return Cast(form, rounding, overflow, rand_bits)


# 1.1: value in quarters -> the code of each rounding.
QUARTERS = {
    "TO_NEG": {-6: -2, -5: -2, -2: -1, -1: -1, 1: 0, 2: 0, 3: 0, 5: 1, 6: 1},
    "TO_POS": {-6: -1, -5: -1, -2: 0, -1: 0, 1: 1, 2: 1, 3: 1, 5: 2, 6: 2},
    "TO_ZERO": {-6: -1, -5: -1, -2: 0, -1: 0, 1: 0, 2: 0, 3: 0, 5: 1, 6: 1},
    "TO_AWAY": {-6: -2, -5: -2, -2: -1, -1: -1, 1: 1, 2: 1, 3: 1, 5: 2, 6: 2},
    "TO_ODD": {-6: -1, -5: -1, -2: -1, -1: -1, 1: 1, 2: 1, 3: 1, 5: 1, 6: 1, 8: 2},
    "TIES_NEG": {-6: -2, -5: -1, -2: -1, -1: 0, 1: 0, 2: 0, 3: 1, 5: 1, 6: 1},
    "TIES_POS": {-6: -1, -5: -1, -2: 0, -1: 0, 1: 0, 2: 1, 3: 1, 5: 1, 6: 2},
    "TIES_ZERO": {-6: -1, -5: -1, -2: 0, -1: 0, 1: 0, 2: 0, 3: 1, 5: 1, 6: 1},
    "TIES_AWAY": {-6: -2, -5: -1, -2: -1, -1: 0, 1: 0, 2: 1, 3: 1, 5: 1, 6: 2},
    "TIES_EVEN": {-6: -2, -5: -1, -2: 0, -1: 0, 1: 0, 2: 0, 3: 1, 5: 1, 6: 2},
    "TIES_ODD": {-6: -1, -5: -1, -2: -1, -1: 0, 1: 0, 2: 1, 3: 1, 5: 1, 6: 1},
}


@pytest.mark.parametrize("name", QUARTERS)
def test_quarters_round_by_the_table(name):
    got = {x: reference.round_shift(x, 2, to(Rounding[name])) for x in QUARTERS[name]}
    assert got == QUARTERS[name]


def test_the_table_of_quarters_has_every_deterministic_rounding():
    assert set(QUARTERS) == {rounding.name for rounding in DETERMINISTIC}


@pytest.mark.parametrize("name", QUARTERS)
def test_the_oracle_rounds_quarters_by_the_table(name):
    got = {x: oracle.rounded(Fraction(x, 4), name) for x in QUARTERS[name]}
    assert got == QUARTERS[name]


@pytest.mark.parametrize(("text", "want"), [  # the codes that 6, 7, 8, 9, -7, -8, -9 become
    ("s4 wrap", [6, 7, -8, -7, -7, -8, 7]), ("s4 sat", [6, 7, 7, 7, -7, -8, -8]),
    ("s4 sat_sym", [6, 7, 7, 7, -7, -7, -7]), ("s4 sat_zero", [6, 7, 0, 0, -7, -8, 0]),
    ("u3 wrap", [6, 7, 0, 1, 1, 0, 7]), ("u3 sat", [6, 7, 7, 7, 0, 0, 0]),
    ("u3 sat_sym", [6, 7, 7, 7, 0, 0, 0]), ("u3 sat_zero", [6, 7, 0, 0, 0, 0, 0]),
])
def test_what_does_not_fit_goes_where_its_overflow_says(text, want):
    assert [reference.fit(x, Cast.parse(text)) for x in (6, 7, 8, 9, -7, -8, -9)] == want


@cache
def small_value(x, n):
    return Fraction(x) / Fraction(2) ** n


@cache
def small_rounded(x, n, rounding):
    return oracle.rounded(small_value(x, n), rounding.name)


@pytest.mark.parametrize("rounding", DETERMINISTIC, ids=lambda r: r.name)
def test_every_small_code_rounds_as_its_fraction(rounding):
    for n, x in product(SHIFTS, CODES):
        got = reference.round_shift(x, n, to(rounding))
        assert got == small_rounded(x, n, rounding), (x, n)


@pytest.mark.parametrize("rand_bits", [1, 2, 3, 4, 6])
def test_every_small_code_is_dithered_as_its_fraction(rand_bits):
    cast = to(Rounding.STOCHASTIC, rand_bits=rand_bits)
    for n, x, rand in product(SHIFTS, range(-9, 17), range(2**rand_bits)):
        want = oracle.dithered(small_value(x, n), rand, rand_bits)
        assert reference.round_shift(x, n, cast, rand) == want, (x, n, rand)


@pytest.mark.parametrize("n", range(1, 5))
def test_stochastic_rounding_rounds_up_in_proportion_to_the_rest(n):
    cast = to(Rounding.STOCHASTIC, rand_bits=n)
    ups = [sum(reference.round_shift(x, n, cast, rand) for rand in range(2**n))
           for x in range(2**n)]
    assert ups == list(range(2**n))


def test_stochastic_rounding_ignores_the_rest_below_its_random_bits_only_at_the_top():
    cast = to(Rounding.STOCHASTIC, rand_bits=1)
    assert [reference.round_shift(x, 3, cast, 1) for x in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("overflow", Overflow, ids=lambda o: o.name)
def test_every_small_number_fits_by_its_overflow(overflow):
    for form, x in product(SMALL, range(-140, 140)):
        if form.width > 1 or overflow != Overflow.SAT_SYM or not form.signed:
            cast = to(Rounding.TO_NEG, form, overflow)
            assert reference.fit(x, cast) == oracle.fitted(x, cast), (cast, x)


@pytest.mark.parametrize("overflow", Overflow, ids=lambda o: o.name)
def test_every_small_number_outside_the_range_overflows(overflow):
    for form, x in product(SMALL, range(-140, 140)):
        if form.width > 1 or overflow != Overflow.SAT_SYM or not form.signed:
            cast = to(Rounding.TO_NEG, form, overflow)
            lo, hi = oracle.limits(cast)
            assert reference.overflows(x, cast) == (x < lo or x > hi), (cast, x)


def small_casts(rounding):
    """Every cast of 1 to 6 bits with this rounding."""
    for form, overflow in product(SMALL, Overflow):
        if form.width > 1 or overflow != Overflow.SAT_SYM or not form.signed:
            yield to(rounding, form, overflow)


@pytest.mark.parametrize("rounding", DETERMINISTIC, ids=lambda r: r.name)
def test_every_small_cast_is_that_of_its_fraction(rounding):
    for cast, n in product(small_casts(rounding), SHIFTS):
        for x in CODES:
            want = oracle.fitted(small_rounded(x, n, rounding), cast)
            assert reference.cast(x, n, cast) == want, (cast, x, n)


@pytest.mark.parametrize("rand_bits", [1, 3])
def test_every_small_stochastic_cast_is_that_of_its_fraction(rand_bits):
    forms = [Format(width, 0, signed) for width in (1, 2, 4) for signed in (True, False)]
    for form, overflow, n, rand in product(forms, (Overflow.WRAP, Overflow.SAT, Overflow.SAT_ZERO),
                                           (-1, 0, 1, 2, 5), range(2**rand_bits)):
        cast = to(Rounding.STOCHASTIC, form, overflow, rand_bits)
        for x in range(-20, 40):
            want = oracle.cast(small_value(x, n), cast, rand)
            assert reference.cast(x, n, cast, rand) == want, (cast, x, n, rand)


@pytest.mark.parametrize("rounding", [Rounding.TO_NEG, Rounding.TIES_EVEN, Rounding.TO_AWAY],
                         ids=lambda r: r.name)
def test_every_small_gradient_passes_where_saturation_changed_nothing(rounding):
    for cast, n in product(small_casts(rounding), (-2, 0, 1, 3, 8)):
        for x in CODES:
            code = small_rounded(x, n, rounding)
            want = cast.overflow == Overflow.WRAP or oracle.fitted(code, cast) == code
            assert reference.passes(x, n, cast) == want, (cast, x, n)


@pytest.mark.parametrize(("text", "want"), [  # for 6.5, 7, 7.25, 7.5, -7.5, -8, -8.5, -8.75
    ("s4 ties_even sat", [True, True, True, False, True, True, True, False]),
    ("s4 ties_even sat_zero", [True, True, True, False, True, True, True, False]),
    ("s4 ties_even sat_sym", [True, True, True, False, False, False, False, False]),
    ("s4 ties_even wrap", [True] * 8),
])
def test_the_gradient_passes_by_the_rounded_value(text, want):
    quarters = [26, 28, 29, 30, -30, -32, -34, -35]
    assert [reference.passes(x, 2, Cast.parse(text)) for x in quarters] == want


@given(casts(), st.integers(-(2**70), 2**70), st.integers(-600, 600), st.data())
@examples(500)
def test_any_cast_is_that_of_its_fraction(cast, x, frac, data):
    rand = data.draw(st.integers(0, 2**cast.rand_bits - 1)) if cast.rand_bits else None
    value = Fraction(x) / Fraction(2) ** frac
    want = oracle.cast(value, cast, rand), oracle.passes(value, cast, rand)
    got = reference.cast(x, frac, cast, rand), reference.passes(x, frac, cast, rand)
    assert got == want


@given(casts(widths=(1, 40), fracs=(-40, 40)), st.integers(-(2**40), 2**40), st.data())
@examples(300)
def test_a_cast_near_its_own_step_is_that_of_its_fraction(cast, x, data):
    frac = cast.format.frac + data.draw(st.integers(-6, 44))
    rand = data.draw(st.integers(0, 2**cast.rand_bits - 1)) if cast.rand_bits else None
    value = Fraction(x) / Fraction(2) ** frac
    assert reference.cast(x, frac, cast, rand) == oracle.cast(value, cast, rand)


FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, 1.5, -2.5, 0.1, -0.1, 1 / 3, 1e16 + 2, 2.0**63, -(2.0**64),
          5e-324, -5e-324, 2.2250738585072009e-308, 2.2250738585072014e-308,
          1.7976931348623157e308, -1.7976931348623157e308, math.pi, float(np.float32(0.1))]


@pytest.mark.parametrize("text", [
    "s8f4 ties_even sat", "s8f4 to_pos", "u8 to_away sat", "s64f512 ties_odd", "s4f-512 to_odd",
    "s64f-3 to_zero sat_zero", "s32f31 ties_zero sat_sym", "s1 to_neg",
])
@pytest.mark.parametrize("x", FLOATS)
def test_a_float_is_cast_exactly(x, text):
    cast = Cast.parse(text)
    assert reference.quantize(x, cast) == oracle.cast(Fraction(x), cast)


@given(st.floats(allow_nan=False, allow_infinity=False), casts(), st.data())
@examples(400)
def test_any_float_is_cast_exactly(x, cast, data):
    rand = data.draw(st.integers(0, 2**cast.rand_bits - 1)) if cast.rand_bits else None
    assert reference.quantize(x, cast, rand) == oracle.cast(Fraction(x), cast, rand)


def test_a_float_just_below_a_tie_is_not_a_tie():
    cast = Cast.parse("s8 ties_away")
    got = [reference.quantize(x, cast) for x in (0.49999999999999994, 0.5, -0.49999999999999994)]
    assert got == [0, 1, 0]


@pytest.mark.parametrize(("x", "rand", "want"), [
    (5e-324, 15, 0), (2.0**-4, 15, 1), (math.nextafter(2.0**-4, 0), 15, 0), (0.5, 8, 1),
    (math.nextafter(0.5, 0), 8, 0), (-(2.0**-4), 1, 0), (-(2.0**-4), 0, -1),
])
def test_a_float_is_dithered_exactly(x, rand, want):
    assert reference.quantize(x, Cast.parse("s8 stochastic4"), rand) == want


MAC = MacSpec.parse("{a: s8, b: s8, acc: s8 sat}")
REFUSED = [  # call, fragments of the message: the value, the limit or rule, the way out
    (lambda: reference.cast(3, 0, Cast.parse("s8 stochastic4")), ["rand None", "4 bits"]),
    (lambda: reference.cast(3, 0, Cast.parse("s8 stochastic4"), 16), ["rand 16", "4 bits"]),
    (lambda: reference.cast(3, 9, Cast.parse("s8 stochastic4"), -1), ["rand -1", "4 bits"]),
    (lambda: reference.quantize(0.5, Cast.parse("s8 stochastic4")), ["rand None", "4 bits"]),
    (lambda: reference.passes(1, 0, Cast.parse("s8 stochastic4")), ["rand None", "4 bits"]),
    (lambda: reference.round_divide(3, 2, Rounding.STOCHASTIC), ["STOCHASTIC", "deterministic"]),
    (lambda: reference.divide(3, 3, 0, Cast.parse("s8 stochastic4")),
     ["STOCHASTIC", "deterministic"]),
    (lambda: reference.dot([128], [1], MAC), ["a 128", "from -128 to 127", "cast it first"]),
    (lambda: reference.dot([1], [-129], MAC), ["b -129", "from -128 to 127", "cast it first"]),
    (lambda: reference.dot([1], [1], MAC, 128), ["bias 128", "s8f0", "from -128 to 127"]),
    (lambda: reference.dot([], [], MAC, -129), ["bias -129", "s8f0", "from -128 to 127"]),
    (lambda: reference.quantize(math.nan, Cast.parse("s8")), ["nan is not finite"]),
]


@pytest.mark.parametrize(("call", "fragments"), REFUSED, ids=[f[0] for _, f in REFUSED])
def test_a_refusal_names_the_value_the_limit_and_the_way_out(call, fragments):
    with pytest.raises(ValueError) as refusal:
        call()
    message = str(refusal.value)
    assert [part for part in fragments if part not in message] == [], message


@pytest.mark.parametrize(("a", "b"), [([1, 1], [1]), ([1], [1, 1]), ([], [1])])
def test_operands_of_different_lengths_are_refused(a, b):
    with pytest.raises(ValueError):
        reference.dot(a, b, MAC)


@pytest.mark.parametrize(("a", "want"), [([100, 100, -100], 27), ([100, -100, 100], 100)])
def test_saturation_depends_on_order(a, want):
    assert reference.dot(a, [1, 1, 1], MAC) == want


@pytest.mark.parametrize(("spec", "a", "bias", "want"), [
    ("{acc: s8 wrap}", [100, 100, -100], 0, 100),
    ("{acc: s8 sat, lanes: 2}", [100, 100, -100], 0, 27),
    ("{acc: s8 sat, lanes: 3}", [100, 100, -100], 0, 100),
    ("{acc: s8 sat}", [100], 100, 127),
    ("{acc: s8 sat_sym}", [-100, -100], 0, -127),
    ("{acc: s8 sat_zero}", [100, 100, -100], 0, -100),
    ("{product: s4 sat, acc: s8}", [100, -100], 0, -1),
    ("{product: s8f-2 to_neg, acc: s8f-2}", [7, 7, -1], 0, 1),
    ("{product: s8f-2 ties_even, acc: s8f-2}", [6, 2, -2], 0, 2),
    ("{product: s10f2, acc: s12f2}", [3], 5, 17),
    ("{acc: s8 sat, tile: 2, outer: s10}", [100, 100, 100, 100, 1], 7, 262),
    ("{acc: s8, tile: 2, outer: s8f-3 ties_even}", [4, 0, 4, 0, 4], 1, 1),
    ("{acc: s8, tile: 2, outer: s8f-3 to_neg}", [4, 3, 1, 0, 8], 1, 2),
    ("{acc: s8, tile: 2, outer: s8f-3 to_neg, reload: true}", [4, 3, 1, 0, 8], 1, 2),
    ("{acc: s8, tile: 2, outer: s8f-3 to_pos, reload: true}", [1, 0, 1, 0, 1], 0, 3),
    ("{acc: s8, tile: 2, outer: s4f-3 to_neg sat, reload: true}", [100, 0, -8], 0, 6),
    ("{acc: s4 sat, tile: 2, outer: s8, reload: true}", [-5], 100, 2),
    ("{acc: s8, tile: 2, outer: s10f2}", [3, 3, 3], 1, 37),
])
def test_a_mac_gives_what_one_finds_by_hand(spec, a, bias, want):
    mac = MacSpec.parse("{a: s8, b: s8, " + spec[1:])
    assert reference.dot(a, [1] * len(a), mac, bias) == want


@pytest.mark.parametrize("spec", [
    "{acc: s4 sat}", "{acc: s4, tile: 2, outer: s6f-1}",
    "{acc: s4, tile: 2, outer: s6f-1, reload: true}",
])
def test_a_dot_product_of_nothing_is_the_bias(spec):
    mac = MacSpec.parse("{a: s8, b: s8, " + spec[1:])
    form = mac.result.format
    assert [reference.dot([], [], mac, x) for x in range(form.lo, form.hi + 1)] == list(
        range(form.lo, form.hi + 1))


TINY = [f"{{a: s2, b: s2, acc: s3 {overflow}, lanes: {lanes}}}"
        for overflow in ("wrap", "sat", "sat_sym", "sat_zero") for lanes in (1, 2)] + [
    "{a: u2, b: s2, acc: s4 sat}",
    "{a: s2, b: u2, acc: s4 wrap, lanes: 3}",
    "{a: u2, b: u2, acc: u3 sat_zero}",
    "{a: u1, b: s3, acc: s2 sat_sym, lanes: 2}",
    "{a: s2, b: s2, product: s2 sat, acc: s3 sat}",
    "{a: s2, b: s2, product: s2 sat_zero, acc: s3 sat, lanes: 2}",
    "{a: s2, b: s2, product: s2f-1 ties_even sat, acc: s3f-1 sat}",
    "{a: s2, b: s2, product: s3f-1 to_away, acc: s2f-1 wrap, lanes: 2}",
    "{a: s2, b: s2, product: u2f-1 to_odd, acc: s3f-1 sat}",
    "{a: s2, b: s2, product: s3f1 sat_sym, acc: s4f1 sat, lanes: 2}",
    "{a: s2, b: s2, acc: s3 sat, tile: 2, outer: s4 sat}",
    "{a: s2, b: s2, acc: s4, tile: 2, outer: s3f-1 ties_odd sat, lanes: 2}",
    "{a: s2, b: s2, acc: s4, tile: 1, outer: s3f-1 ties_away wrap}",
    "{a: s2, b: s2, acc: s4 sat, tile: 2, outer: u2f-1 to_pos sat_zero}",
    "{a: s2, b: s2, acc: s3 sat, tile: 2, outer: s6f2 sat}",
    "{a: s2, b: s2, acc: s3 sat, tile: 1, outer: s4f-1 ties_even sat, reload: true}",
    "{a: s2, b: s2, acc: s4 wrap, tile: 2, outer: s2f-2 to_away sat, reload: true, lanes: 2}",
    "{a: s2, b: s2, acc: s3 sat, tile: 2, outer: u3f-1 to_odd wrap, reload: true}",
    "{a: s2, b: s2, product: s3f-1 to_zero, acc: s3f-1 sat, tile: 2, outer: s5f-2 to_neg sat_sym}",
]


def all_codes(form):
    """Every code of a format."""
    return range(form.lo, form.hi + 1)


def tiny_operands(mac, length):
    """Operand lists of this length with every sequence of products."""
    pairs = {x * y: (x, y) for x, y in product(all_codes(mac.a), all_codes(mac.b))}
    for chosen in product(pairs.values(), repeat=length):
        yield [x for x, _ in chosen], [y for _, y in chosen]


@pytest.mark.parametrize("text", TINY)
def test_every_tiny_product_is_that_of_its_fractions(text):
    mac = MacSpec.parse(text)
    for x, y in product(all_codes(mac.a), all_codes(mac.b)):
        assert reference.dot([x], [y], mac) == oracle.dot([x], [y], mac), (x, y)


@pytest.mark.parametrize("text", TINY)
def test_every_tiny_dot_product_with_every_bias_is_that_of_its_fractions(text):
    mac = MacSpec.parse(text)
    for length, bias in product(range(3), all_codes(mac.result.format)):
        for a, b in tiny_operands(mac, length):
            assert reference.dot(a, b, mac, bias) == oracle.dot(a, b, mac, bias), (a, b, bias)


@pytest.mark.parametrize("text", TINY)
@pytest.mark.parametrize("length", [3, 4])
def test_every_tiny_dot_product_of_more_terms_is_that_of_its_fractions(text, length):
    mac = MacSpec.parse(text)
    for a, b in tiny_operands(mac, length):
        assert reference.dot(a, b, mac) == oracle.dot(a, b, mac), (a, b)


@st.composite
def dot_cases(draw, longest, **limits):
    """A MAC, its operands and a bias."""
    mac = draw(macs(**limits))
    length = draw(st.integers(0, longest))
    a, b = (draw(st.lists(codes(form), min_size=length, max_size=length))
            for form in (mac.a, mac.b))
    return a, b, mac, draw(codes(mac.result.format))


def prefixes(a, b, mac):
    """The operands of the first steps, at whose end the result register holds their sum."""
    for stop in [*range(mac.lanes, len(a), mac.lanes), len(a)]:
        whole = stop // mac.tile * mac.tile if mac.tile and stop < len(a) else stop
        yield a[:whole], b[:whole]


STEPPED = [
    "{a: s4, b: u3, acc: s7 sat}",
    "{a: s4, b: u3, acc: s7 sat_sym, lanes: 3}",
    "{a: s4, b: u3, product: s5f-1 ties_even sat, acc: s6f-1 wrap}",
    "{a: s4, b: u3, product: s4f-1 to_odd sat_zero, acc: s7f-1 sat_zero, lanes: 2}",
    "{a: s4, b: u3, acc: s7 sat, tile: 2, outer: s9 sat}",
    "{a: s4, b: u3, acc: s7 sat, lanes: 2, tile: 4, outer: s5f-2 ties_away sat_sym}",
    "{a: s4, b: u3, acc: s10, tile: 3, outer: s5f-2 ties_away sat}",
    "{a: s4, b: u3, acc: s9 sat, tile: 2, outer: s6f-2 ties_even sat, reload: true}",
    "{a: s4, b: u3, acc: s9 sat, lanes: 2, tile: 4, outer: s5f-3 to_odd wrap, reload: true}",
]


@pytest.mark.parametrize("length", [1, 2, 7, 8, 11])
@pytest.mark.parametrize("text", STEPPED)
def test_every_step_shows_the_result_register(text, length):
    mac = MacSpec.parse(text)
    for seed in range(10):
        a, b, bias = random_dot(seed, mac, length)
        want = [oracle.dot(*prefix, mac, bias) for prefix in prefixes(a, b, mac)]
        assert [code for code, _ in reference.dot_steps(a, b, mac, bias)] == want, seed


@pytest.mark.parametrize("length", [1, 2, 7, 8, 11])
@pytest.mark.parametrize("text", STEPPED)
def test_a_step_overflows_when_something_in_it_did_not_fit(text, length):
    mac = MacSpec.parse(text)
    for seed in range(10):
        a, b, bias = random_dot(seed, mac, length)
        steps = [overflowed for _, overflowed in reference.dot_steps(a, b, mac, bias)]
        ends = [i for i in range(len(steps)) if not mac.tile or (i + 1) * mac.lanes % mac.tile == 0]
        ends = sorted({*ends, len(steps) - 1})
        counts = [oracle.mac_run(*list(prefixes(a, b, mac))[i], mac, bias)[1] for i in ends]
        want = [after > before for before, after in zip([0, *counts], counts, strict=False)]
        got = [any(steps[first:last + 1]) for first, last in zip(
            [0, *(end + 1 for end in ends)], ends, strict=False)]
        assert got == want, seed


def random_dot(seed, mac, length):
    """Random operands and bias."""
    rng = np.random.default_rng(seed)
    a, b, bias = (rng.integers(form.lo, form.hi + 1, length).tolist()
                  for form in (mac.a, mac.b, mac.result.format))
    return a, b, bias[0]


def some_codes(rng, form, *shape):
    """Random codes of a format, never zero, so that every term has a weight in the order."""
    result = rng.integers(form.lo, form.hi + 1, shape)
    return np.where(result == 0, form.hi, result)


WIDE = MacSpec.parse("{a: s6, b: u5, acc: s40}")
NARROW = [MacSpec.parse(text) for text in (
    "{a: s4, b: u3, acc: s6 sat}",
    "{a: s4, b: u3, acc: s6 sat, block: 2}",
    "{a: s4, b: u3, acc: s6 sat, lanes: 2, block: 3}",
    "{a: s4, b: u3, product: s6f-1 ties_even sat, acc: s6f-1 sat_sym, lanes: 3, block: 4}",
    "{a: s4, b: u3, acc: s7 sat, lanes: 2, tile: 4, outer: s5f-2 ties_odd sat, block: 16}",
    "{a: s4, b: u3, acc: s6 sat, tile: 3, outer: s5f-1 to_odd sat, reload: true, block: 2}",
)]


def matrices(seed, mac, m=3, k=7, n=4):
    """Random operands and bias of a matrix product."""
    rng = np.random.default_rng(seed)
    return (some_codes(rng, mac.a, m, k), some_codes(rng, mac.b, k, n),
            some_codes(rng, mac.result.format, n))


def test_an_exact_matmul_is_that_of_integers():
    a, b, bias = matrices(0, MacSpec.parse("{a: s6, b: u5, acc: s20}"))
    got = reference.matmul(a.tolist(), b.tolist(), WIDE, bias.tolist())
    assert got == (a @ b + bias).tolist()


@pytest.mark.parametrize("mac", NARROW, ids=str)
def test_a_matmul_accumulates_each_output_along_k(mac):
    a, b, bias = matrices(1, mac)
    want = [[oracle.dot(row.tolist(), b[:, n].tolist(), mac, int(bias[n])) for n in range(4)]
            for row in a]
    assert reference.matmul(a.tolist(), b.tolist(), mac, bias.tolist()) == want


def test_a_matmul_without_bias_starts_at_zero():
    a, b, _ = matrices(2, WIDE)
    assert reference.matmul(a.tolist(), b.tolist(), WIDE) == (a @ b).tolist()


# (n, cin, cout, (h, w)), kernel, stride, padding, dilation, groups
GEOMETRIES = [
    ((1, 1, 1, (3, 3)), (1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((2, 3, 2, (4, 5)), (3, 2), (1, 1), (0, 0), (1, 1), 1),
    ((1, 2, 3, (4, 4)), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((1, 3, 2, (5, 6)), (3, 3), (2, 2), (1, 1), (1, 1), 1),
    ((2, 2, 2, (6, 5)), (2, 3), (3, 2), (0, 2), (1, 1), 1),
    ((1, 2, 2, (5, 6)), (2, 2), (1, 1), (1, 0), (2, 3), 1),
    ((1, 5, 2, (4, 4)), (2, 2), (2, 1), (1, 1), (2, 1), 1),
    ((2, 4, 6, (3, 3)), (2, 2), (1, 1), (0, 1), (1, 1), 2),
    ((1, 4, 4, (4, 3)), (3, 3), (2, 1), (2, 1), (1, 1), 4),
    ((1, 6, 3, (4, 4)), (3, 1), (1, 2), (1, 0), (1, 1), 3),
    ((2, 3, 3, (6, 6)), (2, 2), (4, 4), (0, 0), (1, 1), 1),
    ((1, 2, 4, (7, 6)), (3, 2), (2, 3), (2, 1), (2, 2), 2),
]
NAMES = ("stride", "padding", "dilation", "groups")


def convolution(seed, geometry, a, b):
    """Random x and error in format `a`, w in format `b`, and the geometry by name."""
    (n, cin, cout, size), kernel, *rest = geometry
    named = dict(zip(NAMES, rest, strict=True))
    out = [(s + 2 * p - d * (k - 1) - 1) // t + 1 for s, k, t, p, d in zip(
        size, kernel, named["stride"], named["padding"], named["dilation"], strict=True)]
    rng = np.random.default_rng(seed)
    x = some_codes(rng, a, n, cin, *size)
    w = some_codes(rng, b, cout, cin // named["groups"], *kernel)
    return x, w, some_codes(rng, a, n, cout, *out), named


@pytest.mark.parametrize("block", [1, 2, 16])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_an_exact_conv2d_is_that_of_torch(geometry, block):
    x, w, _, named = convolution(0, geometry, WIDE.a, WIDE.b)
    bias = list(range(-1, len(w) - 1))
    want = torch.conv2d(torch.tensor(x).double(), torch.tensor(w).double(),
                        torch.tensor(bias).double(), **named)
    mac = MacSpec.parse(f"{{a: s6, b: u5, acc: s40, block: {block}}}")
    got = reference.conv2d(x.tolist(), w.tolist(), mac, bias, **named)
    assert got == want.flatten().tolist()


def torch_gradients(x, w, error, named):
    """The gradients of a convolution in x and w, by autograd in float64."""
    x, w = (torch.tensor(t).double().requires_grad_() for t in (x, w))
    torch.conv2d(x, w, **named).backward(torch.tensor(error).double())
    return x.grad.flatten().tolist(), w.grad.flatten().tolist()


@pytest.mark.parametrize("block", [1, 2, 16])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_an_exact_input_gradient_is_that_of_torch(geometry, block):
    x, w, error, named = convolution(1, geometry, WIDE.a, WIDE.b)
    want, _ = torch_gradients(x, w, error, named)
    mac = MacSpec.parse(f"{{a: s6, b: u5, acc: s40, block: {block}}}")
    got = reference.conv2d_grad_input(error.tolist(), w.tolist(), mac, x.shape[2:], **named)
    assert got == want


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_an_exact_weight_gradient_is_that_of_torch(geometry):
    x, w, error, named = convolution(2, geometry, WIDE.a, WIDE.b)
    _, want = torch_gradients(x, w, error, named)
    mac = MacSpec.parse("{a: s6, b: s6, acc: s40}")
    got = reference.conv2d_grad_weight(x.tolist(), error.tolist(), mac, w.shape[2:], **named)
    assert got == want


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 2, 4)])
def test_an_exact_bias_gradient_is_the_sum_of_the_errors(shape):
    error = some_codes(np.random.default_rng(3), Format(6), *shape)
    mac = MacSpec.parse("{a: s6, b: u1, acc: s40}")
    want = error.sum(axis=(0, *range(2, len(shape)))).tolist()
    assert reference.bias_grad(error.tolist(), mac) == want


@pytest.mark.parametrize("mac", NARROW, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_conv2d_accumulates_block_by_block(geometry, mac):
    x, w, _, named = convolution(4, geometry, mac.a, mac.b)
    bias = some_codes(np.random.default_rng(5), mac.result.format, len(w)).tolist()
    operands = list(oracle.conv2d_operands(x, w, **named, block=mac.block))
    pixels = len(operands) // (len(x) * len(w))
    want = [oracle.dot(a, b, mac, bias[i // pixels % len(w)]) for i, (a, b) in enumerate(operands)]
    assert reference.conv2d(x.tolist(), w.tolist(), mac, bias, **named) == want


@pytest.mark.parametrize("mac", NARROW, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_an_input_gradient_accumulates_block_by_block_with_holes_in_place(geometry, mac):
    x, w, error, named = convolution(6, geometry, mac.a, mac.b)
    operands = oracle.conv2d_grad_input_operands(error, w, x.shape[2:], **named, block=mac.block)
    want = [oracle.dot(a, b, mac) for a, b in operands]
    got = reference.conv2d_grad_input(error.tolist(), w.tolist(), mac, x.shape[2:], **named)
    assert got == want


@pytest.mark.parametrize("mac", NARROW, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_weight_gradient_accumulates_over_batch_then_pixels(geometry, mac):
    _, _, error, named = convolution(7, geometry, mac.b, mac.a)
    x, w, _, _ = convolution(8, geometry, mac.a, mac.b)
    operands = oracle.conv2d_grad_weight_operands(x, error, w.shape[2:], **named)
    want = [oracle.dot(a, b, mac) for a, b in operands]
    got = reference.conv2d_grad_weight(x.tolist(), error.tolist(), mac, w.shape[2:], **named)
    assert got == want


@pytest.mark.parametrize("mac", ["{a: s4, b: u1, acc: s5 sat}",
                                 "{a: s4, b: u1, acc: s5 sat, lanes: 3}",
                                 "{a: s4, b: u1, acc: s5 sat, tile: 4, outer: s5f-1 to_odd sat}"])
@pytest.mark.parametrize("shape", [(7, 4), (2, 3, 2, 4)])
def test_a_bias_gradient_accumulates_over_batch_then_pixels(shape, mac):
    mac = MacSpec.parse(mac)
    error = some_codes(np.random.default_rng(9), mac.a, *shape)
    channels = [error[:, o].ravel().tolist() for o in range(shape[1])]
    want = [oracle.dot(channel, [1] * len(channel), mac) for channel in channels]
    assert reference.bias_grad(error.tolist(), mac) == want


def test_the_block_decides_which_channel_saturates_first():
    x, w = [[[[7, 7]], [[7, 7]]]], [[[[7, 7]], [[-7, -7]]]]
    got = [reference.conv2d(x, w, MacSpec.parse(f"{{a: s4, b: s4, acc: s7 sat, block: {block}}}"))
           for block in (1, 2, 4)]
    assert got == [[-35], [0], [0]]


def test_absent_channels_keep_their_lanes():
    x, w = [[[[7, 7]], [[7, 7]], [[7, 7]]]], [[[[7, -7]], [[7, -7]], [[7, 7]]]]
    text = "{{a: s4, b: s4, acc: s7 sat, lanes: 2, block: {}}}"
    got = [reference.conv2d(x, w, MacSpec.parse(text.format(block))) for block in (3, 4)]
    assert got == [[63], [14]]


POOLS = [  # kernel, stride, padding: disjoint, overlapping, gaps, padded
    ((2, 2), (2, 2), (0, 0)), ((3, 2), (1, 1), (0, 0)), ((1, 1), (2, 3), (0, 0)),
    ((3, 3), (2, 2), (1, 1)), ((2, 3), (1, 2), (1, 1)), ((3, 3), (1, 1), (1, 1)),
    ((5, 4), (3, 2), (2, 2)),
]


def plane_of(seed, lo, hi, size=(6, 7)):
    """A plane of random codes; few different ones, so that windows have equal maxima."""
    return np.random.default_rng(seed).integers(lo, hi + 1, size)


def doubles(plane):
    """A plane as a (1, 1, H, W) float64 tensor."""
    return torch.tensor(plane).double()[None, None]


@pytest.mark.parametrize(("lo", "hi"), [(-3, 3), (-5, -1), (0, 1)])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_a_max_pool_finds_the_pixel_that_torch_finds(pool, lo, hi):
    plane = plane_of(0, lo, hi)
    values, indices = torch.nn.functional.max_pool2d(doubles(plane), *pool,
                                                     return_indices=True)
    want = list(zip(values.flatten().tolist(), indices.flatten().tolist(), strict=True))
    found = reference.max_pool2d(plane.tolist(), *pool)
    assert [(code, y * plane.shape[1] + x) for code, (y, x) in found] == want


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_a_max_pool_sends_back_what_torch_sends_back(pool):
    plane = plane_of(1, -3, 3)
    tensor = doubles(plane).requires_grad_()
    pooled = torch.nn.functional.max_pool2d(tensor, *pool)
    error = plane_of(2, -9, 9, pooled.shape[2:])
    pooled.backward(doubles(error))
    pixels = [pixel for _, pixel in reference.max_pool2d(plane.tolist(), *pool)]
    got = reference.max_pool2d_grad(error.ravel().tolist(), pixels, plane.shape)
    assert got == tensor.grad[0, 0].tolist()


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_an_exact_avg_pool_is_that_of_torch(pool, include):
    plane = 2520 * plane_of(3, -20, 20)
    want = torch.nn.functional.avg_pool2d(doubles(plane), *pool, count_include_pad=include)
    got = reference.avg_pool2d(plane.tolist(), 0, Cast.parse("s32"), *pool,
                               count_include_pad=include)
    assert got == want.flatten().tolist()


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_an_exact_avg_pool_gradient_is_that_of_torch(pool, include):
    tensor = torch.zeros(1, 1, 6, 7).double().requires_grad_()
    pooled = torch.nn.functional.avg_pool2d(tensor, *pool, count_include_pad=include)
    error = 2520 * plane_of(4, -20, 20, pooled.shape[2:])
    pooled.backward(doubles(error))
    got = reference.avg_pool2d_grad(error.ravel().tolist(), 0, Cast.parse("s32"), (6, 7), *pool,
                                    count_include_pad=include)
    assert got == tensor.grad[0, 0].tolist()


def sums_and_counts(plane, pool, include):
    """What an average divides, exactly: the sum under each window and its number of pixels."""
    pooled = [torch.nn.functional.avg_pool2d(doubles(p), *pool, divisor_override=1)
              for p in (plane, np.ones_like(plane))]
    sums, counts = (p.flatten().int().tolist() for p in pooled)
    return sums, [pool[0][0] * pool[0][1]] * len(counts) if include else counts


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("rounding", DETERMINISTIC, ids=lambda r: r.name)
def test_an_avg_pool_rounds_its_fraction_once(rounding, pool, include):
    plane = plane_of(5, -20, 20)
    sums, counts = sums_and_counts(plane, pool, include)
    cast = Cast(Format(5, 1), rounding, Overflow.SAT)
    want = [oracle.cast(Fraction(x, 4 * n), cast) for x, n in zip(sums, counts, strict=True)]
    got = reference.avg_pool2d(plane.tolist(), 2, cast, *pool, count_include_pad=include)
    assert got == want


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_an_avg_pool_gradient_rounds_each_share_once_and_adds_exactly(pool, include):
    tensor = torch.zeros(1, 1, 6, 7).double().requires_grad_()
    pooled = torch.nn.functional.avg_pool2d(tensor, *pool, divisor_override=1)
    _, counts = sums_and_counts(np.zeros((6, 7)), pool, include)
    error = plane_of(6, -60, 60, pooled.shape[2:])
    cast = Cast.parse("s5f1 ties_even sat")
    shares = [oracle.cast(Fraction(int(e), 4 * n), cast)
              for e, n in zip(error.ravel(), counts, strict=True)]
    pooled.backward(doubles(np.reshape(shares, error.shape)))
    got = reference.avg_pool2d_grad(error.ravel().tolist(), 2, cast, (6, 7), *pool,
                                    count_include_pad=include)
    assert got == tensor.grad[0, 0].tolist()


@pytest.mark.parametrize("rounding", DETERMINISTIC, ids=lambda r: r.name)
def test_every_small_division_rounds_its_fraction_once(rounding):
    cast = Cast(Format(4, 1), rounding, Overflow.SAT_ZERO)
    for divisor, frac, x in product((1, 2, 3, 4, 5, 6, 9), (-1, 0, 1, 3), range(-40, 41)):
        want = oracle.cast(Fraction(x, divisor) / Fraction(2) ** frac, cast)
        assert reference.divide(x, divisor, frac, cast) == want, (x, divisor, frac)


@pytest.mark.parametrize("rounding", DETERMINISTIC, ids=lambda r: r.name)
def test_every_small_quotient_rounds_as_its_fraction(rounding):
    for divisor, x in product(range(1, 13), range(-40, 41)):
        want = oracle.rounded(Fraction(x, divisor), rounding.name)
        assert reference.round_divide(x, divisor, rounding) == want, (x, divisor)


def test_relu_keeps_what_is_positive():
    assert [reference.relu(x) for x in (-128, -1, 0, 1, 127)] == [0, 0, 0, 1, 127]


def test_the_gradient_of_relu_is_zero_at_zero():
    assert [reference.relu_grad(-7, x) for x in (-128, -1, 0, 1, 127)] == [0, 0, 0, -7, -7]


def test_x_is_a_generator_of_the_lfsrs_field():
    order, primes = 2**32 - 1, (3, 5, 17, 257, 65537)
    assert math.prod(primes) == order
    powers = [oracle.power(2, order), *(oracle.power(2, order // prime) for prime in primes)]
    assert [p == 1 for p in powers] == [True, False, False, False, False, False]


@pytest.mark.parametrize("bit", range(32))
def test_a_step_of_the_lfsr_multiplies_by_x(bit):
    want = oracle.mirrored(oracle.times(oracle.mirrored(1 << bit), 2))
    assert reference.lfsr_draw(1 << bit, 1)[0] == want


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
@examples(200)
def test_a_step_of_the_lfsr_is_linear(one, other):
    step = lambda state: reference.lfsr_draw(state, 1)[0]  # noqa: E731
    assert step(one ^ other) == step(one) ^ step(other)


@pytest.mark.parametrize(("state", "rand_bits", "want"), [
    (1, 1, (0x80200003, 1)), (2, 1, (1, 0)), (0b1011, 1, (0x80200003 ^ 0b101, 1)),
    (6, 2, (0x80200002, 2)), (8, 4, (0x80200003, 8)), (4, 2, (1, 0)), (0, 32, (0, 0)),
])
def test_a_draw_is_the_bits_shifted_out_the_first_one_lowest(state, rand_bits, want):
    assert reference.lfsr_draw(state, rand_bits) == want


@given(st.integers(1, 2**32 - 1), st.integers(1, 32), st.integers(1, 6))
@examples(200)
def test_draws_follow_one_another_in_the_stream(load, rand_bits, count):
    state, got = load, []
    for _ in range(count):
        state, rand = reference.lfsr_draw(state, rand_bits)
        got.append(rand)
    assert got == oracle.operands(load, count, rand_bits)


@pytest.mark.parametrize("rand_bits", [1, 5, 32])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 50])
def test_an_element_draws_from_its_stream_in_turn(count, rand_bits):
    loads = [oracle.fmix32(stream + 1) for stream in range(16)]
    streams = [oracle.operands(load, 4, rand_bits) for load in loads]
    want = [streams[i % 16][i // 16] for i in range(count)]
    assert reference.random_operands(count, rand_bits, loads) == want


def test_drawing_leaves_the_load_words_alone():
    loads = list(range(1, 17))
    reference.random_operands(40, 7, loads)
    assert loads == list(range(1, 17))


@pytest.mark.parametrize(("data", "want"), [
    (b"", 0x811C9DC5), (b"a", 0xE40C292C), (b"foobar", 0xBF9CF968),
])
def test_the_oracles_fnv1a_has_the_published_values(data, want):
    assert oracle.fnv1a(data) == want


@pytest.mark.parametrize(("h", "want"), [(0, 0), (1, 0x514E28B7)])
def test_the_oracles_fmix32_has_the_published_values(h, want):
    assert oracle.fmix32(h) == want


LOADS = [(0, 0, "", "", 0), (1, 2, "net.conv1", "forward", 3), (7, 10**9, "größe", "error", 0),
         (2**63, 5, "a:b", "grad_weight", 12)]


@pytest.mark.parametrize("site", LOADS, ids=str)
def test_load_words_are_the_finalised_hash_of_their_text(site):
    text = ":".join(str(part) for part in site)
    want = [oracle.fmix32(oracle.fnv1a(f"{text}:{stream}".encode())) for stream in range(16)]
    assert reference.load_words(*site) == want


def test_no_stream_is_loaded_with_zero():
    assert oracle.fnv1a(b"0:0:ridipwc:forward:0:0") == 0
    assert reference.load_words(0, 0, "ridipwc", "forward", 0)[0] == 1


def test_load_words_differ_from_stream_to_stream_and_place_to_place():
    words = [word for seed, step, site, pass_, call in product(range(2), range(3), ("a", "b"),
                                                              ("x", "y"), range(2))
             for word in reference.load_words(seed, step, site, pass_, call)]
    assert len(set(words)) == 48 * 16


@st.composite
def sgd_cases(draw, bits):
    """(weight, momentum, grad, lr, mu, spec, rand_momentum, rand_weight) of one update."""
    spec = draw(updates(bits))
    operands = [draw(codes(getattr(spec, name).format))
                for name in ("weight", "momentum", "grad", "lr", "mu")]
    rands = [draw(st.integers(0, 2**cast.rand_bits - 1)) if cast.rand_bits else None
             for cast in (spec.momentum, spec.weight)]
    return *operands, spec, *rands


@pytest.mark.parametrize("bits", [12, 30, 62])
def test_any_update_is_that_of_its_fractions(bits):
    @given(sgd_cases(bits))
    @examples(80)
    def check(case):
        assert reference.sgd(*case) == oracle.sgd(*case)

    check()


@pytest.mark.parametrize(("weight", "momentum", "grad", "want"), [
    (10, 4, 2, (9, 4)), (10, 0, 0, (10, 0)), (7, 7, 7, (5, 7)), (-8, 7, 7, (-10, 7)),
    (-16, 7, 7, (-16, 7)),
])
def test_an_update_gives_what_one_finds_by_hand(weight, momentum, grad, want):
    spec = UpdateSpec.parse("{weight: s5f1 ties_even sat, momentum: s4 ties_even sat, grad: s4, "
                            "lr: u3f3, mu: u2f1}")
    assert reference.sgd(weight, momentum, grad, lr=1, mu=1, spec=spec) == want


@pytest.mark.parametrize(("spec", "a", "bias", "want"), [
    # aligning the reloaded register belongs to the step that uses it: the first one here
    ("{a: s4, b: s4, acc: s4 sat, tile: 2, outer: s8, reload: true}", [0], 100, [(7, True)]),
    # and what nobody continues from is not aligned: outer 4 stands for 8, beyond acc
    ("{a: s4, b: s4, acc: s4 sat, tile: 1, outer: s8f-1 to_pos, reload: true}", [7], 0,
     [(4, False)]),
    ("{a: s4, b: s4, acc: s4 sat, tile: 1, outer: s8f-1 to_pos, reload: true}", [7, 0], 0,
     [(4, False), (4, True)]),
])
def test_the_overflow_of_a_reload_belongs_to_the_step_that_continues(spec, a, bias, want):
    got = list(reference.dot_steps(a, [1] * len(a), MacSpec.parse(spec), bias))
    assert got == want
