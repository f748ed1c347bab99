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
            source = x[i, c, j * stride[0] + shift[0]]
            if stride[1] == 1:
                for z in range(first[1], last[1] + 1):
                    flat[row + z] = source[z + shift[1]]
            else:
                for z in range(first[1], last[1] + 1):
                    flat[row + z] = source[z * stride[1] + shift[1]]
