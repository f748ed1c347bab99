"""torch.compile: the same bits from one graph, forward and backward."""

import copy

import pytest
import torch
import torch.nn.functional as F
from fixed_layers import HARDWARE

from emu import nn


class Gram(torch.nn.Module):
    """A module whose forward calls torch functions."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(3, 2)

    def forward(self, x):
        x = F.relu(self.first(x))
        return self.second(torch.matmul(x, x.transpose(1, 2)))


class Halves(torch.nn.Module):
    """Statistics that move, and two masks of one shape, neither of which waits for the other."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 5), torch.nn.Linear(6, 5)
        self.norm, self.drop = torch.nn.BatchNorm1d(5), torch.nn.Dropout(0.5)
        self.leaky = torch.nn.LeakyReLU(0.5, inplace=True)

    def forward(self, x):
        x = self.leaky(self.norm(self.first(x))), self.norm(self.second(x))
        return self.drop(x[0]) + F.dropout(x[1], 0.5, self.training)


class Cells(torch.nn.Module):
    """Steps of cells: parameters with several uses."""

    def __init__(self):
        super().__init__()
        self.lstm, self.gru = torch.nn.LSTMCell(3, 4), torch.nn.GRUCell(4, 2)

    def forward(self, x):
        state = out = None
        for part in x.unbind(0):
            state = self.lstm(part, state)
            out = self.gru(state[0], out)
        return out


class Broken(torch.nn.Module):
    """A forward that no whole graph holds: what it computes depends on what it computed."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(6, 6)

    def forward(self, x):
        x = self.fc(x)
        if x.amax() > 0:
            x = self.fc(x)
        return F.relu(torch.matmul(x, x.transpose(0, 1)))


class Last(torch.nn.Module):
    """A recurrent network, at which torch breaks graphs."""

    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(4, 3)

    def forward(self, x):
        return self.lstm(x)[0]


MODELS = {
    "linear": (lambda: torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(),
                                           torch.nn.Linear(5, 3)), (4, 6)),
    "convolution": (lambda: torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, padding=1, stride=2, groups=2), torch.nn.ReLU(inplace=True),
        torch.nn.MaxPool2d(2), torch.nn.Conv2d(4, 2, 1), torch.nn.AvgPool2d(2),
        torch.nn.Flatten(), torch.nn.Linear(2, 3)), (2, 2, 8, 8)),
    "user": (Gram, (2, 3, 4)),
    "statistics and masks": (Halves, (4, 6)),
    "cells": (Cells, (3, 2, 3)),
    "transformer": (lambda: torch.nn.TransformerEncoderLayer(4, 2, 6, 0.5, batch_first=True),
                    (2, 3, 4)),
}


def model(name: str, **changes) -> torch.nn.Module:
    """A fixed model, the same each time."""
    torch.manual_seed(0)
    return nn.fix(MODELS[name][0]().double(), {"default": {**HARDWARE, **changes}})


def step(run, module, x) -> list[torch.Tensor]:
    """The output, all gradients and the buffers that it leaves, for an input like x."""
    x, parameters = x.clone().requires_grad_(), list(module.parameters())
    torch.manual_seed(2)
    for p in parameters:
        p.grad = None
    y = run(x)
    y.backward(torch.linspace(-4, 4, y.numel()).reshape(y.shape))
    return [y.detach(), x.grad, *(p.grad for p in parameters),
            *(buffer.clone() for buffer in module.buffers()), torch.get_rng_state()]


def inputs(name: str) -> torch.Tensor:
    """Values for a model's input, some beyond the range of x."""
    return torch.randn(MODELS[name][1], generator=torch.Generator().manual_seed(1)).double() * 3


def compared(name: str, **how) -> None:
    """The compiled model and an uncompiled one, in training and in evaluation."""
    plain = model(name, **how.pop("changes", {}))
    twin = copy.deepcopy(plain)
    compiled = torch.compile(twin, **how)
    for training in (True, False):
        plain.train(training)
        twin.train(training)
        want, got = step(plain, plain, inputs(name)), step(compiled, twin, inputs(name))
        assert all(map(torch.equal, got, want))


@pytest.fixture(autouse=True)
def fresh():
    """Nothing is kept from one compilation to the next."""
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", MODELS)
def test_a_whole_graph_gives_the_same_bits(name):
    compared(name, backend="aot_eager", fullgraph=True)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_inductor_gives_the_same_bits():
    compared("statistics and masks", backend="inductor", fullgraph=True)


@torch._dynamo.config.patch(allow_rnn=True)
def test_a_recurrent_network_is_compiled_where_torch_allows_it():
    plain = nn.fix(torch.nn.Sequential(torch.nn.Linear(6, 4), Last()).double(),
                   {"default": HARDWARE})
    twin = copy.deepcopy(plain)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    assert all(map(torch.equal, step(compiled, twin, inputs("linear")),
                   step(plain, plain, inputs("linear"))))


@pytest.mark.parametrize("x", ["s6 auto:max ties_even sat", "s6f3 stochastic8 sat",
                               "s6 learned ties_even sat"])
def test_hardware_with_state_runs_with_graph_breaks(x):
    compared("linear", backend="aot_eager", changes={"x": x})


@pytest.mark.parametrize("made", [
    lambda: torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.LogSigmoid()), Broken,
    lambda: torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4, momentum=None)),
    lambda: torch.nn.Sequential(torch.nn.Unflatten(1, (6, 1, 1)), nn.ConvBN(6, 2, 1)),
    lambda: torch.nn.Sequential(torch.nn.Linear(6, 4), Last()),
], ids=["float core", "break", "cumulative average", "folding", "network"])
def test_what_no_graph_holds_runs_as_it_does_uncompiled(made):
    torch.manual_seed(0)
    plain = nn.fix(made().double(), {"default": HARDWARE})
    twin = copy.deepcopy(plain)
    compiled = torch.compile(twin, backend="aot_eager")
    for _ in range(2):
        got = [step(run, of, inputs("linear")) for run, of in ((plain, plain), (compiled, twin))]
        assert all(map(torch.equal, *got))


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_a_scope_holds_in_what_is_compiled_around_or_within_it():
    torch.manual_seed(0)
    plain, x = Gram(), torch.randn(2, 3, 4)
    compiled = torch.compile(plain, backend="aot_eager", fullgraph=True)
    scope, other = (nn.fixed_scope({"default": HARDWARE}) for _ in range(2))
    before = compiled(x)
    with scope, other:
        want = plain(x)
    with scope:
        with other:
            assert torch.equal(compiled(x), want)
        assert torch.equal(compiled(x), want)

    def within(x):
        with scope:
            return plain(x)

    assert set(scope.layers) == {"first", "relu", "matmul", "second"}
    with pytest.raises(torch._dynamo.exc.Unsupported, match="enter a `FixedScope`"):
        torch.compile(within, backend="aot_eager", fullgraph=True)(x)
    assert torch.equal(torch.compile(within, backend="aot_eager")(x), want)
    assert torch.equal(compiled(x), before)
    assert not torch.equal(before, want)


@pytest.mark.parametrize("made, changes, message", [
    (lambda: torch.nn.Linear(6, 4), {"x": "s6 auto:max sat"}, r"hardware with state \(auto\)"),
    (lambda: torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.LogSigmoid()), {},
     r"layer '1' \(LogSigmoid\)"),
], ids=["state", "float core"])
def test_what_is_no_whole_graph_says_so(made, changes, message):
    model = nn.fix(made(), {"default": {**HARDWARE, **changes}})
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match=f"emu.nn: {message} is not compiled"):
        compiled(inputs("linear").float())


def test_a_graph_follows_hardware_that_becomes_another():
    torch.manual_seed(0)
    fixed = nn.fix(torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3)).double(),
                   {"default": HARDWARE, "by_type": {"BatchNorm2d": {"y": "s6f1 sat"}}}).eval()
    compiled = torch.compile(fixed, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 2, 4, 4).double()
    seen = []
    for change in (lambda: None, lambda: nn.reconfigure(fixed, {"default": {
            **HARDWARE, "x": "s4f1 sat"}}), lambda: nn.fold(fixed)):
        change()
        seen.append(fixed(x))
        assert torch.equal(compiled(x), seen[-1])
    assert not torch.equal(seen[0], seen[1])


class Fan(torch.nn.Module):
    """A model whose rectified x has two users, and so have its results."""

    def __init__(self, users):
        super().__init__()
        self.users = users

    def forward(self, x):
        return self.users(F.relu(x))


@pytest.mark.parametrize("users", [
    lambda x: (F.relu(x), F.relu(x)), lambda x: (F.relu(x.reshape(1, 3)).reshape(3), F.relu(x)),
    lambda x: (x.flip(0), F.relu(x)), lambda x: (x, x), lambda x: torch.cat([x, x]).split(3),
], ids=["functions", "view", "move", "results", "parts"])
def test_sums_of_gradients_in_a_graph_are_exact_or_refused(users):
    compiled = torch.compile(nn.fix(Fan(users), {"default": {}}), fullgraph=True,
                             backend="aot_eager")
    for big, small in ((2.0 ** 20, 2.0 ** -6), (2.0 ** 24, 1.0)):
        for dtype in (torch.float64, torch.float32):
            x = torch.ones(3, dtype=dtype, requires_grad=True)
            grads = [x.detach() * big, x.detach() * small]
            if dtype == torch.float64:
                torch.autograd.backward(compiled(x), grads)
                assert x.grad.tolist() == [big + small] * 3
            else:
                with pytest.raises(ValueError, match=r"magnitude bits, torch\.float32 carries 24"):
                    torch.autograd.backward(compiled(x), grads)


def test_a_user_outside_a_graph_s_hardware_is_refused():
    module = nn.fix(torch.nn.ReLU(), {"default": {}})
    whole = torch.compile(lambda x: module(x) + 2 * x, backend="aot_eager", fullgraph=True)
    x = torch.ones(3, requires_grad=True)
    with pytest.raises(nn.FloatSum, match="something outside the hardware adds to it"):
        whole(x).sum().backward()


def test_the_operators_keep_torchs_rules():
    seen = []
    with torch.utils._python_dispatch._disable_current_modes():
        compiled = torch.compile(model("convolution"), fullgraph=True,
                                 backend=lambda graph, example: seen.append(graph) or graph)
        compiled(inputs("convolution"))
    calls = [node for node in seen[0].graph.nodes if node.target == torch.ops.emu.call]
    assert len(calls) == 6
    x, w, b = inputs("convolution").float(), torch.randn(4, 1, 3, 3), torch.randn(4)
    args = [t.requires_grad_() for t in (x, w, b)], calls[0].args[1]
    torch.library.opcheck(torch.ops.emu.call.default, args)
    y = torch.ops.emu.call(*args)
    torch.library.opcheck(torch.ops.emu.call_grad.default, (
        torch.ones_like(y), [t.detach() for t in args[0]], [True, True, False], args[1]))
    torch.library.opcheck(torch.ops.emu.alias.default, (x,))
    parts = [torch.ones(3), torch.ones(3)]
    torch.library.opcheck(torch.ops.emu.proved.default, (parts[0] + parts[1], parts))
    torch.library.opcheck(torch.ops.emu.drawn.default, ([2, 3], 0.5),
                          test_utils=("test_schema", "test_faketensor"))  # others draw twice


def test_the_operator_that_moves_statistics_keeps_torchs_rules():
    seen = []
    with torch.utils._python_dispatch._disable_current_modes():
        torch.compile(model("statistics and masks"), fullgraph=True,
                      backend=lambda graph, example: seen.append(graph) or graph)(
                          inputs("statistics and masks"))
    call = next(node for node in seen[0].graph.nodes if node.target == torch.ops.emu.moved)
    torch.library.opcheck(torch.ops.emu.moved.default, (
        [torch.randn(4, 5).double(), *torch.rand(2, 5).double()], call.args[1]))
