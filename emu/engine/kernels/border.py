"""Floats as their bits: the exact exponents and codes of a float64 array."""

import numpy as np
from numba import prange

from emu.engine.kernels.jit import kernel
from emu.engine.kernels.lanes import CHUNK


@kernel(inline="always")
def unpack(bits):
    """(mantissa, exponent) of a float64 given as its bits: |value| = mantissa * 2^exponent."""
    field = (bits >> 52) & 0x7FF
    mantissa = bits & ((np.int64(1) << 52) - 1)
    return (mantissa | (np.int64(1) << 52) if field else mantissa), max(field, 1) - 1075


@kernel
def exponents(x):
    """(lowest bit's exponent, first exponent above all) of a flat array of floats.

    (1, 0) where all are zero, (0, -1) where one is not finite. The lowest bit of a mantissa, taken
    alone, is a float whose exponent tells where it is: so the loop needs no branches.
    """
    none = np.int64(1 << 20)
    lowest, widest, subnormal = none, np.int64(0), np.int64(0)
    for i in range(x.size):
        bits = np.float64(x[i]).view(np.int64)
        field = (bits >> 52) & 0x7FF
        mantissa = (bits & ((np.int64(1) << 52) - 1)) | (np.int64(field != 0) << 52)
        low = (np.float64(mantissa & -mantissa).view(np.int64) >> 52) - 1023
        lowest = min(lowest, max(field, np.int64(1)) - 1075 + low if mantissa else none)
        widest = max(widest, field)
        subnormal = max(subnormal, mantissa)
    if widest == 0x7FF:
        return np.int64(0), np.int64(-1)
    if lowest == none:
        return np.int64(1), np.int64(0)
    length = np.int64(53)
    while widest == 0 and not subnormal >> (length - 1):
        length -= 1
    return lowest, max(widest, np.int64(1)) - 1075 + length


@kernel
def scaled_chunk(x, scale, out):
    """`scaled_codes` on one thread."""
    for i in range(x.size):
        out[i] = np.int64(x[i] * scale)


@kernel(parallel=True)
def scaled_codes(x, scale, out):
    """Floats that are multiples of 1 / scale, a power of two, as codes, which int64 holds."""
    for k in prange((x.size + CHUNK - 1) // CHUNK):
        a, b = k * CHUNK, min(x.size, (k + 1) * CHUNK)
        scaled_chunk(x[a:b], scale, out[a:b])


@kernel(parallel=True)
def encode_array(bits, frac, wraps, out):
    """Floats (as bits) in units of 2^-frac, rounded to odd; magnitudes kept to 62 bits.

    A magnitude of 2^62 and more becomes the largest one, or 2^61 plus itself modulo 2^61 for a
    cast that wraps: both leave the result of that cast, and that it overflows, as they were.
    """
    largest = (np.int64(1) << 62) - 1
    for i in prange(bits.size):
        m, exponent = unpack(bits[i])
        s = exponent + frac
        if m == 0:
            code = np.int64(0)
        elif s < 0:
            k = min(-s, 63)
            code = (m >> k) | np.int64((m & ((np.int64(1) << k) - 1)) != 0)
        elif s < 62 and m <= largest >> s:
            code = m << s
        elif wraps:
            code = ((m << s if s < 62 else np.int64(0)) & (largest >> 1)) | (largest ^ largest >> 1)
        else:
            code = largest
        out[i] = -code if bits[i] < 0 else code
