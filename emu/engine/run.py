"""Running a path: operands into place, a kernel, accumulators out."""

from typing import NamedTuple

import numpy as np

from emu.engine.kernels import gemm
from emu.engine.kernels.jit import launch
from emu.engine.kernels.tiles import GROUP, REPLAY, ROWS, Rails
from emu.engine.kernels.vector import DOUBLE
from emu.engine.operands import STORED
from emu.engine.paths import BLOCK, Problem, external

RISKY = 0.25  # of the vectors in the first rows: from here on stepping all is faster than replay
ELEMENTS = {"step16": np.int16, "step32": np.int32, "step64f": np.float64, "step64": np.int64,
            "pairs": np.int32, "quads": np.int32, "sum32": np.int32, "sum64f": np.float64,
            "sum64": np.int64}


class Sums(NamedTuple):
    """Accumulators (rows, columns) of whole tiles: `(codes << up) >> up` are the MAC's."""

    codes: np.ndarray
    up: int


def compute(p: Problem, path: str, start: np.ndarray) -> Sums:
    """The accumulators, in an integer dtype.

    `start` holds the start values and broadcasts to (M, the columns' count).
    """
    if path == "int_mm":
        out = external["int_mm"](*(np.require(codes, np.int8, ["C", "W"])
                                   for codes in (p.rows.scaled(p.up), p.columns.codes)))
        return fit(out + start.astype(np.int32) if start.any() else out, p)
    if path == "tracked":
        return _tracked(p, start)
    lane = gemm.LANES[path]
    dtype = ELEMENTS[path.split("_")[0]]
    scale = 16 - p.width if path == "step16" else 0
    lanes = 1 if lane.step == "none" else p.mac.lanes
    a = p.rows.packed(lane, dtype, lanes, p.up + scale)
    x, off, width = p.columns.stored(STORED.get(lane.product) or STORED[dtype], lane.columns,
                                     p.flip if lane.product == "quads" else 0)
    c = begin(p, a, start, scale, width, dtype)
    if lane.product == "quads" and not p.flip:  # the kernel sees codes + 128
        c[:p.rows.codes.shape[0]] -= p.rows.scaled(p.up).sum(1, dtype=np.int32)[:, None] * np.int32(
            128)
    rails = Rails(p.lo, p.hi, *p.constants, p.drop, lanes if lane.step != "none"
                  else max(a.shape[1], 1))
    launch(gemm.KERNELS[path], p.work, a, x, filled(off, a.shape[1] * lane.word), c, rails)
    if lane.elem == DOUBLE:
        c = c.astype(np.int64)
    if lane.step == "none":
        return fit(c, p)
    if scale:
        c >>= scale
    return Sums(c, 0)


def begin(p: Problem, a: np.ndarray, start: np.ndarray, scale: int, width: int, dtype
          ) -> np.ndarray:
    """The start values << scale in whole tiles."""
    c = np.zeros((a.shape[0] * ROWS, width), dtype)
    if start.any():
        start = start.astype(dtype) << scale if scale else start
        c[:p.rows.codes.shape[0], :p.columns.count] = start
    return c


def filled(off: np.ndarray, k: int) -> np.ndarray:
    """`off` for k rows: those beyond the last meet zeros of a, so that any will do."""
    return off if off.size == k else np.concatenate([off, np.broadcast_to(off[:1], k - off.size)])


def _tracked(p: Problem, start: np.ndarray) -> Sums:
    """Exact sums, and the stepped sums of the vectors that could have left the rails.

    A prefix inside a block exceeds neither of the block's ends by more than half its sum of
    |a| |x|, and the prefixes at the ends are compared exactly.
    """
    lane, words = gemm.TRACKED, BLOCK // gemm.TRACKED.word
    a = p.rows.packed(lane, np.int32, words, p.up)
    x, off, width = p.columns.stored(np.int8, lane.columns, p.flip)
    sums = np.empty((a.shape[0], a.shape[1] // words, ROWS), np.int32)
    norms = np.empty(a.shape[0] * ROWS, np.int64)
    launch(gemm.block_sums, a.size // 4, a.view(np.int8), words, sums, norms)
    sums *= np.int32(0 if p.flip else -128)  # the kernel sees codes + 128
    largest = max(-p.b_bounds[0], p.b_bounds[1])
    margin = np.minimum((norms * largest + 1) // 2, p.hi - p.lo).astype(np.int32)
    c = begin(p, a, start, 0, width, np.int32)
    risk = np.zeros((a.shape[0] * ROWS, width // GROUP), np.int8)
    rails = Rails(p.lo, p.hi, 0, 0, 0, 0, words)
    first = 1 + a.shape[0] // 16  # row tiles that tell how the others will fare
    all_off = filled(off, a.shape[1] * lane.word)
    watched = (a, x, all_off, c, sums, margin, risk)
    launch(gemm.tracked, p.work, *watched, 0, first, rails)
    if risk[:first * ROWS].mean() > RISKY:
        return compute(p, "step32_vnni", start)
    launch(gemm.tracked, p.work, *watched, first, a.shape[0], rails)
    rows, groups = np.nonzero(risk[:p.rows.codes.shape[0]])
    if rows.size:
        again = begin(p, a, start, 0, width, np.int32).reshape(c.shape[0], -1, GROUP)
        c.reshape(again.shape)[rows, groups] = again[rows, groups]
        # Fill up with the last vector: it is then stepped twice in one call, which reads all its
        # start values before it writes.
        fill = -rows.size % REPLAY
        rows, groups = (np.concatenate([at, np.broadcast_to(at[-1:], fill)])
                        for at in (rows, groups))
        a = p.rows.packed(gemm.REPLAYED, np.int32, p.mac.lanes, p.up)
        launch(gemm.replay, rows.size * GROUP * off.size // 8, a, x, filled(off, a.shape[1]), c,
               rows, groups * GROUP, p.flip, rails._replace(lanes=p.mac.lanes))
    return Sums(c, 0)


def fit(c: np.ndarray, p: Problem) -> Sums:
    """Exact sums, known modulo the width of their dtype, as codes of the accumulator."""
    if not p.mac.acc.format.signed:
        return Sums(c.astype(np.int64) & ((1 << p.width) - 1), 0)
    above = max(8 * c.dtype.itemsize - p.width, 0)
    return Sums(c, 0 if above and p.safe else above)
