"""Sums of products: each operation is a list of (a, b) operand lists, one for each output."""

from __future__ import annotations

from collections.abc import Iterator

from emu.reference.mac import dot
from emu.spec import MacSpec


def matmul_terms(a, b) -> Iterator[tuple[list[int], list[int]]]:
    """(M, K) @ (K, N), row-major; k is the order of accumulation."""
    columns = [list(column) for column in zip(*b, strict=True)]
    return ((row, column) for row in a for column in columns)


def _taps(channels: int, kernel: tuple[int, int], block: int) -> Iterator[tuple[int, int, int]]:
    """The order of k in a convolution: (channel block, ky, kx, channel in the block).

    Channels beyond the last are zeros that keep their place.
    """
    for first in range(0, channels, block):
        for ky in range(kernel[0]):
            for kx in range(kernel[1]):
                for c in range(first, first + block):
                    yield c, ky, kx


def _at(plane, y: int, x: int) -> int:
    """A pixel, or the zero of padding."""
    return plane[y][x] if 0 <= y < len(plane) and 0 <= x < len(plane[0]) else 0


def out_size(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def conv2d_terms(x, w, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, block=1):
    """x (N, C, H, W), w (O, C/groups, KH, KW): operands for each output (N, O, OH, OW)."""
    channels, kernel = len(w[0]), (len(w[0][0]), len(w[0][0][0]))
    size = [out_size(s, *p) for s, *p in zip((len(x[0][0]), len(x[0][0][0])), kernel, stride,
                                              padding, dilation, strict=True)]
    for image in x:
        for o, weights in enumerate(w):
            base = o // (len(w) // groups) * channels
            for oy in range(size[0]):
                for ox in range(size[1]):
                    a, b = [], []
                    for c, ky, kx in _taps(channels, kernel, block):
                        y = oy * stride[0] - padding[0] + ky * dilation[0]
                        column = ox * stride[1] - padding[1] + kx * dilation[1]
                        a.append(_at(image[base + c], y, column) if c < channels else 0)
                        b.append(weights[c][ky][kx] if c < channels else 0)
                    yield a, b


def conv2d_grad_input_terms(error, w, size, stride=(1, 1), padding=(0, 0), dilation=(1, 1),
                            groups=1, block=1):
    """error (N, O, OH, OW), w (O, C/groups, KH, KW): operands for each input (N, C, *size).

    k runs over (output channel block, ky, kx, channel in the block) with the weight's own,
    unflipped indices; holes of the stride are zeros that keep their place.
    """
    channels, kernel, outputs = len(w[0]), (len(w[0][0]), len(w[0][0][0])), len(w) // groups
    for image in error:
        for channel in range(channels * groups):
            base = channel // channels * outputs
            for y in range(size[0]):
                for x in range(size[1]):
                    a, b = [], []
                    for o, ky, kx in _taps(outputs, kernel, block):
                        oy, hole_y = divmod(y + padding[0] - ky * dilation[0], stride[0])
                        ox, hole_x = divmod(x + padding[1] - kx * dilation[1], stride[1])
                        real = o < outputs and not hole_y and not hole_x
                        a.append(_at(image[base + o], oy, ox) if real else 0)
                        b.append(w[base + o][channel % channels][ky][kx] if o < outputs else 0)
                    yield a, b


def conv2d_grad_weight_terms(x, error, kernel, stride=(1, 1), padding=(0, 0), dilation=(1, 1),
                             groups=1):
    """x (N, C, H, W), error (N, O, OH, OW): operands for each weight (O, C/groups, *kernel).

    k runs over (n, oy, ox) of the given batch.
    """
    channels, outputs = len(x[0]) // groups, len(error[0])
    size = range(len(error[0][0])), range(len(error[0][0][0]))
    for o in range(outputs):
        base = o // (outputs // groups) * channels
        for c in range(channels):
            for ky in range(kernel[0]):
                for kx in range(kernel[1]):
                    yield ([_at(image[base + c], oy * stride[0] - padding[0] + ky * dilation[0],
                                ox * stride[1] - padding[1] + kx * dilation[1])
                            for image in x for oy in size[0] for ox in size[1]],
                           [image[o][oy][ox]
                            for image in error for oy in size[0] for ox in size[1]])


def bias_grad_terms(error) -> Iterator[tuple[list[int], list[int]]]:
    """error (N, O) or (N, O, OH, OW) against the constant 1: operands for each bias (O,)."""
    for o in range(len(error[0])):
        codes = [code for image in error for code in _flat(image[o])]
        yield codes, [1] * len(codes)


def _flat(x) -> list[int]:
    return [code for part in x for code in _flat(part)] if isinstance(x, list) else [x]


def matmul(a, b, mac: MacSpec, bias=None) -> list[list[int]]:
    """(M, K) @ (K, N) -> accumulator codes (M, N); bias (N,)."""
    n = len(b[0])
    bias = bias or [0] * n
    results = [dot(*terms, mac, bias[i % n]) for i, terms in enumerate(matmul_terms(a, b))]
    return [results[i:i + n] for i in range(0, len(results), n)]


def conv2d(x, w, mac: MacSpec, bias=None, **geometry) -> list[int]:
    """Accumulator codes of (N, O, OH, OW), flat in row-major order; bias (O,)."""
    terms = list(conv2d_terms(x, w, block=mac.block, **geometry))
    pixels = len(terms) // (len(x) * len(w))
    bias = bias or [0] * len(w)
    return [dot(a, b, mac, bias[i // pixels % len(w)]) for i, (a, b) in enumerate(terms)]


def conv2d_grad_input(error, w, mac: MacSpec, size, **geometry) -> list[int]:
    """Accumulator codes of (N, C, *size), flat in row-major order."""
    return [dot(a, b, mac)
            for a, b in conv2d_grad_input_terms(error, w, size, block=mac.block, **geometry)]


def conv2d_grad_weight(x, error, mac: MacSpec, kernel, **geometry) -> list[int]:
    """Accumulator codes of (O, C/groups, *kernel), flat in row-major order."""
    return [dot(a, b, mac) for a, b in conv2d_grad_weight_terms(x, error, kernel, **geometry)]


def bias_grad(error, mac: MacSpec) -> list[int]:
    """Accumulator codes of (O,)."""
    return [dot(a, b, mac) for a, b in bias_grad_terms(error)]
