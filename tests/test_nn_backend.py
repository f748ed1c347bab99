"""What a backend records and draws, and how another one takes its place."""

from contextlib import nullcontext
from fractions import Fraction
from math import prod

import integer_network as ints
import pytest
import torch
from engine_cases import accounted, numbers
from fixed_layers import GRAD, HARDWARE, UPDATE, B, W, X, give, hardware, passed, tensor
from integer_network import Grid, flat, shape_of, some

import emu
from emu import Cast, nn, reference

NARROW = {"forward": "{acc: s9 sat, lanes: 4}", "grad_input": "{acc: s8 wrap}",
          "grad_weight": "{acc: s8 sat, tile: 2, outer: s7f-1 sat}", "grad_bias": "{acc: s6 sat}"}


def fixed_linear(backend=None, **changes) -> nn.Linear:
    """A Linear with the weights of this file."""
    return give(nn.Linear(6, 4, spec=hardware(**changes), backend=backend), W, B)


def records(compute) -> dict:
    """The records of what a call computes, by label."""
    with emu.monitor() as seen:
        compute()
    found = {record.label: record for record in seen}
    assert len(found) == len(seen)
    return found


def channels(record) -> list[dict]:
    """The numbers of each channel."""
    return [numbers(channel) for channel in record.channels]


def test_a_cast_is_recorded_under_its_place():
    module = nn.Activation(spec={"y": "s4 ties_even sat"})
    found = records(lambda: module(torch.tensor([7.375, 7.5, -8.5, -8.6, 100.0])))
    assert list(found) == ["activation.y"]
    total = found["activation.y"].total
    # 7.375 becomes 7 and -8.5 becomes -8; 7.5, -8.6 and 100 are out of range.
    assert (total.values, total.overflows) == (5, 3)
    assert total.error == Fraction(-3, 8) + Fraction(1, 2)


def test_every_pass_is_recorded_by_output_channel():
    module, twin = fixed_linear(**NARROW), ints.Linear("linear", hardware(**NARROW))
    found = records(lambda: passed(module, X, GRAD))
    twin.forward(X, W, B)
    error, _ = twin.cast("error", Grid(ints.masked(GRAD.codes, twin.y_passes), GRAD.frac))
    preload, _ = twin.cast("preload", twin.b, Cast(
        twin.spec.forward.acc.format.with_frac(6), twin.spec.b.rounding, twin.spec.b.overflow))
    x, w, columns = twin.x.codes, twin.w.codes, ints.transposed
    want = {"forward": (reference.matmul_terms(x, columns(w)), preload.codes * 5, (5, 4), 1),
            "grad_input": (reference.matmul_terms(error.codes, w), [0] * 30, (5, 6), 1),
            "grad_weight": (reference.matmul_terms(columns(x), error.codes), [0] * 24, (6, 4), 1),
            "grad_bias": (reference.bias_grad_terms(error.codes), [0] * 4, (4, 1), 0)}
    for name, (terms, biases, shape, axis) in want.items():
        _, accounts, first = accounted(terms, getattr(twin.spec, name), biases, shape, axis)
        assert channels(found[f"linear.{name}"]) == accounts, name
        assert (found[f"linear.{name}"].first is None) == (first is None)
        assert sum(account["overflowing_steps"] for account in accounts) > 0


@pytest.mark.parametrize("groups, block", [(1, 1), (1, 3), (2, 1), (2, 4)])
def test_every_pass_of_a_convolution_is_recorded(groups, block):
    spec = hardware(forward=f"{{acc: s8 sat, block: {block}, lanes: 2}}",
                    grad_input=f"{{acc: s8 sat, block: {block}}}", grad_weight="{acc: s8 sat}",
                    y=None, b=None)
    x, w = some((2, 2, 3, 4), 220, 5, 4), some((4, 2 // groups, 2, 3), 70, 5, 5)
    grad = some((2, 4, 2, 2), 90, 5, 6)
    module = give(nn.Conv2d(2, 4, (2, 3), groups=groups, bias=False, spec=spec), w)
    found = records(lambda: passed(module, x, grad))
    twin = ints.Conv2d("conv2d", spec, groups=groups)
    twin.forward(x, w)
    error, _ = twin.cast("error", grad)
    x, w, error, kernel = twin.x.codes, twin.w.codes, error.codes, shape_of(w.codes)[2:]
    want = {
        "forward": (reference.conv2d_terms(x, w, groups=groups, block=block), (2, 4, 2, 2), 1),
        "grad_input": (reference.conv2d_grad_input_terms(
            error, w, (3, 4), groups=groups, block=block), (2, 2, 3, 4), 1),
        "grad_weight": (reference.conv2d_grad_weight_terms(
            x, error, kernel, groups=groups), (4, 2 // groups, 2, 3), 0)}
    for name, (terms, shape, axis) in want.items():
        _, accounts, _ = accounted(terms, getattr(spec, name), [0] * prod(shape), shape, axis)
        assert channels(found[f"conv2d.{name}"]) == accounts, name


def test_tensors_have_the_channels_of_their_layer():
    spec = hardware(**NARROW)
    linear = records(lambda: passed(fixed_linear(**NARROW), X, GRAD))
    assert {name: len(linear[f"linear.{name}"].channels) for name in
            ("x", "w", "b", "preload", "y", "error", "grad_w", "grad_b", "forward", "grad_input",
             "grad_weight", "grad_bias")} == {
        "x": 6, "w": 4, "b": 4, "preload": 4, "y": 4, "error": 4, "grad_w": 4, "grad_b": 4,
        "forward": 4, "grad_input": 6, "grad_weight": 4, "grad_bias": 4}
    conv = give(nn.Conv2d(2, 3, 2, spec=spec), some((3, 2, 2, 2), 70, 5, 1), some((3,), 70, 5, 2))
    found = records(lambda: passed(conv, some((2, 2, 3, 3), 220, 5, 3), some((2, 3, 2, 2), 90, 5,
                                                                           4)))
    assert {name: len(found[f"conv2d.{name}"].channels) for name in
            ("x", "w", "b", "y", "error", "grad_input", "grad_bias")} == {
        "x": 2, "w": 3, "b": 3, "y": 3, "error": 3, "grad_input": 2, "grad_bias": 3}
    pool = nn.AvgPool2d(3, spec={"y": "s8f3 ties_even sat", "error": "s8f3 ties_even sat"})
    found = records(lambda: passed(pool, some((2, 5, 3, 3), 220, 5, 3), some((2, 5, 1, 1), 90, 5,
                                                                             4)))
    assert {label: len(record.channels) for label, record in found.items()} == {
        "avgpool2d.y": 5, "avgpool2d.error": 5}


def test_records_of_two_calls_join():
    module = fixed_linear(**NARROW)
    once, again = (records(lambda: passed(module, X, GRAD)) for _ in range(2))
    both = {label: record + again[label] for label, record in once.items()}
    assert {label: record.total.overflowing_steps for label, record in both.items()
            if "forward" in label} == {
        "linear.forward": 2 * once["linear.forward"].total.overflowing_steps}
    assert {record.calls for record in both.values()} == {2}


def test_an_update_records_what_leaves_its_formats():
    casts = {"weight": "s4 sat", "momentum": "s5 sat", "grad": "s6", "lr": "u2f0", "mu": "u2f1"}
    module = nn.Linear(3, 1, bias=False, spec={"update": casts})
    optimizer = nn.SGD(module, 1.0, 0.5)
    with torch.no_grad():
        module.weight.zero_()
    module.weight.grad = torch.tensor([[20.0, 8.0, -9.0]])
    found = records(optimizer.step)
    got = {label: (record.total.values, record.total.overflows)
           for label, record in found.items()}
    # 20 > 15; then -15 < -8 and 9 > 7
    assert got == {"linear.update.weight.lr": (1, 0), "linear.update.weight.mu": (1, 0),
                   "linear.update.weight.grad": (3, 0), "linear.update.weight.momentum": (3, 1),
                   "linear.update.weight.weight": (3, 2)}


def test_watching_moves_no_result():
    stochastic = {"x": "s5f2 stochastic7 sat", "error": "s6 stochastic3 sat"}
    plain, watched = (fixed_linear(**NARROW, **stochastic) for _ in range(2))
    with emu.monitor() as seen:
        got = passed(watched, X, GRAD)
    assert got == passed(plain, X, GRAD)
    assert any(record.total.overflows for record in seen if record.label == "linear.x")


def test_a_whole_step_is_the_same_when_watched():
    modules = [give(nn.Linear(6, 4, spec={**HARDWARE, "update": UPDATE}), W, B) for _ in range(2)]
    for module, scope in zip(modules, (nullcontext, emu.monitor), strict=True):
        optimizer = nn.SGD(module, 0.25, 0.5)
        with scope():
            for _ in range(2):
                passed(module, X, GRAD)
                optimizer.step()
    assert torch.equal(modules[0].weight, modules[1].weight)
    assert torch.equal(modules[0].bias, modules[1].bias)


def test_random_operands_may_be_foreseen():
    module = fixed_linear(nn.Backend(9), x="s5f2 stochastic7 sat")
    backend = module.layer.backend
    place = nn.Place("linear", "x", True)
    for call in range(2):
        assert backend.loads(place).tolist() == reference.load_words(9, 0, "linear", "x", call)
        module(tensor(X))


def test_a_step_starts_the_calls_anew():
    module = fixed_linear(x="s5f2 stochastic7 sat")
    module(tensor(X))
    module.layer.backend.end_step()
    got = module.layer.backend.loads(nn.Place("linear", "x", True)).tolist()
    assert got == reference.load_words(0, 1, "linear", "x", 0)


def test_another_backend_sees_every_operation_of_a_step():
    seen = []

    class Recorder(nn.Backend):
        def cast(self, place, *arguments):
            seen.append(place.name)
            return super().cast(place, *arguments)

        def matmul(self, place, *arguments):
            seen.append(place.name)
            return super().matmul(place, *arguments)

        def sgd(self, place, *arguments):
            seen.append(place.name)
            return super().sgd(place, *arguments)

    module = nn.Linear(6, 4, spec={**HARDWARE, "update": UPDATE}, backend=Recorder())
    optimizer = nn.SGD(module, 0.25, 0.5)
    seen.clear()
    passed(module, X, GRAD)
    optimizer.step()
    assert seen == ["x", "w", "b", "preload", "forward", "y", "error", "grad_input", "grad_weight",
                    "grad_w", "grad_bias", "grad_b", "update.weight.grad", "update.weight",
                    "update.bias.grad", "update.bias"]


def test_a_backend_decides_the_codes():
    class Inverter(nn.Backend):
        def matmul(self, *arguments):
            return ~super().matmul(*arguments)

    module, inverted = fixed_linear(y=None), fixed_linear(Inverter(), y=None)
    step = 2.0**-6  # of x and w
    want = [-value - step for value in flat(module(tensor(X)).tolist())]
    assert flat(inverted(tensor(X)).tolist()) == want


@pytest.mark.parametrize("target", [[-1, 0], [0, 3]])
def test_a_target_that_is_no_class_is_refused(target):
    with pytest.raises(ValueError, match="the logits have classes 0 to 2"):
        nn.cross_entropy(torch.zeros(2, 3), torch.tensor(target))
