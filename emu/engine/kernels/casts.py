"""Casts on flat int64 arrays, and the scalars that other kernels build on.

Every value fits int64: `MacSpec` refuses hardware for which it might not.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from emu.engine.kernels.jit import kernel
from emu.number import Cast, Overflow, Rounding

WRAP, SAT_ZERO = int(Overflow.WRAP), int(Overflow.SAT_ZERO)
(TO_NEG, TO_POS, TO_ZERO, TO_AWAY, TO_ODD, TIES_NEG, TIES_POS, TIES_ZERO, TIES_AWAY, TIES_EVEN,
 TIES_ODD, STOCHASTIC) = (int(rounding) for rounding in Rounding)
WIDEST = 62  # bits shifted at once; more are first folded into a sticky bit


class Stage(NamedTuple):
    """A cast as plain integers: drop n bits (n < 0 appends zeros), round, fit."""

    n: int
    rounding: int
    rand_bits: int
    overflow: int
    lo: int
    hi: int
    width: int
    signed: int


def stage(frac: int, to: Cast) -> Stage:
    """The stage that brings codes with `frac` fraction bits into `to`."""
    form = to.format
    return Stage(frac - form.frac, int(to.rounding), to.rand_bits, int(to.overflow), *to.range,
                 form.width, int(form.signed))


@kernel(inline="always")
def fits(x, s):
    """Whether the rounded x is inside the range of the stage's overflow mode."""
    return s.lo <= x <= s.hi


@kernel(inline="always")
def rail(x, s):
    """What an out-of-range x becomes where it does not wrap."""
    if s.overflow == SAT_ZERO:
        return np.int64(0)
    return s.hi if x > 0 else s.lo


@kernel(inline="always")
def fit(x, s):
    """The rounded x as a code."""
    if s.lo <= x <= s.hi:
        return x
    if s.overflow == WRAP:
        if s.signed:
            return (x << (64 - s.width)) >> (64 - s.width)
        return x & ((np.int64(1) << s.width) - 1)
    return rail(x, s)


@kernel(inline="always")
def adds_one(mode, floor, above, tie, negative):
    """Whether a rest that is not zero takes the floor one up, in a deterministic mode."""
    odd = floor & 1 == 1
    return (mode == TO_POS
            or (mode == TO_ZERO and negative) or (mode == TO_AWAY and not negative)
            or (mode == TO_ODD and not odd)
            or (mode >= TIES_NEG and above)
            or (tie and (mode == TIES_POS
                         or (mode == TIES_ZERO and negative)
                         or (mode == TIES_AWAY and not negative)
                         or (mode == TIES_EVEN and odd)
                         or (mode == TIES_ODD and not odd))))


@kernel
def round_shift(x, n, s, rand):
    """floor(x / 2^n) plus the rounding's bit, n >= 1."""
    if n > WIDEST:
        # Fold what is too low to matter alone into a sticky bit: it stays below half, below every
        # rand (at most 32 bits of the fraction), and not zero if it was not.
        k = min(n - WIDEST, 63)
        x, n = (x >> k) | np.int64((x & ((np.int64(1) << k) - 1)) != 0), WIDEST
    floor = x >> n
    rest = x & ((np.int64(1) << n) - 1)
    mode = s.rounding
    if rest == 0 or mode == TO_NEG:
        return floor
    if mode == STOCHASTIC:
        r = rand << (n - s.rand_bits) if n >= s.rand_bits else rand >> (s.rand_bits - n)
        return floor + np.int64(rest + r >= np.int64(1) << n)
    half = np.int64(1) << (n - 1)
    return floor + np.int64(adds_one(mode, floor, rest > half, rest == half, x < 0))


@kernel
def cast_one(x, s, rand):
    """(code, inside the range) of one value."""
    if s.n > 0:
        rounded = round_shift(x, s.n, s, rand)
        return fit(rounded, s), fits(rounded, s)
    k = min(-s.n, 63)
    # x << k may leave int64, so compare x with the bounds shifted right instead. From 64 zeros on
    # nothing but 0 is inside.
    if x == 0 or (k == -s.n and (s.lo + ((np.int64(1) << k) - 1)) >> k <= x <= s.hi >> k):
        return x << k, True
    if s.overflow == WRAP:
        return fit(x << k if -s.n < 64 else np.int64(0), s), False
    return rail(x, s), False


@kernel(parallel=True)
def cast_array(x, s, rand, out, inside):
    """Cast a flat array; returns how many were outside, and in `inside`, unless empty, which not.

    Takes whatever there is, one by one: the path of the casts that no lane holds.
    """
    outside = 0
    for i in prange(x.size):
        out[i], fitting = cast_one(x[i], s, rand[i] if rand.size else np.int64(0))
        outside += np.int64(not fitting)
        if inside.size:
            inside[i] = fitting
    return outside


@kernel(parallel=True)
def divide_array(x, divisor, s, out, inside):
    """x / divisor, one rounding, then fit; flat arrays. Returns how many were outside.

    Where n < 0 its zeros are appended to x; where n > 0 they are already part of the divisor.
    """
    outside = 0
    for i in prange(x.size):
        top = x[i] << max(-s.n, 0)
        whole = divisor[i]
        floor = top // whole
        rest = top - floor * whole
        rounded = floor
        if rest != 0:
            rounded += np.int64(adds_one(s.rounding, floor, rest > whole - rest,
                                         rest == whole - rest, top < 0))
        out[i] = fit(rounded, s)
        inside[i] = fits(rounded, s)
        outside += np.int64(not inside[i])
    return outside
