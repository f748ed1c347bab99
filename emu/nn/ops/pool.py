"""Pooling: comparisons, exact sums, and divisions by an area.

A line (..., W) is a plane one pixel high.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from emu import engine
from emu.nn import border
from emu.nn.layer import Codes, Layer
from emu.nn.operation import Operation, run
from emu.nn.ops.contract import pair, single


class _MaxPool(Operation):
    """The maximum under each window: `pool` gives it and its pixel."""

    def __init__(self, pool, axes: int):
        self.pool, self.axes = pool, axes

    def forward(self, layer, training, x):
        codes, frac = border.to_codes(x, f"{layer.site}.x")
        planes = _planes(codes, self.axes)
        out, self.index = self.pool(planes)
        self.size = planes.shape[-2:]
        return Codes(_lines(out, self.axes), border.holding(out, frac), None)

    def backward(self, layer, training, gradient, needs):
        error = gradient.exact(f"{layer.site}.error")
        out = engine.max_pool2d_grad(_planes(error.codes, self.axes), self.index, self.size)
        return [Codes(_lines(out, self.axes), border.holding(out, error.form.frac), None)]


class _AvgPool(Operation):
    """The sum under each window, divided in the cast y; `spread` is the sums' backward."""

    def __init__(self, sums, spread, axes: int):
        self.sums, self.spread, self.axes = sums, spread, axes

    def forward(self, layer, training, x):
        codes, frac = border.to_codes(x, f"{layer.site}.x")
        planes = _planes(codes, self.axes)
        sums, self.divisor = self.sums(planes)
        self.size = planes.shape[-2:]
        out = divided(layer, "y", sums, self.divisor, frac, training)
        self.passes = None if out.passes is None else _lines(out.passes, self.axes)
        return out._replace(codes=_lines(out.codes, self.axes))

    def backward(self, layer, training, gradient, needs):
        error = gradient.masked(self.passes).exact(f"{layer.site}.error")
        error = divided(layer, "error", _planes(error.codes, self.axes), self.divisor,
                        error.form.frac, training)
        out = self.spread(error.codes, self.size)
        return [Codes(_lines(out, self.axes), border.holding(out, error.form.frac), None)]


def _planes(x: np.ndarray, axes: int) -> np.ndarray:
    return x if axes == 2 else x[..., None, :]


def _lines(x: np.ndarray, axes: int) -> np.ndarray:
    return x if axes == 2 else x[..., 0, :]


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


def _sliding(axes: int, kernel_size, stride, padding) -> tuple:
    """(kernel, stride, padding) of planes."""
    sizes = kernel_size, kernel_size if stride in (None, [], ()) else stride, padding
    if axes == 2:
        return sizes
    return tuple((unit, single(size)) for unit, size in zip((1, 1, 0), sizes, strict=True))


def _adaptive(axes: int, x, output_size) -> tuple[int, int]:
    """The output's size in planes; None keeps that of x."""
    sizes = (1, single(output_size)) if axes == 1 else pair(output_size)
    return tuple(n if size is None else size for n, size in zip(
        _planes(np.empty(x.shape, np.bool_), axes).shape[-2:], sizes, strict=True))


def max_pool(axes: int, layer: Layer, training: bool, input, kernel_size, stride=None, padding=0,
             dilation=1, ceil_mode=False, return_indices=False):
    """torch's max_pool1d and 2d on codes; the gradients of overlapping windows add exactly."""
    if return_indices:
        raise ValueError(f"layer {layer.site!r}: max pooling has no return_indices here; leave it "
                         "at its default")
    kernel, stride, padding = _sliding(axes, kernel_size, stride, padding)
    pool = partial(engine.max_pool2d, kernel=kernel, stride=stride, padding=padding,
                   dilation=(1, single(dilation)) if axes == 1 else dilation, ceil=ceil_mode)
    return run(_MaxPool(pool, axes), layer, training, input)


def adaptive_max_pool(axes: int, layer: Layer, training: bool, input, output_size,
                      return_indices=False):
    """torch's adaptive_max_pool1d and 2d on codes."""
    if return_indices:
        raise ValueError(f"layer {layer.site!r}: adaptive max pooling has no return_indices here; "
                         "leave it at its default")
    pool = partial(engine.adaptive_max_pool2d, out=_adaptive(axes, input, output_size))
    return run(_MaxPool(pool, axes), layer, training, input)


def avg_pool(axes: int, layer: Layer, training: bool, input, kernel_size, stride=None, padding=0,
             ceil_mode=False, count_include_pad=True, divisor_override=None):
    """torch's avg_pool1d and 2d: the window's sum, divided in the cast y (backward: error)."""
    if divisor_override is not None and divisor_override < 1:
        raise ValueError(f"layer {layer.site!r}: divisor_override {divisor_override}: needs a "
                         "whole number of at least 1")
    kernel, stride, padding = _sliding(axes, kernel_size, stride, padding)
    windows = {"kernel": kernel, "stride": stride, "padding": padding, "ceil": ceil_mode}

    def sums(planes):
        found, divisor = engine.window_sums(planes, **windows, count_include_pad=count_include_pad)
        return found, divisor if divisor_override is None else np.full_like(divisor,
                                                                            divisor_override)

    return run(_AvgPool(sums, partial(engine.window_spread, **windows), axes), layer, training,
               input)


def adaptive_avg_pool(axes: int, layer: Layer, training: bool, input, output_size):
    """torch's adaptive_avg_pool1d and 2d: the window's sum, divided in the cast y and error."""
    sums = partial(engine.adaptive_sums, out=_adaptive(axes, input, output_size))
    return run(_AvgPool(sums, engine.adaptive_spread, axes), layer, training, input)
