"""AdderNet and shift layers as torch has layers: float modules that `fix` puts on the hardware.

`Adder2d` measures distances instead of products (Chen et al., AdderNet, arXiv 1912.13200);
`SEConv2d` multiplies by powers of two only, which is a shift (the shift layer of You et al.,
ShiftAddNet, arXiv 2010.12785). One after the other they are that network's shift-adder.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function_variadic

ROOT_HALF = math.sqrt(0.5)  # the least float64 above it: mantissas from here on round up


def adder2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, normalise=True):
    """bias - sum |input - weight| over the taps of a convolution: (N, O, OH, OW).

    The gradient of the weight is sum (input - weight) g, brought to the norm sqrt(n) / 5 for n
    weights if `normalise`; that of the input sum clip(weight - input, -1, 1) g.
    """
    if has_torch_function_variadic(input, weight):
        return handle_torch_function(adder2d, (input, weight), input, weight, bias, stride, padding,
                                     dilation, groups, normalise)
    columns = F.unfold(input, weight.shape[2:], dilation, padding, stride)
    out = _Distances.apply(columns, weight.flatten(1), groups, normalise)
    sizes, pads, steps, spread = (
        [value] * 2 if isinstance(value, int) else value
        for value in (tuple(input.shape[2:]), padding, stride, dilation))
    size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in
            zip(sizes, pads, spread, weight.shape[2:], steps, strict=True)]
    out = out.reshape(*out.shape[:2], *size)
    return out if bias is None else out + bias.reshape(-1, 1, 1)


class _Distances(Function):
    """x (N, groups * K, L) from w (O, K): -sum |x - w|, (N, O, L)."""

    @staticmethod
    def forward(ctx, x, w, groups, normalise):
        ctx.save_for_backward(x, w)
        ctx.groups, ctx.normalise = groups, normalise
        return torch.cat([-torch.cdist(b, a.transpose(1, 2), p=1) for a, b in zip(
            x.chunk(groups, 1), w.chunk(groups), strict=True)], 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        parts = zip(x.chunk(ctx.groups, 1), w.chunk(ctx.groups), grad.chunk(ctx.groups, 1),
                    strict=True)
        of_x, of_w = zip(*(_gradients(*part) for part in parts), strict=True)
        of_x, of_w = torch.cat(of_x, 1), torch.cat(of_w)
        if ctx.normalise:
            of_w = of_w * (math.sqrt(w.numel()) / 5 / of_w.norm().clamp(min=1e-12))
        return of_x, of_w, None, None


def _gradients(x, w, grad):
    """Those of x (N, K, L) and w (O, K) for the gradient (N, O, L) of their distances."""
    of_x = sum((w[o, :, None] - x).clamp(-1, 1) * grad[:, o, None] for o in range(len(w)))
    return of_x, torch.einsum("nol,nkl->ok", grad, x) - w * grad.sum((0, 2))[:, None]


class Adder2d(torch.nn.modules.conv._ConvNd):
    """A layer of AdderNet: the arguments of Conv2d, without padding modes other than zeros.

    It is no Conv2d: a batch norm behind it does not fold into its weights.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size, stride=1, padding=0,
                 dilation=1, groups: int = 1, bias: bool = False, normalise: bool = True):
        kernel, stride, padding, dilation = (
            (value, value) if isinstance(value, int) else tuple(value)
            for value in (kernel_size, stride, padding, dilation))
        super().__init__(in_channels, out_channels, kernel, stride, padding, dilation, False,
                         (0, 0), groups, bias, "zeros")
        self.normalise = normalise
        torch.nn.init.normal_(self.weight)  # as AdderNet has it

    def forward(self, x):
        return adder2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation,
                       self.groups, self.normalise)


def power_of_two(input, threshold: float = 0.0):
    """Each value's nearest power of two by its logarithm, with its sign; 0 up to the threshold.

    Straight through: the gradient passes. sqrt(1/2) is irrational, so there are no ties.
    """
    if has_torch_function_variadic(input):
        return handle_torch_function(power_of_two, (input,), input, threshold)
    return input + (nearest_power(input.detach(), threshold) - input.detach())


def nearest_power(x: torch.Tensor, threshold: float) -> torch.Tensor:
    """The values of `power_of_two`."""
    mantissa, exponent = torch.frexp(x.double())
    power = torch.ldexp(mantissa.sign(), exponent - (mantissa.abs() < ROOT_HALF).int())
    return torch.where(x.abs() > threshold, power, 0.0).to(x.dtype)


class SEConv2d(torch.nn.Conv2d):
    """A convolution with weights of powers of two: the hardware shifts where others multiply.

    Weights up to `threshold` are 0.
    """

    def __init__(self, *args, threshold: float = 0.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.threshold = threshold

    def forward(self, x):
        return self._conv_forward(x, power_of_two(self.weight, self.threshold), self.bias)
