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

from numba import types
from numba.extending import intrinsic

from emu.engine.kernels.parts import (
    ROWS,
    Lane,
    Work,
    arrays_of,
    places_of,
    rails_of,
    rows_of,
    size_of,
    words_of,
)
from emu.engine.kernels.vector import I8, I64

REPLAY = 8  # vectors of outputs replayed together, so that their additions overlap
GROUP = 16  # outputs in a vector of the tracked kernel


def tile(lane: Lane):
    """The intrinsic `run(a, x, off, first, c, row_tile, tile, rails)`: all k of one tile of c.

    a (tiles, words, ROWS), x flat, off (words * lane.word,), first (rows,), c (rows, columns),
    which receives the codes. The number of words is a multiple of `rails.lanes`.
    """

    @intrinsic
    def run(typing, a, x, off, first, c, row_tile, tile, rails):
        def codegen(context, builder, signature, arguments):
            a, x, off, first, c = arrays_of(context, builder, signature, arguments, 5)
            row_tile, tile = arguments[5:7]
            work = Work(lane, builder, x.data, off.data, rails_of(builder, arguments[7]))
            a_row, words = words_of(builder, a, row_tile)
            places = places_of(builder, lane, c, row_tile, tile)
            held = work.start(first.data, c.data, rows_of(builder, row_tile), places)
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
            a, x, off, first, c, sums, margin, risk = arrays_of(context, builder, signature,
                                                              arguments, 8)
            row_tile, tile = arguments[8:10]
            work = Work(lane, builder, x.data, off.data, rails_of(builder, arguments[10]))
            v, rows = work.v, rows_of(builder, row_tile)
            a_row, words = words_of(builder, a, row_tile)
            sums_row, _ = words_of(builder, sums, row_tile)
            places = places_of(builder, lane, c, row_tile, tile)
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
            groups = builder.sdiv(size_of(builder, c, 1), I64(GROUP))
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
            a, x, off, first, c, rows, groups = arrays_of(context, builder, signature, arguments, 7)
            begin, flip = arguments[7:9]
            work = Work(lane, builder, x.data, off.data, rails_of(builder, arguments[9]))
            lifted = work.v.splat(builder.trunc(flip, lane.elem))
            words, ld = size_of(builder, a, 1), size_of(builder, c, 1)
            where, places, at_rows = [], {}, {}
            for r in range(REPLAY):
                at = builder.add(begin, I64(r))
                row, group = (builder.load(builder.gep(p.data, [at])) for p in (rows, groups))
                row_tile = builder.sdiv(row, I64(ROWS))
                a_row, _ = words_of(builder, a, row_tile)
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
