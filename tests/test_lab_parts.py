"""Batch norm in parts, as it is recorded and computed in the Verilog, against the definition."""

from dataclasses import replace

import numpy as np
import pytest
from engine_cases import filled
from hypothesis import given, reject
from strategies import examples
from test_lab import recipe
from test_norm import BY_PRODUCT, SEEDS, SHAPES, SPEC, TEXT, channels, norms, parameters

from emu import Cast, Format, NormSpec, Table, golden, reference
from emu.engine import Casted
from emu.golden import read_manifest
from emu.lab import train as lab
from emu.lab.record import Recorder
from emu.lab.rtl import RtlBackend
from emu.nn.backend import Backend, Place
from emu.norm_casts import NormCasts

PLACE = Place("norm", "x", True)
PASSES = [False, True]


def step(backend, spec, shape, seed, masked=False, frozen=False):
    """All a batch norm does in a step: [mean, var, y, ...], each as a list by channel."""
    x, error = (filled(shape, form, seed) for form in (spec.x, spec.backward.error))
    _, _, gamma, beta = parameters(spec, shape[1], seed)
    old = [filled((shape[1],), to.format, seed) for to in (spec.running.mean, spec.running.var)]
    momentum = spec.running.momentum.format.hi
    found = backend.norm_statistics(PLACE, x, spec)
    normed = backend.batch_norm(PLACE, x, found.mean, found.var, gamma, beta, spec)
    inside = np.random.default_rng(seed).random(shape) < 0.5 if masked else None
    moved = backend.running_norm(PLACE, *old, found, momentum, spec)
    grads = backend.batch_norm_grad(PLACE, error, normed.xhat, found.var, gamma, spec, frozen,
                                    inside)
    return [*(list(each) for each in found), channels(normed.y), channels(normed.xhat),
            *(list(each) for each in (*moved, *backend.frozen_norm(PLACE, *moved, spec))),
            channels(grads.x), list(grads.gamma), list(grads.beta)]


def defined(spec, shape, seed, masked=False, frozen=False):
    """The same by `emu.reference`, without an array."""
    x, error = (channels(filled(shape, form, seed)) for form in (spec.x, spec.backward.error))
    _, _, gamma, beta = parameters(spec, shape[1], seed)
    old = [filled((shape[1],), to.format, seed).tolist()
           for to in (spec.running.mean, spec.running.var)]
    momentum = spec.running.momentum.format.hi
    passes = [None] * shape[1]
    if masked:
        passes = channels(np.random.default_rng(seed).random(shape) < 0.5)
    out = []
    for c in range(shape[1]):
        found = reference.norm_statistics(x[c], spec)
        y, xhat = reference.batch_norm(x[c], found.mean, found.var, int(gamma[c]), int(beta[c]),
                                       spec)
        moved = reference.running_norm(old[0][c], old[1][c], found, momentum, spec)
        out.append([*found, y, xhat, *moved, *reference.frozen_norm(*moved, spec),
                    *reference.batch_norm_grad(error[c], xhat, found.var, int(gamma[c]), spec,
                                               frozen, passes[c])])
    return [list(each) for each in zip(*out, strict=True)]


def recorded(spec, *case):
    """What a recorder computes and keeps."""
    recorder = Recorder(Backend())
    return step(recorder, spec, *case), recorder.traces


@given(norms(dithered=False), SHAPES, SEEDS)
@examples(25)
def test_the_parts_of_any_batch_norm_make_the_definition(tmp_path_factory, spec, shape, seed):
    if shape[0] * int(np.prod(shape[2:])) == 1:
        spec = replace(spec, running=replace(spec.running, unbiased=False))
    masked, frozen = PASSES[seed % 2], PASSES[seed // 2 % 2]
    try:
        found, traces = recorded(spec, shape, seed, masked, frozen)
    except ValueError as error:
        if "no accumulator in mac.v" in str(error) or "and quantizer.v takes" in str(error):
            reject()
        raise
    assert found == defined(spec, shape, seed, masked, frozen)
    out = tmp_path_factory.mktemp("step") / "set"
    golden.write_step(out, traces, {})  # raises where a part is not what the reference makes of it


def test_what_no_unit_computes_is_named_in_the_manifest(tmp_path):
    def made(spec, shape):
        golden.write_step(tmp_path, recorded(spec, shape, 1)[1], {})
        return {file.name.split("/")[1]: file.made["value_i"]
                for file in read_manifest(tmp_path).files if file.made}

    sums = {"norm.x.var.hex": "(n * squares - sum^2) / n^2",
            "norm.x.std.hex": "sqrt(var + eps_var)", "norm.x.std.2.hex": "sqrt(var + eps_var)"}
    assert made(SPEC, (2, 3, 2)) == sums | {
        "norm.x.xhat.hex": "(x - mean) / divisor", "norm.x.scale.hex": "gamma / divisor"}
    whole = {f"norm.x.{name}.hex": "sum / n" for name in ("mean", "mean_error", "mean_product")}
    by_product = {f"norm.x.{name}.hex": "1 / divisor" for name in (
        "reciprocal", "scale.reciprocal")}
    assert made(BY_PRODUCT, (3, 2, 1)) == sums | whole | by_product


def test_a_wide_factor_goes_in_two_products():
    _, traces = recorded(NormCasts.parse({}).spec(
        *map(Format.parse, ("s16f8", "s8f6", "s8f4", "s9f9"))), (2, 1, 4), 1)
    spec = next(trace.mac for trace in traces if trace.name == "norm.x.grad_x.low")
    assert (spec.a, spec.acc.format.width <= 62) == (Format.parse("u32"), True)


@pytest.mark.parametrize("momentum", ["u15f15", "u15f-1"])
def test_a_running_statistic_that_no_accumulator_holds_is_made_by_the_model(momentum):
    running = TEXT["running"] | {"momentum": momentum}
    spec = NormSpec.parse({**TEXT, "var": "u50f40 to_odd sat", "running": running})
    found, traces = recorded(spec, (2, 3, 2), 1)
    assert found == defined(spec, (2, 3, 2), 1)
    moved = [trace for trace in traces if trace.name == "norm.x.var.2"]
    assert [trace.made[:30] for trace in moved] == ["old + momentum * (new - old): "]
    assert momentum != "u15f15" or moved[0].made.endswith(": 68 bits, and mac.v adds 62")


def test_one_element_has_no_unbiased_variance():
    for backend in (RtlBackend(), Recorder(Backend())):
        with pytest.raises(ValueError, match="1 element in a channel: an unbiased variance needs"):
            backend.norm_statistics(PLACE, filled((1, 3), SPEC.x, 1), replace(
                SPEC, running=replace(SPEC.running, unbiased=True)))


def test_a_sum_that_no_accumulator_holds_is_refused():
    spec = NormSpec.parse({**TEXT, "x": "s31f4", "mean": "s31f4 sat", "std": "u31 sat"})
    with pytest.raises(ValueError, match=r"^norm\.x\.squares: its exact sum has no accumulator in "
                                         r"mac\.v, which has at most 62 bits .*; use narrower"):
        Recorder(Backend()).norm_statistics(PLACE, filled((2, 3, 2), spec.x, 1), spec)


def test_a_quotient_that_no_quantizer_takes_is_refused():
    spec = NormSpec.parse({**TEXT, "var": "u62f60 sat"})
    with pytest.raises(ValueError, match=r"^norm\.x\.var: .* has 6\d bits before its cast u62f60 "
                                         r"to_neg sat, and quantizer\.v takes 64; use fewer"):
        Recorder(Backend()).norm_statistics(PLACE, filled((2, 3, 2), spec.x, 1), spec)


def test_parts_that_are_not_what_the_engine_makes_are_refused(monkeypatch):
    monkeypatch.setattr("emu.engine.frozen_norm", lambda mean, var, spec: (mean, var + 1))
    with pytest.raises(ValueError, match=r"^norm\.x: the parts of frozen_norm are not what the"):
        Recorder(Backend()).frozen_norm(PLACE, np.zeros(3, int), np.zeros(3, int), SPEC)


def test_stochastic_casts_draw_what_the_engine_draws():
    dithered = replace(
        SPEC, running=replace(SPEC.running, var=Cast.parse("u24f14 stochastic7 sat")),
        backward=replace(SPEC.backward, grad_x=Cast.parse("s16f14 stochastic16 sat")))
    case = (3, 2, 2), 4
    assert step(Recorder(Backend(3)), dithered, *case) == step(Backend(3), dithered, *case)
    assert step(Backend(3), dithered, *case) != step(Backend(4), dithered, *case)


def test_averages_are_recorded_as_quotients():
    codes, divisor = filled((2, 1, 2, 3), Format(12), 1), np.array([[9, 6, 9], [6, 4, 6]])
    recorder, to = Recorder(Backend()), Cast.parse("s8f2 ties_even sat")
    found = recorder.divide(PLACE, codes, divisor, Format(12, 3), to)
    assert isinstance(found, Casted) and [trace.made for trace in recorder.traces] == ["sum / area"]
    assert found.codes.ravel().tolist() == [
        reference.divide(code, area, 3, to) for code, area in zip(
            codes.ravel().tolist(), 2 * divisor.ravel().tolist(), strict=True)]


def test_slopes_of_a_table_are_multiplied_on_a_mac():
    slope = Table.parse("{x: s4f2, y: s8f6 ties_even sat, function: sigmoid}")
    x, error = filled((3, 4), slope.x, 1), filled((3, 4), Format(9), 2)
    to, recorder = Cast.parse("s8f5 ties_even sat"), Recorder(Backend())
    found = recorder.lookup_grad(PLACE, error, 7, x, slope, to)
    entries = [reference.lookup(code, slope) for code in x.ravel().tolist()]
    assert found.codes.ravel().tolist() == [
        reference.cast(e * entry, 13, to) for e, entry in zip(error.ravel().tolist(), entries,
                                                              strict=True)]
    assert [type(trace).__name__ for trace in recorder.traces] == ["MacTrace", "CastTrace"]
    recorder.lookup(PLACE.part("exp"), x, slope)
    assert recorder.tables == {"norm.x.exp": str(slope)}


@pytest.mark.parametrize("operation", ["adder2d", "adder2d_grad_input", "adder2d_grad_weight",
                                       "conv_transpose2d"])
def test_sums_that_no_unit_adds_are_refused_by_name(operation):
    with pytest.raises(ValueError, match=rf"^norm\.x: no RTL unit does {operation}; train it "
                                         "without recording"):
        getattr(Recorder(Backend()), operation)(PLACE, None, None, None, mac=None)


def test_a_manifest_says_what_became_of_the_loss(tmp_path):
    made = {}
    for loss in ("host", "table"):  # one step each
        given = recipe("digits-mlp-int8", training__epochs=1, training__batch=1440, monitor=0,
                       record_batch=1, loss=loss)
        lab.train(given, tmp_path / loss, record=tmp_path / f"{loss} step")
        manifest = read_manifest(tmp_path / f"{loss} step")
        made[loss] = manifest.about["made"]
        assert ("quantizer/loss.x.hex" in {file.name for file in manifest.files}) == (
            loss == "table")
    assert made["host"] == {"loss": "cross-entropy on the host, in float64"}
    assert made["table"].keys() == {"loss.forward", "loss.log"}


@pytest.mark.parametrize("spec", [SPEC, BY_PRODUCT], ids=["quotient", "reciprocal"])
def test_the_verilog_makes_the_same(spec):
    case = (3, 2, 2), 5, True
    assert step(RtlBackend(), spec, *case) == defined(spec, *case)
