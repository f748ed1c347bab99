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


MODELS = {
    "linear": (lambda: torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(),
                                           torch.nn.Linear(5, 3)), (4, 6)),
    "convolution": (lambda: torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, padding=1, stride=2, groups=2), torch.nn.ReLU(inplace=True),
        torch.nn.MaxPool2d(2), torch.nn.Conv2d(4, 2, 1), torch.nn.AvgPool2d(2),
        torch.nn.Flatten(), torch.nn.Linear(2, 3)), (2, 2, 8, 8)),
    "user": (Gram, (2, 3, 4)),
}


def model(name: str, **changes) -> torch.nn.Module:
    """A fixed model, the same each time."""
    torch.manual_seed(0)
    return nn.fix(MODELS[name][0](), {"default": {**HARDWARE, **changes}})


def step(run, parameters, x) -> list[torch.Tensor]:
    """The output and all gradients for an input like x."""
    x = x.clone().requires_grad_()
    y = run(x)
    y.backward(torch.linspace(-4, 4, y.numel()).reshape(y.shape))
    return [y.detach(), x.grad, *(p.grad for p in parameters)]


def inputs(name: str) -> torch.Tensor:
    """Values for a model's input, some beyond the range of x."""
    return torch.randn(MODELS[name][1], generator=torch.Generator().manual_seed(1)) * 3


def compared(name: str, **how) -> None:
    """The compiled model and an uncompiled one, in training and in evaluation."""
    plain = model(name, **how.pop("changes", {}))
    twin = copy.deepcopy(plain)
    compiled = torch.compile(twin, **how)
    for training in (True, False):
        plain.train(training)
        twin.train(training)
        for p in (*plain.parameters(), *twin.parameters()):
            p.grad = None
        want = step(plain, list(plain.parameters()), inputs(name))
        got = step(compiled, list(twin.parameters()), inputs(name))
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
    compared("user", backend="inductor", fullgraph=True)


@pytest.mark.parametrize("x", ["s6 auto:max ties_even sat", "s6f3 stochastic8 sat"])
def test_hardware_with_state_runs_with_graph_breaks(x):
    compared("linear", backend="aot_eager", changes={"x": x})


@pytest.mark.parametrize("made", [
    lambda: torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4)),
    lambda: torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.LogSigmoid()),
    lambda: torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Dropout(0.5)),
], ids=["running statistics", "float core", "mask"])
def test_what_no_graph_holds_runs_as_it_does_uncompiled(made):
    torch.manual_seed(0)
    plain = nn.fix(made().double(), {"default": HARDWARE})
    twin = copy.deepcopy(plain)
    compiled = torch.compile(twin, backend="aot_eager")
    x, got = inputs("linear").double(), []
    for run, of in ((plain, plain), (compiled, twin)):
        torch.manual_seed(1)
        got.append(step(run, list(of.parameters()), x) + list(of.buffers()))
    assert all(map(torch.equal, *got))


def test_hardware_with_state_is_no_whole_graph():
    compiled = torch.compile(model("linear", x="s6 auto:max sat"), fullgraph=True,
                             backend="aot_eager")
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(inputs("linear"))


def test_the_operators_keep_torchs_rules():
    seen = []
    with torch.utils._python_dispatch._disable_current_modes():
        compiled = torch.compile(model("convolution"), fullgraph=True,
                                 backend=lambda graph, example: seen.append(graph) or graph)
        compiled(inputs("convolution"))
    calls = [node for node in seen[0].graph.nodes if node.target == torch.ops.emu.call]
    assert len(calls) == 6
    x, w, b = inputs("convolution"), torch.randn(4, 1, 3, 3), torch.randn(4)
    args = [t.requires_grad_() for t in (x, w, b)], calls[0].args[1]
    torch.library.opcheck(torch.ops.emu.call.default, args)
    y = torch.ops.emu.call(*args)
    torch.library.opcheck(torch.ops.emu.call_grad.default, (
        torch.ones_like(y), [t.detach() for t in args[0]], [True, True, False], args[1]))
