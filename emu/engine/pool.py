"""Pooling and ReLU on codes, forward and backward. Planes are the last two axes."""

import numpy as np

from emu.engine.arrays import as_codes, check_width, largest, narrowed, pair
from emu.engine.casts import Casted
from emu.engine.conv import Geometry
from emu.engine.kernels.casts import divide_array, stage
from emu.engine.kernels.jit import CAST, launch
from emu.engine.kernels.pool import max_pool, scatter, spread_windows, window_sum
from emu.engine.monitor import watching
from emu.engine.watched import watch_cast
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
    launch(max_pool, out.size * kernel[0] * kernel[1], planes, kernel, stride,
                   padding, out, index)
    shape = (*np.shape(x)[:-2], *size)
    return out.reshape(shape).astype(np.asarray(x).dtype), index.reshape(shape)


def max_pool2d_grad(error, index, size) -> np.ndarray:
    """Route each error to its maximum: int64 codes (..., *size); overlaps add exactly."""
    error, index = as_codes(error, "error"), as_codes(index, "index")
    _check_sum(error, error.shape[-2] * error.shape[-1])
    if index.size and not 0 <= index.min() <= index.max() < size[0] * size[1]:
        raise ValueError(f"index from {index.min()} to {index.max()}: a plane of {tuple(size)} "
                         f"has pixels 0 to {size[0] * size[1] - 1}")
    lead = int(np.prod(error.shape[:-2]))
    out = np.zeros((lead, size[0] * size[1]), np.int64)
    launch(scatter, error.size, error.reshape(lead, *error.shape[-2:]),
                   index.reshape(lead, *error.shape[-2:]), out)
    return out.reshape(*error.shape[:-2], *size)


def window_sums(x, kernel, stride=None, padding=0, count_include_pad: bool = True
                ) -> tuple[np.ndarray, np.ndarray]:
    """x (..., H, W) -> int64 sums (..., OH, OW) and the divisors (OH, OW) of their average.

    The divisor is the window's area, or without `count_include_pad` its number of real pixels.
    """
    planes, kernel, stride, padding, size = _windows(x, kernel, stride, padding)
    _check_sum(planes, kernel[0] * kernel[1])
    out, count = np.empty((planes.shape[0], *size), np.int64), np.empty(size, np.int64)
    launch(window_sum, out.size * kernel[0] * kernel[1], planes, kernel, stride,
                   padding, out, count)
    divisor = np.full(size, kernel[0] * kernel[1]) if count_include_pad else count
    return out.reshape(*np.shape(x)[:-2], *size), divisor


def window_spread(shares, size, kernel, stride=None, padding=0) -> np.ndarray:
    """Add each share (..., OH, OW) to all real pixels under its window: int64 (..., *size)."""
    shares = as_codes(shares, "shares")
    blank = np.zeros((*shares.shape[:-2], *size), np.int64)
    planes, kernel, stride, padding, want = _windows(blank, kernel, stride, padding)
    if want != shares.shape[-2:]:
        raise ValueError(f"shares {shares.shape}: windows on {tuple(size)} give {want}")
    _check_sum(shares, kernel[0] * kernel[1])
    launch(spread_windows, shares.size * kernel[0] * kernel[1],
                   shares.reshape(len(planes), *want), kernel, stride, padding, planes)
    return planes.reshape(blank.shape)


def avg_pool2d(x, frac: int, to: Cast, kernel, stride=None, padding=0,
               count_include_pad: bool = True) -> np.ndarray:
    """x (..., H, W) with `frac` -> the sum under each window over its divisor, one rounding."""
    sums, divisor = window_sums(x, kernel, stride, padding, count_include_pad)
    return divide(sums, divisor, frac, to).codes


def avg_pool2d_grad(error, frac: int, to: Cast, size, kernel, stride=None, padding=0,
                    count_include_pad: bool = True) -> np.ndarray:
    """Each window's error divided in the cast `to`, then added exactly to its real pixels.

    error (..., OH, OW) with `frac` -> int64 codes (..., *size) at `to`'s frac.
    """
    _, divisor = window_sums(np.zeros((1, *size), np.int64), kernel, stride, padding,
                             count_include_pad)
    if divisor.shape != np.shape(error)[-2:]:
        raise ValueError(f"error {np.shape(error)}: windows on {tuple(size)} give {divisor.shape}")
    return window_spread(divide(error, divisor, frac, to).codes, size, kernel, stride, padding)


def divide(x, divisor: np.ndarray, frac: int, to: Cast) -> Casted:
    """x (..., H, W) with `frac`, over positive divisors (H, W), as codes of `to`: one rounding."""
    x, divisor = as_codes(x, "codes"), as_codes(divisor, "divisor")
    if divisor.size and divisor.min() < 1:
        raise ValueError(f"divisor {divisor.min()}: needs whole numbers of at least 1")
    if to.rounding == Rounding.STOCHASTIC:
        raise ValueError(f"division in {to}: stochastic rounding needs a power of two to divide "
                         "by; use a deterministic rounding")
    check_width(to.format)
    n, bits = frac - to.format.frac, largest(x).bit_length()
    if bits - min(n, 0) > 60:
        raise ValueError(f"division of {bits}-bit codes with frac {frac} in {to}: aligning "
                         "them needs more than 60 bits; use a smaller frac")
    # A divisor beyond int64 gives a quotient below 1/2, and so does the largest int64.
    zeros, most = min(max(n, 0), 63), np.iinfo(np.int64).max
    aligned = np.where(divisor > most >> zeros, most, divisor << zeros)
    out, inside = np.empty_like(x), np.empty(x.shape, np.bool_)
    outside = launch(divide_array, CAST * x.size, x.reshape(-1),
                             np.broadcast_to(aligned, x.shape).reshape(-1),
                             stage(frac, to), out.reshape(-1), inside.reshape(-1))
    if (scope := watching()) is not None:
        watch_cast(scope, "divide", x, frac, to, out, inside, np.broadcast_to(divisor, x.shape))
    return Casted(narrowed(out, to.format), inside, int(outside))


def _check_sum(codes: np.ndarray, terms: int) -> None:
    """Raise ValueError if the sum of so many of these codes could leave int64."""
    if largest(codes) * terms >> 63:
        raise ValueError(f"codes up to {largest(codes)}: the sum of {terms} of them could leave "
                         "int64; use narrower codes")


def _windows(x, kernel, stride, padding):
    x = as_codes(x, "x")
    if x.ndim < 2 or 0 in x.shape[-2:]:
        raise ValueError(f"x: shape {x.shape} has no planes; needs at least 2 axes, and pixels")
    kernel = pair(kernel, "kernel", 1)
    geometry = Geometry(kernel if stride is None else stride, padding)
    if any(2 * p > k for p, k in zip(geometry.padding, kernel, strict=True)):
        raise ValueError(f"padding {geometry.padding}: at most half the kernel {kernel}, so that "
                         "every window has a real pixel")
    planes = x.reshape(int(np.prod(x.shape[:-2])), *x.shape[-2:])
    size = geometry.out_size(x.shape[-2:], kernel)
    return planes, kernel, geometry.stride, geometry.padding, size
