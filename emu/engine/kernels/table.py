"""Lookups on int64 codes, and the powers of softmax over the rows of a matrix."""

from numba import prange

from emu.engine.kernels.jit import kernel


@kernel(parallel=True)
def lookup_array(x, entries, least, out):
    """out = entries[x - least], flat."""
    for i in prange(x.size):
        out[i] = entries[x[i] - least]


@kernel(parallel=True)
def softmax_powers(x, entries, powers, total):
    """Each row (N, C): the entries of its differences to its greatest, and their sum (N, 1)."""
    for n in prange(x.shape[0]):
        most = x[n, 0]
        for c in range(1, x.shape[1]):
            most = max(most, x[n, c])
        total[n, 0] = 0
        for c in range(x.shape[1]):
            powers[n, c] = entries[most - x[n, c]]
            total[n, 0] += powers[n, c]
