"""Floats as their bits: the exact exponents and codes of a float64 array."""

import numpy as np
from numba import prange

from emu.engine.kernels.jit import kernel


@kernel
def trailing_zeros(m):
    """The number of zero bits below the lowest one, m > 0."""
    n = 0
    for k in (32, 16, 8, 4, 2, 1):
        if m & ((np.int64(1) << k) - 1) == 0:
            m >>= k
            n += k
    return n


@kernel(inline="always")
def unpack(bits):
    """(mantissa, exponent) of a float64 given as its bits: |value| = mantissa * 2^exponent."""
    field = (bits >> 52) & 0x7FF
    mantissa = bits & ((np.int64(1) << 52) - 1)
    return (mantissa | (np.int64(1) << 52) if field else mantissa), max(field, 1) - 1075


@kernel
def exponents(bits):
    """(lowest bit's exponent, first exponent above all) of a float64 array, given as its bits.

    (1, 0) where all are zero, (0, -1) where one is not finite.
    """
    lowest, above, found = 2000, -2000, False
    for i in range(bits.size):
        mantissa, exponent = unpack(bits[i])
        if exponent == 0x7FF - 1075:
            return 0, -1
        if mantissa:
            found = True
            lowest = min(lowest, exponent + trailing_zeros(mantissa))
            if above <= exponent + 52:
                length = 53
                while not mantissa >> (length - 1):
                    length -= 1
                above = max(above, exponent + length)
    return (lowest, above) if found else (1, 0)


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
