"""Convolution and its gradients as one matmul per group, every operand written out.

The plain way: what the faster one of `conv.py` must equal. Arguments are checked already.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from emu.engine.arrays import narrowed
from emu.engine.matmul import plain
from emu.engine.monitor import watching
from emu.engine.watched import watch_groups
from emu.spec import MacSpec


@dataclass(frozen=True)
class Lowered:
    """The operands (M, K) and (K, N) of each group, and where their product belongs.

    M runs over `shape[:-1]` and N over the group's channels, `shape[-1]`; `axes` brings the
    product into the layout of the result, where the groups' channels follow one another.
    """

    operands: Callable[[int], tuple[np.ndarray, np.ndarray]]
    groups: int
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def assemble(self, products) -> np.ndarray:
        """The result from the product (M, N) of each group."""
        parts = [product.reshape(self.shape).transpose(self.axes) for product in products]
        return np.ascontiguousarray(np.concatenate(parts, self.axes.index(3)))

    def index(self, group: int, row: int, column: int) -> tuple[int, ...]:
        """Where an element of a group's product stands in the result."""
        at = [*np.unravel_index(row, self.shape[:-1]), group * self.shape[-1] + column]
        return tuple(int(at[axis]) for axis in self.axes)


def compute(operation: str, lowered: Lowered, mac: MacSpec, bias: np.ndarray | None = None
            ) -> np.ndarray:
    """The convolution itself: codes of `mac.result`; `bias` holds one for each channel."""
    start = np.zeros((lowered.groups, 1, lowered.shape[-1]), np.int64)
    if bias is not None:
        start[:] = bias.reshape(start.shape)
    if (scope := watching()) is not None:
        out = watch_groups(scope, operation, lowered, mac, start)
    else:
        out = lowered.assemble([plain(*lowered.operands(group), mac, start[group])
                                for group in range(lowered.groups)])
    return narrowed(out, mac.result.format)


def conv2d(x, w, g, block: int) -> Lowered:
    """x (N, C, H, W), w (O, C/groups, KH, KW) -> (N, O, OH, OW); `g` is the Geometry."""
    size = g.out_size(x.shape[2:], w.shape[2:])
    taps = _taps(x, w.shape[2:], size, g.stride, g.dilation, g.padding)

    def operands(group):
        return _rows(_group(taps, group, g.groups), block), _columns(
            _group(w, group, g.groups, axis=0).transpose(1, 2, 3, 0), block)

    return Lowered(operands, g.groups, (x.shape[0], *size, w.shape[0] // g.groups), (0, 3, 1, 2))


def conv2d_grad_input(error, w, g, size, block: int) -> Lowered:
    """error (N, O, OH, OW) -> (N, C, *size)."""
    # Pixel y meets tap ky at spread row y + padding - ky * dilation: the window runs backwards.
    taps = _taps(spread(error, g.stride), w.shape[2:], size, (1, 1), g.dilation,
                 g.before(w.shape[2:]))[..., ::-1, ::-1]

    def operands(group):
        return _rows(_group(taps, group, g.groups), block), _columns(
            _group(w, group, g.groups, axis=0).transpose(0, 2, 3, 1), block)

    return Lowered(operands, g.groups, (error.shape[0], *size, w.shape[1]), (0, 3, 1, 2))


def conv2d_grad_weight(x, error, g, kernel) -> Lowered:
    """x (N, C, H, W), error (N, O, OH, OW) -> (O, C/groups, *kernel)."""
    taps = _taps(x, kernel, error.shape[2:], g.stride, g.dilation, g.padding)
    channels = x.shape[1] // g.groups

    def operands(group):
        errors = _group(error, group, g.groups).transpose(0, 2, 3, 1)
        pixels = errors.shape[0] * errors.shape[1] * errors.shape[2]
        rows = _group(taps, group, g.groups).transpose(1, 4, 5, 0, 2, 3)
        return (rows.reshape(channels * kernel[0] * kernel[1], pixels),
                errors.reshape(pixels, errors.shape[3]))

    return Lowered(operands, g.groups, (channels, *kernel, error.shape[1] // g.groups),
                   (3, 0, 1, 2))


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
