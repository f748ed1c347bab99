"""The MAC on int64 matrices, watched: plain stepping with an account of every value that is fitted.

A sum that may leave int64 is held in two words: high * 2^32 + low, 0 <= low < 2^32.
"""

import numpy as np
from numba import prange

from emu.engine.kernels.casts import cast_one, fit, fits
from emu.engine.kernels.jit import kernel

LOW_WORD = (1 << 32) - 1
ROWS = 128  # outputs of a column whose prefixes are found together
PRODUCT, ACC, SPILL, OUTER = range(4)  # the stages: product and spill are casts


def _record(names: str) -> np.dtype:
    return np.dtype([(name, np.int64) for name in names.split()])


# What is kept of all outputs of a channel. Extremes start at 0; `x` and `x_rest` are one number.
OUTPUTS = _record("overflowing_steps transient persistent")
# A cast: what came in, and the sums of what was in range, as codes and as it came in.
CAST = _record("overflows low high codes codes_rest given given_rest")
# A register: what it was to hold, while nothing was lost (clean) and afterwards (astray), and what
# it should have held then (exact).
REGISTER = _record("overflows transient persistent clean_low clean_high astray_low astray_high "
                   "exact_low exact_low_rest exact_high exact_high_rest")
FIRST = _record("row step stage register value")  # the first overflow; row -1: none


@kernel(parallel=True)
def watch_matmul(a, by_k, b, bias, product, constants, acc, outer, steps, out, outputs, casts,
                 registers, first):
    """a (M, K) against b (N, K) from bias (M, N), stepped into out (M, N).

    `constants` are those of `lanes.rounding_constants` for the product cast, and the bits it drops,
    or zeros where they could leave int64. `by_k` is a as (K, M) where an output is an exact sum
    while no step overflows: with exact products and one level; else it is empty. The records are
    (chunks, N), casts and registers (chunks, N, 2), all zero but for the rows of `first`, -1; rows
    of a are dealt out to the chunks in order.
    """
    M, N, chunks = a.shape[0], b.shape[0], outputs.shape[0]
    for t in prange(chunks * N):
        c, j = t // N, t % N
        sums, lost = np.empty((3, ROWS), np.int64), np.zeros((2, 2), np.int64)
        spills = (a.shape[1] // steps.tile + 1) if steps.tile else 0
        values, inside = np.empty((4, max(a.shape[1], spills)), np.int64), np.empty(
            (2, max(a.shape[1], spills)), np.bool_)
        for i0 in range(c * M // chunks, (c + 1) * M // chunks, ROWS):
            n = min(ROWS, (c + 1) * M // chunks - i0)
            if by_k.size:
                prefixes(by_k, b[j], bias, -product.n, steps.lanes, i0, j, n, sums)
            for i in range(i0, i0 + n):
                low, high, total = sums[0, i - i0], sums[1, i - i0], sums[2, i - i0]
                if by_k.size and acc.lo <= low and high <= acc.hi:
                    out[i, j] = total  # no step overflowed: every prefix was held as it was
                    close(registers[c, j, 0], registers[c, j, 0].overflows, False, low, high)
                else:
                    out[i, j] = watch_dot(
                        a[i], b[j], bias[i, j], product, constants, acc, outer, steps, i, values,
                        inside, lost, outputs[c, j], casts[c, j], registers[c, j], first[c, j])


@kernel
def prefixes(by_k, b, bias, shift, lanes, i0, j, n, sums):
    """The least and the greatest prefix, 0 included, and the sum of n outputs of column j.

    Exact as long as they are in the accumulator's range, from which no step leaves int64.
    """
    low, high, total = sums[0, :n], sums[1, :n], sums[2, :n]
    for i in range(n):
        total[i] = bias[i0 + i, j]
        low[i], high[i] = min(total[i], np.int64(0)), max(total[i], np.int64(0))
    left = lanes
    for k in range(b.size):
        y, x = b[k] << shift, by_k[k, i0:i0 + n]
        left -= 1
        if left > 0 and k + 1 < b.size:
            for i in range(n):
                total[i] += x[i] * y
        else:
            left = lanes
            for i in range(n):
                value = total[i] + x[i] * y
                total[i] = value
                low[i], high[i] = min(low[i], value), max(high[i], value)


@kernel
def watch_dot(a, b, bias, product, constants, acc, outer, steps, row, values, inside, lost,
              outputs, casts, registers, first):
    """The result of one output.

    `values` and `inside` are room for what the two casts meet and make of it, `lost` (2, 2) for
    what limits took from acc and from outer.
    """
    K = a.size
    two, adds = steps.tile != 0, steps.tile != 0 and steps.reload == 0
    register, spilled = np.int64(0) if two else bias, bias
    low, high = min(register, np.int64(0)), max(register, np.int64(0))
    outer_low, outer_high = min(bias, np.int64(0)), max(bias, np.int64(0))
    before, outer_before = registers[0].overflows, registers[1].overflows
    cast_before = casts[0].overflows + casts[1].overflows
    astray, outer_astray, acc_gone, outer_gone = False, False, False, False
    overflowing, step, stop, tile_end, spills = 0, 0, 0, 0, 0
    lost[1] = 0
    codes = values[1]
    for k in range(K):
        values[0, k] = a[k] * b[k]
    if steps.exact:
        for k in range(K):
            codes[k] = values[0, k] << -product.n
    else:
        c0, c1, c2, n = constants
        for k in range(K):
            if n > 0:
                x = values[0, k]
                x = (x + c0 + ((x >> 63) & c1) + ((x >> n) & 1) * c2) >> n
                codes[k], inside[0, k] = fit(x, product), fits(x, product)
            else:
                codes[k], inside[0, k] = cast_one(values[0, k], product, np.int64(0))
        watch_values(values[0, :K], codes, inside[0], casts[0])
    while stop < K:
        start = stop
        stop = min(start + steps.lanes, K)
        bad = False
        if two and start == tile_end:
            tile_end = min(start + steps.tile, K)
            register, astray = np.int64(0), False
            if steps.reload:
                register = spilled << outer.n
                if fits(register, acc):
                    low, high = min(low, register), max(high, register)
                else:
                    bad = astray = True
                    lost[0] = 0
                    register = stray(np.int64(0), register, acc, ACC, row, step, lost[0],
                                     registers[0], first)
        value = register
        for k in range(start, stop):
            value += codes[k]
            if not steps.exact and not inside[0, k]:
                bad = True
                keep(first, row, step, PRODUCT, register, values[0, k])
        if fits(value, acc) and not astray:
            register = value
            low, high = min(low, value), max(high, value)
        else:
            bad |= not fits(value, acc)
            if not astray:
                lost[0] = 0
            astray = True
            register = stray(register, value, acc, ACC, row, step, lost[0], registers[0], first)
        if stop == K or (two and stop == tile_end):
            acc_gone |= astray and gone(register, acc, lost[0])
            if two:
                code, fitted = cast_one(register, outer, np.int64(0))
                values[2, spills], values[3, spills], inside[1, spills] = register, code, fitted
                spills += 1
                if not fitted:
                    bad = True
                    keep(first, row, step, SPILL, spilled, register)
                value = code if steps.reload else spilled + code
                if not adds or (fits(value, outer) and not outer_astray):
                    spilled = value
                    outer_low, outer_high = min(outer_low, value), max(outer_high, value)
                else:
                    bad |= not fits(value, outer)
                    outer_astray = True
                    spilled = stray(spilled, value, outer, OUTER, row, step, lost[1],
                                    registers[1], first)
        overflowing += np.int64(bad)
        step += 1
    watch_values(values[2, :spills], values[3], inside[1], casts[1])
    outer_gone = outer_astray and gone(spilled, outer, lost[1])
    close(registers[0], before, acc_gone, low, high)
    close(registers[1], outer_before, outer_gone, outer_low, outer_high)
    outputs.overflowing_steps += overflowing
    if overflowing:
        if acc_gone or outer_gone or casts[0].overflows + casts[1].overflows > cast_before:
            outputs.persistent += 1
        else:
            outputs.transient += 1
    return spilled if two else register


@kernel
def stray(register, value, s, stage, row, step, lost, account, first):
    """The register after a value that is out of range, or that follows one."""
    # What it should have held, in two words: `lost` is that less what it holds.
    top, rest = carried(lost[0] + (value >> 32), lost[1] + (value & LOW_WORD))
    if (top, rest) < (account.exact_low, account.exact_low_rest):
        account.exact_low, account.exact_low_rest = top, rest
    if (top, rest) > (account.exact_high, account.exact_high_rest):
        account.exact_high, account.exact_high_rest = top, rest
    account.astray_low = min(account.astray_low, value)
    account.astray_high = max(account.astray_high, value)
    if not fits(value, s):
        account.overflows += 1
        keep(first, row, step, stage, register, value)
    code = fit(value, s)
    lost[0], lost[1] = carried(top - (code >> 32), rest - (code & LOW_WORD))
    return code


@kernel
def watch_values(values, codes, inside, account):
    """Account for values that were cast to codes, in order: how many, and which came first."""
    low, high, overflows = account.low, account.high, 0
    # Sums in two words, carried at the end: so many low words fit int64.
    top, rest, given_top, given_rest = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    for i in range(values.size):
        low, high = min(low, values[i]), max(high, values[i])
        if inside[i]:
            top += codes[i] >> 32
            rest += codes[i] & LOW_WORD
            given_top += values[i] >> 32
            given_rest += values[i] & LOW_WORD
        else:
            overflows += 1
    account.low, account.high = low, high
    account.overflows += overflows
    account.codes, account.codes_rest = carried(account.codes + top, account.codes_rest + rest)
    account.given, account.given_rest = carried(account.given + given_top,
                                                account.given_rest + given_rest)


@kernel(parallel=True)
def watch_casts(values, codes, inside, accounts):
    """Account for values (channels, n) that were cast to codes; `accounts` (channels)."""
    for channel in prange(accounts.size):
        watch_values(values[channel], codes[channel], inside[channel], accounts[channel])


@kernel(inline="always")
def carried(high, low):
    """Two words whose lower one may be out of its range, as one number has them."""
    return high + (low >> 32), low & LOW_WORD


@kernel
def gone(register, s, lost):
    """Whether the register should have held a value out of range."""
    high, low = carried(lost[0] + (register >> 32), lost[1] + (register & LOW_WORD))
    if not -(1 << 31) <= high < 1 << 31:
        return True
    return not fits((high << 32) | low, s)


@kernel
def close(account, before, gone, low, high):
    """Account for an output whose register had `before` overflows in earlier outputs."""
    account.clean_low, account.clean_high = (min(account.clean_low, low),
                                             max(account.clean_high, high))
    if gone:
        account.persistent += 1
    elif account.overflows > before:
        account.transient += 1


@kernel
def keep(first, row, step, stage, register, value):
    """Keep the first overflow of all rows."""
    if first.row < 0:
        first.row, first.step, first.stage = row, step, stage
        first.register, first.value = register, value
