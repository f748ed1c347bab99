"""Sums, means and extremes over axes."""

from __future__ import annotations

import math

import numpy as np
import torch

from emu.nn import border
from emu.nn.audit import FloatSum
from emu.nn.layer import Codes, Layer
from emu.nn.operation import Operation, run
from emu.nn.ops.elementwise import arrived
from emu.nn.ops.move import moved
from emu.nn.ops.pool import divided


class _Sum(Operation):
    """The exact sum over axes in the cast y, for a mean divided by its terms."""

    def __init__(self, axes: tuple[int, ...], keep: bool, mean: bool):
        self.axes, self.keep, self.mean = axes, keep, mean

    def forward(self, layer, training, x):
        codes, frac = border.to_codes(x, f"{layer.site}.x")
        self.shape, self.terms = codes.shape, math.prod(codes.shape[i] for i in self.axes)
        most = max(int(codes.max(initial=0)), -int(codes.min(initial=0)))
        if most * self.terms >> 62:
            raise FloatSum(f"layer {layer.site!r}: codes up to {most}: the sum of {self.terms} of "
                           "them could leave 63 bits; cast x to a narrower format")
        codes = np.asarray(codes.sum(self.axes, dtype=np.int64, keepdims=self.keep))
        out = self._leave(layer, "y", codes, frac, training)
        self.passes = out.passes
        return out

    def backward(self, layer, training, gradient, needs):
        gradient = gradient.masked(self.passes)
        if self.mean:
            error = gradient.exact(f"{layer.site}.error")
            error = self._leave(layer, "error", error.codes, error.form.frac, training)
        else:
            error = arrived(layer, gradient, training)
        codes = error.codes if self.keep else np.expand_dims(error.codes, self.axes)
        return [error._replace(codes=np.broadcast_to(codes, self.shape), passes=None)]

    def _leave(self, layer, name: str, codes, frac: int, training: bool) -> Codes:
        if self.mean:
            if not self.terms:
                raise ValueError(f"layer {layer.site!r}: the mean of nothing; x is {self.shape}")
            return divided(layer, name, codes, np.full(codes.shape, self.terms), frac, training)
        return layer.leave(name, codes, border.holding(codes, frac), training)


def _axes(x: torch.Tensor, dim) -> tuple[int, ...]:
    """The axes of a torch function's `dim`; all where there are none."""
    dims = range(x.dim()) if dim is None or dim in ((), []) else (
        [dim] if isinstance(dim, int) else dim)
    return tuple(sorted(i % max(x.dim(), 1) for i in dims)) if x.dim() else ()


def total(layer: Layer, training: bool, input, dim=None, keepdim=False, axis=None):
    """torch.sum: exact, in the cast y."""
    axes = _axes(input, axis if dim is None else dim)
    return run(_Sum(axes, keepdim, False), layer, training, input)


def mean(layer: Layer, training: bool, input, dim=None, keepdim=False, axis=None):
    """torch.mean: the exact sum divided in the cast y, its errors in the cast error."""
    axes = _axes(input, axis if dim is None else dim)
    return run(_Sum(axes, keepdim, True), layer, training, input)


def amax(layer: Layer, training: bool, input, dim=(), keepdim=False):
    """torch.amax: the first maximum, row-major, has the error, as in pooling."""
    return _extreme(layer, training, input, torch.argmax, dim, keepdim)


def amin(layer: Layer, training: bool, input, dim=(), keepdim=False):
    """torch.amin, as `amax`."""
    return _extreme(layer, training, input, torch.argmin, dim, keepdim)


def _extreme(layer: Layer, training: bool, x, argument, dim, keepdim: bool):
    axes = _axes(x, dim)
    kept = [i for i in range(x.dim()) if i not in axes]

    def rows(t):
        return t.permute(*kept, *axes).reshape(*(x.shape[i] for i in kept), -1)

    places = rows(torch.arange(x.numel()).reshape(x.shape))
    at = places.gather(-1, argument(rows(x.detach()), -1, keepdim=True))[..., 0]
    if keepdim:
        at = at.reshape([1 if i in axes else n for i, n in enumerate(x.shape)])
    return moved(layer, training, lambda t: t.reshape(-1)[at], x)


def in_own_dtype(input, *args, dtype=None, **options) -> bool:
    """Whether a sum stays in the dtype of its input."""
    return dtype is None
