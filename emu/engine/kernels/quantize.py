"""Floats to codes and codes to floats in one pass."""

import numpy as np
from numba import prange

from emu.engine.kernels.jit import kernel
from emu.engine.kernels.lanes import CHUNK, fill, fitted, in_lane, rounded


@kernel
def quantize_at(x, i, scale, limit, c, native, rand, rails):
    """(element i rounded, the code that it becomes, whether its lane is too narrow)."""
    lane = rails.dtype.type
    exact = x[i] * scale
    wide = not abs(exact) < limit  # also what is infinite or no number
    exact = scale - scale if wide else exact
    if native:
        whole = lane(np.rint(exact) if c.odd else np.floor(exact))
    else:
        low = np.floor(exact)
        # Rounded to odd below the last bit that the rounding sees: the sticky bit.
        odd = np.bitwise_or(lane(low), lane(low != exact))
        whole = rounded(odd, c, rand[i] if c.random else np.uint32(0), rails)
    return whole, fitted(whole, c, rails), wide


@kernel
def quantize_loop(x, scale, limit, c, native, rails, rand, out, inside):
    """`quantize_chunk` with its constants in the lane, whose rounding is `native` or not."""
    lane = rails.dtype.type
    outside, strays = lane(0), lane(0)
    for i in range(x.size):
        whole, code, wide = quantize_at(x, i, scale, limit, c, native, rand, rails)
        outside, strays = np.add(outside, lane(code != whole)), np.add(strays, lane(wide))
        out[i] = code
    if inside.size and outside:
        for i in range(x.size):
            whole, code, _ = quantize_at(x, i, scale, limit, c, native, rand, rails)
            inside[i] = code == whole
    return np.int64(-1) if strays else np.int64(outside)


@kernel
def quantize_chunk(x, scale, limit, c, rails, rand, out, inside):
    """Quantize a flat array; returns how many were outside, -1 where the lane is too narrow."""
    c = in_lane(c, rails)
    if c.drop:
        return quantize_loop(x, scale, limit, c, False, rails, rand, out, inside)
    return quantize_loop(x, scale, limit, c, True, rails, rand, out, inside)


@kernel(parallel=True)
def quantize_lanes(x, scale, limit, c, rails, rand, out, inside):
    """Floats times `scale`, cast in lanes; returns how many were outside, or less than 0.

    `scale` is a power of two that brings the floats to some bits below the cast: the product is
    exact, as a power of two only moves the exponent. Where the cast drops none of these bits the
    CPU rounds the floats: to the nearest, ties to even, if the cast has `odd`, else down. Below 0:
    a magnitude of `limit` or more, or one that is not finite. `inside`, unless it is empty, says
    which were not outside, if any was: else it is not even touched.
    """
    chunks = (x.size + CHUNK - 1) // CHUNK
    found = np.zeros(chunks, np.int64)
    for k in prange(chunks):
        a, b = k * CHUNK, min(x.size, (k + 1) * CHUNK)
        found[k] = quantize_chunk(x[a:b], scale, limit, c, rails, rand[a:b], out[a:b],
                                  inside[a:b])
    fill(found, inside)
    return found.sum() if (found >= 0).all() else np.int64(-1)


@kernel
def grid_chunk(x, scale, step, least, most, out):
    """`grid_codes` on one thread."""
    strays = np.int32(0)
    for i in range(x.size):
        exact = x[i] * scale
        code = out.dtype.type(exact if least <= exact <= most else scale - scale)
        out[i] = code
        strays = np.add(strays, np.int32(x.dtype.type(code) * step != x[i]))
    return np.int64(strays)


@kernel(parallel=True)
def grid_codes(x, scale, step, least, most, out):
    """Floats on the grid of `step` as codes from `least` to `most`; returns how many are not.

    `scale` is 1 / step, both powers of two; every code times `step` is exact in the dtype of x.
    """
    strays = 0
    for k in prange((x.size + CHUNK - 1) // CHUNK):
        a, b = k * CHUNK, min(x.size, (k + 1) * CHUNK)
        strays += grid_chunk(x[a:b], scale, step, least, most, out[a:b])
    return strays


@kernel
def float_chunk(codes, step, out):
    """`float_lanes` on one thread."""
    for i in range(codes.size):
        out[i] = out.dtype.type(codes[i]) * step


@kernel(parallel=True)
def float_lanes(codes, step, out):
    """Codes times `step`, each rounded to the dtype of `out` before it is multiplied."""
    for k in prange((codes.size + CHUNK - 1) // CHUNK):
        a, b = k * CHUNK, min(codes.size, (k + 1) * CHUNK)
        float_chunk(codes[a:b], step, out[a:b])


@kernel
def off_grid_chunk(x, scale):
    """`off_grid` on one thread."""
    strays = np.int32(0)
    for i in range(x.size):
        exact = x[i] * scale
        strays = np.add(strays, np.int32(np.floor(exact) != exact or (exact == 0) != (x[i] == 0)))
    return np.int64(strays)


@kernel(parallel=True)
def off_grid(x, scale):
    """How many floats are no multiples of 1 / scale, a power of two."""
    strays = 0
    for k in prange((x.size + CHUNK - 1) // CHUNK):
        a, b = k * CHUNK, min(x.size, (k + 1) * CHUNK)
        strays += off_grid_chunk(x[a:b], scale)
    return strays
