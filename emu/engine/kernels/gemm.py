"""The kernels of the MAC, one for each kind of lane, from the template in `tiles.py`.

Arguments as in `tiles.tile`; rows of `a` and columns of `c` are whole tiles.
"""

import numpy as np
from numba import prange

from emu.engine.kernels.jit import kernel
from emu.engine.kernels.parts import ROWS, Lane
from emu.engine.kernels.tiles import GROUP, REPLAY, replay_tile, tile, tracked_tile
from emu.engine.kernels.vector import DOUBLE, I16, I32, I64

LANES = {
    "step16": Lane(I16, "mul", step="native"),
    "step16_drop": Lane(I16, "mul", "constant", "native"),
    "step32": Lane(I32, "mul"),
    "step32_round": Lane(I32, "mul", "full"),
    "step32_native": Lane(I32, "vpdpwssd", step="native"),
    "step32_vnni": Lane(I32, "vpdpwssd"),
    "step32_vnni_drop": Lane(I32, "vpdpwssd", "constant"),
    "step64f": Lane(DOUBLE, "mul"),
    "step64f_range": Lane(DOUBLE, "mul", step="range"),
    "step64": Lane(I64, "mul"),
    "step64_round": Lane(I64, "mul", "full"),
    "sum32_round": Lane(I32, "mul", "full", "none"),
    "sum64_round": Lane(I64, "mul", "full", "none"),
    "quads": Lane(I32, "quads", step="none"),
    "pairs": Lane(I32, "pairs", step="none"),
    "sum32": Lane(I32, "mul", step="none"),
    "sum64f": Lane(DOUBLE, "mul", step="none"),
    "sum64": Lane(I64, "mul", step="none"),
}
TRACKED = Lane(I32, "quads", step="none", vectors=1)
SLICE = 1 << 9  # accumulators of the thin kernel that stay in the first-level cache
REPLAYED = Lane(I32, "mul", vectors=1)


def _kernel(name: str):
    run, columns = tile(LANES[name]), LANES[name].columns

    @kernel(parallel=True, name=name)
    def whole(a, x, off, first, c, rails):
        tiles = a.shape[0]
        for t in prange(tiles * (c.shape[1] // columns)):
            run(a, x, off, first, c, t % tiles, t // tiles, rails)

    return whole


KERNELS = {name: _kernel(name) for name in LANES}
_tracked, _replay = tracked_tile(TRACKED), replay_tile(REPLAYED)


@kernel(parallel=True)
def tracked(a, x, off, first, c, block_sums, margin, risk, begin, end, rails):
    """Row tiles `begin` to `end` of exact sums, and which vectors of them must be replayed."""
    tiles = end - begin
    for t in prange(tiles * (c.shape[1] // GROUP)):
        _tracked(a, x, off, first, c, block_sums, margin, risk, begin + t % tiles, t // tiles,
                 rails)


@kernel(parallel=True)
def replay(a, x, off, first, c, rows, groups, flip, rails):
    """Step the listed vectors again; the lists are whole multiples of REPLAY long."""
    for t in prange(rows.size // REPLAY):
        _replay(a, x, off, first, c, rows, groups, t * REPLAY, flip, rails)


@kernel
def thin_slice(a, x, lanes, lo, hi, c):
    """`thin` for one column of x (K,) and a few rows of a, given as (K, rows); c (rows,)."""
    lane = c.dtype.type
    lo, hi = lane(lo), lane(hi)
    if lanes == 1:
        for k in range(x.size):
            for i in range(c.size):
                total = np.add(c[i], np.multiply(lane(a[k, i]), x[k]))
                c[i] = np.maximum(np.minimum(total, hi), lo)
        return
    for k in range(x.size):
        for i in range(c.size):
            c[i] = np.add(c[i], np.multiply(lane(a[k, i]), x[k]))
        if (k + 1) % lanes == 0 or k + 1 == x.size:
            for i in range(c.size):
                c[i] = np.maximum(np.minimum(c[i], hi), lo)


@kernel(parallel=True)
def thin(a, x, lanes, lo, hi, c):
    """Columns of a (K, M) times those of x (N, K), added to c (N, M) and held at the rails.

    Step by step in the order of k, all rows of a slice at once.
    """
    slices = (c.shape[1] + SLICE - 1) // SLICE
    for t in prange(c.shape[0] * slices):
        j, first = t // slices, t % slices * SLICE
        last = min(first + SLICE, c.shape[1])
        thin_slice(a[:, first:last], x[j], lanes, lo, hi, c[j, first:last])


@kernel(parallel=True)
def pack(rows, up, mask, packed):
    """(rows, words) to (tiles, words, ROWS), filled with zeros: words << up, of them the mask."""
    for t in prange(packed.shape[0]):
        whole = (t + 1) * ROWS <= rows.shape[0]
        for w in range(rows.shape[1]):
            for r in range(ROWS):  # as often for every tile: LLVM writes it out
                word = rows[t * ROWS + r, w] if whole or t * ROWS + r < rows.shape[0] else 0
                packed[t, w, r] = (np.int64(word) << up) & mask
        packed[t, rows.shape[1]:] = 0


@kernel(parallel=True)
def block_sums(a, words, sums, norms):
    """Sums of blocks of int8 rows (tiles, words, 4 * ROWS), and the largest L1 norm of each row.

    sums (tiles, blocks, ROWS), modulo 2^32; norms (tiles * ROWS,).
    """
    for t in prange(a.shape[0]):
        total, norm = np.empty(4 * ROWS, np.int32), np.empty(4 * ROWS, np.int32)
        norms[t * ROWS:(t + 1) * ROWS] = 0
        for j in range(sums.shape[1]):
            total[:] = 0
            norm[:] = 0
            for w in range(j * words, (j + 1) * words):
                for i in range(4 * ROWS):
                    code = np.int32(a[t, w, i])
                    total[i] += code
                    norm[i] += abs(code)
            for r in range(ROWS):
                at = 4 * r
                sums[t, j, r] = total[at] + total[at + 1] + total[at + 2] + total[at + 3]
                norms[t * ROWS + r] = max(norms[t * ROWS + r], np.int32(
                    norm[at] + norm[at + 1] + norm[at + 2] + norm[at + 3]))
