"""What is multiplied: rows of a against columns of x, wherever they lie in memory."""

from functools import cached_property
from typing import NamedTuple

import numpy as np

from emu.engine.arrays import bounds, ready
from emu.engine.kernels import gemm
from emu.engine.kernels.jit import launch
from emu.engine.kernels.parts import ROWS
from emu.engine.memory import scratch

STORED = {"quads": np.int8, "pairs": np.int16, "vpdpwssd": np.int16}
WORDS = {2: np.int16, 4: np.int32, 8: np.int64}
INT8 = np.dtype(np.int8)


class Stored(NamedTuple):
    """Operand columns as kernels read them."""

    x: np.ndarray  # flat
    off: np.ndarray  # where in x the rows of k begin
    width: int  # columns, in whole tiles
    pitch: int  # from one tile's columns to the next tile's


class Matrix:
    """Operand columns that lie as a matrix (K, N)."""

    def __init__(self, codes: np.ndarray):
        self.codes = codes
        self.depth, self.count = codes.shape

    @cached_property
    def bounds(self) -> tuple[int, int]:
        """The least and the greatest code, and 0."""
        return bounds(self.codes)

    def matrix(self) -> np.ndarray:
        """The operands as a matrix (K, count)."""
        return self.codes

    def part(self, first: int, last: int) -> "Matrix":
        """The rows of k from `first` to before `last`."""
        return Matrix(self.codes[first:last])

    def stored(self, dtype, columns: int, flip: int = 0, up: int = 0) -> Stored:
        """(codes - flip) << up in tiles of so many columns.

        Of every row a tile reads a few codes. Rows that are a power of two apart share few sets of
        a cache, which codes of four bytes and more would outgrow: they lie tile by tile.
        """
        width = -(-self.count // columns) * columns
        codes = self.codes.astype(np.int16) - flip if flip else self.codes
        if np.dtype(dtype).itemsize >= 4:
            flat = scratch((width // columns, self.depth, columns), dtype)
            whole, rest = self.count // columns, self.count % columns
            flat[:whole] = codes[:, :whole * columns].reshape(
                self.depth, whole, columns).swapaxes(0, 1)
            if rest:
                flat[whole, :, :rest], flat[whole, :, rest:] = codes[:, whole * columns:], 0
            return Stored(flat.reshape(-1), np.arange(0, self.depth * columns, columns), width,
                          self.depth * columns)
        if width == self.count:
            flat = ready(codes, dtype)
        else:
            flat = np.zeros((self.depth, width), dtype)
            flat[:, :self.count] = codes
        return Stored((flat << up if up else flat).reshape(-1),
                      np.arange(0, self.depth * width, width), width, columns)


class Rows:
    """Operand rows (M, K), which several columns may meet: what is found out once is kept."""

    def __init__(self, codes: np.ndarray):
        self.codes = codes
        self.kept = {}

    @cached_property
    def bounds(self) -> tuple[int, int]:
        """The least and the greatest code, and 0."""
        return bounds(self.codes)

    def part(self, first: int, last: int) -> "Rows":
        """The columns of k from `first` to before `last`."""
        return Rows(self.codes[:, first:last])

    def scaled(self, up: int) -> np.ndarray:
        """The codes with `up` zeros appended."""
        return self.codes.astype(np.int64) << up if up else self.codes

    def sums(self, a: np.ndarray) -> np.ndarray:
        """The sums of the rows of packed words of four codes, those of the last tile's fill too."""
        if "sums" not in self.kept:
            self.kept["sums"] = block_sums(a, 1)[0].reshape(-1)
        return self.kept["sums"]

    def packed(self, lane: gemm.Lane, dtype, lanes: int, up: int) -> np.ndarray:
        """Tiles of words of the scaled codes, k filled with zeros to steps of `lanes` words."""
        key = lane.product, dtype, lanes, up
        if key not in self.kept:
            self.kept[key] = self._pack(lane, dtype, lanes, up)
        return self.kept[key]

    def _pack(self, lane, dtype, lanes, up):
        m, depth = self.codes.shape
        rows, mask = self.codes, -1
        if lane.word > 1:
            narrow = STORED[lane.product]
            rows = ready(self.scaled(up), narrow)
            if depth % lane.word:
                rows = np.zeros((m, -(-depth // lane.word) * lane.word), narrow)
                rows[:, :depth] = self.scaled(up)
            rows, up = rows.view(dtype), 0
        elif rows.dtype != INT8 or not rows.flags.carray:
            rows = ready(rows, WORDS[np.dtype(dtype).itemsize])
        if lane.product == "vpdpwssd":
            mask = 0xFFFF  # of its two products the upper one is zero
        words = -(-depth // (lane.word * lanes)) * lanes
        a = scratch((-(-m // ROWS), words, ROWS), dtype)
        launch(gemm.pack, a.size // 16, rows, up, mask, a)
        return a


def block_sums(a: np.ndarray, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """Packed words of four codes: (sums of so many blocks, the largest L1 norm of each row's)."""
    sums = np.empty((a.shape[0], blocks, ROWS), np.int32)
    norms = np.empty(a.shape[0] * ROWS, np.int64)
    launch(gemm.block_sums, a.size // 4, a.view(np.int8), a.shape[1] // blocks, sums, norms)
    return sums, norms
