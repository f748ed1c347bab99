"""The auditor: what it refuses in forward and in backward, and what it lets pass."""

import pytest
import torch
import torch.nn.functional as F
from fixed_layers import HARDWARE, UPDATE, hardware, tensor, train_step
from integer_network import some

from emu import nn

FULL = {**HARDWARE, "update": UPDATE}
NORM, CONV = torch.nn.BatchNorm1d(4), torch.nn.Conv2d(1, 1, 2)
REFUSED = {
    "sum": (torch.sum, "aten.sum"),
    "mean": (lambda x: x.mean(1), "aten.mean"),
    "cumsum": (lambda x: x.cumsum(1), "aten.cumsum"),
    "prod": (lambda x: x.prod(1), "aten.prod"),
    "norm": (lambda x: x.norm(), "aten.linalg_vector_norm"),
    "norms of a list": (lambda x: torch._foreach_norm([x])[0], "aten._foreach_norm"),
    "matmul": (lambda x: x @ x, "aten.mm"),
    "batched matmul": (lambda x: x[None] @ x[None], "aten.bmm"),
    "matrix times vector": (lambda x: x @ x[0], "aten.mv"),
    "dot": (lambda x: x[0].dot(x[1]), "aten.dot"),
    "einsum": (lambda x: torch.einsum("ij,kj->ik", x, x), "aten.bmm"),
    "linear": (lambda x: F.linear(x, x, x[0]), "aten.addmm"),
    "convolution": (lambda x: CONV(x[None, None]), "aten.convolution"),
    "softmax": (lambda x: x.softmax(1), "aten._softmax"),
    "logsumexp": (lambda x: x.logsumexp(1), "aten.logsumexp"),
    "cross entropy": (lambda x: F.cross_entropy(x, torch.zeros(4, dtype=torch.long)),
                      "aten._log_softmax"),
    "batch norm": (NORM, "aten.native_batch_norm"),
    "layer norm": (lambda x: F.layer_norm(x, (4,)), "aten.native_layer_norm"),
    "average pool": (lambda x: F.avg_pool2d(x[None], 2), "aten.avg_pool2d"),
    "adaptive pool": (lambda x: F.adaptive_avg_pool2d(x[None], 2), "aten._adaptive_avg_pool2d"),
    "interpolation": (lambda x: F.interpolate(x[None], scale_factor=2, mode="linear"),
                      "aten.upsample_linear1d"),
    "attention": (lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]), "aten.mul"),
    "index add": (lambda x: x.index_add(0, torch.tensor([0, 0]), x[:2]), "aten.index_add"),
    "scatter add": (lambda x: x.scatter_add(0, torch.zeros(4, 4, dtype=torch.long), x),
                    "aten.scatter_add"),
    "product": (lambda x: x * x, "aten.mul"),
    "quotient": (lambda x: x / 3, "aten.div"),
    "exponential": (torch.exp, "aten.exp"),
    "addcmul": (lambda x: torch.addcmul(x, x, x), "aten.addcmul"),
    "lerp": (lambda x: torch.lerp(x, x, 0.3), "aten.lerp"),
}
# The gradient of a sum is a copy, and at most scaled.
ELEMENTWISE_BACK = {"sum", "mean", "dot", "logsumexp", "index add", "scatter add"}
MOVES = {
    "transpose": lambda x: x.T, "reshape": lambda x: x.reshape(2, 8), "slice": lambda x: x[:, 1:3],
    "select": lambda x: x[1], "cat": lambda x: torch.cat(x.chunk(2, 1), 0),
    "stack": lambda x: torch.stack(x.unbind(0), 1), "pad": lambda x: F.pad(x, (1, 2)),
    "flip": lambda x: x.flip(0), "where": lambda x: torch.where(x > 0, x, 0),
    "clamp": lambda x: x.clamp(-1, 1), "to double": lambda x: x.double(), "clone": torch.clone,
    "same-shape addition": lambda x: x + x, "subtraction from a number": lambda x: 1 - x,
    "maximum": lambda x: x.clamp(min=3),
}
# Exact forward, but the gradients of what was copied are added up.
SUMMED_BACK = {
    "broadcast addition": lambda x: x + torch.ones(3, 4, 4), "expand": lambda x: x.expand(3, 4, 4),
    "repeat": lambda x: x.repeat(2, 1), "gather": lambda x: x[torch.tensor([0, 0])],
}


def square() -> torch.Tensor:
    """A 4 x 4 input that wants a gradient."""
    return torch.arange(16.0).reshape(4, 4).requires_grad_()


def mlp(middle: torch.nn.Module) -> torch.nn.Sequential:
    """Two fixed layers and a module between them, which stays as it is."""
    model = torch.nn.Sequential(nn.Linear(4, 4, spec=FULL), torch.nn.Identity(),
                                nn.Linear(4, 2, spec=FULL))
    model[1] = middle
    return model


@pytest.mark.parametrize("operation, name", REFUSED.values(), ids=REFUSED)
def test_float_sums_are_refused_in_forward(operation, name):
    x = square()
    with nn.audit(), pytest.raises(nn.FloatSum, match=name):
        operation(x)


@pytest.mark.parametrize("name", sorted(REFUSED.keys() - ELEMENTWISE_BACK))
def test_float_sums_are_refused_in_backward(name):
    y = REFUSED[name][0](square())
    grad = torch.ones_like(y)
    with nn.audit(), pytest.raises(nn.FloatSum):
        y.backward(grad)


@pytest.mark.parametrize("operation", SUMMED_BACK.values(), ids=SUMMED_BACK)
def test_a_broadcast_passes_forward(operation):
    x = square()
    with nn.audit():
        operation(x)


@pytest.mark.parametrize("operation", SUMMED_BACK.values(), ids=SUMMED_BACK)
def test_the_backward_of_a_broadcast_is_refused(operation):
    x = square()
    with nn.audit():
        y = operation(x)
        with pytest.raises(nn.FloatSum):
            y.backward(torch.ones_like(y))


@pytest.mark.parametrize("operation", MOVES.values(), ids=MOVES)
def test_moving_values_passes_both_ways(operation):
    x = square()
    with nn.audit():
        y = operation(x)
        y.backward(torch.ones_like(y))


@pytest.mark.parametrize("integers", [torch.int64, torch.bool])
def test_sums_of_integers_pass(integers):
    x = torch.ones(3, dtype=integers)
    with nn.audit():
        assert int(x.sum()) == 3


def test_outside_the_auditor_everything_passes():
    assert square().sum().item() == 120


def test_a_float_layer_between_fixed_ones_is_refused():
    model, x = mlp(torch.nn.Linear(4, 4)), tensor(some((3, 4), 90, 5, 1))
    with nn.audit(), pytest.raises(nn.FloatSum, match=r"aten.addmm.* after layer 'linear'"):
        model(x)


def test_the_backward_of_a_float_layer_is_refused_where_its_forward_was_not_watched():
    model, x = mlp(torch.nn.Linear(4, 4)), tensor(some((3, 4), 90, 5, 1))
    y = model(x)
    with nn.audit(), pytest.raises(nn.FloatSum, match=r"aten.mm"):
        y.backward(torch.ones(3, 2))


def test_the_message_says_what_to_do():
    x = square()
    with nn.audit(), pytest.raises(nn.FloatSum, match=r"give this operation a fixed module, or mark"
                                                      r" it as emu.nn.host\(\)"):
        x.sum()


@pytest.mark.parametrize("seen", ["0.0", "2"])
def test_the_message_names_the_layer_that_ran_last(seen):
    model = nn.fix(torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(4, 4)), torch.nn.ReLU(),
                                       torch.nn.Linear(4, 2)), {"default": FULL})
    y = model.get_submodule(seen)(torch.ones(1, 4))
    with nn.audit(), pytest.raises(nn.FloatSum, match=f"after layer '{seen}'"):
        y.sum()


def test_a_whole_training_step_with_a_loss_on_the_host_passes():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2, 1), torch.nn.AvgPool2d(2),
        torch.nn.Flatten(), torch.nn.Linear(2, 3))
    nn.fix(model, {"default": FULL})
    optimizer = nn.SGD(model, 0.25, 0.5)
    x, target = tensor(some((2, 1, 5, 5), 90, 5, 1)), torch.tensor([0, 2])
    with nn.audit():
        loss = nn.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_step_with_every_cast_a_stochastic_rule_passes():
    rules = dict.fromkeys(("x", "w", "b", "y", "error", "grad_w", "grad_b"),
                          "s6 auto:max stochastic8 sat")
    model = nn.Linear(4, 2, spec=hardware(**rules, update=UPDATE))
    train_step(model, nn.SGD(model, 0.25, 0.5), torch.ones(3, 4), torch.zeros(3, 2))


def test_host_exempts_a_loss():
    model, x = nn.Linear(4, 2, spec=FULL), tensor(some((3, 4), 90, 5, 1))
    with nn.audit():
        y = model(x)
        with nn.host():
            loss = F.mse_loss(y, torch.zeros(3, 2))
            loss.backward()


def test_host_ends_with_its_block():
    x = square()
    with nn.audit(), nn.host(), nn.host():
        x.sum()
    with nn.audit(), pytest.raises(nn.FloatSum):
        x.sum()


def test_host_ends_with_an_error_too():
    x = square()
    with nn.audit():
        with pytest.raises(KeyError), nn.host():
            raise KeyError
        with pytest.raises(nn.FloatSum):
            x.sum()


@pytest.mark.parametrize("add", [
    lambda a, b: a + b, lambda a, b: a.clone().add_(b), lambda a, b: torch.add(b, a, alpha=1),
    lambda a, b: a - (-b), lambda a, b: b.clone().add_(a, alpha=1),
    lambda a, b: torch.rsub(-a, b), lambda a, b: torch.add(a, b, out=torch.empty(2)),
], ids=["+", "in place", "add", "-", "in place, the other way", "rsub", "out"])
@pytest.mark.parametrize(("a", "b", "exact"), [
    (2.0**24, 1.0, False), (2.0**20, 2.0**-6, False), (2.0**24 - 1, 1.0, True),
    (2.0**20, 2.0**-3, True), (0.5, -0.25, True), (0.0, 1e-30, True), (1.0, 1e-30, False),
])
def test_a_float32_sum_is_exact_or_refused(add, a, b, exact):
    a, b = torch.tensor([1.0, a]), torch.tensor([1.0, b])
    with nn.audit():
        if exact:
            assert add(a, b).tolist() == [2.0, a[1].item() + b[1].item()]
        else:
            with pytest.raises(nn.FloatSum, match="a float sum that rounds"):
                add(a, b)


def test_a_float64_sum_is_exact_or_refused():
    big, one = torch.tensor(2.0**53, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    with nn.audit():
        assert (big - one).item() == 2**53 - 1
        with pytest.raises(nn.FloatSum, match="a float sum that rounds"):
            big + one


def test_a_sum_of_two_layers_gradients_that_float32_does_not_hold_is_refused():
    spec = {"x": "s14", "w": "s14", "error": "s14", "forward": "{acc: s24}",
            "grad_input": "{acc: s25}"}
    one, two = (nn.Linear(1, 1, bias=False, spec=spec) for _ in range(2))
    with torch.no_grad():
        one.weight.fill_(4095)
        two.weight.fill_(4095)
    one.weight.requires_grad_(False)
    two.weight.requires_grad_(False)
    x = torch.ones(1, 1, requires_grad=True)
    y = torch.cat([one(x), two(x)])
    with nn.audit(), pytest.raises(ValueError, match="25 magnitude bits"):
        y.backward(torch.tensor([[4095.0], [4094.0]]))


@pytest.mark.parametrize("copy", [
    lambda x: x.float(), lambda x: torch.empty(2).copy_(x),
    lambda x: torch.empty(1, 2).copy_(x),
], ids=["to", "copy_", "copy_ with a broadcast"])
@pytest.mark.parametrize(("value", "exact"), [(2.0**24 + 1, False), (2.0**24, True), (0.1, False)])
def test_a_conversion_is_exact_or_refused(copy, value, exact):
    x = torch.tensor([1.0, value], dtype=torch.float64)
    with nn.audit():
        if exact:
            assert copy(x).reshape(-1).tolist() == [1.0, value]
        else:
            with pytest.raises(nn.FloatSum, match="rounds"):
                copy(x)


def test_a_scaled_addition_is_refused():
    with nn.audit(), pytest.raises(nn.FloatSum):
        torch.add(torch.zeros(2), torch.ones(2), alpha=0.1)
