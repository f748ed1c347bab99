"""Convolutions along a line and transposed ones, against sums written out term by term."""

import numpy as np
import pytest
from engine_cases import filled

from emu import MacSpec, engine, reference

MAC = MacSpec.parse("{a: s5, b: s4, acc: s8 sat_sym, block: 2}")
LANES = MacSpec.parse("{a: s5, b: s4, acc: s8 sat, lanes: 3}")
WIDE = MacSpec.parse("{a: s5, b: s4, acc: s30}")


def order(channels, block, *kernel):
    """(channel, *tap) in the order of k; channels beyond the last are None."""
    for first in range(0, channels, block):
        for tap in np.ndindex(*kernel):
            for c in range(first, first + block):
                yield (c if c < channels else None, *tap)


def line(x, w, mac, bias, stride, padding, dilation, groups):
    """conv1d by the definition's dot products."""
    n, outputs, share = x.shape[0], w.shape[0], w.shape[1]
    size = (x.shape[2] + 2 * padding - dilation * (w.shape[2] - 1) - 1) // stride + 1
    out = np.empty((n, outputs, size), np.int64)
    for i, o, p in np.ndindex(out.shape):
        a, b = [], []
        for c, k in order(share, mac.block, w.shape[2]):
            at = p * stride - padding + k * dilation
            real = c is not None and 0 <= at < x.shape[2]
            a.append(int(x[i, o // (outputs // groups) * share + c, at]) if real else 0)
            b.append(0 if c is None else int(w[o, c, k]))
        out[i, o, p] = reference.dot(a, b, mac, int(bias[o]))
    return out


def turned(x, w, mac, bias, stride, padding, extra, dilation, groups):
    """conv_transpose2d: the pixels of x that were spread over each output."""
    n, inputs, share = x.shape[0], x.shape[1] // groups, w.shape[1]
    size = [(x.shape[2 + i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (w.shape[2 + i] - 1)
            + 1 + extra[i] for i in range(2)]
    out = np.empty((n, share * groups, *size), np.int64)
    for i, o, y, z in np.ndindex(out.shape):
        a, b = [], []
        for c, ky, kx in order(inputs, mac.block, *w.shape[2:]):
            row, hole_y = divmod(y + padding[0] - ky * dilation[0], stride[0])
            column, hole_x = divmod(z + padding[1] - kx * dilation[1], stride[1])
            real = (c is not None and not hole_y and not hole_x and 0 <= row < x.shape[2]
                    and 0 <= column < x.shape[3])
            channel = None if c is None else o // share * inputs + c
            a.append(int(x[i, channel, row, column]) if real else 0)
            b.append(0 if c is None else int(w[channel, o % share, ky, kx]))
        out[i, o, y, z] = reference.dot(a, b, mac, int(bias[o]))
    return out


@pytest.mark.parametrize("mac", [MAC, LANES], ids=["block", "lanes"])
@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), [
    (1, 0, 1, 1), (2, 1, 1, 1), (3, 2, 2, 2), (1, 4, 3, 4)])
def test_conv1d(mac, stride, padding, dilation, groups):
    x, w = filled((2, 4, 9), mac.a, 0), filled((8, 4 // groups, 3), mac.b, 1)
    bias = filled((8,), mac.acc.format, 2)
    got = engine.conv1d(x, w, mac, bias, stride, padding, dilation, groups)
    assert np.array_equal(got, line(x, w, mac, bias, stride, padding, dilation, groups))


@pytest.mark.parametrize("mac", [MAC, LANES], ids=["block", "lanes"])
@pytest.mark.parametrize(("stride", "padding", "extra", "dilation", "groups"), [
    ((1, 1), (0, 0), (0, 0), (1, 1), 1), ((2, 2), (1, 1), (1, 1), (1, 1), 1),
    ((3, 2), (0, 1), (2, 1), (1, 3), 2), ((2, 1), (2, 0), (1, 0), (2, 1), 4),
    ((3, 3), (0, 0), (2, 2), (1, 1), 1)])
def test_conv_transpose2d(mac, stride, padding, extra, dilation, groups):
    x, w = filled((2, 4, 4, 3), mac.a, 0), filled((4, 3, 2, 3), mac.b, 1)
    bias = filled((3 * groups,), mac.acc.format, 2)
    bias[0] = mac.acc.format.lo  # outside symmetric rails, as a start may be
    got = engine.conv_transpose2d(x, w, mac, bias, stride, padding, extra, dilation, groups)
    assert np.array_equal(got, turned(x, w, mac, bias, stride, padding, extra, dilation, groups))


def test_gradients_are_adjoint():
    """<y, conv(x)> = <conv's gradients, x> and <.., w>, exactly, as nothing wraps or saturates."""
    x, w, e = filled((2, 4, 9), WIDE.a, 0), filled((6, 2, 3), WIDE.b, 1), None
    args = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}
    y = engine.conv1d(x, w, WIDE, **args).astype(np.int64)
    e = filled(y.shape, WIDE.b, 3)
    grad_x = engine.conv1d_grad_input(e, w, WIDE, 9, **args).astype(np.int64)
    grad_w = engine.conv1d_grad_weight(x, e, WIDE, 3, **args).astype(np.int64)
    assert (y * e).sum() == (grad_x * x).sum() == (grad_w * w).sum() != 0


def test_transposed_gradients_are_adjoint():
    x, w = filled((2, 4, 4, 3), WIDE.a, 0), filled((4, 3, 2, 3), WIDE.b, 1)
    args = {"stride": 2, "padding": 1, "dilation": (1, 2), "groups": 2}
    y = engine.conv_transpose2d(x, w, WIDE, **args).astype(np.int64)
    e = filled(y.shape, WIDE.b, 3)
    grad_x = engine.conv_transpose2d_grad_input(e, w, WIDE, **args).astype(np.int64)
    swapped = MacSpec.parse("{a: s4, b: s5, acc: s30}")
    grad_w = engine.conv_transpose2d_grad_weight(x, e, swapped, (2, 3), **args).astype(np.int64)
    assert (y * e).sum() == (grad_x * x).sum() == (grad_w * w).sum() != 0


def test_refusals():
    x, w = np.zeros((1, 2, 3, 3), int), np.zeros((2, 2, 3, 3), int)
    with pytest.raises(ValueError, match="output_padding 2"):
        engine.conv_transpose2d(x, w, MAC, stride=2, output_padding=2)
    with pytest.raises(ValueError, match="output would be"):
        engine.conv_transpose2d(x, w, MAC, padding=4)
    with pytest.raises(ValueError, match=r"x: shape .* has 4 axes, needs 3"):
        engine.conv1d(x, w, MAC)
