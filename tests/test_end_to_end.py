"""The main job: a trained network's whole step, recorded, passes through the Verilog."""

import dataclasses
import hashlib
import json
import shutil

import pytest

from emu import cosim, golden
from emu.lab import train as lab
from emu.lab.recipe import Recipe

NAMES = ("digits-mlp-int8", "digits-cnn-int8")


def one_epoch(name):
    recipe = Recipe.load(name)
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, epochs=1))


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """A step of each recipe, recorded after one epoch of training."""
    found = {}
    for name in NAMES:
        folder = tmp_path_factory.mktemp(name)
        lab.train(one_epoch(name), folder / "run", record=folder / "step")
        found[name] = folder / "step"
    return found


@pytest.mark.parametrize("name", NAMES)
def test_recorded_step_is_whole(steps, name):
    files = {file.name for file in golden.read_manifest(steps[name]).files}
    layers = {"digits-mlp-int8": ("fc1", "fc2"), "digits-cnn-int8": ("conv1", "conv2", "fc")}[name]
    for layer in layers:
        passes = ["forward", "grad_weight", "grad_bias"]
        if layer != layers[0]:
            passes.append("grad_input")
        assert {f"mac/{layer}.{p}.hex" for p in passes} <= files
        assert {f"quantizer/{layer}.{c}.hex"
                for c in ("x", "w", "b", "preload", "error", "grad_w", "grad_b")} <= files
        assert sum(f"{layer}.update.weight" in file for file in files) >= 4


@pytest.mark.parametrize("name", NAMES)
def test_recorded_step_passes_through_the_verilog(steps, name):
    report = cosim.replay(steps[name])
    assert report.ok, report.differences
    assert {file.unit for file in report.files} == {"mac", "quantizer", "lfsr", "sgd_update"}


@pytest.mark.parametrize("name", NAMES)
def test_recorded_step_meets_saturation(steps, name):
    overflowing = []
    for file in golden.read_manifest(steps[name]).files:
        if file.unit == "mac":
            at = [field.name for field in file.fields].index("ovf_o")
            overflowing += [file.name for line in file.lines() if line[at] != "0"][:1]
    assert overflowing


def test_recording_twice_writes_the_same_bytes(steps, tmp_path):
    lab.train(one_epoch("digits-mlp-int8"), tmp_path / "run", record=tmp_path / "step")
    assert golden.diff(steps["digits-mlp-int8"], tmp_path / "step") == []


def test_flipped_weight_bit_is_one_named_difference(steps, tmp_path):
    spoiled = tmp_path / "step"
    shutil.copytree(steps["digits-mlp-int8"], spoiled)
    path = spoiled / "quantizer" / "fc1.w.hex"
    lines = path.read_text().splitlines(keepends=True)
    fields = [f["name"] for f in next(
        entry for entry in json.loads((spoiled / "manifest.json").read_text())["files"]
        if entry["file"] == "quantizer/fc1.w.hex")["fields"]]
    parts = lines[40].rstrip("\n").split("_")
    at = fields.index("code_o")
    parts[at] = f"{int(parts[at], 16) ^ 1:0{len(parts[at])}x}"
    lines[40] = "_".join(parts) + "\n"
    path.write_text("".join(lines))
    manifest = json.loads((spoiled / "manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["file"] == "quantizer/fc1.w.hex":
            entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (spoiled / "manifest.json").write_text(json.dumps(manifest))
    report = cosim.replay(spoiled)
    assert report.mismatches == 1
    assert report.differences[0].startswith("quantizer/fc1.w.hex:41 ")
