"""The two quantisers as functions of tensors."""

from __future__ import annotations

import math

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from emu import engine
from emu.nn import border, tape
from emu.number import Overflow, Rounding
from emu.rule import Rule


def rule(bit_width: int, signed: bool = True) -> Rule:
    """The learned cast of so many bits: ties to even, saturating."""
    return Rule(bit_width, signed, "learned", Rounding.TIES_EVEN, Overflow.SAT)


class _Quantise(Function):
    """x in a learned cast; its gradient passes where it was in range, in float."""

    @staticmethod
    def forward(ctx, x, log2_t, of):
        if log2_t.numel() != 1 or not torch.isfinite(log2_t).all():
            raise ValueError(f"log2_t {log2_t.tolist()}: needs one finite number; init_network or "
                             "threshold_weight_max give one")
        to = of.with_range(math.ceil(log2_t.item()))
        floats = border.to_numpy(x, "x")
        found = engine.quantize_full(floats, to)
        steps = engine.threshold_steps(*engine.encode_for(floats, to), found, to)
        ctx.note = tape.Note("x", 0, *steps, None)
        ctx.passes, ctx.like = torch.from_numpy(found.inside.copy()), log2_t.detach()
        return border.to_tensor(found.codes, to.format, x.dtype, "x")

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        slope = ctx.note.slope(*tape.read(grad)) if ctx.needs_input_grad[1] else None
        return (grad * ctx.passes, None if slope is None else tape.gradient_of(ctx.like, slope),
                None)


def qsigned(x: torch.Tensor, log2_t: torch.Tensor, bit_width: int) -> torch.Tensor:
    """x on the signed grid of `bit_width` bits whose range is 2^ceil(log2_t).

    >>> qsigned(torch.tensor([-1.3, .375, 1.2]), torch.tensor([-.3]), 3).tolist()
    [-1.0, 0.5, 0.75]
    """
    return _Quantise.apply(x, log2_t, rule(bit_width))


def qunsigned(x: torch.Tensor, log2_t: torch.Tensor, bit_width: int) -> torch.Tensor:
    """x on the unsigned grid; the gradient of log2_t is the paper's, not the package's."""
    return _Quantise.apply(x, log2_t, rule(bit_width, signed=False))
