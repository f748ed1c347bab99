"""Two stages: what a training in software leaves, and how one on the hardware begins with it.

The first (TSDH, trained on software and deployed on hardware) leaves two more files in its run
folder: `strategy.yaml`, the gradient buffers of the second, and `start.pt`, its parameters and
binary points. The second (THDH) has only fixed formats, and every layer adds its gradients up in an
integer buffer. The flow is that of walkerning/nics_fix, `examples/cifar10/run_2stage.sh`.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from emu import nn
from emu.number import Cast, Overflow, Rounding
from emu.rule import Rule
from emu.update import derived_buffer

STRATEGY, START = "strategy.yaml", "start.pt"
GRADIENTS = ("error", "grad_w", "grad_b")
RANGES = ("min", "max")
Ranges = dict[str, list[int]]  # the least and the largest exponent, by `site.tensor`


@dataclass(frozen=True)
class Software:
    """A training in software, and what it derives for the hardware.

    The ranges of gradients in the last `iterations` steps give the formats of the second stage: of
    the errors the largest, of the weights' gradients the least or the largest as `ranges` says
    (see `emu.update.buffer_exponents`). Its buffers have `buffer` bits, its learning rate is `lr`.
    """

    iterations: int
    buffer: int
    lr: float
    ranges: str = "max"

    def __post_init__(self):
        for name, least, most in (("iterations", 1, 1 << 30), ("buffer", 2, 61)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"recipe software.{name} {value!r}: needs a whole number from "
                                 f"{least} to {most}")
        if not isinstance(self.lr, float | int) or not 0 < self.lr < math.inf or (
                math.frexp(self.lr)[0] != 0.5):
            raise ValueError(f"recipe software.lr {self.lr!r}: a gradient buffer shifts; use a "
                             "power of two")
        if self.ranges not in RANGES:
            raise ValueError(f"recipe software.ranges {self.ranges!r}: write min or max")

    @property
    def rate(self) -> int:
        """The exponent of the learning rate."""
        return math.frexp(self.lr)[1] - 1


def measure(model: torch.nn.Module, ranges: Ranges) -> None:
    """Widen the ranges to those that the gradients of one step had."""
    for site, layer in nn.layers(model).items():
        for name in GRADIENTS:
            rule = getattr(layer.spec, name)
            if not isinstance(rule, Rule) or name not in layer.fracs:
                continue
            exponent = rule.width - rule.signed - layer.fracs[name]
            seen = ranges.setdefault(f"{site}.{name}", [exponent, exponent])
            seen[:] = min(seen[0], exponent), max(seen[1], exponent)


def check(model: torch.nn.Module) -> None:
    """Raise ValueError where a layer's step has left nothing to derive its buffer from."""
    for site, layer in nn.layers(model).items():
        rule = layer.spec.grad_w
        if layer.spec.update is not None and not (isinstance(rule, Rule) and "grad_w" in layer.fracs
                                                  and layer.spec.w is not None):
            raise ValueError(f"layer {site!r}: its w is {layer.spec.w} and its grad_w {rule}, from "
                             "which no buffer can be derived; give grad_w a rule such as "
                             "'s8 auto:max ties_even sat', and w a cast or a rule")


def hand_over(model: torch.nn.Module, ranges: Ranges, software: Software) -> dict[str, bytes]:
    """The files that the second stage begins with, by their names.

    Raises ValueError where no buffer of that width feeds a weight at the learning rate.
    """
    entries, points = {}, {}
    for site, layer in nn.layers(model).items():
        points[site] = dict(layer.fracs)
        for name in GRADIENTS:
            seen = ranges.get(f"{site}.{name}")
            if seen:
                rule = getattr(layer.spec, name)
                exponent = seen[name == "error" or software.ranges == "max"]
                points[site][name] = rule.width - rule.signed - exponent
        if layer.spec.update is not None:
            entries[site] = {"name": "accumulation_strategy",
                             "update": _buffer(site, layer, ranges, software)}
    values = {name: value for name, value in model.state_dict().items()
              if isinstance(value, torch.Tensor)}  # without the state of this stage's hardware
    buffer = io.BytesIO()
    torch.save({"points": points, "values": values}, buffer)
    return {STRATEGY: str(nn.Strategies(entries)).encode(), START: buffer.getvalue()}


def _buffer(site: str, layer: nn.Layer, ranges: Ranges, software: Software) -> dict[str, str]:
    """The casts of a layer's buffer: those of its weight hold for the bias too."""
    rule, seen = layer.spec.w, ranges[f"{site}.grad_w"]
    weight = rule if isinstance(rule, Cast) else Cast(
        rule.with_frac(layer.fracs["w"]).format, Rounding.TIES_EVEN, Overflow.SAT)
    try:
        found = derived_buffer(tuple(seen), weight, layer.spec.grad_w.with_frac(0), software.buffer,
                               software.rate, software.ranges == "min")
    except ValueError as error:
        raise ValueError(f"layer {site!r}: gradients of the ranges 2^{seen[0]} to 2^{seen[1]}: "
                         f"{error}; or change recipe software") from None
    return {name: str(getattr(found, name)) for name in ("weight", "buffer", "grad")}


def strategies(folder: Path) -> nn.Strategies:
    """Those that a first stage has left; raises ValueError that says what to run first."""
    for name in (STRATEGY, START):
        if not (folder / name).is_file():
            raise ValueError(f"start {folder}: has no {name}; run the first stage before, with: "
                             f"emu train {folder.name}, or say with --start where it is")
    return nn.Strategies.parse(folder / STRATEGY)


def begin(model: torch.nn.Module, folder: Path) -> None:
    """Give a model the parameters and binary points that a first stage has left.

    Raises ValueError where that had another network.
    """
    try:
        start = torch.load(folder / START, weights_only=True)
        model.load_state_dict(start["values"])
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"start {folder / START}: has no parameters of this network "
                         f"({str(error).splitlines()[-1].strip()})") from None
    for site, layer in nn.layers(model).items():
        layer.fracs = dict(start["points"].get(site, {}))
