"""`emu train` with learned thresholds: float first, calibrated, retrained, resumed."""

import json
from dataclasses import replace

import pytest
import torch
import yaml

from emu import nn
from emu.golden import read_manifest
from emu.lab.data import Images
from emu.lab.recipe import RECIPES, Recipe
from emu.lab.train import float_accuracy, train


def recipe(**changes) -> Recipe:
    """The shipped one, small: a linear layer of digits."""
    items = yaml.safe_load((RECIPES / "tqt-int8.yaml").read_text())
    items["network"] = {"flatten": "Flatten", "fc1": {"Linear": {"out_features": 12}},
                        "relu": "ReLU", "fc2": {"Linear": {"out_features": 10}}}
    items["hardware"] = {"default": items["hardware"]["default"]}
    items["training"] = {"epochs": 2, "batch": 64, "lr": 0.015625, "momentum": 0.875}
    items["thresholds"] |= {"pretrain": {"epochs": 3, "batch": 64, "lr": 0.0625,
                                         "momentum": 0.875}, "freeze": 1, "batches": 2,
                            "acti": "max"}
    items["monitor"] = 0
    return Recipe.parse({**items, **changes})


def test_thresholds_are_learned_then_stay_and_a_run_resumes_to_the_same_bytes(tmp_path):
    whole = train(recipe(), tmp_path / "whole", record=tmp_path / "step")
    assert whole.metrics[-1]["test_accuracy"] > float_accuracy(recipe()) - 0.05
    short = recipe(training=vars(recipe().training) | {"epochs": 1})
    first = train(short, tmp_path / "stopped")
    train(recipe(), tmp_path / "stopped", resume=True)
    files = [(tmp_path / name / "weights.safetensors").read_bytes()
             for name in ("whole", "stopped")]
    assert files[0] == files[1]
    learned = [{key: value for key, value in state["model"].items() if key.endswith("_log2_t")}
               for state in (torch.load(tmp_path / name / "checkpoint.pt")["state"]
                             for name in ("whole", "stopped"))]
    assert str(learned[0]) == str(learned[1]) and len(learned[0]) == 6
    assert not any(value.isnan() for value in learned[0].values())
    assert first.epochs == 1
    step = read_manifest(tmp_path / "step")
    assert {"quantizer/fc1.x.hex", "quantizer/fc1.w.hex", "quantizer/fc1.b.hex",
            "mac/fc1.forward.hex"} <= {file.name for file in step.files}
    assert step.about["made"] == {"loss": "cross-entropy on the host, in float64",
                                  "thresholds": "log2_t by Adam on the host, in float"}


def test_the_first_weights_may_come_from_a_file(tmp_path):
    chosen = recipe()
    file = tmp_path / "float.pt"
    model = chosen.float_model((1, 8, 8), 10)
    torch.save(model.state_dict(), file)
    still = {"epochs": 1, "batch": 64, "lr": 0.0, "momentum": 0.875}
    given = replace(chosen.thresholds, pretrain=None, weights=str(file), lr=0.0)
    run = train(replace(recipe(training=still), thresholds=given), tmp_path / "run")
    state = torch.load(run.path / "checkpoint.pt")["state"]["model"]
    assert (state["fc1.weight"] - model.fc1.weight).abs().max() <= 2**-21  # the masters' grid
    torch.save({"other": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"fc1.weight is in the network alone"):
        train(replace(recipe(), thresholds=given), tmp_path / "other")
    (tmp_path / "no.pt").write_text("no")
    with pytest.raises(ValueError, match="no state of this network"):
        train(replace(recipe(), thresholds=replace(given, weights=str(tmp_path / "no.pt"))),
              tmp_path / "third")


@pytest.mark.parametrize(("changes", "message"), [
    ({"acti": "entro"}, "did you mean 'entropy'"),
    ({"batches": 0}, "thresholds.batches 0"),
    ({"weights": "x.pt"}, "two beginnings"),
    ({"rate": 1}, "unknown recipe thresholds key 'rate'"),
    ({"pretrain": {"epochs": 1}}, "recipe thresholds.pretrain: 'batch' is missing"),
])
def test_refused_recipes(changes, message):
    items = recipe().as_dict()
    with pytest.raises(ValueError, match=message):
        Recipe.parse({**items, "thresholds": items["thresholds"] | changes})


def test_a_recipe_that_learns_needs_hardware_that_does(tmp_path):
    hardware = {"default": dict(recipe().hardware["default"], x="u8f4 sat", w="s8f4 sat",
                                b="s16f8 sat")}
    with pytest.raises(ValueError, match="learns none"):
        train(recipe(hardware=hardware), tmp_path / "run")


@pytest.mark.parametrize("name", ["tqt-int8", "tqt-int8-lenet5", "resnet20-tqt-int8"])
def test_shipped_recipes_take_a_step(name):
    from emu.lab.train import Machine, _step

    chosen = Recipe.load(name)
    assert Recipe.parse(json.loads(json.dumps(chosen.as_dict()))) == chosen
    x = torch.arange(2 * 64).reshape(2, 1, 8, 8).double() % 16 / 16
    images = Images(x.numpy(), torch.tensor([1, 9]).numpy(), x.numpy(), None)
    machine = Machine.build(chosen, images)
    nn.calibrate(machine.model, [x])
    before = {key: p.item() for key, p in nn.thresholds(machine.model).items()}
    machine.model.train()
    for _ in range(2):
        _step(machine, x, torch.tensor([1, 9]))
    assert [id(p) for group in machine.thresholds.param_groups for p in group["params"]] == [
        id(p) for p in nn.thresholds(machine.model).values()]  # those of additions too
    after = {key: p.item() for key, p in nn.thresholds(machine.model).items()}
    assert [key for key in before if before[key] != after[key]]
