"""Functions of straight pieces: ReLU and its family, limits, and dropout."""

from __future__ import annotations

import numpy as np
import torch

from emu import engine
from emu.nn import border
from emu.nn.layer import Codes, Layer
from emu.nn.operation import Operation, run
from emu.nn.ops.contract import folded, masked
from emu.nn.ops.elementwise import arrived, entered, product
from emu.nn.ops.reduce import amax, amin


class _Relu(Operation):
    def forward(self, layer, training, x):
        out, self.passes = engine.rectify(border.to_numpy(x, f"{layer.site}.x"))
        return torch.from_numpy(out)

    def backward(self, layer, training, gradient, needs):
        return [gradient.masked(self.passes).exact(f"{layer.site}.error")]


def relu(layer: Layer, training: bool, input):
    """torch.relu: a comparison, exact."""
    return run(_Relu(), layer, training, input)


class _Choice(Operation):
    """One of several tensors at each place, as `choose` has it, which rounds nothing.

    `choose` gives the values and, for each tensor, how many halves of the error it has there.
    """

    def __init__(self, choose):
        self.choose = choose

    def forward(self, layer, training, *tensors):
        self.shapes = [x.shape for x in tensors]
        out, halves = self.choose(*(x.detach() for x in tensors))
        self.halves = [x.numpy().astype(np.int64) for x in halves]
        return out

    def backward(self, layer, training, gradient, needs):
        error = gradient.exact(f"{layer.site}.error")
        found = []
        for need, halves, shape in zip(needs, self.halves, self.shapes, strict=True):
            codes = folded(error.codes * halves, shape) if need else None
            found.append(Codes(codes, border.holding(codes, error.form.frac + 1), None)
                         if need else None)
        return found


def maximum(layer: Layer, training: bool, input, other):
    """torch.maximum: where both are equal each has half the error, as torch has it."""
    return run(_Choice(lambda x, y: (torch.maximum(x, y), ((x >= y).int() + (x > y),
                                                           (y >= x).int() + (y > x)))),
               layer, training, input, other)


def minimum(layer: Layer, training: bool, input, other):
    """torch.minimum, as `maximum`."""
    return run(_Choice(lambda x, y: (torch.minimum(x, y), ((x <= y).int() + (x < y),
                                                           (y <= x).int() + (y < x)))),
               layer, training, input, other)


def takes_extreme(input, other=None, **options) -> bool:
    """Whether torch.max compares two tensors, or all values of one: along an axis it is a move."""
    return not options and (other is None or isinstance(other, torch.Tensor))


def largest(layer: Layer, training: bool, input, other=None):
    """torch.max of two tensors, or of all values."""
    return amax(layer, training, input) if other is None else maximum(layer, training, input, other)


def smallest(layer: Layer, training: bool, input, other=None):
    """torch.min of two tensors, or of all values."""
    return amin(layer, training, input) if other is None else minimum(layer, training, input, other)


def clamp(layer: Layer, training: bool, input, min=None, max=None):
    """torch.clamp: within the limits, which may be tensors, x has the error."""
    def choose(x, *limits):
        if not limits:
            out = x.clamp(min, max)
            return out, [2 * (x == out).int()]
        found = iter(limits)
        low = x.new_full((), -torch.inf) if min is None else next(found)
        high = x.new_full((), torch.inf) if max is None else next(found)
        shares = [(x >= low) & (x <= high)]
        shares += [(x < low) & (low < high)] if min is not None else []
        shares += [(x > high) | (high < low)] if max is not None else []
        return torch.clamp(x, low, high), [2 * share.int() for share in shares]

    limits = [limit for limit in (min, max) if isinstance(limit, torch.Tensor)]
    return run(_Choice(choose), layer, training, input, *limits)


def clamp_min(layer: Layer, training: bool, input, min):
    """torch.clamp_min."""
    return clamp(layer, training, input, min)


def clamp_max(layer: Layer, training: bool, input, max):
    """torch.clamp_max."""
    return clamp(layer, training, input, None, max)


def hardtanh(layer: Layer, training: bool, input, min_val=-1.0, max_val=1.0):
    """torch.nn.functional.hardtanh: strictly within its limits x has the error."""
    return run(_Choice(lambda x: (x.clamp(min_val, max_val),
                                  [2 * ((x > min_val) & (x < max_val)).int()])),
               layer, training, input)


def relu6(layer: Layer, training: bool, input):
    """torch.nn.functional.relu6."""
    return hardtanh(layer, training, input, 0.0, 6.0)


def threshold(layer: Layer, training: bool, input, threshold, value):
    """torch.nn.functional.threshold: x where it is above the threshold, else the value."""
    return run(_Choice(lambda x: (torch.where(x > threshold, x, value),
                                  [2 * (x > threshold).int()])), layer, training, input)


class _Leaky(Operation):
    """x where it is positive, else x times a slope: a number, or one for each channel (axis 1)."""

    def __init__(self, slope: float | None):
        self.slope = slope

    def forward(self, layer, training, x, weight=None):
        self.x = entered(layer, "x", x, training)
        w = entered(layer, "w", self.slope if weight is None else weight, training)
        self.w = w._replace(codes=w.codes.reshape(
            -1, *[1] * (x.dim() - 2)) if w.codes.size > 1 else w.codes.reshape(()))
        self.shape = w.codes.shape
        out = layer.leave("y", *self._scaled(layer, self.x), training)
        self.passes = out.passes
        return out

    def backward(self, layer, training, gradient, needs):
        error = arrived(layer, gradient.masked(self.passes), training)
        found = [None] * len(needs)
        if needs[0]:
            codes, form = self._scaled(layer, error)
            found[0] = Codes(masked(codes, self.x.passes), form, None)
        if needs[-1] and len(needs) == 2:
            codes, frac = product(layer, error, self.x)
            codes = folded(np.where(self.x.codes > 0, 0, codes), self.w.codes.shape)
            codes = masked(codes.reshape(self.shape), self.w.passes)
            found[1] = layer.leave("grad_w", codes, border.holding(codes, frac), training)
        return found

    def _scaled(self, layer: Layer, of: Codes) -> tuple:
        """(codes, form) of a tensor where x is positive, else of it times the slope."""
        frac = self.w.form.frac
        up = max(frac, 0)
        if of.form.width + max(up, self.w.form.width + up - frac) > 63:
            raise ValueError(f"layer {layer.site!r}: {of.form} times the slope's {self.w.form} and "
                             "aligned needs more than 63 bits; give the site a cast w, or a slope "
                             "that is a power of two")
        codes, _ = product(layer, of, self.w)
        codes = np.where(self.x.codes > 0, of.codes.astype(np.int64) << up, codes << (up - frac))
        return codes, border.holding(codes, of.form.frac + up)


def leaky_relu(layer: Layer, training: bool, input, negative_slope=0.01):
    """torch.nn.functional.leaky_relu: the slope is cast by w where it is given."""
    return run(_Leaky(negative_slope), layer, training, input)


def prelu(layer: Layer, training: bool, input, weight):
    """torch.prelu: the slopes are cast by w, their summed gradients by grad_w, where given."""
    return run(_Leaky(None), layer, training, input, weight)


def dropout(input, p=0.5, training=True, axes=None):
    """torch.nn.functional.dropout: some values become 0, the others are scaled by 1 / (1 - p).

    torch's generator says which, as it does in float; `axes` of each mask are those of x.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout p {p}: a probability is from 0 to 1")
    if not training or not p:
        return input
    shape = input.shape if axes is None else (*input.shape[:axes], *[1] * (input.dim() - axes))
    kept = torch.where(drawn(shape, 1 - p), input, 0.0)
    return kept if p == 1 else kept * (1 / (1 - p))


def drawn(shape: tuple[int, ...], p: float) -> torch.Tensor:
    """Bools that are true with probability p, by torch's generator."""
    if torch.compiler.is_compiling():
        return torch.ops.emu.drawn(shape, p)
    return torch.empty(shape, dtype=torch.bool).bernoulli_(p)


def feature_dropout(input, p=0.5, training=True):
    """torch.nn.functional.dropout1d to 3d: whole channels of (N, C, ...) become 0."""
    return dropout(input, p, training, axes=2)
