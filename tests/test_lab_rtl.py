"""Training in the compiled Verilog, and recorded steps through it: the same bits as the engine."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from test_cosim import flip_bit
from test_lab import recipe

from emu import cosim, engine
from emu.cosim import engines, hardware, replay_arrays
from emu.cosim.places import rtl_sources
from emu.golden import read_manifest
from emu.kind import ClosedCast
from emu.lab import train as lab
from emu.lab.parts import Parts
from emu.lab.rtl import RtlBackend
from emu.lab.run import WEIGHTS
from emu.nn.backend import Backend, Place
from emu.number import Format
from emu.rule import parse_cast
from emu.spec import MacSpec
from emu.update import UpdateSpec

PLACE = Place("fc", "x", True)
UPDATE = ("{weight: s16f12 stochastic8 sat, momentum: s16f10 ties_even sat, grad: s12f12 sat, "
          "lr: u8f8 sat, mu: u8f8 sat, decay: u4f10 sat, nesterov: s16f10 sat}")


NETWORK = {"conv1": {"Conv2d": {"out_channels": 3, "kernel_size": 3}}, "relu1": "ReLU",
           "pool2": {"AvgPool2d": {"kernel_size": 2}}, "flatten": "Flatten",
           "fc": {"Linear": {"out_features": 10}}}


def tiny():
    """Two steps of a small convolutional net, and a step of two images to record."""
    return recipe("digits-cnn-int8", training__epochs=1, training__batch=720, record_batch=2,
                  monitor=0, network=NETWORK)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What the engine made of it: (weights, the recorded step)."""
    folder = tmp_path_factory.mktemp("engine")
    run = lab.train(tiny(), folder / "run", record=folder / "step")
    return (run.path / WEIGHTS).read_bytes(), folder / "step"


def wageubn():
    """The same under WAGEUBN, with batch norm and the loss by tables: in integers throughout."""
    network = {"conv1": {"Conv2d": {"out_channels": 3, "kernel_size": 3, "bias": False}},
               "norm1": "BatchNorm2d", "relu1": "ReLU", "act1": "Activation",
               "flatten": "Flatten", "fc": {"Linear": {"out_features": 10}}}
    return recipe("digits-cnn-wageubn-full8", training__epochs=1, training__batch=720,
                  record_batch=2, monitor=0, network=network)


def test_a_wageubn_step_is_recorded_and_passes_through_the_verilog(tmp_path):
    run = lab.train(wageubn(), tmp_path / "engine", record=tmp_path / "step")
    files = read_manifest(tmp_path / "step").files
    by_unit = {unit: [file for file in files if file.unit == unit] for unit in (
        "mac", "quantizer", "lfsr", "flag_quantizer", "sgd_update")}
    assert {file.name for file in by_unit["flag_quantizer"]} >= {
        "flag_quantizer/conv1.error.hex", "flag_quantizer/fc.error.hex"}
    assert {file.name for file in by_unit["sgd_update"]} == {
        f"sgd_update/{layer}.update.{name}.hex" for layer in ("conv1", "norm1", "fc")
        for name in ("weight", "bias") if (layer, name) != ("conv1", "bias")}
    assert {file.name for file in by_unit["mac"]} >= {f"mac/norm1.{name}.hex" for name in (
        "forward.sum", "forward.squares", "forward.centred", "forward.y", "running.mean",
        "grad_input.sum", "grad_input.products", "grad_input.inner", "grad_input.grad_x")}
    assert {file.made["value_i"] for file in files if file.made} == {
        "sum / n", "(n * squares - sum^2) / n^2", "(n * squares - sum^2) / (n^2 - n)",
        "sqrt(var + eps_var)", "(x - mean) / divisor", "gamma / divisor",
        "old + momentum * (new - old): 69 bits, and mac.v adds 62", "sum / area"}
    assert all(file.parameters["EXACT"] for file in by_unit["sgd_update"])
    assert "lfsr/conv1.grad_w.hex" in {file.name for file in by_unit["lfsr"]}
    coarse = {line[3][0] for file in by_unit["flag_quantizer"] for line in file.lines()}
    assert coarse == {"0", "1"}  # both sizes of errors are there
    wrong = {"flag_quantizer/fc.error": 4, "sgd_update/fc.update.weight": 7,
             "mac/norm1.forward.y": 6, "quantizer/norm1.forward.xhat": 3}
    for name, column in wrong.items():
        flip_bit(tmp_path / "step", f"{name}.hex", 5, column)
    report = replay_arrays(tmp_path / "step", "cxxrtl")
    assert {file.unit for file in report.files} == set(by_unit)
    found = [file for file in report.files if file.mismatches]
    assert {file.name.split(".hex")[0] for file in found} == set(wrong), report.differences
    assert all(file.mismatches == 1 and ".hex:5  " in file.lines[0] for file in found)
    mine = lab.train(wageubn(), tmp_path / "rtl", computes=RtlBackend)
    assert (mine.path / WEIGHTS).read_bytes() == (run.path / WEIGHTS).read_bytes()


def weights(folder):
    run = lab.train(tiny(), folder, computes=RtlBackend)
    return (run.path / WEIGHTS).read_bytes()


def test_training_in_the_verilog_gives_the_same_bytes(trained, tmp_path, monkeypatch):
    called = set()
    spied = cosim.run

    def spy(unit, *rest):
        called.add(unit)
        return spied(unit, *rest)

    monkeypatch.setattr(cosim, "run", spy)
    monkeypatch.setattr("emu.cosim.tiles.run", spy)
    for operation in ("cast", "matmul", "conv2d", "conv2d_grad_input", "conv2d_grad_weight", "sgd",
                      "_draw"):
        monkeypatch.setattr(Backend, operation, None)  # so the engine is not asked
    assert weights(tmp_path / "rtl") == trained[0]
    assert called == {"lfsr", "mac_array", "quantizer", "sgd_update"}


def test_another_lfsr_gives_other_bytes(trained, tmp_path, monkeypatch):
    text = (hardware() / "rtl" / "lfsr.v").read_text()
    assert "32'h80200003" in text
    (tmp_path / "lfsr.v").write_text(text.replace("32'h80200003", "32'ha3000000"))
    monkeypatch.setattr(engines, "rtl_sources", lambda rtl, unit: rtl_sources(
        [tmp_path / "lfsr.v"], unit))
    assert weights(tmp_path / "rtl") != trained[0]


def test_a_recorded_step_passes_through_array_and_quantizer(trained):
    files = read_manifest(trained[1]).files
    report = replay_arrays(trained[1], "cxxrtl", seed=3)
    assert report.ok, report.differences
    arrays = [file for file in report.files if file.name.endswith(" in mac_array")]
    sampled = [file for file in report.files if file.name.endswith("a sample in icarus, seed 3")]
    assert {file.name.split(".hex")[0] for file in arrays} >= {
        f"mac/{layer}.{part}" for layer in ("conv1", "fc")
        for part in ("forward", "grad_weight", "grad_bias")}
    assert len(sampled) == len(files) and all(file.cases for file in report.files)
    for file in arrays:  # every sum, whole
        loads = sum(line[0] == "1" for line in next(
            f for f in files if file.name.startswith(f.name)).lines())
        assert file.cases == loads


def test_one_wrong_sum_of_a_step_is_found_in_mac_and_array(trained, tmp_path):
    copy = Path(shutil.copytree(trained[1], tmp_path / "step"))
    name = "mac/conv1.forward.hex"
    file, = [file for file in read_manifest(copy).files if file.name == name]
    line = 1 + next(i for i, fields in enumerate(file.lines()) if fields[1] == "1")
    flip_bit(copy, name, line, 6)
    report = replay_arrays(copy, "cxxrtl")
    assert [file.name for file in report.files if file.mismatches][:2] == [
        name, f"{name} in mac_array"]
    assert all(text.startswith(f"{name}:{line}  load_i=0 last_i=1 ")
               for text in report.differences)


def test_casts_are_the_engines_at_every_shift():
    rng = np.random.default_rng(1)
    for text, dtype, fracs in (("s8f0 ties_even sat", np.int16, (-70, -8, 0, 5, 40)),
                               ("s9f0 stochastic16 wrap", np.int64, (-300, -1, 64, 300)),
                               ("flag s8f0 ties_even sat_sym", np.int16, (-70, 3, 9, 14, 40)),
                               ("flag s5f2 stochastic16 sat", np.int64, (-300, 8, 12, 300))):
        to = parse_cast(text)
        mine, theirs = RtlBackend(3), Backend(3)
        for frac in fracs:
            codes = rng.integers(-1 << 15, 1 << 15, (5, 7)).astype(dtype)
            form = Format(16, frac)
            got, want = (backend.cast(PLACE, codes, form, to) for backend in (mine, theirs))
            assert got.codes.dtype == want.codes.dtype and got.outside == want.outside
            assert np.array_equal(got.codes, want.codes), (text, frac)
            assert np.array_equal(got.inside, want.inside)


def test_a_cast_that_no_module_does_is_refused():
    to = ClosedCast.parse("closed s8f7 ties_even sat")
    with pytest.raises(ValueError, match=r"closed s8f7 .*: no module of hw/rtl casts so"):
        RtlBackend().cast(PLACE, np.zeros(3, np.int16), Format(16, 9), to)


@pytest.mark.parametrize("text", [
    "{a: s4, b: s4, acc: s7 sat, lanes: 2, block: 2}",
    "{a: s4, b: s4, acc: s8 sat, tile: 3, outer: s8f-1 ties_even sat}"])
def test_products_are_the_engines(text):
    rng = np.random.default_rng(2)
    mac = MacSpec.parse(text)
    mine, theirs = RtlBackend(), Backend()

    def codes(*shape):
        return rng.integers(-8, 8, shape).astype(np.int8)

    def same(operation, *arguments, **geometry):
        got, want = (getattr(backend, operation)(PLACE, *arguments, **geometry)
                     for backend in (mine, theirs))
        assert got.dtype == want.dtype and np.array_equal(got, want), operation

    same("matmul", codes(9, 5), codes(5, 17), mac, rng.integers(-60, 60, 17))
    geometry = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}
    x, w = codes(2, 4, 7, 6), codes(6, 2, 3, 2)
    size = engine.conv2d(x, w, mac, **geometry).shape
    same("conv2d", x, w, mac, rng.integers(-60, 60, 6), **geometry)
    same("conv2d_grad_input", codes(*size), w, mac, (7, 6), **geometry)
    same("conv2d_grad_weight", x, codes(*size), mac, (3, 2), **geometry)


def test_updates_are_the_engines():
    spec, rng = UpdateSpec.parse(UPDATE), np.random.default_rng(4)
    weight, momentum, grad = (rng.integers(-1 << bits, 1 << bits, (4, 5)).astype(np.int16)
                              for bits in (15, 15, 11))
    got, want = (backend.sgd(PLACE, weight, momentum, grad, 77, 230, spec, 9)
                 for backend in (RtlBackend(5), Backend(5)))
    assert got[2:] == want[2:] and got.outside_weight > 0
    for mine, theirs in zip(got[:2], want[:2], strict=True):
        assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs)


@pytest.mark.parametrize("text", [
    "{weight: s24f23 sat, momentum: s13f12 ties_even sat, grad: s15f14, lr: u10f9, mu: u3f2, "
    "direction: s17f14}",
    "{weight: s16f12 stochastic8 sat, momentum: s14f10 stochastic5 sat, grad: s12f12, lr: u8f8, "
    "mu: u8f8}"])
def test_updates_in_one_unit_are_the_engines(text, monkeypatch):
    spec, rng = UpdateSpec.parse(text), np.random.default_rng(4)
    weight, momentum, grad = (rng.integers(form.lo, form.hi + 1, (4, 5)) for form in (
        spec.weight.format, spec.momentum.format, spec.grad.format))
    want = Backend(5).sgd(PLACE, weight, momentum, grad, spec.lr.format.hi, 3, spec)
    monkeypatch.setattr(RtlBackend, "_cast", None)  # one unit does it all
    got = RtlBackend(5).sgd(PLACE, weight, momentum, grad, spec.lr.format.hi, 3, spec)
    assert got[2:] == want[2:] and got.outside_weight + got.outside_momentum > 0
    for mine, theirs in zip(got[:2], want[:2], strict=True):
        assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs)


@pytest.mark.parametrize("operation", ["adder2d", "clip", "square_sum",
                                       "buffered_sgd", "conv_transpose2d"])
def test_what_no_module_does_is_refused(operation):
    with pytest.raises(ValueError, match=rf"^fc\.x: no module of hw/rtl does {operation}; train"):
        getattr(RtlBackend(), operation)(PLACE, None, spec=None)


def test_a_layer_that_no_module_computes_is_refused_by_its_name(tmp_path):
    network = {"conv1": {"Adder2d": {"out_channels": 3, "kernel_size": 3}}, "flatten": "Flatten",
               "fc": {"Linear": {"out_features": 10}}}
    rows = recipe("digits-cnn-int8", training__epochs=1, monitor=0, network=network)
    with pytest.raises(ValueError, match=r"^conv1\.forward: no module of hw/rtl does adder2d; "):
        lab.train(rows, tmp_path / "run", computes=RtlBackend)


def test_nothing_of_the_engine_is_inherited():
    public = {name for name, method in vars(Backend).items()
              if callable(method) and not name.startswith("_")}
    own = vars(RtlBackend).keys() | vars(Parts).keys()
    assert public - own == {"end_step", "loads", "quantize", "lookup", "softmax"}
