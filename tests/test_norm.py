"""Batch norm on codes: the definition against real numbers, the engine against the definition."""

from dataclasses import replace
from fractions import Fraction
from itertools import product
from math import ceil, floor, isqrt

import numpy as np
import oracle
import pytest
from engine_cases import filled
from hypothesis import given
from hypothesis import strategies as st
from strategies import DETERMINISTIC, casts, codes, examples, formats, or_reject

import emu
from emu import (
    Cast,
    Format,
    NormGradSpec,
    NormSpec,
    Overflow,
    Rounding,
    RunningSpec,
    engine,
    reference,
)
from emu.engine.monitor import CastAccount

TEXT = {
    "x": "s8f4", "mean": "s16f10 ties_even sat", "var": "u32f20 to_odd sat",
    "std": "u16f8 ties_even sat", "xhat": "s12f8 ties_even sat", "gamma": "s8f6", "beta": "s8f4",
    "y": "s8f4 ties_even sat", "eps_var": 10,
    "running": {"mean": "s16f10 ties_even sat", "var": "u24f14 ties_even sat", "momentum": "u4f4"},
    "backward": {"error": "s8f7", "mean_error": "s16f14 ties_even sat",
                 "mean_product": "s16f14 ties_even sat", "scale": "s16f10 ties_even sat",
                 "grad_x": "s12f10 ties_even sat", "grad_gamma": "s16f8 ties_even sat",
                 "grad_beta": "s16f8 ties_even sat"}}
SPEC = NormSpec.parse(TEXT)
BY_PRODUCT = replace(SPEC, reciprocal=Cast.parse("u16f10 ties_even sat"))


# The definition restated on real numbers: each name holds a value, each cast settles one.


def settled(value, to, rand=None):
    return oracle.value_of(oracle.cast(value, to, rand), to.format)


def root(value):
    """The square root to 2^-300; an irrational one is put between two multiples of that."""
    scaled = value * 4**300
    below = isqrt(scaled.numerator // scaled.denominator)
    exact = Fraction(below) ** 2 == scaled
    return Fraction(2 * below + (not exact), 2 * 2**300)


def in_code(value, form):
    code = value * Fraction(2) ** form.frac
    assert code.denominator == 1
    return int(code)


def real_statistics(x, spec):
    x = [oracle.value_of(code, spec.x) for code in x]
    mean = sum(x) / Fraction(len(x))
    spread = sum((value - mean) ** 2 for value in x)
    divisors = [len(x), len(x)]
    if spec.running and spec.running.unbiased:
        divisors[1] -= 1
    return (oracle.cast(mean, spec.mean), *(oracle.cast(spread / d, spec.var) for d in divisors))


def real_deviation(var, spec):
    value = oracle.value_of(var + spec.eps_var, spec.var.format)
    step = Fraction(2) ** -spec.std.format.frac
    return max(step, settled(root(value), spec.std) + spec.eps_std * step)


def real_norm(x, mean, var, gamma, beta, spec, rand):
    mean, gamma, beta = (oracle.value_of(code, to.format) for code, to in
                         ((mean, spec.mean), (gamma, spec.gamma), (beta, spec.beta)))
    factor = 1 / real_deviation(var, spec)
    if spec.reciprocal:
        factor = settled(factor, spec.reciprocal)
    xhat = [settled((oracle.value_of(code, spec.x) - mean) * factor, spec.xhat) for code in x]
    y = [oracle.cast(gamma * h + beta, spec.y, r) for h, r in zip(xhat, rand, strict=True)]
    return y, [in_code(h, spec.xhat.format) for h in xhat]


def real_grad(error, xhat, var, gamma, spec, frozen, passes, rand):
    back = spec.backward
    e = [oracle.value_of(code, back.error) for code in error]
    h = [oracle.value_of(code, spec.xhat.format) for code in xhat]
    dot = lambda a, b: sum(p * q for p, q in zip(a, b, strict=True))  # noqa: E731
    grads = (oracle.cast(dot(e, h), back.grad_gamma, rand["grad_gamma"]),
             oracle.cast(sum(e), back.grad_beta, rand["grad_beta"]))
    if passes is not None:
        e = [value * p for value, p in zip(e, passes, strict=True)]
    means = Fraction(0), Fraction(0)
    if not frozen:
        means = (settled(sum(e) / len(e), back.mean_error),
                 settled(dot(e, h) / len(e), back.mean_product))
    factor = 1 / real_deviation(var, spec)
    if spec.reciprocal:
        factor = settled(factor, spec.reciprocal)
    scale = settled(oracle.value_of(gamma, spec.gamma.format) * factor, back.scale)
    return ([oracle.cast(scale * (p - means[0] - q * means[1]), back.grad_x, r)
             for p, q, r in zip(e, h, rand["grad_x"], strict=True)], *grads)


# Any hardware that is not refused.


@st.composite
def norms(draw, widths=(2, 12), dithered=True):
    """Any NormSpec with all its parts; half of them by a reciprocal."""
    fracs = (-2, 12)

    def cast(signed=True, stochastic=False):
        to = draw(casts(widths, fracs, stochastic and dithered))
        form = to.format if signed else Format(to.format.width, to.format.frac, False)
        return Cast(form, to.rounding, to.overflow, to.rand_bits)

    running = RunningSpec(cast(stochastic=True), cast(False, True), cast(), draw(st.booleans()))
    back = or_reject(NormGradSpec, error=draw(formats(widths, fracs)), mean_error=cast(),
                     mean_product=cast(), scale=cast(), grad_x=cast(stochastic=True),
                     grad_gamma=cast(stochastic=True), grad_beta=cast(stochastic=True))
    return or_reject(NormSpec, x=draw(formats(widths, fracs)), mean=cast(), var=cast(False),
                     std=cast(False), xhat=cast(), gamma=cast(), beta=cast(),
                     y=cast(stochastic=True), eps_var=draw(st.integers(0, 9)),
                     eps_std=draw(st.integers(0, 2)), running=running, backward=back,
                     reciprocal=cast() if draw(st.booleans()) else None)


def operands(to, shape, seed):
    """Random operands of a cast, None for each where it draws none."""
    if not to.rand_bits:
        return np.full(shape, None)
    return np.random.default_rng(seed).integers(0, 1 << to.rand_bits, shape)


def given_to(to, rand):
    return rand if to.rand_bits else None


def channels(x):
    """(N, C, ...) as one flat list for each channel."""
    return np.moveaxis(x, 1, 0).reshape(x.shape[1], -1).tolist()


def parameters(spec, count, seed):
    """Codes (C,) of mean, var, gamma, beta."""
    return [filled((count,), getattr(spec, name).format, seed + i)
            for i, name in enumerate(("mean", "var", "gamma", "beta"))]


def both(operation, *arguments):
    """What an operation returns, unwatched (in lanes) and watched (by plain casts)."""
    with emu.monitor():
        watched = operation(*arguments)
    return operation(*arguments), watched


SHAPES = st.sampled_from([(1, 1), (2, 3), (5, 2), (2, 2, 3), (3, 2, 2, 2)])
SEEDS = st.integers(0, 99)


@given(norms(), SHAPES, SEEDS)
@examples(50)
def test_statistics_are_the_rounded_mean_and_variance(spec, shape, seed):
    x = filled(shape, spec.x, seed)
    if x.size == x.shape[1]:
        spec = replace(spec, running=None)
    want = [real_statistics(channel, spec) for channel in channels(x)]
    assert [tuple(reference.norm_statistics(channel, spec)) for channel in channels(x)] == want
    assert list(zip(*(a.tolist() for a in engine.norm_statistics(x, spec)), strict=True)) == want


@given(norms() | norms((2, 24)), SHAPES, SEEDS)
@examples(100)
def test_every_normalised_code_is_the_definitions(spec, shape, seed):
    x, per_channel = filled(shape, spec.x, seed), parameters(spec, shape[1], seed)
    rand = operands(spec.y, shape, seed)
    each = list(zip(channels(x), *(p.tolist() for p in per_channel), channels(rand), strict=True))
    want = [real_norm(*codes, spec, r) for *codes, r in each]
    assert [reference.batch_norm(*codes, spec, r) for *codes, r in each] == want
    for got in both(engine.batch_norm, x, *per_channel, spec, given_to(spec.y, rand)):
        assert list(zip(channels(got.y), channels(got.xhat), strict=True)) == want


@given(norms() | norms((2, 24)), SHAPES, SEEDS, st.booleans(), st.booleans())
@examples(100)
def test_every_gradient_is_the_definitions(spec, shape, seed, frozen, masked):
    back = spec.backward
    error, xhat = filled(shape, back.error, seed), filled(shape, spec.xhat.format, seed + 1)
    _, var, gamma, _ = parameters(spec, shape[1], seed)
    passes = np.random.default_rng(seed).random(shape) < 0.6 if masked else None
    rand = {name: operands(getattr(back, name), size, seed) for name, size in
            (("grad_x", shape), ("grad_gamma", shape[1]), ("grad_beta", shape[1]))}
    want = []
    for c, (e, h, v, g) in enumerate(zip(channels(error), channels(xhat), var.tolist(),
                                         gamma.tolist(), strict=True)):
        arguments = (e, h, v, g, spec, frozen, channels(passes)[c] if masked else None,
                     {"grad_x": channels(rand["grad_x"])[c], "grad_gamma": rand["grad_gamma"][c],
                      "grad_beta": rand["grad_beta"][c]})
        want.append(real_grad(*arguments))
        assert reference.batch_norm_grad(*arguments) == want[-1]
    drawn = {name: r for name, r in rand.items() if getattr(back, name).rand_bits}
    for got in both(engine.batch_norm_grad, error, xhat, var, gamma, spec, frozen, passes, drawn):
        grads = channels(got.x), got.gamma.tolist(), got.beta.tolist()
        assert list(zip(*grads, strict=True)) == want


@pytest.mark.parametrize("to", ["s8 ties_even sat", "s40f3 to_odd", "s62 ties_away sat_sym"])
@pytest.mark.parametrize("bits", [30, 31, 32, 62, 63, 64])
def test_linear_casts_are_exact_on_both_sides_of_a_lane(bits, to):
    """The magnitudes of a * p and r add up to 2^bits - 1, or 2^bits where the sum fits int64."""
    to, half = Cast.parse(to), 1 << bits - 1
    a = np.array([[[-1, 0, 1]], [[1, -1, 0]]])
    for p, r in ((half, half - 1), (half - 1, -half), (-half, half), (half - 1, 1 - half)):
        want = [reference.cast(code * p + r, 4, to) for code in a.ravel().tolist()
                if abs(code * p + r) < 1 << 63]
        if len(want) == a.size and max(p, r) < 1 << 63:
            got = engine.norm._cast_line(a, [p], [r], 4, to, a.shape)
            assert got.codes.ravel().tolist() == want
            assert got.outside == sum(reference.overflows(reference.round_shift(
                code * p + r, 4 - to.format.frac, to), to) for code in a.ravel().tolist())


@given(norms(), SEEDS, st.data())
@examples(50)
def test_running_statistics_move_exactly_and_are_cast(spec, seed, data):
    running, momentum = spec.running, data.draw(codes(spec.running.momentum.format))
    old = [filled((3,), getattr(running, name).format, seed) for name in ("mean", "var")]
    batch = engine.Statistics(filled((3,), spec.mean.format, seed + 1),
                              filled((3,), spec.var.format, seed + 2),
                              filled((3,), spec.var.format, seed + 3))
    rands = [operands(getattr(running, name), 3, seed) for name in ("mean", "var")]
    share = oracle.value_of(momentum, running.momentum.format)
    want = []
    for name, codes_of, new, rand in (("mean", old[0], batch.mean, rands[0]),
                                      ("var", old[1], batch.sample_var, rands[1])):
        to, form = getattr(running, name), getattr(spec, name).format
        want.append([])
        for a, b, r in zip(codes_of.tolist(), new.tolist(), rand.tolist(), strict=True):
            moved = (1 - share) * oracle.value_of(a, to.format) + share * oracle.value_of(b, form)
            want[-1].append(oracle.cast(moved, to, r))
    each = zip(*old, *batch, *rands, strict=True)
    found = [reference.running_norm(int(m), int(v), reference.Statistics(*map(int, b)), momentum,
                                    spec, *r) for m, v, *b, r0, r1 in each for r in [(r0, r1)]]
    assert [list(side) for side in zip(*found, strict=True)] == want
    got = engine.running_norm(*old, batch, momentum, spec, *(
        given_to(getattr(running, name), r) for name, r in zip(("mean", "var"), rands,
                                                              strict=True)))
    assert [side.tolist() for side in got] == want


@given(norms(), SEEDS)
@examples(30)
def test_frozen_statistics_are_the_running_ones_cast(spec, seed):
    stored = [filled((3,), getattr(spec.running, name).format, seed) for name in ("mean", "var")]
    want = [[oracle.cast(oracle.value_of(code, getattr(spec.running, name).format), to)
             for code in side.tolist()]
            for name, side, to in zip(("mean", "var"), stored, (spec.mean, spec.var), strict=True)]
    pairs = [reference.frozen_norm(m, v, spec) for m, v in zip(*(s.tolist() for s in stored),
                                                             strict=True)]
    assert [list(side) for side in zip(*pairs, strict=True)] == want
    assert [side.tolist() for side in engine.frozen_norm(*stored, spec)] == want


@pytest.mark.parametrize("rounding", DETERMINISTIC)
def test_every_small_root_is_rounded_as_defined(rounding):
    for frac, out in product((-3, -2, -1, 0, 1, 2, 3, 5), (-2, -1, 0, 1, 2)):
        to = Cast(Format(6, out, False), rounding, Overflow.SAT)
        want = [oracle.cast(root(Fraction(code) * Fraction(2) ** -frac), to) for code in range(130)]
        assert [reference.root(code, frac, to) for code in range(130)] == want, (frac, out)
        assert [engine.exact.root_int(code, frac, to) for code in range(130)] == want, (frac, out)


@pytest.mark.parametrize("reciprocal", [None, "u8f5 ties_even sat"])
@pytest.mark.parametrize("rounding", DETERMINISTIC)
def test_every_small_channel_is_normalised_as_defined(rounding, reciprocal):
    """All channels of 3 codes of 3 bits, statistics included."""
    modes = f"{rounding.name.lower()} sat"
    spec = NormSpec.parse({
        "x": "s3f1", "mean": f"s5f3 {modes}", "var": f"u8f5 {modes}", "std": f"u6f4 {modes}",
        "xhat": f"s6f3 {modes}", "gamma": "s4f2", "beta": "s4f2", "y": f"s5f2 {modes}",
        "eps_var": 1} | ({"reciprocal": reciprocal} if reciprocal else {}))
    x = np.array(list(product(range(-4, 4), repeat=3))).T  # a channel each
    statistics = engine.norm_statistics(x, spec)
    want = [real_statistics(channel, spec) for channel in channels(x)]
    assert list(zip(*(side.tolist() for side in statistics), strict=True)) == want
    gamma, beta = np.full(512, 5), np.full(512, -3)
    got = engine.batch_norm(x, statistics.mean, statistics.var, gamma, beta, spec)
    want = [real_norm(channel, m, v, 5, -3, spec, [None] * 3)
            for channel, (m, v, _) in zip(channels(x), want, strict=True)]
    assert list(zip(channels(got.y), channels(got.xhat), strict=True)) == want


def test_a_variance_rounded_to_odd_gives_the_deviation_rounded_once():
    spec = NormSpec.parse(changed(eps_var=0, var="u40f19 to_odd sat", std="u16f8 ties_even"))
    x = np.array(list(product(range(-2, 3), repeat=5))).T
    for channel, var in zip(channels(x), engine.norm_statistics(x, spec).var.tolist(), strict=True):
        mean = Fraction(sum(channel), 5)
        exact = sum((code - mean) ** 2 for code in channel) / 5 / 4**spec.x.frac
        assert reference.root(var, 19, spec.std) == oracle.cast(root(exact), spec.std)


def test_sums_are_exact_far_beyond_int64():
    spec = NormSpec.parse(changed(x="s32", mean="s32", var="u62f-2", xhat="s12f2"))
    x = np.full((1 << 12, 1), spec.x.lo)  # the sum of squares is 2^74
    x[0] = spec.x.hi
    want = real_statistics(x.ravel().tolist(), spec)
    assert tuple(int(side[0]) for side in engine.norm_statistics(x, spec)) == want


def test_sums_of_errors_are_exact_far_beyond_int64():
    spec = NormSpec.parse(changed(xhat="s31f8", gamma="s8", backward={
        "error": "s32", "mean_product": "s30f-8", "mean_error": "s30f-4", "scale": "s2",
        "grad_gamma": "s62f-20", "grad_x": "s20f-50"}))
    error, xhat = np.full((1 << 12, 1), -1 << 31), np.full((1 << 12, 1), -1 << 30)
    xhat[0] = 5
    rand = {"grad_x": [None] * len(error), "grad_gamma": None, "grad_beta": None}
    want = real_grad(error.ravel().tolist(), xhat.ravel().tolist(), 1 << 30, 99, spec, False, None,
                     rand)
    got = engine.batch_norm_grad(error, xhat, [1 << 30], [99], spec)
    assert (got.x.ravel().tolist(), int(got.gamma[0]), int(got.beta[0])) == want


def test_narrow_errors_meet_all_bits_of_wide_codes():
    spec = NormSpec.parse(changed(xhat="u32f8", gamma="s8", backward={
        "error": "s8", "grad_gamma": "s62f8", "mean_product": "s8f-8", "mean_error": "s8",
        "scale": "s2"}))
    error, xhat = np.array([[100], [-7]], np.int8), np.array([[(1 << 32) - 1], [1 << 31]])
    got = engine.batch_norm_grad(error, xhat, [1 << 10], [99], spec)
    assert int(got.gamma[0]) == 100 * ((1 << 32) - 1) - 7 * (1 << 31)


@pytest.mark.parametrize("spec", [SPEC, BY_PRODUCT])
def test_what_was_out_of_range_is_told(spec):
    x, (mean, var, gamma, beta) = filled((4, 3, 5), spec.x, 1), parameters(spec, 3, 1)
    var //= 1 << 12
    wide = replace(spec, xhat=spec.xhat.with_frac(8), y=Cast(Format(40, spec.y.format.frac),
                                                            spec.y.rounding))
    got, all_in = (engine.batch_norm(x, mean, var, gamma, beta, s) for s in (spec, wide))
    low, high = spec.y.range
    assert got.inside_y.tolist() == ((low <= all_in.y) & (all_in.y <= high)).tolist()
    assert not got.inside_y.all() and got.inside_y.any()
    assert (np.isin(got.xhat, spec.xhat.range) | got.inside_xhat).all()
    assert not got.inside_xhat.all()


def test_a_monitor_sees_the_casts_of_every_channel():
    x, per_channel = filled((4, 3, 5), SPEC.x, 1), parameters(SPEC, 3, 1)
    with emu.monitor() as seen:
        got = emu.batch_norm(x, *per_channel, SPEC)
        grads = emu.batch_norm_grad(x, got.xhat, *per_channel[1:3], SPEC)
    records, back = {record.label: record for record in seen}, SPEC.backward
    assert [(r.operation, label, r.spec) for label, r in records.items()] == [
        ("divide", "xhat", SPEC.xhat), ("cast", "y", SPEC.y),
        ("cast", "grad_gamma", back.grad_gamma), ("cast", "grad_beta", back.grad_beta),
        ("divide", "mean_error", back.mean_error), ("divide", "mean_product", back.mean_product),
        ("divide", "scale", back.scale), ("cast", "grad_x", back.grad_x)]
    for name, inside in ("xhat", got.inside_xhat), ("y", got.inside_y):
        want = [channel.count(False) for channel in channels(inside)]
        assert [account.overflows for account in records[name].channels] == want
    assert records["grad_x"].total.overflows == grads.outside_x


@pytest.mark.parametrize("rounding", [Rounding.TIES_EVEN, Rounding.TO_POS, Rounding.TO_NEG])
@pytest.mark.parametrize("overflow", list(Overflow))
def test_a_monitor_sees_what_a_channel_has_one_of(rounding, overflow):
    to = Cast(Format(6, 3), rounding, overflow)
    spec = replace(SPEC, running=None, mean=to, backward=replace(SPEC.backward, scale=to))
    low, high = to.range
    x = np.array([-128, 62, 63, 31, -64], np.int8).reshape(1, 5, 1)  # in half steps of the mean
    with emu.monitor() as seen:
        found = emu.norm_statistics(x, spec)
    mean = next(record for record in seen if record.label == "mean")
    values = [Fraction(int(code), 2) for code in x.ravel()]
    rounded = [{Rounding.TO_NEG: floor, Rounding.TO_POS: ceil}.get(rounding, round)(v)
               for v in values]
    assert mean.channels == tuple(
        CastAccount(1, int(not low <= whole <= high), min(v, 0), max(v, 0),
                    code - v if low <= whole <= high else 0)
        for v, whole, code in zip(values, rounded, found.mean.tolist(), strict=True))
    assert (mean.first.output, mean.first.value) == ((0,), -64)
    gamma, var = [127, 1, -128, 64, 0], [0, 1 << 20, 3, 1 << 22, 0]
    with emu.monitor() as seen:
        emu.batch_norm_grad(x, x, var, gamma, spec)
    scale = next(record for record in seen if record.label == "scale")
    frac = spec.gamma.format.frac - spec.std.format.frac
    want = [Fraction(g, reference.norm_divisor(v, spec)) * Fraction(2)**(3 - frac)
            for g, v in zip(gamma, var, strict=True)]
    assert [account.high + account.low for account in scale.channels] == want
    assert [account.overflows for account in scale.channels] == [1, 0, 1, 0, 0]


def test_outside_gradients_are_counted():
    error, xhat = filled((4, 2, 3), SPEC.backward.error, 0), filled((4, 2, 3), SPEC.xhat.format, 1)
    args = (error, xhat, [1000, 40], [127, 127])
    wide = replace(SPEC, backward=replace(SPEC.backward, grad_x=Cast(
        Format(40, 10), SPEC.backward.grad_x.rounding)))
    full = engine.batch_norm_grad(*args, wide).x
    low, high = SPEC.backward.grad_x.range
    want = int(((full < low) | (full > high)).sum())
    assert engine.batch_norm_grad(*args, SPEC).outside_x == want > 0


def test_a_constant_channel_is_divided_by_one_code():
    spec = replace(SPEC, eps_var=0)
    x = np.full((4, 1), 17)
    statistics = engine.norm_statistics(x, spec)
    assert (statistics.var.tolist(), reference.norm_divisor(0, spec)) == ([0], 1)
    assert engine.norm_divisors(statistics.var, spec) == [1]
    got = engine.batch_norm(x, statistics.mean, statistics.var, [64], [5], spec)
    assert got.y.ravel().tolist() == [5] * 4


def test_training_and_evaluation_are_torchs_within_a_float_tolerance():
    torch = pytest.importorskip("torch")
    spec = replace(SPEC, running=replace(SPEC.running, unbiased=True,
                                         momentum=Cast.parse("u12f12")))
    x = np.random.default_rng(0).normal(2, 20, (16, 3, 5, 5)).round().clip(-128, 127).astype(int)
    error = np.random.default_rng(1).integers(-100, 100, x.shape)
    gamma, beta = np.array([64, 40, -20]), np.array([3, 0, -7])
    module = torch.nn.BatchNorm2d(3, eps=10 / 2**20, momentum=0.25, dtype=torch.float64)
    module.weight.data, module.bias.data = (torch.tensor(codes_of).double() / one
                                                 for codes_of, one in ((gamma, 64), (beta, 16)))
    inputs = (torch.tensor(x).double() / 16).requires_grad_()
    y = module(inputs)
    y.backward(torch.tensor(error).double() / 128)
    statistics = engine.norm_statistics(x, spec)
    got = engine.batch_norm(x, statistics.mean, statistics.var, gamma, beta, spec)
    running = engine.running_norm([0] * 3, [1 << 14] * 3, statistics, 1 << 10, spec)
    grads = engine.batch_norm_grad(error, got.xhat, statistics.var, gamma, spec)
    module.eval()
    again = engine.batch_norm(x, *engine.frozen_norm(*running, spec), gamma, beta, spec)
    for codes_of, frac, want, tolerance in (
            (got.y, 4, y, 0.04), (grads.x, 10, inputs.grad, 0.005),
            (grads.gamma, 8, module.weight.grad, 0.15), (grads.beta, 8, module.bias.grad, 0.01),
            (running[0], 10, module.running_mean, 0.002),
            (running[1], 14, module.running_var, 0.002),
            (again.y, 4, module(inputs), 0.04)):
        assert np.abs(codes_of / 2**frac - want.detach().numpy()).max() < tolerance


def test_zeros_are_normalised_by_wide_factors():
    spec = NormSpec.parse(changed(mean="s30f26", reciprocal="u30f10"))
    x = np.zeros((2, 1), int)
    for mean in (-1 << 29, 0):
        want = reference.batch_norm([0, 0], mean, 0, 64, 5, spec)
        got = engine.batch_norm(x, [mean], [0], [64], [5], spec)
        assert (channels(got.y)[0], channels(got.xhat)[0]) == want
    zero = engine.batch_norm_grad(x, x, [0], [127], spec)
    assert zero.x.tolist() == [[0], [0]]


def test_evaluation_changes_nothing_and_takes_an_empty_batch():
    running = np.array([5]), np.array([99])
    mean, var = emu.frozen_norm(*running, SPEC)
    got = emu.batch_norm(np.zeros((0, 1, 4), np.int8), mean, var, [64], [0], SPEC)
    assert (got.y.shape, running[0][0], running[1][0]) == ((0, 1, 4), 5, 99)


def test_results_are_in_the_smallest_dtype():
    got = emu.batch_norm(np.zeros((2, 1), np.int8), [0], [1], [64], [0], SPEC)
    assert (got.y.dtype, got.xhat.dtype) == (np.int8, np.int16)


@given(norms(widths=(1, 8)))
@examples(40)
def test_the_text_of_a_norm_parses_back(spec):
    assert NormSpec.parse(str(spec)) == spec
    assert eval(repr(spec), {"NormSpec": NormSpec}) == spec


def changed(**parts):
    """TEXT with some keys replaced, in its parts too."""
    return {key: (value | parts.get(key, {}) if isinstance(value, dict) else
                  parts.get(key, value)) for key, value in TEXT.items()} | {
        key: value for key, value in parts.items() if key not in TEXT}


@pytest.mark.parametrize(("parts", "message"), [
    ({"x": "u32"}, r"norm x \* x: its exact value can reach \d+, the limit is"),
    ({"x": "s33"}, "norm x .*: needs a Format of at most 32 bits"),
    ({"mean": "s33"}, "norm mean s33f0 .*: has at most 32 bits"),
    ({"mean": "s16f60"}, "norm x - mean"),
    ({"xhat": "s12f60"}, "norm x - mean, aligned for the quotient"),
    ({"reciprocal": "u32f10", "x": "s32f10", "mean": "s32f10"}, r"norm \(x - mean\) \* reciprocal"),
    ({"gamma": "u32f6", "xhat": "u32f8"}, r"norm gamma \* xhat"),
    ({"beta": "s8f70"}, r"norm gamma \* xhat \+ beta"),
    ({"backward": {"error": "u32f8"}, "xhat": "u32f2"}, r"norm gamma|norm error \* xhat"),
    ({"backward": {"scale": "s32", "mean_error": "s30f30"}}, r"norm scale \* \(error"),
    ({"var": "s16"}, "norm var s16f0 .*: is never negative; use an unsigned format"),
    ({"std": "u32"}, "norm std u32f0 .*: has at most 31 bits"),
    ({"xhat": "s8 stochastic4"}, "norm xhat .*: has no random operand"),
    ({"backward": {"scale": "s8 stochastic4"}}, "norm scale .*: has no random operand"),
    ({"running": {"momentum": "u4 stochastic4"}}, "norm running momentum .*: has no random"),
    ({"running": {"var": "s8"}}, "norm running var s8f0 .*: is never negative"),
    ({"running": {"unbiased": "often"}}, "norm running unbiased|write true or false"),
    ({"eps_var": -1}, "norm eps_var -1: needs a whole number"),
    ({"eps_std": "0.5"}, "norm eps_std '0.5': needs a whole number"),
    ({"eps": 1}, "unknown norm key 'eps'"),
    ({"backward": {"grad": "s8"}}, "unknown backward key 'grad'"),
])
def test_hardware_that_is_not_exact_is_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        NormSpec.parse(changed(**parts))


def test_a_quotient_of_60_bits_is_the_widest():
    text = {key: value for key, value in TEXT.items() if key not in ("backward", "running")}
    text |= {"x": "s8f4", "mean": "s16f4", "std": "u16f8", "xhat": "s8f40 to_odd"}
    spec = NormSpec.parse(text)  # |x - mean| reaches 32895, which 44 zeros bring to 60 bits
    x = np.array([[-128], [127]])
    want = reference.batch_norm([-128, 127], 32767, 9, 1, 1, spec)
    assert engine.batch_norm(x, [32767], [9], [1], [1], spec).xhat.ravel().tolist() == want[1]
    with pytest.raises(ValueError, match="aligned for the quotient"):
        NormSpec.parse(text | {"xhat": "s8f41 to_odd"})


def test_a_missing_part_is_refused():
    spec = replace(SPEC, running=None, backward=None)
    x = np.zeros((2, 1), int)
    with pytest.raises(ValueError, match="has no running"):
        engine.frozen_norm([0], [0], spec)
    with pytest.raises(ValueError, match="has no backward"):
        engine.batch_norm_grad(x, x, [0], [0], spec)
    with pytest.raises(ValueError, match="norm: 'gamma' is missing"):
        NormSpec.parse({key: value for key, value in TEXT.items() if key != "gamma"})


ONE = np.ones((2, 3), int)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: engine.norm_statistics(ONE * 128, SPEC), "x: code 128 is outside s8f4"),
    (lambda: engine.norm_statistics(np.zeros((0, 3), int), SPEC), "0 elements in a channel"),
    (lambda: engine.norm_statistics(ONE[0], SPEC), r"x: shape \(3,\) has no channels"),
    (lambda: engine.norm_statistics(ONE[:1], replace(SPEC, running=replace(
        SPEC.running, unbiased=True))), "an unbiased variance needs 2"),
    (lambda: reference.norm_statistics([1], replace(SPEC, running=replace(
        SPEC.running, unbiased=True))), "an unbiased variance needs 2"),
    (lambda: engine.batch_norm(ONE, [0], [0] * 3, [0] * 3, [0] * 3, SPEC), "mean .* for 3 chan"),
    (lambda: engine.batch_norm(ONE, [0] * 3, [-1] * 3, [0] * 3, [0] * 3, SPEC), "var: code -1"),
    (lambda: engine.batch_norm(ONE, [0] * 3, [0] * 3, [0] * 3, [0] * 3, replace(
        SPEC, y=Cast.parse("s8 stochastic4"))), "needs a random operand of 4 bits"),
    (lambda: engine.batch_norm_grad(ONE, ONE[:1], [0] * 3, [0] * 3, SPEC), "shapes differ"),
    (lambda: engine.batch_norm_grad(ONE, ONE, [0] * 3, [0] * 3, SPEC, passes=[True]), "shapes"),
    (lambda: engine.running_norm([0] * 2, [0] * 3, engine.norm_statistics(ONE, SPEC), 1, SPEC),
     r"running mean \(2,\) for 3 channels"),
    (lambda: engine.running_norm([0] * 3, [0] * 3, engine.norm_statistics(ONE, SPEC), 16, SPEC),
     "momentum: code 16 is outside u4f4"),
])
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("rounding", DETERMINISTIC)
@pytest.mark.parametrize(("bits", "overflow"), [(4, o) for o in Overflow] + [(50, Overflow.SAT)])
def test_quotients_are_rounded_as_defined(rounding, bits, overflow):
    """Every small numerator over every small divisor, and some of the largest that floats take."""
    to = Cast(Format(bits, 2), rounding, overflow)
    divisors = [1, 2, 3, 4, 5, 6, 7, 8, 9, 49, 2**25 - 1, 2**49 - 1]  # 49 / 49 is below 1
    a = np.broadcast_to(np.arange(-40, 41), (1, len(divisors), 81))
    for r, frac in ((0, 2), (3, 0), (-2**46, 2), (2**46 - 50, 4)):
        got = engine.norm._quotients(a, 1, [r] * len(divisors), divisors, frac, to, a.shape)
        want = [[Fraction(2 * x + r, d) / Fraction(2)**frac for x in range(-40, 41)]
                for d in divisors]
        codes = [[oracle.cast(value, to, None) for value in row] for row in want]
        assert got.codes[0].tolist() == codes
        assert got.outside == a.size - int(got.inside.sum())


@pytest.mark.parametrize("bits", range(50, 56))
@pytest.mark.parametrize("rounding", DETERMINISTIC)
def test_quotients_are_exact_on_both_sides_of_what_floats_take(rounding, bits):
    """The widest numerators over any divisor, and small ones over the widest."""
    to, top = Cast(Format(50), rounding), (1 << bits) - 1
    for numerators, divisors in (([top, 30 - top], [1, 5, 11, 13, 35, top // 2]),
                                 ([15], [top, top // 2])):
        a = np.arange(-30, 1)[None, None]
        for r, d in product(numerators, divisors):
            got = engine.norm._quotients(a, 0, [r], [d], 0, to, a.shape)
            assert got.codes.ravel().tolist() == [
                oracle.cast(Fraction(x + r, d), to, None) for x in range(-30, 1)], (r, d)
