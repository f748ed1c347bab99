"""The extremes of codes, and exact sums of squares."""

import numpy as np
from numba import prange

from emu.engine.kernels.jit import kernel

CHUNK = 1 << 14


@kernel
def extremes(x):
    """The least and the greatest code of a flat array, and 0."""
    low = high = x.dtype.type(0)
    for i in range(x.size):
        low, high = np.minimum(low, x[i]), np.maximum(high, x[i])
    return np.int64(low), np.int64(high)


@kernel(parallel=True)
def squared_digits(x, y, sums):
    """Into `sums` (chunks, 6): the 32-bit digits of the squares of |x - y|, int64 arrays.

    |x - y| fits uint64, halves high and low; each row holds the sums of the low and of the high
    digits of low^2, of high * low and of high^2. They fit for 2^31 elements.
    """
    digit = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    for k in prange(sums.shape[0]):
        a, b, c, d, e, f = (np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0),
                            np.uint64(0))
        for i in range(k * CHUNK, min((k + 1) * CHUNK, x.size)):
            distance = np.uint64(max(x[i], y[i])) - np.uint64(min(x[i], y[i]))
            high, low = distance >> half, distance & digit
            lows, cross, highs = low * low, high * low, high * high
            a += lows & digit
            b += lows >> half
            c += cross & digit
            d += cross >> half
            e += highs & digit
            f += highs >> half
        sums[k, 0], sums[k, 1], sums[k, 2] = a, b, c
        sums[k, 3], sums[k, 4], sums[k, 5] = d, e, f
