"""Learned thresholds of a fixed model: which there are, sharing, freezing (TQT).

A `learned` rule puts the binary point where the range is 2^ceil(log2_t); log2_t is a parameter
that a float optimizer trains (Jain et al., Trained quantization thresholds, arXiv 1903.08066).
Codes, and so every sum of the network, stay exact integers: only log2_t is a float.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch

from emu.nn.modules import layers
from emu.value import unknown


def thresholds(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The log2_t (1,) of every learned tensor of a fixed model, by site and setting: `fc1.w`.

    Functions that a module calls have theirs once they have run. One that is shared has each name.
    """
    return {f"{path}.{name}".lstrip("."): threshold for path, layer in layers(model).items()
            for name, threshold in layer.thresholds.items()}


def log2_of(threshold: float) -> float:
    """log2 of a threshold above 0, whose ceil as a float32 is the exact one's."""
    mantissa, exponent = math.frexp(threshold)
    if not 0 < threshold < math.inf:
        raise ValueError(f"threshold {threshold}: needs a finite number above 0")
    if mantissa == 0.5:
        return float(exponent - 1)
    above = float(np.nextafter(np.float32(exponent - 1), np.float32(np.inf)))
    return min(max(float(np.float32(exponent + math.log2(mantissa))), above), float(exponent))


def named(model: torch.nn.Module, names: Iterable[str]) -> dict[str, torch.nn.Parameter]:
    """Some of the thresholds; raises ValueError for a name that there is not."""
    found = thresholds(model)
    for name in names:
        if name not in found:
            raise unknown("threshold", name, found)
    return {name: found[name] for name in names}


def freeze_thresholds(model: torch.nn.Module, names: Iterable[str] | None = None,
                      frozen: bool = True) -> None:
    """Let thresholds (default: all) stay as they are from here on, or train them again."""
    for threshold in (thresholds(model) if names is None else named(model, names)).values():
        threshold.requires_grad_(not frozen)


def share_thresholds(model: torch.nn.Module, names: Iterable[str]) -> torch.nn.Parameter:
    """Let these tensors have one threshold, the largest of theirs: one scale, as the operands of
    an addition or the parts of a concatenation need it.

    Make the optimizer afterwards. Raises ValueError for an unknown name.
    """
    chosen = named(model, names)
    if not chosen:
        raise ValueError("share_thresholds of no names: name the tensors that are to have one")
    first = next(iter(chosen.values()))
    values = [x for x in (p.item() for p in chosen.values()) if not math.isnan(x)]
    with torch.no_grad():
        if values:
            first.fill_(max(values))
    every = layers(model)
    for name in chosen:
        path, _, setting = f".{name}".rpartition(".")
        every[path.lstrip(".")].share_threshold(setting, first)
    return first


class Freezer:
    """Freezes the thresholds of a model one by one, after section 5.2 of arXiv 1903.08066.

    Call `step` after each step of the optimizer. From the step `start` on, every `every` steps the
    one with the least gradient is frozen, of those that are on the side of their power of two where
    they have mostly been: a running mean of both, with `momentum`, says which.
    """

    def __init__(self, model: torch.nn.Module, start: int, every: int = 50,
                 momentum: float = 0.9):
        if start < 0 or every < 1 or not 0 <= momentum < 1:
            raise ValueError(f"start {start}, every {every}, momentum {momentum}: needs steps of "
                             "at least 0 and 1, and a momentum from 0 to below 1")
        self.model, self.start, self.every, self.momentum = model, start, every, momentum
        self.steps = 0
        self._means: dict[str, tuple[float, float]] = {}

    def step(self) -> str | None:
        """One step is done; the name of the threshold that is now frozen, if one is."""
        moving = {name: x for name, x in thresholds(self.model).items()
                  if x.requires_grad and x.grad is not None}
        for name, x in moving.items():
            new = abs(x.grad.item()), x.item()
            old = self._means.get(name, new)
            self._means[name] = tuple(self.momentum * a + (1 - self.momentum) * b
                                      for a, b in zip(old, new, strict=True))
        self.steps += 1
        if self.steps <= self.start or (self.steps - self.start) % self.every:
            return None
        ready = [name for name, x in moving.items()
                 if math.ceil(x.item()) == math.ceil(self._means[name][1])]
        chosen = min(ready, key=lambda name: self._means[name][0], default=None)
        if chosen is not None:
            moving[chosen].requires_grad_(False)
            moving[chosen].grad = None
        return chosen
