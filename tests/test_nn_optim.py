"""SGD on codes: its state, its constants, and what it refuses to update."""

import io

import integer_network as ints
import pytest
import torch
from fixed_layers import HARDWARE, UPDATE, hardware, masters, momenta, passed, tensor, train_step
from integer_network import Grid, some

from emu import LayerSpec, nn

DRAWN = {**HARDWARE, "x": "s6 auto:max stochastic6 sat", "error": "s6 auto:max stochastic6 sat",
         "update": {**UPDATE, "weight": "s12f8 stochastic8 sat"}}
PLAIN = {**HARDWARE, "update": UPDATE}


def mlp(default=None, seed=0) -> torch.nn.Sequential:
    """Layers `0` (4 to 5) and `2` (5 to 3), on hardware, with seeded weights."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    for i, parameter in enumerate(model.parameters()):
        with torch.no_grad():
            parameter.copy_(tensor(some(tuple(parameter.shape), 70, 5, i)))
    return nn.fix(model, {"default": default or PLAIN}, nn.Backend(seed))


def data(step: int) -> tuple[Grid, Grid]:
    """The inputs and targets of one step."""
    return some((3, 4), 100, 5, 10 + step), some((3, 3), 40, 4, 20 + step)


def train(model, optimizer, steps) -> None:
    """Some steps on half the squared error."""
    for step in steps:
        train_step(model, optimizer, *map(tensor, data(step)))


def through_a_file(state: dict) -> dict:
    """What comes back from torch.save and torch.load."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def weight_and_update(code: int, lr: float, momentum: float, **update) -> tuple:
    """A 1 x 1 layer in integers whose weight is `code`, and its optimizer."""
    casts = {"weight": "s8", "momentum": "s8", "grad": "s8", "lr": "u8f4", "mu": "u8f4"}
    module = nn.Linear(1, 1, bias=False, spec={"update": casts | update})
    with torch.no_grad():
        module.weight.fill_(code)
    return module, nn.SGD(module, lr, momentum)


def test_a_momentum_that_float32_does_not_hold_survives_a_file():
    model = mlp({**PLAIN, "update": {**UPDATE, "momentum": "s26f18"}})
    optimizer = nn.SGD(model, 0.25, 0.5)
    train(model, optimizer, [0])
    optimizer.state[model[0].weight]["momentum"][0, 0] = 2**24 + 1
    fresh = mlp({**PLAIN, "update": {**UPDATE, "momentum": "s26f18"}})
    other = nn.SGD(fresh, 0.25, 0.5)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert momenta(fresh, other) == momenta(model, optimizer)


@pytest.mark.parametrize("hardware", [PLAIN, DRAWN], ids=["rounded", "stochastic, with rules"])
def test_a_resumed_run_goes_on_with_the_same_codes(hardware):
    model, stopped, fresh = (mlp(hardware, seed=5) for _ in range(3))
    optimizer = nn.SGD(model, 0.25, 0.5)
    train(model, optimizer, range(4))
    first = nn.SGD(stopped, 0.25, 0.5)
    train(stopped, first, range(2))
    state = through_a_file({
        "model": stopped.state_dict(), "optimizer": first.state_dict(),
        "step": stopped[0].layer.backend.step,
        "fracs": {name: layer.fracs for name, layer in nn.layers(stopped).items()}})
    second = nn.SGD(fresh, 0.25, 0.5)
    fresh.load_state_dict(state["model"])
    second.load_state_dict(state["optimizer"])
    fresh[0].layer.backend.step = state["step"]
    for name, layer in nn.layers(fresh).items():
        layer.fracs = state["fracs"][name]
    train(fresh, second, range(2, 4))
    assert (masters(fresh), momenta(fresh, second)) == (masters(model), momenta(model, optimizer))


def test_loading_copies_the_momentum():
    model = mlp()
    optimizer = nn.SGD(model, 0.25, 0.5)
    train(model, optimizer, [0])
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    optimizer.state[model[0].weight]["momentum"][0, 0] = 77
    assert state["state"][0]["momentum"][0, 0] != 77


def test_momentum_of_floats_is_refused():
    model = mlp()
    optimizer = nn.SGD(model, 0.25, 0.5)
    train(model, optimizer, [0])
    state = optimizer.state_dict()
    state["state"][0]["momentum"] = state["state"][0]["momentum"].float()
    with pytest.raises(ValueError, match=r"momentum: dtype torch.float32 in the state; codes are"):
        optimizer.load_state_dict(state)


def test_a_scheduler_sets_the_rate_of_every_step():
    model, spec = mlp(), LayerSpec.parse(PLAIN)
    optimizer = nn.SGD(model, 0.9, 0.5)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.3)
    twin = ints.Network(ints.Linear("0", spec), ints.ReLU(), ints.Linear("2", spec))
    twin.load(masters(model))
    for step in range(3):
        train(model, optimizer, [step])
        twin.train_step(*data(step), 0.9 * 0.3**step, 0.5)
        scheduler.step()
    assert masters(model) == {name: p.weight for name, p in twin.parameters.items()}


@pytest.mark.parametrize("grad, momentum, weight", [(8, 8, 98), (-100, -100, 125),
                                                    (127, 127, 68), (-128, -128, 127)])
def test_an_update_by_hand(grad, momentum, weight):
    module, optimizer = weight_and_update(100, 0.25, 0.5, weight="s8 ties_even sat")
    module.weight.grad = torch.tensor([[float(grad)]])
    optimizer.step()
    state = optimizer.state[module.weight]["momentum"]
    assert (int(module.weight), state.tolist()) == (weight, [[momentum]])


def test_a_parameter_that_lies_by_columns_is_updated_in_place():
    straight, turned = mlp(), mlp()
    weight = turned[0].weight
    weight.data = weight.detach().t().contiguous().t()
    where = weight.data_ptr()
    for model in (straight, turned):
        train(model, nn.SGD(model, 0.25, 0.5), range(2))
    assert masters(turned) == masters(straight)
    assert (weight.data_ptr(), weight.is_contiguous()) == (where, False)


def test_autograd_learns_that_a_step_changed_a_parameter():
    module, optimizer = weight_and_update(3, 1.0, 0.0)
    saved = module.weight.square().sum()
    module.weight.grad = torch.ones(1, 1)
    optimizer.step()
    assert module.weight.item() == 2
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()


def test_a_parameter_without_a_gradient_stays():
    module, optimizer = weight_and_update(100, 0.25, 0.5)
    optimizer.step()
    assert (int(module.weight), dict(optimizer.state)) == (100, {})


def test_a_step_of_the_optimizer_is_a_step_of_the_backend():
    module, optimizer = weight_and_update(100, 0.25, 0.5)
    optimizer.step()
    assert module.layer.backend.step == 1


def test_a_closure_is_computed_with_gradients():
    module, optimizer = weight_and_update(100, 0.25, 0.0)

    def closure():
        module.weight.grad = torch.ones(1, 1) if torch.is_grad_enabled() else None
        return 3.0

    assert (optimizer.step(closure), int(module.weight)) == (3.0, 99)  # to_neg


def test_a_rate_that_is_code_0_warns():
    module, optimizer = weight_and_update(100, 0.05, 0.5)
    module.weight.grad = torch.ones(1, 1)
    with pytest.warns(UserWarning, match=r"linear.weight: lr 0.05 is code 0 of u8f4 to_neg wrap; "):
        optimizer.step()


def test_a_rate_of_0_is_meant():
    module, optimizer = weight_and_update(100, 0.0, 0.5)
    module.weight.grad = torch.ones(1, 1)
    optimizer.step()  # a warning would be an error here
    assert int(module.weight) == 100


@pytest.mark.parametrize("lr, momentum, message", [
    (float("nan"), 0.5, "linear.weight: lr nan: nan is not finite"),
    (0.5, float("inf"), "linear.weight: momentum inf: inf is not finite")])
def test_a_constant_that_is_not_finite_is_refused(lr, momentum, message):
    module, optimizer = weight_and_update(100, lr, momentum)
    module.weight.grad = torch.ones(1, 1)
    with pytest.raises(ValueError, match=message):
        optimizer.step()


@pytest.mark.parametrize("value", [0.5, 128.0, -129.0, 2.0**-100, 1e30])
def test_a_parameter_that_left_its_grid_is_refused_by_name(value):
    module, optimizer = weight_and_update(100, 0.25, 0.5)
    module.weight.grad = torch.ones(1, 1)
    module.weight.data.fill_(value)
    with pytest.raises(ValueError, match=r"linear.weight: off the grid of its master format s8f0"):
        optimizer.step()


def test_to_grid_brings_a_parameter_back():
    module, optimizer = weight_and_update(100, 0.25, 0.5, weight="s8 ties_even sat")
    module.weight.data.fill_(2.5)
    nn.to_grid(module)
    module.weight.grad = torch.zeros(1, 1)
    optimizer.step()
    assert int(module.weight) == 2


@pytest.mark.parametrize("codes, want", [([0.0, 0.0], [0, 0]), ([1.5, -2.0], [6, -8])])
def test_master_codes_are_codes_of_the_master_format(codes, want):
    spec = LayerSpec.parse({"update": {**UPDATE, "weight": "s8f2"}}).update
    assert nn.master_codes(torch.tensor(codes), spec, "weight").tolist() == want


def test_zeros_are_on_a_grid_coarser_than_1():
    spec = LayerSpec.parse({"update": {**UPDATE, "weight": "s8f-2"}}).update
    assert nn.master_codes(torch.zeros(2), spec, "weight").tolist() == [0, 0]


def test_a_gradient_that_is_not_finite_is_refused_by_name():
    module, optimizer = weight_and_update(100, 0.25, 0.5)
    module.weight.grad = torch.full((1, 1), float("nan"))
    with pytest.raises(ValueError, match=r"linear.weight.grad: nan is not finite"):
        optimizer.step()


def test_a_parameter_outside_the_fixed_modules_is_refused():
    model = mlp()
    model.scale = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=r"parameter scale: belongs to no fixed module; run"):
        nn.SGD(model, 0.25)


def test_a_float_model_is_refused():
    with pytest.raises(ValueError, match=r"parameter weight: belongs to no fixed module; run"):
        nn.SGD(torch.nn.Linear(2, 2), 0.25)


def test_a_layer_without_update_is_refused():
    with pytest.raises(ValueError, match=r"layer '0': has no update; the configuration must give"):
        nn.SGD(mlp(HARDWARE), 0.25)


def tied(first=None, second=None) -> torch.nn.Sequential:
    """Two 3 x 3 layers of one weight."""
    model = torch.nn.Sequential(*(torch.nn.Linear(3, 3, bias=False) for _ in range(2)))
    model[1].weight = model[0].weight
    with torch.no_grad():
        model[0].weight.copy_(tensor(some((3, 3), 60, 5, 1)))
    return nn.fix(model, {"default": PLAIN, "by_name": {"0": first or {}, "1": second or {}}})


def test_a_shared_weight_is_updated_once_by_the_sum_of_its_gradients():
    model, spec = tied(), LayerSpec.parse(PLAIN)
    optimizer = nn.SGD(model, 0.25, 0.5)
    layers = [ints.Linear(site, spec) for site in "01"]
    weight = ints.Parameter(layers[0], "weight", masters(model)["0.weight"])
    x, grad = some((2, 3), 100, 5, 2), some((2, 3), 40, 5, 3)
    passed(model, x, grad)
    optimizer.step()
    layers[1].forward(layers[0].forward(x, weight.value), weight.value)
    grad_x, last = layers[1].backward(grad)
    _, first = layers[0].backward(grad_x)
    minus = Grid(ints.like([-code for code in ints.flat(last.codes)], last.codes), last.frac)
    weight.update(ints.difference(first, minus), 0.25, 0.5)
    assert masters(model)["0.weight"] == weight.weight


def test_a_shared_weight_with_two_updates_is_refused():
    model = tied(second={"update": {**UPDATE, "weight": "s12f8 ties_even sat"}})
    with pytest.raises(ValueError, match="layer '1': shares its weight with '0', which updates it"):
        nn.SGD(model, 0.25)


def test_a_module_that_is_used_twice_sums_its_gradients():
    module = nn.Linear(2, 2, bias=False, spec=hardware(update=UPDATE))
    model = torch.nn.Sequential(module, module)
    optimizer = nn.SGD(model, 0.25, 0.5)
    passed(model, some((2, 2), 100, 5, 2), some((2, 2), 40, 5, 3))
    optimizer.step()
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(("lr", "momentum", "message"), [
    (16.0, 0.5, r"lr 16.0: outside u8f4 to_neg wrap, which holds 0.0 to 15.9375"),
    (0.5, 16.5, r"momentum 16.5: outside u8f4 to_neg wrap"),
    (-0.5, 0.5, r"lr -0.5: outside u8f4 to_neg wrap"),
    (float("nan"), 0.5, r"lr nan: nan is not finite"),
])
def test_a_rate_beyond_its_cast_is_refused(lr, momentum, message):
    module, optimizer = weight_and_update(100, lr, momentum)
    module.weight.grad = torch.ones(1, 1)
    with pytest.raises(ValueError, match=message):
        optimizer.step()


def test_a_model_without_parameters_has_nothing_to_update():
    with pytest.raises(ValueError, match="no parameters"):
        nn.SGD(torch.nn.Sequential(nn.ReLU()), 0.5)


def test_a_refused_step_moves_no_weight():
    model = mlp({**PLAIN, "update": UPDATE})
    optimizer = nn.SGD(model, 0.25, 0.5)
    train(model, optimizer, [0])
    before = masters(model), momenta(model, optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model[-1].bias.grad[-1] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        optimizer.step()
    assert (masters(model), momenta(model, optimizer)) == before
