"""Casts on int32 or int64 lanes: loops without branches, which LLVM turns into vectors.

numpy's functions keep the dtype of a lane, where Python's operators would widen it to int64.
"""

import functools
from typing import NamedTuple

import numpy as np
from numba import prange

from emu.engine.kernels.jit import kernel
from emu.number import Cast, Overflow, Rounding

WRAP, SAT_ZERO = int(Overflow.WRAP), int(Overflow.SAT_ZERO)
LANES = {32: np.dtype(np.int32), 64: np.dtype(np.int64)}
CHUNK = 1 << 14  # elements of one turn of a thread: int32 lanes can count them


class LaneCast(NamedTuple):
    """A cast as plain integers, for loops without branches.

    Append `up` zeros or drop `drop` bits, `rest` being their mask. Rounded is floor + 1 where rest
    plus `always`, plus `negative` if x < 0, plus `odd` if the floor is odd, reaches 2^drop; or, if
    `random`, where rest plus the operand does: that loses `thin` low bits or gains `wide` zeros.
    """

    up: int
    drop: int
    rest: int
    always: int
    negative: int
    odd: int
    random: int
    thin: int
    wide: int
    overflow: int
    lo: int
    hi: int


def rounding_constants(rounding: Rounding, n: int) -> tuple[int, int, int]:
    """(always, negative, odd): what a deterministic rounding adds before it drops n bits.

    Each mode asks for floor + 1 from some rest t on, 1 <= t <= 2^n; adding 2^n - t carries into the
    floor exactly then. The sign moves t, or the parity of the floor does, and never both. The sum
    of what is added is from 0 to 2^n - 1. Nothing is added where nothing is dropped.
    """
    if n < 1:
        return 0, 0, 0
    half, most = 1 << (n - 1), (1 << n) - 1
    return {
        Rounding.TO_NEG: (0, 0, 0), Rounding.TO_POS: (most, 0, 0),
        Rounding.TO_ZERO: (0, most, 0), Rounding.TO_AWAY: (most, -most, 0),
        Rounding.TO_ODD: (most, 0, -most),
        Rounding.TIES_NEG: (half - 1, 0, 0), Rounding.TIES_POS: (half, 0, 0),
        Rounding.TIES_ZERO: (half - 1, 1, 0), Rounding.TIES_AWAY: (half, -1, 0),
        Rounding.TIES_EVEN: (half - 1, 0, 1), Rounding.TIES_ODD: (half, 0, -1),
    }[rounding]


@functools.lru_cache(1 << 12)
def lane_cast(frac: int, to: Cast) -> LaneCast:
    """The constants that bring codes with `frac` fraction bits into `to`."""
    n = frac - to.format.frac
    drop, stochastic = max(n, 0), to.rounding == Rounding.STOCHASTIC
    constants = (0, 0, 0) if stochastic else rounding_constants(to.rounding, n)
    return LaneCast(max(-n, 0), drop, (1 << drop) - 1, *constants, int(n > 0 and stochastic),
                    max(to.rand_bits - drop, 0), max(drop - to.rand_bits, 0),
                    int(to.overflow), *to.range)


def lane_for(c: LaneCast, bits: int) -> np.dtype | None:
    """The lane in which the cast of values of so many bits is exact; None if there is none.

    - A value with its zeros appended takes bits + up.
    - rest and what rounding adds are below 2^drop each, so their sum is below 2^(drop + 1), which
      must stay positive; the floor is apart, and where a bit is dropped floor + 1 fits.
    - The upper bound fits, and so the lower one, which is -hi - 1, -hi or 0.
    """
    for width, lane in LANES.items():
        if bits + c.up <= width and c.drop <= width - 2 and c.hi < 1 << (width - 1):
            return lane
    return None


@kernel
def in_lane(c, rails):
    """The constants, a `LaneCast` or an array of it, in the dtype of `rails`.

    An array reaches a kernel at once, where the numbers of a tuple are unpacked one by one.
    """
    lane = rails.dtype.type
    return LaneCast(lane(c[0]), lane(c[1]), lane(c[2]), lane(c[3]), lane(c[4]), lane(c[5]),
                    lane(c[6]), lane(c[7]), lane(c[8]), lane(c[9]), lane(c[10]), lane(c[11]))


@kernel
def rounded(x, c, rand, rails):
    """The lane x, its zeros appended, rounded; `rand` is its operand where the cast is random."""
    lane = rails.dtype.type
    floor = np.right_shift(x, c.drop)
    if c.random:
        added = np.left_shift(lane(np.right_shift(rand, np.uint32(c.thin))), c.wide)
    else:
        sign = np.right_shift(x, lane(8 * rails.itemsize - 1))  # -1 or 0
        odd = np.negative(np.bitwise_and(floor, lane(1)))  # -1 or 0
        added = np.add(c.always, np.add(np.bitwise_and(sign, c.negative),
                                        np.bitwise_and(odd, c.odd)))
    carry = np.right_shift(np.add(np.bitwise_and(x, c.rest), added), c.drop)
    return np.add(floor, carry)


@kernel
def fitted(x, c, rails):
    """The rounded lane x as a code: itself exactly where it is in range."""
    if c.overflow == WRAP:
        span = np.subtract(c.hi, c.lo)  # 2^width - 1, modulo the lane's own size
        return np.add(np.bitwise_and(np.subtract(x, c.lo), span), c.lo)
    if c.overflow == SAT_ZERO:
        return x if c.lo <= x <= c.hi else rails.dtype.type(0)
    return np.maximum(np.minimum(x, c.hi), c.lo)


@kernel
def cast_at(x, i, c, rand, rails):
    """(element i rounded, the code that it becomes)."""
    lane = rails.dtype.type
    whole = rounded(np.left_shift(lane(x[i]), c.up), c, rand[i] if c.random else np.uint32(0),
                    rails)
    return whole, fitted(whole, c, rails)


@kernel
def cast_chunk(x, c, rails, rand, out, inside):
    """Cast a flat array in lanes of the dtype of `rails`; returns how many were outside."""
    lane = rails.dtype.type
    c = in_lane(c, rails)
    outside = lane(0)
    for i in range(x.size):
        whole, code = cast_at(x, i, c, rand, rails)
        outside = np.add(outside, lane(code != whole))
        out[i] = code
    if inside.size and outside:
        for i in range(x.size):
            whole, code = cast_at(x, i, c, rand, rails)
            inside[i] = code == whole
    return np.int64(outside)


@kernel(parallel=True)
def cast_lanes(x, c, rails, rand, out, inside):
    """Cast a flat array, with the operands `rand` if random; returns how many were outside.

    `inside`, unless it is empty, says which were not, if any was: else it is not even touched, as
    memory that is written takes the place of other in the caches.
    """
    chunks = (x.size + CHUNK - 1) // CHUNK
    found = np.zeros(chunks, np.int64)
    for k in prange(chunks):
        a, b = k * CHUNK, min(x.size, (k + 1) * CHUNK)
        found[k] = cast_chunk(x[a:b], c, rails, rand[a:b], out[a:b], inside[a:b])
    fill(found, inside)
    return found.sum()


@kernel
def fill(found, inside):
    """Say of the chunks in which nothing was outside that all was inside, if another has some."""
    if inside.size and found.any():
        for k in range(found.size):
            if not found[k]:
                inside[k * CHUNK:(k + 1) * CHUNK] = True
