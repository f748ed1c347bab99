"""Watched operations: arrays of codes in, the same result out, and a record of how it came about.

A watched MAC is stepped plainly, whatever faster path there is.
"""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np

from emu.engine.kernels import watch
from emu.engine.kernels.casts import stage
from emu.engine.kernels.jit import launch
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


def watch_cast(scope: Scope, operation: str, x: np.ndarray, frac: int, to: Cast,
               codes: np.ndarray, inside: np.ndarray, divisor: np.ndarray | None = None) -> None:
    """Record the cast of `x` (over `divisor`, of its shape) into `codes`."""
    split = [_by_channel(part, scope.axis) for part in (x, codes.astype(np.int64), inside)]
    step = Fraction(2)**(frac - to.format.frac)
    if divisor is None:
        channels = _part(*split, True, step)
    else:
        by = _by_channel(divisor, scope.axis)
        parts = [_part(*split, by == d, step * d) for d in np.unique(by).tolist() or [1]]
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


def _part(x, codes, inside, part, step: Fraction) -> list[CastAccount]:
    """An account for each row of (channels, ...): of its elements in `part`, x being in 1/step."""
    inside, given = inside & part, np.where(part, x, 0)
    within, exact = np.where(inside, codes, 0), np.where(inside, x, 0)
    return _casts(np.broadcast_to(part, x.shape).sum(1).tolist(), (part & ~inside).sum(1),
                  given.min(1, initial=0), given.max(1, initial=0), *_words(within),
                  *_words(exact), step)


def _words(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sum of each row in two words."""
    return (codes >> 32).sum(1), (codes & watch.LOW_WORD).sum(1)


def _wide(high: np.ndarray, low: np.ndarray) -> list[int]:
    """Numbers in two words as Python integers."""
    return [(h << 32) + w for h, w in zip(high.tolist(), low.tolist(), strict=True)]


def _watch(rows: np.ndarray, columns: np.ndarray, mac: MacSpec, start: np.ndarray,
           place: Callable[[int, int], tuple[int, ...]]):
    """rows (M, K) against columns (K, N): int64 codes (M, N), an account for each column, First.

    `start` broadcasts to (M, N); `place` gives the index of an output from its row and column.
    """
    (M, K), N = rows.shape, columns.shape[1]
    a, b, bias = (np.require(x, np.int64, ["C", "W"])
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
        launch(watch.watch_matmul, a.size * N, a, by_k, b, bias, stage(0, mac.product),
               stage(0, mac.acc), stage(mac.acc.format.frac, mac.result), steps, out, outputs,
               casts, registers, first)
    two, per_output, tiles = mac.outer is not None, -(-K // mac.lanes), -(-K // (mac.tile or 1))
    stages = {"product": None if mac.exact_product else _cast_stage(
                  casts[..., 0], M * K, -mac.product.format.frac),
              "acc": _registers(registers[..., 0], M * (per_output + tiles * mac.reload)),
              "spill": _cast_stage(casts[..., 1], M * tiles, mac.acc.format.frac
                                   - mac.result.format.frac) if two else None,
              "outer": _registers(registers[..., 1], M * tiles)
              if two and not mac.reload else None}
    counted = [outputs[name].sum(0).tolist() for name in watch.OUTPUTS.names]
    channels = tuple(MacAccount(M, M * per_output, *(numbers[j] for numbers in counted),
                                **{name: found and found[j] for name, found in stages.items()})
                     for j in range(N))
    return out, channels, _first(first, rows, columns, mac, place)


def _cast_stage(kept: np.ndarray, values: int, n: int) -> list[CastAccount]:
    """(chunks, N) of a cast that drops n bits as an account for each of N."""
    total = {name: kept[name].sum(0) for name in watch.CAST.names}
    return _casts([values] * kept.shape[1], total["overflows"], kept["low"].min(0),
                  kept["high"].max(0), total["codes"], total["codes_rest"],
                  total["given"], total["given_rest"], Fraction(2)**n)


def _casts(values: list[int], overflows, low, high, codes, codes_rest, given, given_rest,
           step: Fraction) -> list[CastAccount]:
    """Accounts from arrays: extremes of what came in, sums of what was in range, in 1/step."""
    up, down = step.numerator, step.denominator
    return [CastAccount(*counts, Fraction(least * down, up), Fraction(most * down, up),
                        Fraction(code * up - exact * down, up))
            for *counts, least, most, code, exact in zip(
                values, overflows.tolist(), low.tolist(), high.tolist(),
                _wide(codes, codes_rest), _wide(given, given_rest), strict=True)]


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
