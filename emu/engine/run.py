"""Running a path: operands into place, a kernel, accumulators out."""

from functools import partial

import numpy as np

from emu.engine.arrays import LIMITS, ready
from emu.engine.kernels import gemm, mac
from emu.engine.kernels.jit import launch
from emu.engine.kernels.parts import ROWS, Rails
from emu.engine.kernels.tiles import GROUP, REPLAY
from emu.engine.kernels.vector import DOUBLE, I16, I32
from emu.engine.memory import scratch
from emu.engine.operands import INT8, STORED, block_sums
from emu.engine.paths import BLOCK, Facts, Problem, external

# Of the vectors in the first rows: from here on stepping all this way is faster than replay.
RISKY = {"step32_native": 0.1, "step32_vnni": 0.25}
ELEMENTS = {"step16": np.int16, "step32": np.int32, "step64f": np.float64, "step64": np.int64,
            "pairs": np.int32, "quads": np.int32, "sum32": np.int32, "sum64f": np.float64,
            "sum64": np.int64}


# (codes, up): accumulators (rows, columns) of whole tiles; `(codes << up) >> up` are the MAC's.
Sums = tuple[np.ndarray, int]


def compute(p: Problem, path: str) -> Sums:
    """The accumulators (M, the columns' count) of a path, in an integer dtype."""
    facts = p.facts
    if path in DIRECT:
        return DIRECT[path](facts, p.rows.codes, p.columns.codes, p.start)
    if path == "tracked":
        return _tracked(p)
    lane = gemm.LANES[path]
    dtype = ELEMENTS[path.split("_")[0]]
    scale, up = 0, 0  # zeros appended to the accumulator, and of these to the codes of x
    if lane.step == "native":
        scale = 8 * np.dtype(dtype).itemsize - facts.width
        up = max(scale - facts.room[0], 0)
    elif lane.step == "range":
        scale = 1
    middle = facts.lo + facts.hi if lane.step == "range" else 0  # twice that of the rails
    lanes = 1 if lane.step == "none" else p.mac.lanes
    quads = lane.product == "quads"
    a = p.rows.packed(lane, dtype, lanes, facts.up + scale - up)
    x, off, width, pitch = p.columns.stored(_stored(lane, facts), lane.columns,
                                            facts.flip if quads else 0, up)
    # The kernel of quads sees codes + 128.
    lacks = p.rows.sums(a) * np.int32(-128) if quads and not facts.flip else -middle
    first, c, held = begin(p, a, lacks, scale, width, np.int64 if lane.elem == DOUBLE else dtype)
    rails = Rails(facts.lo, facts.hi - facts.lo if lane.step == "range" else facts.hi,
                  *facts.constants, facts.drop, lanes if lane.step != "none"
                  else max(a.shape[1], 1), scale, middle, pitch, held)
    launch(gemm.KERNELS[path], p.work, a, x, filled(off, a.shape[1] * lane.word), first, c, rails)
    return fit(c, facts) if lane.step == "none" else (c, 0)


def _int_mm(facts: Facts, a: np.ndarray, x: np.ndarray, start: np.ndarray | None) -> Sums:
    """The product that was handed in."""
    if facts.up:
        a = a.astype(np.int64) << facts.up
    for_a, for_x = a.flags, x.flags
    if not (a.dtype == INT8 and for_a.writeable and for_a.c_contiguous != for_a.f_contiguous):
        a = _matrix(a)
    if not (x.dtype == INT8 and for_x.writeable and for_x.c_contiguous != for_x.f_contiguous):
        x = _matrix(x)
    out = external["int_mm"](a, x)
    if start is not None and start.ndim == 1:  # one for each column
        launch(mac.add_start, out.size // 4, out, ready(start, np.int32))
    elif start is not None:
        out += start.astype(np.int32)
    return fit(out, facts)


def _thin(dtype: np.dtype, facts: Facts, a: np.ndarray, x: np.ndarray, start: np.ndarray | None
          ) -> Sums:
    """All rows stepped at once, column by column."""
    a, x = a.T, x.T
    if a.dtype != INT8 or not a.flags.carray:
        a = ready(a, dtype)
    if facts.up:
        x = x.astype(np.int64) << facts.up
    c = np.zeros((x.shape[0], a.shape[1]), dtype)
    if start is not None:
        c.T[...] = start
    rails = (facts.mac.lanes, facts.lo, facts.hi) if facts.clamps else (1, *LIMITS[dtype])
    launch(gemm.thin, a.size * x.shape[0] // 16, a, x.astype(dtype, "C"), *rails, c)
    c = np.ascontiguousarray(c.T)
    return (c, 0) if facts.clamps else fit(c, facts)


# What needs no tiles: (facts, a (M, K), x (K, N), start) -> Sums.
DIRECT = {"int_mm": _int_mm, "thin32": partial(_thin, np.dtype(np.int32)),
          "thin64": partial(_thin, np.dtype(np.int64))}


def _stored(lane, facts: Facts):
    """The dtype of the codes of x in memory."""
    if lane.product in STORED:
        return STORED[lane.product]
    if lane.elem in (I16, I32):
        return np.int16 if lane.elem == I16 else np.int32
    return np.int32 if facts.within(32) else np.int64


def _matrix(codes: np.ndarray) -> np.ndarray:
    """int8 codes that lie by rows, which int_mm takes as it takes those that lie by columns.

    An axis of one code may have any stride in numpy, which torch takes for that of a row.
    """
    return ready(codes, np.int8).reshape(-1).reshape(codes.shape)


def begin(p: Problem, a: np.ndarray, lacks, scale: int, width: int, dtype
          ) -> tuple[np.ndarray, np.ndarray, int]:
    """(what each row starts from, room for the codes in whole tiles, whether that holds starts).

    The start values << scale, on top of what the rows lack. Fresh memory costs a fault for each of
    its pages: nothing is written here that the kernel need not read.
    """
    first, shape = np.empty(a.shape[0] * ROWS, dtype), (a.shape[0] * ROWS, width)
    first[...] = lacks
    # What is no matrix is moved on to where it belongs.
    c = np.empty(shape, dtype) if p.facts.matrix else scratch(shape, dtype)
    if p.start is None:
        return first, c, 0
    start, m = (p.start.astype(np.int64) << scale).astype(dtype), p.rows.codes.shape[0]
    if start.shape[1:] == (1,):
        first[:m] += start[:, 0]
        return first, c, 0
    c[...] = first[:, None]
    c[:m, :p.columns.count] += start
    return first, c, 1


def filled(off: np.ndarray, k: int) -> np.ndarray:
    """`off` for k rows: those beyond the last meet zeros of a, so that any will do."""
    return off if off.size == k else np.concatenate([off, np.broadcast_to(off[:1], k - off.size)])


def _tracked(p: Problem) -> Sums:
    """Exact sums, and the stepped sums of the vectors that could have left the rails.

    A prefix inside a block exceeds neither of the block's ends by more than half its sum of
    |a| |x|, and the prefixes at the ends are compared exactly.
    """
    lane, words = gemm.TRACKED, BLOCK // gemm.TRACKED.word
    facts = p.facts
    a = p.rows.packed(lane, np.int32, words, facts.up)
    x, off, width, pitch = p.columns.stored(np.int8, lane.columns, facts.flip)
    sums, norms = block_sums(a, a.shape[1] // words)
    sums *= np.int32(0 if facts.flip else -128)  # the kernel sees codes + 128
    largest = max(-facts.b_bounds[0], facts.b_bounds[1])
    margin = (norms * largest // 2).astype(np.int32)
    first, c, held = begin(p, a, 0, 0, width, np.int32)
    risk = np.empty((a.shape[0] * ROWS, width // GROUP), np.int8)
    rails = Rails(facts.lo, facts.hi, 0, 0, 0, 0, words, 0, 0, pitch, held)
    sample = 1 + a.shape[0] // 16  # row tiles that tell how the others will fare
    all_off = filled(off, a.shape[1] * lane.word)
    watched = (a, x, all_off, first, c, sums, margin, risk)
    launch(gemm.tracked, p.work * sample // a.shape[0], *watched, 0, sample, rails)
    stepped = "step32_native" if facts.native else "step32_vnni"
    seen = risk[:sample * ROWS]
    if np.count_nonzero(seen) > RISKY[stepped] * seen.size:
        return compute(p, stepped)
    launch(gemm.tracked, p.work, *watched, sample, a.shape[0], rails)
    rows, groups = np.nonzero(risk[:p.rows.codes.shape[0]])
    if rows.size:
        if held:  # the sums are written over their start values
            again = begin(p, a, 0, 0, width, np.int32)[1].reshape(c.shape[0], -1, GROUP)
            c.reshape(again.shape)[rows, groups] = again[rows, groups]
        # Fill up with the last vector: it is then stepped twice in one call, which reads all its
        # start values before it writes.
        fill = -rows.size % REPLAY
        rows, groups = (np.concatenate([at, np.broadcast_to(at[-1:], fill)])
                        for at in (rows, groups))
        a = p.rows.packed(gemm.REPLAYED, np.int32, p.mac.lanes, facts.up)
        launch(gemm.replay, rows.size * GROUP * off.size // 8, a, x, filled(off, a.shape[1]),
               first, c, rows, groups, facts.flip, rails._replace(lanes=p.mac.lanes))
    return (c, 0)


def fit(c: np.ndarray, facts: Facts) -> Sums:
    """Exact sums, known modulo the width of their dtype, as codes of the accumulator."""
    if not facts.mac.acc.format.signed:
        return c.astype(np.int64) & ((1 << facts.width) - 1), 0
    above = 8 * c.dtype.itemsize - facts.width
    return c, 0 if above <= 0 or facts.safe else above
