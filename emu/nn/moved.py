"""Gradients through what only moves values: views, aliases and writes in place.

`Alias` stands where a torch function that computes nothing uses a tensor of a fixed operation: its
gradient is then counted beside those of the other users.
"""

from __future__ import annotations

import re

import torch
from torch.autograd import Function
from torch.utils._pytree import tree_map

from emu import engine
from emu.nn.audit import FloatSum
from emu.nn.grads import Gradient, Parts, hand_back, known, left_in, once, parts_of
from emu.nn.layer import Codes


class View(Function):
    """function(x), the values of x in other places: each at most once, the rest left out.

    Run on zeros it gives a view of them, through which the codes of the gradient find their way
    back.
    """

    @staticmethod
    def forward(ctx, x, function):
        ctx.set_materialize_grads(False)
        ctx.parts, ctx.users, ctx.function, ctx.shape = Parts(), parts_of(x), function, x.shape
        return function(x.detach())

    @staticmethod
    @once
    def backward(ctx, grad):
        if grad is None:
            return None, None
        found = _exact(Gradient.of(grad, ctx.parts))
        if found is None:
            whole = grad.new_zeros(ctx.shape)
            ctx.function(whole).copy_(grad)
            return whole, None
        whole = torch.zeros(ctx.shape, dtype=torch.int64)
        ctx.function(whole).copy_(torch.from_numpy(found.codes))
        found = found._replace(codes=whole.numpy())
        return hand_back(found, grad.dtype, ctx.users, "a gradient"), None


def _exact(gradient: Gradient) -> Codes | None:
    """The codes of a gradient, None for one from outside the hardware that is on no grid."""
    try:
        return gradient.exact("a gradient")
    except ValueError:
        return None


class Alias(Function):
    """The same values for a torch function that only moves them."""

    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        ctx.parts, ctx.users, ctx.dtype = Parts(), parts_of(x), x.dtype
        return x.detach()

    @staticmethod
    @once
    def backward(ctx, grad):
        if grad is None:
            return None
        found = Gradient.of(grad, ctx.parts)
        if (found.codes is None and ctx.users is not None and grad.dtype == ctx.dtype
                and grad._version == 0 and engine.watching() is None):
            return left_in(grad, None, ctx.users)  # from outside: its codes may never be needed
        found = _exact(found)
        return grad if found is None else hand_back(found, ctx.dtype, ctx.users, "a gradient")


def outgoing(value):
    """The results of a model: gradients of theirs from outside are counted beside those within."""
    return _outgoing(value) if isinstance(value, torch.Tensor) else tree_map(_outgoing, value)


def _outgoing(x):
    if isinstance(x, torch.Tensor) and x.requires_grad and hasattr(x.grad_fn, "parts"):
        return known(Alias.apply(x))
    return x


# The nodes of autograd that only move gradients: those of the functions that scope lets through.
_MOVING = {
    "AccumulateGrad", "Alias", "ChannelShuffle", "Clone", "CopySlices", "DiagEmbed", "Diagonal",
    "Fill", "Flip", "IndexFill", "Kthvalue", "Max", "Min", "Neg", "Permute", "PixelShuffle",
    "PixelUnshuffle", "ReshapeAlias", "Roll", "Rot90", "Select", "SelectScatter", "Slice",
    "SliceScatter", "Sort", "Split", "SplitWithSizes", "Squeeze", "T", "Topk", "Transpose",
    "Tril", "Triu", "Unbind", "UnsafeSplit", "UnsafeView", "Unsqueeze", "View", "Write", "Zero",
}


def sums_nothing(tensor: torch.Tensor) -> bool:
    """Whether the backward of what torch made of fixed tensors moves gradients, and no more."""
    nodes = [tensor.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or hasattr(node, "parts"):
            continue
        if re.sub(r"Backward\d*$", "", node.name()) not in _MOVING:
            return False
        nodes += [node for node, _ in node.next_functions]
    return True


class Write(Function):
    """A tensor overwritten, in place, by what a fixed operation made of it."""

    @staticmethod
    def forward(ctx, target, value):
        ctx.set_materialize_grads(False)
        ctx.parts, ctx.users, ctx.dtype = Parts(), parts_of(value), value.dtype
        target.copy_(value)
        ctx.mark_dirty(target)
        return target

    @staticmethod
    @once
    def backward(ctx, grad):
        if grad is None:
            return None, None
        found = Gradient.of(grad, ctx.parts).exact("a gradient")
        return None, hand_back(found, ctx.dtype, ctx.users, "a gradient")


def overwrite(target: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The target, overwritten by the value; raises FloatSum where it is a view with a gradient."""
    if target._is_view() and hasattr(target.grad_fn, "parts"):
        raise FloatSum(f"a view {tuple(target.shape)} is changed in place, which what it is a view "
                       "of does not learn of; use the operation that is not in place")
    return known(Write.apply(target, value))
