"""Which kernel computes a MAC, and why its result is exact.

A `Problem` is one level of accumulation: rows of a against columns of x. `candidates` yields every
path that provably gives the definition's codes, the fastest first; all give the same codes.
"""

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from emu.engine.kernels import gemm
from emu.engine.kernels.jit import launch
from emu.engine.kernels.tiles import GROUP, REPLAY, ROWS, Rails
from emu.engine.kernels.vector import DOUBLE, has_vnni
from emu.number import Overflow, Rounding
from emu.spec import MacSpec

BLOCK = 16  # k between two looks of the tracked path at its prefixes
RISKY = 0.25  # of the vectors in the first rows: from here on stepping all is faster than replay
ELEMENTS = {"step16": np.int16, "step32": np.int32, "step64f": np.float64, "step64": np.int64,
            "pairs": np.int32, "quads": np.int32, "sum32": np.int32, "sum64f": np.float64,
            "sum64": np.int64}
STORED = {"quads": np.int8, "pairs": np.int16, "vpdpwssd": np.int16, np.int16: np.int16,
          np.int32: np.int32, np.float64: np.int32, np.int64: np.int64}
WORDS = {2: np.int16, 4: np.int32, 8: np.int64}
external: dict = {}  # kernels handed in from above: `offer_int_mm`


def rounding_constants(rounding: Rounding, n: int) -> tuple[int, int, int]:
    """(c0, c1, c2): x rounded to a multiple of 2^n is the floor of x + c0 + c1 + c2 over 2^n.

    c1 is added where x < 0, c2 where the floor is odd. Each mode asks for "floor plus one if rest
    >= t": adding 2^n - t carries exactly then, and t is what sign or parity move by one.
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


class Matrix:
    """Operand columns that lie as a matrix (K, N)."""

    def __init__(self, codes: np.ndarray):
        self.codes = codes
        self.depth, self.count = codes.shape

    @cached_property
    def bounds(self) -> tuple[int, int]:
        """The least and the greatest code, and 0."""
        return bounds(self.codes)

    def matrix(self) -> np.ndarray:
        """The operands as a matrix (K, count)."""
        return self.codes

    def part(self, first: int, last: int) -> "Matrix":
        """The rows of k from `first` to before `last`."""
        return Matrix(self.codes[first:last])

    def stored(self, dtype, multiple: int, flip: int = 0) -> tuple[np.ndarray, np.ndarray, int]:
        """(flat codes - flip, where each row starts, columns): whole multiples of columns."""
        width = -(-self.count // multiple) * multiple
        codes = self.codes if not flip else self.codes.astype(np.int16) - flip
        if width == self.count:
            flat = np.require(codes, dtype, ["C", "W"])
        else:
            flat = np.zeros((self.depth, width), dtype)
            flat[:, :self.count] = codes
        return flat.reshape(-1), np.arange(self.depth, dtype=np.int64) * width, width


class Problem:
    """rows (M, K) against columns (K, count) under one level of `mac`, from the codes `start`."""

    def __init__(self, rows: np.ndarray, columns, mac: MacSpec, start: np.ndarray):
        self.rows, self.columns, self.mac = rows, columns, mac
        product, acc = mac.product, mac.acc
        self.lo, self.hi = acc.range
        self.width = acc.format.width
        self.up, self.drop = max(product.format.frac, 0), max(-product.format.frac, 0)
        self.constants = rounding_constants(product.rounding, self.drop)
        self.a_bounds = tuple(bound << self.up for bound in bounds(rows))
        self.b_bounds = columns.bounds
        corners = [a * b for a in self.a_bounds for b in self.b_bounds]
        self.peak = max(-min(corners), *corners)  # no product is larger, all bits kept
        low, high = min(corners) >> self.drop, -(-max(corners) >> self.drop)
        # Every rounded product is between low and high, its floor and ceiling being so.
        self.fits = product.range[0] <= low and high <= product.range[1]
        self.step = mac.lanes * max(-low, high)  # no step adds more
        first, last = bounds(start)
        self.reach = first + columns.depth * low, last + columns.depth * high  # of all prefixes

    def within(self, bits: int) -> bool:
        """Whether both operands are signed codes of so many bits."""
        limit = 1 << (bits - 1)
        return all(-limit <= low and high < limit for low, high in (self.a_bounds, self.b_bounds))

    @cached_property
    def scaled(self) -> np.ndarray:
        """The rows with the zeros that the product cast appends."""
        return self.rows.astype(np.int64) << self.up if self.up else self.rows

    @property
    def flip(self) -> int:
        """What is taken from unsigned 8-bit codes of x to store them as int8."""
        return 128 if self.b_bounds[0] >= 0 and self.b_bounds[1] > 127 else 0

    @property
    def quads(self) -> bool:
        """Whether a is signed 8 bit, and x signed or unsigned 8 bit."""
        return (self.a_bounds[0] >= -128 and self.a_bounds[1] < 128
                and self.b_bounds[0] >= -128 and self.b_bounds[1] - self.flip < 128)

    @property
    def work(self) -> int:
        """Additions, in those that the plain kernel does in the time."""
        return self.rows.size * self.columns.count // 16

    @property
    def safe(self) -> bool:
        """Whether no prefix can leave the accumulator's range."""
        return self.lo <= self.reach[0] and self.reach[1] <= self.hi


def bounds(codes: np.ndarray) -> tuple[int, int]:
    """The least and the greatest code, and 0."""
    return int(codes.min(initial=0)), int(codes.max(initial=0))


def candidates(p: Problem) -> Iterator[str]:
    """Every path that computes this problem exactly, the fastest first."""
    wraps = p.mac.acc.overflow == Overflow.WRAP
    clamps = p.mac.acc.overflow in (Overflow.SAT, Overflow.SAT_SYM)
    rail = max(-p.lo, p.hi)
    raised = p.peak + (1 << p.drop)  # no product is larger with its rounding's constants added
    if p.fits and (wraps or p.safe):
        # Order-free: reduction modulo 2^W commutes with addition, and a sum whose prefixes all stay
        # inside is never fitted. Modulo 2^32 is enough where that is a multiple of 2^W, or where
        # the sum itself is below 2^31.
        reach = max(-p.reach[0], p.reach[1])
        modular = p.width <= 32 or reach < 1 << 31
        if p.drop == 0:
            if modular and p.within(8) and "int_mm" in external and isinstance(p.columns, Matrix):
                yield "int_mm"
            if modular and p.quads and has_vnni():
                yield "quads"
            if modular and p.within(16) and has_vnni():
                yield "pairs"
            if modular and p.within(32):
                yield "sum32"
            if reach <= 1 << 53 and p.within(32):  # every partial sum is a float64
                yield "sum64f"
            yield "sum64"  # modulo 2^64, of which 2^W is a factor
        else:
            if modular and p.within(32) and raised < 1 << 31:
                yield "sum32_round"
            if raised < 1 << 63:
                yield "sum64_round"
    if p.fits and clamps:
        # Stepped: as the hardware does it, in lanes that hold every value a step can reach.
        constant = p.constants[1:] == (0, 0)
        scale = 16 - p.width
        if p.mac.acc.overflow == Overflow.SAT and p.mac.acc.format.signed and p.mac.lanes == 1:
            # int16's own rails are the model's once everything is scaled by 2^(16-W): the register
            # is 2^s v or, after the upper rail, 2^s v + 2^s - 1, and both compare as v does.
            if scale >= 0 and p.drop == 0 and p.within(16 - scale) and p.peak << scale < 1 << 15:
                yield "step16"
            if scale == 0 and p.drop and constant and p.within(16) and raised < 1 << 15:
                yield "step16_drop"
        fits32 = rail + p.step < 1 << 31 and raised < 1 << 31
        if (has_vnni() and p.quads and p.drop == 0 and p.columns.depth > BLOCK
                and rail + BLOCK * p.peak < 1 << 31):
            yield "tracked"  # no block can carry an int32 past 2^31 before it is seen outside
        if has_vnni() and fits32 and p.within(16) and p.drop == 0:
            yield "step32_vnni"
        if has_vnni() and fits32 and p.within(16) and p.drop and constant:
            yield "step32_vnni_drop"
        if fits32 and p.within(32):
            yield "step32" if p.drop == 0 else "step32_round"
        if p.drop == 0 and rail + p.step <= 1 << 53 and p.within(32):
            yield "step64f"  # every sum is a float64, so no fma rounds
        if p.drop == 0:
            yield "step64"  # `MacSpec` has checked that every step fits int64
        elif raised < 1 << 63:
            yield "step64_round"


def choose(p: Problem, path: str | None) -> str:
    """The fastest path, or the forced one; raises ValueError where that would not be exact."""
    if path is None:
        return next(candidates(p), "plain")  # products that are fitted, or rails that give zero
    found = list(candidates(p))
    if path not in found:
        raise ValueError(f"path {path!r}: not exact, or unknown, for {p.mac} with operands in "
                         f"{p.a_bounds} and {p.b_bounds}, K {p.columns.depth}; exact here: "
                         f"{', '.join([*found, 'plain'])}")
    return path


def compute(p: Problem, path: str, start: np.ndarray) -> np.ndarray:
    """The accumulators (rows, columns) of whole tiles, as codes in an integer dtype.

    `start` holds the start values and broadcasts to (M, the columns' count).
    """
    if path == "int_mm":
        out = external["int_mm"](*(np.require(codes, np.int8, ["C", "W"])
                                   for codes in (p.scaled, p.columns.codes)))
        return fit(out + start.astype(np.int32) if start.any() else out, p)
    if path == "tracked":
        return _tracked(p, start)
    lane = gemm.LANES[path]
    dtype = ELEMENTS[path.split("_")[0]]
    scale = 16 - p.width if path == "step16" else 0
    x, off, width = p.columns.stored(STORED.get(lane.product) or STORED[dtype], lane.columns,
                                     p.flip if lane.product == "quads" else 0)
    a, off = packed(p.scaled, lane, dtype, off, 1 if lane.step == "none" else p.mac.lanes, scale)
    c = np.zeros((a.shape[0] * ROWS, width), dtype)
    m, count = p.rows.shape[0], p.columns.count
    if start.any():
        c[:m, :count] = start.astype(dtype) << scale if scale else start
    if lane.product == "quads" and not p.flip:  # the kernel saw codes + 128
        c[:m] -= p.scaled.sum(1, dtype=np.int32)[:, None] * np.int32(128)
    lanes = a.shape[1] if lane.step == "none" else p.mac.lanes
    rails = Rails(p.lo, p.hi, *p.constants, p.drop, max(lanes, 1))
    launch(gemm.KERNELS[path], p.work, a, x, off, c, rails)
    if scale:
        c >>= scale
    return fit(c, p) if lane.step == "none" else c.astype(np.int64) if lane.elem == DOUBLE else c


def packed(rows: np.ndarray, lane: gemm.Lane, dtype, off: np.ndarray, lanes: int, scale: int = 0
           ) -> tuple[np.ndarray, np.ndarray]:
    """(rows << scale in tiles of words, off), k filled with zeros to whole steps of whole words."""
    m, depth = rows.shape
    whole = lane.word * lanes
    k = -(-depth // whole) * whole
    narrow = STORED[lane.product] if lane.word > 1 else dtype
    if scale:
        rows = rows.astype(narrow) << narrow(scale)
    if m % ROWS or k != depth:
        filled = np.zeros((-(-m // ROWS) * ROWS, k), narrow)
        filled[:m, :depth] = rows
        rows = filled
    else:
        rows = np.require(rows, narrow, ["C", "W"])
    if lane.product == "vpdpwssd":
        rows = rows & 0xFFFF  # of its two products the upper one is zero
    rows = rows.view(WORDS[np.dtype(dtype).itemsize])
    a = np.empty((rows.shape[0] // ROWS, rows.shape[1], ROWS), rows.dtype)
    launch(gemm.pack, rows.size // 16, rows, a)
    if k != depth:
        off = np.concatenate([off, np.broadcast_to(off[:1], k - depth)])
    return a.view(dtype), off


def _tracked(p: Problem, start: np.ndarray) -> np.ndarray:
    """Exact sums, and the stepped sums of the vectors that could have left the rails.

    A prefix inside a block exceeds neither of the block's ends by more than half its sum of
    |a| |x|, and the prefixes at the ends are compared exactly.
    """
    m, depth = p.rows.shape
    x, flat_off, width = p.columns.stored(np.int8, gemm.TRACKED.columns, p.flip)
    a, off = packed(p.scaled, gemm.TRACKED, np.int32, flat_off, BLOCK // gemm.TRACKED.word)
    sums = np.empty((a.shape[0], off.size // BLOCK, ROWS), np.int32)
    norms = np.empty(a.shape[0] * ROWS, np.int64)
    launch(gemm.block_sums, a.size // 4, a.view(np.int8), BLOCK, sums, norms)
    sums *= np.int32(0 if p.flip else -128)  # the kernel saw codes + 128
    largest = max(-p.b_bounds[0], p.b_bounds[1])
    margin = np.minimum((norms * largest + 1) // 2, p.hi - p.lo).astype(np.int32)
    c = np.zeros((a.shape[0] * ROWS, width), np.int32)
    c[:m, :p.columns.count] = start
    risk = np.zeros((a.shape[0] * ROWS, width // GROUP), np.int8)
    rails = Rails(p.lo, p.hi, 0, 0, 0, 0, BLOCK // gemm.TRACKED.word)
    first = 1 + a.shape[0] // 16  # row tiles that tell how the others will fare
    launch(gemm.tracked, p.work, a, x, off, c, sums, margin, risk, 0, first, rails)
    if risk[:first * ROWS].mean() > RISKY:
        return compute(p, "step32_vnni", start)
    launch(gemm.tracked, p.work, a, x, off, c, sums, margin, risk, first, a.shape[0], rails)
    rows, groups = np.nonzero(risk[:m])
    if rows.size:
        vectors = c.reshape(c.shape[0], -1, GROUP)
        begin = np.zeros((m, width), np.int32)
        begin[:, :p.columns.count] = start
        vectors[rows, groups] = begin.reshape(m, -1, GROUP)[rows, groups]
        # Fill up with the last vector: it is then stepped twice in one call, which reads all its
        # start values before it writes.
        fill = -rows.size % REPLAY
        rows, groups = (np.concatenate([at, np.broadcast_to(at[-1:], fill)])
                        for at in (rows, groups))
        a, off = packed(p.scaled, gemm.REPLAYED, np.int32, flat_off, p.mac.lanes)
        launch(gemm.replay, rows.size * GROUP * depth // 8, a, x, off, c, rows, groups * GROUP,
               p.flip, rails._replace(lanes=p.mac.lanes))
    return c


def fit(c: np.ndarray, p: Problem) -> np.ndarray:
    """Exact sums, known modulo the width of their dtype, as codes of the accumulator."""
    if c.dtype == np.float64:
        c = c.astype(np.int64)
    if not p.mac.acc.format.signed:
        return c.astype(np.int64) & ((1 << p.width) - 1)
    bits = 8 * c.dtype.itemsize
    return c if p.safe or p.width >= bits else (c << (bits - p.width)) >> (bits - p.width)
