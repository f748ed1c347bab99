"""Backward passes of a model that trains in software: floats, straight through its casts."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from emu import engine
from emu.nn import border
from emu.nn.audit import host
from emu.nn.grads import Gradient
from emu.nn.layer import Codes, Layer
from emu.number import MAX_FRAC

BITS = 48  # of the largest value of a gradient, as codes: sums of copies fit beside them


class FloatGradient(Gradient):
    """What arrived in a model that trains in software: floats, which nobody has counted."""

    def exact(self, name: str) -> Codes:
        """The gradient as codes of `BITS`: for what moves or adds them, as torch would in float."""
        floats = border.to_numpy(self.tensor, name)
        most = float(np.abs(floats).max(initial=0))
        try:
            codes, frac = engine.encode(floats, min(MAX_FRAC, BITS - math.frexp(most)[1]))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        return Codes(codes, border.holding(codes, frac), None)

    def masked(self, passes: np.ndarray | None) -> FloatGradient:
        """The gradient where `passes`, 0 elsewhere."""
        return FloatGradient(super().masked(passes).tensor)


def gradients(layer: Layer, training: bool, twin: Callable, entered: list[Codes | None],
              gradient: Gradient, needs: list[bool]) -> list[torch.Tensor | None]:
    """The gradients of x, w and b of the layer that is `twin` in torch, in float64.

    The error and those of the parameters are cast where the layer has casts for them.
    """
    error = gradient.tensor.double()
    if layer.cast_of("error", training) is not None:
        error = _float64(gradient.enter(layer, training))
    operands = [None if each is None else _float64(each) for each in entered]
    wanted = [i for i, need in enumerate(needs) if need and operands[i] is not None]
    with host(), torch.enable_grad():
        out = twin(*(each if i not in wanted else each.requires_grad_()
                     for i, each in enumerate(operands)))
        found = torch.autograd.grad(out, [operands[i] for i in wanted], error)
    grads: list[torch.Tensor | None] = [None] * len(needs)
    for i, grad in zip(wanted, found, strict=True):
        passes, name = entered[i].passes, ("", "grad_w", "grad_b")[i]
        grads[i] = grad if passes is None else torch.where(torch.from_numpy(passes), grad, 0.0)
        if name and layer.cast_of(name, training) is not None:
            grads[i] = _float64(layer.enter(name, grads[i], training))
    return grads


def _float64(codes: Codes) -> torch.Tensor:
    return border.rounded(codes.codes, codes.form, torch.float64)


def floats(gradient: Codes | torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A gradient as autograd carries it."""
    if isinstance(gradient, torch.Tensor):
        return gradient.to(dtype)
    return border.rounded(gradient.codes, gradient.form, dtype)
