"""Pooling windows over int64 planes: output o covers rows ys[o, 0] to ys[o, 1] - 1, and so xs."""

import numpy as np
from numba import prange

from emu.engine.kernels.jit import kernel


@kernel(parallel=True)
def max_pool(x, ys, xs, steps, out, index):
    """Planes (P, H, W) to their windows' first maxima and the flat pixel each came from.

    A window has every steps[0]-th of its rows and every steps[1]-th of its columns, and at least
    one pixel.
    """
    for p in prange(x.shape[0]):
        for oy in range(ys.shape[0]):
            for ox in range(xs.shape[0]):
                where = ys[oy, 0] * x.shape[2] + xs[ox, 0]
                best = x[p, ys[oy, 0], xs[ox, 0]]
                for y in range(ys[oy, 0], ys[oy, 1], steps[0]):
                    for z in range(xs[ox, 0], xs[ox, 1], steps[1]):
                        if x[p, y, z] > best:
                            best, where = x[p, y, z], y * x.shape[2] + z
                out[p, oy, ox], index[p, oy, ox] = best, where


@kernel(parallel=True)
def scatter(error, index, out):
    """Add each error (P, OH, OW) to the pixel it came from, out (P, H * W)."""
    for p in prange(error.shape[0]):
        for oy in range(error.shape[1]):
            for ox in range(error.shape[2]):
                out[p, index[p, oy, ox]] += error[p, oy, ox]


@kernel(parallel=True)
def window_sum(x, ys, xs, out):
    """Planes (P, H, W) to their windows' sums (P, OH, OW)."""
    for p in prange(x.shape[0]):
        for oy in range(ys.shape[0]):
            for ox in range(xs.shape[0]):
                total = np.int64(0)
                for y in range(ys[oy, 0], ys[oy, 1]):
                    for z in range(xs[ox, 0], xs[ox, 1]):
                        total += x[p, y, z]
                out[p, oy, ox] = total


@kernel(parallel=True)
def spread_windows(share, ys, xs, out):
    """Add each share (P, OH, OW) to all pixels under its window, out (P, H, W)."""
    for p in prange(share.shape[0]):
        for oy in range(ys.shape[0]):
            for ox in range(xs.shape[0]):
                for y in range(ys[oy, 0], ys[oy, 1]):
                    for z in range(xs[ox, 0], xs[ox, 1]):
                        out[p, y, z] += share[p, oy, ox]
