"""Where gradients pass: masks are applied, and found for what is positive, in one pass."""

from numba import prange

from emu.engine.kernels.jit import kernel
from emu.engine.kernels.lanes import CHUNK


@kernel
def masked_chunk(codes, passes, out):
    """`masked` on one thread."""
    for i in range(codes.size):
        out[i] = codes[i] if passes[i] else 0


@kernel(parallel=True)
def masked(codes, passes, out):
    """Flat codes where `passes`, 0 elsewhere."""
    for k in prange((codes.size + CHUNK - 1) // CHUNK):
        a, b = k * CHUNK, min(codes.size, (k + 1) * CHUNK)
        masked_chunk(codes[a:b], passes[a:b], out[a:b])


@kernel
def rectify_chunk(x, out, passes):
    """`rectify` on one thread."""
    for i in range(x.size):
        passes[i] = x[i] > 0
        out[i] = x[i] if not x[i] <= 0 else 0  # what is no number stays so


@kernel(parallel=True)
def rectify(x, out, passes):
    """Flat floats where they are positive, else 0; `passes` says where."""
    for k in prange((x.size + CHUNK - 1) // CHUNK):
        a, b = k * CHUNK, min(x.size, (k + 1) * CHUNK)
        rectify_chunk(x[a:b], out[a:b], passes[a:b])
