"""SGD with momentum on codes, against the definition."""

import numpy as np
import pytest
from engine_cases import filled, operands
from hypothesis import given
from hypothesis import strategies as st
from strategies import codes, updates

from emu import UpdateSpec, engine, reference

SPEC = UpdateSpec.parse({"weight": "s12f8 ties_even sat", "momentum": "s10f6 to_neg sat",
                         "grad": "s9f7", "lr": "u6f10", "mu": "u4f4"})
DITHERED = UpdateSpec.parse({"weight": "s12f8 stochastic8 sat", "momentum": "s10f6 stochastic4",
                             "grad": "s9f7", "lr": "u6f10", "mu": "u4f4"})


def state_of(spec, count, seed):
    """(weight, momentum, grad) codes of a spec's formats."""
    return tuple(filled((count,), getattr(spec, name).format, seed + i)
                 for i, name in enumerate(("weight", "momentum", "grad")))


def check(spec, state, lr, mu, rand_momentum, rand_weight):
    """Codes of weight and momentum."""
    rands = zip(rand_momentum, rand_weight, strict=True)
    want = [reference.sgd(*codes, lr, mu, spec, *rand) for codes, rand in
            zip(zip(*(x.tolist() for x in state), strict=True), rands, strict=True)]
    got = engine.sgd(*state, lr, mu, spec, rand_momentum, rand_weight)
    assert list(zip(got.weight.tolist(), got.momentum.tolist(), strict=True)) == want


@given(st.data(), updates() | updates(24), st.integers(0, 99))
def test_every_update_agrees(data, spec, seed):
    lr, mu = (data.draw(codes(cast.format)) for cast in (spec.lr, spec.mu))
    rands = [data.draw(operands(cast, 5)) for cast in (spec.momentum, spec.weight)]
    check(spec, state_of(spec, 5, seed), lr, mu, *rands)


@pytest.mark.parametrize("grad", ["s9f-3", "s9f10", "s9f16"])
@pytest.mark.parametrize("weight", ["s12f8", "s12f16", "s12f20"])
def test_addends_are_aligned_from_both_sides(weight, grad):
    spec = UpdateSpec.parse({"weight": f"{weight} ties_even sat", "momentum": "s10f6 ties_odd",
                             "grad": grad, "lr": "u6f10", "mu": "u4f4"})
    check(spec, state_of(spec, 40, 0), 37, 14, [0] * 40, [0] * 40)


@pytest.mark.parametrize("rand_bits", [1, 8, 32])
def test_every_weight_draws_its_own_operands(rand_bits):
    spec = UpdateSpec.parse({"weight": f"s12f8 stochastic{rand_bits} sat", "grad": "s9f7",
                             "momentum": f"s10f6 stochastic{rand_bits} sat_zero",
                             "lr": "u6f10", "mu": "u4f4"})
    rands = [reference.random_operands(50, rand_bits, list(range(start, start + 16)))
             for start in (1, 100)]
    check(spec, state_of(spec, 50, 0), 63, 15, *rands)


def test_overflows_of_weight_and_momentum_are_counted_apart():
    spec = UpdateSpec.parse({"weight": "s4 to_neg sat", "momentum": "s4 to_neg sat",
                             "grad": "s4", "lr": "s4", "mu": "u2"})
    # Momentum 7 + 7 = 14, -8 - 8 = -16 and 3 + 4 = 7; weight 7 + 7 = 14, 0 - 8 and 0 + 7.
    got = engine.sgd([7, 0, 0], [7, -8, 3], [7, -8, 4], -1, 1, spec)
    assert (got.outside_momentum, got.outside_weight) == (2, 1)


def test_the_shape_is_kept():
    state = [x.reshape(2, 3) for x in state_of(SPEC, 6, 0)]
    got = engine.sgd(*state, 1, 1, SPEC)
    assert got.weight.shape == got.momentum.shape == (2, 3)


def test_the_arguments_are_left_as_they_were():
    state = state_of(SPEC, 20, 0)
    want = [x.tolist() for x in state]
    engine.sgd(*state, 37, 14, SPEC)
    assert [x.tolist() for x in state] == want


ONE = np.array([1])


@pytest.mark.parametrize(("state", "rates", "spec", "message"), [
    ((ONE * 2048, ONE, ONE), (1, 1), SPEC, "weight: code 2048 is outside s12f8"),
    ((ONE, ONE * -513, ONE), (1, 1), SPEC, "momentum: code -513 is outside s10f6"),
    ((ONE, ONE, ONE * 256), (1, 1), SPEC, "grad: code 256 is outside s9f7"),
    ((ONE, ONE, ONE), (64, 1), SPEC, "lr: code 64 is outside u6f10"),
    ((ONE, ONE, ONE), (1, -1), SPEC, "mu: code -1 is outside u4f4"),
    ((ONE, ONE, ONE), (0.5, 1), SPEC, "lr: dtype float64 holds no codes"),
    ((ONE, ONE, ONE * 0.5), (1, 1), SPEC, "grad: dtype float64 holds no codes"),
    ((ONE, ONE, np.ones(2, int)), (1, 1), SPEC, r"weight \(1,\), .* grad \(2,\): shapes differ"),
    ((ONE, ONE, ONE), (1, 1), DITHERED, "needs a random operand of 4 bits"),
])
def test_what_an_update_cannot_take_is_refused(state, rates, spec, message):
    with pytest.raises(ValueError, match=message):
        engine.sgd(*state, *rates, spec)
