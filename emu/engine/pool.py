"""Pooling and ReLU on codes, forward and backward.

Planes are the last two axes; a 1-d pool is one with a unit axis: x (..., 1, W), kernel (1, k).
"""

from typing import NamedTuple

import numpy as np

from emu.engine.arrays import as_codes, check_width, largest, narrowed, pair
from emu.engine.casts import Casted, cast_full
from emu.engine.conv import Geometry
from emu.engine.exact import divide_int
from emu.engine.kernels.casts import divide_array, stage
from emu.engine.kernels.jit import CAST, launch
from emu.engine.kernels.pool import max_pool, scatter, spread_windows, window_sum
from emu.engine.monitor import watching
from emu.engine.watched import watch_cast
from emu.number import Cast, Rounding


class Windows(NamedTuple):
    """The rows (OH, 2) and columns (OW, 2), first and behind the last, under each output.

    Of a dilated window only every `steps`-th of them.
    """

    ys: np.ndarray
    xs: np.ndarray
    steps: tuple[int, int] = (1, 1)

    @property
    def size(self) -> tuple[int, int]:
        """(OH, OW)."""
        return len(self.ys), len(self.xs)

    @property
    def count(self) -> np.ndarray:
        """The pixels between the ends of each output's windows (OH, OW)."""
        return np.outer(*(side[:, 1] - side[:, 0] for side in (self.ys, self.xs)))


def _sliding(size: tuple, kernel, stride, padding, dilation=1, ceil=False
             ) -> tuple[Windows, np.ndarray]:
    """The windows of one kernel, cut to the plane, and their areas (OH, OW), padding included.

    With `ceil` pixels left over at the end of an axis get a window too, if it begins on one of
    them or in the padding before them.
    """
    kernel = pair(kernel, "kernel", 1)
    geometry = Geometry(kernel if stride is None else stride, padding, dilation)
    if any(2 * p > k for p, k in zip(geometry.padding, kernel, strict=True)):
        raise ValueError(f"padding {geometry.padding}: at most half the kernel {kernel}, so that "
                         "every window has a real pixel")
    sides, lengths = [], []
    for n, m, k, s, p, d in zip(size, geometry.out_size(size, kernel, ceil), kernel,
                                geometry.stride, geometry.padding, geometry.dilation, strict=True):
        first = np.arange(m) * s - p
        behind = np.minimum(first + d * (k - 1) + 1, n + p)
        lengths.append(behind - first)
        inside = first + np.maximum(-first + d - 1, 0) // d * d
        sides.append(np.stack([inside, np.minimum(behind, n)], 1))
    return Windows(*sides, geometry.dilation), np.outer(*lengths)


def _adaptive(size: tuple, out) -> Windows:
    """Windows from floor(i n / m) to ceil((i + 1) n / m), which share a plane among m outputs."""
    sides = []
    for n, m in zip(size, pair(out, "output size", 1), strict=True):
        i = np.arange(m)
        sides.append(np.stack([i * n // m, -(-(i + 1) * n // m)], 1))
    return Windows(*sides)


def _planes(x) -> np.ndarray:
    """x (..., H, W) as int64 codes (P, H, W)."""
    x = as_codes(x, "x")
    if x.ndim < 2 or 0 in x.shape[-2:]:
        raise ValueError(f"x: shape {x.shape} has no planes; needs at least 2 axes, and pixels")
    return x.reshape(int(np.prod(x.shape[:-2])), *x.shape[-2:])


def _max(x, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    planes = _planes(x)
    if any((side[:, 0] >= side[:, 1]).any() for side in (windows.ys, windows.xs)):
        raise ValueError(f"windows of every {windows.steps}-th pixel on a plane of "
                         f"{planes.shape[1:]}: one meets only padding and has no maximum; use "
                         "less padding or dilation")
    out = np.empty((len(planes), *windows.size), np.int64)
    index = np.empty_like(out)
    launch(max_pool, len(planes) * int(windows.count.sum()), planes, windows.ys, windows.xs,
           windows.steps, out, index)
    shape = (*np.shape(x)[:-2], *windows.size)
    return out.reshape(shape).astype(np.asarray(x).dtype), index.reshape(shape)


def _sums(x, windows: Windows) -> np.ndarray:
    planes = _planes(x)
    _check_sum(planes, int(windows.count.max()))
    out = np.empty((len(planes), *windows.size), np.int64)
    launch(window_sum, len(planes) * int(windows.count.sum()), planes, windows.ys, windows.xs,
           out)
    return out.reshape(*np.shape(x)[:-2], *windows.size)


def _spread(shares, size, windows: Windows) -> np.ndarray:
    shares = as_codes(shares, "shares")
    if windows.size != shares.shape[-2:]:
        raise ValueError(f"shares {shares.shape}: windows on {tuple(size)} give {windows.size}")
    _check_sum(shares, int(np.prod([_overlap(side) for side in windows[:2]])))
    out = np.zeros((*shares.shape[:-2], *size), np.int64)
    planes = _planes(out)  # of the same memory
    launch(spread_windows, len(planes) * int(windows.count.sum()),
           shares.reshape(len(planes), *windows.size), windows.ys, windows.xs, planes)
    return out


def _overlap(side: np.ndarray) -> int:
    """How many windows of one side cover the same pixel, at most."""
    steps = np.zeros(side.max() + 1, np.int64)
    np.add.at(steps, side[:, 0], 1)
    np.add.at(steps, side[:, 1], -1)
    return int(np.cumsum(steps).max())


def _check_sum(codes: np.ndarray, terms: int) -> None:
    """Raise ValueError if the sum of so many of these codes could leave int64."""
    if largest(codes) * terms >> 63:
        raise ValueError(f"codes up to {largest(codes)}: the sum of {terms} of them could leave "
                         "int64; use narrower codes")


def relu(x) -> np.ndarray:
    """max(x, 0)."""
    return np.maximum(as_codes(x, "x", dtype=None), 0)


def relu_grad(error, x) -> np.ndarray:
    """The error where x > 0, else 0."""
    error, x = as_codes(error, "error", dtype=None), as_codes(x, "x", dtype=None)
    if error.shape != x.shape:
        raise ValueError(f"error {error.shape} and x {x.shape}: shapes differ")
    return np.where(x > 0, error, 0)


def max_pool2d(x, kernel, stride=None, padding=0, dilation=1, ceil: bool = False
               ) -> tuple[np.ndarray, np.ndarray]:
    """x (..., H, W) -> (codes, index) (..., OH, OW); index is the flat pixel of the maximum.

    The first maximum in row-major order wins, padding never does.
    """
    return _max(x, _sliding(_planes(x).shape[1:], kernel, stride, padding, dilation, ceil)[0])


def adaptive_max_pool2d(x, out) -> tuple[np.ndarray, np.ndarray]:
    """x (..., H, W) -> (codes, index) (..., *out), of the first maximum in each adaptive window."""
    return _max(x, _adaptive(_planes(x).shape[1:], out))


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


def window_sums(x, kernel, stride=None, padding=0, count_include_pad: bool = True,
                ceil: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """x (..., H, W) -> int64 sums (..., OH, OW) and the divisors (OH, OW) of their average.

    The divisor is the window's area, or without `count_include_pad` its number of real pixels.
    """
    windows, areas = _sliding(_planes(x).shape[1:], kernel, stride, padding, ceil=ceil)
    return _sums(x, windows), areas if count_include_pad else windows.count


def window_spread(shares, size, kernel, stride=None, padding=0, ceil: bool = False) -> np.ndarray:
    """Add each share (..., OH, OW) to all real pixels under its window: int64 (..., *size)."""
    return _spread(shares, size, _sliding(tuple(size), kernel, stride, padding, ceil=ceil)[0])


def adaptive_sums(x, out) -> tuple[np.ndarray, np.ndarray]:
    """x (..., H, W) -> int64 sums (..., *out) of the adaptive windows, and their pixels (*out)."""
    windows = _adaptive(_planes(x).shape[1:], out)
    return _sums(x, windows), windows.count


def adaptive_spread(shares, size) -> np.ndarray:
    """Add each share (..., *out) to all pixels of its adaptive window: int64 (..., *size)."""
    return _spread(shares, size, _adaptive(tuple(size), np.shape(shares)[-2:]))


def avg_pool2d(x, frac: int, to: Cast, kernel, stride=None, padding=0,
               count_include_pad: bool = True, reciprocal: Cast | None = None, rand=None,
               ceil: bool = False) -> np.ndarray:
    """x (..., H, W) with `frac` -> the sum under each window over its divisor, one rounding.

    With `reciprocal` by `multiply_shift`: the sum times the code of 1 / divisor in that cast.
    """
    sums, divisor = window_sums(x, kernel, stride, padding, count_include_pad, ceil)
    return _average(sums, divisor, frac, to, reciprocal, rand)


def avg_pool2d_grad(error, frac: int, to: Cast, size, kernel, stride=None, padding=0,
                    count_include_pad: bool = True, reciprocal: Cast | None = None, rand=None,
                    ceil: bool = False) -> np.ndarray:
    """Each window's error divided in the cast `to`, then added exactly to its real pixels.

    error (..., OH, OW) with `frac` -> int64 codes (..., *size) at `to`'s frac.
    """
    windows, areas = _sliding(tuple(size), kernel, stride, padding, ceil=ceil)
    divisor = areas if count_include_pad else windows.count
    return _average_grad(error, frac, to, size, windows, divisor, reciprocal, rand)


def adaptive_avg_pool2d(x, frac: int, to: Cast, out, reciprocal: Cast | None = None, rand=None
                        ) -> np.ndarray:
    """x (..., H, W) with `frac` -> the average of each adaptive window (..., *out).

    `out` 1 is the global average. The divisor is the window's number of pixels.
    """
    return _average(*adaptive_sums(x, out), frac, to, reciprocal, rand)


def adaptive_avg_pool2d_grad(error, frac: int, to: Cast, size, reciprocal: Cast | None = None,
                             rand=None) -> np.ndarray:
    """Each error (..., *out) divided in the cast `to`, then added exactly: (..., *size)."""
    windows = _adaptive(tuple(size), np.shape(error)[-2:])
    return _average_grad(error, frac, to, size, windows, windows.count, reciprocal, rand)


def _average(sums, divisor, frac, to, reciprocal, rand) -> np.ndarray:
    if reciprocal is None:
        return divide(sums, divisor, frac, to).codes
    return multiply_shift(sums, divisor, frac, reciprocal, to, rand).codes


def _average_grad(error, frac, to, size, windows, divisor, reciprocal, rand) -> np.ndarray:
    if divisor.shape != np.shape(error)[-2:]:
        raise ValueError(f"error {np.shape(error)}: windows on {tuple(size)} give {divisor.shape}")
    return _spread(_average(error, divisor, frac, to, reciprocal, rand), size, windows)


def multiply_shift(x, divisor: np.ndarray, frac: int, reciprocal: Cast, to: Cast, rand=None
                   ) -> Casted:
    """x (..., H, W) times the code of 1 / divisor (H, W) in `reciprocal`, as codes of `to`.

    The division is one of constants; what hardware does to x is a product and a cast.
    """
    x = as_codes(x, "codes")
    if reciprocal.rounding == Rounding.STOCHASTIC:
        raise ValueError(f"reciprocal {reciprocal}: a constant is rounded once; use a "
                         "deterministic rounding")
    areas, index = np.unique(divisor, return_inverse=True)
    factor = np.array([divide_int(1, area, 0, reciprocal) for area in areas.tolist()], np.int64)
    factor = factor[index].reshape(divisor.shape)
    bits = largest(x).bit_length() + largest(factor).bit_length()
    if bits > 63:
        raise ValueError(f"multiply-shift of {largest(x).bit_length()}-bit codes by {reciprocal}: "
                         f"the product needs {bits} bits, the limit is 63; narrow the reciprocal")
    return cast_full(x * factor, frac + reciprocal.format.frac, to, rand)


def divide(x, divisor: np.ndarray, frac: int, to: Cast) -> Casted:
    """x with `frac` over positive divisors of its shape, or broadcast to it: one cast `to`."""
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
