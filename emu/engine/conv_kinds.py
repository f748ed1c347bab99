"""Convolutions along one axis, and transposed ones: conv2d's sums with their parts named anew.

A line is an image one pixel high. A transposed convolution is the input gradient of the convolution
with the same weights, and its own gradients are that convolution's forward pass and its weight
gradient; the order of k follows.
"""

import numpy as np

from emu.engine.arrays import pair
from emu.engine.conv import Geometry, conv2d, conv2d_grad_input, conv2d_grad_weight
from emu.spec import MacSpec


def conv1d(x, w, mac: MacSpec, bias=None, stride=1, padding=0, dilation=1, groups=1) -> np.ndarray:
    """x (N, C, L), w (O, C/groups, K) -> accumulator codes (N, O, OL); bias (O,)."""
    return conv2d(_image(x, "x"), _image(w, "w"), mac, bias,
                  **_flat(stride, padding, dilation, groups))[:, :, 0]


def conv1d_grad_input(error, w, mac: MacSpec, size: int, stride=1, padding=0, dilation=1, groups=1
                      ) -> np.ndarray:
    """error (N, O, OL) -> accumulator codes (N, C, size)."""
    return conv2d_grad_input(_image(error, "error"), _image(w, "w"), mac, (1, size),
                             **_flat(stride, padding, dilation, groups))[:, :, 0]


def conv1d_grad_weight(x, error, mac: MacSpec, kernel: int, stride=1, padding=0, dilation=1,
                       groups=1) -> np.ndarray:
    """x (N, C, L), error (N, O, OL) -> accumulator codes (O, C/groups, kernel)."""
    return conv2d_grad_weight(_image(x, "x"), _image(error, "error"), mac, (1, kernel),
                              **_flat(stride, padding, dilation, groups))[:, :, 0]


def conv_transpose2d(x, w, mac: MacSpec, bias=None, stride=1, padding=0, output_padding=0,
                     dilation=1, groups=1) -> np.ndarray:
    """x (N, C, H, W), w (C, O/groups, KH, KW) -> accumulator codes (N, O, OH, OW); bias (O,).

    `output_padding` pixels are added below and to the right; it is less than stride or dilation.
    """
    g, extra = Geometry(stride, padding, dilation, groups), pair(output_padding,
                                                                 "output_padding", 0)
    if any(e >= max(s, d) for e, s, d in zip(extra, g.stride, g.dilation, strict=True)):
        raise ValueError(f"output_padding {output_padding}: needs to be less than stride {stride} "
                         f"or dilation {dilation}")
    if np.ndim(x) != 4 or np.ndim(w) != 4:
        raise ValueError(f"x {np.shape(x)} and w {np.shape(w)}: need four axes each")
    size = tuple((n - 1) * s - 2 * p + d * (k - 1) + 1 + e for n, s, p, d, k, e in zip(
        np.shape(x)[2:], g.stride, g.padding, g.dilation, np.shape(w)[2:], extra, strict=True))
    if min(size) < 1:
        raise ValueError(f"x {np.shape(x)} and w {np.shape(w)} padded by {padding}: the output "
                         f"would be {size}; needs at least 1 x 1")
    return conv2d_grad_input(x, w, mac, size, bias, stride, padding, dilation, groups)


def conv_transpose2d_grad_input(error, w, mac: MacSpec, stride=1, padding=0, dilation=1, groups=1
                                ) -> np.ndarray:
    """error (N, O, OH, OW), w (C, O/groups, KH, KW) -> accumulator codes (N, C, H, W)."""
    return conv2d(error, w, mac, None, stride, padding, dilation, groups)


def conv_transpose2d_grad_weight(x, error, mac: MacSpec, kernel, stride=1, padding=0, dilation=1,
                                 groups=1) -> np.ndarray:
    """x (N, C, H, W), error (N, O, OH, OW) -> accumulator codes (C, O/groups, *kernel).

    Here `mac.a` is the format of the error and `mac.b` that of x.
    """
    return conv2d_grad_weight(error, x, mac, kernel, stride, padding, dilation, groups)


def _image(codes, name: str) -> np.ndarray:
    line = np.asarray(codes)
    if line.ndim != 3:
        raise ValueError(f"{name}: shape {line.shape} has {line.ndim} axes, needs 3")
    return line[:, :, None]


def _flat(stride, padding, dilation, groups) -> dict:
    return {"stride": (1, stride), "padding": (0, padding), "dilation": (1, dilation),
            "groups": groups}
