"""Whole training steps of emu.nn against the same float32 steps of torch.

`python benchmarks/nn.py`; accumulators of 24 bits that saturate at every step, integer update. The
second table says where the time of a fixed step goes.
"""

import cProfile
import pstats

import torch
from race import machine, out, race, report
from rich.table import Table

from emu import nn
from emu.lab.models import plain, resnet20

HARDWARE = {
    "x": "s8f4 ties_even sat", "w": "s8f6 ties_even sat", "b": "s16f10 ties_even sat",
    "y": "s8f4 ties_even sat", "error": "s8f10 ties_even sat", "grad_w": "s16f12 ties_even sat",
    "grad_b": "s16f12 ties_even sat", "forward": {"acc": "s24 sat"},
    "grad_input": {"acc": "s24 sat"}, "grad_weight": {"acc": "s24 sat"},
    "grad_bias": {"acc": "s24 sat"},
    "update": {"weight": "s16f12 ties_even sat", "momentum": "s24f12 ties_even sat",
               "grad": "s24f12 sat", "lr": "u8f12 ties_even sat", "mu": "u8f8 ties_even sat"}}
STEPS = {  # name: (network, shape of a batch, at most so many times torch's time)
    "MLP 784-256-128-10, batch 64": (lambda: torch.nn.Sequential(
        torch.nn.Linear(784, 256), torch.nn.ReLU(), torch.nn.Linear(256, 128), torch.nn.ReLU(),
        torch.nn.Linear(128, 10)), (64, 784), 2.5),
    "LeNet-5, batch 64": (lambda: torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 5, padding=2), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(6, 16, 5), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(),
        torch.nn.Linear(400, 120), torch.nn.ReLU(), torch.nn.Linear(120, 84), torch.nn.ReLU(),
        torch.nn.Linear(84, 10)), (64, 1, 28, 28), 4),
    "ResNet-20, batch 32": (lambda: resnet20((3, 32, 32), 10), (32, 3, 32, 32), 4),
}
PLACES = {  # where the profile looks: the outermost of these that a call is within
    "cast in": ("layer.py", "enter"), "cast out": ("layer.py", "requantise"),
    "products": ("backend.py", "matmul"), "convolutions": ("backend.py", "conv2d"),
    "input gradients": ("backend.py", "conv2d_grad_input"),
    "weight gradients": ("backend.py", "conv2d_grad_weight"),
    "codes to floats": ("border.py", "rounded"), "floats to codes": ("border.py", "to_codes"),
    "batch norm": ("backend.py", "batch_norm"), "its gradients": ("backend.py", "batch_norm_grad"),
    "update": ("optim.py", "_at_once"), "whole step": ("nn.py", "step")}


def step(model: torch.nn.Module, optimizer, shape: tuple, loss):
    """A training step, ready to be timed."""
    x, target = torch.randn(shape), torch.randint(10, shape[:1])

    def step():
        optimizer.zero_grad()
        loss(model(x), target).backward()
        optimizer.step()

    return step


def floats(network, shape: tuple):
    """torch's step in float32."""
    model = plain(network())
    return step(model, torch.optim.SGD(model.parameters(), 0.01, momentum=0.9), shape,
                torch.nn.functional.cross_entropy)


def fixed(network, shape: tuple):
    """The step on the hardware."""
    model = nn.fix(network(), {"default": HARDWARE})
    return step(model, nn.SGD(model, 0.01, momentum=0.9), shape, nn.cross_entropy)


def brevitas(network, shape: tuple):
    """A step with weights and activations rounded to 8 bits, computed and updated in float."""
    from brevitas.graph.quantize import preprocess_for_quantize, quantize

    model = quantize(preprocess_for_quantize(plain(network())))
    return step(model, torch.optim.SGD(model.parameters(), 0.01, momentum=0.9), shape,
                torch.nn.functional.cross_entropy)


def qtorch(network, shape: tuple):
    """A step with weights, activations, errors and gradients rounded; its sums are floats'."""
    from qtorch import FixedPoint
    from qtorch.optim import OptimLP
    from qtorch.quant import Quantizer, quantizer

    number = FixedPoint(8, 4)
    model = plain(network())
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear | torch.nn.Conv2d):
                rounding = Quantizer(number, number, "nearest", "nearest")
                setattr(parent, name, torch.nn.Sequential(child, rounding))
    weights = quantizer(FixedPoint(16, 12), forward_rounding="nearest")
    optimizer = OptimLP(torch.optim.SGD(model.parameters(), 0.01, momentum=0.9),
                        weight_quant=weights, grad_quant=weights, momentum_quant=weights)
    return step(model, optimizer, shape, torch.nn.functional.cross_entropy)


def shares(run) -> dict[str, float]:
    """The share of a step's time that is spent in each of PLACES."""
    run()
    profile = cProfile.Profile()
    profile.runcall(lambda: [run() for _ in range(5)])
    times = {(path.rpartition("/")[2], name): row[3]
             for (path, _, name), row in pstats.Stats(profile).stats.items()}
    whole = times[PLACES["whole step"]]
    return {name: times[place] / whole for name, place in PLACES.items() if place in times}


def main() -> None:
    torch.manual_seed(0)
    found = {}
    for name, (network, shape, most) in STEPS.items():
        functions = {"torch float32": floats(network, shape), "emu": fixed(network, shape)}
        for peer in (qtorch, brevitas):
            try:
                functions[peer.__name__] = peer(network, shape)
                functions[peer.__name__]()
            except Exception as error:  # not installed, or it does not take this network
                functions.pop(peer.__name__, None)
                out.print(f"{peer.__name__}: {type(error).__name__}: {str(error)[:90]}")
        report(name, race(functions), "torch float32", {"emu": 1 / most})
        found[name] = shares(functions["emu"])
    table = Table("share of a fixed step, profiled", *found, title_justify="left")
    for place in PLACES:
        table.add_row(place, *(f"{100 * row[place]:.0f} %" if place in row else ""
                               for row in found.values()))
    out.print(table)


if __name__ == "__main__":
    out.print(machine())
    main()
