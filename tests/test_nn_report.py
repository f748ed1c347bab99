"""The table of a model: every site, its formats, its multiply-accumulates, its exactness."""

import pytest
import torch
import torch.nn.functional as F
from fixed_layers import HARDWARE, UPDATE

from emu import nn

TRACED = {"default": {**HARDWARE, "update": UPDATE}}


def cnn(config=TRACED) -> torch.nn.Module:
    torch.manual_seed(0)
    return nn.fix(torch.nn.Sequential(
        torch.nn.Conv2d(4, 6, 3, groups=2, padding=1, stride=2), torch.nn.ReLU(),
        torch.nn.AvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(24, 3)), config)


class Attention(torch.nn.Module):
    """Two products of activations and a float core."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 4)

    def forward(self, x, scale):
        x = self.fc(x)
        return torch.matmul(torch.matmul(x, x.transpose(1, 2)), F.logsigmoid(x)) * scale


def rows(model, *args) -> dict[str, nn.Row]:
    return {row.path: row for row in nn.table(model, *args)}


def test_every_site_has_its_formats(capsys):
    found = rows(cnn())
    assert list(found) == ["0", "1", "2", "4"]
    assert [row.kind for row in found.values()] == ["Conv2d", "ReLU", "AvgPool2d", "Linear"]
    assert set(found["0"].formats) == {*HARDWARE, "update"}
    assert found["0"].formats["x"] == HARDWARE["x"]
    assert found["2"].formats == {"y": HARDWARE["y"], "error": HARDWARE["error"]}
    assert all(row.exact and row.macs is None for row in found.values())
    text = capsys.readouterr().out
    assert all(word in text for word in ("Sequential: 4 sites", "Conv2d", "grad_input", "yes"))


def test_macs_are_those_of_one_forward_pass():
    found = rows(cnn(), torch.randn(2, 4, 8, 8))
    assert {path: row.macs for path, row in found.items()} == {
        "0": 2 * 6 * 4 * 4 * (4 // 2) * 3 * 3, "1": 0, "2": 0, "4": 2 * 24 * 3}


def test_a_trace_finds_the_functions_and_the_float_cores(capsys):
    model = nn.fix(Attention(), {"default": HARDWARE})
    found = rows(model, (torch.randn(5, 3, 4), torch.tensor(0.5)))
    assert {path: row.macs for path, row in found.items() if row.macs} == {
        "fc": 15 * 16, "matmul": 5 * 9 * 4, "matmul_1": 5 * 9 * 4}
    assert not found["log_sigmoid"].exact
    assert found["matmul"].exact
    assert f"{15 * 16 + 2 * 5 * 9 * 4:,}" in capsys.readouterr().out


def test_a_trace_leaves_the_model_as_it_was():
    config = {"default": {**HARDWARE, "x": "s6 auto:max stochastic4 sat"}}
    model = nn.fix(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout()), config)
    backend, state = model.region.hardware.backend, str(model.state_dict())
    layers = list(nn.layers(model))
    torch.manual_seed(3)
    want = torch.rand(1)
    torch.manual_seed(3)
    nn.table(model, torch.ones(2, 4))
    assert str(model.state_dict()) == state
    assert model.region.hardware.backend is backend
    assert list(nn.layers(model)) == layers
    assert model.training
    assert torch.equal(torch.rand(1), want)


def test_binary_points_and_phases_are_shown():
    model = nn.fix(torch.nn.Sequential(nn.Activation()), {"default": {
        "y": {"training": "s8 auto:max sat", "evaluation": "s8 fixed sat"},
        "error": {"training": "s8f4"}}})
    before = rows(model)["0"].formats
    model(torch.tensor([3.0]))
    assert before == {"y": "s8 auto:max to_neg sat | s8 fixed to_neg sat",
                      "error": "s8f4 to_neg wrap | none"}
    assert rows(model)["0"].formats["y"] == (
        "s8 auto:max to_neg sat (f5) | s8 fixed to_neg sat (f5)")
    assert "y: s8 auto:max to_neg sat (f5) | s8 fixed to_neg sat (f5)" in repr(model)


def test_a_module_that_will_compute_in_float_is_listed_before_it_runs(capsys):
    model = nn.fix(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LogSigmoid()),
                   {"default": HARDWARE})
    assert {path: row.exact for path, row in rows(model).items()} == {"0": True, "1": False}
    assert "1 not" in capsys.readouterr().out


def test_parts_that_were_fixed_alone_are_counted_apart():
    model = torch.nn.Sequential(*(nn.Linear(n, n, spec=HARDWARE) for n in (2, 2)))
    found = rows(model, torch.ones(3, 2))
    assert {path: row.macs for path, row in found.items()} == {"0": 12, "1": 12}


def test_a_model_without_fixed_modules_is_refused():
    with pytest.raises(ValueError, match="table of Linear: has no fixed module; run"):
        nn.table(torch.nn.Linear(2, 2))
