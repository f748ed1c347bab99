"""Which kernel computes a MAC, and why its result is exact.

A `Problem` is one level of accumulation: rows of a against columns of x. From its `Facts`,
`candidates` yields every path that provably gives the definition's codes, the fastest first; all
give the same codes.
"""

import functools
import os
from collections.abc import Iterator
from functools import cached_property

import numpy as np

from emu.engine.arrays import LIMITS, bounds
from emu.engine.kernels.lanes import rounding_constants
from emu.engine.kernels.vector import has_vnni
from emu.engine.operands import Matrix, Rows
from emu.number import Overflow
from emu.spec import MacSpec

FASTEST = "int_mm", "quads", "thin32"  # no closer look at the codes finds anything better
CLOSER = "plain", "tracked"  # none of a kind, and the one whose speed depends on the bounds
SAMPLE = 1 << 12  # codes that tell whether a look at all of them may find a faster path
LONG = 1 << 10  # k from which so few rows as fill no vector are better packed in tiles
BLOCK = 16  # k between two looks of the tracked path at its prefixes
external: dict = {}  # kernels handed in from above: `offer_int_mm`
os.register_at_fork(after_in_child=external.clear)  # their threads are the parent's: they hang


def offer_int_mm(function) -> bool:
    """Take an int8 (M, K) @ (K, N) -> int32 product into use, if it is exact on this CPU.

    It must take matrices that lie by columns as well.

    `torch._int_mm` is silently wrong where the CPU adds pairs of u8 * s8 products in 16 bits (no
    AVX-512 VNNI): operands that would show it, sums that float32 does not hold, and random ones
    are compared with integers.
    """
    generator = np.random.default_rng(0)
    worst = [(np.full((m, k), a, np.int8), np.full((k, n), b, np.int8)) for m, k, n in
             ((33, 260, 65), (3, 1100, 5)) for a in (-128, 127) for b in (-128, 127)]
    drawn = [tuple(generator.integers(-128, 128, shape).astype(np.int8)
                   for shape in ((m, k), (k, n))) for m, k, n in ((64, 256, 64), (1, 7, 3))]
    exact = all(np.array_equal(function(a, b), a.astype(np.int64) @ b.astype(np.int64))
                for x, y in worst + drawn
                for a, b in ((x, y), (np.asfortranarray(x), np.asfortranarray(y))))
    if exact:
        external["int_mm"] = function
    return exact


class Facts:
    """All that a choice depends on: hardware, bounds of the operands, of the start values, depth.

    The bounds hold zero and every code, but need not be met.
    """

    def __init__(self, mac: MacSpec, a: tuple[int, int], b: tuple[int, int],
                 start: tuple[int, int], depth: int, matrix: bool, offered: bool, thin: bool):
        self.mac, self.start, self.depth, self.matrix = mac, start, depth, matrix
        self.offered = offered  # of int_mm: whether there is one
        self.thin = thin  # one column meets rows that lie side by side
        product, acc = mac.product, mac.acc
        self.lo, self.hi = acc.range
        self.width = acc.format.width
        self.up, self.drop = max(product.format.frac, 0), max(-product.format.frac, 0)
        self.constants = rounding_constants(product.rounding, self.drop)
        self.a_bounds = a[0] << self.up, a[1] << self.up  # with the zeros the product cast appends
        self.b_bounds = b

    @cached_property
    def products(self) -> tuple[int, int]:
        """The least and the greatest product, all bits kept."""
        corners = [a * b for a in self.a_bounds for b in self.b_bounds]
        return min(corners), max(corners)

    @property
    def peak(self) -> int:
        """The largest magnitude of a product, all bits kept."""
        return max(-self.products[0], self.products[1])

    @property
    def raised(self) -> int:
        """No product is larger with its rounding's constants added."""
        return self.peak + (1 << self.drop)

    @property
    def terms(self) -> tuple[int, int]:
        """The floor of the least and the ceiling of the greatest rounded product."""
        return self.products[0] >> self.drop, -(-self.products[1] >> self.drop)

    @property
    def fits(self) -> bool:
        """Whether no product is fitted."""
        low, high = self.mac.product.range
        return self.mac.exact_product or (low <= self.terms[0] and self.terms[1] <= high)

    @property
    def step(self) -> int:
        """No step adds more."""
        return self.mac.lanes * max(-self.terms[0], self.terms[1])

    @property
    def reach(self) -> tuple[int, int]:
        """The bounds of all prefixes."""
        return tuple(first + self.depth * term
                     for first, term in zip(self.start, self.terms, strict=True))

    @property
    def modular(self) -> bool:
        """Whether sums modulo 2^32 are enough: a multiple of 2^W, or never left."""
        return self.width <= 32 or max(-self.reach[0], self.reach[1]) < 1 << 31

    def within(self, bits: int) -> bool:
        """Whether both operands are signed codes of so many bits."""
        limit = 1 << (bits - 1)
        return all(-limit <= low and high < limit for low, high in (self.a_bounds, self.b_bounds))

    @cached_property
    def room(self) -> tuple[int, int]:
        """How many zeros can be appended to the codes of a, and of x, in 16 bits."""
        return tuple(15 - max(~low, high).bit_length()
                     for low, high in (self.a_bounds, self.b_bounds))

    @cached_property
    def native(self) -> bool:
        """Whether the rails are those of an int32 once zeros are appended to the operands."""
        return (self.mac.acc.overflow == Overflow.SAT and self.mac.acc.format.signed
                and self.mac.lanes == 1 and self.drop == 0 and self.within(16)
                and 0 <= 32 - self.width <= sum(self.room))

    @cached_property
    def flip(self) -> int:
        """What is taken from unsigned 8-bit codes of x to store them as int8."""
        return 128 if self.b_bounds[0] >= 0 and self.b_bounds[1] > 127 else 0

    @property
    def quads(self) -> bool:
        """Whether a is signed 8 bit, and x signed or unsigned 8 bit."""
        return (self.a_bounds[0] >= -128 and self.a_bounds[1] < 128
                and self.b_bounds[0] >= -128 and self.b_bounds[1] - self.flip < 128)

    @cached_property
    def safe(self) -> bool:
        """Whether no prefix can leave the accumulator's range."""
        return self.lo <= self.reach[0] and self.reach[1] <= self.hi

    @property
    def rail(self) -> int:
        """The largest magnitude that the accumulator holds."""
        return max(-self.lo, self.hi)

    @cached_property
    def clamps(self) -> bool:
        """Whether what leaves the range is held at its rails."""
        return self.mac.acc.overflow in (Overflow.SAT, Overflow.SAT_SYM)

    @property
    def order_free(self) -> bool:
        """Whether an exact sum, fitted at the end, is the result.

        Reduction modulo 2^W commutes with addition, and a sum whose prefixes all stay inside is
        never fitted.
        """
        return self.fits and (self.mac.acc.overflow == Overflow.WRAP or self.safe)

    @property
    def fits32(self) -> bool:
        """Whether int32 holds the accumulator after any step, and any product."""
        return self.rail + self.step < 1 << 31 and self.raised < 1 << 31

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """All candidates."""
        return tuple(candidates(self))

    @property
    def fastest(self) -> str:
        """The first candidate; "plain" where products are fitted, or where rails give zero."""
        return self.paths[0] if self.paths else "plain"


facts = functools.lru_cache(1 << 10)(Facts)


def thin(m: int, k: int, count: int, by_columns: bool) -> bool:
    """Whether one column meets rows (m, k) that lie by columns, enough of them to fill vectors."""
    return count == 1 and by_columns and (m >= 16 or k < LONG)


class Problem:
    """rows (M, K) against columns (K, count) under one level of `mac`, from the codes `start`.

    `start` broadcasts to the result; None is zero everywhere.
    """

    def __init__(self, rows: Rows, columns, mac: MacSpec, start: np.ndarray | None):
        self.rows, self.columns, self.mac, self.start = rows, columns, mac, start
        self._rest = ((0, 0) if start is None else bounds(start), columns.depth,
                      isinstance(columns, Matrix), "int_mm" in external,
                      thin(*rows.codes.shape, columns.count, rows.codes.flags.f_contiguous))

    @cached_property
    def facts(self) -> Facts:
        """What is known once the codes were looked at."""
        return facts(self.mac, self.rows.bounds, self.columns.bounds, *self._rest)

    def settle(self, path: str | None) -> None:
        """Let the dtypes be all that is known where a closer look could change nothing.

        That is where they prove the wanted path, or the one that a sample of the codes would take.
        """
        loose = facts(self.mac, LIMITS[self.rows.codes.dtype], LIMITS[self.columns.codes.dtype],
                      *self._rest)
        found = loose.fastest if path is None else path
        if found in CLOSER or (path and path not in loose.paths):
            return
        if path or found in FASTEST or found == facts(
                self.mac, self.rows.bounds, bounds(self.columns.codes.ravel("K")[:SAMPLE]),
                *self._rest).fastest:
            self.facts = loose

    @property
    def work(self) -> int:
        """Additions, in those that the plain kernel does in the time."""
        return self.rows.codes.size * self.columns.count // 16


def candidates(p: Facts) -> Iterator[str]:
    """Every path that computes this problem exactly, the fastest first."""
    if p.thin:
        yield from _thin(p)
    yield from _tiled(p)
    if not p.thin:
        yield from _thin(p)


def _thin(p: Facts) -> Iterator[str]:
    """Stepped as the hardware does it, or modulo the lane's size where nothing is clamped."""
    if not p.matrix or not p.fits or p.drop:
        return
    if p.clamps:
        if p.fits32:
            yield "thin32"
        yield "thin64"  # `MacSpec` has checked that every step fits int64
    elif p.order_free:
        if p.modular:
            yield "thin32"
        yield "thin64"


def _tiled(p: Facts) -> Iterator[str]:
    if p.order_free:
        if p.drop == 0:
            if p.modular and p.within(8) and p.depth and p.offered and p.matrix:
                yield "int_mm"
            if p.modular and p.quads and has_vnni():
                yield "quads"
            if p.modular and p.within(16) and has_vnni():
                yield "pairs"
            if p.modular and p.within(32):
                yield "sum32"
            if p.within(32) and max(-p.reach[0], p.reach[1]) <= 1 << 53:
                yield "sum64f"  # every partial sum is a float64
            yield "sum64"  # modulo 2^64, of which 2^W is a factor
        else:
            if p.modular and p.within(32) and p.raised < 1 << 31:
                yield "sum32_round"
            if p.raised < 1 << 63:
                yield "sum64_round"
    if p.fits and p.clamps:
        # Stepped: as the hardware does it, in lanes that hold every value a step can reach.
        constant = p.constants[1:] == (0, 0)
        scale = 16 - p.width
        if p.mac.acc.overflow == Overflow.SAT and p.mac.acc.format.signed and p.mac.lanes == 1:
            # int16's own rails are the model's once everything is scaled by 2^(16-W): the register
            # is 2^s v or, after the upper rail, 2^s v + 2^s - 1, and both compare as v does.
            if scale >= 0 and p.drop == 0 and p.within(16 - scale) and p.peak << scale < 1 << 15:
                yield "step16"
            if scale == 0 and p.drop and constant and p.within(16) and p.raised < 1 << 15:
                yield "step16_drop"
        if has_vnni() and p.fits32 and p.quads and p.drop == 0 and p.depth > BLOCK:
            # A rail is at most 2^30, or every product is zero, and a block's 16 add less than 2^20:
            # they cannot carry an int32 past 2^31 before it is seen outside.
            yield "tracked"
        if has_vnni() and p.native:
            yield "step32_native"  # as step16, in one instruction: a product of 16 bits fits int32
        if has_vnni() and p.fits32 and p.within(16) and p.drop == 0:
            yield "step32_vnni"
        if has_vnni() and p.fits32 and p.within(16) and p.drop and constant:
            yield "step32_vnni_drop"
        if p.fits32 and p.within(32):
            yield "step32" if p.drop == 0 else "step32_round"
        if (has_vnni() and p.drop == 0 and p.hi - p.lo + 2 * p.step <= 1 << 53
                and p.within(32)):
            yield "step64f_range"  # as below, of sums in halves around the middle of the rails
        if p.drop == 0 and p.rail + p.step <= 1 << 53 and p.within(32):
            yield "step64f"  # every sum is a float64, so no fma rounds
        if p.drop == 0:
            yield "step64"  # `MacSpec` has checked that every step fits int64
        elif p.raised < 1 << 63:
            yield "step64_round"


def choose(p: Problem, path: str | None) -> str:
    """The fastest path, or the forced one; raises ValueError where that would not be exact."""
    p.settle(path)
    if path is None:
        return p.facts.fastest
    if path not in p.facts.paths:
        raise ValueError(f"path {path!r}: not exact, or unknown, for {p.mac} with operands in "
                         f"{p.facts.a_bounds} and {p.facts.b_bounds}, K {p.columns.depth}; exact "
                         f"here: {', '.join([*p.facts.paths, 'plain'])}")
    return path
