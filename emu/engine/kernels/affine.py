"""Affine requantisation of rows of accumulators."""

import numpy as np
from numba import prange

from emu.engine.kernels.casts import fit, round_shift
from emu.engine.kernels.jit import kernel


@kernel(parallel=True)
def rescale_rows(x, multiplier, shift, first, zero_points, s, clamp, out):
    """x (rows, inner) with the multiplier of row modulo channels; `first` bits go by TIES_POS.

    Products stay below 2^62, so the half that is added to them stays inside int64.
    """
    for row in prange(x.shape[0]):
        channel = row % multiplier.size
        high = min(shift[channel], first)
        rest = shift[channel] - high
        half = np.int64(1) << high >> 1
        for i in range(x.shape[1]):
            code = ((x[row, i] - zero_points[0]) * multiplier[channel] + half) >> high
            if rest:
                code = round_shift(code, rest, s, np.int64(0))
            code = fit(code + zero_points[1], s)
            out[row, i] = min(max(code, clamp[0]), clamp[1])
