"""The operations of fixed modules: autograd functions whose every sum runs in integers.

Multiply-accumulates, casts and divisions go through the layer's backend; the sums of pooling are
exact and need no hardware spec, so they are the engine's own.

Each takes the layer first and then what the torch function of the same name takes. Between
layers tensors carry grid values: a layer casts what enters it, an accumulator leaves exactly
unless the spec gives `y`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from emu import engine
from emu.nn import border
from emu.nn.audit import host
from emu.nn.layer import Codes, Layer


class _Linear:
    """x (..., in) times w (out, in): each pass is one matmul, k in the order of the definition."""

    def forward(self, layer, training, x, w, bias):
        rows = x.reshape(-1, x.shape[-1])
        out = layer.backend.matmul(layer.place("forward", training), rows, w.T,
                                   layer.mac("forward"), bias)
        return out.reshape(*x.shape[:-1], w.shape[0])

    def grad_input(self, layer, training, error, w, shape):
        return layer.backend.matmul(layer.place("grad_input", training), _rows(error), w,
                                    layer.mac("grad_input")).reshape(shape)

    def grad_weight(self, layer, training, x, error, shape):
        return layer.backend.matmul(layer.place("grad_weight", training), _rows(x).T, _rows(error),
                                    layer.mac("grad_weight")).T

    def error_rows(self, error):
        return _rows(error)


class _Conv2d:
    """x (N, C, H, W) under w (O, C/groups, KH, KW)."""

    def __init__(self, stride, padding, dilation, groups):
        self.geometry = {"stride": stride, "padding": padding, "dilation": dilation,
                         "groups": groups}

    def forward(self, layer, training, x, w, bias):
        return layer.backend.conv2d(layer.place("forward", training), x, w, layer.mac("forward"),
                                    bias, **self.geometry)

    def grad_input(self, layer, training, error, w, shape):
        return layer.backend.conv2d_grad_input(layer.place("grad_input", training), error, w,
                                               layer.mac("grad_input"), shape[2:], **self.geometry)

    def grad_weight(self, layer, training, x, error, shape):
        return layer.backend.conv2d_grad_weight(layer.place("grad_weight", training), x, error,
                                                layer.mac("grad_weight"), shape[2:],
                                                **self.geometry)

    def error_rows(self, error):
        return error.transpose(0, 2, 3, 1).reshape(-1, error.shape[1])


def _rows(codes: np.ndarray) -> np.ndarray:
    return codes.reshape(-1, codes.shape[-1])


def _masked(codes: np.ndarray, passes: np.ndarray | None) -> np.ndarray:
    return codes if passes is None else np.where(passes, codes, 0)


class _Contract(Function):
    """A layer of multiply-accumulates: forward, both gradients and the bias gradient."""

    @staticmethod
    def forward(ctx, x, w, b, layer: Layer, training: bool, operation):
        entered, weights = layer.enter("x", x, training), layer.enter("w", w, training)
        mac = layer.mac("forward")
        form = mac.result.format
        form = form.with_frac(entered.form.frac + weights.form.frac + form.frac)
        bias = None
        if b is not None:
            bias = layer.preload(layer.enter("b", b, training), mac, form.frac, training)
        codes = operation.forward(layer, training, entered.codes, weights.codes,
                                  None if bias is None else bias.codes)
        out = Codes(codes, form, None)
        if layer.spec.y is not None:
            out = layer.requantise("y", codes, form, training)
        ctx.saved = entered, weights, bias, out.passes
        ctx.layer, ctx.operation, ctx.training = layer, operation, training
        ctx.dtypes = x.dtype, w.dtype, None if b is None else b.dtype
        return border.to_tensor(out.codes, out.form, x.dtype, f"{layer.site}.y")

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        layer, operation, training = ctx.layer, ctx.operation, ctx.training
        x, w, bias, passes = ctx.saved
        if passes is not None:
            grad = torch.where(torch.from_numpy(passes), grad, 0)
        error = layer.enter("error", grad, training)
        grads = [None, None, None]
        if ctx.needs_input_grad[0]:
            codes = operation.grad_input(layer, training, error.codes, w.codes, x.codes.shape)
            form = layer.mac("grad_input").result.format
            form = form.with_frac(error.form.frac + w.form.frac + form.frac)
            grads[0] = border.to_tensor(_masked(codes, x.passes), form, ctx.dtypes[0],
                                        f"{layer.site}.grad_input")
        if ctx.needs_input_grad[1]:
            codes = operation.grad_weight(layer, training, x.codes, error.codes, w.codes.shape)
            form = layer.mac("grad_weight").result.format
            form = form.with_frac(x.form.frac + error.form.frac + form.frac)
            out = layer.requantise("grad_w", _masked(codes, w.passes), form, training)
            grads[1] = border.to_tensor(out.codes, out.form, ctx.dtypes[1],
                                        f"{layer.site}.grad_w")
        if bias is not None and ctx.needs_input_grad[2]:
            rows = operation.error_rows(error.codes)
            mac = layer.mac("grad_bias")
            codes = layer.backend.matmul(layer.place("grad_bias", training), rows.T,
                                         np.ones((rows.shape[0], 1), np.int64), mac)[:, 0]
            form = mac.result.format.with_frac(error.form.frac + mac.result.format.frac)
            out = layer.requantise("grad_b", _masked(codes, bias.passes), form, training)
            grads[2] = border.to_tensor(out.codes, out.form, ctx.dtypes[2],
                                        f"{layer.site}.grad_b")
        return *grads, None, None, None


def linear(layer: Layer, training: bool, x, weight, bias=None):
    """torch.nn.functional.linear on codes."""
    return _Contract.apply(x, weight, bias, layer, training, _Linear())


def conv2d(layer: Layer, training: bool, x, weight, bias=None, stride=1, padding=0, dilation=1,
           groups=1):
    """torch.nn.functional.conv2d on codes; x (N, C, H, W)."""
    if x.dim() != 4:
        raise ValueError(f"layer {layer.site!r}: x {tuple(x.shape)}; needs (N, C, H, W)")
    if padding == "valid":
        padding = 0
    elif padding == "same":
        spans = [d * (k - 1) for d, k in zip(_pair(dilation), weight.shape[2:], strict=True)]
        if any(span % 2 for span in spans):
            raise ValueError(f"layer {layer.site!r}: padding 'same' with kernel "
                             f"{tuple(weight.shape[2:])} is one-sided; pad the input, or use an "
                             "odd kernel")
        padding = tuple(span // 2 for span in spans)
    return _Contract.apply(x, weight, bias, layer, training,
                           _Conv2d(stride, padding, dilation, groups))


def _pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def relu(layer: Layer, training: bool, x, inplace=False):
    """torch.nn.functional.relu: a comparison, so exact as it is; never in place."""
    return torch.where(x <= 0, 0, x)


class _MaxPool2d(Function):
    @staticmethod
    def forward(ctx, x, name, windows):
        codes, frac = border.to_codes(x, name)
        out, index = engine.max_pool2d(codes, *windows)
        ctx.saved = index, x.shape[-2:], name
        return border.to_tensor(out, border.holding(out, frac), x.dtype, name)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        index, size, name = ctx.saved
        error, frac = border.to_codes(grad, f"{name}.error")
        out = engine.max_pool2d_grad(error, index, size)
        form = border.holding(out, frac)
        return border.to_tensor(out, form, grad.dtype, f"{name}.error"), None, None


def max_pool2d(layer: Layer, training: bool, x, kernel_size, stride=None, padding=0, dilation=1,
               ceil_mode=False, return_indices=False):
    """torch.nn.functional.max_pool2d on codes; the gradients of overlapping windows add exactly."""
    if _pair(dilation) != (1, 1) or ceil_mode or return_indices:
        raise ValueError(f"layer {layer.site!r}: max pooling has no dilation, ceil_mode or "
                         "return_indices here; leave them at their defaults")
    return _MaxPool2d.apply(x, layer.site, (kernel_size, stride or kernel_size, padding))


class _AvgPool2d(Function):
    @staticmethod
    def forward(ctx, x, layer, training, windows, include):
        codes, frac = border.to_codes(x, f"{layer.site}.x")
        sums, divisor = engine.window_sums(codes, *windows, count_include_pad=include)
        out = _divide(layer, "y", sums, divisor, frac, training)
        ctx.saved = layer, training, windows, divisor, out.passes, x.shape
        return border.to_tensor(out.codes, out.form, x.dtype, f"{layer.site}.y")

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        layer, training, windows, divisor, passes, shape = ctx.saved
        name = f"{layer.site}.error"
        codes, frac = border.to_codes(grad, name)
        error = _divide(layer, "error", _masked(codes, passes), divisor, frac, training)
        out = engine.window_spread(error.codes, shape[-2:], *windows)
        return (border.to_tensor(out, border.holding(out, error.form.frac), grad.dtype, name),
                None, None, None, None)


def _divide(layer: Layer, name: str, codes, divisor, frac: int, training: bool) -> Codes:
    """codes / divisor in the spec's cast `name`; an area of 2^k moves the binary point.

    Without that cast the quotient must be exact, so the area a power of two.
    """
    area = int(divisor.flat[0]) if divisor.size else 1
    if area & (area - 1) == 0 and (divisor == area).all():
        form = border.holding(codes, frac + area.bit_length() - 1)
        if getattr(layer.spec, name) is not None:
            return layer.requantise(name, codes, form, training)
        return Codes(codes, form, None)
    return layer.divide(name, codes, divisor, border.holding(codes, frac), training)


def avg_pool2d(layer: Layer, training: bool, x, kernel_size, stride=None, padding=0,
               ceil_mode=False, count_include_pad=True, divisor_override=None):
    """torch.nn.functional.avg_pool2d: the window's sum, divided in the cast y (backward: error)."""
    if ceil_mode or divisor_override is not None:
        raise ValueError(f"layer {layer.site!r}: average pooling has no ceil_mode or "
                         "divisor_override here; leave them at their defaults")
    windows = (kernel_size, stride or kernel_size, padding)
    return _AvgPool2d.apply(x, layer, training, windows, count_include_pad)


class _Activation(Function):
    @staticmethod
    def forward(ctx, x, layer, training):
        out = x.detach()
        ctx.saved = layer, training, None
        if layer.spec.y is not None:
            codes = layer.enter("y", x, training)
            ctx.saved = layer, training, codes.passes
            out = border.to_tensor(codes.codes, codes.form, x.dtype, f"{layer.site}.y")
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        layer, training, passes = ctx.saved
        if passes is not None:
            grad = torch.where(torch.from_numpy(passes), grad, 0)
        if layer.spec.error is not None:
            codes = layer.enter("error", grad, training)
            grad = border.to_tensor(codes.codes, codes.form, grad.dtype, f"{layer.site}.error")
        return grad, None, None


def activation(layer: Layer, training: bool, x):
    """Cast x by the spec's y, and in backward the error by the spec's error, where given."""
    return _Activation.apply(x, layer, training)


class _CrossEntropy(Function):
    @staticmethod
    def forward(ctx, logits, target):
        with host():
            z = logits.detach().double()
            z = z - z.amax(1, keepdim=True)
            log_p = z - z.exp().sum(1, keepdim=True).log()
            rows = torch.arange(len(target))
            ctx.grad = log_p.exp()
            ctx.grad[rows, target] -= 1
            ctx.grad /= len(target)
            ctx.dtype = logits.dtype
            return -log_p[rows, target].mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        with host():
            return (ctx.grad * grad).to(ctx.dtype), None


def cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean softmax cross-entropy of logits (N, classes), on the host in float64.

    The one part of a training step outside the hardware: its gradient enters by the last
    layer's `error` cast.
    """
    if logits.dim() != 2 or target.shape != logits.shape[:1]:
        raise ValueError(f"logits {tuple(logits.shape)} and target {tuple(target.shape)}: needs "
                         "(N, classes) and (N,)")
    if not math.prod(logits.shape):
        raise ValueError(f"logits {tuple(logits.shape)}: an empty batch has no mean loss")
    if not 0 <= int(target.min()) <= int(target.max()) < logits.shape[1]:
        raise ValueError(f"target from {int(target.min())} to {int(target.max())}: the logits have "
                         f"classes 0 to {logits.shape[1] - 1}")
    return _CrossEntropy.apply(logits, target)
