"""Pooling windows over int64 planes."""

import numpy as np
from numba import prange

from emu.engine.kernels.jit import kernel


@kernel(parallel=True)
def max_pool(x, kernel, stride, padding, out, index):
    """Planes (P, H, W) to their windows' first maxima and the flat pixel each came from."""
    height, width = x.shape[1], x.shape[2]
    for p in prange(x.shape[0]):
        for oy in range(out.shape[1]):
            for ox in range(out.shape[2]):
                best, where = np.int64(0), -1
                for y in range(oy * stride[0] - padding[0],
                               oy * stride[0] - padding[0] + kernel[0]):
                    for z in range(ox * stride[1] - padding[1],
                                   ox * stride[1] - padding[1] + kernel[1]):
                        real = 0 <= y < height and 0 <= z < width
                        if real and (where < 0 or x[p, y, z] > best):
                            best, where = x[p, y, z], y * width + z
                out[p, oy, ox], index[p, oy, ox] = best, where


@kernel(parallel=True)
def scatter(error, index, out):
    """Add each error (P, OH, OW) to the pixel it came from, out (P, H * W)."""
    for p in prange(error.shape[0]):
        for oy in range(error.shape[1]):
            for ox in range(error.shape[2]):
                out[p, index[p, oy, ox]] += error[p, oy, ox]


@kernel(parallel=True)
def window_sum(x, kernel, stride, padding, out, count):
    """Planes (P, H, W) to their windows' sums and numbers of real pixels (OH, OW)."""
    height, width = x.shape[1], x.shape[2]
    for oy in prange(out.shape[1]):
        y0 = max(oy * stride[0] - padding[0], 0)
        y1 = min(oy * stride[0] - padding[0] + kernel[0], height)
        for ox in range(out.shape[2]):
            x0 = max(ox * stride[1] - padding[1], 0)
            x1 = min(ox * stride[1] - padding[1] + kernel[1], width)
            count[oy, ox] = (y1 - y0) * (x1 - x0)
            for p in range(x.shape[0]):
                total = np.int64(0)
                for y in range(y0, y1):
                    for z in range(x0, x1):
                        total += x[p, y, z]
                out[p, oy, ox] = total


@kernel(parallel=True)
def spread_windows(share, kernel, stride, padding, out):
    """Add each share (P, OH, OW) to all real pixels under its window, out (P, H, W)."""
    height, width = out.shape[1], out.shape[2]
    for p in prange(share.shape[0]):
        for oy in range(share.shape[1]):
            for ox in range(share.shape[2]):
                for y in range(max(oy * stride[0] - padding[0], 0),
                               min(oy * stride[0] - padding[0] + kernel[0], height)):
                    for z in range(max(ox * stride[1] - padding[1], 0),
                                   min(ox * stride[1] - padding[1] + kernel[1], width)):
                        out[p, y, z] += share[p, oy, ox]
