"""Pooling and ReLU on codes, forward and backward. Planes are the last two axes."""

import numpy as np

from emu.engine import kernels
from emu.engine.arrays import as_codes, narrowed, pair
from emu.engine.casts import Casted
from emu.engine.conv import Geometry
from emu.number import Cast, Rounding


def relu(x) -> np.ndarray:
    """max(x, 0)."""
    return np.maximum(np.asarray(x), 0)


def relu_grad(error, x) -> np.ndarray:
    """The error where x > 0, else 0."""
    return np.where(np.asarray(x) > 0, error, 0)


def max_pool2d(x, kernel, stride=None, padding=0) -> tuple[np.ndarray, np.ndarray]:
    """x (..., H, W) -> (codes, index) (..., OH, OW); index is the flat pixel of the maximum.

    The first maximum in row-major order wins, padding never does.
    """
    planes, kernel, stride, padding, size = _windows(x, kernel, stride, padding)
    out = np.empty((planes.shape[0], *size), np.int64)
    index = np.empty_like(out)
    kernels.max_pool(planes, kernel, stride, padding, out, index)
    shape = (*np.shape(x)[:-2], *size)
    return out.reshape(shape).astype(np.asarray(x).dtype), index.reshape(shape)


def max_pool2d_grad(error, index, size) -> np.ndarray:
    """Route each error to its maximum: int64 codes (..., *size); overlaps add exactly."""
    error = as_codes(error, "error")
    lead = int(np.prod(error.shape[:-2]))
    out = np.zeros((lead, size[0] * size[1]), np.int64)
    kernels.scatter(error.reshape(lead, *error.shape[-2:]),
                    np.ascontiguousarray(index).reshape(lead, *error.shape[-2:]), out)
    return out.reshape(*error.shape[:-2], *size)


def avg_pool2d(x, frac: int, to: Cast, kernel, stride=None, padding=0,
               count_include_pad: bool = True) -> Casted:
    """x (..., H, W) with `frac` -> the sum under each window over its area, one rounding.

    Without `count_include_pad` the divisor is the number of real pixels.
    """
    planes, kernel, stride, padding, size = _windows(x, kernel, stride, padding)
    out, count = np.empty((planes.shape[0], *size), np.int64), np.empty(size, np.int64)
    kernels.window_sum(planes, kernel, stride, padding, out, count)
    divisor = np.full(size, kernel[0] * kernel[1]) if count_include_pad else count
    return divide(out.reshape(*np.shape(x)[:-2], *size), divisor, frac, to)


def avg_pool2d_grad(error, frac: int, to: Cast, size, kernel, stride=None, padding=0,
                    count_include_pad: bool = True) -> tuple[np.ndarray, Casted]:
    """Each window's error divided in the cast `to`, then added exactly to its real pixels.

    Returns int64 codes (..., *size) at `to`'s frac, and the cast of the quotients.
    """
    error = as_codes(error, "error")
    lead = int(np.prod(error.shape[:-2]))
    blank = np.zeros((lead, *size), np.int64)
    planes, kernel, stride, padding, want = _windows(blank, kernel, stride, padding)
    if want != error.shape[-2:]:
        raise ValueError(f"error {error.shape}: windows on {tuple(size)} give {want}")
    divisor = np.full(want, kernel[0] * kernel[1])
    if not count_include_pad:
        kernels.window_sum(planes[:1], kernel, stride, padding, np.empty((1, *want), np.int64),
                           divisor)
    shares = divide(error, divisor, frac, to)
    kernels.window_spread(shares.codes.reshape(lead, *want).astype(np.int64), kernel, stride,
                          padding, blank)
    return blank.reshape(*error.shape[:-2], *size), shares


def divide(x, divisor: np.ndarray, frac: int, to: Cast) -> Casted:
    """x (..., H, W) with `frac`, over positive divisors (H, W), as codes of `to`: one rounding."""
    x = as_codes(x, "codes")
    if to.rounding == Rounding.STOCHASTIC:
        raise ValueError(f"division in {to}: stochastic rounding needs a power of two to divide "
                         "by; use a deterministic rounding")
    n = frac - to.format.frac
    largest = max(int(x.max(initial=0)), -int(x.min(initial=0))).bit_length()
    if largest - min(n, 0) > 60:
        raise ValueError(f"division of {largest}-bit codes with frac {frac} in {to}: aligning "
                         "them needs more than 60 bits; use a smaller frac")
    # Beyond 61 bits of divisor a larger n only makes a quotient below 1/2 smaller still.
    n = min(n, 61 - int(divisor.max(initial=1)).bit_length())
    out, inside = np.empty_like(x), np.empty(x.shape, np.bool_)
    step = kernels.stage(n + to.format.frac, to)
    outside = kernels.divide_array(x.reshape(-1), np.broadcast_to(divisor, x.shape).reshape(-1),
                                   step, out.reshape(-1), inside.reshape(-1))
    return Casted(narrowed(out, to.format), inside, int(outside))


def _windows(x, kernel, stride, padding):
    x = as_codes(x, "x")
    if x.ndim < 2:
        raise ValueError(f"x: shape {x.shape} has no planes; needs at least 2 axes")
    kernel = pair(kernel, "kernel", 1)
    geometry = Geometry(kernel if stride is None else stride, padding)
    if any(2 * p > k for p, k in zip(geometry.padding, kernel, strict=True)):
        raise ValueError(f"padding {geometry.padding}: at most half the kernel {kernel}, so that "
                         "every window has a real pixel")
    planes = x.reshape(int(np.prod(x.shape[:-2])), *x.shape[-2:])
    size = geometry.out_size(x.shape[-2:], kernel)
    return planes, kernel, geometry.stride, geometry.padding, size
