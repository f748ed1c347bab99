"""Torch's own optimizers on float masters: what the parameters hold is their cast."""

import copy
from fractions import Fraction

import oracle
import pytest
import torch
from fixed_layers import HARDWARE, UPDATE, masters, tensor, train_step
from test_nn_optim import data, mlp, through_a_file, train

from emu import nn
from emu.number import Cast

WEIGHT = Cast.parse(UPDATE["weight"])
OPTIMIZERS = {"Adam": {"lr": 0.01}, "AdamW": {"lr": 0.01, "foreach": True}, "RMSprop": {},
              "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True}, "Adagrad": {"lr": 0.05}}


def codes_of(values: torch.Tensor) -> list[int]:
    """The codes of float masters, from their fractions."""
    return [oracle.cast(Fraction(value), WEIGHT) for value in values.flatten().tolist()]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masters_move_as_floats_do_and_parameters_hold_their_casts(name):
    model, cls = mlp(), getattr(torch.optim, name)
    optimizer = nn.FloatMasters(cls, model, **OPTIMIZERS[name])
    floats = [torch.nn.Parameter(p.detach().clone()) for p in model.parameters()]
    twin = cls(floats, **OPTIMIZERS[name])
    for step in range(3):
        train_step(model, optimizer, *map(tensor, data(step)))
        for parameter, value in zip(model.parameters(), floats, strict=True):
            value.grad = parameter.grad.clone()
        twin.step()
        for parameter, value in zip(model.parameters(), floats, strict=True):
            assert torch.equal(optimizer.masters[parameter].value, value)
            assert (parameter * 2**10).flatten().tolist() == codes_of(value)
    assert model[0].layer.backend.step == 3


def test_a_scheduler_drives_it():
    model = mlp()
    optimizer = nn.FloatMasters(torch.optim.Adam, model, lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    train(model, optimizer, [0])
    scheduler.step()
    assert optimizer.inner.param_groups[0]["lr"] == 0.005
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_its_repr_says_that_it_is_not_exact():
    optimizer = nn.FloatMasters(torch.optim.Adam, mlp(), lr=0.01)
    assert repr(optimizer).startswith("FloatMasters(Adam (")
    assert repr(optimizer).endswith(", exact=False)")
    assert optimizer.exact is False


def test_a_resumed_run_goes_on_with_the_same_masters():
    model, fresh = mlp(), mlp(seed=1)
    optimizer = nn.FloatMasters(torch.optim.Adam, model, lr=0.01)
    train(model, optimizer, range(2))
    state = through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    other = nn.FloatMasters(torch.optim.Adam, fresh, lr=0.5)
    other.load_state_dict(state["optimizer"])
    fresh.load_state_dict(state["model"])
    pair = copy.deepcopy((model, optimizer))
    for one, each in ((model, optimizer), (fresh, other), pair):
        train(one, each, range(2, 4))
        assert masters(one) == masters(model)
        assert [each.masters[p].value.tolist() for p in one.parameters()] == [
            optimizer.masters[p].value.tolist() for p in model.parameters()]


def test_what_something_else_wrote_is_the_new_master():
    model = mlp()
    optimizer = nn.FloatMasters(torch.optim.SGD, model, lr=0.25)
    with torch.no_grad():
        model[0].weight.fill_(0.3)  # off the grid
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert codes_of(torch.tensor([0.3])) == (model[0].weight * 2**10).unique().tolist()


def test_a_layer_without_update_is_cast_as_it_enters():
    model = mlp(HARDWARE)
    nn.FloatMasters(torch.optim.SGD, model, lr=0.25)
    w, b = (Cast.parse(HARDWARE[name]).format for name in "wb")
    for parameter, form in ((model[0].weight, w), (model[0].bias, b)):
        assert (parameter * 2**form.frac).frac().eq(0).all()
    with pytest.raises(ValueError, match=r"0.weight: its layer gives it no cast \(s5 auto:max"):
        nn.FloatMasters(torch.optim.SGD, mlp({**HARDWARE, "w": "s5 auto:max sat"}), lr=0.25)


def test_a_parameter_without_a_gradient_keeps_its_master():
    model = mlp()
    optimizer = nn.FloatMasters(torch.optim.Adam, model, lr=0.01)
    before = dict(optimizer.masters)
    model[0].bias.grad = torch.ones(5)
    optimizer.step()
    moved = [p for p in model.parameters() if optimizer.masters[p] is not before[p]]
    assert len(moved) == 1
    assert moved[0] is model[0].bias


def test_a_step_that_is_refused_moves_nothing():
    model = mlp()
    optimizer = nn.FloatMasters(torch.optim.SGD, model, lr=0.25)
    before = masters(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model[2].bias.grad[0] = float("nan")
    with pytest.raises(ValueError, match=r"2.bias: nan is not finite"):
        optimizer.step()
    assert masters(model) == before


def test_a_closure_sees_the_weights_of_the_hardware():
    model = mlp()
    optimizer = nn.FloatMasters(torch.optim.Adam, model, lr=0.01)
    train(model, optimizer, [0])
    before, seen = masters(model), []

    def closure():
        seen.append(masters(model))
        return 3.0

    assert (optimizer.step(closure), seen) == (3.0, [before])


@pytest.mark.parametrize(("call", "message"), [
    (lambda: nn.FloatMasters(torch.optim.LBFGS, mlp()), "LBFGS: evaluates the model several times"),
    (lambda: nn.FloatMasters(torch.optim.SGD, torch.nn.Linear(1, 1)), "belongs to no fixed module"),
    (lambda: nn.FloatMasters(torch.optim.SGD, mlp()).add_param_group({"params": []}),
     "has all parameters of its model already"),
    (lambda: nn.FloatMasters(torch.optim.SGD, mlp()).load_state_dict(
        torch.optim.SGD(mlp().parameters()).state_dict()), "holds no float masters of these"),
])
def test_what_it_cannot_do_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
