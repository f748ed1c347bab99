"""Memory for what an operation needs only while it runs.

The system hands out fresh pages one fault at a time, which costs more than most kernels do with
them, and takes large arrays back as soon as they are dropped. So their memory is kept here.
"""

import math
from collections import defaultdict

import numpy as np

SPARE = 4  # pieces of one size that are kept
KINDS = range(15, 26)  # their sizes, as powers of two in bytes; smaller ones cause no faults
LINE = 64  # bytes of a cache line, on which they begin
_spare: dict[int, list] = defaultdict(list)


class _Lent:
    """A piece of memory in use, as an array of a shape: kept once no array is on it any more."""

    def __init__(self, memory: np.ndarray, home: list, shape: tuple, dtype: np.dtype):
        self.memory, self.home = memory, home
        at = memory.__array_interface__["data"][0]
        self.__array_interface__ = {"data": (at + -at % LINE, False), "shape": shape,
                                    "typestr": dtype.str, "version": 3}

    def __del__(self):
        if len(self.home) < SPARE:
            self.home.append(self.memory)


def scratch(shape: tuple, dtype) -> np.ndarray:
    """An array of any content, as np.empty gives it, in memory that earlier ones left."""
    dtype = np.dtype(dtype)
    kind = (math.prod(shape) * dtype.itemsize).bit_length()
    if kind not in KINDS:
        return np.empty(shape, dtype)
    home = _spare[kind]
    try:
        memory = home.pop()
    except IndexError:
        memory = np.empty((1 << kind) + LINE, np.uint8)
    return np.asarray(_Lent(memory, home, shape, dtype))
