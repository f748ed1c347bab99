"""The MAC over whole matrices."""

import dataclasses
import functools

import numpy as np

from emu.engine.arrays import LIMITS, as_codes, bounds, check_kind, dtype_of, narrowed, ready
from emu.engine.kernels import mac as kernels
from emu.engine.kernels.casts import stage
from emu.engine.kernels.jit import launch
from emu.engine.kernels.lanes import rounding_constants
from emu.engine.kernels.parts import ROWS
from emu.engine.monitor import watching
from emu.engine.operands import Matrix, Rows
from emu.engine.paths import FASTEST, Problem, choose, external, facts, thin
from emu.engine.run import DIRECT, Sums, compute
from emu.engine.watched import watch_matmul
from emu.number import Overflow
from emu.spec import MacSpec


def matmul(a, b, mac: MacSpec, bias=None, path: str | None = None, order: str = "C"
           ) -> np.ndarray:
    """(M, K) @ (K, N) -> codes of `mac.result` (M, N), accumulated in the order of k.

    `bias` (N,) holds codes of `mac.result.format`. `path` forces one of the paths of
    `paths.candidates`, or "plain"; raises ValueError where it would not be exact. `order` is how
    the result had better lie: by rows ("C") or by columns ("F").

    >>> mac = MacSpec.parse("{a: s8, b: s8, acc: s8 sat}")
    >>> matmul(np.array([[100, 100, -100], [100, -100, 100]]), np.ones((3, 1), int), mac)
    array([[ 27],
           [100]], dtype=int8)
    """
    if type(mac) is not MacSpec:
        check_kind(mac, "mac", MacSpec)
    if order not in ("C", "F"):
        raise ValueError(f"order {order!r}: needs 'C', by rows, or 'F', by columns")
    a, b = as_codes(a, "a", mac.a, 2, None), as_codes(b, "b", mac.b, 2, None)
    (m, k), (rows, n) = a.shape, b.shape
    if k != rows:
        raise ValueError(f"a {a.shape} @ b {b.shape}: the inner sizes {k} and {rows} differ")
    start, held = None, (0, 0)
    if bias is not None:
        start, form = as_codes(bias, "bias", None, 1, None), mac.result.format
        held = bounds(start)
        if held[0] < form.lo or held[1] > form.hi:
            as_codes(start, "bias", form)  # which says what is wrong
        if start.shape != (n,):
            raise ValueError(f"bias: shape {start.shape} for {n} outputs; give one for each column")
        held = _near(*held)
    if (scope := watching()) is not None:
        return narrowed(watch_matmul(scope, a, b, mac, np.zeros((1, n), np.int64) if start is None
                                     else start[None].astype(np.int64)),
                        mac.result.format)
    if not m * n:
        return narrowed(np.empty((m, n), np.int64), mac.result.format)
    if path == "plain":
        return narrowed(plain(a, b, mac, start), mac.result.format)
    lie = m, k, n, a.flags.f_contiguous, b.flags.c_contiguous, order, "int_mm" in external
    turned, known, run, dtype = _plan(mac, LIMITS[a.dtype], LIMITS[b.dtype], held, *lie)
    seen = None
    if run is None and path is None and mac.outer is None:
        seen = bounds(a), bounds(b)
        turned, known, run, dtype = _plan(mac, *(_near(*each) for each in seen), held, *lie)
    if turned:
        a, b, start = b.T, a.T, None if start is None else start[:, None]
        seen = seen and seen[::-1]
    if run is not None and path is None:
        out, up = run(known, a, b, start)
        if up:
            keep_low(out, up)
    else:
        rows, columns = Rows(a), Matrix(b)
        if seen:
            rows.bounds, columns.bounds = seen
        out = accumulate(rows, columns, mac, start, path)
    if turned:
        out = out.T
    return out if out.dtype == dtype else out.astype(dtype)


def _near(low: int, high: int) -> tuple[int, int]:
    """Bounds that are 0 or powers of two, around those of codes: few, so that a plan is found."""
    return low and -1 << (~low).bit_length(), (1 << high.bit_length()) - 1


@functools.lru_cache(1 << 10)
def _plan(mac: MacSpec, a: tuple[int, int], b: tuple[int, int], start: tuple[int, int], m: int,
          k: int, n: int, a_by_columns: bool, b_by_rows: bool, order: str, offered: bool) -> tuple:
    """(whether to compute b.T @ a.T, its facts, what runs it, dtype of the result).

    a, b and start are bounds. What runs it is None where these do not prove one of the fastest
    paths, of those that need no tiles.
    """
    straight, over = thin(m, k, n, a_by_columns), thin(n, k, m, b_by_rows)
    turned = not straight and (over or _turns(m, n, order))
    known = facts(mac, *((b, a) if turned else (a, b)), start, k, True, offered, straight or over)
    run = None if mac.outer is not None or known.fastest not in FASTEST else DIRECT.get(
        known.fastest)
    return turned, known, run, dtype_of(mac.result.format)


def _turns(m: int, n: int, order: str) -> bool:
    """Whether to compute b.T @ a.T for a result (m, n): it then lies by columns.

    Columns fill whole vectors, rows do not: one way may waste less, by so much that it pays for
    turning the result over.
    """
    straight, turned = _tiles(m, n), _tiles(n, m)
    return 4 * turned < 5 * straight if order == "F" else 5 * turned < 4 * straight


def _tiles(rows: int, columns: int) -> int:
    """How many tiles hold a result."""
    return -(-rows // ROWS) * -(-columns // 32)


def plain(a, b, mac: MacSpec, start: np.ndarray | None) -> np.ndarray:
    """The MAC as the definition writes it, on int64 matrices."""
    shape = a.shape[0], b.shape[1]
    out = np.empty(shape, np.int64)
    a, b, start = (ready(codes, np.int64)
                   for codes in (a, b, np.broadcast_to(0 if start is None else start, shape)))
    outer = stage(mac.acc.format.frac, mac.result)
    steps = kernels.Steps(mac.lanes, mac.tile or 0, int(mac.reload), int(mac.exact_product))
    launch(kernels.step_matmul, a.size * b.shape[1], a, b, start, stage(0, mac.product),
           stage(0, mac.acc), outer, steps, out)
    return out


def accumulate(rows: Rows, columns, mac: MacSpec, start: np.ndarray | None,
               path: str | None = None) -> np.ndarray:
    """rows (M, K) against columns (K, count) -> codes of `mac.result` (M, count).

    `start` holds the start values and broadcasts to the result; None is zero everywhere. Raises
    ValueError where `path` would not be exact.
    """
    codes, up = sums(rows, columns, mac, start, path)
    if up:
        keep_low(codes, up)
    return codes[:rows.codes.shape[0], :columns.count]


def keep_low(codes: np.ndarray, up: int) -> None:
    """Drop what wrapped into the `up` highest bits of accumulators."""
    launch(kernels.keep_low, codes.size // 4, codes, up)


def sums(rows: Rows, columns, mac: MacSpec, start: np.ndarray | None,
         path: str | None) -> Sums:
    """As `accumulate`, in whole tiles and with the bits above a wrapping accumulator."""
    if mac.outer is not None:
        return _two_levels(rows, columns, mac, start, path), 0
    problem = Problem(rows, columns, mac, start)
    chosen = choose(problem, path)
    if chosen == "plain":
        return plain(rows.codes, columns.matrix(), mac, start), 0
    return compute(problem, chosen)


def _two_levels(rows, columns, mac, start, path):
    """Tile by tile: the inner level is a MAC of its own, spilled into the outer register."""
    to = _outer(mac)
    if to is None:
        if path is not None:
            raise ValueError(f"path {path!r}: {mac} has only the plain path")
        return plain(rows.codes, columns.matrix(), mac, start)
    inner, acc, zeros = _inner(mac), stage(0, mac.acc), mac.acc.format.frac - mac.outer.format.frac
    spilled = np.empty((rows.codes.shape[0], columns.count), np.int64)
    spilled[...] = 0 if start is None else start
    begin = None
    for k in range(0, columns.depth, mac.tile):
        if mac.reload:
            begin = np.empty_like(spilled)
            launch(kernels.align, 4 * spilled.size, spilled, zeros, acc, begin)
        found = accumulate(rows.part(k, k + mac.tile), columns.part(k, k + mac.tile), inner, begin,
                           path)
        launch(kernels.spill, 2 * spilled.size, found, to, mac.outer.overflow == Overflow.WRAP,
               mac.reload, spilled)
    return spilled


@functools.lru_cache
def _outer(mac: MacSpec) -> kernels.Outer | None:
    """How codes of acc become codes of outer, or None where only the plain kernel knows."""
    n = mac.acc.format.frac - mac.outer.format.frac
    if mac.outer.overflow == Overflow.SAT_ZERO or n > 62:
        return None  # up to 62, a code's 62 bits and a rounding's constants below 2^n fit int64
    form = mac.outer.format
    return kernels.Outer(max(-n, 0), max(n, 0), *rounding_constants(mac.outer.rounding, n),
                         *mac.outer.range, form.width, form.signed)


@functools.lru_cache
def _inner(mac: MacSpec) -> MacSpec:
    return dataclasses.replace(mac, tile=None, outer=None, reload=False)
