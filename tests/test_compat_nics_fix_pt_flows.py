"""nics_fix_pt: the two flows of its examples, at a size that takes a second."""

import pytest
import torch
import yaml

import emu.compat.nics_fix_pt as nfp
from emu.compat.nics_fix_pt.examples import cifar, mnist


@pytest.mark.parametrize("more", [[], ["--mac", "{acc: s16 sat}"]])
def test_A31_auto_train_fixed_test_dump_float_test_reload(tmp_path, capsys, more):
    config, state = tmp_path / "runs" / "fix.yaml", tmp_path / "state.pt"
    rows = mnist.main(["--config", str(config), "--save", str(state), "--epochs", "4", "--hidden",
                       "24", "--bitwidth", "6", "--momentum", ".9", *more])
    said = capsys.readouterr().out
    assert rows["fixed"] == rows["reloaded"] > 75 and rows["float"] > 75
    assert "epoch 4: 1437/1437 images" in said and "reloaded" in said
    kept = yaml.safe_load(config.read_text())
    assert 0 < kept["data"]["fc1"]["bias"]["scale"] < 1 and kept["data"]["fc1"]["bias"][
        "method"] == nfp.FIX_FIXED
    assert kept["grad"]["fc2"]["weight"]["bitwidth"] == 8
    weight = torch.load(state)["fc1.weight"]
    assert len(weight.unique()) <= 65
    assert (more != []) == ("clipped" in said)


def test_A31_in_float(tmp_path):
    rows = mnist.main(["--float", "--epochs", "2", "--limit", "300", "--config",
                       str(tmp_path / "none.yaml")])
    assert [*rows] == ["float"] and not [*tmp_path.iterdir()]


def test_A31_what_is_missing(tmp_path):
    with pytest.raises(SystemExit, match="has no train-images-idx3-ubyte"):
        mnist.main(["--data", f"mnist:{tmp_path}"])


TINY = ["--width", "2", "--limit", "48", "--batch-size", "24", "--print-freq", "9"]


@pytest.mark.parametrize("more", [
    ["--fix-grad", "--range-method", "1", "--grad-range-method", "3"],
    ["--bn-policy", "evaluation", "--range-method", "3", "--bitwidth-data", "5"],
    ["--float-bn", "--range-method", "2"], ["--mac", "{acc: s24 sat}", "--fix-grad"]])
def test_A32_policies_and_ranges(tmp_path, more):
    rows = cifar.main(["--save-dir", str(tmp_path), "--epoch", "1", *TINY, *more])
    assert {*rows} == {"fixed", "float"}
    kept = yaml.safe_load((tmp_path / "fix_config.yaml").read_text())
    state = torch.load(tmp_path / "checkpoint.pt")["model"]
    first = kept["layers"]["0"]
    assert first["0"]["weight"]["scale"] > 0 and first["0"]["weight"]["method"] == nfp.FIX_FIXED
    assert ("layers.0.2.running_mean_fp_scale" in state) == ("--float-bn" not in more)
    if "evaluation" in more:
        assert first["2"]["running_mean"] == {"method": 1, "bitwidth": 5, "range_method": 3,
                                              "scale": first["2"]["running_mean"]["scale"]}
        assert float(state["layers.0.2.running_mean_fp_scale"]) == 0 < first["2"][
            "running_mean"]["scale"]
    names = [name for name in state if name.endswith("activation_fp_scale")]
    assert len(names) == 20
    assert all(state[name] > 0 for name in names)


def test_A32_a_resumed_run_is_the_run(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    cifar.main(["--save-dir", str(whole), "--epoch", "2", *TINY])
    cifar.main(["--save-dir", str(parts), "--epoch", "1", *TINY])
    rows = cifar.main(["--save-dir", str(parts), "--epoch", "2", "--resume", *TINY])
    first, second = (torch.load(place / "checkpoint.pt") for place in (whole, parts))
    assert all(torch.equal(first["model"][key], second["model"][key]) for key in first["model"])
    assert cifar.main(["--save-dir", str(parts), "--evaluate", *TINY]) == rows
    with pytest.raises(SystemExit, match="without --resume"):
        cifar.main(["--save-dir", str(tmp_path), "--resume", *TINY])
    assert not [*tmp_path.rglob("*.part")]
