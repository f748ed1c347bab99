"""Multiply-accumulate: linear layers, convolutions and products of matrices.

Between layers tensors carry grid values: an operation casts what enters it, and an accumulator
leaves exactly unless the spec gives `y`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from emu import engine
from emu.nn import border, software
from emu.nn.audit import FloatSum
from emu.nn.grads import Gradient
from emu.nn.layer import Codes, Layer
from emu.nn.operation import Operation, run


class Contraction(Operation):
    """x against w, with a bias: forward, both gradients and the bias gradient, each under its MAC.

    Subclasses say what each pass multiplies; `shape` is that of the gradient.
    """

    def product(self, layer: Layer, training: bool, x, w, bias) -> np.ndarray:
        raise NotImplementedError

    def grad_input(self, layer: Layer, training: bool, error, w, shape) -> np.ndarray:
        raise NotImplementedError

    def grad_weight(self, layer: Layer, training: bool, x, error, shape) -> np.ndarray:
        raise NotImplementedError

    def error_rows(self, error: np.ndarray) -> np.ndarray:
        """The errors (rows, outputs), whose sums are the bias gradient."""
        raise NotImplementedError

    def twin(self, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
        """The same in torch, for a backward pass in software."""
        raise NotImplementedError

    def forward(self, layer, training, x, w, b=None):
        self.x, self.w = layer.enter("x", x, training), layer.enter("w", w, training)
        form = layer.result("forward", training, self.x.form.frac + self.w.form.frac)
        bias = start = self.bias = self.stops = None
        if b is not None:
            bias = layer.preload(layer.enter("b", b, training), form, training)
            start, self.stops = bias.codes, bias.passes
        if layer.hardware.float_backward:  # else its codes are of no more use
            self.bias = bias
        codes = self.product(layer, training, self.x.codes, self.w.codes, start)
        out = layer.leave("y", codes, form, training)
        self.passes = out.passes
        return out

    def backward(self, layer, training, gradient: Gradient, needs):
        spec = layer.spec if training else layer.evaluation
        if layer.hardware.float_backward and spec.grad_input is None and spec.grad_weight is None:
            return software.gradients(layer, training, self.twin, [self.x, self.w, self.bias],
                                      gradient.masked(self.passes), needs)
        x, w = self.x, self.w
        error = gradient.masked(self.passes).enter(layer, training)
        found: list[Codes | None] = [None] * len(needs)
        if needs[0]:
            codes = self.grad_input(layer, training, error.codes, w.codes, x.codes.shape)
            form = layer.result("grad_input", training, error.form.frac + w.form.frac)
            found[0] = Codes(masked(codes, x.passes), form, None)
        if needs[1]:
            codes = masked(self.grad_weight(layer, training, x.codes, error.codes, w.codes.shape),
                           w.passes)
            form = layer.result("grad_weight", training, x.form.frac + error.form.frac)
            found[1] = self.leave_weight(layer, training, codes, form)
        if len(needs) > 2 and needs[2]:
            rows = self.error_rows(error.codes)
            place, mac = layer.unit("grad_bias", training)
            codes = layer.hardware.backend.matmul(place, rows.T, _ones(rows.shape[0]), mac)[:, 0]
            form = layer.result("grad_bias", training, error.form.frac)
            found[2] = self.leave_weight(layer, training, masked(codes, self.stops), form,
                                         "grad_b")
        return found

    def leave_weight(self, layer: Layer, training: bool, codes, form, name="grad_w") -> Codes:
        """The gradient of the weight, or of the bias, in its cast."""
        leave = layer.leave if layer.hardware.float_backward else layer.requantise
        return leave(name, codes, form, training)


def masked(codes: np.ndarray, passes: np.ndarray | None) -> np.ndarray:
    """The codes where `passes` (None: everywhere), 0 elsewhere."""
    return codes if passes is None else engine.masked(codes, passes)


class Linear(Contraction):
    """x (..., in) times w (out, in): each pass is one matmul, k in the order of the definition."""

    def product(self, layer, training, x, w, bias):
        place, mac = layer.unit("forward", training)
        out = layer.hardware.backend.matmul(place, _rows(x), w.T, mac, bias)
        return out.reshape(*x.shape[:-1], w.shape[0])

    def grad_input(self, layer, training, error, w, shape):
        place, mac = layer.unit("grad_input", training)
        return layer.hardware.backend.matmul(place, _rows(error), w, mac).reshape(shape)

    def grad_weight(self, layer, training, x, error, shape):
        place, mac = layer.unit("grad_weight", training)
        return layer.hardware.backend.matmul(place, _rows(x).T, _rows(error), mac).T

    def error_rows(self, error):
        return _rows(error)

    def twin(self, x, w, b):
        return F.linear(x, w, b)


class _Conv2d(Contraction):
    """x (N, C, H, W) under w (O, C/groups, KH, KW)."""

    def __init__(self, stride, padding, dilation, groups):
        self.geometry = {"stride": stride, "padding": padding, "dilation": dilation,
                         "groups": groups}

    def product(self, layer, training, x, w, bias):
        return layer.backend.conv2d(layer.place("forward", training), x, w,
                                    layer.mac("forward", training), bias, **self.geometry)

    def grad_input(self, layer, training, error, w, shape):
        return layer.backend.conv2d_grad_input(layer.place("grad_input", training), error, w,
                                               layer.mac("grad_input", training), shape[2:],
                                               **self.geometry)

    def grad_weight(self, layer, training, x, error, shape):
        return layer.backend.conv2d_grad_weight(layer.place("grad_weight", training), x, error,
                                                layer.mac("grad_weight", training), shape[2:],
                                                **self.geometry)

    def error_rows(self, error):
        return np.moveaxis(error, 1, -1).reshape(-1, error.shape[1])

    def twin(self, x, w, b):
        return F.conv2d(x, w, b, **self.geometry)


class _ConvTranspose2d(_Conv2d):
    """x (N, C, H, W) spread by w (C, O/groups, KH, KW): the input gradient of a convolution.

    Its own gradients are that convolution's sums and its weight gradient, where x and the error
    have changed places.
    """

    def __init__(self, stride, padding, output_padding, dilation, groups):
        super().__init__(stride, padding, dilation, groups)
        self.extra = output_padding

    def product(self, layer, training, x, w, bias):
        return layer.backend.conv_transpose2d(layer.place("forward", training), x, w,
                                              layer.mac("forward"), bias,
                                              output_padding=self.extra, **self.geometry)

    def grad_input(self, layer, training, error, w, shape):
        return layer.backend.conv2d(layer.place("grad_input", training), error, w,
                                    layer.mac("grad_input"), **self.geometry)

    def grad_weight(self, layer, training, x, error, shape):
        mac = layer.mac("grad_weight")
        return layer.backend.conv2d_grad_weight(
            layer.place("grad_weight", training), error, x, replace(mac, a=mac.b, b=mac.a),
            shape[2:], **self.geometry)

    def twin(self, x, w, b):
        return F.conv_transpose2d(x, w, b, output_padding=self.extra, **self.geometry)


class _Line:
    """A convolution along one axis: that of images one pixel high."""

    def product(self, layer, training, x, w, bias):
        return super().product(layer, training, x[:, :, None], w[:, :, None], bias)[:, :, 0]

    def grad_input(self, layer, training, error, w, shape):
        return super().grad_input(layer, training, error[:, :, None], w[:, :, None],
                                  (*shape[:2], 1, shape[2]))[:, :, 0]

    def grad_weight(self, layer, training, x, error, shape):
        return super().grad_weight(layer, training, x[:, :, None], error[:, :, None],
                                   (*shape[:2], 1, shape[2]))[:, :, 0]

    def twin(self, x, w, b):
        return super().twin(x[:, :, None], w[:, :, None], b)[:, :, 0]


class _Conv1d(_Line, _Conv2d):
    pass


class _ConvTranspose1d(_Line, _ConvTranspose2d):
    pass


class _Matmul(Contraction):
    """torch.matmul: x (..., M, K) times w (..., K, N), vectors and broadcasting as torch has them.

    Many matrices against one are one tall matrix. The gradients of an operand that meets several
    are added exactly.
    """

    def product(self, layer, training, x, w, bias):
        if not x.ndim or not w.ndim:
            raise ValueError(f"layer {layer.site!r}: {x.shape} @ {w.shape}; both need at least one "
                             "axis")
        x, w = x[None] if x.ndim == 1 else x, w[:, None] if w.ndim == 1 else w
        out = *np.broadcast_shapes(x.shape[:-2], w.shape[:-2]), x.shape[-2], w.shape[-1]
        self.rows = w.ndim == 2
        self.shapes = [(math.prod(x.shape[:-1]), x.shape[-1]) if self.rows else x.shape, w.shape]
        self.matrices = out if not self.rows else (self.shapes[0][0], w.shape[-1])
        codes = self._each(layer, training, "forward", *(
            t.reshape(shape) for t, shape in zip((x, w), self.shapes, strict=True))).reshape(out)
        ends = (slice(None),) * (codes.ndim - 2)
        codes = codes[(*ends, 0)] if self.x.codes.ndim == 1 else codes
        return codes[..., 0] if self.w.codes.ndim == 1 else codes

    def grad_input(self, layer, training, error, w, shape):
        out = self._each(layer, training, "grad_input", error.reshape(self.matrices),
                         w.reshape(self.shapes[1]).swapaxes(-1, -2))
        return folded(out, self.shapes[0]).reshape(shape)

    def grad_weight(self, layer, training, x, error, shape):
        out = self._each(layer, training, "grad_weight",
                         x.reshape(self.shapes[0]).swapaxes(-1, -2), error.reshape(self.matrices))
        return folded(out, self.shapes[1]).reshape(shape)

    def twin(self, x, w, b):
        return torch.matmul(x, w)

    def leave_weight(self, layer, training, codes, form, name="grad_w"):
        return Codes(codes, border.holding(codes, form.frac), None)  # as that of x leaves

    def _each(self, layer, training, name, a, b):
        """The product of each pair of matrices, broadcast."""
        lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        pairs = zip(*(np.broadcast_to(x, (*lead, *x.shape[-2:])).reshape(-1, *x.shape[-2:])
                      for x in (a, b)), strict=True)
        place, mac = layer.unit(name, training)
        out = [layer.backend.matmul(place, *pair, mac) for pair in pairs]
        shape = *lead, a.shape[-2], b.shape[-1]
        return np.stack(out).reshape(shape) if out else np.zeros(shape, np.int64)


def folded(codes: np.ndarray, shape: tuple) -> np.ndarray:
    """The sum over the axes along which `shape` was broadcast; raises FloatSum beyond int64."""
    if codes.shape == tuple(shape):
        return codes
    terms = codes.size // max(math.prod(shape), 1)
    most = max(int(codes.max(initial=0)), -int(codes.min(initial=0)))
    if most * terms >> 62:
        raise FloatSum(f"gradients up to {most}: the sum of the {terms} that were broadcast could "
                       "leave 63 bits; cast the error to a narrower format")
    codes = codes.astype(np.int64).sum(tuple(range(codes.ndim - len(shape))), dtype=np.int64)
    axes = tuple(i for i, n in enumerate(shape) if n == 1 and codes.shape[i] != 1)
    return codes.sum(axes, dtype=np.int64, keepdims=True) if axes else codes


@lru_cache
def _ones(count: int) -> np.ndarray:
    """What the errors of a bias gradient are multiplied with (count, 1)."""
    return np.ones((count, 1), np.int8)


def _rows(codes: np.ndarray) -> np.ndarray:
    return codes if codes.ndim == 2 else codes.reshape(-1, codes.shape[-1])


def linear(layer: Layer, training: bool, input, weight, bias=None):
    """torch.nn.functional.linear on codes."""
    return run(Linear(), layer, training, input, weight, bias)


def conv2d(layer: Layer, training: bool, input, weight, bias=None, stride=1, padding=0, dilation=1,
           groups=1):
    """torch.nn.functional.conv2d on codes; x (N, C, H, W)."""
    _check(layer, input, "(N, C, H, W)")
    padding = padding_of(layer, padding, weight.shape[2:], pair(dilation))
    return run(_Conv2d(stride, padding, dilation, groups), layer, training, input, weight, bias)


def conv1d(layer: Layer, training: bool, input, weight, bias=None, stride=1, padding=0, dilation=1,
           groups=1):
    """torch.nn.functional.conv1d on codes; x (N, C, L)."""
    _check(layer, input, "(N, C, L)")
    stride, dilation = single(stride), single(dilation)
    padding = single(padding_of(layer, padding, weight.shape[2:], (dilation,)))
    return run(_Conv1d((1, stride), (0, padding), (1, dilation), groups), layer, training, input,
               weight, bias)


def conv_transpose2d(layer: Layer, training: bool, input, weight, bias=None, stride=1, padding=0,
                     output_padding=0, groups=1, dilation=1):
    """torch.nn.functional.conv_transpose2d on codes; x (N, C, H, W)."""
    _check(layer, input, "(N, C, H, W)")
    return run(_ConvTranspose2d(stride, padding, output_padding, dilation, groups), layer, training,
               input, weight, bias)


def conv_transpose1d(layer: Layer, training: bool, input, weight, bias=None, stride=1, padding=0,
                     output_padding=0, groups=1, dilation=1):
    """torch.nn.functional.conv_transpose1d on codes; x (N, C, L)."""
    _check(layer, input, "(N, C, L)")
    return run(_ConvTranspose1d((1, single(stride)), (0, single(padding)),
                                (0, single(output_padding)), (1, single(dilation)), groups),
               layer, training, input, weight, bias)


def _check(layer: Layer, x, axes: str) -> None:
    if x.dim() != axes.count(",") + 1:
        raise ValueError(f"layer {layer.site!r}: x {tuple(x.shape)}; needs {axes}")


def padding_of(layer: Layer, padding, kernel, dilation):
    """The padding of each side; raises ValueError where "same" is one-sided."""
    if padding == "valid":
        return 0
    if padding != "same":
        return padding
    spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if any(span % 2 for span in spans):
        raise ValueError(f"layer {layer.site!r}: padding 'same' with kernel {tuple(kernel)} is "
                         "one-sided; pad the input, or use an odd kernel")
    return tuple(span // 2 for span in spans)


def pair(value) -> tuple[int, int]:
    """A size for both axes."""
    return (value, value) if isinstance(value, int) else tuple(value)


def single(value) -> int:
    """A size for the one axis."""
    return value if isinstance(value, int) else value[0]


def matmul(layer: Layer, training: bool, input, other):
    """torch.matmul on codes: two activations, cast by the spec's x and w, under its three MACs."""
    return run(_Matmul(), layer, training, input, other)
