"""Compiled loops on int64 arrays. Know nothing of shapes beyond two axes, of torch, or of text.

All kernels live in this one file, as numba's on-disk cache follows a kernel's own file only: a
helper kept elsewhere could change under a cached caller.

Every value fits int64: `MacSpec` refuses hardware for which it might not.
"""

from typing import NamedTuple

import numpy as np
from numba import get_num_threads, njit, prange, set_num_threads

from emu.number import Cast, Overflow, Rounding

WRAP, SAT_ZERO = int(Overflow.WRAP), int(Overflow.SAT_ZERO)
(TO_NEG, TO_POS, TO_ZERO, TO_AWAY, TO_ODD, TIES_NEG, TIES_POS, TIES_ZERO, TIES_AWAY, TIES_EVEN,
 TIES_ODD, STOCHASTIC) = (int(rounding) for rounding in Rounding)
COLUMNS = 128  # outputs stepped together: three int64 rows stay in the first-level cache
WIDEST = 62  # bits shifted at once; more are first folded into a sticky bit
TEAM = 1 << 20  # additions that are worth starting a team of threads for
CAST = 8  # additions that take as long as one cast


def launch(kernel, additions: int, *arguments):
    """Run a parallel kernel, on one thread where a team would start and end for too little.

    A team costs tens of microseconds on an idle machine, and milliseconds on a busy one.
    """
    threads = get_num_threads()
    if threads == 1 or additions >= TEAM:
        return kernel(*arguments)
    set_num_threads(1)
    try:
        return kernel(*arguments)
    finally:
        set_num_threads(threads)


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


class Steps(NamedTuple):
    """How a MAC walks along k. `tile` is 0 where there is one level."""

    lanes: int
    tile: int
    reload: int
    exact: int  # no product is rounded or fitted


def stage(frac: int, to: Cast) -> Stage:
    """The stage that brings codes with `frac` fraction bits into `to`."""
    form = to.format
    return Stage(frac - form.frac, int(to.rounding), to.rand_bits, int(to.overflow), *to.range,
                 form.width, int(form.signed))


@njit(cache=True, inline="always")
def fits(x, s):
    """Whether the rounded x is inside the range of the stage's overflow mode."""
    return s.lo <= x <= s.hi


@njit(cache=True, inline="always")
def rail(x, s):
    """What an out-of-range x becomes where it does not wrap."""
    if s.overflow == SAT_ZERO:
        return np.int64(0)
    return s.hi if x > 0 else s.lo


@njit(cache=True, inline="always")
def fit(x, s):
    """The rounded x as a code."""
    if s.lo <= x <= s.hi:
        return x
    if s.overflow == WRAP:
        if s.signed:
            return (x << (64 - s.width)) >> (64 - s.width)
        return x & ((np.int64(1) << s.width) - 1)
    return rail(x, s)


@njit(cache=True, inline="always")
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


@njit(cache=True)
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


@njit(cache=True)
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


@njit(parallel=True, cache=True)
def cast_array(x, s, rand, out, inside):
    """Cast a flat array; `inside` tells which rounded values were in range. Returns their lack."""
    outside = 0
    for i in prange(x.size):
        out[i], inside[i] = cast_one(x[i], s, rand[i] if rand.size else np.int64(0))
        outside += np.int64(not inside[i])
    return outside


@njit(parallel=True, cache=True)
def exact_matmul(a, b, bias, shift, acc, out):
    """(M, K) @ (K, N) << shift, plus bias (N,), modulo 2^64 and then fitted once."""
    for t in prange(a.shape[0]):
        row = np.zeros(b.shape[1], np.int64)
        for k in range(a.shape[1]):
            x = a[t, k]
            if x != 0:
                for j in range(b.shape[1]):
                    row[j] += x * b[k, j]
        for j in range(b.shape[1]):
            out[t, j] = fit((row[j] << shift) + bias[j], acc)


@njit(parallel=True, cache=True)
def step_matmul(a, b, bias, product, acc, outer, steps, out, overflowed):
    """The MAC as it is built: load, multiply, round, add, fit, in the order of k.

    Two levels where `steps.tile` > 0: `outer.n` bits are dropped from acc on its way to the outer
    register. `overflowed` (M, N), unless empty, receives each output's number of bad steps.
    """
    M, K, N = a.shape[0], a.shape[1], b.shape[1]
    blocks = (N + COLUMNS - 1) // COLUMNS
    count = overflowed.size > 0
    lanes, tile, reload = steps.lanes, steps.tile, steps.reload
    for t in prange(M * blocks):
        i, j0 = t // blocks, t % blocks * COLUMNS
        n = min(N - j0, COLUMNS)
        register = np.zeros(n, np.int64)
        spilled = np.zeros(n, np.int64)
        total = np.zeros(n, np.int64)
        bad = np.zeros(n, np.bool_)
        for j in range(n):
            register[j] = spilled[j] = bias[j0 + j]
        for k in range(K):
            x, y = a[i, k], b[k, j0:j0 + n]
            if tile != 0 and k % tile == 0:
                for j in range(n):
                    value = spilled[j] << outer.n if reload else np.int64(0)
                    register[j] = fit(value, acc)
                    bad[j] |= not fits(value, acc)
            if steps.exact:
                for j in range(n):
                    total[j] += (x * y[j]) << -product.n
            else:
                for j in range(n):
                    code, inside = cast_one(x * y[j], product, np.int64(0))
                    total[j] += code
                    bad[j] |= not inside
            last = k + 1 == K
            if not last and (k + 1) % lanes != 0:
                continue
            for j in range(n):
                value = register[j] + total[j]
                register[j] = fit(value, acc)
                bad[j] |= not fits(value, acc)
                total[j] = 0
            if tile != 0 and (last or (k + 1) % tile == 0):
                for j in range(n):
                    code, inside = cast_one(register[j], outer, np.int64(0))
                    value = code if reload else spilled[j] + code
                    bad[j] |= not inside or not fits(value, outer)
                    spilled[j] = fit(value, outer)
            if count:
                for j in range(n):
                    overflowed[i, j0 + j] += np.int64(bad[j])
            for j in range(n):
                bad[j] = False
        for j in range(n):
            out[i, j0 + j] = register[j] if tile == 0 else spilled[j]


@njit(cache=True)
def trailing_zeros(m):
    """The number of zero bits below the lowest one, m > 0."""
    n = 0
    for k in (32, 16, 8, 4, 2, 1):
        if m & ((np.int64(1) << k) - 1) == 0:
            m >>= k
            n += k
    return n


@njit(cache=True, inline="always")
def unpack(bits):
    """(mantissa, exponent) of a float64 given as its bits: |value| = mantissa * 2^exponent."""
    field = (bits >> 52) & 0x7FF
    mantissa = bits & ((np.int64(1) << 52) - 1)
    return (mantissa | (np.int64(1) << 52) if field else mantissa), max(field, 1) - 1075


@njit(cache=True)
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


@njit(parallel=True, cache=True)
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


@njit(parallel=True, cache=True)
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


@njit(parallel=True, cache=True)
def scatter(error, index, out):
    """Add each error (P, OH, OW) to the pixel it came from, out (P, H * W)."""
    for p in prange(error.shape[0]):
        for oy in range(error.shape[1]):
            for ox in range(error.shape[2]):
                out[p, index[p, oy, ox]] += error[p, oy, ox]


@njit(parallel=True, cache=True)
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


@njit(parallel=True, cache=True)
def window_spread(share, kernel, stride, padding, out):
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


@njit(parallel=True, cache=True)
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


@njit(cache=True)
def lfsr_draws(states, rand_bits, out):
    """Element i draws from LFSR i mod 16: 32-bit Galois, right shift, first bit lowest."""
    for i in range(out.size):
        state = states[i % states.size]
        rand = np.int64(0)
        for k in range(rand_bits):
            bit = state & 1
            rand |= bit << k
            state = (state >> 1) ^ (bit * np.int64(0x80200003))
        states[i % states.size] = state
        out[i] = rand


@njit(cache=True)
def fnv1a(text):
    """FNV-1a, 32 bit, over bytes."""
    h = np.int64(0x811C9DC5)
    for i in range(text.size):
        h = ((h ^ np.int64(text[i])) * np.int64(0x01000193)) & np.int64(0xFFFFFFFF)
    return h


@njit(parallel=True, cache=True)
def sgd_arrays(weight, momentum, grad, lr, mu, shifts, to_momentum, to_weight, rand_m, rand_w):
    """The update in place on flat arrays; `shifts` align (grad, mu*m, weight, lr*m)."""
    outside_m, outside_w = 0, 0
    for i in prange(weight.size):
        total = (grad[i] << shifts[0]) + (mu * momentum[i] << shifts[1])
        momentum[i], inside = cast_one(total, to_momentum,
                                       rand_m[i] if rand_m.size else np.int64(0))
        outside_m += np.int64(not inside)
        total = (weight[i] << shifts[2]) - (lr * momentum[i] << shifts[3])
        weight[i], inside = cast_one(total, to_weight, rand_w[i] if rand_w.size else np.int64(0))
        outside_w += np.int64(not inside)
    return outside_m, outside_w
