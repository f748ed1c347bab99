"""What a state holds, what loads it, what is refused, and the model as integer codes."""

import copy
import io
import json
import pickle

import pytest
import torch
import torch.nn.functional as F
from fixed_layers import HARDWARE, UPDATE, codes, masters, momenta

from emu import Cast, nn, reference

RULES = dict.fromkeys(("x", "w", "error", "grad_w"), "s6 auto:max stochastic4 sat")
CONFIG = {"default": {**HARDWARE, **RULES, "update": UPDATE}}


class Block(torch.nn.Module):
    """A user's module with a parameter and functions of its own: relu, a product, a float core."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 4)
        self.gain = torch.nn.Parameter(torch.full((4, 4), 0.5))
        self.register_buffer("count", torch.tensor(3))

    def forward(self, x):
        x = F.relu(self.fc(x))
        return F.logsigmoid(torch.matmul(x, self.gain))


def net(config=CONFIG, seed=0, fixed=True) -> torch.nn.Module:
    """A model, the same for each seed."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), Block(), torch.nn.Linear(4, 2))
    return nn.fix(model, config, nn.Backend(seed + 5)) if fixed else model


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 4, generator=generator), torch.randn(3, 2, generator=generator)


def step(model, optimizer, seed: int) -> list:
    """All that one training step leaves."""
    optimizer.zero_grad()
    x, target = batch(seed)
    y = model(x)
    y.backward((y.detach() - target).contiguous())
    optimizer.step()
    return [y.tolist(), masters(model), momenta(model, optimizer),
            {path: layer.fracs for path, layer in nn.layers(model).items()},
            dict(+model.region.hardware.backend.calls)]


def trained(config=CONFIG) -> torch.nn.Module:
    """A model after two steps, and a forward of the third."""
    model = net(config)
    optimizer = nn.SGD(model, 0.125, 0.5)
    for seed in range(2):
        step(model, optimizer, seed)
    model(batch(2)[0])
    return model


def saved_and_loaded(state):
    """A state through torch.save, which takes no code from the file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def kept(model: torch.nn.Module) -> str:
    """All of a state, to compare."""
    return str(model.state_dict())


def test_a_fresh_model_continues_bit_for_bit():
    model = net()
    optimizer = nn.SGD(model, 0.125, 0.5)
    for seed in range(2):
        step(model, optimizer, seed)
    model(batch(9)[0])  # draws and rules are in the middle of a step
    state = saved_and_loaded({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    fresh = net(seed=1)
    again = nn.SGD(fresh, 0.125, 0.5)
    fresh.load_state_dict(state["model"], strict=True)
    again.load_state_dict(state["optimizer"])
    for seed in range(3, 5):
        assert step(fresh, again, seed) == step(model, optimizer, seed)


def test_the_state_of_a_loaded_model_is_the_one_that_was_loaded():
    model, fresh = trained(), net(seed=1)
    assert kept(fresh) != kept(model)
    fresh.load_state_dict(model.state_dict())
    assert kept(fresh) == kept(model)


def test_layers_of_functions_come_back_before_any_forward():
    model, fresh = trained(), net(seed=1)
    fresh.load_state_dict(model.state_dict())
    assert {"1.matmul", "1.log_sigmoid"} <= set(nn.layers(fresh))
    assert nn.layers(fresh)["1.matmul"].fracs == nn.layers(model)["1.matmul"].fracs != {}
    assert not nn.layers(fresh)["1.log_sigmoid"].exact


def test_a_state_says_formats_binary_points_draws_and_schema():
    model = trained()
    state = json.loads(json.dumps(model.state_dict()["0._extra_state"]))  # plain values
    layer = state["hardware"]["layers"][""]
    assert (state["schema"], state["generator"]) == (1, {"seed": 5, "step": 2})
    assert layer["formats"]["x"] == "s6"
    assert layer["formats"]["master"] == "s16f10"
    assert layer["binary_points"] == model[0].layer.fracs
    assert layer["calls"] == {"x": 1, "w": 1}


def test_a_module_without_state_adds_no_key():
    model = nn.fix(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.ReLU()), {"default": HARDWARE})
    model(torch.ones(2, 2))
    assert model.state_dict() == {}


def test_evaluation_leaves_the_state_alone():
    model = trained()
    before = kept(model)
    model.eval()(batch(7)[0])
    assert kept(model) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_a_plain_float_checkpoint_loads_strictly_onto_the_grid(dtype):
    floats, model = net(seed=3, fixed=False).to(dtype), net()
    model.load_state_dict(floats.state_dict(), strict=True)
    to = Cast.parse(UPDATE["weight"])
    for name, parameter in floats.named_parameters():
        want = [reference.quantize(value, to) for value in parameter.double().flatten().tolist()]
        assert codes(model.get_parameter(name).flatten(), 10) == want


def test_a_checkpoint_in_float64_is_rounded_once():
    model = nn.fix(torch.nn.Linear(1, 1), {"default": {**HARDWARE, "update": UPDATE}})
    tie = 0.5 / 2**10  # which float32 would make of the value, and ties go to the even 0
    model.load_state_dict({"weight": torch.tensor([[tie + 2.0**-60]], dtype=torch.float64),
                           "bias": torch.tensor([tie])})
    assert codes(torch.cat([model.weight.flatten(), model.bias]), 10) == [1, 0]


def test_a_float_checkpoint_leaves_rules_and_draws_alone():
    model = trained()
    before = {path: dict(layer.fracs) for path, layer in nn.layers(model).items()}
    model.load_state_dict(net(fixed=False).state_dict())
    assert {path: layer.fracs for path, layer in nn.layers(model).items()} == before


@pytest.mark.parametrize("changes, message", [
    ({"x": "s7 auto:max sat"}, "layer '0': x is s6 in the state and s7 in this model"),
    ({"w": "u6 auto:max sat"}, "layer '0': w is s6 in the state and u6 in this model"),
    ({"b": "s6f3 sat"}, "layer '0': b is s6f4 in the state and s6f3 in this model"),
    ({"update": {**UPDATE, "weight": "s16f9 sat"}},
     "layer '0': master is s16f10 in the state and s16f9 in this model")])
def test_a_state_of_another_format_is_refused_and_changes_nothing(changes, message):
    model, other = trained(), net({"default": {**CONFIG["default"], **changes}}, seed=1)
    before = kept(other)
    with pytest.raises(ValueError, match=f"^{message}; build the model with the formats"):
        other.load_state_dict(model.state_dict())
    assert kept(other) == before


@pytest.mark.parametrize("spoil, message", [
    (lambda state: state.update(schema=2), "the state has schema 2, this emu reads 1"),
    (lambda state: state["generator"].update(step=7), "the state is put together from several"),
    (lambda state: state.update(hardware=3), "the state is damaged"),
    (lambda state: state["hardware"]["layers"][""].pop("kind"), "the state is damaged")])
def test_a_state_that_cannot_be_read_is_refused_and_changes_nothing(spoil, message):
    state, fresh = copy.deepcopy(trained().state_dict()), net(seed=1)
    spoil(state["2._extra_state"])
    before = kept(fresh)
    with pytest.raises(ValueError, match=rf"^2._extra_state: .*{message}"):
        fresh.load_state_dict(state)
    assert kept(fresh) == before


def test_a_master_off_the_grid_that_the_state_names_is_refused():
    state, fresh = trained().state_dict(), net(seed=1)
    state["2.weight"] = state["2.weight"] + 2.0**-12
    before = kept(fresh)
    with pytest.raises(ValueError, match=r"^2.weight: off the grid of its master format s16f10"):
        fresh.load_state_dict(state)
    assert kept(fresh) == before


def test_a_checkpoint_that_is_not_finite_is_refused_by_name():
    state, fresh = net(fixed=False).state_dict(), net(seed=1)
    state["2.weight"][0, 0] = float("inf")
    before = kept(fresh)
    with pytest.raises(ValueError, match=r"^2\.weight: inf is not finite"):
        fresh.load_state_dict(state)
    assert kept(fresh) == before


def test_a_rule_may_become_fixed_for_the_test():
    model = trained()
    config = {"default": {**CONFIG["default"], **{
        key: text.replace("auto:max", "fixed") for key, text in RULES.items()}}}
    frozen = net(config, seed=1).eval()
    with pytest.raises(ValueError, match="no binary point is stored"):
        frozen(batch(3)[0])
    frozen.load_state_dict(model.state_dict())
    assert torch.equal(frozen(batch(3)[0]), model.eval()(batch(3)[0]))


class Remembering(torch.nn.Linear):
    """A module that has an extra state itself."""

    note = "none"

    def get_extra_state(self):
        return {"note": self.note}

    def set_extra_state(self, state):
        self.note = state["note"]


def test_an_extra_state_of_the_model_itself_survives():
    make = lambda: nn.fix(Remembering(4, 2), CONFIG)  # noqa: E731
    model, fresh, float_twin = make(), make(), Remembering(4, 2)
    model.note = float_twin.note = "kept"
    fresh.load_state_dict(model.state_dict())
    assert fresh.note == "kept"
    fresh = make()
    fresh.load_state_dict(float_twin.state_dict())
    assert fresh.note == "kept"


def assigned(model: torch.nn.Module) -> torch.nn.Module:
    """A fresh model with the very tensors of another's state."""
    fresh = net(seed=1)
    fresh.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    return fresh


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model)),
          "to": lambda model: copy.deepcopy(model).to("cpu", torch.float64).to(torch.float32),
          "assign": assigned}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_has_the_state_and_trains_alike(copied):
    model = trained()
    twin = copied(model)
    assert kept(twin) == kept(model)
    pair = [(each, nn.SGD(each, 0.125)) for each in (model, twin)]
    assert step(*pair[0], 4) == step(*pair[1], 4)


def test_no_grad_computes_the_same_and_keeps_no_graph():
    one, two = trained(), trained()
    with torch.no_grad():
        y = one(batch(3)[0])
    assert not y.requires_grad
    assert torch.equal(y, two(batch(3)[0]))


def test_a_fixed_part_of_a_float_model_trains_and_is_saved():
    def mixed(seed):
        model = net(seed=seed, fixed=False)
        nn.fix(model[0], {"default": {**HARDWARE, "x": "s6 auto:max ties_even sat"}})
        return model
    model, fresh = mixed(0), mixed(1)
    model(batch(0)[0]).sum().backward()
    assert type(model[2]) is torch.nn.Linear
    assert all(parameter.grad is not None for parameter in model.parameters())
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(fresh.eval()(batch(1)[0]), model.eval()(batch(1)[0]))


def test_a_fixed_part_of_a_float_model_refuses_another_format():
    def mixed(x):
        model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        nn.fix(model[0], {"default": {**CONFIG["default"], "x": x}})
        return model
    model, other = mixed("s6 auto:max"), mixed("s7 auto:max")
    before = kept(other)
    with pytest.raises(ValueError, match=r"^layer '0': x is s6 in the state and s7 in this model"):
        other.load_state_dict(model.state_dict())
    assert kept(other) == before


class Cast3(torch.utils.data.Dataset):
    """Samples that a worker casts."""

    def __init__(self):
        self.cast = nn.Activation(spec={"y": "s4f1 ties_even sat"})

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return self.cast(torch.tensor([i + 0.3]))


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_of_a_loader_compute_the_same(workers):
    loader = torch.utils.data.DataLoader(Cast3(), num_workers=workers)
    assert [x.item() for x in loader] == [0.5, 1.5, 2.5]


def test_codes_and_formats_of_every_parameter_and_buffer():
    model = trained()
    found = nn.fix_state_dict(model)
    assert list(found) == [key for key in model.state_dict() if not key.endswith("_extra_state")]
    for name, parameter in model.named_parameters():
        assert found[name]["format"] == "s16f10"
        assert found[name]["codes"].dtype == torch.int16
        assert found[name]["codes"].tolist() == codes(parameter.detach(), 10)
    assert (found["1.count"]["codes"].item(), found["1.count"]["format"]) == (3, "s64f0")


NORM = {"default": {**HARDWARE, "update": UPDATE, "norm": {
    "running_mean": "s12f6 ties_even sat", "running_var": "u12f6 ties_even sat"}}}


def normed(config=NORM) -> torch.nn.Module:
    """A batch norm whose running statistics have formats."""
    return nn.fix(torch.nn.Sequential(torch.nn.BatchNorm1d(2)), config)


def test_running_statistics_are_codes_and_load_back():
    model, fresh = normed(), normed()
    model(torch.randn(5, 2, generator=torch.Generator().manual_seed(0)))
    found = nn.fix_state_dict(model)
    assert {name: kept["format"] for name, kept in found.items()} == {
        "0.weight": "s16f10", "0.bias": "s16f10", "0.running_mean": "s12f6",
        "0.running_var": "u12f6", "0.num_batches_tracked": "s64f0"}
    assert found["0.running_var"]["codes"].tolist() == codes(model[0].running_var, 6)
    nn.load_fix_state_dict(fresh, found)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), fresh.buffers(), strict=True))


def test_a_float_checkpoint_brings_running_statistics_to_their_grid():
    floats, model = torch.nn.Sequential(torch.nn.BatchNorm1d(2)), normed()
    floats[0].running_mean.copy_(torch.tensor([0.3, -40.0]))
    with pytest.warns(UserWarning, match="^0.running_mean: 1 of 2 values are outside s12f6, -32.0"):
        model.load_state_dict(floats.state_dict(), strict=True)
    to = Cast.parse(NORM["default"]["norm"]["running_mean"])
    assert codes(model[0].running_mean, 6) == [
        reference.quantize(x, to) for x in floats[0].running_mean.tolist()]


def test_running_statistics_of_a_state_may_not_leave_their_grid():
    model, fresh = normed(), normed()
    state = model.state_dict()
    state["0.running_var"] = torch.tensor([1.001, 1.0])
    with pytest.raises(ValueError, match=r"^0.running_var: off the grid of its master form"):
        fresh.load_state_dict(state)


def test_without_an_update_the_codes_are_those_of_the_operands():
    model = nn.fix(torch.nn.Linear(2, 1), {"default": HARDWARE})
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.3, -9.0]]))
    found = nn.fix_state_dict(model)["weight"]
    to = Cast.parse(HARDWARE["w"])
    assert found["format"] == "s5f3"
    assert found["codes"].tolist() == [[reference.quantize(x, to)
                                        for x in model.weight[0].tolist()]]


def test_codes_load_back():
    model, fresh = trained(), net(seed=1)
    given = saved_and_loaded(nn.fix_state_dict(model))
    nn.load_fix_state_dict(fresh, given)
    assert masters(fresh) == masters(model)
    again = nn.fix_state_dict(fresh)
    assert all(torch.equal(given[name]["codes"], again[name]["codes"]) for name in given)


@pytest.mark.parametrize("spoil, message", [
    (lambda given: given.pop("2.bias"), "2.bias: is in the model alone"),
    (lambda given: given.update({"3.bias": given["2.bias"]}), "3.bias: is in the codes alone"),
    (lambda given: given["2.bias"].update(format="s16f9"),
     "2.bias: codes of s16f9, and a master format s16f10 in this model"),
    (lambda given: given["2.bias"].update(codes=torch.zeros(3, dtype=torch.int16)),
     r"2.bias: codes \(3,\), and \(2,\) in this model"),
    (lambda given: given["2.bias"].update(codes=torch.full((2,), 1 << 15)),
     "2.bias: code 32768 is outside s16f10")])
def test_codes_of_another_model_are_refused_and_change_nothing(spoil, message):
    given, fresh = nn.fix_state_dict(trained()), net(seed=1)
    spoil(given)
    before = kept(fresh)
    with pytest.raises(ValueError, match=f"^{message}"):
        nn.load_fix_state_dict(fresh, given)
    assert kept(fresh) == before


def test_codes_of_a_master_off_its_grid_are_refused():
    model = net()
    with torch.no_grad():
        model[2].bias += 2.0**-12
    with pytest.raises(ValueError, match=r"^2.bias: off the grid of its master format s16f10"):
        nn.fix_state_dict(model)


class Composed(torch.nn.Module):
    """A module that calls a function which is composed of others."""

    def forward(self, x):
        return torch.einsum("bij,bkj->bik", x, x)


def test_layers_inside_composed_functions_come_back():
    rules = dict.fromkeys(("x", "w"), "s6 auto:max ties_even sat")
    model, fresh = (nn.fix(torch.nn.Sequential(Composed()), {"default": {**HARDWARE, **rules}})
                    for _ in range(2))
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(4))
    model(x)
    fresh.load_state_dict(saved_and_loaded(model.state_dict()), strict=True)
    points = {path: layer.fracs for path, layer in nn.layers(fresh).items() if layer.fracs}
    assert points == {"0.einsum.matmul": {"x": 3, "w": 3}}
    assert kept(fresh) == kept(model)
    assert torch.equal(fresh.eval()(64 * x), model.eval()(64 * x))
    assert list(nn.layers(fresh)) == list(nn.layers(model))
