"""The fixed functions as torch's compiler sees them: custom operators without state.

`emu::call` runs one function of the table, `emu::call_grad` its backward, which runs it again, and
`emu::moved` gives the running statistics after a batch. What they compute is a text: the function,
the site, its LayerSpec and the arguments that are no tensors. So a graph holds nothing of a model
but texts, and gives the same bits. `emu::drawn` are the masks of dropout. Where a tensor has
several users, `emu::proved` gives the exact sum of their gradients, or raises; `emu::alias` makes
what only moves a tensor one of its users.
"""

from __future__ import annotations

import ast
import functools

import torch
from torch._library.effects import EffectType

from emu.nn import border, functions
from emu.nn.backend import Backend
from emu.nn.config import Site
from emu.nn.grads import Gradient, Part, Parts
from emu.nn.hardware import Hardware
from emu.nn.layer import Layer
from emu.spec import LayerSpec


def call(entry: functions.Entry, hardware: str, path: str, kind: str, training: bool, args,
         kwargs) -> torch.Tensor:
    """The function at a site, as an operator of the graph."""
    text = _spec(hardware, path, kind, entry.uses, training)
    if entry.name == "batch_norm":
        args, kwargs = _moving(path, text, training, *args, **kwargs), {}
    tensors, what = _described(entry.name, path, text, training, args, kwargs)
    return torch.ops.emu.call(tensors, what)


def _moving(path: str, text: str, phase: bool, input, mean, var, weight=None, bias=None,
            training=False, momentum=0.1, eps=1e-5) -> tuple:
    """The arguments of a batch norm, whose statistics have moved where it moves some."""
    if training and mean is not None:
        tensors, what = _described("batch_norm", path, text, phase, (
            input.detach(), mean, var, None, None, True, momentum, eps), {})
        moved = torch.ops.emu.moved(tensors, what)
        mean.copy_(moved[0])
        var.copy_(moved[1])
        mean = var = None
    return input, mean, var, weight, bias, training, momentum, eps


def _described(name: str, path: str, text: str, training: bool, args, kwargs
               ) -> tuple[list[torch.Tensor], str]:
    """The tensors of a call, and all else of it as a text."""
    tensors = []
    shape = _marked((args, kwargs), tensors)
    return tensors, repr((name, path, text, training, shape))


@torch.compiler.assume_constant_result
def _spec(hardware: str, path: str, kind: str, uses: tuple, training: bool) -> str:
    return str(Hardware.known[hardware].resolve(Site(path, kind, uses, training)))


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
    function, entry = functions.STEPS.get(name) or next(
        pair for pair in functions.TABLE.items() if pair[1].name == name)
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


@torch.library.custom_op("emu::moved", mutates_args=())
def _moved(tensors: list[torch.Tensor], what: str) -> list[torch.Tensor]:
    x, *buffers = tensors
    buffers = [buffer.clone() for buffer in buffers]
    with torch.no_grad():
        _run([x, *buffers], what)
    return buffers


@_moved.register_fake
def _(tensors, what):
    return [torch.empty_like(buffer) for buffer in tensors[1:]]


@torch.library.custom_op("emu::drawn", mutates_args=())
def _drawn(shape: list[int], p: float) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bool).bernoulli_(p)


@_drawn.register_fake
def _(shape, p):
    return torch.empty(shape, dtype=torch.bool)


_drawn.register_effect(EffectType.ORDERED)  # drawn in the order of the model, each once


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


class _Uses:
    """The gradients that the users of a tensor gave, and its hook: autograd's sum is proved."""

    def __init__(self):
        self.parts: list[torch.Tensor] = []

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Uses | None:
        """Those of a tensor, None where it wants no gradient."""
        if not tensor.requires_grad:
            return None
        hooks = (tensor._backward_hooks or {}).values() if tensor.grad_fn is None else [
            tensor.grad_fn.metadata.get(("uses", tensor.output_nr))]
        found = next((hook for hook in hooks if isinstance(hook, cls)), None)
        if found is None:
            found = cls()
            tensor.register_hook(found)
            if tensor.grad_fn is not None:
                tensor.grad_fn.metadata["uses", tensor.output_nr] = found
        return found

    def __call__(self, grad: torch.Tensor) -> torch.Tensor | None:
        mine, self.parts = self.parts, []
        if not mine or (len(mine) == 1 and mine[0] is grad):
            return None
        return torch.ops.emu.proved(grad, mine)


def _keep(ctx, inputs, output):
    ctx.what, ctx.uses = inputs[1], [_Uses.of(x) for x in inputs[0]]
    ctx.save_for_backward(*inputs[0])


def _backward(ctx, grad):
    needs = [uses is not None for uses in ctx.uses]
    found = iter(torch.ops.emu.call_grad(grad, list(ctx.saved_tensors), needs, ctx.what))
    found = [next(found) if need else None for need in needs]
    for uses, part in zip(ctx.uses, found, strict=True):
        if uses is not None:
            uses.parts.append(part)
    return found, None


@torch.library.custom_op("emu::proved", mutates_args=())
def _proved(grad: torch.Tensor, parts: list[torch.Tensor]) -> torch.Tensor:
    name, arrived, task = "a gradient", Parts(), torch._C._current_graph_task_id()
    for part in parts:
        codes, frac = border.to_codes(part, name)
        arrived.append(Part(part, codes, border.holding(codes, frac), task))
    total = Gradient.of(grad, arrived)
    return border.each_to_tensor(total.codes, total.form, grad.dtype,
                                 f"the gradient of a tensor {tuple(grad.shape)}")


@_proved.register_fake
def _(grad, parts):
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


@torch.library.custom_op("emu::alias", mutates_args=())
def _alias(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@_alias.register_fake
def _(x):
    return torch.empty_like(x)


def _keep_alias(ctx, inputs, output):
    ctx.uses = _Uses.of(inputs[0])


def _backward_alias(ctx, grad):
    if ctx.uses is not None:
        ctx.uses.parts.append(grad)
    return grad


_alias.register_autograd(_backward_alias, setup_context=_keep_alias)


def alias(x):
    """A tensor for a user whose gradient the graph would add to others unseen; others as is."""
    wants = isinstance(x, torch.Tensor) and x.requires_grad
    return torch.ops.emu.alias(x) if wants else x


_call.register_autograd(_backward, setup_context=_keep)
