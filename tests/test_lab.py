"""Training on real digits: accuracy, telemetry, reproducible bytes, resume, records, bad input."""

import copy
import gzip
import io
import json
import re
import struct

import numba
import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

from emu import nn
from emu.engine.kernels import jit
from emu.lab import run as run_module
from emu.lab import train as lab
from emu.lab.data import load
from emu.lab.diff import diff_runs
from emu.lab.recipe import RECIPES, Recipe
from emu.lab.run import METRICS, MONITOR, WEIGHTS

PASSES = ("forward", "grad_input", "grad_weight")


def recipe(name="digits-mlp-int8", **changes):
    """A shipped recipe with some entries changed, named by their path joined with `__`."""
    items = copy.deepcopy(yaml.safe_load((RECIPES / f"{name}.yaml").read_text()))
    for path, value in changes.items():
        *parents, key = path.split("__")
        place = items
        for parent in parents:
            place = place[parent]
        place[key] = value
    return Recipe.parse(items)


def short(**changes):
    return recipe(training__epochs=2, **changes)


def lab_bytes(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def weights(run):
    return (run.path / WEIGHTS).read_bytes()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Both shipped recipes, trained to the end."""
    return {name: lab.train(recipe(name), tmp_path_factory.mktemp("run") / name)
            for name in ("digits-mlp-int8", "digits-cnn-int8")}


@pytest.mark.parametrize(("name", "least"),
                         [("digits-mlp-int8", 0.955), ("digits-cnn-int8", 0.975)])
def test_recipe_reaches_its_accuracy(trained, name, least):
    assert trained[name].metrics[-1]["test_accuracy"] >= least


@pytest.mark.parametrize("name", ["digits-mlp-int8", "digits-cnn-int8"])
def test_recipe_is_close_to_its_float_twin(trained, name):
    # The one tolerance: a float model against a fixed one, 1.5 points.
    twin = lab.float_accuracy(recipe(name))
    assert abs(twin - trained[name].metrics[-1]["test_accuracy"]) <= 0.015


@pytest.mark.parametrize("name", ["digits-mlp-int8", "digits-cnn-int8"])
def test_additions_saturate_in_every_pass(trained, name):
    saturated = dict.fromkeys(PASSES, 0)
    for line in trained[name].metrics:
        for place, counts in line["counts"].items():
            if place.split(".")[1] in PASSES:
                saturated[place.split(".")[1]] += counts["overflowing_steps"]
    assert all(saturated.values()), saturated


def test_run_folder_is_complete(trained):
    run = trained["digits-mlp-int8"]
    assert {path.name for path in run.path.iterdir()} == {
        "config.yaml", METRICS, MONITOR, WEIGHTS, "curves.png", "checkpoint.pt"}
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert config["layers"]["fc1"]["forward"] == "{a: u8f0, b: s8f0, acc: s17f0 to_neg sat}"
    assert len((run.path / METRICS).read_text().splitlines()) == 30
    assert (run.path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_weights_are_integers_with_their_formats(trained):
    with safe_open(trained["digits-mlp-int8"].path / WEIGHTS, "np") as file:
        formats = json.loads(file.metadata()["formats"])
        assert {name: (str(file.get_tensor(name).dtype), form) for name, form in formats.items()
                if name.startswith("fc1")} == {
            "fc1.weight": ("int32", "s24f20"), "fc1.w": ("int8", "s8f7"),
            "fc1.bias": ("int32", "s24f20"), "fc1.b": ("int16", "s16f10")}


def test_two_runs_write_the_same_bytes(tmp_path):
    one, two = (lab.train(short(), tmp_path / name) for name in "ab")
    assert weights(one) == weights(two)
    assert (one.path / METRICS).read_bytes() == (two.path / METRICS).read_bytes()
    assert diff_runs(one.path, two.path) == []


@pytest.mark.parametrize("name", ["digits-mlp-int8", "digits-cnn-int8"])
def test_one_and_two_threads_write_the_same_bytes(name, tmp_path, monkeypatch):
    monkeypatch.setattr(jit, "TEAM", 0)  # else most of these arrays run on one thread anyway
    runs, before = [], (numba.get_num_threads(), torch.get_num_threads())
    try:
        for threads in (1, 2):
            numba.set_num_threads(threads)
            torch.set_num_threads(threads)
            runs.append(lab.train(recipe(name, training__epochs=1), tmp_path / str(threads)))
    finally:
        numba.set_num_threads(before[0])
        torch.set_num_threads(before[1])
    assert weights(runs[0]) == weights(runs[1])


def test_a_32_bit_accumulator_learns_other_weights(tmp_path):
    wide = {f"hardware__default__{name}": {"acc": "s32 sat"} for name in PASSES}
    narrow = lab.train(short(), tmp_path / "narrow")
    exact = lab.train(short(**wide), tmp_path / "wide")
    assert weights(narrow) != weights(exact)
    assert not any(counts.get("overflowing_steps") for line in exact.metrics
                   for counts in line["counts"].values())


def test_resume_continues_bit_for_bit(tmp_path):
    straight = lab.train(recipe(training__epochs=3), tmp_path / "straight")
    lab.train(recipe(training__epochs=1), tmp_path / "stopped")
    resumed = lab.train(recipe(training__epochs=3), tmp_path / "stopped", resume=True)
    assert diff_runs(straight.path, resumed.path) == []
    assert weights(straight) == weights(resumed)


@pytest.mark.parametrize("file", ["metrics.jsonl", "checkpoint.pt"])
def test_a_run_stopped_while_it_writes_resumes_bit_for_bit(file, tmp_path, monkeypatch):
    straight = lab.train(recipe(training__epochs=3), tmp_path / "straight")
    written = run_module.write

    def stop(path, content):
        if path.name == file and b'"epoch": 2' in content + b'"epoch": 2' * (file[0] == "c"):
            raise KeyboardInterrupt
        written(path, content)

    monkeypatch.setattr(run_module, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        lab.train(recipe(training__epochs=3), tmp_path / "stopped")
    monkeypatch.undo()
    resumed = lab.train(recipe(training__epochs=3), tmp_path / "stopped", resume=True)
    assert diff_runs(straight.path, resumed.path) == []
    assert not list((tmp_path / "stopped").glob("*.tmp"))


def test_resuming_a_finished_run_changes_no_byte(tmp_path):
    stochastic = {"hardware__default__w": "s8 auto:max stochastic8 sat"}
    before = weights(lab.train(short(**stochastic), tmp_path / "run"))
    assert weights(lab.train(short(**stochastic), tmp_path / "run", resume=True)) == before


def test_fewer_epochs_than_there_are_cannot_be_resumed(tmp_path):
    lab.train(short(), tmp_path / "run")
    with pytest.raises(ValueError, match="has 2 epochs already, not 1"):
        lab.train(recipe(training__epochs=1), tmp_path / "run", resume=True)


@pytest.mark.parametrize("file", ["config.yaml", "checkpoint.pt"])
def test_a_damaged_run_is_refused(file, tmp_path):
    lab.train(short(), tmp_path / "run")
    (tmp_path / "run" / file).write_bytes(b"\x80 {")
    with pytest.raises(ValueError, match="is damaged"):
        lab.train(short(), tmp_path / "run", resume=True)


def test_a_damaged_weight_file_is_refused_by_diff(tmp_path):
    run = lab.train(short(), tmp_path / "run")
    lab.train(short(), tmp_path / "other")
    (run.path / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged"):
        diff_runs(run.path, tmp_path / "other")


def test_momentum_beyond_float32_survives_a_checkpoint(tmp_path):
    update = {"hardware__default__update__momentum": "s32f20 ties_even sat"}
    chosen = short(**update)
    images = load("digits")
    machine = lab.Machine.build(chosen, images)
    lab._step(machine, torch.from_numpy(images.train_x[:8]), torch.from_numpy(images.train_y[:8]))
    first = next(iter(machine.optimizer.state.values()))
    first["momentum"].view(-1)[0] = 2**24 + 1
    torch.save(machine.state(), tmp_path / "state.pt")
    fresh = lab.Machine.build(chosen, images)
    fresh.load(torch.load(tmp_path / "state.pt", weights_only=True))
    momentum = next(iter(fresh.optimizer.state.values()))["momentum"]
    assert momentum.dtype == torch.int32
    assert momentum.view(-1)[0] == 2**24 + 1


def test_evaluation_changes_nothing(tmp_path):
    stochastic = {"hardware__default__w": "s8 auto:max stochastic8 sat",
                  "hardware__default__x": "u8 auto:max stochastic8 sat"}
    chosen, images = short(**stochastic), load("digits")
    machine = lab.Machine.build(chosen, images)
    batch = torch.from_numpy(images.train_x[:8]), torch.from_numpy(images.train_y[:8])
    lab._step(machine, *batch)
    before = copy.deepcopy(machine.state())
    first, second = (lab._accuracy(machine.model, images.test_x, images.test_y) for _ in range(2))
    assert first == second
    assert lab_bytes(machine.state()) == lab_bytes(before)


def test_diff_names_the_first_different_weight(tmp_path):
    one, two = lab.train(short(), tmp_path / "a"), lab.train(short(seed=2), tmp_path / "b")
    lines = diff_runs(one.path, two.path, limit=10**6)
    assert re.fullmatch(r"config.yaml:\d+  seed: 1 \| seed: 2", lines[0])
    with safe_open(one.path / WEIGHTS, "np") as a, safe_open(two.path / WEIGHTS, "np") as b:
        left, right = a.get_tensor("fc1.weight"), b.get_tensor("fc1.weight")
    y, x = (int(i) for i in np.argwhere(left != right)[0])
    want = f"fc1.weight[{y}, {x}]  code {left[y, x]} | {right[y, x]}  (s24f20)"
    assert next(line for line in lines if line.startswith("fc1.weight[")) == want
    few = diff_runs(one.path, two.path)
    assert few == [*lines[:20], f"... and {len(lines) - 20} more, {len(lines)} differences in all"]


@pytest.fixture
def mnist(tmp_path):
    """A folder of four IDX files: two gzipped, two not."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = rng.integers(0, 10, count, np.uint8)
        for stem, array in ((f"{part}-images-idx3", images), (f"{part}-labels-idx1", labels)):
            raw = (bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
                   + array.tobytes())
            if part == "train":
                (tmp_path / f"{stem}-ubyte.gz").write_bytes(gzip.compress(raw))
            else:
                (tmp_path / f"{stem}-ubyte").write_bytes(raw)
    return tmp_path


def test_mnist_folder_trains(mnist, tmp_path):
    run = lab.train(short(data=f"mnist:{mnist}"), tmp_path / "run")
    assert run.metrics[-1]["epoch"] == 2


def test_mnist_pixels_are_on_the_grid(mnist):
    images = load(f"mnist:{mnist}")
    assert images.train_x.shape == (40, 1, 28, 28)
    assert np.array_equal(images.train_x * 256, np.round(images.train_x * 256))


def test_test_digits_are_shuffled_and_apart():
    images = load("digits")
    assert (len(images.train_x), len(images.test_x)) == (1437, 360)
    assert np.bincount(images.test_y, minlength=10).min() >= 25


@pytest.mark.parametrize(("source", "message"), [
    ("cifar", "data 'cifar': write digits, patches, lookup, or mnist:DIR"),
    ("mnist:/nowhere", "data folder /nowhere: does not exist"),
])
def test_unknown_data_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        load(source)


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda folder: (folder / "t10k-labels-idx1-ubyte").unlink(), "has no t10k-labels"),
    (lambda folder: (folder / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x14abc"),
     "3 bytes of data for shape .20,.; it is truncated"),
    (lambda folder: (folder / "t10k-labels-idx1-ubyte").write_bytes(b"P5 28 28"), "no IDX file"),
    (lambda folder: (folder / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip"), "gzip"),
    (lambda folder: (folder / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0"),
     "5 bytes end in its header"),
    (lambda folder: (folder / "train-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(b"x" * 99)[:10] + b"\xff" * 40), "train-images-idx3-ubyte.gz: "),
])
def test_malformed_mnist_is_refused(mnist, spoil, message):
    spoil(mnist)
    with pytest.raises(ValueError, match=message):
        load(f"mnist:{mnist}")


@pytest.mark.parametrize(("changes", "message"), [
    ({"trainin": {}}, "unknown recipe key 'trainin': did you mean 'training'"),
    ({"training__epoch": 3}, "unknown recipe training key 'epoch': did you mean 'epochs'"),
    ({"training__epochs": 0}, "training.epochs 0: needs a whole number"),
    ({"training__milestones": ["a"]}, "training.milestones .'a'.: needs a list of epochs"),
    ({"network": 5}, "network 5: needs a mapping"),
    ({"training__lr": "fast"}, "training.lr 'fast': needs a number"),
    ({"seed": -1}, "seed -1: needs a whole number"),
])
def test_bad_recipe_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        recipe(**changes)


@pytest.mark.parametrize(("changes", "message"), [
    ({"network__relu1": "Relu"}, "unknown module of network.relu1 'Relu': did you mean 'ReLU'"),
    ({"network__fc2": {"Linear": {"out": 3}}}, "network.fc2"),
    ({"network__fc2": {}}, "network 'fc2': .*: write NAME: MODULE"),
    ({"network__fc2": {"ReLU": {}, "Flatten": {}}}, "network 'fc2': .*: write NAME: MODULE"),
    ({"network__a.b": "ReLU"}, "without a dot in the name"),
    ({"network__flatten": {"Flatten": {"start_dim": 7}}}, "network.flatten"),
    ({"network__fc2": {"Linear": {"out_features": 1}}}, "the logits have classes 0 to 0"),
    ({"data": 5}, "data 5: write digits"),
    ({"hardware__default__grad_input": None}, "layer 'fc2': has no grad_input"),
    ({"hardware__default__errr": "s8"}, "config default.errr: .*did you mean 'error'"),
    ({"hardware__by_name": {"fc9": {}}}, "by_name.fc9: matches no module"),
    ({"hardware__default__w": "s8f6 ties_evn"}, "config default.w: .*did you mean 'ties_even'"),
    ({"hardware__default__forward": {"acc": "s63"}}, "layer 'fc1' .*default.forward: acc s63f0"),
])
def test_recipe_that_cannot_be_built_leaves_no_folder(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        lab.train(short(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_run_folder_is_not_overwritten(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="exists already; --resume continues it"):
        lab.train(short(), tmp_path)


def test_run_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ValueError, match="cannot be written"):
        lab.train(short(), tmp_path / "file" / "run")


def test_resume_refuses_another_recipe(tmp_path):
    lab.train(short(), tmp_path / "run")
    with pytest.raises(ValueError, match="was started with another seed"):
        lab.train(short(seed=5), tmp_path / "run", resume=True)


def test_whole_training_step_contains_no_float_sum():
    machine = lab.Machine.build(short(), images := load("digits"))
    with nn.audit(), pytest.raises(nn.FloatSum, match=r"aten\.sum"):
        machine.model(torch.from_numpy(images.train_x[:4])).sum()


@pytest.mark.parametrize(("changes", "message"), [
    ({}, "holds no whole vector set"),
    ({"hardware__default__forward": {"acc": "s30 sat", "lanes": 2048}},
     r"mac\.v takes at most 1024 products a step"),
])
def test_a_record_that_cannot_be_written_is_refused_before_training(changes, message, tmp_path):
    (tmp_path / "step").mkdir()
    if not changes:
        (tmp_path / "step" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=message):
        lab.train(short(**changes), tmp_path / "run", record=tmp_path / "step")
    assert not (tmp_path / "run").exists()
