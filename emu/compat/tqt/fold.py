"""Convolution, batch norm and rectifier as one module.

In float it is the modules one after the other. Quantised with a frozen batch norm, the weights
W * gamma / sqrt(var + eps) and the bias gamma (b - mean) / sqrt(var + eps) + beta are quantised;
with one that is not frozen the raw weights are, and a float batch norm follows. An adder's weights
do not fold: its batch norm always follows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from emu import nn
from emu.compat.tqt.modules import Quantised
from emu.nn.audit import host
from emu.value import unknown

RECTIFIERS = (torch.nn.ReLU, torch.nn.ReLU6)


class Folded(torch.nn.Module):
    """A layer `conv`, its batch norm `bn`, and (or Identity) its rectifier `relu`."""

    def __init__(self, conv: torch.nn.Module, bn: torch.nn.BatchNorm2d,
                 relu: torch.nn.Module | None = None):
        super().__init__()
        self.conv, self.bn = conv, bn
        self.relu = torch.nn.Identity() if relu is None else relu
        self.frozen, self.training = False, conv.training

    def bn_freeze(self, mode: bool = True) -> None:
        """Whether the batch norm stays at its running statistics."""
        self.frozen = mode

    def forward(self, x):
        return self.relu(self._normalised(self.conv(x)))

    def _normalised(self, y):
        with host():
            moves = self.training and not self.frozen
            return F.batch_norm(y, self.bn.running_mean, self.bn.running_var, self.bn.weight,
                                self.bn.bias, moves, self.bn.momentum, self.bn.eps)


class Conv2dBN(Folded):
    """A convolution, and its batch norm folded into it once that is frozen."""

    def folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight and the bias of both, in float."""
        with host():
            scale = self.bn.weight / torch.sqrt(self.bn.running_var + self.bn.eps)
            bias = self.conv.bias if self.conv.bias is not None else 0.0
            return (self.conv.weight * scale.reshape(-1, 1, 1, 1),
                    (bias - self.bn.running_mean) * scale + self.bn.bias)

    def forward(self, x):
        conv = self.conv
        if not (self.frozen and isinstance(conv, Quantised) and conv.quant):
            return super().forward(x)
        return self.relu(conv.with_parameters(x, *self.folded()))


class Conv2dBNReLU(Conv2dBN):
    """A convolution, its batch norm and a rectifier."""


class SA2dBN(Folded):
    """An adder layer and its batch norm."""


class SA2dBNReLU(SA2dBN):
    """An adder layer, its batch norm and a rectifier."""


KINDS = {"conv": (torch.nn.Conv2d, Conv2dBN, Conv2dBNReLU),
         "add": (nn.Adder2d, SA2dBN, SA2dBNReLU)}


def isfoldmodule(module: torch.nn.Module) -> bool:
    """Whether a module is one of these."""
    return isinstance(module, Folded)


def fold_the_network(net: torch.nn.Module, kind: str = "conv") -> torch.nn.Module:
    """Merge, in place, consecutive children: layer, batch norm and perhaps rectifier.

    The first becomes the merged module, the others Identity. Raises ValueError for another kind
    than `conv` and `add`.
    """
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    first, plain, rectified = KINDS[kind]
    for parent in [module for module in net.modules() if not isinstance(module, Folded)]:
        names, children = zip(*parent.named_children(), strict=True) if any(
            True for _ in parent.children()) else ((), ())
        for i in range(len(children) - 1):
            if not (isinstance(children[i], first)
                    and isinstance(children[i + 1], torch.nn.BatchNorm2d)):
                continue
            relu = children[i + 2] if len(children) > i + 2 and isinstance(
                children[i + 2], RECTIFIERS) else None
            setattr(parent, names[i], (plain if relu is None else rectified)(
                children[i], children[i + 1], relu))
            for name in names[i + 1:i + 2 + (relu is not None)]:
                setattr(parent, name, torch.nn.Identity())
    return net

