"""One autograd function for every operation: codes in, codes out, forward and backward."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from emu.nn import border, software
from emu.nn.grads import Gradient, Parts, hand_back, known, parts_of
from emu.nn.layer import Codes, Layer
from emu.nn.tape import Note, Tape, gradient_of, read

PLAIN = {bool, int, float, str, type(None)}  # of attributes that hold no arrays


class Operation:
    """What one call of a torch function computes; an instance keeps what its backward needs.

    Between forward and backward autograd holds the arrays of its attributes, so that activation
    checkpointing drops them.

    `forward` gives the codes of the output, or a tensor that is it. `backward` takes the gradient
    of the output, exactly summed, and gives that of each tensor, or None; `needs` says which are
    wanted. `notes` are those of the learned casts of its forward. Where the model trains in
    software it may give tensors of floats.
    """

    notes: list[Note]

    def forward(self, layer: Layer, training: bool, *tensors: torch.Tensor
                ) -> Codes | torch.Tensor:
        raise NotImplementedError

    def backward(self, layer: Layer, training: bool, gradient: Gradient, needs: list[bool]
                 ) -> list[Codes | torch.Tensor | None]:
        raise NotImplementedError


class _Run(Function):
    @staticmethod
    def forward(ctx, operation, layer, training, learned, *tensors):
        ctx.set_materialize_grads(False)
        ctx.operation, ctx.layer, ctx.training, ctx.parts = operation, layer, training, Parts()
        ctx.learned = dict(zip(learned, tensors[:len(learned)], strict=True))
        tensors, in_float = tensors[len(learned):], layer.hardware.float_backward
        if learned and in_float:
            raise ValueError(f"layer {layer.site!r}: thresholds are learned by gradients in codes, "
                             "which training in software has not; use another rule there")
        ctx.users = [None if x is None else (x.dtype, None if in_float else parts_of(x))
                     for x in tensors]
        with Tape(learned, tensors) as operation.notes:
            out = operation.forward(layer, training, *tensors)
        ctx.save_for_backward(*_taken_out(operation))
        if isinstance(out, torch.Tensor):
            return out
        dtypes = [x.dtype for x in tensors if x is not None and x.is_floating_point()]
        dtype = torch.float64 if torch.float64 in dtypes else dtypes[0]
        return border.to_tensor(out.codes, out.form, dtype, f"{layer.site}.y")

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        needs = list(ctx.needs_input_grad[4 + len(ctx.learned):])
        if grad is None:
            return None, None, None, None, *(None for _ in ctx.needs_input_grad[4:])
        in_float = ctx.layer.hardware.float_backward
        if in_float:
            ctx.parts.taken()
        gradient = software.FloatGradient(grad) if in_float else Gradient.of(grad, ctx.parts)
        operation = _put_back(ctx.operation, ctx.saved_tensors)
        slopes = dict.fromkeys(ctx.learned, Fraction(0))
        for note in operation.notes:
            if note.operand < 0:
                codes = (gradient.codes, gradient.frac) if gradient.codes is not None else read(
                    gradient.tensor)
                slopes[note.setting] += note.slope(*codes)
                gradient = gradient.masked(note.passes)
        inner = {note.operand: note for note in operation.notes if note.operand >= 0}
        found = operation.backward(ctx.layer, ctx.training, gradient,
                                   [need or i in inner for i, need in enumerate(needs)])
        for i, note in inner.items():
            slopes[note.setting] += note.slope(found[i].codes, found[i].form.frac)
            if note.passes is not None:
                found[i] = found[i]._replace(codes=np.where(note.passes, found[i].codes, 0))
        return None, None, None, None, *(
            gradient_of(threshold, slopes[name]) for name, threshold in ctx.learned.items()), *(
            (software.floats(codes, user[0]) if in_float else
             hand_back(codes, *user, f"{ctx.layer.site}.grad_{i}"))
            if need and codes is not None else None
            for i, (codes, user, need) in enumerate(zip(found, ctx.users, needs, strict=True)))


class _Held(int):
    """Where an array stands among those that autograd holds."""


def _taken_out(operation: Operation) -> list[torch.Tensor]:
    """The arrays of an operation, which keeps their places."""
    held = []

    def take(x: np.ndarray) -> _Held:
        # A tensor has no negative strides and may be written to.
        plain = x.flags.writeable and min(x.strides, default=0) >= 0
        held.append(torch.from_numpy(x if plain else x.copy()))
        return _Held(len(held) - 1)

    for name, value in vars(operation).items():
        if type(value) not in PLAIN:
            vars(operation)[name] = _changed(value, np.ndarray, take)
    return held


def _put_back(operation: Operation, held: tuple[torch.Tensor, ...]) -> Operation:
    """The operation with its arrays."""
    whole = object.__new__(type(operation))
    for name, value in vars(operation).items():
        vars(whole)[name] = value if type(value) in PLAIN else _changed(
            value, _Held, lambda place: held[place].numpy())
    return whole


def _changed(value, kind: type, change):
    """Nested tuples, lists and dicts with everything of `kind` changed."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, Codes):  # as a tuple, but this happens all the time
        codes, form, passes = value
        return Codes(change(codes), form, None if passes is None else change(passes))
    if isinstance(value, dict):
        return {key: _changed(x, kind, change) for key, x in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_changed(x, kind, change) for x in value))
    if isinstance(value, list | tuple):
        return type(value)(_changed(x, kind, change) for x in value)
    return value


def run(operation: Operation, layer: Layer, training: bool, *tensors: torch.Tensor | None
        ) -> torch.Tensor:
    """The operation on the hardware of a layer, in autograd; raises ValueError under autocast."""
    if torch.is_autocast_enabled("cpu"):
        raise ValueError(f"layer {layer.site!r}: autocast is active, and would choose dtypes that "
                         "carry no codes; formats come from the configuration, so leave "
                         "torch.autocast out around fixed modules")
    learned = layer.thresholds if torch.is_grad_enabled() else {}
    learned = {name: x for name, x in learned.items() if x.requires_grad}
    return known(_Run.apply(operation, layer, training, tuple(learned), *learned.values(),
                            *tensors))
