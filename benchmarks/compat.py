"""Training steps of models written for nics_fix_pt against the same float32 steps of torch.

`python benchmarks/compat.py`. nics_fix_pt took about 7 times the time of plain torch for such steps
(it runs on older versions only); the bar of the drop-in in float is twice that. With a MAC the
layers compute on the integer engine.
"""

import torch
from race import machine, out, race, report

import emu.compat.nics_fix_pt as nfp
import emu.compat.nics_fix_pt.nn_fix as nnf

MOST = 2 * 7  # times torch's time
nn = torch.nn


class Plain:
    """What a network is made of: torch's own layers."""

    linear, conv, activation = nn.Linear, nn.Conv2d, nn.Identity


class Fixed:
    """Those of nics_fix_pt, of 8 bits under FIX_AUTO."""

    def __init__(self, grad: bool, mac: str | None = None):
        self.grad, self.mac = grad, mac

    def configs(self, *names) -> dict:
        """The configurations of a module."""
        data = nfp.utils._generate_default_fix_cfg(names, method=nfp.FIX_AUTO)
        if self.mac is not None:
            data[names[0]]["mac"] = self.mac
        grad = nfp.utils._generate_default_fix_cfg(names, method=nfp.FIX_AUTO)
        return {"nf_fix_params": data, "nf_fix_params_grad": grad if self.grad else None}

    def linear(self, *args):
        return nnf.Linear_fix(*args, **self.configs("weight", "bias"))

    def conv(self, *args, **kwargs):
        return nnf.Conv2d_fix(*args, **kwargs, **self.configs("weight", "bias"))

    def activation(self):
        return nnf.Activation_fix(**self.configs("activation"))


def mlp(of) -> nn.Module:
    """784-256-128-10, an activation fixed at the input and after each layer."""
    return nn.Sequential(of.activation(), of.linear(784, 256), of.activation(), nn.ReLU(),
                         of.linear(256, 128), of.activation(), nn.ReLU(), of.linear(128, 10),
                         of.activation())


def lenet(of) -> nn.Module:
    """LeNet-5, as above."""
    return nn.Sequential(
        of.activation(), of.conv(1, 6, 5, padding=2), of.activation(), nn.ReLU(), nn.MaxPool2d(2),
        of.conv(6, 16, 5), of.activation(), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        of.linear(400, 120), of.activation(), nn.ReLU(), of.linear(120, 84), of.activation(),
        nn.ReLU(), of.linear(84, 10), of.activation())


STEPS = {"MLP 784-256-128-10, batch 64": (mlp, (64, 784)),
         "LeNet-5, batch 64": (lenet, (64, 1, 28, 28))}


def step(model: nn.Module, shape: tuple):
    """A training step, ready to be timed."""
    x, target = torch.randn(shape), torch.randint(10, shape[:1])
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def step():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()

    return step


def main() -> None:
    torch.manual_seed(0)
    for name, (network, shape) in STEPS.items():
        functions = {"torch float32": step(network(Plain), shape),
                     "drop-in, data": step(network(Fixed(grad=False)), shape),
                     "drop-in, data and gradients": step(network(Fixed(grad=True)), shape),
                     "drop-in on a MAC": step(network(Fixed(True, "{acc: s24 sat}")), shape)}
        bars = dict.fromkeys(list(functions)[1:3], 1 / MOST)
        report(name, race(functions), "torch float32", bars)


if __name__ == "__main__":
    out.print(machine())
    main()
