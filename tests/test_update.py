"""The gradient accumulation buffer: its text, what it refuses, its definition, and conservation."""

from fractions import Fraction
from itertools import product

import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import buffers, codes, examples

from emu import BufferSpec, Cast, Format, Overflow, Rounding, reference
from emu.update import buffer_exponents, derived_buffer

TEXTS = {"weight": "s8f7 ties_even sat", "buffer": "s16f12 sat", "grad": "s8f12"}


def spec_of(**texts) -> BufferSpec:
    """A spec of 8-bit weights, but for the given casts."""
    return BufferSpec.parse(TEXTS | texts)


@given(buffers())
@examples(100)
def test_a_buffer_survives_its_text(case):
    assert BufferSpec.parse(str(case[0])) == case[0]


def test_a_rounding_that_no_buffer_does_makes_no_difference():
    assert spec_of(buffer="s16f12 ties_even sat") == spec_of()


@pytest.mark.parametrize(("texts", "message"), [
    ({"buffer": "u16f12"}, "buffer u16f12 to_neg wrap: a buffer .* is signed"),
    ({"buffer": "s62f12"}, "of 2 to 61 bits"),
    ({"buffer": "s1f12"}, "of 2 to 61 bits"),
    ({"buffer": "s16f12 stochastic4"}, "adds and rounds nothing"),
    ({"grad": "s8f13"}, "grad s8f13 is finer than the buffer s16f12.* a frac of 12 at most"),
    ({"grad": "s50f0"}, "grad s50f0: beside the buffer s16f12 it takes 62 bits, the limit is 61"),
    ({"weight": "s62"}, "weight s62f0: .* takes 62 bits"),
    ({"momentum": "s8"}, "unknown update key 'momentum'"),
])
def test_what_is_no_buffer_is_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        spec_of(**texts)


@pytest.mark.parametrize(("shift", "dropped"), [(-4, 1), (3, 8), (10, 15)])
def test_a_shift_decides_how_many_bits_stay_in_the_buffer(shift, dropped):
    assert spec_of().dropped(shift) == dropped


@pytest.mark.parametrize("shift", [-5, 11])
def test_a_shift_that_leaves_no_remainder_or_none_that_fits_is_refused(shift):
    with pytest.raises(ValueError, match=f"shift {shift}: .* at shifts from -4 to 10"):
        spec_of().dropped(shift)


@pytest.mark.parametrize(("weight", "buffer", "grad", "want"), [
    (10, 0, 100, (10, 100)), (10, 100, 100, (9, -56)), (10, -200, -100, (11, -44)),
    (10, 0, 128, (10, 128)), (10, 300, 84, (8, -128)), (127, -32768, 0, (127, 0))])
def test_an_update_gives_what_one_finds_by_hand(weight, buffer, grad, want):
    assert reference.buffered_sgd(weight, buffer, grad, 3, spec_of(grad="s9f12")) == want


@st.composite
def cases(draw, bits):
    """The arguments of one update."""
    spec, shift = draw(buffers(bits))
    state = [draw(codes(getattr(spec, name).format)) for name in ("weight", "buffer", "grad")]
    bits = spec.weight.rand_bits
    return *state, shift, spec, draw(st.integers(0, 2**bits - 1)) if bits else None


@pytest.mark.parametrize("bits", [6, 20, 61])
def test_any_update_is_that_of_its_fractions(bits):
    @given(cases(bits))
    @examples(100)
    def check(case):
        assert reference.buffered_sgd(*case) == oracle.buffered_sgd(*case)

    check()


@given(cases(61))
@examples(300)
def test_the_remainder_fits_the_buffer_and_every_value_int64(case):
    weight, buffer, grad, shift, spec, _ = case
    rest = reference.buffered_sgd(*case)[1]
    low, high = spec.buffer.range
    assert low <= rest <= high or abs(rest) < 1 << spec.dropped(shift)
    assert spec.buffer.format.lo <= rest <= spec.buffer.format.hi
    total = buffer + (grad << spec.buffer.format.frac - spec.grad.format.frac)
    step = reference.round_shift(reference.fit(total, spec.buffer), spec.dropped(shift),
                                 spec.weight, case[-1])
    for value in (total, step << spec.dropped(shift), weight - step):
        assert -(2**61) <= value < 2**61


@pytest.mark.parametrize("rounding", Rounding, ids=lambda r: r.name)
def test_every_small_update_loses_nothing_but_by_overflow(rounding):
    bits = 2 if rounding == Rounding.STOCHASTIC else 0
    for overflow, width, dropped in product(Overflow, (2, 3, 5), (1, 2, 4)):
        if dropped >= width:
            continue
        spec = BufferSpec(Cast(Format(4), rounding, overflow, bits),
                          Cast(Format(width, dropped), overflow=overflow), Cast(Format(3, dropped)))
        for weight, rand in product(range(-8, 8), range(1 << bits)):
            for buffer, grad in product(range(spec.buffer.format.lo, spec.buffer.format.hi + 1),
                                        range(-4, 4)):
                after = reference.buffered_sgd(weight, buffer, grad, 0, spec, rand)
                held = reference.fit(buffer + grad, spec.buffer)
                step = reference.round_shift(held, dropped, spec.weight, rand)
                lost = (held - buffer - grad,  # in the buffer, and in the weight
                        reference.fit(weight - step, spec.weight) - (weight - step))
                assert (after[0] << dropped) - after[1] == (
                    (weight << dropped) - buffer - grad - lost[0] + (lost[1] << dropped))
                assert spec.buffer.format.lo <= after[1] <= spec.buffer.format.hi
                assert lost[0] == 0 or reference.overflows(buffer + grad, spec.buffer)
                assert lost[1] == 0 or reference.overflows(weight - step, spec.weight)


@given(st.lists(st.integers(-128, 127), max_size=60), st.integers(0, 6),
       st.sampled_from([r for r in Rounding if r != Rounding.STOCHASTIC]))
@examples(60)
def test_many_gradients_move_the_weight_by_their_exact_sum(gradients, shift, rounding):
    spec = BufferSpec.parse({"weight": f"s20f7 {rounding.name.lower()} sat",
                             "buffer": "s16f12 sat", "grad": "s8f12"})
    weight, buffer = 50, 0
    for grad in gradients:
        weight, buffer = reference.buffered_sgd(weight, buffer, grad, shift, spec)
    assert (weight - 50 << spec.dropped(shift)) - buffer == -sum(gradients)
    assert abs(buffer) < 1 << spec.dropped(shift)


def of_range(width: int, exponent: int) -> Format:
    """The signed format of the range 2^exponent."""
    return Format(width, width - 1 - exponent)


@pytest.mark.parametrize("rate", [-9, -5, 0])
@pytest.mark.parametrize("seen", [(-7, -3), (-12, -12), (0, 4), (-20, 2)])
@pytest.mark.parametrize(("weight", "grad_width", "width"), [("s8f7", 8, 24), ("s4f1", 6, 12)])
def test_buffers_are_derived_by_what_they_must_hold(seen, weight, grad_width, width, rate):
    weight = Format.parse(weight)
    for from_min in (True, False):
        found = buffer_exponents(seen, weight, grad_width, width, rate, from_min)
        assert found.grad == seen[not from_min]
        grad = of_range(grad_width, found.grad)
        reach = Fraction(2) ** found.buffer * Fraction(2) ** rate
        last_bit = 1 / Fraction(2) ** weight.frac
        assert reach >= last_bit  # a full buffer moves the weight
        own = {True: of_range(width, found.buffer).frac <= grad.frac,
               False: found.buffer >= found.grad}[from_min]
        assert own
        # and one exponent less would break one of both
        less = found.buffer - 1
        assert reach / 2 < last_bit or (
            of_range(width, less).frac > grad.frac if from_min else less < found.grad)


def test_a_derived_buffer_loses_nothing_of_the_least_gradients():
    weight, grad = (Cast.parse(text) for text in ("s8f7 ties_even sat", "s8f0 ties_even sat"))
    spec = derived_buffer((-7, -3), weight, grad, 24, -5)
    assert str(spec) == ("{weight: s8f7 ties_even sat, buffer: s24f14 to_neg sat, "
                         "grad: s8f14 ties_even sat}")
    spec = derived_buffer((-7, -3), weight, grad, 24, -5, from_min=False)
    assert (str(spec.buffer.format), str(spec.grad.format)) == ("s24f25", "s8f10")
    with pytest.raises(ValueError, match="shift 5: the buffer s10f-1 feeds"):
        derived_buffer((0, 10), weight, grad, 10, -5, from_min=False)
    # a narrow buffer whose range must reach the weight: gradients enter on its grid
    spec = derived_buffer((-20, -20), weight, grad, 10, -5)
    assert (str(spec.buffer.format), str(spec.grad.format)) == ("s10f11", "s8f11")
