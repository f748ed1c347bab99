"""Affine requantisation of whole arrays."""

import numpy as np

from emu.affine import HIGH, Rescale
from emu.engine.arrays import as_codes, check_kind, narrowed
from emu.engine.kernels.affine import rescale_rows
from emu.engine.kernels.casts import stage
from emu.engine.kernels.jit import CAST, launch


def rescale(codes, spec: Rescale, axis: int = 1) -> np.ndarray:
    """Accumulators as codes of `spec.to`, in the smallest sufficient dtype.

    Several multipliers are those of the channels along `axis`: 1 for the results of `matmul` and
    `conv2d`. Raises ValueError where their number is another, and where a product of
    (code - input_zp) and a multiplier needs more than 62 magnitude bits.

    >>> spec = Rescale.parse("{multiplier: 3 1, shift: 2, to: s8 ties_pos sat, output_zp: -5}")
    >>> rescale(np.array([[6, 6], [-400, 1000]]), spec)
    array([[   0,   -3],
           [-128,  127]], dtype=int8)
    """
    check_kind(spec, "spec", Rescale)
    x = as_codes(codes, "codes")
    if x.size:
        reach = max(int(x.max()) - spec.input_zp, spec.input_zp - int(x.min()))
        if reach * max(spec.multiplier) >> 62:
            raise ValueError(f"codes up to {reach} from input_zp {spec.input_zp}, times multiplier "
                             f"{max(spec.multiplier)}: needs more than 62 bits; use an accumulator "
                             "of 32 bits, or multipliers of 15 bits for one of 48")
    rows, inner = x.size, 1
    if len(spec.multiplier) > 1:
        if not -x.ndim <= axis < x.ndim or x.shape[axis] != len(spec.multiplier):
            raise ValueError(f"codes {x.shape}: {len(spec.multiplier)} multipliers need as many "
                             f"channels along axis {axis}; give the axis of the channels")
        inner = int(np.prod(x.shape[axis % x.ndim + 1:]))
        rows = x.size // inner if inner else 0
    out = np.empty_like(x)
    launch(rescale_rows, CAST * x.size, x.reshape(rows, inner),
           np.array(spec.multiplier), np.array(spec.shift), HIGH if spec.double else 0,
           (spec.input_zp, spec.output_zp), stage(0, spec.to), spec.clamp,
           out.reshape(rows, inner))
    return narrowed(out, spec.to.format)
