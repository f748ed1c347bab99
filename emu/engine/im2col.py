"""Convolution and its gradients as one matmul per group, every operand written out.

The plain way: what the faster one of `conv.py` must equal. Arguments are checked already.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from emu.engine.matmul import matmul
from emu.spec import MacSpec


def conv2d(x, w, mac: MacSpec, bias, g, overflowed) -> np.ndarray:
    """x (N, C, H, W), w (O, C/groups, KH, KW) -> (N, O, OH, OW); `g` is the Geometry."""
    size = g.out_size(x.shape[2:], w.shape[2:])
    taps = _taps(x, w.shape[2:], size, g.stride, g.dilation, g.padding)

    def operands(group):
        return _rows(_group(taps, group, g.groups), mac.block), _columns(
            _group(w, group, g.groups, axis=0).transpose(1, 2, 3, 0), mac.block)

    shape = (x.shape[0], *size, w.shape[0] // g.groups)
    return _grouped(operands, mac, g.groups, shape, (0, 3, 1, 2), bias, overflowed)


def conv2d_grad_input(error, w, mac: MacSpec, size, bias, g, overflowed) -> np.ndarray:
    """error (N, O, OH, OW) -> (N, C, *size)."""
    # Pixel y meets tap ky at spread row y + padding - ky * dilation: the window runs backwards.
    taps = _taps(spread(error, g.stride), w.shape[2:], size, (1, 1), g.dilation,
                 g.before(w.shape[2:]))[..., ::-1, ::-1]

    def operands(group):
        return _rows(_group(taps, group, g.groups), mac.block), _columns(
            _group(w, group, g.groups, axis=0).transpose(0, 2, 3, 1), mac.block)

    shape = (error.shape[0], *size, w.shape[1])
    return _grouped(operands, mac, g.groups, shape, (0, 3, 1, 2), bias, overflowed)


def conv2d_grad_weight(x, error, mac: MacSpec, kernel, g, overflowed) -> np.ndarray:
    """x (N, C, H, W), error (N, O, OH, OW) -> (O, C/groups, *kernel)."""
    taps = _taps(x, kernel, error.shape[2:], g.stride, g.dilation, g.padding)
    channels = x.shape[1] // g.groups

    def operands(group):
        errors = _group(error, group, g.groups).transpose(0, 2, 3, 1)
        pixels = errors.shape[0] * errors.shape[1] * errors.shape[2]
        rows = _group(taps, group, g.groups).transpose(1, 4, 5, 0, 2, 3)
        return (rows.reshape(channels * kernel[0] * kernel[1], pixels),
                errors.reshape(pixels, errors.shape[3]))

    shape = (channels, *kernel, error.shape[1] // g.groups)
    return _grouped(operands, mac, g.groups, shape, (3, 0, 1, 2), None, overflowed)


def spread(error: np.ndarray, stride: tuple) -> np.ndarray:
    """error (N, O, OH, OW) with the zeros of a stride's holes between its pixels."""
    if stride == (1, 1):
        return error
    out = np.zeros((*error.shape[:2], *((n - 1) * s + 1 for n, s in zip(
        error.shape[2:], stride, strict=True))), error.dtype)
    out[:, :, ::stride[0], ::stride[1]] = error
    return out


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
        out = matmul(rows, columns, mac, share, count, path="plain")
        results.append(out.reshape(shape).transpose(axes))
    axis = axes.index(3)
    if overflowed is not None:
        overflowed += np.concatenate(counts, axis)
    return np.ascontiguousarray(np.concatenate(results, axis))
