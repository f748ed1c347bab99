"""Moving images into and out of flat planes."""

from numba import prange

from emu.engine.kernels.jit import kernel


@kernel(parallel=True)
def lay(x, flat, pitch, stride, shift, first, last):
    """x (N, C, H, W) into planes (C, N, *pitch): index j of an axis holds x[j * stride + shift]."""
    n, channels = x.shape[0], x.shape[1]
    image = pitch[0] * pitch[1]
    for t in prange(channels * n):
        c, i = t // n, t % n
        for j in range(first[0], last[0] + 1):
            row = (c * n + i) * image + j * pitch[1]
            to = flat[row + first[1]:row + last[1] + 1]
            source = x[i, c, j * stride[0] + shift[0]][first[1] * stride[1] + shift[1]:]
            if stride[1] == 1:
                for z in range(to.size):
                    to[z] = source[z]
            else:
                for z in range(to.size):
                    to[z] = source[z * stride[1]]


@kernel(parallel=True)
def lay_pixels(x, images, before):
    """x (N, C, H, W) into images (N, H', W', C), `before` places from the top and the left."""
    height = min(x.shape[2], images.shape[1] - before[0])
    width = min(x.shape[3], images.shape[2] - before[1])
    for t in prange(x.shape[0] * height):
        n, y = t // height, t % height
        row = images[n, y + before[0]]
        for c in range(x.shape[1]):
            source = x[n, c, y]
            for z in range(width):
                row[z + before[1], c] = source[z]


@kernel(parallel=True)
def lift(c, pitch, up, first, start, step, result):
    """Planes c (O, N * pitch) to result (N, first + O, start + step * y, start + step * x).

    Every code is shifted up and back, which keeps its low bits.
    """
    n = result.shape[0]
    if up:
        up += 64 - 8 * c.itemsize  # shifts are done in int64
    height = (result.shape[2] - start[0] + step[0] - 1) // step[0]
    width = (result.shape[3] - start[1] + step[1] - 1) // step[1]
    for t in prange(c.shape[0] * n):
        o, i = t // n, t % n
        for y in range(height):
            place = (i * pitch[0] + y) * pitch[1]
            source = c[o, place:place + width]
            row = result[i, first + o, start[0] + y * step[0]]
            if step[1] == 1:
                for z in range(source.size):
                    row[z] = (source[z] << up) >> up
            else:
                for z in range(source.size):
                    row[start[1] + z * step[1]] = (source[z] << up) >> up
