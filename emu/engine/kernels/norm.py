"""Batch norm over int32 or int64 arrays (N, C, S): a channel's sums, and linear casts."""

import numpy as np
from numba import prange

from emu.engine.kernels.jit import kernel
from emu.engine.kernels.lanes import fitted, in_lane, rounded

LOW = np.int64((1 << 32) - 1)


@kernel(parallel=True)
def channel_sums(a, b, out):
    """Per channel (C, 3): the sum of a, and that of a * b in two words, high * 2^32 + low.

    Exact for 2^31 products of 63 bits: each word grows by less than 2^32 a product.
    """
    for c in prange(a.shape[1]):
        total, high, low = np.int64(0), np.int64(0), np.int64(0)
        for n in range(a.shape[0]):
            for i in range(a.shape[2]):
                product = np.int64(a[n, c, i]) * np.int64(b[n, c, i])
                total += a[n, c, i]
                high += product >> 32
                low += product & LOW
        out[c, 0], out[c, 1], out[c, 2] = total, high, low


@kernel
def line_plane(a, p, b, q, r, c, rails, rand, out, inside):
    """Cast a * p + b * q + r of one plane, in their own dtype."""
    outside = np.int64(0)
    for i in range(a.size):
        total = np.add(np.add(np.multiply(a[i], p), np.multiply(b[i], q)), r)
        whole = rounded(np.left_shift(total, c.up), c, rand[i] if c.random else np.uint32(0),
                        rails)
        code = fitted(whole, c, rails)
        out[i], inside[i] = code, code == whole
        outside += np.int64(code != whole)
    return outside


@kernel(parallel=True)
def line_casts(a, p, b, q, r, c, rails, rand, out, inside):
    """`line_plane` with p, q and r of the channel, on the flat operands `rand` if random.

    Returns how many were outside.
    """
    channels, size, outside = a.shape[1], a.shape[2], 0
    for plane in prange(a.shape[0] * channels):
        n, k = plane // channels, plane % channels
        outside += line_plane(a[n, k], p[k], b[n, k], q[k], r[k], in_lane(c, rails), rails,
                              rand[plane * size:(plane + 1) * size], out[n, k], inside[n, k])
    return outside
