"""Floats to codes of a cast in one pass."""

import numpy as np
from numba import prange

from emu.engine.kernels.jit import kernel
from emu.engine.kernels.lanes import CHUNK, fitted, in_lane, rounded

LIMIT = 2.0**61  # of a magnitude in the lane


@kernel
def quantize_chunk(x, scale, c, rails, rand, out):
    """Quantize a flat array; returns how many were outside, -1 where the lane is too narrow."""
    c = in_lane(c, rails)
    outside, wide = np.int64(0), np.int64(0)
    for i in range(x.size):
        exact = np.float64(x[i]) * scale
        inside = abs(exact) < LIMIT  # nor is it then infinite or no number
        wide += not inside
        low = np.floor(exact if inside else 0.0)
        # Rounded to odd below the last bit that the rounding sees: the sticky bit.
        lane = np.int64(low) | np.int64(low != exact)
        whole = rounded(lane, c, rand[i] if c.random else np.uint32(0), rails)
        code = fitted(whole, c, rails)
        outside += code != whole
        out[i] = code
    return outside if not wide else np.int64(-1)


@kernel(parallel=True)
def quantize_lanes(x, scale, c, rails, rand, out):
    """Floats times `scale`, cast in int64 lanes; returns how many were outside, or less than 0.

    `scale` is a power of two that brings the floats to some bits below the cast: the product is
    exact, as a power of two only moves the exponent. Below 0: a magnitude of 2^61 or more, or one
    that is not finite.
    """
    chunks = (x.size + CHUNK - 1) // CHUNK
    found = np.zeros(chunks, np.int64)
    for k in prange(chunks):
        a, b = k * CHUNK, min(x.size, (k + 1) * CHUNK)
        found[k] = quantize_chunk(x[a:b], scale, c, rails, rand[a:b], out[a:b])
    return found.sum() if (found >= 0).all() else np.int64(-1)
