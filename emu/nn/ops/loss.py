"""The loss on the host: the one part of a training step that may be outside the hardware."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.autograd import Function

from emu.nn import compiler
from emu.nn.audit import host
from emu.nn.grads import once


class _CrossEntropy(Function):
    @staticmethod
    def forward(ctx, logits, target):
        # By numpy, as this is small: torch takes five times as long to find its functions.
        with host():
            z = logits.detach().numpy().astype(np.float64)
            z -= z.max(1, keepdims=True)
            log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
            at = np.arange(len(z)), target.numpy().astype(np.int64, copy=False)
            ctx.grad, ctx.dtype = np.exp(log_p), logits.dtype
            ctx.grad[at] -= 1
            ctx.grad /= len(z)
            return torch.from_numpy(-log_p[at].mean(keepdims=True)).reshape(())

    @staticmethod
    @once
    def backward(ctx, grad):
        with host():
            return torch.from_numpy(ctx.grad * grad.numpy()).to(ctx.dtype), None


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
    labels = target.numpy()
    low, high = int(labels.min()), int(labels.max())
    if not 0 <= low <= high < logits.shape[1]:
        raise ValueError(f"target from {low} to {high}: the logits have classes 0 to "
                         f"{logits.shape[1] - 1}")
    return _CrossEntropy.apply(logits, target)


compiler.never_begin_with(cross_entropy)
