"""Convolution and its two gradients on accumulators.

Layouts are torch's: x (N, C, H, W), w (O, C/groups, KH, KW), error (N, O, OH, OW). The order of k
is the definition's: (channel block, ky, kx, channel in the block), or (n, oy, ox) for weights;
padding, holes and channels beyond the last are zeros that keep their place.
"""

import numpy as np

from emu.engine import im2col
from emu.engine.arrays import as_codes, check_kind, narrowed, pair
from emu.engine.kernels.jit import CAST, launch
from emu.engine.kernels.planes import lift
from emu.engine.matmul import accumulate, sums
from emu.engine.monitor import watching
from emu.engine.operands import Rows
from emu.engine.planes import Pixels, Planes, Shifted, layout
from emu.spec import MacSpec


class Geometry:
    """Stride, padding, dilation and groups, checked once."""

    def __init__(self, stride=1, padding=0, dilation=1, groups: int = 1):
        self.stride, self.dilation = pair(stride, "stride", 1), pair(dilation, "dilation", 1)
        self.padding = pair(padding, "padding", 0)
        if not hasattr(groups, "__index__") or groups < 1:
            raise ValueError(f"groups {groups!r}: needs a whole number of at least 1")
        self.groups = groups

    def check(self, channels: int, w: tuple) -> None:
        """Raise ValueError unless weights of shape `w` fit so many input channels."""
        if channels != w[1] * self.groups or w[0] % self.groups:
            raise ValueError(f"{channels} input channels and w {w} with groups {self.groups}: "
                             f"needs {w[1] * self.groups} channels, and outputs a multiple of "
                             "groups")

    def out_size(self, size: tuple, kernel: tuple, ceil: bool = False) -> tuple[int, int]:
        """(OH, OW) for an input of (H, W); raises ValueError where the kernel does not fit.

        With `ceil` a window that begins on the input or in the padding before it may reach beyond.
        """
        out = tuple(min(-(-(s + 2 * p - d * (k - 1) - 1) // t) + 1, (s + p - 1) // t + 1) if ceil
                    else (s + 2 * p - d * (k - 1) - 1) // t + 1 for s, k, t, p, d in
                    zip(size, kernel, self.stride, self.padding, self.dilation, strict=True))
        if min(*out, *kernel) < 1:
            raise ValueError(f"kernel {kernel} dilated by {self.dilation} on {size} padded by "
                             f"{self.padding}: the output would be {out}; both need at least 1 x 1")
        return out

    def check_error(self, error: tuple, size: tuple, w: tuple) -> None:
        """Raise ValueError unless `error` is what this convolution gives for `size` and `w`."""
        want = (w[0], *self.out_size(size, w[2:]))
        if error[1:] != want:
            raise ValueError(f"error {error}: an input of {size} under w {w} needs (N, *{want})")

    def before(self, kernel: tuple) -> tuple[int, int]:
        """The border above and to the left of the error that the input gradient reads."""
        return tuple(d * (k - 1) - p for d, k, p in
                     zip(self.dilation, kernel, self.padding, strict=True))


def conv2d(x, w, mac: MacSpec, bias=None, stride=1, padding=0, dilation=1, groups=1,
           path: str | None = None) -> np.ndarray:
    """Accumulator codes (N, O, OH, OW); bias (O,); `path` as in `matmul`."""
    check_kind(mac, "mac", MacSpec)
    g = Geometry(stride, padding, dilation, groups)
    x, w = as_codes(x, "x", mac.a, 4, None), as_codes(w, "w", mac.b, 4, None)
    g.check(x.shape[1], w.shape)
    start = _start(bias, w.shape[0], mac)
    size = g.out_size(x.shape[2:], w.shape[2:])
    if watching() or path == "plain" or not x.size * w.size:
        return im2col.compute("conv2d", im2col.conv2d(x, w, g, mac.block), mac, start)
    taps = tuple((ky * g.dilation[0], kx * g.dilation[1]) for ky in range(w.shape[2])
                 for kx in range(w.shape[3]))
    planes = Planes(x, layout(x.shape, size, taps, g.stride, g.padding))
    result = np.empty((x.shape[0], w.shape[0], *size), _dtype(mac))
    _planes(planes, w.reshape(*w.shape[:2], -1), mac, groups, start, path, result)
    return result


def conv2d_grad_input(error, w, mac: MacSpec, size, bias=None, stride=1, padding=0, dilation=1,
                      groups=1, path: str | None = None) -> np.ndarray:
    """Accumulator codes (N, C, *size) of the gradient with respect to x.

    `bias` (C,) is that of a transposed convolution, which is the same sum.
    """
    check_kind(mac, "mac", MacSpec)
    g = Geometry(stride, padding, dilation, groups)
    error, w = as_codes(error, "error", mac.a, 4, None), as_codes(w, "w", mac.b, 4, None)
    g.check(w.shape[1] * groups, w.shape)
    size = pair(size, "size", 1)
    g.check_error(error.shape, size, w.shape)
    start = _start(bias, w.shape[1] * groups, mac)
    if watching() or path == "plain" or not error.size * w.size:
        return im2col.compute("conv2d_grad_input", im2col.conv2d_grad_input(
            error, w, g, size, mac.block), mac, start)
    outputs = w.reshape(groups, -1, w.shape[1], *w.shape[2:]).transpose(0, 2, 1, 3, 4)
    w = outputs.reshape(-1, *outputs.shape[2:])
    lo, hi = mac.acc.range
    if mac.lanes > 1 or mac.tile or (start is not None and (start.min() < lo or start.max() > hi)):
        error, step = im2col.spread(error, g.stride), (1, 1)
    else:  # a hole adds zero to an accumulator in its range: pixels of a phase meet the same taps
        step = g.stride
    result = np.empty((error.shape[0], w.shape[0], *size), _dtype(mac))
    result[...] = 0 if start is None else start[:, None, None]  # of pixels that meet no tap
    for y in range(min(step[0], size[0])):
        for x in range(min(step[1], size[1])):
            # Pixel y meets tap ky at row (y + padding - ky * dilation) / stride of the error.
            met = [(ky, kx) for ky in range(w.shape[2]) for kx in range(w.shape[3])
                   if (y + g.padding[0] - ky * g.dilation[0]) % step[0] == 0
                   and (x + g.padding[1] - kx * g.dilation[1]) % step[1] == 0]
            at = [((y + g.padding[0] - ky * g.dilation[0]) // step[0],
                   (x + g.padding[1] - kx * g.dilation[1]) // step[1]) for ky, kx in met]
            if met:
                least = tuple(min(tap[i] for tap in at) for i in range(2))
                taps = tuple((ty - least[0], tx - least[1]) for ty, tx in at)
                out = -(-(size[0] - y) // step[0]), -(-(size[1] - x) // step[1])
                planes = Planes(error, layout(error.shape, out, taps, (1, 1),
                                              (-least[0], -least[1])))
                kept = w[:, :, [ky for ky, _ in met], [kx for _, kx in met]]
                _planes(planes, kept, mac, groups, start, path, result, (y, x), step)
    return result


def conv2d_grad_weight(x, error, mac: MacSpec, kernel, stride=1, padding=0, dilation=1, groups=1,
                       path: str | None = None) -> np.ndarray:
    """Accumulator codes (O, C/groups, *kernel) of the gradient with respect to w."""
    check_kind(mac, "mac", MacSpec)
    g = Geometry(stride, padding, dilation, groups)
    x, error = as_codes(x, "x", mac.a, 4, None), as_codes(error, "error", mac.b, 4, None)
    kernel = pair(kernel, "kernel", 1)
    if x.shape[0] != error.shape[0]:
        raise ValueError(f"x {x.shape} and error {error.shape}: batches differ")
    weights = (error.shape[1], x.shape[1] // groups, *kernel)
    g.check(x.shape[1], weights)
    g.check_error(error.shape, x.shape[2:], weights)
    if watching() or path == "plain" or not x.size * error.size:
        return im2col.compute("conv2d_grad_weight", im2col.conv2d_grad_weight(
            x, error, g, kernel), mac)
    out = error.shape[2:]
    spans = tuple((o - 1) * s + d * (k - 1) + 1 for o, s, d, k in
                  zip(out, g.stride, g.dilation, kernel, strict=True))
    pixels = Pixels(x, spans, g.padding)
    places = ((np.arange(x.shape[0])[:, None, None] * spans[0]
               + np.arange(out[0])[:, None] * g.stride[0]) * spans[1]
              + np.arange(out[1]) * g.stride[1]).reshape(-1)
    errors = error.transpose(1, 0, 2, 3).reshape(error.shape[1], -1)
    # Neighbouring taps of one row, with all their channels, are neighbours in memory.
    run = kernel[1] if g.dilation[1] == 1 and groups == 1 else 1
    result = np.empty(weights, _dtype(mac))
    channels = weights[1]
    for group in range(groups):
        rows = Rows(_share(errors, group, groups))
        for ky in range(kernel[0]):
            for kx in range(0, kernel[1], run):
                tap = ky * g.dilation[0] * spans[1] + kx * g.dilation[1]
                columns = Shifted(pixels, (places + tap) * x.shape[1] + group * channels,
                                  run * channels)
                c = accumulate(rows, columns, mac, None, path)
                _share(result, group, groups)[:, :, ky, kx:kx + run] = c.reshape(
                    -1, run, channels).transpose(0, 2, 1)
    return result


def _planes(planes, w, mac, groups, start, path, result, first=(0, 0), step=(1, 1)) -> None:
    """Rows of weights (outputs, channels/groups, taps) against planes, group by group.

    The outputs go to every `step`-th pixel of result (N, outputs, H, W), from `first` on.
    """
    outputs, channels = w.shape[0] // groups, w.shape[1]
    off = planes.layout.order(channels, mac.block)
    filled = off.size // w.shape[2] - channels
    if filled:  # channels which are zeros of w, whatever they meet
        w = np.pad(w, ((0, 0), (0, filled), (0, 0)))
    rows = w.reshape(w.shape[0], -1, mac.block, w.shape[2]).swapaxes(2, 3).reshape(w.shape[0], -1)
    for group in range(groups):
        columns = Shifted(planes, off + group * channels * planes.layout.plane, planes.count)
        begin = None if start is None else _share(start, group, groups)[:, None]
        codes, up = sums(Rows(_share(rows, group, groups)), columns, mac, begin, path)
        launch(lift, CAST * codes.size, codes[:outputs], planes.layout.row, up, group * outputs,
               first, step, result)


def _start(bias, outputs: int, mac: MacSpec) -> np.ndarray | None:
    if bias is None:
        return None
    if np.shape(bias) != (outputs,):
        raise ValueError(f"bias: shape {np.shape(bias)} for {outputs} outputs; give one for each")
    return as_codes(bias, "bias", mac.result.format, 1)


def _dtype(mac: MacSpec) -> np.dtype:
    return narrowed(np.empty(0, np.int64), mac.result.format).dtype


def _share(x: np.ndarray, group: int, groups: int) -> np.ndarray:
    size = x.shape[0] // groups
    return x[group * size:(group + 1) * size]
