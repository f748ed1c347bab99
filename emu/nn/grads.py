"""Gradients that autograd would add up in float: kept apart, and added here in integers.

A tensor with several users (a residual, a shared weight) receives the sum of their gradients, and
that sum is an adder of the hardware too. So every fixed operation keeps the codes of what it hands
back beside the float tensor that autograd carries; whoever receives the sum takes the codes and
checks that autograd's tensor is made of these gradients and no other. `Alias` stands where a torch
function that only moves values uses a tensor.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from emu.nn import border
from emu.nn.audit import FloatSum, allow_sums_of, host, sum_is_exact
from emu.nn.layer import Codes


class Part(NamedTuple):
    """One user's gradient: the tensor that autograd carries, and its codes."""

    tensor: torch.Tensor
    codes: np.ndarray
    frac: int
    task: int  # of which backward pass it is: an aborted one leaves parts behind


class Grid(NamedTuple):
    """Where a parameter's gradient lies: codes from -reach to reach, of this frac."""

    frac: int
    reach: int

    @property
    def width(self) -> int:
        """The bits of these codes."""
        return self.reach.bit_length() + 1

    def __add__(self, other: Grid) -> Grid:
        finer = max(self.frac, other.frac)
        return Grid(finer, sum(grid.reach << finer - grid.frac for grid in (self, other)))


class _Watched(NamedTuple):
    """The parts of a tensor that no fixed operation made, the node its hook is on, and the hook."""

    parts: list[Part]
    node: object
    hook: _Total


_watched = WeakTensorKeyDictionary()
_lock = threading.Lock()


def parts_of(tensor: torch.Tensor) -> list[Part] | None:
    """Where the users of a tensor leave their gradients; None where it wants none."""
    if not tensor.requires_grad:
        return None
    node = tensor.grad_fn
    found = getattr(node, "parts", None)
    if found is not None:
        return found
    with _lock:
        kept = _watched.get(tensor)
        if kept is None or kept.node is not node:
            hook = _Total([], tensor)
            kept = _watched[tensor] = _Watched(hook.parts, node, hook)
            tensor.register_hook(hook)
    return kept.parts


def grid_of(tensor: torch.Tensor) -> Grid | None:
    """Where the gradients lie that are summed in `tensor.grad`; None where that is not known."""
    kept = _watched.get(tensor)
    return None if kept is None else kept.hook.grid


class _Total:
    """The hook of a tensor that no fixed operation made: its gradient, summed exactly."""

    def __init__(self, parts: list[Part], tensor: torch.Tensor):
        self.parts, self.tensor = parts, TensorWeakRef(tensor)
        self.name = f"the gradient of a tensor {tuple(tensor.shape)}"
        self.grid: Grid | None = None

    def __call__(self, grad: torch.Tensor) -> torch.Tensor:
        total, grid = Gradient.of(grad, self.parts), None
        if total.codes is not None:
            form = border.holding(total.codes, total.frac)
            grad = border.to_tensor(total.codes, form, grad.dtype, self.name)
            grid = Grid(form.frac, -form.lo)
        tensor = self.tensor()
        if tensor is not None and tensor.is_leaf and tensor.grad is not None:
            _prove_accumulation(tensor.grad, grad, self.name)
            grid = grid + self.grid if grid and self.grid else None
        self.grid = grid
        return grad


def _prove_accumulation(old: torch.Tensor, new: torch.Tensor, name: str) -> None:
    """Raise FloatSum where old + new, which autograd is about to store, would round."""
    with host():
        total = old + new
    if not sum_is_exact(old, new, total):
        raise FloatSum(f"{name}: adding it to the one that is there rounds in {total.dtype}; use "
                       "model.double(), or narrower gradients")


class Gradient:
    """What arrived at the output of an operation: a tensor, or the codes of an exact sum."""

    def __init__(self, tensor: torch.Tensor, codes: np.ndarray | None = None, frac: int = 0):
        self.tensor, self.codes, self.frac = tensor, codes, frac

    @classmethod
    def of(cls, tensor: torch.Tensor, parts: list[Part]) -> Gradient:
        """The sum of the parts, which `tensor` is in float; the tensor itself where there are none.

        Raises FloatSum where autograd added something else to it.
        """
        task = torch._C._current_graph_task_id()
        mine = [part for part in parts if part.task == task]
        # A pass within another, as of a checkpoint, has a later number: those of the outer stay.
        parts[:] = [part for part in parts if part.task < task]
        if not mine:
            return cls(tensor)
        if len(mine) == 1 and mine[0].tensor is tensor and tensor._version == 0:
            return cls(tensor, mine[0].codes, mine[0].frac)
        with host():
            seen = mine[0].tensor
            for part in mine[1:]:
                seen = seen + part.tensor
            if not torch.equal(seen, tensor):
                raise FloatSum(f"the gradient of a tensor {tuple(tensor.shape)}: something outside "
                               "the hardware adds to it or changes it; use the tensor inside only, "
                               "or give the other user a clone of it")
        frac = max(part.frac for part in mine)
        return cls(tensor, _sum([part.codes for part in mine],
                                [frac - part.frac for part in mine], tensor.shape), frac)

    def exact(self, name: str) -> Codes:
        """The gradient as it is; raises ValueError where it is off the grid."""
        codes, frac = self.codes, self.frac
        if codes is None:
            codes, frac = border.to_codes(self.tensor, name)
        return Codes(codes, border.holding(codes, frac), None)

    def masked(self, passes: np.ndarray | None) -> Gradient:
        """The gradient where `passes`, 0 elsewhere."""
        if passes is None:
            return self
        if self.codes is not None:
            return Gradient(self.tensor, np.where(passes, self.codes, 0), self.frac)
        return Gradient(torch.where(torch.from_numpy(passes), self.tensor, 0))

    def enter(self, layer, training: bool) -> Codes:
        """Cast by the layer's `error`."""
        if self.codes is None:
            return layer.enter("error", self.tensor, training)
        return layer.requantise("error", self.codes, border.holding(self.codes, self.frac),
                                training)


def _sum(codes: list[np.ndarray], zeros: list[int], shape) -> np.ndarray:
    """The sum of codes << zeros; raises FloatSum where it could leave int64."""
    total = np.zeros(shape, np.int64)
    reach = sum(max(abs(int(part.min(initial=0))), int(part.max(initial=0))) << up
                for part, up in zip(codes, zeros, strict=True))
    if reach >= 1 << 62:
        raise FloatSum(f"the gradients of a tensor {tuple(shape)}: their exact sum needs "
                       f"{reach.bit_length() + 1} bits, the limit is 63; cast the errors to closer "
                       "binary points")
    for part, up in zip(codes, zeros, strict=True):
        total += part.astype(np.int64) << up
    return total


def hand_back(out: Codes, dtype: torch.dtype, parts: list[Part] | None, name: str) -> torch.Tensor:
    """The tensor that autograd carries for the codes, which are left in `parts`."""
    if parts is None:
        return border.to_tensor(out.codes, out.form, dtype, name)
    # The codes are what is read: a tensor that rounds them only tells that they have arrived.
    tensor = border.rounded(out.codes, out.form, dtype)
    allow_sums_of(tensor)
    parts.append(Part(tensor, out.codes, out.form.frac, torch._C._current_graph_task_id()))
    return tensor


class Alias(Function):
    """The same values for a torch function that only moves them."""

    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        ctx.parts, ctx.users, ctx.dtype = [], parts_of(x), x.dtype
        return x.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        if grad is None:
            return None
        found = Gradient.of(grad, ctx.parts).exact("a gradient")
        return hand_back(found, ctx.dtype, ctx.users, "a gradient")


class Write(Function):
    """A tensor overwritten, in place, by what a fixed operation made of it."""

    @staticmethod
    def forward(ctx, target, value):
        ctx.set_materialize_grads(False)
        ctx.parts, ctx.users, ctx.dtype = [], parts_of(value), value.dtype
        target.copy_(value)
        ctx.mark_dirty(target)
        return target

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        if grad is None:
            return None, None
        found = Gradient.of(grad, ctx.parts).exact("a gradient")
        return None, hand_back(found, ctx.dtype, ctx.users, "a gradient")
