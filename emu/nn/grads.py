"""Gradients that autograd would add up in float: kept apart, and added here in integers.

A tensor with several users (a residual, a shared weight) receives the sum of their gradients, and
that sum is an adder of the hardware too. So every fixed operation keeps the codes of what it hands
back beside the float tensor that autograd carries; whoever receives the sum takes the codes and
checks that autograd's tensor is made of these gradients and no other.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
import torch
from torch.autograd.function import once_differentiable
from torch.utils.weak import TensorWeakRef

from emu import engine
from emu.nn import border
from emu.nn.audit import FloatSum, allow_sums_of, host, sum_is_exact
from emu.nn.layer import Codes
from emu.number import Format


class Part(NamedTuple):
    """One user's gradient: the tensor that autograd carries, and its codes.

    They are None for a tensor from outside that nobody has read yet.
    """

    tensor: torch.Tensor
    codes: np.ndarray | None
    form: Format | None
    task: int  # of which backward pass it is: an aborted one leaves parts behind



class Parts(list):
    """The parts of one tensor's gradient that have arrived, until its sum is taken."""

    def __init__(self):
        super().__init__()
        self.tensor = self.version = None

    def belong_to(self, tensor: torch.Tensor) -> None:
        """They are of this tensor, with the values that it has now."""
        self.tensor, self.version = TensorWeakRef(tensor), tensor._version

    def taken(self) -> list[Part]:
        """Those of this backward pass, which leave."""
        if not self:
            return []
        task = torch._C._current_graph_task_id()
        if len(self) == 1 and self[0].task == task:
            mine = [self.pop()]
        else:
            mine = [part for part in self if part.task == task]
            # A pass within another, as of a checkpoint, has a later number: those of the outer
            # stay.
            self[:] = [part for part in self if part.task < task]
        tensor = self.tensor and self.tensor()
        if tensor is not None and tensor.retains_grad:
            _prove_sum(mine)
        return mine


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


_lock = threading.Lock()
_passes = threading.local()


def parts_of(tensor: torch.Tensor) -> Parts | None:
    """Where the users of a tensor leave their gradients; None where it wants none.

    Raises FloatSum where its values have changed and autograd does not know of it.
    """
    if not tensor.requires_grad:
        return None
    node = tensor.grad_fn
    if node is None and (hook := _hook_of(tensor)) is not None and not tensor._is_view():
        return hook.parts
    found = getattr(node, "parts", None)
    version = found.version if found is not None else node and node.metadata.get("version")
    if version is None and tensor._is_view() and tensor._base.grad_fn is not None and (
            tensor._base.grad_fn.name() == "AliasBackward"):
        # If it changed, autograd has made it anew, from what is no user of the tensor that changed.
        version = tensor._base.grad_fn.parts.version
    if version is not None and version != tensor._version:
        raise FloatSum(f"a tensor {tuple(tensor.shape)} was changed in place through a view of it, "
                       "or a view of it is used that was made before; change a clone, or make the "
                       "view anew")
    if found is not None:
        return found
    with _lock:
        hook = _hook_of(tensor)
        if hook is None:
            hook = _Total(tensor)
            tensor.register_hook(hook)
            if node is not None:
                node.metadata["total", tensor.output_nr] = hook
    return hook.parts


def grid_of(tensor: torch.Tensor) -> Grid | None:
    """Where the gradients lie that are summed in `tensor.grad`; None where that is not known."""
    hook = _hook_of(tensor)
    return None if hook is None else hook.grid


def _hook_of(tensor: torch.Tensor) -> _Total | None:
    """The hook that is on a tensor as it is now: one that is changed in place has another node."""
    if tensor.grad_fn is not None:
        return tensor.grad_fn.metadata.get(("total", tensor.output_nr))
    for hook in (tensor._backward_hooks or {}).values():
        if isinstance(hook, _Total):
            return hook
    return None


class _Total:
    """The hook of a tensor that no fixed operation made: its gradient, summed exactly."""

    def __init__(self, tensor: torch.Tensor):
        self.parts, self.tensor = Parts(), TensorWeakRef(tensor)
        self.name = f"the gradient of a tensor {tuple(tensor.shape)}"
        self.grid: Grid | None = None

    def __call__(self, grad: torch.Tensor) -> torch.Tensor:
        total, grid = Gradient.of(grad, self.parts), None
        if total.codes is not None:
            form = total.form
            if total.summed or not border.carries(form, grad.dtype):
                form = border.holding(total.codes, form.frac)
                grad = border.each_to_tensor(total.codes, form, grad.dtype, self.name)
            grid = Grid(form.frac, engine.largest(total.codes))
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
    """What arrived at the output of an operation: a tensor, or the codes of an exact sum.

    Where nothing was `summed`, the tensor is what `border.rounded` made of the codes.
    """

    def __init__(self, tensor: torch.Tensor, codes: np.ndarray | None = None,
                 form: Format | None = None, summed: bool = False):
        self.tensor, self.codes, self.form, self.summed = tensor, codes, form, summed

    @classmethod
    def of(cls, tensor: torch.Tensor, parts: Parts) -> Gradient:
        """The sum of the parts, which `tensor` is in float; the tensor itself where there are none.

        Raises FloatSum where autograd added something else to it.
        """
        mine = parts.taken()
        if not mine:
            return cls(tensor)
        if len(mine) == 1 and mine[0].tensor is tensor and tensor._version == 0:
            return cls(tensor, mine[0].codes, mine[0].form)
        with host():
            seen = mine[0].tensor
            for part in mine[1:]:
                seen = seen + part.tensor
            # The sum of one is that very tensor, or autograd has added something to it.
            if len(mine) == 1 or not torch.equal(seen, tensor):
                raise FloatSum(_ADDED.format(tuple(tensor.shape)))
        mine = _read(mine)
        frac = max(part.form.frac for part in mine)
        total = _sum([part.codes for part in mine], [frac - part.form.frac for part in mine],
                     tensor.shape)
        return cls(tensor, total, border.holding(total, frac), True)

    def exact(self, name: str) -> Codes:
        """The gradient as it is; raises ValueError where it is off the grid."""
        if self.codes is not None:
            return Codes(self.codes, self.form, None)
        codes, frac = border.to_codes(self.tensor, name)
        return Codes(codes, border.holding(codes, frac), None)

    def masked(self, passes: np.ndarray | None) -> Gradient:
        """The gradient where `passes`, 0 elsewhere."""
        if passes is None:
            return self
        if self.codes is not None:
            return Gradient(self.tensor, engine.masked(self.codes, passes), self.form)
        return Gradient(torch.where(torch.from_numpy(passes), self.tensor, 0))

    def enter(self, layer, training: bool) -> Codes:
        """Cast by the layer's `error`."""
        if self.codes is None:
            return layer.enter("error", self.tensor, training)
        return layer.requantise("error", self.codes, self.form, training)


_ADDED = ("the gradient of a tensor {}: something outside the hardware adds to it or changes it; "
          "use the tensor inside only, or give the other user a clone of it")


def _read(parts: list[Part]) -> list[Part]:
    """The parts, all with codes; raises FloatSum for one from outside that is on no grid."""
    return [part if part.codes is not None else _read_one(part) for part in parts]


def _read_one(part: Part) -> Part:
    try:
        codes, frac = border.to_codes(part.tensor, "a gradient")
    except ValueError:
        raise FloatSum(_ADDED.format(tuple(part.tensor.shape))) from None
    return part._replace(codes=codes, form=border.holding(codes, frac))


def _sum(codes: list[np.ndarray], zeros: list[int], shape) -> np.ndarray:
    """The sum of codes << zeros; raises FloatSum where it could leave int64."""
    reach = sum(engine.largest(part) << up for part, up in zip(codes, zeros, strict=True))
    if reach >= 1 << 62:
        raise FloatSum(f"the gradients of a tensor {tuple(shape)}: their exact sum needs "
                       f"{reach.bit_length() + 1} bits, the limit is 63; cast the errors to closer "
                       "binary points")
    total = np.zeros(shape, np.int64 if reach >> 31 else np.int32)
    for part, up in zip(codes, zeros, strict=True):
        total += part.astype(total.dtype, copy=False) << up
    return total


def hand_back(out: Codes, dtype: torch.dtype, parts: Parts | None, name: str) -> torch.Tensor:
    """The tensor that autograd carries for the codes, which are left in `parts`."""
    if parts is None:
        return border.to_tensor(out.codes, out.form, dtype, name)
    # The codes are what is read: a tensor that rounds them only tells that they have arrived.
    return left_in(border.rounded(out.codes, out.form, dtype), out, parts)


def left_in(tensor: torch.Tensor, out: Codes | None, parts: Parts) -> torch.Tensor:
    """The tensor that autograd carries for the codes (None: not read yet), left in `parts`."""
    allow_sums_of(tensor)
    task = torch._C._current_graph_task_id()
    parts.append(Part(tensor, *((None, None) if out is None else out[:2]), task))
    passes = _passes.__dict__
    if task not in passes:
        passes[task] = []
        torch.autograd.Variable._execution_engine.queue_callback(lambda: _end(task))
    passes[task].append(parts)
    return tensor


def _end(task: int) -> None:
    """Prove the sums that a backward pass took as its results before they reached an operation."""
    for parts in _passes.__dict__.pop(task, ()):
        if parts:
            _prove_sum(parts.taken())


def _prove_sum(parts: list[Part]) -> None:
    """Raise FloatSum where the float sum of the parts, in any order, could round."""
    if not parts or (len(parts) == 1 and parts[0].codes is None):  # one from outside is no sum
        return
    dtype, parts = parts[0].tensor.dtype, _read(parts)
    frac = max(part.form.frac for part in parts)
    reach = sum(engine.largest(part.codes) << frac - part.form.frac for part in parts)
    if reach.bit_length() > border.CARRIERS[dtype][0]:
        raise FloatSum(f"the gradient of a tensor {tuple(parts[0].tensor.shape)} inside the model: "
                       f"its sum may need {reach.bit_length()} bits, {dtype} carries "
                       f"{border.CARRIERS[dtype][0]}; use model.double(), or narrower errors")


def once(backward):
    """The backward of a function that has no second derivative; torch says so where one is asked.

    As torch's once_differentiable, which costs more than some operations do: here only where a
    graph of the backward pass is made.
    """
    refusing = once_differentiable(backward)

    def first(ctx, *grads):
        return (refusing if torch.is_grad_enabled() else backward)(ctx, *grads)

    return first


def known(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, whose values autograd knows of as they are now."""
    if torch._C._current_graph_task_id() == -1:
        _passes.__dict__.clear()  # what an aborted backward pass has left
    node = tensor.grad_fn
    if hasattr(node, "parts"):
        node.parts.belong_to(tensor)
    elif node is not None:
        node.metadata["version"] = tensor._version
    return tensor
