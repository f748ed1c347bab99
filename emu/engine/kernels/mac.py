"""The MAC on int64 matrices as it is built, step by step: what every faster path must equal."""

from typing import NamedTuple

import numpy as np
from numba import prange

from emu.engine.kernels.casts import cast_one, fit
from emu.engine.kernels.jit import kernel

COLUMNS = 128  # outputs stepped together: three int64 rows stay in the first-level cache


class Steps(NamedTuple):
    """How a MAC walks along k. `tile` is 0 where there is one level."""

    lanes: int
    tile: int
    reload: int
    exact: int  # no product is rounded or fitted


@kernel(parallel=True)
def step_matmul(a, b, bias, product, acc, outer, steps, out):
    """The MAC as it is built: load, multiply, round, add, fit, in the order of k.

    Two levels where `steps.tile` > 0: `outer.n` bits are dropped from acc on its way to the outer
    register.
    """
    M, K, N = a.shape[0], a.shape[1], b.shape[1]
    blocks = (N + COLUMNS - 1) // COLUMNS
    lanes, tile, reload = steps.lanes, steps.tile, steps.reload
    for t in prange(M * blocks):
        i, j0 = t // blocks, t % blocks * COLUMNS
        n = min(N - j0, COLUMNS)
        register = np.zeros(n, np.int64)
        spilled = np.zeros(n, np.int64)
        total = np.zeros(n, np.int64)
        for j in range(n):
            register[j] = spilled[j] = bias[i, j0 + j]
        for k in range(K):
            x, y = a[i, k], b[k, j0:j0 + n]
            if tile != 0 and k % tile == 0:
                for j in range(n):
                    value = spilled[j] << outer.n if reload else np.int64(0)
                    register[j] = fit(value, acc)
            if steps.exact:
                for j in range(n):
                    total[j] += (x * y[j]) << -product.n
            else:
                for j in range(n):
                    code, _ = cast_one(x * y[j], product, np.int64(0))
                    total[j] += code
            last = k + 1 == K
            if not last and (k + 1) % lanes != 0:
                continue
            for j in range(n):
                value = register[j] + total[j]
                register[j] = fit(value, acc)
                total[j] = 0
            if tile != 0 and (last or (k + 1) % tile == 0):
                for j in range(n):
                    code, _ = cast_one(register[j], outer, np.int64(0))
                    value = code if reload else spilled[j] + code
                    spilled[j] = fit(value, outer)
        for j in range(n):
            out[i, j0 + j] = register[j] if tile == 0 else spilled[j]


class Outer(NamedTuple):
    """The outer register: acc's codes get `up` zeros, or lose `down` bits by three constants."""

    up: int
    down: int
    c0: int
    c1: int
    c2: int
    lo: int
    hi: int
    width: int
    signed: int


@kernel(inline="always")
def rounded(x, to):
    """x as it reaches the outer register: see `lanes.rounding_constants`."""
    x = x << to.up
    odd = (x << (63 - to.down)) >> 63
    return (x + to.c0 + ((x >> 63) & to.c1) + (odd & to.c2)) >> to.down


@kernel(inline="always")
def wrapped(x, to):
    """x modulo 2^width."""
    low = (x << (64 - to.width)) >> (64 - to.width)
    return low if to.signed else low & ((np.int64(1) << to.width) - 1)


@kernel(inline="always")
def clamped(x, to):
    return min(max(x, to.lo), to.hi)


@kernel(parallel=True)
def spill(found, to, wraps, reload, spilled):
    """Cast accumulators (M, N) to the outer register: added to it, or in its place."""
    for i in prange(found.shape[0]):
        for j in range(found.shape[1]):
            x = rounded(np.int64(found[i, j]), to)
            if wraps:
                x = wrapped(x, to)
                spilled[i, j] = x if reload else wrapped(spilled[i, j] + x, to)
            else:
                x = clamped(x, to)
                spilled[i, j] = x if reload else clamped(spilled[i, j] + x, to)


@kernel(parallel=True)
def align(spilled, zeros, acc, out):
    """The outer register (M, N) back in the accumulator: `zeros` appended, then fitted."""
    for i in prange(spilled.shape[0]):
        for j in range(spilled.shape[1]):
            out[i, j] = fit(spilled[i, j] << zeros, acc)


@kernel(parallel=True)
def add_start(codes, start):
    """Codes (M, N), to which start values (N,) are added, modulo the size of their dtype."""
    for i in prange(codes.shape[0]):
        row = codes[i]
        for j in range(row.size):
            row[j] = np.add(row[j], start[j])


@kernel(parallel=True)
def keep_low(codes, up):
    """Codes (M, N) with their `up` highest bits replaced by the sign of what is left."""
    wide = up + 64 - 8 * codes.itemsize  # shifts are done in int64
    for i in prange(codes.shape[0]):
        row = codes[i]
        for j in range(row.size):
            row[j] = (np.int64(row[j]) << wide) >> wide
