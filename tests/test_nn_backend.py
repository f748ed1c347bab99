"""What a backend counts and draws, and how another one takes its place."""

import integer_network as ints
import pytest
import torch
from fixed_layers import GRAD, HARDWARE, UPDATE, B, W, X, give, hardware, passed, tensor
from integer_network import Grid, flat, shape_of, some

from emu import Cast, nn, reference

NARROW = {"forward": "{acc: s9 sat, lanes: 4}", "grad_input": "{acc: s8 wrap}",
          "grad_weight": "{acc: s8 sat, tile: 2, outer: s7f-1 sat}", "grad_bias": "{acc: s6 sat}"}


def fixed_linear(backend=None, **changes) -> nn.Linear:
    """A Linear with the weights of this file."""
    return give(nn.Linear(6, 4, spec=hardware(**changes), backend=backend), W, B)


def counted(counts) -> tuple:
    """The numbers of one place."""
    return counts.values, counts.overflowed, counts.steps, counts.overflowed_steps


def walked(terms, mac, bias=None) -> tuple:
    """What a MAC counts: outputs, those with an overflow, steps, those that overflowed."""
    steps = [[bad for _, bad in reference.dot_steps(a, b, mac, 0 if bias is None else
                                                    bias[i % len(bias)])]
             for i, (a, b) in enumerate(terms)]
    return (len(steps), sum(any(walk) for walk in steps), sum(map(len, steps)),
            sum(map(sum, steps)))


def test_a_cast_counts_values_and_those_out_of_range():
    module = nn.Activation(spec={"y": "s4 ties_even sat"})
    module(torch.tensor([7.4, 7.5, -8.5, -8.6, 100.0]))
    assert counted(module.layer.backend.counts["activation", "y"]) == (5, 3, 0, 0)


def test_every_pass_counts_its_steps_and_those_that_overflowed():
    module, twin = fixed_linear(**NARROW), ints.Linear("linear", hardware(**NARROW))
    passed(module, X, GRAD)
    twin.forward(X, W, B)
    error, _ = twin.cast("error", Grid(ints.masked(GRAD.codes, twin.y_passes), GRAD.frac))
    preload, _ = twin.cast("preload", twin.b, Cast(
        twin.spec.forward.acc.format.with_frac(6), twin.spec.b.rounding, twin.spec.b.overflow))
    x, w, columns = twin.x.codes, twin.w.codes, ints.transposed
    terms = {"forward": reference.matmul_terms(x, columns(w)),
             "grad_input": reference.matmul_terms(error.codes, w),
             "grad_weight": reference.matmul_terms(columns(x), error.codes),
             "grad_bias": reference.bias_grad_terms(error.codes)}
    want = {name: walked(terms[name], getattr(twin.spec, name),
                         preload.codes if name == "forward" else None) for name in terms}
    counts = module.layer.backend.counts
    assert {name: counted(counts["linear", name]) for name in terms} == want


@pytest.mark.parametrize("groups, block", [(1, 1), (1, 3), (2, 1), (2, 4)])
def test_a_convolution_counts_the_steps_of_every_group(groups, block):
    spec = hardware(forward=f"{{acc: s8 sat, block: {block}, lanes: 2}}",
                    grad_input=f"{{acc: s8 sat, block: {block}}}", grad_weight="{acc: s8 sat}",
                    y=None, b=None)
    x, w = some((2, 2, 3, 4), 220, 5, 4), some((4, 2 // groups, 2, 3), 70, 5, 5)
    grad = some((2, 4, 2, 2), 90, 5, 6)
    module = give(nn.Conv2d(2, 4, (2, 3), groups=groups, bias=False, spec=spec), w)
    twin = ints.Conv2d("conv2d", spec, groups=groups)
    passed(module, x, grad)
    twin.forward(x, w)
    error, _ = twin.cast("error", grad)
    x, w, error, kernel = twin.x.codes, twin.w.codes, error.codes, shape_of(w.codes)[2:]
    want = {
        "forward": walked(reference.conv2d_terms(x, w, groups=groups, block=block), spec.forward),
        "grad_input": walked(reference.conv2d_grad_input_terms(
            error, w, (3, 4), groups=groups, block=block), spec.grad_input),
        "grad_weight": walked(reference.conv2d_grad_weight_terms(
            x, error, kernel, groups=groups), spec.grad_weight)}
    counts = module.layer.backend.counts
    assert {name: counted(counts["conv2d", name]) for name in want} == want


def test_counts_add_up_over_calls():
    module = fixed_linear(**NARROW)
    passed(module, X, GRAD)
    once = {place: counted(counts) for place, counts in module.layer.backend.counts.items()}
    passed(module, X, GRAD)
    twice = {place: counted(counts) for place, counts in module.layer.backend.counts.items()}
    assert twice == {place: tuple(2 * n for n in counts) for place, counts in once.items()}


def test_an_update_counts_what_leaves_its_formats():
    casts = {"weight": "s4 sat", "momentum": "s5 sat", "grad": "s6", "lr": "u2f0", "mu": "u2f1"}
    module = nn.Linear(3, 1, bias=False, spec={"update": casts})
    optimizer = nn.SGD(module, 1.0, 0.5)
    with torch.no_grad():
        module.weight.zero_()
    module.weight.grad = torch.tensor([[20.0, 8.0, -9.0]])
    optimizer.step()
    counts = module.layer.backend.counts
    got = [counted(counts["linear", f"update.weight.{name}"])[:2]
           for name in ("grad", "momentum", "weight")]
    assert got == [(3, 0), (3, 1), (3, 2)]  # 20 > 15; then -15 < -8 and 9 > 7


def test_evaluation_counts_nothing():
    module = fixed_linear(**NARROW).eval()
    passed(module, X, GRAD)
    assert module.layer.backend.counts == {}


def test_counting_moves_no_result():
    module = fixed_linear(**NARROW)
    got = module(tensor(X))
    assert torch.equal(got, module.eval()(tensor(X)))


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
