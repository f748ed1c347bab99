"""The loss on the host: the one part of a training step that may be outside the hardware."""

from __future__ import annotations

import math

import torch
from torch.autograd import Function

from emu.nn.audit import host
from emu.nn.grads import once


class _CrossEntropy(Function):
    @staticmethod
    def forward(ctx, logits, target):
        with host():
            z = logits.detach().double()
            z = z - z.amax(1, keepdim=True)
            log_p = z - z.exp().sum(1, keepdim=True).log()
            at = target.long()[:, None]
            ctx.grad = log_p.exp()
            ctx.grad.scatter_add_(1, at, log_p.new_full(at.shape, -1.0))
            ctx.grad /= len(target)
            ctx.dtype = logits.dtype
            return -log_p.gather(1, at)[:, 0].mean()

    @staticmethod
    @once
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
    low, high = (int(label) for label in target.aminmax())
    if not 0 <= low <= high < logits.shape[1]:
        raise ValueError(f"target from {low} to {high}: the logits have classes 0 to "
                         f"{logits.shape[1] - 1}")
    return _CrossEntropy.apply(logits, target)
