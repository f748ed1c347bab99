"""SGD with momentum, and through a gradient buffer, against the definition."""

from itertools import product

import numpy as np
import pytest
from engine_cases import filled, operands
from hypothesis import given
from hypothesis import strategies as st
from strategies import buffers, codes, updates

from emu import BufferSpec, UpdateSpec, engine, reference

SPEC = UpdateSpec.parse({"weight": "s12f8 ties_even sat", "momentum": "s10f6 to_neg sat",
                         "grad": "s9f7", "lr": "u6f10", "mu": "u4f4"})
DITHERED = UpdateSpec.parse({"weight": "s12f8 stochastic8 sat", "momentum": "s10f6 stochastic4",
                             "grad": "s9f7", "lr": "u6f10", "mu": "u4f4"})


ONE = np.array([1])


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


# State in int64 is updated in int64 lanes, state in int32 in the narrowest lanes that do.
@given(st.data(), updates() | updates(24) | updates(31), st.integers(0, 99))
def test_every_update_agrees(data, spec, seed):
    lr, mu = (data.draw(codes(cast.format)) for cast in (spec.lr, spec.mu))
    rands = [data.draw(operands(cast, 5)) for cast in (spec.momentum, spec.weight)]
    state = state_of(spec, 5, seed)
    check(spec, state, lr, mu, *rands)
    if all(engine.arrays.dtype_of(getattr(spec, name).format).itemsize < 8
           for name in ("weight", "momentum", "grad")):
        check(spec, [x.astype(np.int32) for x in state], lr, mu, *rands)


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


@pytest.mark.parametrize("dtypes", [(np.int32, np.int32), (np.int64, np.int64),
                                    (np.uint8, np.int8)])
def test_weight_and_momentum_keep_a_dtype_that_holds_them(dtypes):
    spec = UpdateSpec.parse({"weight": "s20f8 ties_even sat", "momentum": "s20f6 to_neg sat",
                             "grad": "s20f7", "lr": "u6f10", "mu": "u4f4"})
    state = [x.astype(dtype) for x, dtype in zip([ONE * 100, ONE * 90, ONE], (*dtypes, np.int32),
                                                 strict=True)]
    got = engine.sgd(*state, 37, 14, spec)
    want = reference.sgd(100, 90, 1, 37, 14, spec)
    assert (got.weight.tolist(), got.momentum.tolist()) == ([want[0]], [want[1]])
    narrow = {np.uint8: np.int32, np.int8: np.int32}
    assert [x.dtype for x in got[:2]] == [np.dtype(narrow.get(d, d)) for d in dtypes]


# In int32 lanes, in int64 lanes, and where 64 bits are dropped, which no lane does.
@pytest.mark.parametrize(("grad", "mu", "dtype"), [("s9f7", "u4f4", np.int32), ("s24f14", "u8f8",
                         np.int64), ("s24f64", "u8f64", np.int32)])
@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 9000])
def test_an_update_of_any_size_agrees(size, grad, mu, dtype):
    spec = UpdateSpec.parse({"weight": "s12f8 to_odd sat", "momentum": "s10f6 ties_even sat",
                             "grad": grad, "lr": "u6f10", "mu": mu})
    state = [x.astype(dtype) for x in state_of(spec, size, 0)]
    check(spec, state, 37, 14, [0] * size, [0] * size)


@pytest.mark.parametrize(("weight", "grad"), [("s32", "s16"), ("s16", "s32"), ("s31", "s31")])
def test_sums_beyond_32_bits_saturate_and_do_not_wrap(weight, grad):
    spec = UpdateSpec.parse({"weight": f"{weight} sat", "momentum": "s16 sat", "grad": grad,
                             "lr": "s16", "mu": "s16"})
    ends = [(form.lo, form.hi) for form in (spec.weight.format, spec.momentum.format,
                                            spec.grad.format)]
    state = [np.array(codes, np.int32) for codes in zip(*product(*ends), strict=True)]
    for factor in (spec.lr.format.lo, spec.lr.format.hi):
        check(spec, state, factor, factor, [0] * 8, [0] * 8)


@given(st.data(), updates(16) | updates(24) | updates(31))
def test_an_update_agrees_at_the_ends_of_the_narrow_lanes_and_beyond(data, spec):
    lr, mu = (data.draw(codes(cast.format)) for cast in (spec.lr, spec.mu))
    ends = engine.update._near(spec, lr, mu).tolist()
    near = [state for state in product(*ends) if ends[0][0] <= 0]
    forms = [getattr(spec, name).format for name in ("weight", "momentum", "grad")]
    beyond = [[min(max(code + (code > 0) - (code < 0), form.lo), form.hi)
               for code, form in zip(state, forms, strict=True)] for state in near]
    for states in near, beyond:
        state = np.array(states, np.int64).reshape(-1, 3).T
        rands = [data.draw(operands(cast, len(states))) for cast in (spec.momentum, spec.weight)]
        check(spec, list(state), lr, mu, *rands)


@given(st.data(), buffers() | buffers(20) | buffers(31), st.integers(0, 99))
def test_every_update_through_a_buffer_agrees(data, case, seed):
    spec, shift = case
    weight, buffer, grad = (filled((5,), getattr(spec, name).format, seed + i)
                            for i, name in enumerate(("weight", "buffer", "grad")))
    rand = data.draw(operands(spec.weight, 5))
    want = [reference.buffered_sgd(*(int(x) for x in codes), shift, spec, r)
            for *codes, r in zip(weight, buffer, grad, rand, strict=True)]
    dtypes = [np.int64]
    if all(engine.arrays.dtype_of(getattr(spec, name).format).itemsize < 8
           for name in ("weight", "buffer", "grad")):
        dtypes += [np.int32]
    for dtype in dtypes:
        state = [x.astype(dtype) for x in (weight, buffer, grad)]
        got = engine.buffered_sgd(*state, shift, spec, rand)
        assert list(zip(got.weight.tolist(), got.buffer.tolist(), strict=True)) == want


BUFFER = BufferSpec.parse("{weight: s8f7 ties_even sat, buffer: s16f12 sat, grad: s8f12}")


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 9000])
def test_an_update_through_a_buffer_of_any_size_agrees(size):
    state = [filled((size,), getattr(BUFFER, name).format, i)
             for i, name in enumerate(("weight", "buffer", "grad"))]
    want = [reference.buffered_sgd(*(int(x) for x in codes), 3, BUFFER)
            for codes in zip(*state, strict=True)]
    got = engine.buffered_sgd(*(x.astype(np.int32) for x in state), 3, BUFFER)
    assert list(zip(got.weight.tolist(), got.buffer.tolist(), strict=True)) == want
    assert got.weight.dtype == got.buffer.dtype == np.int32


@pytest.mark.parametrize(("weight", "buffer", "grad"), [
    ("s8f7", "s31f12", "s31f12"), ("s8f7", "s32f12", "s32f12"), ("s8f7", "s32f12", "u31f12"),
    ("s31f7", "s12f12", "s8"), ("s32f7", "s12f12", "s8"), ("u31f7", "s12f12", "s8")])
def test_sums_at_the_edge_of_32_bits_saturate_and_do_not_wrap(weight, buffer, grad):
    spec = BufferSpec.parse({"weight": f"{weight} ties_even sat", "buffer": f"{buffer} sat",
                             "grad": grad})
    ends = [(form.lo, form.hi) for form in (spec.weight.format, spec.buffer.format,
                                            spec.grad.format)]
    state = [np.array(codes, np.int32) for codes in zip(*product(*ends), strict=True)]
    want = [reference.buffered_sgd(*(int(x) for x in codes), 3, spec)
            for codes in zip(*state, strict=True)]
    got = engine.buffered_sgd(*state, 3, spec)
    assert list(zip(got.weight.tolist(), got.buffer.tolist(), strict=True)) == want


def test_a_watched_update_through_a_buffer_gives_the_same_and_tells_its_casts():
    spec = BufferSpec.parse({"weight": "s8f7 stochastic5 sat", "buffer": "s16f12 wrap",
                             "grad": "s8f12"})
    state = [filled((60,), getattr(spec, name).format, i).astype(np.int16)
             for i, name in enumerate(("weight", "buffer", "grad"))]
    rand = engine.random_operands(60, 5, [1] * 16)
    want = engine.buffered_sgd(*state, 3, spec, rand)
    with engine.monitor() as seen:
        got = engine.buffered_sgd(*state, 3, spec, rand)
    assert [np.asarray(part).tobytes() for part in got] == [
        np.asarray(part).tobytes() for part in want]
    assert [record.label for record in seen] == ["buffer", "step", "weight"]
    with engine.monitor(), pytest.raises(ValueError, match="weight: code 128 is outside s8f7"):
        engine.buffered_sgd([128], [0], [0], 3, spec, [0])


def test_overflows_of_weight_and_buffer_are_counted_apart():
    # Buffers 32767 + 1 and -32768 - 1 overflow; weight 127 - (-128) and -128 - 128 do.
    got = engine.buffered_sgd([0, 0, 127, -128], [32767, -32768, -32768, 32767], [1, -1, 0, 0], 3,
                              BUFFER)
    assert (got.outside_weight, got.outside_buffer) == (3, 2)


@pytest.mark.parametrize(("state", "shift", "message"), [
    (([128], [0], [0]), 3, "weight: code 128 is outside s8f7"),
    (([0], [40000], [0]), 3, "buffer: code 40000 is outside s16f12"),
    (([0], [0], [-129]), 3, "grad: code -129 is outside s8f12"),
    (([0], [0], [0.5]), 3, "grad: dtype float64 holds no codes"),
    (([0], [0, 0], [0]), 3, r"weight \(1,\), buffer \(2,\), grad \(1,\): shapes differ"),
    (([[0, 0]], [[0], [0]], [[0, 0]]), 3, r"buffer \(2, 1\), .* shapes differ"),
    (([0], [0], [0]), 11, "shift 11: the buffer s16f12 feeds .* from -4 to 10"),
])
def test_what_a_buffer_cannot_take_is_refused(state, shift, message):
    with pytest.raises(ValueError, match=message):
        engine.buffered_sgd(*(np.array(x) for x in state), shift, BUFFER)




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
