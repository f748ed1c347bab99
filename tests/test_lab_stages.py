"""Two stages: what training in software hands over, and how training on hardware goes on."""

import copy
import io

import pytest
import torch
import yaml
from typer.testing import CliRunner

from emu import BufferSpec, nn
from emu.cli import app
from emu.lab import stages
from emu.lab import train as lab
from emu.lab.data import load
from emu.lab.recipe import RECIPES, Recipe
from emu.lab.run import WEIGHTS

SMALL = {"flatten": "Flatten", "fc1": {"Linear": {"out_features": 24}}, "relu": "ReLU",
         "fc2": {"Linear": {"out_features": 10}}}


def recipe(name, **changes):
    """A shipped recipe with a small network."""
    items = copy.deepcopy(yaml.safe_load((RECIPES / f"{name}.yaml").read_text()))
    items["network"], items["hardware"]["by_name"] = SMALL, {"fc1": {"x": "u8f7 ties_even sat"}}
    items["training"]["epochs"] = 2
    for key, value in changes.items():
        items[key] = {**items[key], **value} if isinstance(value, dict) else value
    return Recipe.parse(items)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of the first stage."""
    return lab.train(recipe("digits-tsdh"), tmp_path_factory.mktemp("first") / "digits-tsdh")


def second(first, **changes):
    return recipe("digits-thdh", start=str(first.path), **changes)


def test_the_second_stage_goes_on_from_the_first(first, tmp_path):
    chosen = second(first, training={"epochs": 3})
    machine = lab.Machine.build(chosen, load("digits"))
    before = lab._accuracy(machine.model, *load("digits")[2:])
    assert abs(before - first.metrics[-1]["test_accuracy"]) <= 0.02  # weights of 8 bits for 32
    run = lab.train(chosen, tmp_path / "run")
    assert run.metrics[-1]["test_accuracy"] >= before + 0.02
    assert run.metrics[-1]["loss"] < first.metrics[-1]["loss"]


def test_the_second_stage_has_fixed_formats_and_buffers_only(first):
    machine = lab.Machine.build(second(first), load("digits"))
    for layer in (nn.layers(machine.model)[name] for name in ("fc1", "fc2")):
        assert isinstance(layer.spec.update, BufferSpec) and not layer.hardware.float_backward
        before = dict(layer.fracs)
        assert set(before) >= {"w", "b", "error", "grad_w", "grad_b"}
    x, y = torch.from_numpy(load("digits").train_x[:32]), load("digits").train_y[:32]
    lab._step(machine, x, torch.from_numpy(y))
    assert layer.fracs == before  # no binary point moves


@pytest.mark.parametrize("ranges", ["min", "max"])
def test_buffers_follow_from_the_ranges_that_were_measured(first, ranges):
    software = stages.Software(100, 24, 2.0**-5, ranges)
    chosen, images = recipe("digits-tsdh"), load("digits")
    machine = lab.Machine.build(chosen, images)
    machine.load(first.state())
    files = stages.hand_over(machine.model, machine.ranges, software)
    entries = yaml.safe_load(files[stages.STRATEGY])["by_name"]
    assert list(entries) == ["fc1", "fc2"]
    points = torch.load(io.BytesIO(files[stages.START]))["points"]
    for site in entries:
        (_, error), grads = machine.ranges[f"{site}.error"], machine.ranges[f"{site}.grad_w"]
        assert points[site]["error"] == 7 - error
        assert points[site]["grad_w"] == 7 - grads[ranges == "max"]
    for site, (entry,) in entries.items():
        least, largest = machine.ranges[f"{site}.grad_w"]
        assert least < largest
        spec = BufferSpec.parse(entry["update"])
        weight = nn.layers(machine.model)[site].fracs["w"]
        need = 5 - weight
        buffer = max(need, least - 7 + 23 if ranges == "min" else largest)
        grad = 7 - (least if ranges == "min" else largest)
        assert spec.weight.format.frac == weight
        assert spec.buffer.format.frac == 23 - buffer
        assert spec.grad.format.frac == min(grad, 23 - buffer)


def test_only_the_last_iterations_are_measured(first, tmp_path):
    longer = recipe("digits-tsdh", software={"iterations": 1})
    run = lab.train(longer, tmp_path / "run")
    ranges = run.state()["ranges"]
    assert all(least == largest for least, largest in ranges.values())
    whole = first.state()["ranges"]
    assert set(ranges) == set(whole) == {f"fc{i}.{name}" for i in (1, 2)
                                         for name in stages.GRADIENTS}
    assert all(whole[key][0] <= least <= whole[key][1] for key, (least, _) in ranges.items())


def test_stages_that_were_stopped_and_resumed_give_the_same(first, tmp_path):
    lab.train(recipe("digits-tsdh", training={"epochs": 1}), tmp_path / "digits-tsdh")
    resumed = lab.train(recipe("digits-tsdh"), tmp_path / "digits-tsdh", resume=True)
    for name in (stages.STRATEGY, WEIGHTS):
        assert (resumed.path / name).read_bytes() == (first.path / name).read_bytes()
    lab.train(second(resumed, training={"epochs": 1}), tmp_path / "two")
    two = lab.train(second(resumed), tmp_path / "two", resume=True)
    whole = lab.train(second(resumed), tmp_path / "whole")
    assert (two.path / WEIGHTS).read_bytes() == (whole.path / WEIGHTS).read_bytes()


def test_a_missing_first_stage_is_named_with_its_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"start runs/digits-tsdh: has no strategy.yaml; run the "
                                         "first stage before, with: emu train digits-tsdh"):
        lab.train(recipe("digits-thdh"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    done = CliRunner().invoke(app, ["train", "digits-thdh", "--start", "elsewhere"])
    assert "start elsewhere: has no strategy.yaml" in str(done.exception)


def test_a_start_of_another_network_is_refused(first, tmp_path):
    other = second(first, network={**SMALL, "fc1": {"Linear": {"out_features": 23}}})
    with pytest.raises(ValueError, match=r"start.pt: has no parameters of this network .*fc2"):
        lab.train(other, tmp_path / "run")


@pytest.mark.parametrize(("software", "message"), [
    ({"iterations": 0}, "software.iterations 0: needs a whole number from 1"),
    ({"buffer": 62}, "software.buffer 62: needs a whole number from 2 to 61"),
    ({"lr": 0.05}, "software.lr 0.05: a gradient buffer shifts; use a power of two"),
    ({"ranges": "mean"}, "software.ranges 'mean': write min or max"),
    ({"steps": 1}, "unknown recipe software key 'steps'"),
])
def test_a_wrong_first_stage_is_refused(software, message):
    with pytest.raises(ValueError, match=message):
        recipe("digits-tsdh", software=software)


def test_gradients_without_a_rule_give_no_buffers(tmp_path):
    default = yaml.safe_load((RECIPES / "digits-tsdh.yaml").read_text())["hardware"]["default"]
    chosen = recipe("digits-tsdh", hardware={"default": {**default, "grad_w": "none"}},
                    training={"epochs": 1})
    with pytest.raises(ValueError, match=r"layer 'fc1': its w is s8 .* and its grad_w None, from"):
        lab.train(chosen, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_buffer_that_feeds_no_weight_is_refused(first):
    machine = lab.Machine.build(recipe("digits-tsdh"), load("digits"))
    machine.load(first.state())
    with pytest.raises(ValueError, match=r"layer 'fc1': gradients of the ranges .*shift .*buffer"):
        stages.hand_over(machine.model, machine.ranges, stages.Software(9, 3, 16.0))
