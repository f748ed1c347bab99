"""Convolution and its two gradients, each brought to one matmul per group.

Layouts are torch's: x (N, C, H, W), w (O, C/groups, KH, KW), error (N, O, OH, OW). The order of k
is the definition's: (channel block, ky, kx, channel in the block), or (n, oy, ox) for weights;
padding, holes and channels beyond the last are zeros that keep their place.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from emu.engine.arrays import as_codes, pair
from emu.engine.matmul import matmul
from emu.spec import MacSpec


class Geometry:
    """Stride, padding, dilation and groups, checked once."""

    def __init__(self, stride=1, padding=0, dilation=1, groups: int = 1):
        self.stride, self.dilation = pair(stride, "stride", 1), pair(dilation, "dilation", 1)
        self.padding = pair(padding, "padding", 0)
        if groups < 1:
            raise ValueError(f"groups {groups!r}: needs a whole number of at least 1")
        self.groups = groups

    def check(self, channels: int, w: tuple) -> None:
        """Raise ValueError unless weights of shape `w` fit so many input channels."""
        if channels != w[1] * self.groups or w[0] % self.groups:
            raise ValueError(f"{channels} input channels and w {w} with groups {self.groups}: "
                             f"needs {w[1] * self.groups} channels, and outputs a multiple of "
                             "groups")

    def out_size(self, size: tuple, kernel: tuple) -> tuple[int, int]:
        """(OH, OW) for an input of (H, W); raises ValueError where the kernel does not fit."""
        out = tuple((s + 2 * p - d * (k - 1) - 1) // t + 1 for s, k, t, p, d in
                    zip(size, kernel, self.stride, self.padding, self.dilation, strict=True))
        if min(out) < 1:
            raise ValueError(f"kernel {kernel} dilated by {self.dilation} on {size} padded by "
                             f"{self.padding}: the output would be {out}; needs at least 1 x 1")
        return out

    def check_error(self, error: tuple, size: tuple, w: tuple) -> None:
        """Raise ValueError unless `error` is what this convolution gives for `size` and `w`."""
        want = (w[0], *self.out_size(size, w[2:]))
        if error[1:] != want:
            raise ValueError(f"error {error}: an input of {size} under w {w} needs (N, *{want})")


def conv2d(x, w, mac: MacSpec, bias=None, stride=1, padding=0, dilation=1, groups=1,
           overflowed: np.ndarray | None = None) -> np.ndarray:
    """Accumulator codes (N, O, OH, OW); bias (O,); `overflowed` counts as in `matmul`."""
    geometry = Geometry(stride, padding, dilation, groups)
    x, w = as_codes(x, "x", mac.a, 4), as_codes(w, "w", mac.b, 4)
    geometry.check(x.shape[1], w.shape)
    if bias is not None and np.shape(bias) != w.shape[:1]:
        raise ValueError(f"bias: shape {np.shape(bias)} for {w.shape[0]} outputs; give one for "
                         "each")
    size = geometry.out_size(x.shape[2:], w.shape[2:])
    taps = _taps(x, w.shape[2:], size, geometry.stride, geometry.dilation, geometry.padding)

    def operands(group):
        return _rows(_group(taps, group, groups), mac.block), _columns(
            _group(w, group, groups, axis=0).transpose(1, 2, 3, 0), mac.block)

    shape = (x.shape[0], *size, w.shape[0] // groups)
    return _grouped(operands, mac, groups, shape, (0, 3, 1, 2), bias, overflowed)


def conv2d_grad_input(error, w, mac: MacSpec, size, stride=1, padding=0, dilation=1, groups=1,
                      overflowed: np.ndarray | None = None) -> np.ndarray:
    """Accumulator codes (N, C, *size) of the gradient with respect to x."""
    geometry = Geometry(stride, padding, dilation, groups)
    error, w = as_codes(error, "error", mac.a, 4), as_codes(w, "w", mac.b, 4)
    geometry.check(w.shape[1] * groups, w.shape)
    size = pair(size, "size", 1)
    geometry.check_error(error.shape, size, w.shape)
    spread = np.zeros((*error.shape[:2], *((n - 1) * s + 1 for n, s in zip(
        error.shape[2:], geometry.stride, strict=True))), np.int64)
    spread[:, :, ::geometry.stride[0], ::geometry.stride[1]] = error
    # Pixel y meets tap ky at spread row y + padding - ky * dilation: the window runs backwards.
    before = [d * (k - 1) - p for d, k, p in
              zip(geometry.dilation, w.shape[2:], geometry.padding, strict=True)]
    taps = _taps(spread, w.shape[2:], size, (1, 1), geometry.dilation, before)[..., ::-1, ::-1]

    def operands(group):
        return _rows(_group(taps, group, groups), mac.block), _columns(
            _group(w, group, groups, axis=0).transpose(0, 2, 3, 1), mac.block)

    shape = (error.shape[0], *size, w.shape[1])
    return _grouped(operands, mac, groups, shape, (0, 3, 1, 2), None, overflowed)


def conv2d_grad_weight(x, error, mac: MacSpec, kernel, stride=1, padding=0, dilation=1, groups=1,
                       overflowed: np.ndarray | None = None) -> np.ndarray:
    """Accumulator codes (O, C/groups, *kernel) of the gradient with respect to w."""
    geometry = Geometry(stride, padding, dilation, groups)
    x, error = as_codes(x, "x", mac.a, 4), as_codes(error, "error", mac.b, 4)
    kernel = pair(kernel, "kernel", 1)
    if x.shape[0] != error.shape[0]:
        raise ValueError(f"x {x.shape} and error {error.shape}: batches differ")
    weights = (error.shape[1], x.shape[1] // groups, *kernel)
    geometry.check(x.shape[1], weights)
    geometry.check_error(error.shape, x.shape[2:], weights)
    taps = _taps(x, kernel, error.shape[2:], geometry.stride, geometry.dilation, geometry.padding)

    def operands(group):
        errors = _group(error, group, groups).transpose(0, 2, 3, 1)
        pixels = errors.shape[0] * errors.shape[1] * errors.shape[2]
        rows = _group(taps, group, groups).transpose(1, 4, 5, 0, 2, 3)
        return (rows.reshape(weights[1] * kernel[0] * kernel[1], pixels),
                errors.reshape(pixels, errors.shape[3]))

    shape = (*weights[1:], weights[0] // groups)
    return _grouped(operands, mac, groups, shape, (3, 0, 1, 2), None, overflowed)


def _taps(x, kernel, size, stride, dilation, before) -> np.ndarray:
    """A view (N, C, *size, KH, KW): what each tap sees from each output, zero outside x.

    `before` is the padding above and to the left; where it is negative x is cropped.
    """
    pads, crops = [(0, 0), (0, 0)], [slice(None)] * 2
    reach = []
    for n, k, out, s, d, b in zip(x.shape[2:], kernel, size, stride, dilation, before, strict=True):
        reach.append(d * (k - 1) + 1)
        after = (out - 1) * s + reach[-1] - (n + b)
        pads.append((max(b, 0), max(after, 0)))
        crops.append(slice(max(-b, 0), max(b, 0) + n + after))
    padded = np.pad(x, pads)[tuple(crops)]
    windows = sliding_window_view(padded, reach, axis=(2, 3))
    return windows[:, :, ::stride[0], ::stride[1], ::dilation[0], ::dilation[1]]


def _group(x: np.ndarray, group: int, groups: int, axis: int = 1) -> np.ndarray:
    size = x.shape[axis] // groups
    return x[(slice(None),) * axis + (slice(group * size, (group + 1) * size),)]


def _blocked(x: np.ndarray, block: int) -> np.ndarray:
    """(..., C, KH, KW) to (..., K): channels padded to blocks, then (block, ky, kx, channel)."""
    *lead, channels, height, width = x.shape
    blocks = -(-channels // block)
    padded = np.pad(x, [(0, 0)] * len(lead) + [(0, blocks * block - channels), (0, 0), (0, 0)])
    split = np.moveaxis(padded.reshape(*lead, blocks, block, height, width), len(lead) + 1, -1)
    return split.reshape(*lead, blocks * block * height * width)


def _rows(taps: np.ndarray, block: int) -> np.ndarray:
    """(N, C, OH, OW, KH, KW) to one row of operands for each (n, oy, ox)."""
    rows = _blocked(taps.transpose(0, 2, 3, 1, 4, 5), block)
    return rows.reshape(rows.shape[0] * rows.shape[1] * rows.shape[2], rows.shape[3])


def _columns(w: np.ndarray, block: int) -> np.ndarray:
    """(C, KH, KW, outputs) to (K, outputs), K in the order of `_rows`."""
    return _blocked(w.transpose(3, 0, 1, 2), block).T


def _grouped(operands, mac, groups, shape, axes, bias, overflowed) -> np.ndarray:
    """One matmul per group; its rows are shape[:-1], its columns the group's outputs."""
    results, counts = [], []
    for group in range(groups):
        rows, columns = operands(group)
        share = None if bias is None else _group(np.asarray(bias), group, groups, axis=0)
        count = None
        if overflowed is not None:
            count = np.zeros((rows.shape[0], columns.shape[1]), np.int64)
            counts.append(count.reshape(shape).transpose(axes))
        results.append(matmul(rows, columns, mac, share, count).reshape(shape).transpose(axes))
    axis = axes.index(3)
    if overflowed is not None:
        overflowed += np.concatenate(counts, axis)
    return np.ascontiguousarray(np.concatenate(results, axis))
