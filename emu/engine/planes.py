"""Convolution operands without im2col: rows of k are shifted views of one flat image.

Every channel is one flat array: its first row holds the first rows of all images side by side, with
the zeros between them shared by neighbours, so that a tap is a constant offset: output position p
of row k reads `flat[off[k] + p]`. A stride has one such plane for each phase. Positions between
images are computed and discarded; above and below there are none.
"""

import functools
import math
from functools import cached_property

import numpy as np

from emu.engine.arrays import bounds, ready
from emu.engine.kernels.jit import CAST, launch
from emu.engine.kernels.planes import lay, lay_pixels
from emu.engine.memory import scratch
from emu.engine.operands import INT8, Stored


class Axis:
    """One axis of a plane: which index a tap reads, and the pitch from one image to the next.

    `span` is how far the outputs of one image reach.
    """

    def __init__(self, size: int, out: int, taps: set, stride: int, before: int):
        self.stride, self.before = stride, before
        self.phases = sorted({tap % stride for tap in taps})
        self.span = span = out + max(taps) // stride
        self.first = {phase: max(0, -(-(before - phase) // stride)) for phase in self.phases}
        self.last = {phase: max(-1, min(span - 1, (size - 1 + before - phase) // stride))
                     for phase in self.phases}  # -1: none
        # Zeros before the first real index of an image may serve as those after its neighbour's.
        shared = min(min(self.first[phase], span - 1 - self.last[phase]) for phase in self.phases)
        self.pitch = span - min(max(shared, 0), span - out)  # outputs never share a place


class Layout:
    """Where everything lies of `shape` (N, C, H, W) seen from outputs (N, *out).

    A plane holds rows (span, N, row). Position (oy, n, ox) of tap (ty, tx) is
    x[n, :, oy * sy + ty - by, ox * sx + tx - bx], zero outside.
    """

    def __init__(self, shape: tuple, out: tuple, taps: tuple, stride: tuple, before: tuple):
        self.axes = [Axis(shape[2 + i], out[i], {tap[i] for tap in taps}, stride[i], before[i])
                     for i in range(2)]
        self.images, self.channels = shape[:2]
        self.row = self.axes[1].pitch
        self.count = out[0] * self.images * self.row
        self.plane = self.axes[0].span * self.images * self.row
        self.starts = np.array([self.start(tap) for tap in taps])
        self.order = functools.lru_cache(self._order)

    def offset(self, tap: tuple) -> int:
        """What a tap adds to the position of an output."""
        y, x = (t // axis.stride for t, axis in zip(tap, self.axes, strict=True))
        return y * self.images * self.row + x

    def start(self, tap: tuple) -> int:
        """Where the row of operands of the first channel and a tap begins."""
        phase = 0
        for t, axis in zip(tap, self.axes, strict=True):
            phase = phase * len(axis.phases) + axis.phases.index(t % axis.stride)
        return phase * self.channels * self.plane + self.offset(tap)

    def _order(self, channels: int, block: int) -> np.ndarray:
        """Where the rows of operands begin, in the order of k, of the first channels.

        Those beyond the last channel, up to a whole block, begin where the first does.
        """
        channel = np.arange(-(-channels // block) * block)
        channel[channels:] = 0
        return (channel.reshape(-1, 1, block) * self.plane + self.starts[:, None]).reshape(-1)


layout = functools.lru_cache(1 << 8)(Layout)


class Planes:
    """x (N, C, H, W) in a layout: all operand rows of a convolution."""

    def __init__(self, x: np.ndarray, where: Layout):
        self.x, self.layout, self.count = x, where, where.count
        self.kept = {}

    def flat(self, dtype, flip: int, up: int) -> np.ndarray:
        """All planes one after the other, (codes - flip) << up; long enough for whole tiles."""
        key = np.dtype(dtype), flip, up
        if key not in self.kept:
            ys, xs = self.layout.axes
            size = self.layout.channels * self.layout.plane
            flat = scratch((len(ys.phases) * len(xs.phases) * size + xs.span + 64,), dtype)
            flat.fill(-flip << up)
            x = ready(self.x, self.x.dtype)
            at = 0
            for y in ys.phases:
                for z in xs.phases:
                    launch(lay, CAST * x.size, x, flat[at:at + size], self.layout.row,
                           (ys.stride, xs.stride), (y - ys.before, z - xs.before),
                           (ys.first[y], xs.first[z]), (ys.last[y], xs.last[z]), flip, up)
                    at += size
            self.kept[key] = flat
        return self.kept[key]


class Shifted:
    """Operand columns that are `count` neighbours in a flat array, from `off[k]` on for each k."""

    def __init__(self, source, off: np.ndarray, count: int):
        self.source, self.off, self.count = source, off, count
        self.depth, self.codes = off.size, source.x

    @cached_property
    def bounds(self) -> tuple[int, int]:
        """The least and the greatest code, and 0."""
        return bounds(self.source.x)

    def part(self, first: int, last: int) -> "Shifted":
        """The rows of k from `first` to before `last`."""
        return Shifted(self.source, self.off[first:last], self.count)

    def matrix(self) -> np.ndarray:
        """The operands as a matrix (K, count)."""
        return self.source.flat(np.int64, 0, 0)[self.off[:, None] + np.arange(self.count)]

    def stored(self, dtype, columns: int, flip: int = 0, up: int = 0) -> Stored:
        """(codes - flip) << up in tiles of so many columns."""
        width = -(-self.count // columns) * columns
        return Stored(self.source.flat(dtype, flip, up), self.off, width, columns)


class Pixels:
    """x (N, C, H, W) with the channels innermost and the padding around every image."""

    def __init__(self, x: np.ndarray, size: tuple, before: tuple):
        self.x, self.size, self.before = x, size, before
        self.kept = {}

    def flat(self, dtype, flip: int, up: int) -> np.ndarray:
        """(N, *size, C), flattened; (codes - flip) << up; long enough for whole tiles."""
        key = np.dtype(dtype), flip, up
        if key not in self.kept:
            shape = (self.x.shape[0], *self.size, self.x.shape[1])
            flat = scratch((math.prod(shape) + 64,), dtype)
            flat.fill(-flip << up)
            x = ready(self.x, INT8 if self.x.dtype == INT8 else np.int16 if flip else dtype)
            launch(lay_pixels, 4 * CAST * x.size, x, flat[:-64].reshape(shape), self.before, flip,
                   up)
            self.kept[key] = flat
        return self.kept[key]
