"""Pooling and its gradients, on one plane of codes."""

from __future__ import annotations

from collections.abc import Iterator

from emu.number import Cast
from emu.reference.casts import divide
from emu.reference.sums import out_size


def _windows(plane, kernel, stride, padding) -> Iterator[list[tuple[int, int]]]:
    """The pixels (y, x) under each window of a plane, row-major, without the padding."""
    height, width = len(plane), len(plane[0])
    for oy in range(out_size(height, kernel[0], stride[0], padding[0])):
        for ox in range(out_size(width, kernel[1], stride[1], padding[1])):
            ys = range(oy * stride[0] - padding[0], oy * stride[0] - padding[0] + kernel[0])
            xs = range(ox * stride[1] - padding[1], ox * stride[1] - padding[1] + kernel[1])
            yield [(y, x) for y in ys for x in xs if 0 <= y < height and 0 <= x < width]


def max_pool2d(plane, kernel, stride, padding=(0, 0)) -> list[tuple[int, tuple[int, int]]]:
    """(code, pixel) of the first maximum under each window of one plane (H, W)."""
    return [max(((plane[y][x], (y, x)) for y, x in pixels), key=lambda found: found[0])
            for pixels in _windows(plane, kernel, stride, padding)]


def max_pool2d_grad(error, pixels, size) -> list[list[int]]:
    """Route each window's error to its maximum; overlapping windows add up exactly."""
    plane = [[0] * size[1] for _ in range(size[0])]
    for code, (y, x) in zip(error, pixels, strict=True):
        plane[y][x] += code
    return plane


def avg_pool2d(plane, frac: int, to: Cast, kernel, stride, padding=(0, 0),
               count_include_pad=True) -> list[int]:
    """The sum under each window, divided by its area (or valid count) in the cast `to`."""
    area = kernel[0] * kernel[1]
    return [divide(sum(plane[y][x] for y, x in pixels),
                   area if count_include_pad else len(pixels), frac, to)
            for pixels in _windows(plane, kernel, stride, padding)]


def avg_pool2d_grad(error, frac: int, to: Cast, size, kernel, stride, padding=(0, 0),
                    count_include_pad=True) -> list[list[int]]:
    """Each window's error divided in the cast `to`, then added exactly to all its pixels."""
    area = kernel[0] * kernel[1]
    plane = [[0] * size[1] for _ in range(size[0])]
    windows = list(_windows(plane, kernel, stride, padding))
    for code, pixels in zip(error, windows, strict=True):
        share = divide(code, area if count_include_pad else len(pixels), frac, to)
        for y, x in pixels:
            plane[y][x] += share
    return plane
