"""AdderNet's sums of absolute differences, and their gradients, on whole arrays.

Layouts and the order of k are those of `conv.py`; `emu.reference.adder` is the definition. There is
one path, the plain one.
"""

from collections.abc import Iterator
from math import isqrt

import numpy as np

from emu.engine import im2col
from emu.engine.arrays import as_codes, narrowed
from emu.engine.conv import Geometry
from emu.engine.kernels.adder import step_adder
from emu.engine.kernels.casts import stage
from emu.engine.kernels.jit import launch
from emu.engine.kernels.mac import Steps
from emu.engine.monitor import watching
from emu.engine.threshold import dot_exactly
from emu.engine.watched import watch_terms
from emu.spec import MacSpec

FACTOR = 24  # bits of the factor that normalises a gradient
NONE = np.empty((0, 0), np.int64)


def adder2d(x, w, mac: MacSpec, bias=None, stride=1, padding=0, dilation=1, groups=1) -> np.ndarray:
    """bias - sum |x - w|: accumulator codes (N, O, OH, OW); x and w of one grid, bias (O,).

    Raises ValueError for a MAC whose product is cast: here are none.

    >>> x, w = np.full((1, 1, 2, 2), 3), np.full((1, 1, 2, 2), -1)
    >>> adder2d(x, w, MacSpec.parse("{a: s8, b: s8, acc: s8 sat}"), [5])
    array([[[[-11]]]], dtype=int8)
    """
    if not mac.exact_product:
        raise ValueError(f"{mac}: a sum of absolute differences has no products to cast; leave "
                         "product out")
    g = Geometry(stride, padding, dilation, groups)
    x, w = as_codes(x, "x", mac.a, 4), as_codes(w, "w", mac.b, 4)
    g.check(x.shape[1], w.shape)
    if bias is not None and np.shape(bias) != (w.shape[0],):
        raise ValueError(f"bias: shape {np.shape(bias)} for {w.shape[0]} outputs; give one for "
                         "each")
    start = np.zeros((groups, 1, w.shape[0] // groups), np.int64)
    if bias is not None:
        start[:] = as_codes(bias, "bias", mac.result.format, 1).reshape(start.shape)
    lowered = im2col.conv2d(x, w, g, mac.block)
    return _whole("adder2d", lowered, mac, lambda group: (
        *lowered.operands(group), NONE, 0, start[group]))


def adder2d_grad_weight(x, w, error, mac: MacSpec, stride=1, padding=0, dilation=1, groups=1
                        ) -> np.ndarray:
    """sum (x - w) e: accumulator codes of the shape of w, the MAC's a being the difference."""
    g = Geometry(stride, padding, dilation, groups)
    x, w, error = _operands(x, w, error, mac, g)
    _check_differences(x, w, mac)
    lowered, outputs = im2col.conv2d_grad_weight(x, error, g, w.shape[2:]), w.shape[0] // groups
    return _whole("adder2d_grad_weight", lowered, mac, lambda group: (
        *lowered.operands(group), w[group * outputs:(group + 1) * outputs].reshape(outputs, -1).T,
        0, 0))


def adder2d_grad_input(x, w, error, mac: MacSpec, limit: int, stride=1, padding=0, dilation=1,
                       groups=1) -> np.ndarray:
    """sum clip(w - x, -limit, limit) e: accumulator codes of the shape of x.

    `limit` is the code of 1; the MAC's a is the clipped difference.
    """
    g = Geometry(stride, padding, dilation, groups)
    x, w, error = _operands(x, w, error, mac, g)
    if limit < 1 or limit > mac.a.hi or -limit < mac.a.lo:
        raise ValueError(f"limit {limit}: needs a whole number of at least 1 that {mac.a} holds, "
                         "with both signs")
    lowered = im2col.conv2d_grad_input(error, w, g, x.shape[2:], mac.block)
    channels = x.shape[1] // groups

    def given(group):
        errors, weights = lowered.operands(group)
        at = x[:, group * channels:(group + 1) * channels].swapaxes(0, 1).reshape(channels, -1)
        return weights.T, errors.T, at, limit, 0

    return _whole("adder2d_grad_input", lowered, mac, given, turned=True)


def adder_factor(grad: np.ndarray, frac: int) -> tuple[int, int]:
    """(code, its frac) of sqrt(n) / (5 |grad|), to 24 bits; (0, 0) for zeros."""
    squares = dot_exactly(grad, grad)
    if not squares:
        return 0, 0
    top, below = grad.size, 25 * squares
    fine = FACTOR - ((top.bit_length() - below.bit_length() + 2 * frac) // 2) - 2
    while True:  # once, or twice where the first has a bit less
        up = 2 * (frac + fine)
        a, b = top << max(up, 0), below << max(-up, 0)
        code = isqrt(a // b)
        code += 4 * a >= (2 * code + 1) ** 2 * b
        if code >> FACTOR - 1:
            return code, fine
        fine += 1


def _whole(operation: str, lowered: im2col.Lowered, mac: MacSpec, given, turned: bool = False
           ) -> np.ndarray:
    """The result whose groups are `_stepped` on what `given` says; `turned`: channels are rows."""
    if (scope := watching()) is None:
        parts = [_stepped(mac, *given(group)) for group in range(lowered.groups)]
        parts = [part.T if turned else part for part in parts]
        return narrowed(lowered.assemble(parts), mac.result.format)
    terms = (_terms(*given(group), turned) for group in range(lowered.groups))
    return narrowed(watch_terms(scope, operation, lowered, mac, terms), mac.result.format)


def _terms(a, b, at, limit: int, start, turned: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The terms (rows, K) of `_stepped` and where they start, channel by channel."""
    a, b = a.astype(np.int64), b.astype(np.int64).T
    for channel in range(len(a) if turned else len(b)):
        if not at.size:
            terms = -abs(a - b[channel])
        else:
            x, y, here = (a[channel], b, at[channel]) if turned else (a, b[channel], at[:, channel])
            difference = x - here[:, None].astype(np.int64)
            terms = (np.clip(difference, -limit, limit) if limit else difference) * y
        yield terms, start if np.ndim(start) == 0 else start[:, channel:channel + 1]


def _stepped(mac: MacSpec, a, b, at, limit: int, start) -> np.ndarray:
    """The accumulators (M, N) of `step_adder`."""
    shape = a.shape[0], b.shape[1]
    out = np.empty(shape, np.int64)
    a, b, at, bias = (np.require(x, np.int64, ["C", "W"])
                      for x in (a, b, at, np.broadcast_to(start, shape)))
    steps = Steps(mac.lanes, mac.tile or 0, int(mac.reload), int(mac.exact_product))
    launch(step_adder, a.size * b.shape[1], a, b, at, limit, bias, stage(0, mac.product),
           stage(0, mac.acc), stage(mac.acc.format.frac, mac.result), steps, out)
    return out


def _operands(x, w, error, mac: MacSpec, g: Geometry) -> tuple[np.ndarray, ...]:
    x, w, error = (as_codes(codes, name, form, 4) for codes, name, form in (
        (x, "x", None), (w, "w", None), (error, "error", mac.b)))
    g.check(x.shape[1], w.shape)
    if x.shape[0] != error.shape[0]:
        raise ValueError(f"x {x.shape} and error {error.shape}: batches differ")
    g.check_error(error.shape, x.shape[2:], w.shape)
    return x, w, error


def _check_differences(x: np.ndarray, w: np.ndarray, mac: MacSpec) -> None:
    """Raise ValueError where x - w could leave the MAC's a; padding makes x zero."""
    low = int(x.min(initial=0)) - int(w.max(initial=0))
    high = int(x.max(initial=0)) - int(w.min(initial=0))
    if low < mac.a.lo or high > mac.a.hi:
        raise ValueError(f"x - w from {low} to {high}: outside {mac.a}; a difference has a bit "
                         "more than the wider operand")
