"""Moving images into and out of flat planes."""

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from emu.engine.kernels.jit import kernel
from emu.engine.kernels.vector import I32, I64


def mover(stride: int, back: bool):
    """The intrinsic `move(source, at, to, start, count, flip, up)`, for rows too short for a loop
    that LLVM would turn into vectors: it checks more than it moves.

    to[start + z] = (source[at + stride * z] - flip) << up, z < count, flat places in contiguous
    arrays of signed integers; or if `back` source[...] << up >> up, which keeps the low bits.
    stride is 1 or 2.
    """

    @intrinsic
    def move(typing, source, at, to, start, count, flip, up):
        def codegen(context, builder, signature, arguments):
            source, to = (context.make_array(signature.args[i])(context, builder, arguments[i]).data
                          for i in (0, 2))
            at, start, count, flip, up = (arguments[i] for i in (1, 3, 4, 5, 6))

            def vector(pointer, place, n):
                kind = ir.VectorType(pointer.type.pointee, n).as_pointer()
                return builder.bitcast(builder.gep(pointer, [place]), kind)

            def splat(number, kind):
                first = ir.Constant(kind, ir.Undefined)
                elem = kind.element
                code = number if elem == I64 else builder.trunc(number, elem)
                first = builder.insert_element(first, code, I32(0))
                return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(
                    ir.VectorType(I32, kind.count), [0] * kind.count))

            def load(z, n):
                place = builder.add(at, builder.mul(z, I64(stride)))
                x = builder.load(vector(source, place, n), align=1)
                if stride == 1 or n == 1:
                    return x
                # The last of n pairs has a second element only where the array goes on.
                more = builder.load(vector(source, builder.add(place, I64(n - 1)), n), align=1)
                order = [*range(0, n, 2), *range(n + 1, 2 * n, 2)]
                return builder.shuffle_vector(x, more, ir.Constant(ir.VectorType(I32, n), order))

            def step(z, n):
                x = load(z, n)
                kind = ir.VectorType(to.type.pointee, n)
                if back:
                    by = splat(up, x.type)
                    x = builder.ashr(builder.shl(x, by), by)
                if kind.element.width != x.type.element.width:
                    wider = kind.element.width > x.type.element.width
                    x = (builder.sext if wider else builder.trunc)(x, kind)
                if not back:
                    x = builder.shl(builder.sub(x, splat(flip, kind)), splat(up, kind))
                builder.store(x, vector(to, builder.add(start, z), n), align=1)

            done = I64(0)
            for n in (16, 8, 1):
                end = builder.and_(count, I64(-n))
                with cgutils.for_range_slice(builder, done, end, I64(n), I64) as (z, _):
                    step(z, n)
                done = end
            return context.get_dummy_value()

        whole = types.int64
        return types.void(source, whole, to, whole, whole, whole, whole), codegen

    return move


_copy, _thin, _lift = mover(1, False), mover(2, False), mover(1, True)


@kernel(parallel=True)
def lay(x, flat, row, stride, shift, first, last, flip, up):
    """(x (N, C, H, W) - flip) << up into planes (C, height, N, row): index j of an axis holds
    x[j * stride + shift]."""
    n, channels, height, width = x.shape
    plane = flat.size // channels
    count = max(last[1] + 1 - first[1], 0)
    for t in prange(channels * n):
        c, i = t // n, t % n
        for j in range(first[0], last[0] + 1):
            to = c * plane + (j * n + i) * row + first[1]
            at = (((i * channels + c) * height + j * stride[0] + shift[0]) * width
                  + first[1] * stride[1] + shift[1])
            if stride[1] == 1:
                _copy(x, at, flat, to, count, flip, up)
            elif stride[1] == 2:
                _thin(x, at, flat, to, count, flip, up)
            else:
                source = x[i, c, j * stride[0] + shift[0]][first[1] * stride[1] + shift[1]:]
                for z in range(count):
                    flat[to + z] = (np.int64(source[z * stride[1]]) - flip) << up


@kernel(parallel=True)
def lay_pixels(x, images, before, flip, up):
    """(x (N, C, H, W) - flip) << up into images (N, H', W', C), `before` places from the top and
    the left."""
    height = min(x.shape[2], images.shape[1] - before[0])
    width = min(x.shape[3], images.shape[2] - before[1])
    for t in prange(x.shape[0] * height):
        n, y = t // height, t % height
        row = images[n, y + before[0]]
        for c in range(x.shape[1]):
            source = x[n, c, y]
            for z in range(width):
                row[z + before[1], c] = (np.int64(source[z]) - flip) << up


@kernel(parallel=True)
def lift(c, row, up, first, start, step, result):
    """Planes c (O, height * N * row) to result (N, first + O, start + step * y, start + step * x).

    Every code is shifted up and back, which keeps its low bits.
    """
    n, channels, rows, columns = result.shape
    shift = c.dtype.type(up)
    height = (rows - start[0] + step[0] - 1) // step[0]
    width = (columns - start[1] + step[1] - 1) // step[1]
    for t in prange(c.shape[0] * n):
        o, i = t // n, t % n
        for y in range(height):
            place = (y * n + i) * row
            to = start[0] + y * step[0]
            if step[1] == 1:
                _lift(c, o * c.shape[1] + place, result,
                      ((i * channels + first + o) * rows + to) * columns, width, 0, up)
            else:
                source, line = c[o, place:place + width], result[i, first + o, to]
                for z in range(source.size):
                    line[start[1] + z * step[1]] = np.right_shift(np.left_shift(source[z], shift),
                                                                  shift)
