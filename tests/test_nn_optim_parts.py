"""SGD's parts on torch models: decay, look-ahead, limits, buffers, groups, state and scales."""

import copy
import io
import math
from fractions import Fraction

import oracle
import pytest
import torch
from fixed_layers import HARDWARE, UPDATE, momenta, tensor, train_step
from test_nn_optim import PLAIN, data, masters, mlp, through_a_file, train, weight_and_update

import emu
from emu import UpdateSpec, nn
from emu.lab.record import Recorder
from emu.number import Cast

PARTS = {"decay": {"decay": "u8f10 ties_even"}, "shrink": {"shrink": "u8f12 ties_even"},
         "ahead": {"nesterov": "s18f10 ties_even sat"},
         "decayed ahead": {"decay": "u8f10", "nesterov": "s18f11 to_zero sat"},
         "drawn ahead": {"nesterov": "s16f8 stochastic7 sat", "momentum": "s12f8 stochastic9 sat"}}
BUFFERED = {"weight": "s12f8 ties_even sat", "buffer": "s24f14 sat", "grad": "s12f10 ties_even sat"}


def coded(value: float, to: Cast) -> int:
    """A hyperparameter's code, from its fraction."""
    return oracle.cast(Fraction(value), to)


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_a_parameter_moves_as_its_fractions_do(parts):
    spec = UpdateSpec.parse({**UPDATE, **parts})
    module = nn.Linear(3, 2, spec={**HARDWARE, "update": {**UPDATE, **parts}})
    decays = spec.decay or spec.shrink
    optimizer = nn.SGD(module, 0.4, 0.6, weight_decay=0.05 if decays else 0)
    rows = torch.arange(-2, 4).reshape(2, 3)
    weight, momentum = (rows * 700).flatten().tolist(), [0] * 6
    with torch.no_grad():
        module.weight.copy_(rows * 700 * 2.0**-10)
    factor = 0.05 if spec.shrink is None else 0.4 * 0.05
    constants = [coded(0.4, spec.lr), coded(0.6, spec.mu)]
    for step in range(3):
        grads = torch.arange(6).reshape(2, 3) * 1.37 - step
        module.weight.grad = grads
        rands = {name: emu.engine.random_operands(
            (6,), to.rand_bits, emu.engine.load_words(0, step, "linear", f"update.weight.{name}",
                                                      0)).tolist() if to and to.rand_bits
            else [None] * 6 for name, to in (("momentum", spec.momentum), ("weight", spec.weight),
                                             ("nesterov", spec.nesterov))}
        codes = [oracle.cast(Fraction(g), spec.grad) for g in grads.flatten().tolist()]
        new = [oracle.sgd(w, m, g, *constants, spec, rm, rw, coded(factor, decays) if decays else 0,
                          rn) for w, m, g, rm, rw, rn in zip(
            weight, momentum, codes, *rands.values(), strict=True)]
        weight, momentum = [w for w, _ in new], [m for _, m in new]
        optimizer.step()
        assert (module.weight * 2**10).flatten().tolist() == weight
        assert optimizer.state[module.weight]["momentum"].flatten().tolist() == momentum


def test_a_buffer_moves_a_weight_by_what_its_gradients_sum_to():
    module = nn.Linear(1, 1, bias=False, spec={"update": BUFFERED})
    optimizer = nn.SGD(module, 2.0**-3)
    with torch.no_grad():
        module.weight.fill_(0.5)
    for _ in range(5):
        module.weight.grad = torch.full((1, 1), 2.0**-9)  # 2^-12 a step, of which 5 make no 2^-8
        optimizer.step()
    state = optimizer.state[module.weight]["buffer"]
    assert (module.weight.item(), state.item()) == (0.5, 5 * 2**5)
    for _ in range(4):
        module.weight.grad = torch.full((1, 1), 2.0**-9)
        optimizer.step()
    assert (module.weight.item(), state.dtype) == (0.5 - 2.0**-8, torch.int32)
    assert optimizer.state[module.weight]["buffer"].item() == (9 - 16) * 2**5


@pytest.mark.parametrize(("lr", "message"), [
    (0.0, "lr 0.0: the rate of a gradient buffer is a shift; use a power of two above 0"),
    (-1.0, "lr -1.0: the rate"), (math.inf, "lr inf: the rate"),
    (2.0**-30, r"shift 30: the buffer s24f14 feeds the weight s12f8 at shifts from -5 to 17")])
def test_a_rate_that_is_no_shift_is_refused(lr, message):
    module = nn.Linear(1, 1, bias=False, spec={"update": BUFFERED})
    module.weight.grad = torch.ones(1, 1)
    with pytest.raises(ValueError, match=message):
        nn.SGD(module, lr).step()


def test_a_rate_between_two_shifts_is_the_lower_one_and_warns():
    module = nn.Linear(1, 1, bias=False, spec={"update": BUFFERED})
    with torch.no_grad():
        module.weight.zero_()
    module.weight.grad = torch.ones(1, 1)
    optimizer = nn.SGD(module, 0.2)
    with pytest.warns(UserWarning, match=r"linear.weight: lr 0.2 is no power of two; the buffer "
                                         r"shifts by 3, a rate of 0.125"):
        optimizer.step()
    assert module.weight.item() == -0.125


@pytest.mark.parametrize(("settings", "update", "message"), [
    ({"weight_decay": 0.1}, {}, r"weight: weight_decay 0.1, and .* has no decay or shrink; add"),
    ({"clip_value": 0.5}, {}, r"weight: clip_value 0.5, and the update .* has no clip; add"),
    ({"max_norm": 0.5}, {}, r"weight: max_norm 0.5, and the update .* has no norm; add that cast"),
    ({"momentum": 0.5}, BUFFERED, r"weight: momentum 0.5, and the update .* has no mu; add"),
])
def test_what_the_update_has_no_cast_for_is_refused(settings, update, message):
    module = nn.Linear(1, 1, bias=False, spec={"update": update or UPDATE})
    with pytest.raises(ValueError, match=message):
        nn.SGD(module, 0.5, **settings)


def test_a_decay_that_is_code_0_warns():
    module, optimizer = weight_and_update(100, 0.25, 0.0, shrink="u4f4")
    optimizer.param_groups[0]["weight_decay"] = 0.1
    module.weight.grad = torch.ones(1, 1)
    with pytest.warns(UserWarning, match=r"lr 0.25 times weight_decay 0.1, 0.025 is code 0 of u4"):
        optimizer.step()


def test_a_gradient_is_clipped_at_a_value():
    module = nn.Linear(3, 1, bias=False, spec={"update": {
        "weight": "s8", "momentum": "s8", "grad": "s8 ties_even sat", "lr": "u4", "mu": "u4",
        "clip": "u4 ties_even"}})
    optimizer = nn.SGD(module, 1.0, clip_value=5)
    with torch.no_grad():
        module.weight.zero_()
    module.weight.grad = torch.tensor([[9.0, -400.0, 4.0]])
    optimizer.step()
    assert module.weight.tolist() == [[-5, 5, -4]]


def norm_spec(**update) -> dict:
    """A layer of integers whose gradients have a norm that is limited."""
    return {"update": {"weight": "s12", "momentum": "s12", "grad": "s12 ties_even sat", "lr": "u4",
                       "mu": "u4", "norm": "u8f2", **update}}


def test_all_gradients_of_a_group_are_scaled_by_one_power_of_two():
    model = torch.nn.Sequential(nn.Linear(2, 1, spec=norm_spec()),
                                nn.Linear(1, 1, bias=False, spec=norm_spec(grad="s12f1 to_pos")))
    optimizer = nn.SGD(model, 1.0, max_norm=8.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    grads = [[[12.0, -5.0]], [3.0], [[20.5]]]  # the norm is 24.49..., so 2^-2 brings it to 6.1
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        parameter.grad = torch.tensor(grad)
    optimizer.step()
    assert [p.tolist() for p in model.parameters()] == [[[-3, 1]], [-1], [[-5]]]  # 5.5 to_neg


def test_gradients_within_the_limit_stay():
    module = nn.Linear(2, 1, bias=False, spec=norm_spec())
    optimizer = nn.SGD(module, 1.0, max_norm=5)
    with torch.no_grad():
        module.weight.zero_()
    module.weight.grad = torch.tensor([[3.0, -4.0]])
    optimizer.step()
    assert module.weight.tolist() == [[-3, 4]]


def test_one_norm_has_one_cast():
    model = torch.nn.Sequential(nn.Linear(1, 1, bias=False, spec=norm_spec()),
                                nn.Linear(1, 1, bias=False, spec=norm_spec(norm="u8f3")))
    optimizer = nn.SGD(model, 1.0, max_norm=5)
    for parameter in model.parameters():
        parameter.grad = torch.ones(1, 1)
    with pytest.raises(ValueError, match=r"norm u8f3 .* is not the u8f2 .* of linear.weight; one"):
        optimizer.step()


def test_a_norm_limit_that_is_code_0_is_refused():
    module = nn.Linear(1, 1, bias=False, spec=norm_spec())
    module.weight.grad = torch.ones(1, 1)
    with pytest.raises(ValueError, match="norm limit 0: no power of two brings a norm to it"):
        nn.SGD(module, 1.0, max_norm=0.1).step()


LIMITED = {**PLAIN, "update": {**UPDATE, **PARTS["decayed ahead"], "norm": "u12f8"}}
LIMITED_BUFFER = {**PLAIN, "update": {**BUFFERED, "weight": "s12f8 stochastic6 sat",
                                      "norm": "u12f8"}}


@pytest.mark.parametrize(("hardware", "settings"), [
    (LIMITED, {"lr": 0.25, "momentum": 0.5, "weight_decay": 0.1}), (LIMITED_BUFFER, {"lr": 0.25})],
    ids=["momentum", "buffer"])
def test_a_recorded_step_replays_and_moves_no_bit(tmp_path, hardware, settings):
    runs = []
    for record in (False, True):
        model = mlp(hardware)
        optimizer = nn.SGD(model, **settings, max_norm=0.5)
        train(model, optimizer, [0])
        if record:
            recorder = Recorder(model[0].layer.backend)
            nn.use_backend(model, recorder)
        train(model, optimizer, [1])
        runs.append(masters(model))
    assert runs[0] == runs[1]
    emu.golden.check_traces(recorder.traces)
    emu.golden.write_step(tmp_path / "v", recorder.traces, {})
    names = {path.name for path in (tmp_path / "v").rglob("*.hex")}
    assert {"0.update.weight.square.hex", "0.update.weight.norm.hex"} <= names


def test_a_recorder_refuses_to_clip():
    module = nn.Linear(1, 1, bias=False, spec={"update": {**UPDATE, "clip": "u4"}})
    nn.use_backend(module, Recorder(module.layer.backend))
    module.weight.grad = torch.ones(1, 1)
    with pytest.raises(ValueError, match=r"linear.update.weight.clip: clips gradients at a limit"):
        nn.SGD(module, 0.5, clip_value=1).step()


SCHEDULERS = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 4),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(
        o, 0.9, total_steps=5, div_factor=4, final_div_factor=5),
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_scheduler_drives_codes_as_it_drives_floats(scheduler):
    module = nn.Linear(1, 1, bias=False, spec={"update": UPDATE})
    optimizer = nn.SGD(module, 0.9)
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.9, 0.5)
    drivers = scheduler(optimizer), scheduler(other)
    with torch.no_grad():
        module.weight.zero_()
    for _ in range(4):
        lr = other.param_groups[0]["lr"]
        assert optimizer.param_groups[0]["lr"] == lr
        before = Fraction(module.weight.item())
        spec = UpdateSpec.parse(UPDATE)
        module.weight.grad = torch.ones(1, 1)
        optimizer.param_groups[0]["momentum"] = 0.0  # what OneCycleLR moves too
        optimizer.step()
        other.step()
        move = Fraction(coded(lr, spec.lr), 2**8) * 2**10
        assert Fraction(module.weight.item()) * 2**10 == oracle.rounded(
            before * 2**10 - move, "TIES_EVEN")
        for driver in drivers:
            driver.step(*([1.0] if "Plateau" in type(driver).__name__ else []))


def test_groups_have_rates_of_their_own():
    model = mlp()
    optimizer = nn.SGD(model, 0.5, params=[{"params": model[0].parameters(), "lr": 0.25},
                                           {"params": [model[2].bias], "momentum": 0.5}])
    kept = model[2].weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
        with torch.no_grad():
            parameter.zero_()
    for _ in range(2):
        optimizer.step()
    assert {p.unique().item() for p in model[0].parameters()} == {-0.5}
    assert model[2].bias.unique().item() == -0.5 - 0.5 * 1.5
    optimizer.add_param_group({"params": model[2].weight, "lr": 0.75})
    with torch.no_grad():
        model[2].weight.copy_(kept)
    optimizer.step()
    assert torch.equal(model[2].weight, kept - 0.75)


def test_a_group_of_other_parameters_is_refused_and_not_added():
    model = mlp()
    optimizer = nn.SGD(model, 0.5, params=model[0].parameters())
    with pytest.raises(ValueError, match=r"a parameter \(2,\) is none of the model's; add only"):
        optimizer.add_param_group({"params": torch.nn.Parameter(torch.zeros(2))})
    with pytest.raises(ValueError, match=r"weight_decay 0\.1, and the update"):
        optimizer.add_param_group({"params": model[2].parameters(), "weight_decay": 0.1})
    assert len(optimizer.param_groups) == 1


def test_a_copy_of_model_and_optimizer_goes_on_alone_with_the_same_bytes():
    model = mlp({**PLAIN, "update": {**UPDATE, **PARTS["drawn ahead"]}}, seed=3)
    optimizer = nn.SGD(model, 0.25, 0.5)
    train(model, optimizer, range(2))
    copies = [copy.deepcopy((model, optimizer))]
    file = io.BytesIO()
    torch.save((model, optimizer), file)
    file.seek(0)
    copies.append(torch.load(file, weights_only=False))
    train(model, optimizer, [2])
    for one, other in copies:
        train(one, other, [2])
        assert (masters(one), momenta(one, other)) == (masters(model), momenta(model, optimizer))


@pytest.mark.parametrize(("change", "message"), [
    ({"buffer": torch.zeros(5, 4).long()}, "0.weight: the state has buffer; its .* keeps a mom"),
    ({}, "0.weight: the state has ; its update keeps a momentum"),
    ({"momentum": torch.zeros(4, 5).long()}, r"momentum: shape \(4, 5\) in the state; the param"),
    ({"momentum": torch.full((5, 4), 2**17)}, "momentum: codes from 131072 to 131072 in the state"),
])
def test_another_state_is_refused_and_nothing_is_loaded(change, message):
    model = mlp()
    optimizer = nn.SGD(model, 0.25, 0.5)
    train(model, optimizer, [0])
    before = momenta(model, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0] = change
    state["state"][1]["momentum"] += 1
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    assert momenta(model, optimizer) == before


def test_a_buffer_that_no_float_holds_survives_a_file():
    module = nn.Linear(1, 1, bias=False, spec={"update": {**BUFFERED, "buffer": "s40f14 sat"}})
    optimizer = nn.SGD(module, 0.25)
    module.weight.grad = torch.ones(1, 1)
    optimizer.step()
    optimizer.state[module.weight]["buffer"].fill_(2**38 + 1)
    other = nn.SGD(module, 0.25)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert other.state[module.weight]["buffer"].item() == 2**38 + 1


def backward(model, optimizer, factor: float = 1) -> None:
    """The gradients of one step, of `factor` times the loss."""
    x, target = map(tensor, data(1))
    optimizer.zero_grad()
    y = model(x)
    y.backward((y.detach() - target) * factor)


def wide() -> tuple:
    """A model whose errors keep all bits of an error scaled by 2^10, and its optimizer."""
    model = mlp({**PLAIN, "error": "s20f4 ties_even sat", "grad_input": {"acc": "s32 sat"},
                 "grad_weight": {"acc": "s32 sat"}, "grad_bias": {"acc": "s32 sat"},
                 "grad_w": "s24f5 ties_odd sat", "grad_b": "s24f3 to_odd sat"})
    return model, nn.SGD(model, 0.25, 0.5)


@pytest.mark.parametrize("unscale", [False, True])
def test_a_scaler_by_powers_of_two_is_exact(unscale):
    model, optimizer = wide()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    backward(model, optimizer, 2.0**10)
    scaler.scale(torch.zeros(1))
    grads = [p.grad.double().clone() for p in model.parameters()]
    before = masters(model)
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    spec = UpdateSpec.parse(PLAIN["update"])
    for (name, old), grad, parameter in zip(before.items(), grads, model.parameters(), strict=True):
        codes = [oracle.cast(Fraction(g) / 2**10, spec.grad) for g in grad.flatten().tolist()]
        weights = torch.tensor(old).flatten().tolist()
        want = [oracle.sgd(w, 0, g, 64, 128, spec)[0] for w, g in zip(weights, codes, strict=True)]
        assert torch.tensor(masters(model)[name]).flatten().tolist() == want
        assert (parameter * 2**10).flatten().tolist() == want
    assert scaler.get_scale() == 2.0**11


def test_a_scaler_by_another_factor_is_refused():
    model, optimizer = wide()
    for unscale in (False, True):
        scaler = torch.amp.GradScaler("cpu", init_scale=1000.0)
        scaler.scale(torch.zeros(1))
        backward(model, optimizer, 1000.0)
        before = masters(model)
        if unscale:
            scaler.unscale_(optimizer)
        with pytest.raises(ValueError, match="scale of 1000.0 is no power of two" if not unscale
                           else "off the grid"):
            scaler.step(optimizer)
        assert masters(model) == before


def test_a_scaler_skips_a_step_of_infinite_gradients():
    module, optimizer = weight_and_update(100, 0.25, 0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(1))
    module.weight.grad = torch.full((1, 1), math.inf)
    scaler.step(optimizer)
    scaler.update()
    assert (module.weight.item(), scaler.get_scale()) == (100, 2.0)


def test_autocast_is_refused():
    model = mlp()
    with torch.autocast("cpu"), pytest.raises(ValueError, match="layer '0': autocast is active"):
        model(torch.zeros(2, 4))
    with torch.autocast("cpu"), torch.autocast("cpu", enabled=False):
        model(torch.zeros(2, 4))


def test_gradients_that_clip_grad_norm_scaled_are_refused():
    model, optimizer = wide()
    backward(model, optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e6)  # scales by 1
    optimizer.step()
    backward(model, optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
    with pytest.raises(ValueError, match=r"0.bias.grad: off the grid of 2\^-3 on which it was "
                                         r"computed; something like clip_grad_norm_ .* max_norm"):
        optimizer.step()


def test_gradients_clipped_at_a_power_of_two_pass_and_at_another_value_do_not():
    model, optimizer = wide()
    backward(model, optimizer)
    torch.nn.utils.clip_grad_value_(model.parameters(), 0.25)
    optimizer.step()
    backward(model, optimizer)
    torch.nn.utils.clip_grad_value_(model.parameters(), 0.3)
    with pytest.raises(ValueError, match="off the grid"):
        optimizer.step()


def test_gradients_of_several_passes_are_on_the_grid_of_their_sum():
    model, optimizer = wide()
    backward(model, optimizer)
    x, target = map(tensor, data(2))
    for factor in (2.0**-7, 2.0**9):
        y = model(x)
        y.backward((y.detach() - target) * factor)
    optimizer.step()


def test_a_half_model_is_refused_by_name():
    module, optimizer = weight_and_update(100, 0.25, 0.5)
    module.half()
    module.weight.grad = torch.ones(1, 1, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"linear.weight.grad: dtype torch.float16 carries no"):
        optimizer.step()


def test_a_sparse_gradient_is_refused():
    module, optimizer = weight_and_update(100, 0.25, 0.5)
    module.weight.grad = torch.ones(1, 1).to_sparse()
    with pytest.raises(ValueError, match=r"linear.weight.grad: is sparse; build the layer with"):
        optimizer.step()


def test_to_grid_brings_back_what_averaging_moved():
    model = mlp()
    optimizer = nn.SGD(model, 0.25, 0.5)
    average = torch.optim.swa_utils.AveragedModel(model)
    for step in range(3):
        train_step(model, optimizer, *map(tensor, data(step)))
        average.update_parameters(model)
    with torch.no_grad():
        for parameter, mean in zip(model.parameters(), average.module.parameters(), strict=True):
            parameter.copy_(mean)
    means = [Fraction(x) for x in model[0].weight.flatten().tolist()]
    backward(model, optimizer)
    with pytest.raises(ValueError, match=r"0.weight: off the grid of its master format s16f10"):
        optimizer.step()
    nn.to_grid(torch.nn.ModuleList([model]))
    weight = UpdateSpec.parse(UPDATE).weight
    assert torch.tensor(masters(model)["0.weight"]).flatten().tolist() == [
        oracle.cast(mean, weight) for mean in means]
    optimizer.step()


def test_a_parameter_that_is_frozen_stays():
    model = mlp()
    model[0].weight.requires_grad_(False)
    kept = model[0].weight.clone()
    optimizer = nn.SGD(model, 0.25, 0.5)
    train(model, optimizer, range(2))
    assert torch.equal(model[0].weight, kept)
    assert model[0].weight not in optimizer.state


def test_some_gradients_make_the_norm_of_these():
    module = nn.Linear(2, 1, spec=norm_spec())
    optimizer = nn.SGD(module, 1.0, max_norm=4)
    with torch.no_grad():
        module.weight.zero_()
    module.weight.grad = torch.tensor([[8.0, 0.0]])
    optimizer.step()
    assert module.weight.tolist() == [[-4, 0]]
    module.weight.grad = None
    optimizer.step()
    assert module.weight.tolist() == [[-4, 0]]


def test_noise_in_a_scale_is_seen():
    model, optimizer = wide()
    backward(model, optimizer)
    for parameter in model.parameters():
        parameter.grad.mul_(2.0**-3)
    optimizer.step()
    backward(model, optimizer)
    model[2].bias.grad.add_(2.0**-30)
    with pytest.raises(ValueError, match=r"2\.bias\.grad: off the grid"):
        optimizer.step()


def test_two_models_have_states_of_their_own():
    one, other = mlp(seed=1), mlp(seed=1)
    first, second = nn.SGD(one, 0.25, 0.5), nn.SGD(other, 0.25, 0.5)
    train(one, first, range(3))
    train(other, second, [0])
    second.load_state_dict(first.state_dict())
    other.load_state_dict(one.state_dict())
    other[0].layer.backend.step = one[0].layer.backend.step
    train(one, first, [3])
    train(other, second, [3])
    assert masters(one) == masters(other)
    assert momenta(one, first) == momenta(other, second)
