"""Pooling and its gradients, on one plane of codes. A 1-d plane has one row and kernels (1, k)."""

from __future__ import annotations

from emu.number import Cast
from emu.reference.casts import cast, divide
from emu.reference.sums import out_size

Windows = list[list[tuple[int, int]]]  # the pixels (y, x) under each output, row-major


def sliding_windows(size, kernel, stride, padding) -> Windows:
    """Windows of one kernel, without the padding."""
    windows = []
    for oy in range(out_size(size[0], kernel[0], stride[0], padding[0])):
        for ox in range(out_size(size[1], kernel[1], stride[1], padding[1])):
            top, left = oy * stride[0] - padding[0], ox * stride[1] - padding[1]
            windows.append([(y, x) for y in range(top, top + kernel[0])
                            for x in range(left, left + kernel[1])
                            if 0 <= y < size[0] and 0 <= x < size[1]])
    return windows


def adaptive_windows(size, out) -> Windows:
    """Windows that share n pixels among m outputs: from floor(i n / m) to ceil((i + 1) n / m)."""
    sides = [[range(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]
             for n, m in zip(size, out, strict=True)]
    return [[(y, x) for y in ys for x in xs] for ys in sides[0] for xs in sides[1]]


def _average(x: int, divisor: int, frac: int, to: Cast, reciprocal: Cast | None, rand) -> int:
    """x / divisor in the cast `to`; with `reciprocal` by the constant code of 1 / divisor."""
    if reciprocal is None:
        return divide(x, divisor, frac, to)
    return cast(x * divide(1, divisor, 0, reciprocal), frac + reciprocal.format.frac, to, rand)


def _max(plane, windows: Windows) -> list[tuple[int, tuple[int, int]]]:
    return [max(((plane[y][x], (y, x)) for y, x in pixels), key=lambda found: found[0])
            for pixels in windows]


def _averages(plane, windows: Windows, divisors, frac, to, reciprocal, rand) -> list[int]:
    return [_average(sum(plane[y][x] for y, x in pixels), divisor, frac, to, reciprocal,
                     rand and rand[i])
            for i, (pixels, divisor) in enumerate(zip(windows, divisors, strict=True))]


def _spread(error, windows: Windows, divisors, size, frac, to, reciprocal, rand):
    plane = [[0] * size[1] for _ in range(size[0])]
    for i, (code, pixels, divisor) in enumerate(zip(error, windows, divisors, strict=True)):
        share = _average(code, divisor, frac, to, reciprocal, rand and rand[i])
        for y, x in pixels:
            plane[y][x] += share
    return plane


def _divisors(windows: Windows, kernel, count_include_pad: bool) -> list[int]:
    """The kernel's area, or the number of real pixels."""
    return [kernel[0] * kernel[1] if count_include_pad else len(pixels) for pixels in windows]


def _size(plane) -> tuple[int, int]:
    return len(plane), len(plane[0])


def max_pool2d(plane, kernel, stride, padding=(0, 0)) -> list[tuple[int, tuple[int, int]]]:
    """(code, pixel) of the first maximum under each window of one plane (H, W)."""
    return _max(plane, sliding_windows(_size(plane), kernel, stride, padding))


def adaptive_max_pool2d(plane, out) -> list[tuple[int, tuple[int, int]]]:
    """(code, pixel) of the first maximum under each adaptive window."""
    return _max(plane, adaptive_windows(_size(plane), out))


def max_pool2d_grad(error, pixels, size) -> list[list[int]]:
    """Route each window's error to its maximum; overlapping windows add up exactly."""
    plane = [[0] * size[1] for _ in range(size[0])]
    for code, (y, x) in zip(error, pixels, strict=True):
        plane[y][x] += code
    return plane


def avg_pool2d(plane, frac: int, to: Cast, kernel, stride, padding=(0, 0), count_include_pad=True,
               reciprocal: Cast | None = None, rand=None) -> list[int]:
    """The sum under each window, divided by its area (or valid count) in the cast `to`.

    With `reciprocal` the sum is multiplied by the constant code of 1 / area in that cast and then
    cast, which is a shift; only so may `to` be stochastic, with an operand for each output.
    """
    windows = sliding_windows(_size(plane), kernel, stride, padding)
    return _averages(plane, windows, _divisors(windows, kernel, count_include_pad), frac, to,
                     reciprocal, rand)


def avg_pool2d_grad(error, frac: int, to: Cast, size, kernel, stride, padding=(0, 0),
                    count_include_pad=True, reciprocal: Cast | None = None, rand=None
                    ) -> list[list[int]]:
    """Each window's error divided in the cast `to`, then added exactly to all its pixels."""
    windows = sliding_windows(size, kernel, stride, padding)
    return _spread(error, windows, _divisors(windows, kernel, count_include_pad), size, frac, to,
                   reciprocal, rand)


def adaptive_avg_pool2d(plane, frac: int, to: Cast, out, reciprocal: Cast | None = None, rand=None
                        ) -> list[int]:
    """The average under each adaptive window; `out` (1, 1) is the global average."""
    windows = adaptive_windows(_size(plane), out)
    return _averages(plane, windows, map(len, windows), frac, to, reciprocal, rand)


def adaptive_avg_pool2d_grad(error, frac: int, to: Cast, size, out, reciprocal: Cast | None = None,
                             rand=None) -> list[list[int]]:
    """Each window's error divided in the cast `to`, then added exactly to all its pixels."""
    windows = adaptive_windows(size, out)
    return _spread(error, windows, map(len, windows), size, frac, to, reciprocal, rand)
