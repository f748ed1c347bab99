"""The residual adder: two tensors with their own binary points, one cast."""

import numpy as np

from emu.engine.arrays import as_codes, largest
from emu.engine.casts import Casted, cast_full
from emu.number import Cast


def add(a, a_frac: int, b, b_frac: int, to: Cast, rand=None) -> Casted:
    """a * 2^-a_frac + b * 2^-b_frac, exactly, then the cast `to`: what `cast_full` gives.

    The shapes broadcast as in numpy; `rand` has the shape of the result. The gradient of both
    operands is the cast's: 1 where `inside`, or everywhere if `to` wraps, summed over what was
    broadcast. Raises ValueError where the aligned sum could leave int64.
    """
    return cast_full(*aligned_sum(a, a_frac, b, b_frac), to, rand)


def aligned_sum(a, a_frac: int, b, b_frac: int) -> tuple[np.ndarray, int]:
    """a * 2^-a_frac + b * 2^-b_frac as (int32 or int64 codes, frac), exactly; shapes broadcast.

    Raises ValueError where the aligned sum could leave int64.
    """
    a, b = as_codes(a, "a", dtype=None), as_codes(b, "b", dtype=None)
    frac = max(a_frac, b_frac)
    reach = sum(largest(x) << (frac - x_frac) for x, x_frac in ((a, a_frac), (b, b_frac)))
    if reach >> 63:
        raise ValueError(f"a up to {largest(a)} with frac {a_frac} + b up to {largest(b)} with "
                         f"frac {b_frac}: aligned, their sum can reach {reach} and leaves int64; "
                         "cast one of them to a frac nearer to the other's")
    dtype, bits = (np.int64, 63) if reach >> 31 else (np.int32, 31)
    a, b = (x.astype(dtype, copy=False) for x in (a, b))
    # Only zeros may be aligned by that many bits and more.
    return np.asarray((a << min(frac - a_frac, bits)) + (b << min(frac - b_frac, bits))), frac
