"""SGD of floats in one pass, and operation by operation: the same steps, and the same refusals."""

import copy
from itertools import chain

import pytest
import torch
from fixed_layers import HARDWARE, UPDATE, momenta, tensor, train_step
from test_nn_optim import PLAIN, data, mlp, train

from emu import engine, nn
from emu.nn import optim


class Apart(nn.Backend):
    """A backend that sees each operation of an update, so that each is one of its own."""

    def quantize(self, place, floats, to):
        return super().quantize(place, floats, to)


@pytest.fixture
def taken(monkeypatch) -> list[bool]:
    """Whether one pass updated a parameter, for each that was tried."""
    found, update = [], engine.sgd_of_floats

    def noted(*arguments):
        new = update(*arguments)
        found.append(new is not None)
        return new

    monkeypatch.setattr(engine, "sgd_of_floats", noted)
    return found


def pair(default=PLAIN, dtype=torch.float32, lr=0.25, momentum=0.5, **settings) -> list:
    """Two equal models, each with its optimizer; the other one's backend is `Apart`."""
    found = []
    for backend in (nn.Backend(), Apart()):
        float_model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(),
                                          torch.nn.Linear(5, 3)).to(dtype)
        for parameter, values in zip(float_model.parameters(), mlp().parameters(), strict=True):
            parameter.data.copy_(values.detach())
        model = nn.fix(float_model, {"default": default}, backend)
        found.append((model, nn.SGD(model, lr, momentum, **settings)))
    return found


def bytes_of(model, optimizer) -> list[bytes]:
    """Every parameter and every state, by the byte."""
    return [x.detach().contiguous().numpy().tobytes() for x in chain(
        model.parameters(), *(state.values() for state in optimizer.state.values()))]


def trained(pairs, steps=5) -> list[list[bytes]]:
    """What both have become."""
    for model, optimizer in pairs:
        dtype = next(model.parameters()).dtype
        for step in range(steps):
            train_step(model, optimizer, *(tensor(x, dtype) for x in data(step)))
    return [bytes_of(*one) for one in pairs]


ROUNDED = {"weight": "s10f6 ties_odd wrap", "momentum": "s9f4 to_zero sat_sym",
           "grad": "s7f3 ties_away sat", "lr": "s8f6 ties_even", "mu": "s8f6 ties_even"}
FINE = {"weight": "s24f16 ties_even sat", "momentum": "s32f14 ties_even sat",
        "grad": "s32f12 ties_even sat", "lr": "u8f8 ties_even sat", "mu": "u16f16 ties_even sat"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("update", [UPDATE, ROUNDED, FINE], ids=["plain", "rounded", "fine"])
def test_one_pass_gives_the_same_bytes(update, dtype, taken):
    first, second = trained(pair({**HARDWARE, "update": update}, dtype))
    assert first == second
    assert sum(taken) == 4 * 4  # of 5 steps the first makes the momentum


def test_a_scheduler_is_seen(taken):
    pairs = pair()
    for step in range(6):
        for model, optimizer in pairs:
            optimizer.param_groups[0].update(lr=0.5 / (step + 1), momentum=0.1 * step)
            train(model, optimizer, [step])
    assert bytes_of(*pairs[0]) == bytes_of(*pairs[1])
    assert sum(taken) == 4 * 5


def test_a_rate_in_a_tensor_is_seen(taken):
    rate = torch.tensor(0.5)
    pairs = pair(lr=rate)
    for step in range(4):
        rate.fill_(0.5 / (step + 1))
        for model, optimizer in pairs:
            train(model, optimizer, [step])
    assert bytes_of(*pairs[0]) == bytes_of(*pairs[1])
    assert sum(taken) == 4 * 3


@pytest.mark.parametrize(("update", "settings"), [
    ({**UPDATE, "decay": "u8f10 ties_even"}, {"weight_decay": 0.05}),
    ({**UPDATE, "nesterov": "s18f10 ties_even sat"}, {}),
    ({**UPDATE, "clip": "u8f4"}, {"clip_value": 0.5}),
    ({**UPDATE, "norm": "u8f4"}, {"max_norm": 0.5}),
    ({**UPDATE, "weight": "s12f8 stochastic8 sat"}, {}),
    ({**UPDATE, "lr": "u8f1"}, {})], ids=str)
@pytest.mark.filterwarnings("ignore:.* is code 0 of")
def test_what_takes_more_is_done_apart(update, settings, taken):
    first, second = trained(pair({**HARDWARE, "update": update}, **settings))
    assert first == second
    assert sum(taken) == 0


@pytest.mark.parametrize("lr", [0.25, 0.125], ids=["the rate of before", "a new rate"])
def test_a_watched_step_is_recorded_as_ever(lr, taken):
    optim._plan.cache_clear()
    optim._coded.cache_clear()
    pairs, seen = pair(), []
    trained(pairs, 2)
    for model, optimizer in pairs:
        optimizer.param_groups[0]["lr"] = lr
        with engine.monitor() as records:
            train(model, optimizer, [2])
        seen.append([(record.label, repr(record)) for record in records])
    assert seen[0] == seen[1]
    names = {name for name, _ in seen[0]}
    assert "0.update.weight.grad" in names and "" not in names
    assert bytes_of(*pairs[0]) == bytes_of(*pairs[1])
    assert sum(taken) == 4


@pytest.mark.parametrize("name", ["sgd", "quantize", "cast"])
def test_a_backend_that_computes_a_part_is_asked_for_it(name):
    seen = []

    def operation(self, *arguments):
        seen.append(name)
        return getattr(super(backend, self), name)(*arguments)

    backend = type("Other", (nn.Backend,), {name: operation})
    model = nn.fix(torch.nn.Sequential(torch.nn.Linear(4, 3)), {"default": PLAIN}, backend())
    optimizer = nn.SGD(model, 0.25, 0.5)
    nn.to_grid(model)
    for step in range(2):
        train(model, optimizer, [step])
        seen.clear()
    optimizer.step()
    assert len(seen) == 2


def test_gradients_moved_by_a_power_of_two_are_taken_and_others_refused():
    pairs = pair()
    trained(pairs, 2)
    for model, optimizer in pairs:
        x, target = map(tensor, data(3))
        optimizer.zero_grad()
        y = model(x)
        y.backward(y.detach() - target)
        for parameter in model.parameters():
            parameter.grad.mul_(2.0**-9)
        optimizer.step()
    assert bytes_of(*pairs[0]) == bytes_of(*pairs[1])
    for model, optimizer in pairs:
        before = bytes_of(model, optimizer)
        model[2].bias.grad.mul_(1 / 3)
        with pytest.raises(ValueError, match=r"2\.bias\.grad: off the grid of 2\^-"):
            optimizer.step()
        assert bytes_of(model, optimizer) == before


SPOILS = {
    "a weight off its grid": lambda model, state: model[2].bias.data[1].fill_(2.0**-11),
    "a weight too large": lambda model, state: model[2].bias.data[1].fill_(32.0),
    "a weight that is no number": lambda model, state: model[2].bias.data.fill_(float("nan")),
    "a momentum too large": lambda model, state: state[1].fill_(2**17),
    "a gradient that is no number": lambda model, state: model[2].bias.grad[1].fill_(float("nan")),
    "an infinite gradient": lambda model, state: model[2].bias.grad[1].fill_(float("inf"))}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_refused_step_changes_nothing(spoil):
    messages = []
    for model, optimizer in pair():
        train(model, optimizer, range(2))
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        SPOILS[spoil](model, optimizer.state[model[2].bias]["momentum"])
        before, step = bytes_of(model, optimizer), model[0].layer.backend.step
        with pytest.raises(ValueError, match=r"2\.bias|momentum: code") as refused:
            optimizer.step()
        messages.append(str(refused.value))
        assert bytes_of(model, optimizer) == before
        assert model[0].layer.backend.step == step
    assert messages[0] == messages[1]


def test_parameters_gradients_and_momenta_of_any_layout(taken):
    pairs = pair()
    for model, optimizer in pairs:
        train(model, optimizer, [0])
    (model, optimizer), straight = pairs
    weight = model[0].weight
    weight.data = weight.detach().t().contiguous().t()
    state = optimizer.state[weight]
    state["momentum"] = state["momentum"].t().contiguous().t()
    train(model, optimizer, [1])
    weight.grad = weight.grad.t().contiguous().t()
    optimizer.step()
    train(*straight, [1])
    straight[1].step()
    assert bytes_of(*pairs[0]) == bytes_of(*straight)
    assert (sum(taken), weight.is_contiguous()) == (4 * 2, False)


def test_a_copied_optimizer_goes_on_alone():
    (model, optimizer), _ = pair()
    train(model, optimizer, range(2))
    twin_model, twin = copy.deepcopy((model, optimizer))
    train(model, optimizer, [2])
    assert bytes_of(twin_model, twin) != bytes_of(model, optimizer)
    train(twin_model, twin, [2])
    assert bytes_of(twin_model, twin) == bytes_of(model, optimizer)
    assert momenta(twin_model, twin) == momenta(model, optimizer)


def test_autograd_learns_that_a_step_changed_a_parameter(taken):
    (model, optimizer), _ = pair()
    train(model, optimizer, [0])
    saved = model[0].weight.square().sum()
    optimizer.step()
    assert sum(taken) == 4
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()
