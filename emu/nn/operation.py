"""One autograd function for every operation: codes in, codes out, forward and backward."""

from __future__ import annotations

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from emu.nn import border
from emu.nn.grads import Gradient, hand_back, parts_of
from emu.nn.layer import Codes, Layer


class Operation:
    """What one call of a torch function computes; an instance keeps what its backward needs.

    `forward` gives the codes of the output, or a tensor that is it. `backward` takes the gradient
    of the output, exactly summed, and gives that of each tensor, or None; `needs` says which are
    wanted.
    """

    def forward(self, layer: Layer, training: bool, *tensors: torch.Tensor
                ) -> Codes | torch.Tensor:
        raise NotImplementedError

    def backward(self, layer: Layer, training: bool, gradient: Gradient, needs: list[bool]
                 ) -> list[Codes | None]:
        raise NotImplementedError


class _Run(Function):
    @staticmethod
    def forward(ctx, operation, layer, training, *tensors):
        ctx.set_materialize_grads(False)
        ctx.operation, ctx.layer, ctx.training, ctx.parts = operation, layer, training, []
        ctx.users = [None if x is None else (x.dtype, parts_of(x)) for x in tensors]
        out = operation.forward(layer, training, *tensors)
        if isinstance(out, torch.Tensor):
            return out
        dtypes = [x.dtype for x in tensors if x is not None and x.is_floating_point()]
        dtype = torch.float64 if torch.float64 in dtypes else dtypes[0]
        return border.to_tensor(out.codes, out.form, dtype, f"{layer.site}.y")

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        needs = list(ctx.needs_input_grad[3:])
        if grad is None:
            return None, None, None, *(None for _ in needs)
        gradient = Gradient.of(grad, ctx.parts)
        found = ctx.operation.backward(ctx.layer, ctx.training, gradient, needs)
        return None, None, None, *(
            hand_back(codes, *user, f"{ctx.layer.site}.grad_{i}")
            if need and codes is not None else None
            for i, (codes, user, need) in enumerate(zip(found, ctx.users, needs, strict=True)))


def run(operation: Operation, layer: Layer, training: bool, *tensors: torch.Tensor | None
        ) -> torch.Tensor:
    """The operation on the hardware of a layer, in autograd."""
    return _Run.apply(operation, layer, training, *tensors)
