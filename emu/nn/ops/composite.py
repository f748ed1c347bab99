"""Products of several tensors, written in functions of the table."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from emu.nn.frames import named, site


def bilinear(input1, input2, weight, bias=None):
    """torch.nn.functional.bilinear: x1 (..., I) against weight (O, I, J), then against x2 (..., J).

    Sites: `first` (a linear layer), `second` (a product of matrices), `bias` (an addition).
    """
    outputs, _, features = weight.shape
    with named("first"):
        x = F.linear(input1, weight.transpose(1, 2).flatten(0, 1))
    with named("second"):
        x = x.reshape(*x.shape[:-1], outputs, features)
        y = torch.matmul(x, input2.unsqueeze(-1)).squeeze(-1)
    if bias is None:
        return y
    with named("bias"):
        return torch.add(y, bias)


def addmm(input, mat1, mat2, *, beta=1, alpha=1):
    """torch.addmm, torch.baddbmm: a `matmul`, and an addition `add`."""
    if beta != 1 or alpha != 1:
        raise ValueError(f"{site()}: beta {beta} and alpha {alpha}; both are 1 here, "
                         "multiply by operations of their own")
    with named("matmul"):
        product = torch.matmul(mat1, mat2)
    with named("add"):
        return torch.add(input, product)
