"""Batch norm over arrays (N, C, S): a channel's sums, linear casts and quotients."""

from typing import NamedTuple

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
    """Cast a * p + b * q + r of one plane, in the dtype of `rails`.

    The factors keep their own dtype until they meet: where all have 32 bits, LLVM sees that, and
    int64 lanes multiply two of those at once.
    """
    lane = rails.dtype.type
    outside = np.int64(0)
    for i in range(a.size):
        total = np.add(np.add(np.multiply(lane(a[i]), lane(p)), np.multiply(lane(b[i]), lane(q))),
                       lane(r))
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


class Threshold(NamedTuple):
    """A rounding of quotients: floor + 1 where twice the rest exceeds a bound.

    The bound is the divisor times (`whole`, plus `whole_neg` for numbers below 0, plus `whole_odd`
    where the floor is odd), plus `one` and so on: 0 where any rest rounds up, twice the divisor
    where none does, the divisor or one less where ties decide.
    """

    whole: float
    whole_neg: float
    whole_odd: float
    one: float
    one_neg: float
    one_odd: float


@kernel
def quotient_plane(a, p, r, whole, t, c, rails, out, inside):
    """Cast (a * p + r) / whole of one plane, in float64.

    All numbers are integers below 2^53 and exact. The floor of the product with the reciprocal is
    off by one at most, which the rest shows.
    """
    inverse, lane, outside = 1.0 / whole, rails.dtype.type, np.int64(0)
    for i in range(a.size):
        top = a[i] * p + r
        floor = np.floor(top * inverse)
        rest = top - floor * whole
        off = np.float64(rest >= whole) - np.float64(rest < 0.0)
        floor, rest = floor + off, rest - off * whole
        neg, odd = np.float64(top < 0.0), floor - 2.0 * np.floor(floor * 0.5)
        bound = (whole * (t.whole + neg * t.whole_neg + odd * t.whole_odd)
                 + (t.one + neg * t.one_neg + odd * t.one_odd))
        rounded_up = lane(floor + np.float64(2.0 * rest > bound))
        code = fitted(rounded_up, c, rails)
        out[i], inside[i] = code, code == rounded_up
        outside += np.int64(code != rounded_up)
    return outside


@kernel(parallel=True)
def quotients(a, p, r, whole, t, c, rails, out, inside):
    """`quotient_plane` with r and whole of the channel; returns how many were outside."""
    channels, outside = a.shape[1], 0
    for plane in prange(a.shape[0] * channels):
        n, k = plane // channels, plane % channels
        outside += quotient_plane(a[n, k], p, r[k], whole[k], t, in_lane(c, rails), rails,
                                  out[n, k], inside[n, k])
    return outside
