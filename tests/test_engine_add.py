"""The residual adder, against the definition and fractions."""

from fractions import Fraction
from itertools import product

import numpy as np
import oracle
import pytest
from engine_cases import filled, operands
from hypothesis import given
from hypothesis import strategies as st
from strategies import casts, codes, examples

from emu import Cast, Format, Overflow, engine, reference

INT64 = np.iinfo(np.int64)
fracs = st.integers(-30, 30)


def values(a, a_frac, b, b_frac):
    """The exact sums of two lists of codes."""
    return [Fraction(x) / Fraction(2) ** a_frac + Fraction(y) / Fraction(2) ** b_frac
            for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize(("a", "b", "text", "want"), [  # a in quarters, b in halves
    (3, 1, "s8f2", 5), (3, 1, "s8f3", 10), (3, 1, "s8 to_pos", 2), (3, 1, "s2f2 sat", 1),
    (1, -1, "s8f1 to_zero", 0), (1, -1, "s8f1", -1), (-2, 1, "u4", 0), (-3, 1, "u4f2 sat", 0),
])
def test_a_sum_is_what_one_finds_by_hand(a, b, text, want):
    assert reference.add(a, 2, b, 1, Cast.parse(text)) == want
    assert engine.add([a], 2, [b], 1, Cast.parse(text)).codes.tolist() == [want]


@pytest.mark.parametrize("text", ["s4f1 ties_even sat", "s4f1 to_neg", "u3f0 ties_away sat_zero",
                                  "s3f-1 to_odd sat_sym", "s6f4 ties_pos sat"])
def test_every_small_sum_is_that_of_its_fractions(text):
    to = Cast.parse(text)
    a, b = map(list, zip(*product(range(-8, 8), repeat=2), strict=True))
    for a_frac, b_frac in product(range(-2, 4), repeat=2):
        sums = values(a, a_frac, b, b_frac)
        want = [oracle.cast(value, to) for value in sums]
        passing = [oracle.passes(value, to) for value in sums]
        got = engine.add(a, a_frac, b, b_frac, to)
        assert [reference.add(x, a_frac, y, b_frac, to)
                for x, y in zip(a, b, strict=True)] == want, (a_frac, b_frac)
        assert got.codes.tolist() == want, (a_frac, b_frac)
        if to.overflow != Overflow.WRAP:
            assert got.inside.tolist() == passing, (a_frac, b_frac)
            assert got.outside == passing.count(False), (a_frac, b_frac)


@given(st.data(), casts((1, 40), (-30, 30)), fracs, fracs)
@examples(200)
def test_any_sum_agrees_with_the_definition(data, to, a_frac, b_frac):
    a, b = (data.draw(st.lists(codes(Format(bits)), min_size=4, max_size=4))
            for bits in (min(40, 62 - max(frac, 0)) for frac in (b_frac - a_frac, a_frac - b_frac)))
    rand = data.draw(operands(to, 4))
    pairs = list(zip(a, b, rand, strict=True))
    got = engine.add(a, a_frac, b, b_frac, to, rand)
    assert got.codes.tolist() == [reference.add(x, a_frac, y, b_frac, to, r) for x, y, r in pairs]
    exact = [reference.aligned_sum(x, a_frac, y, b_frac) for x, y, _ in pairs]
    rounded = [reference.round_shift(code, frac - to.format.frac, to, r)
               for (code, frac), r in zip(exact, rand, strict=True)]
    assert got.inside.tolist() == [not reference.overflows(code, to) for code in rounded]
    assert exact == [(value * Fraction(2) ** frac, frac) for value, (_, frac) in
                     zip(values(a, a_frac, b, b_frac), exact, strict=True)]


@pytest.mark.parametrize(("shapes", "shape"), [
    (((2, 3, 4), (2, 3, 4)), (2, 3, 4)), (((2, 3, 4), (3, 1)), (2, 3, 4)), (((4,), (2, 1)), (2, 4)),
    (((), (5,)), (5,)), (((), ()), ()), (((0, 3), (3,)), (0, 3)),
])
def test_shapes_broadcast_as_in_numpy(shapes, shape):
    to = Cast.parse("s8f2 ties_even sat")
    a, b = (filled(s, Format(8), i) for i, s in enumerate(shapes))
    got = engine.add(a, 3, b, 1, to)
    wide = [np.broadcast_to(x, shape).ravel().tolist() for x in (a, b)]
    want = [reference.add(x, 3, y, 1, to) for x, y in zip(*wide, strict=True)]
    assert got.codes.shape == got.inside.shape == shape
    assert (got.codes.ravel().tolist(), got.codes.dtype) == (want, np.int8)


def test_stochastic_operands_have_the_shape_of_the_sum():
    to = Cast.parse("s8 stochastic2 sat")
    got = engine.add([[1], [2]], 2, [0, 1], 2, to, [[3, 2], [1, 0]])
    assert got.codes.tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize(("a", "a_frac", "b", "b_frac"), [
    (2**62, 0, 2**62 - 1, 0), (-(2**62), 0, -(2**62) + 1, 0), (1, 0, 2**62 - 1, 62),
    (2**31 - 1, 0, 2**32 - 1, 32), (0, 0, 5, 500), (0, -512, 2**62, 512),
])
def test_a_sum_just_inside_int64_is_exact(a, a_frac, b, b_frac):
    to = Cast(Format(64, max(a_frac, b_frac)))
    want = reference.add(a, a_frac, b, b_frac, to)
    assert engine.add([a], a_frac, [b], b_frac, to).codes.tolist() == [want]


@pytest.mark.parametrize(("a", "a_frac", "b", "b_frac", "message"), [
    ([2**62], 0, [2**62], 0, "a up to 4611686018427387904 .* reach 9223372036854775808 and leaves"),
    ([INT64.min], 0, [0], 0, "reach 9223372036854775808 and leaves int64"),
    ([1], 0, [0, 1], 63, "frac 0 .* frac 63: aligned, .* cast one of them to a frac nearer"),
    ([0], 400, [1], 0, "b up to 1 with frac 0"),
    ([0.5], 0, [0], 0, "a: dtype float64 holds no codes"),
    ([1, 2], 0, [1, 2, 3], 0, r"shape"),
])
def test_what_cannot_be_added_is_refused(a, a_frac, b, b_frac, message):
    with pytest.raises(ValueError, match=message):
        engine.add(a, a_frac, b, b_frac, Cast.parse("s8"))
