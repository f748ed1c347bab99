"""The losses of a recipe: on the host, or on the hardware."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from emu import nn
from emu.lab.hardware import CONFIG
from emu.nn.backend import Backend


class Loss(torch.nn.Module):
    """A loss of scores (N, classes) and class numbers (N,)."""


class HostLoss(Loss):
    """Cross-entropy on the host, in float64: the one part of a step outside the hardware."""

    def __init__(self, hardware: Mapping, backend: Backend):
        super().__init__()

    def forward(self, scores, target):
        return nn.cross_entropy(scores, target)


class TableLoss(Loss):
    """Cross-entropy by tables, under the settings of CrossEntropyLoss."""

    def __init__(self, hardware: Mapping, backend: Backend):
        super().__init__()
        config = {key: hardware[key] for key in CONFIG[:1] if key in hardware}
        own = hardware.get("by_type", {}).get("CrossEntropyLoss")
        config |= {"by_type": {"CrossEntropyLoss": own}} if own else {}
        self.loss = torch.nn.CrossEntropyLoss()
        nn.fix(self, config, backend)

    def forward(self, scores, target):
        return self.loss(scores, target)


class SquaresLoss(Loss):
    """The sum of squared distances to 1 for the class and 0 for the others, exactly.

    That of WAGE (arXiv 1802.04680), where the size of the gradient does not matter.
    """

    def __init__(self, hardware: Mapping, backend: Backend):
        super().__init__()
        nn.fix(self, {}, backend)

    def forward(self, scores, target):
        wanted = torch.zeros_like(scores, requires_grad=False)
        wanted[torch.arange(len(target)), target] = 1.0
        return torch.square(scores - wanted).sum()


LOSSES = {"host": HostLoss, "table": TableLoss, "squares": SquaresLoss}
