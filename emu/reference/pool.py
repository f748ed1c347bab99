"""Pooling and its gradients, on one plane of codes. A 1-d plane has one row and kernels (1, k)."""

from __future__ import annotations

from emu.number import Cast
from emu.reference.casts import cast, divide
from emu.reference.sums import out_size

Windows = list[list[tuple[int, int]]]  # the pixels (y, x) under each output, row-major


def _starts(size, kernel, stride, padding, dilation=1, ceil=False) -> list[int]:
    """Where the windows of one axis begin; with `ceil` pixels left over at the end get one too.

    Such a window begins on a pixel, or in the padding before them, as torch has it.
    """
    outputs = out_size(size, kernel, stride, padding, dilation)
    left_over = (size + 2 * padding - dilation * (kernel - 1) - 1) % stride
    if ceil and left_over and outputs * stride < size + padding:
        outputs += 1
    return [i * stride - padding for i in range(outputs)]


def sliding_windows(size, kernel, stride, padding, dilation=(1, 1), ceil=False) -> Windows:
    """Windows of one kernel, without the padding."""
    tops, lefts = (_starts(*axis, ceil) for axis in zip(size, kernel, stride, padding, dilation,
                                                        strict=True))
    return [[(y, x) for y in range(top, top + dilation[0] * kernel[0], dilation[0])
             for x in range(left, left + dilation[1] * kernel[1], dilation[1])
             if 0 <= y < size[0] and 0 <= x < size[1]] for top in tops for left in lefts]


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


def _divisors(windows: Windows, size, kernel, stride, padding, ceil, count_include_pad: bool
              ) -> list[int]:
    """The pixels of each window, padding included or not; behind the padding there are none."""
    if not count_include_pad:
        return [len(pixels) for pixels in windows]
    heights, widths = ([min(start + k, n + p) - start for start in _starts(n, k, s, p, 1, ceil)]
                       for n, k, s, p in zip(size, kernel, stride, padding, strict=True))
    return [height * width for height in heights for width in widths]


def _size(plane) -> tuple[int, int]:
    return len(plane), len(plane[0])


def max_pool2d(plane, kernel, stride, padding=(0, 0), dilation=(1, 1), ceil=False
               ) -> list[tuple[int, tuple[int, int]]]:
    """(code, pixel) of the first maximum under each window of one plane (H, W)."""
    return _max(plane, sliding_windows(_size(plane), kernel, stride, padding, dilation, ceil))


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
               reciprocal: Cast | None = None, rand=None, ceil=False) -> list[int]:
    """The sum under each window, divided by its area (or valid count) in the cast `to`.

    With `reciprocal` the sum is multiplied by the constant code of 1 / area in that cast and then
    cast, which is a shift; only so may `to` be stochastic, with an operand for each output.
    """
    size = _size(plane)
    windows = sliding_windows(size, kernel, stride, padding, ceil=ceil)
    divisors = _divisors(windows, size, kernel, stride, padding, ceil, count_include_pad)
    return _averages(plane, windows, divisors, frac, to, reciprocal, rand)


def avg_pool2d_grad(error, frac: int, to: Cast, size, kernel, stride, padding=(0, 0),
                    count_include_pad=True, reciprocal: Cast | None = None, rand=None, ceil=False
                    ) -> list[list[int]]:
    """Each window's error divided in the cast `to`, then added exactly to all its pixels."""
    windows = sliding_windows(size, kernel, stride, padding, ceil=ceil)
    divisors = _divisors(windows, size, kernel, stride, padding, ceil, count_include_pad)
    return _spread(error, windows, divisors, size, frac, to, reciprocal, rand)


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
