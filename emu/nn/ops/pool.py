"""Pooling and rectification: comparisons, exact sums, and divisions by an area."""

from __future__ import annotations

import numpy as np

from emu import engine
from emu.nn import border
from emu.nn.layer import Codes, Layer
from emu.nn.operation import Operation, run
from emu.nn.ops.contract import pair


class _Relu(Operation):
    def forward(self, layer, training, x):
        codes, frac = border.to_codes(x, f"{layer.site}.x")
        self.passes = codes > 0
        return Codes(np.maximum(codes, 0), border.holding(codes, frac), None)

    def backward(self, layer, training, gradient, needs):
        return [gradient.masked(self.passes).exact(f"{layer.site}.error")]


def relu(layer: Layer, training: bool, input):
    """torch.relu: a comparison, exact."""
    return run(_Relu(), layer, training, input)


class _MaxPool2d(Operation):
    def __init__(self, windows):
        self.windows = windows

    def forward(self, layer, training, x):
        codes, frac = border.to_codes(x, f"{layer.site}.x")
        out, self.index = engine.max_pool2d(codes, *self.windows)
        self.size = x.shape[-2:]
        return Codes(out, border.holding(out, frac), None)

    def backward(self, layer, training, gradient, needs):
        error = gradient.exact(f"{layer.site}.error")
        out = engine.max_pool2d_grad(error.codes, self.index, self.size)
        return [Codes(out, border.holding(out, error.form.frac), None)]


def max_pool2d(layer: Layer, training: bool, input, kernel_size, stride=None, padding=0, dilation=1,
               ceil_mode=False, return_indices=False):
    """torch.nn.functional.max_pool2d on codes; the gradients of overlapping windows add exactly."""
    if pair(dilation) != (1, 1) or ceil_mode or return_indices:
        raise ValueError(f"layer {layer.site!r}: max pooling has no dilation, ceil_mode or "
                         "return_indices here; leave them at their defaults")
    return run(_MaxPool2d((kernel_size, stride or kernel_size, padding)), layer, training, input)


class _AvgPool2d(Operation):
    def __init__(self, windows, include):
        self.windows, self.include = windows, include

    def forward(self, layer, training, x):
        codes, frac = border.to_codes(x, f"{layer.site}.x")
        sums, self.divisor = engine.window_sums(codes, *self.windows,
                                                count_include_pad=self.include)
        out = divided(layer, "y", sums, self.divisor, frac, training)
        self.size, self.passes = x.shape[-2:], out.passes
        return out

    def backward(self, layer, training, gradient, needs):
        error = gradient.masked(self.passes).exact(f"{layer.site}.error")
        error = divided(layer, "error", error.codes, self.divisor, error.form.frac, training)
        out = engine.window_spread(error.codes, self.size, *self.windows)
        return [Codes(out, border.holding(out, error.form.frac), None)]


def divided(layer: Layer, name: str, codes, divisor, frac: int, training: bool) -> Codes:
    """codes / divisor in the spec's cast `name`; divisors of 2^k move the binary point.

    Without that cast the quotient must be exact, so each divisor a power of two.
    """
    if not (divisor & (divisor - 1)).any():
        down = np.bitwise_count(divisor - 1)
        most = int(down.max(initial=0))
        up = most - down
        if border.holding(codes, frac).width + int(up.max(initial=0)) <= 63:
            codes = codes.astype(np.int64) << up
            return layer.leave(name, codes, border.holding(codes, frac + most), training)
    return layer.divide(name, codes, divisor, border.holding(codes, frac), training)


def avg_pool2d(layer: Layer, training: bool, input, kernel_size, stride=None, padding=0,
               ceil_mode=False, count_include_pad=True, divisor_override=None):
    """torch.nn.functional.avg_pool2d: the window's sum, divided in the cast y (backward: error)."""
    if ceil_mode or divisor_override is not None:
        raise ValueError(f"layer {layer.site!r}: average pooling has no ceil_mode or "
                         "divisor_override here; leave them at their defaults")
    windows = (kernel_size, stride or kernel_size, padding)
    return run(_AvgPool2d(windows, count_include_pad), layer, training, input)
