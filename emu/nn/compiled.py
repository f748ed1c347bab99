"""The fixed functions as torch's compiler sees them: two custom operators without state.

`emu::call` runs one function of the table, `emu::call_grad` its backward, which runs it again. What
they compute is a text: the function, the site, its LayerSpec and the arguments that are no tensors.
So a graph holds nothing of a model but texts, and gives the same bits.

Hardware with state (rules that choose binary points, random operands) is not compiled: its models
run eagerly, as graph breaks. A compiled graph adds the gradients of a tensor's several users in
float; run the model once under `emu.nn.audit()` to know that these sums are exact.
"""

from __future__ import annotations

import ast
import functools

import torch

from emu.nn import functions
from emu.nn.audit import EXACT
from emu.nn.backend import Backend
from emu.nn.config import Site
from emu.nn.layer import Hardware, Layer
from emu.spec import LayerSpec


def call(entry: functions.Entry, hardware: str, path: str, kind: str, training: bool, args,
         kwargs) -> torch.Tensor:
    """The function at a site, as an operator of the graph."""
    tensors = []
    shape = _marked((args, kwargs), tensors)
    text = _spec(hardware, path, kind, entry.uses, training)
    return torch.ops.emu.call(tensors, repr((entry.name, path, text, training, shape)))


@torch.compiler.assume_constant_result
def _spec(hardware: str, path: str, kind: str, uses: tuple, training: bool) -> str:
    return str(Hardware.known[hardware].resolve(Site(path, kind, uses, training)))


@torch.compiler.assume_constant_result
def moves(name: str) -> bool:
    """Whether a torch function only moves or compares values, by its schema."""
    packet = getattr(torch.ops.aten, name, None)
    return name in EXACT | {"__get__", "__getitem__"} or (packet is not None and all(
        getattr(packet, overload).is_view for overload in packet.overloads()))


def refuse(name: str) -> None:
    """Raise for a function that a graph does not hold: a break would leave the hardware there."""
    raise NotImplementedError(f"{name}: is not compiled; put torch.compiler.disable on what calls "
                              "it, or leave torch.compile out")


def _marked(value, tensors: list):
    """The value with every tensor replaced by ("tensor", its place in `tensors`)."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return ("tensor", len(tensors) - 1)
    if isinstance(value, tuple):
        return tuple([_marked(x, tensors) for x in value])
    if isinstance(value, list):
        return [_marked(x, tensors) for x in value]
    if isinstance(value, dict):
        return {key: _marked(x, tensors) for key, x in value.items()}
    return value


def _filled(value, tensors: list):
    """What `_marked` was given."""
    if isinstance(value, tuple) and len(value) == 2 and value[0] == "tensor":
        return tensors[value[1]]
    if isinstance(value, list | tuple):
        return type(value)(_filled(x, tensors) for x in value)
    if isinstance(value, dict):
        return {key: _filled(x, tensors) for key, x in value.items()}
    return value


@functools.lru_cache(1 << 10)
def _parsed(what: str) -> tuple:
    """(entry, its torch function, layer, training, arguments) of an operator's text."""
    name, path, text, training, shape = ast.literal_eval(what)
    function, entry = next((function, entry) for function, entry in functions.TABLE.items()
                           if entry.name == name)
    layer = Layer(path, LayerSpec.parse(text), Hardware(None, Backend()), entry.channels)
    return entry, function, layer, training, shape


def _run(tensors: list[torch.Tensor], what: str) -> torch.Tensor:
    entry, _, layer, training, shape = _parsed(what)
    args, kwargs = _filled(shape, tensors)
    return entry.function(layer, training, *args, **kwargs)


@torch.library.custom_op("emu::call", mutates_args=())
def _call(tensors: list[torch.Tensor], what: str) -> torch.Tensor:
    with torch.no_grad():
        out = _run(tensors, what)
    return out.clone() if any(out.data_ptr() == x.data_ptr() for x in tensors) else out


@_call.register_fake
def _(tensors, what):
    _, function, _, _, shape = _parsed(what)
    args, kwargs = _filled(shape, tensors)
    return torch.empty_like(function(*args, **kwargs), memory_format=torch.contiguous_format)


@torch.library.custom_op("emu::call_grad", mutates_args=())
def _call_grad(grad: torch.Tensor, tensors: list[torch.Tensor], needs: list[bool], what: str
               ) -> list[torch.Tensor]:
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_(need) for x, need in zip(tensors, needs, strict=True)]
        found = torch.autograd.grad(_run(inputs, what), [x for x in inputs if x.requires_grad],
                                    grad)
    return [x.contiguous() for x in found]


@_call_grad.register_fake
def _(grad, tensors, needs, what):
    return [torch.empty_like(x, memory_format=torch.contiguous_format)
            for x, need in zip(tensors, needs, strict=True) if need]


def _keep(ctx, inputs, output):
    ctx.what = inputs[1]
    ctx.save_for_backward(*inputs[0])


def _backward(ctx, grad):
    tensors = list(ctx.saved_tensors)
    needs = [x.is_floating_point() and x.requires_grad for x in tensors]
    found = iter(torch.ops.emu.call_grad(grad, tensors, needs, ctx.what))
    return [next(found) if need else None for need in needs], None


_call.register_autograd(_backward, setup_context=_keep)
