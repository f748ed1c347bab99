"""Watched operations: arrays of codes in, the same result out, and a record of how it came about.

A watched MAC is stepped plainly, whatever faster path there is.
"""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np

from emu.engine.arrays import largest, ready
from emu.engine.kernels import watch
from emu.engine.kernels.casts import stage
from emu.engine.kernels.jit import CAST, launch
from emu.engine.kernels.lanes import rounding_constants
from emu.engine.kernels.mac import Steps
from emu.engine.monitor import CastAccount, First, MacAccount, Record, RegisterAccount, Scope
from emu.number import Cast
from emu.spec import MacSpec

CHUNKS = 8  # parts of the rows that may be watched at once
NONE = np.empty((0, 0), np.int64)
STAGES = ("product", "acc", "spill", "outer")


def watch_matmul(scope: Scope, a: np.ndarray, b: np.ndarray, mac: MacSpec, start: np.ndarray
                 ) -> np.ndarray:
    """(M, K) @ (K, N) -> int64 codes of `mac.result`; `start` broadcasts to them."""
    if scope.axis == 0:  # the rows are the channels: watch the product turned over
        out, channels, first = _watch(b.T, a.T, mac, start.T, lambda row, column: (column, row))
        out, first = out.T, first and replace(first, a=first.b, b=first.a)
    else:
        out, channels, first = _watch(a, b, mac, start, lambda row, column: (row, column))
    scope.seen.append(Record("matmul", scope.label, mac, channels, first))
    return out


def watch_groups(scope: Scope, operation: str, lowered, mac: MacSpec, start: np.ndarray
                 ) -> np.ndarray:
    """A convolution (`im2col.Lowered`) -> int64 codes of `mac.result`, from each group's start."""
    found = [_watch(*lowered.operands(group), mac, start[group], partial(lowered.index, group))
             for group in range(lowered.groups)]
    out, channels, firsts = zip(*found, strict=True)
    first = min(filter(None, firsts), key=lambda first: first.output, default=None)
    scope.seen.append(Record(operation, scope.label, mac, sum(channels, ()), first))
    return lowered.assemble(out)


def watch_terms(scope: Scope, operation: str, lowered, mac: MacSpec, groups) -> np.ndarray:
    """A convolution of other terms than products, each of which enters as one times 1.

    `groups` yield, channel by channel, the terms (rows, K) and what their sums start at.
    """
    parts, accounts, firsts = [], (), []
    for group, channels in enumerate(groups):
        found = [_watch(terms, np.ones((terms.shape[1], 1), np.int64), mac, start,
                        lambda row, _, at=(group, column): lowered.index(at[0], row, at[1]))
                 for column, (terms, start) in enumerate(channels)]
        out, each, first = zip(*found, strict=True)
        parts.append(np.concatenate(out, 1))
        accounts, firsts = accounts + sum(each, ()), firsts + [one for one in first if one]
    scope.seen.append(Record(operation, scope.label, mac, accounts,
                             min(firsts, key=lambda one: one.output, default=None)))
    return lowered.assemble(parts)


def watch_cast(scope: Scope, operation: str, x: np.ndarray, frac: int, to: Cast,
               codes: np.ndarray, inside: np.ndarray, divisor: np.ndarray | None = None) -> None:
    """Record the cast of `x` (over `divisor`, of its shape) into `codes`."""
    given, codes, ok = (_by_channel(part, scope.axis)
                        for part in (x, codes.astype(np.int64), inside))
    step = Fraction(2)**(frac - to.format.frac)
    if divisor is None:
        channels = _channels(given, codes, ok, step)
    else:  # the elements of each divisor, by columns: it is the same for all channels
        by = _by_channel(divisor, scope.axis)
        parts = [_channels(np.where(by == d, given, 0), np.where(by == d, codes, 0),
                           ok | (by != d), step * d, (by == d).sum(1).tolist())
                 for d in np.unique(by).tolist() or [1]]
        channels = [sum(accounts, CastAccount()) for accounts in zip(*parts, strict=True)]
    first = None
    if not inside.all():
        index = tuple(int(i) for i in np.unravel_index(np.argmin(inside), inside.shape))
        value = int(x[index]) / step / (1 if divisor is None else int(divisor[index]))
        first = First(index, "cast", 0, (int(x[index]),), (), 0, value)
    scope.seen.append(Record(operation, scope.label, to, tuple(channels), first))


def _by_channel(x: np.ndarray, axis: int | None) -> np.ndarray:
    """(channels, the rest)."""
    if axis is None or not x.ndim:
        return x.reshape(1, -1)
    return np.moveaxis(x, axis, 0).reshape(x.shape[axis], x[0].size if axis == 0 else -1)


def _channels(given, codes, inside, step: Fraction, values=None) -> list[CastAccount]:
    """An account for each row of (channels, n), given in 1/step; zeros may stand for nothing."""
    kept = np.zeros(len(given), watch.CAST)
    launch(watch.watch_casts, CAST * given.size, *(
        np.ascontiguousarray(part) for part in (given, codes, inside)), kept)
    return _casts(kept[None], values or [given.shape[1]] * len(given), step)


def _wide(high: np.ndarray, low: np.ndarray) -> list[int]:
    """Numbers in two words as Python integers."""
    return [(h << 32) + w for h, w in zip(high.tolist(), low.tolist(), strict=True)]


def _watch(rows: np.ndarray, columns: np.ndarray, mac: MacSpec, start: np.ndarray,
           place: Callable[[int, int], tuple[int, ...]]):
    """rows (M, K) against columns (K, N): int64 codes (M, N), an account for each column, First.

    `start` broadcasts to (M, N); `place` gives the index of an output from its row and column.
    """
    (M, K), N = rows.shape, columns.shape[1]
    a, b, bias = (ready(x, np.int64)
                  for x in (rows, columns.T, np.broadcast_to(start, (M, N))))
    shape = max(min(CHUNKS, M), 1), N
    outputs, first = np.zeros(shape, watch.OUTPUTS), np.zeros(shape, watch.FIRST)
    casts, registers = np.zeros((*shape, 2), watch.CAST), np.zeros((*shape, 2), watch.REGISTER)
    first["row"] = -1
    out = np.empty((M, N), np.int64)
    if out.size:
        steps = Steps(mac.lanes, mac.tile or 0, int(mac.reload), int(mac.exact_product))
        plain = mac.exact_product and mac.outer is None
        by_k = np.ascontiguousarray(a.T) if plain else NONE
        drop = max(-mac.product.format.frac, 0)
        if largest(a) * largest(b) + (1 << drop) >> 63:
            drop = 0
        constants = (*rounding_constants(mac.product.rounding, drop), drop)
        launch(watch.watch_matmul, a.size * N, a, by_k, b, bias, stage(0, mac.product), constants,
               stage(0, mac.acc), stage(mac.acc.format.frac, mac.result), steps, out, outputs,
               casts, registers, first)
    two, per_output, tiles = mac.outer is not None, -(-K // mac.lanes), -(-K // (mac.tile or 1))
    zeros = mac.acc.format.frac - mac.result.format.frac
    stages = {"product": None if mac.exact_product else _casts(
                  casts[..., 0], [M * K] * N, Fraction(2)**-mac.product.format.frac),
              "acc": _registers(registers[..., 0], M * (per_output + tiles * mac.reload)),
              "spill": _casts(casts[..., 1], [M * tiles] * N, Fraction(2)**zeros) if two else None,
              "outer": _registers(registers[..., 1], M * tiles)
              if two and not mac.reload else None}
    counted = [outputs[name].sum(0).tolist() for name in watch.OUTPUTS.names]
    channels = tuple(MacAccount(M, M * per_output, *(numbers[j] for numbers in counted),
                                **{name: found and found[j] for name, found in stages.items()})
                     for j in range(N))
    return out, channels, _first(first, rows, columns, mac, place)


def _casts(kept: np.ndarray, values: list[int], step: Fraction) -> list[CastAccount]:
    """(chunks, N) of a cast, given in 1/step, as an account for each of N."""
    total = {name: kept[name].sum(0) for name in watch.CAST.names}
    up, down = step.numerator, step.denominator
    return [CastAccount(*counts, Fraction(low * down, up), Fraction(high * down, up),
                        Fraction(code * up - given * down, up))
            for *counts, low, high, code, given in zip(
                values, total["overflows"].tolist(), kept["low"].min(0).tolist(),
                kept["high"].max(0).tolist(), _wide(total["codes"], total["codes_rest"]),
                _wide(total["given"], total["given_rest"]), strict=True)]


def _registers(kept: np.ndarray, values: int) -> list[RegisterAccount]:
    """(chunks, N) of a register as an account for each of N."""
    counted = [kept[name].sum(0).tolist() for name in ("overflows", "transient", "persistent")]
    extremes = []
    for name, most in (("low", min), ("high", max)):
        clean, astray = ([most(0, *column) for column in kept[f"{kind}_{name}"].T.tolist()]
                         for kind in ("clean", "astray"))
        exact = [most(0, *_wide(*words)) for words in zip(
            kept[f"exact_{name}"].T, kept[f"exact_{name}_rest"].T, strict=True)]
        extremes += [map(most, clean, astray), map(most, clean, exact)]
    low, exact_low, high, exact_high = extremes
    return [RegisterAccount(values, *numbers)
            for numbers in zip(*counted, low, high, exact_low, exact_high, strict=True)]


def _first(kept: np.ndarray, rows: np.ndarray, columns: np.ndarray, mac: MacSpec, place
           ) -> First | None:
    """The first overflow of all outputs, in the order of their places."""
    found = [(place(int(one["row"]), column), one, column)
             for chunk in kept for column, one in enumerate(chunk) if one["row"] >= 0]
    if not found:
        return None
    index, one, column = min(found, key=lambda each: each[0])
    row, step, kind, register, value = one.tolist()
    terms = slice(step * mac.lanes, (step + 1) * mac.lanes)
    n = {watch.PRODUCT: -mac.product.format.frac,
         watch.SPILL: mac.acc.format.frac - mac.result.format.frac}.get(kind, 0)
    return First(index, STAGES[kind], step, tuple(rows[row, terms].tolist()),
                 tuple(columns[terms, column].tolist()), register, value / Fraction(2)**n)
