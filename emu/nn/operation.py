"""One autograd function for every operation: codes in, codes out, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from torch.autograd import Function

from emu import engine
from emu.nn import border, software
from emu.nn.grads import Gradient, Parts, hand_back, known, once, parts_of
from emu.nn.layer import Codes, Layer
from emu.nn.tape import Note, Tape, gradient_of, is_open, read
from emu.number import Format

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

    notes: Sequence[Note] = ()

    def forward(self, layer: Layer, training: bool, *tensors: torch.Tensor
                ) -> Codes | torch.Tensor:
        raise NotImplementedError

    def backward(self, layer: Layer, training: bool, gradient: Gradient, needs: Sequence[bool]
                 ) -> list[Codes | torch.Tensor | None]:
        raise NotImplementedError


class _Run(Function):
    @staticmethod
    def forward(ctx, call, *tensors):
        ctx.set_materialize_grads(False)
        operation, layer, training, learned = call
        ctx.operation, ctx.layer, ctx.training, ctx.parts = operation, layer, training, Parts()
        ctx.learned, in_float = learned, layer.hardware.float_backward
        if learned:
            if in_float:
                raise ValueError(f"layer {layer.site!r}: thresholds are learned by gradients in "
                                 "codes, which training in software has not; use another rule "
                                 "there")
            ctx.learned = dict(zip(learned, tensors[:len(learned)], strict=True))
            tensors = tensors[len(learned):]
        ctx.users, dtype = [], None
        for x in tensors:
            if x is None:
                ctx.users.append(None)
                continue
            own = x.dtype
            if own is torch.float64 or (dtype is None and own.is_floating_point):
                dtype = own
            ctx.users.append((own, parts_of(x) if x.requires_grad and not in_float else None))
        if learned or is_open():
            with Tape(learned, tensors) as operation.notes:
                out = operation.forward(layer, training, *tensors)
        else:
            out = operation.forward(layer, training, *tensors)
        held, ctx.places = _taken_out(operation)
        ctx.save_for_backward(*held)
        if isinstance(out, torch.Tensor):
            return out
        return border.to_tensor(out.codes, out.form, dtype, f"{layer.site}.y")

    @staticmethod
    @once
    def backward(ctx, grad):
        needs = ctx.needs_input_grad[1 + len(ctx.learned):]
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        layer, in_float = ctx.layer, ctx.layer.hardware.float_backward
        if in_float:
            ctx.parts.taken()
        gradient = software.FloatGradient(grad) if in_float else Gradient.of(grad, ctx.parts)
        operation, slopes = _put_back(ctx.operation, ctx.saved_tensors, ctx.places), ()
        if operation.notes or ctx.learned:
            slopes, found = _learned(ctx.learned, operation, layer, ctx.training, gradient, needs)
        else:
            found = operation.backward(layer, ctx.training, gradient, needs)
        handed = [None, *slopes]
        for codes, user, need in zip(found, ctx.users, needs, strict=True):
            if not need or codes is None:
                handed.append(None)
            elif in_float:
                handed.append(software.floats(codes, user[0]))
            else:
                handed.append(hand_back(codes, *user, f"{layer.site}.grad"))
        return tuple(handed)


def _learned(thresholds: dict[str, torch.Tensor], operation: Operation, layer: Layer,
             training: bool, gradient: Gradient, needs: tuple[bool, ...]
             ) -> tuple[list[torch.Tensor], list[Codes | None]]:
    """The gradients of the thresholds of learned casts, and those of the operation's tensors."""
    slopes = dict.fromkeys(thresholds, Fraction(0))
    for note in operation.notes:
        if note.operand < 0:
            codes = (gradient.codes, gradient.form.frac) if gradient.codes is not None else read(
                gradient.tensor)
            slopes[note.setting] += note.slope(*codes)
            gradient = gradient.masked(note.passes)
    inner = {note.operand: note for note in operation.notes if note.operand >= 0}
    found = operation.backward(layer, training, gradient,
                               [need or i in inner for i, need in enumerate(needs)])
    for i, note in inner.items():
        slopes[note.setting] += note.slope(found[i].codes, found[i].form.frac)
        if note.passes is not None:
            found[i] = found[i]._replace(codes=engine.masked(found[i].codes, note.passes))
    return [gradient_of(threshold, slopes[name])
            for name, threshold in thresholds.items()], found


class _Held(int):
    """Where an array stands among those that autograd holds."""


class _Kept(NamedTuple):
    """Where an operation's codes stand among the arrays that autograd holds."""

    name: str  # of the attribute
    codes: int
    form: Format
    passes: int | None


def _taken_out(operation: Operation) -> tuple[list[torch.Tensor], list[_Kept]]:
    """The arrays of an operation, which keeps their places; those of its codes are given."""
    held, places = [], []

    def take(x: np.ndarray) -> _Held:
        held.append(_lent(x))
        return _Held(len(held) - 1)

    own = vars(operation)
    for name, value in own.items():
        if type(value) is Codes:
            codes, form, passes = value
            own[name] = None
            places.append(_Kept(name, len(held), form,
                                None if passes is None else len(held) + 1))
            held.append(_lent(codes))
            if passes is not None:
                held.append(_lent(passes))
        elif type(value) not in PLAIN:
            own[name] = _changed(value, np.ndarray, take)
    return held, places


def _lent(x: np.ndarray) -> torch.Tensor:
    """A tensor of the same memory, where that has no negative strides and may be written to."""
    plain = x.flags.carray or (x.flags.writeable and min(x.strides, default=0) >= 0)
    return torch.from_numpy(x if plain else x.copy())


def _put_back(operation: Operation, held: tuple[torch.Tensor, ...], places: list[_Kept]
              ) -> Operation:
    """The operation with its arrays."""
    whole = object.__new__(type(operation))
    own = vars(whole)
    for name, value in vars(operation).items():
        own[name] = value if type(value) in PLAIN else _changed(
            value, _Held, lambda place: held[place].numpy())
    for name, codes, form, passes in places:
        own[name] = Codes(held[codes].numpy(), form,
                          None if passes is None else held[passes].numpy())
    return whole


def _changed(value, kind: type, change):
    """Nested tuples, lists and dicts with everything of `kind` changed."""
    if isinstance(value, kind):
        return change(value)
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
    learned = {}
    if layer.threshold_keys and torch.is_grad_enabled():
        learned = {name: x for name, x in layer.thresholds.items() if x.requires_grad}
    return known(_Run.apply((operation, layer, training, tuple(learned)), *learned.values(),
                            *tensors))
