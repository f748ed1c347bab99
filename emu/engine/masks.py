"""Where gradients pass: a ReLU of floats, and masks on codes."""

import numpy as np

from emu.engine.arrays import flattened
from emu.engine.kernels import masks as kernels
from emu.engine.kernels.jit import launch


def masked(codes: np.ndarray, passes: np.ndarray) -> np.ndarray:
    """Codes where the mask is true, 0 elsewhere, in their dtype.

    Raises ValueError for a mask that does not broadcast to their shape.

    >>> masked(np.array([3, -4, 5]), np.array([True, False, True]))
    array([3, 0, 5])
    """
    if passes.shape != codes.shape:
        try:
            passes = np.broadcast_to(passes, codes.shape)
        except ValueError:
            raise ValueError(f"mask {passes.shape} for codes {codes.shape}: give one for each "
                             "code, or one that broadcasts to them") from None
    out = np.empty(codes.shape, codes.dtype)
    launch(kernels.masked, 2 * codes.size, flattened(codes, codes.dtype),
           flattened(passes, np.bool_), out.ravel())
    return out


def rectify(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Floats where they are positive, else 0, and the mask of where they are.

    >>> rectify(np.array([1.5, -2.0]))
    (array([1.5, 0. ]), array([ True, False]))
    """
    out, passes = np.empty(x.shape, x.dtype), np.empty(x.shape, np.bool_)
    launch(kernels.rectify, 2 * x.size, flattened(x, x.dtype), out.ravel(), passes.ravel())
    return out, passes
