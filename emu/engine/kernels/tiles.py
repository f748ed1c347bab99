"""Tiles: ROWS x columns of accumulators that stay in registers while k runs.

One template writes every kernel of the MAC. Its parts:

- operand a: packed (tiles, words, ROWS); a word holds one, two or four consecutive k of a row and
  is spread over a vector;
- operand x: flat; row k of the tile's columns starts at `off[k] + tile * rails.pitch`. Neighbouring
  tiles are a pitch of a tile's columns apart where they share rows: `off[k] = k * ld` is a matrix,
  other offsets are a convolution, whose operand rows are shifted images. They are further apart
  where each tile has a copy of its own. Rows of one word are interleaved in registers;
- the start: `first[row]`, or where `rails.held`, what c holds;
- `product`: how a vector of products arises and is added;
- `rounds`: which bits of each product are dropped, and how;
- `step`: what the accumulator does after `lanes` words, and what it then is of the code: twice its
  distance from the middle of the rails, or the code with zeros appended.

Padding (rows, columns, k) is zero, which changes no accumulator: 0 rounds to 0 and adds nothing.
"""

from contextlib import contextmanager
from typing import NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from emu.engine.kernels.vector import DOUBLE, I8, I32, I64, Vector, vector_bits

ROWS = 8 if vector_bits() == 512 else 4
REPLAY = 8  # vectors of outputs replayed together, so that their additions overlap
GROUP = 16  # outputs in a vector of the tracked kernel


class Rails(NamedTuple):
    """What a kernel is told at run time, in units of its elements."""

    lo: int
    hi: int
    c0: int  # the three constants of the rounding, see `lanes.rounding_constants`
    c1: int
    c2: int
    drop: int  # bits dropped from each product
    lanes: int  # words added before the accumulator fits
    scale: int  # bits below the code's in an accumulator
    middle: int  # what the accumulator lacks of the code, its zeros appended
    pitch: int  # from one tile's columns of x to the next tile's
    held: int  # whether c holds the start values


class Lane(NamedTuple):
    """One kind of kernel: element type, stored type of x, and the parts of the template."""

    elem: ir.Type
    product: str  # "mul", "vpdpwssd" (one product), "pairs", "quads"
    rounds: str = "none"  # or "constant" (c0 alone), "full"
    step: str = "clamp"  # or "range" (-hi to hi), "native" (the element type's rails), "none"
    vectors: int = 2  # side by side in a tile

    @property
    def width(self) -> int:
        """Elements in a vector."""
        return vector_bits() // (64 if self.elem == DOUBLE else self.elem.width)

    @property
    def code(self) -> ir.Type:
        """The type of an accumulator in memory."""
        return I64 if self.elem == DOUBLE else self.elem

    @property
    def columns(self) -> int:
        """Columns of a tile."""
        return self.width * self.vectors

    @property
    def word(self) -> int:
        """Consecutive k in one word of a."""
        return {"pairs": 2, "quads": 4}.get(self.product, 1)


def tile(lane: Lane):
    """The intrinsic `run(a, x, off, first, c, row_tile, tile, rails)`: all k of one tile of c.

    a (tiles, words, ROWS), x flat, off (words * lane.word,), first (rows,), c (rows, columns),
    which receives the codes. The number of words is a multiple of `rails.lanes`.
    """

    @intrinsic
    def run(typing, a, x, off, first, c, row_tile, tile, rails):
        def codegen(context, builder, signature, arguments):
            a, x, off, first, c = _arrays(context, builder, signature, arguments, 5)
            row_tile, tile = arguments[5:7]
            work = _Work(lane, builder, x.data, off.data, _rails(builder, arguments[7]))
            a_row, words = _row_tile(builder, a, row_tile)
            places = _places(builder, lane, c, row_tile, tile)
            held = work.start(first.data, c.data, _rows(builder, row_tile), places)
            columns = work.columns(tile)
            with work.steps(words) as (_, each_word):
                with each_word() as w:
                    work.accumulate(held, a_row, w, columns)
                for at in places:
                    work.change(held[at], work.fit)
            for at, place in places.items():
                work.finish(builder.load(held[at]), c.data, place)
            return context.get_dummy_value()

        return types.void(a, x, off, first, c, row_tile, tile, rails), codegen

    return run


def tracked_tile(lane: Lane):
    """`run(a, x, off, first, c, block_sums, margin, risk, row_tile, tile, rails)`: exact, watched.

    As `tile`, but after every `rails.lanes` words the prefix, once `block_sums` (tiles, blocks,
    ROWS) is added, is compared with the least and greatest so far. risk (rows, columns / GROUP)
    says of each vector of outputs whether any left [lo + margin, hi - margin], margin (rows,).
    """

    @intrinsic
    def run(typing, a, x, off, first, c, block_sums, margin, risk, row_tile, tile, rails):
        def codegen(context, builder, signature, arguments):
            a, x, off, first, c, sums, margin, risk = _arrays(context, builder, signature,
                                                              arguments, 8)
            row_tile, tile = arguments[8:10]
            work = _Work(lane, builder, x.data, off.data, _rails(builder, arguments[10]))
            v, rows = work.v, _rows(builder, row_tile)
            a_row, words = _row_tile(builder, a, row_tile)
            sums_row, _ = _row_tile(builder, sums, row_tile)
            places = _places(builder, lane, c, row_tile, tile)
            held = work.start(first.data, c.data, rows, places)
            least, greatest = ({at: work.keep(builder.load(place)) for at, place in held.items()}
                               for _ in range(2))
            columns = work.columns(tile)
            with work.steps(words) as (block, each_word):
                with each_word() as w:
                    work.accumulate(held, a_row, w, columns)
                for r in range(ROWS):
                    share = work.spread(sums_row, builder.add(
                        builder.mul(block, I64(ROWS)), I64(r)))
                    for j in range(lane.vectors):
                        at = r, j
                        work.change(held[at], lambda total, share=share: builder.add(total, share))
                        prefix = builder.load(held[at])
                        work.change(least[at], lambda x, y=prefix: v.least(x, y))
                        work.change(greatest[at], lambda x, y=prefix: v.greatest(x, y))
            groups = builder.sdiv(_size(builder, c, 1), I64(GROUP))
            for (r, j), place in places.items():
                work.finish(builder.load(held[r, j]), c.data, place)
                room = work.spread(margin.data, rows[r])
                # hi - margin, and not max + margin, which could leave int32 where the sum did
                over = v.any(">", builder.load(greatest[r, j]),
                             builder.sub(work.rail["hi"], room))
                under = v.any("<", builder.load(least[r, j]), builder.add(work.rail["lo"], room))
                group = builder.add(builder.mul(rows[r], groups), builder.add(
                    builder.mul(tile, I64(lane.vectors)), I64(j)))
                builder.store(builder.zext(builder.or_(over, under), I8),
                              builder.gep(risk.data, [group]))
            return context.get_dummy_value()

        return types.void(a, x, off, first, c, block_sums, margin, risk, row_tile, tile,
                          rails), codegen

    return run


def replay_tile(lane: Lane):
    """`run(a, x, off, first, c, rows, groups, begin, flip, rails)`: step single vectors again.

    The vectors `begin` to `begin + REPLAY` of the lists `rows` and `groups` are stepped from their
    start values on. `flip` is added to every code of x.
    """

    @intrinsic
    def run(typing, a, x, off, first, c, rows, groups, begin, flip, rails):
        def codegen(context, builder, signature, arguments):
            a, x, off, first, c, rows, groups = _arrays(context, builder, signature, arguments, 7)
            begin, flip = arguments[7:9]
            work = _Work(lane, builder, x.data, off.data, _rails(builder, arguments[9]))
            lifted = work.v.splat(builder.trunc(flip, lane.elem))
            words, ld = _size(builder, a, 1), _size(builder, c, 1)
            where, places, at_rows = [], {}, {}
            for r in range(REPLAY):
                at = builder.add(begin, I64(r))
                row, group = (builder.load(builder.gep(p.data, [at])) for p in (rows, groups))
                row_tile = builder.sdiv(row, I64(ROWS))
                a_row, _ = _row_tile(builder, a, row_tile)
                a_row = builder.gep(a_row, [builder.srem(row, I64(ROWS))])
                where.append((a_row, work.columns(group)[0]))
                places[r, 0] = builder.add(builder.mul(row, ld), builder.mul(group, I64(GROUP)))
                at_rows[r] = row
            held = work.start(first.data, c.data, at_rows, places)
            with work.steps(words) as (_, each_word):
                with each_word() as w:
                    for r, (a_row, column) in enumerate(where):
                        b = builder.add(work.operand(w, column), lifted)
                        spread = work.spread(a_row, builder.mul(w, I64(ROWS)))
                        work.change(held[r, 0], lambda total, a=spread, b=b: work.add(total, a, b))
                for place in held.values():
                    work.change(place, work.fit)
            for at, place in places.items():
                work.finish(builder.load(held[at]), c.data, place)
            return context.get_dummy_value()

        return types.void(a, x, off, first, c, rows, groups, begin, flip, rails), codegen

    return run


class _Work:
    """The parts of the template for one lane."""

    def __init__(self, lane, builder, x, off, rails):
        self.lane, self.builder, self.x, self.off, self.rails = lane, builder, x, off, rails
        self.v = v = Vector(builder, lane.elem, lane.width)
        self.code = Vector(builder, lane.code, lane.width)  # as in memory
        self.stored = x.type.pointee
        if v.is_float:
            number = lambda x: builder.sitofp(x, DOUBLE)  # noqa: E731
        else:
            number = lambda x: x if v.elem == I64 else builder.trunc(x, v.elem)  # noqa: E731
        self.rail = {name: v.splat(number(getattr(rails, name)))
                     for name in ("lo", "hi", "c0", "c1", "c2", "drop")}

    def keep(self, value):
        """A place that holds the value, which LLVM makes a register."""
        place = cgutils.alloca_once(self.builder, value.type)
        self.builder.store(value, place)
        return place

    def start(self, first, c, rows, places):
        """Accumulators with their start values; rows[r] is the row of places[r, j]."""
        builder = self.builder
        held = {at: self.keep(self.element(self.code.splat(builder.load(builder.gep(
            first, [rows[at[0]]]))))) for at in places}
        with builder.if_then(builder.icmp_signed("!=", self.rails.held, I64(0)), likely=False):
            for at, place in places.items():
                found = self.code.load(c, place, self.lane.code)
                builder.store(self.element(found), held[at])
        return held

    def element(self, codes):
        """Vectors of the type in memory as those that are computed with."""
        return self.builder.sitofp(codes, self.v.type) if self.v.is_float else codes

    def finish(self, total, c, place):
        """Store the codes of a vector of accumulators."""
        builder = self.builder
        if self.v.is_float:
            total = builder.fptosi(total, self.code.type)
        if self.lane.step == "range":
            total = builder.add(total, self.whole("middle"))
        if self.lane.step in ("range", "native"):
            total = builder.ashr(total, self.whole("scale"))
        self.code.store(total, c, place)

    def whole(self, name):
        """What the kernel was told, in every element of the type in memory."""
        number = getattr(self.rails, name)
        return self.code.splat(number if self.lane.code == I64 else
                               self.builder.trunc(number, self.lane.code))

    def columns(self, tile):
        """Where in a row of x the vectors of a tile begin."""
        begin = self.builder.mul(tile, self.rails.pitch)
        return [self.builder.add(begin, I64(j * self.lane.width))
                for j in range(self.lane.vectors)]

    def change(self, place, function):
        self.builder.store(function(self.builder.load(place)), place)

    @contextmanager
    def steps(self, words):
        """Loop over the accumulator's steps: yields (step, a loop over the step's words)."""
        builder, lanes = self.builder, self.rails.lanes

        @contextmanager
        def each_word():
            with cgutils.for_range(builder, lanes) as loop:
                yield builder.add(builder.mul(step.index, lanes), loop.index)

        with cgutils.for_range(builder, builder.sdiv(words, lanes)) as step:
            yield step.index, each_word

    def spread(self, base, index):
        """base[index] in every element."""
        return self.v.splat(self.builder.load(self.builder.gep(base, [index])))

    def accumulate(self, held, a_row, w, columns):
        """Add the products of word w to all accumulators of a tile."""
        b = [self.operand(w, column) for column in columns]
        for r in range(ROWS):
            spread = self.spread(a_row, self.builder.add(self.builder.mul(w, I64(ROWS)), I64(r)))
            for j in range(self.lane.vectors):
                self.change(held[r, j], lambda total, a=spread, b=b[j]: self.add(total, a, b))

    def operand(self, w, column):
        """The vector of x that word w of a is multiplied with."""
        builder, lane = self.builder, self.lane
        rows = [builder.add(column, builder.load(builder.gep(self.off, [
            builder.add(builder.mul(w, I64(lane.word)), I64(i))]))) for i in range(lane.word)]
        if lane.word == 1:
            return self.v.load(self.x, rows[0], self.stored)
        raw = [Vector(builder, self.stored, lane.width).load(self.x, row, self.stored)
               for row in rows]
        # Row i's element l becomes part i of word l.
        while len(raw) > 1:
            half = len(raw) // 2
            raw = [self._interleave(raw[i], raw[i + half]) for i in range(half)]
        found = builder.bitcast(raw[0], self.v.type)
        if lane.product == "quads":  # unsigned: codes + 128
            found = builder.xor(found, self.v.constant(0x80808080))
        return found

    def _interleave(self, x, y):
        n = x.type.count
        order = [at for i in range(n) for at in (i, n + i)]
        return self.builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, 2 * n), order))

    def add(self, total, a, b):
        """total + the rounded product, or products."""
        lane, v = self.lane, self.v
        if lane.product == "quads":
            return v.vpdpbusd(total, b, a)
        if lane.product == "vpdpwssd" and lane.step == "native":
            return v.vpdpwssds(total, a, b)
        if lane.product == "pairs" or (lane.product == "vpdpwssd" and lane.rounds == "none"):
            return v.vpdpwssd(total, a, b)
        if lane.rounds == "none" and lane.step != "native":
            return v.multiply_add(a, b, total)
        add = v.add_saturating if lane.step == "native" else self.builder.add
        return add(total, self._rounded(a, b))

    def _rounded(self, a, b):
        lane, v, rail, builder = self.lane, self.v, self.rail, self.builder
        if lane.product == "vpdpwssd":  # adds c0 for nothing
            return builder.ashr(v.vpdpwssd(rail["c0"], a, b), rail["drop"])
        product = builder.mul(a, b)
        if lane.rounds == "none":
            return product
        raised = builder.add(product, rail["c0"])
        if lane.rounds == "full":
            zero = v.constant(0)
            floor_bit = builder.shl(v.constant(1), rail["drop"])
            negative = builder.icmp_signed("<", product, zero)
            odd = builder.icmp_signed("!=", builder.and_(product, floor_bit), zero)
            raised = builder.add(raised, builder.select(negative, rail["c1"], zero))
            raised = builder.add(raised, builder.select(odd, rail["c2"], zero))
        return builder.ashr(raised, rail["drop"])

    def fit(self, total):
        if self.lane.step == "range":
            return self.v.clamp(total, self.rail["hi"])
        if self.lane.step != "clamp":
            return total
        return self.v.greatest(self.v.least(total, self.rail["hi"]), self.rail["lo"])


def _arrays(context, builder, signature, arguments, count):
    return [context.make_array(kind)(context, builder, value) for kind, value in
            zip(signature.args[:count], arguments[:count], strict=True)]


def _rails(builder, value):
    return Rails(*cgutils.unpack_tuple(builder, value))


def _size(builder, array, axis):
    return cgutils.unpack_tuple(builder, array.shape)[axis]


def _row_tile(builder, packed, row_tile):
    """(where the tile begins, its words) of an array (tiles, words, ROWS)."""
    words = _size(builder, packed, 1)
    first = builder.mul(builder.mul(row_tile, words), I64(ROWS))
    return builder.gep(packed.data, [first]), words


def _rows(builder, row_tile):
    """The rows of a tile."""
    top = builder.mul(row_tile, I64(ROWS))
    return [builder.add(top, I64(r)) for r in range(ROWS)]


def _places(builder, lane, c, row_tile, tile):
    """The index in c of each vector of the tile."""
    ld, q = _size(builder, c, 1), builder.mul(tile, I64(lane.columns))
    return {(r, j): builder.add(builder.mul(row, ld), builder.add(q, I64(j * lane.width)))
            for r, row in enumerate(_rows(builder, row_tile)) for j in range(lane.vectors)}
