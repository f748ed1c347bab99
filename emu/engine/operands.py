"""What is multiplied: rows of a against columns of x, wherever they lie in memory."""

from functools import cached_property

import numpy as np

from emu.engine.arrays import bounds, ready
from emu.engine.kernels import gemm
from emu.engine.kernels.jit import launch
from emu.engine.kernels.tiles import ROWS

STORED = {"quads": np.int8, "pairs": np.int16, "vpdpwssd": np.int16, np.int16: np.int16,
          np.int32: np.int32, np.float64: np.int32, np.int64: np.int64}
WORDS = {2: np.int16, 4: np.int32, 8: np.int64}


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

    def stored(self, dtype, multiple: int, flip: int = 0) -> tuple[np.ndarray, np.ndarray, int]:
        """(flat codes - flip, where each row starts, columns): whole multiples of columns."""
        width = -(-self.count // multiple) * multiple
        codes = self.codes if not flip else self.codes.astype(np.int16) - flip
        if width == self.count:
            flat = ready(codes, dtype)
        else:
            flat = np.zeros((self.depth, width), dtype)
            flat[:, :self.count] = codes
        return flat.reshape(-1), np.arange(self.depth, dtype=np.int64) * width, width


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
            self.kept["sums"] = np.zeros(a.shape[0] * ROWS, np.int32)
            launch(gemm.quad_sums, a.size, a, self.kept["sums"])
        return self.kept["sums"]

    def packed(self, lane: gemm.Lane, dtype, lanes: int, up: int) -> np.ndarray:
        """Tiles of words of the scaled codes, k filled with zeros to steps of `lanes` words."""
        key = lane.product, dtype, lanes, up
        if key not in self.kept:
            self.kept[key] = self._pack(*key[1:], lane)
        return self.kept[key]

    def _pack(self, dtype, lanes, up, lane):
        m, depth = self.codes.shape
        whole = lane.word * lanes
        k = -(-depth // whole) * whole
        narrow = STORED[lane.product] if lane.word > 1 else dtype
        rows = self.scaled(up)
        if m % ROWS or k != depth:
            filled = np.zeros((-(-m // ROWS) * ROWS, k), narrow)
            filled[:m, :depth] = rows
            rows = filled
        else:
            rows = ready(rows, narrow)
        if lane.product == "vpdpwssd":
            rows = rows & 0xFFFF  # of its two products the upper one is zero
        rows = rows.view(WORDS[np.dtype(dtype).itemsize])
        a = np.empty((rows.shape[0] // ROWS, rows.shape[1], ROWS), rows.dtype)
        launch(gemm.pack, rows.size // 16, rows, a)
        return a.view(dtype)
