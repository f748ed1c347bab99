"""The parts of the template that every kernel of the MAC is written from: see `tiles.py`."""

from contextlib import contextmanager
from typing import NamedTuple

from llvmlite import ir
from numba.core import cgutils

from emu.engine.kernels.vector import DOUBLE, I32, I64, Vector, vector_bits

ROWS = 8 if vector_bits() == 512 else 4


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
    """One kind of kernel: element type and the parts of the template."""

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


class Work:
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


def arrays_of(context, builder, signature, arguments, count):
    return [context.make_array(kind)(context, builder, value) for kind, value in
            zip(signature.args[:count], arguments[:count], strict=True)]


def rails_of(builder, value):
    return Rails(*cgutils.unpack_tuple(builder, value))


def size_of(builder, array, axis):
    return cgutils.unpack_tuple(builder, array.shape)[axis]


def words_of(builder, packed, row_tile):
    """(where the tile begins, its words) of an array (tiles, words, ROWS)."""
    words = size_of(builder, packed, 1)
    first = builder.mul(builder.mul(row_tile, words), I64(ROWS))
    return builder.gep(packed.data, [first]), words


def rows_of(builder, row_tile):
    """The rows of a tile."""
    top = builder.mul(row_tile, I64(ROWS))
    return [builder.add(top, I64(r)) for r in range(ROWS)]


def places_of(builder, lane, c, row_tile, tile):
    """The index in c of each vector of the tile."""
    ld, q = size_of(builder, c, 1), builder.mul(tile, I64(lane.columns))
    return {(r, j): builder.add(builder.mul(row, ld), builder.add(q, I64(j * lane.width)))
            for r, row in enumerate(rows_of(builder, row_tile)) for j in range(lane.vectors)}
