"""The kernels of the MAC, one for each kind of lane, from the template in `tiles.py`.

Arguments as in `tiles.tile`; rows of `a` and columns of `c` are whole tiles.
"""

import numpy as np
from numba import prange

from emu.engine.kernels.jit import kernel
from emu.engine.kernels.tiles import (
    GROUP,
    REPLAY,
    ROWS,
    Lane,
    replay_tile,
    tile,
    tracked_tile,
)
from emu.engine.kernels.vector import DOUBLE, I8, I16, I32, I64

LANES = {
    "step16": Lane(I16, I16, "mul", step="native"),
    "step16_drop": Lane(I16, I16, "mul", "constant", "native"),
    "step32": Lane(I32, I32, "mul"),
    "step32_round": Lane(I32, I32, "mul", "full"),
    "step32_vnni": Lane(I32, I16, "vpdpwssd"),
    "step32_vnni_drop": Lane(I32, I16, "vpdpwssd", "constant"),
    "step64f": Lane(DOUBLE, I32, "mul"),
    "step64f_range": Lane(DOUBLE, I32, "mul", step="range"),
    "step64": Lane(I64, I64, "mul"),
    "step64_round": Lane(I64, I64, "mul", "full"),
    "sum32_round": Lane(I32, I32, "mul", "full", "none"),
    "sum64_round": Lane(I64, I64, "mul", "full", "none"),
    "quads": Lane(I32, I8, "quads", step="none"),
    "pairs": Lane(I32, I16, "pairs", step="none"),
    "sum32": Lane(I32, I32, "mul", step="none"),
    "sum64f": Lane(DOUBLE, I32, "mul", step="none"),
    "sum64": Lane(I64, I64, "mul", step="none"),
}
TRACKED = Lane(I32, I8, "quads", step="none", vectors=1)
REPLAYED = Lane(I32, I8, "mul", vectors=1)


def _kernel(name: str):
    run, columns = tile(LANES[name]), LANES[name].columns

    @kernel(parallel=True, name=name)
    def whole(a, x, off, c, rails):
        tiles = a.shape[0]
        for t in prange(tiles * (c.shape[1] // columns)):
            run(a, x, off, c, t % tiles, t // tiles * columns, rails)

    return whole


KERNELS = {name: _kernel(name) for name in LANES}
_tracked, _replay = tracked_tile(TRACKED), replay_tile(REPLAYED)


@kernel(parallel=True)
def tracked(a, x, off, c, block_sums, margin, risk, first, last, rails):
    """Row tiles `first` to `last` of exact sums, and which vectors of them must be replayed."""
    tiles = last - first
    for t in prange(tiles * (c.shape[1] // GROUP)):
        _tracked(a, x, off, c, block_sums, margin, risk, first + t % tiles, t // tiles * GROUP,
                 rails)


@kernel(parallel=True)
def replay(a, x, off, c, rows, columns, flip, rails):
    """Step the listed vectors again; the lists are whole multiples of REPLAY long."""
    for t in prange(rows.size // REPLAY):
        _replay(a, x, off, c, rows, columns, t * REPLAY, flip, rails)


@kernel(parallel=True)
def pack(rows, packed):
    """(tiles * ROWS, words) to (tiles, words, ROWS)."""
    words = rows.shape[1]
    for t in prange(packed.shape[0]):
        for w in range(words):
            for r in range(ROWS):
                packed[t, w, r] = rows[t * ROWS + r, w]


@kernel(parallel=True)
def quad_sums(a, sums):
    """Add the four codes of every word of a (tiles, words, ROWS) to the sums (tiles * ROWS,)."""
    for t in prange(a.shape[0]):
        for w in range(a.shape[1]):
            for r in range(ROWS):
                word = a[t, w, r]
                sums[t * ROWS + r] += (np.int32(np.int8(word)) + np.int32(np.int8(word >> 8))
                                       + np.int32(np.int8(word >> 16)) + (word >> 24))


@kernel(parallel=True)
def block_sums(a, words, sums, norms):
    """Sums of blocks of int8 rows (tiles, words, 4 * ROWS), and the largest L1 norm of each row."""
    for t in prange(a.shape[0]):
        for r in range(ROWS):
            largest = np.int64(0)
            for j in range(sums.shape[1]):
                total, norm = np.int64(0), np.int64(0)
                for w in range(j * words, (j + 1) * words):
                    for i in range(4 * r, 4 * r + 4):
                        total += np.int64(a[t, w, i])
                        norm += abs(np.int64(a[t, w, i]))
                sums[t, j, r] = total
                largest = max(largest, norm)
            norms[t * ROWS + r] = largest
