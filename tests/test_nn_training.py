"""Whole training steps, against the same network on Python ints: every code of every tensor."""

import integer_network as ints
import numba
import pytest
import torch
from fixed_layers import HARDWARE, UPDATE, masters, momenta, tensor, train_step
from integer_network import some

from emu import LayerSpec, nn
from emu.engine.kernels import jit

MEAN = {"y": "s9f4 ties_even sat", "error": "s8f6 ties_away sat"}
LR, MU = 0.15625, 0.9  # 0.9 is no code of its cast: both sides have to round it
RULES = {name: f"{sign}6 auto:max {rounding} sat" for name, sign, rounding in [
    ("x", "s", "ties_even"), ("y", "s", "ties_away"), ("error", "s", "stochastic9"),
    ("grad_w", "s", "ties_even"), ("grad_b", "s", "ties_pos")]}
DRAWN = {name: f"{text.split()[0]} stochastic6 sat" for name, text in HARDWARE.items()
         if isinstance(text, str)}
CONFIGS = {
    "rounded": {**HARDWARE, "update": UPDATE},
    "narrow wrapping accumulators": {
        **HARDWARE, "update": UPDATE, "forward": "{acc: s9 wrap}", "grad_weight": "{acc: s8 wrap}",
        "grad_input": "{acc: s8 wrap}"},
    "narrow saturating accumulators of four lanes": {
        **HARDWARE, "update": UPDATE, "forward": "{acc: s9 sat, lanes: 4}",
        "grad_input": "{acc: s8 sat, lanes: 4}", "grad_weight": "{acc: s8 sat_zero, lanes: 4}"},
    "chosen binary points": {**HARDWARE, **RULES, "update": UPDATE},
    "stochastic everywhere": {**HARDWARE, **DRAWN, "update": {
        **UPDATE, "weight": "s10f6 stochastic12 sat", "momentum": "s12f6 stochastic7 sat",
        "grad": "s10f6 stochastic3 sat"}},
    "saturating master weights": {**HARDWARE, "update": {
        **UPDATE, "weight": "s6f4 ties_even sat", "momentum": "s5f3 to_zero sat_sym",
        "grad": "s4f3 ties_even sat"}},
}


def mlp() -> torch.nn.Sequential:
    """6-8-3."""
    model = torch.nn.Sequential()
    model.add_module("first", torch.nn.Linear(6, 8))
    model.add_module("relu", torch.nn.ReLU())
    model.add_module("last", torch.nn.Linear(8, 3))
    return model


def mlp_of_ints(spec, seed) -> ints.Network:
    """The same network, on ints."""
    return ints.Network(ints.Linear("first", spec, seed), ints.ReLU(),
                        ints.Linear("last", spec, seed))


def cnn() -> torch.nn.Sequential:
    """Two 5 x 5 planes, 4 channels, overlapping pools, 3 outputs."""
    model = torch.nn.Sequential()
    model.add_module("first", torch.nn.Conv2d(2, 4, 3, padding=1, stride=(1, 2)))
    model.add_module("relu", torch.nn.ReLU())
    model.add_module("largest", torch.nn.MaxPool2d(2, 1))
    model.add_module("mean", torch.nn.AvgPool2d((3, 1), 1))
    model.add_module("flatten", torch.nn.Flatten())
    model.add_module("last", torch.nn.Linear(16, 3))
    return model


def cnn_of_ints(spec, seed) -> ints.Network:
    """The same network, on ints."""
    mean = LayerSpec.parse(MEAN)
    return ints.Network(
        ints.Conv2d("first", spec, seed, padding=(1, 1), stride=(1, 2)), ints.ReLU(),
        ints.MaxPool2d((2, 2), (1, 1)), ints.AvgPool2d("mean", mean, (3, 1), (1, 1)),
        ints.Flatten(), ints.Linear("last", spec, seed))


NETWORKS = {"mlp": (mlp, mlp_of_ints, (5, 6), {}),
            "cnn": (cnn, cnn_of_ints, (2, 2, 5, 5), {"by_type": {"AvgPool2d": MEAN}})}


def fixed(build, hardware, by_type, seed=0, dtype=torch.float32) -> torch.nn.Module:
    """The network on `hardware`, with seeded weights over the whole range of its operands."""
    model = build().to(dtype)
    for i, (_, parameter) in enumerate(model.named_parameters()):
        with torch.no_grad():
            parameter.copy_(tensor(some(tuple(parameter.shape), 70, 5, i)))
    return nn.fix(model, {"default": hardware, **by_type}, nn.Backend(seed))


@pytest.mark.parametrize("hardware", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("network", NETWORKS)
def test_three_training_steps_agree_in_every_code(network, hardware):
    build, build_of_ints, size, by_type = NETWORKS[network]
    model = fixed(build, hardware, by_type, seed=3)
    optimizer = nn.SGD(model, LR, MU)
    twin = build_of_ints(LayerSpec.parse(hardware), seed=3)
    twin.load(masters(model))
    for step in range(3):
        x, target = some(size, 100, 5, 10 + step), some((size[0], 3), 40, 4, 20 + step)
        train_step(model, optimizer, tensor(x), tensor(target))
        twin.train_step(x, target, LR, MU)
        want = {name: (p.weight, p.momentum) for name, p in twin.parameters.items()}
        momentum = momenta(model, optimizer)
        got = {name: (weight, momentum[name]) for name, weight in masters(model).items()}
        assert got == want, f"after step {step}"


def trained(model: torch.nn.Module, steps: int = 3) -> dict[str, tuple]:
    """Every weight and momentum code after training the CNN."""
    optimizer = nn.SGD(model, LR, MU)
    for step in range(steps):
        x, target = some((2, 2, 5, 5), 100, 5, 10 + step), some((2, 3), 40, 4, 20 + step)
        dtype = next(model.parameters()).dtype
        train_step(model, optimizer, tensor(x, dtype), tensor(target, dtype))
    momentum = momenta(model, optimizer)
    return {name: (weight, momentum[name]) for name, weight in masters(model).items()}


@pytest.mark.parametrize("hardware", CONFIGS.values(), ids=CONFIGS)
def test_a_second_run_gives_the_same_codes(hardware):
    by_type = {"by_type": {"AvgPool2d": MEAN}}
    runs = [trained(fixed(cnn, hardware, by_type, seed=3)) for _ in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("name", ["rounded", "stochastic everywhere"])
def test_one_thread_and_two_give_the_same_bytes(name, monkeypatch):
    monkeypatch.setattr(jit, "TEAM", 0)  # else arrays this small run on one thread anyway
    runs = []
    before = numba.get_num_threads()
    try:
        for threads in (1, 2):
            numba.set_num_threads(threads)
            model = fixed(cnn, CONFIGS[name], {"by_type": {"AvgPool2d": MEAN}}, seed=3)
            trained(model)
            runs.append([parameter.detach().numpy().tobytes() for parameter in model.parameters()])
    finally:
        numba.set_num_threads(before)
    assert runs[0] == runs[1]


@pytest.mark.parametrize("hardware", CONFIGS.values(), ids=CONFIGS)
def test_float32_and_float64_carry_the_same_training(hardware):
    by_type = {"by_type": {"AvgPool2d": MEAN}}
    runs = [trained(fixed(cnn, hardware, by_type, seed=3, dtype=dtype))
            for dtype in (torch.float32, torch.float64)]
    assert runs[0] == runs[1]


def test_another_seed_trains_to_other_codes():
    hardware, by_type = CONFIGS["stochastic everywhere"], {"by_type": {"AvgPool2d": MEAN}}
    runs = [trained(fixed(cnn, hardware, by_type, seed)) for seed in (3, 4)]
    assert runs[0] != runs[1]


def test_the_seed_matters_to_nothing_where_nothing_is_stochastic():
    hardware, by_type = CONFIGS["rounded"], {"by_type": {"AvgPool2d": MEAN}}
    runs = [trained(fixed(cnn, hardware, by_type, seed)) for seed in (3, 4)]
    assert runs[0] == runs[1]


def test_evaluation_between_steps_changes_no_code():
    hardware = {**CONFIGS["stochastic everywhere"], **RULES}
    model, undisturbed = (fixed(mlp, hardware, {}, seed=3) for _ in range(2))
    optimizers = nn.SGD(model, LR, MU), nn.SGD(undisturbed, LR, MU)
    for step in range(3):
        x, target = tensor(some((5, 6), 100, 5, step)), tensor(some((5, 3), 40, 4, step))
        train_step(model, optimizers[0], x, target)
        model.eval()(4 * x)
        model.train()
        train_step(undisturbed, optimizers[1], x, target)
    assert masters(model) == masters(undisturbed)


def test_cross_entropy_has_the_gradient_of_torch():
    # A host computation in float64 against torch's own: the one tolerance of this file.
    logits = tensor(some((4, 3), 100, 5, 1), torch.float64).requires_grad_()
    target = torch.tensor([0, 2, 1, 1])
    (want,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, target), logits)
    (got,) = torch.autograd.grad(nn.cross_entropy(logits, target), logits)
    torch.testing.assert_close(got, want)


def test_cross_entropy_has_the_value_of_torch():
    logits = tensor(some((4, 3), 100, 5, 1), torch.float64)
    target = torch.tensor([0, 2, 1, 1])
    want = torch.nn.functional.cross_entropy(logits, target)
    torch.testing.assert_close(nn.cross_entropy(logits, target), want)


@pytest.mark.parametrize("logits, target, message", [
    ((4,), (4,), r"logits \(4,\) and target \(4,\): needs \(N, classes\) and \(N,\)"),
    ((4, 3), (3,), r"logits \(4, 3\) and target \(3,\): needs \(N, classes\) and \(N,\)"),
    ((0, 3), (0,), r"logits \(0, 3\): an empty batch has no mean loss"),
])
def test_cross_entropy_refuses_other_shapes(logits, target, message):
    with pytest.raises(ValueError, match=message):
        nn.cross_entropy(torch.zeros(logits), torch.zeros(target, dtype=torch.long))
