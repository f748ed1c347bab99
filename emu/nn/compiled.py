"""The fixed functions as torch's compiler sees them: custom operators without state.

`emu::call` runs one function of the table, `emu::call_grad` its backward, which runs it again, and
`emu::moved` gives the running statistics after a batch. What they compute is a text: the function,
the site, its LayerSpec and the arguments that are no tensors. So a graph holds nothing of a model
but texts, and gives the same bits. `emu::drawn` are the masks of dropout.

A fixed module is compiled as a whole or not at all. Hardware with state (rules that choose binary
points, random operands), float cores, recurrent layers and whatever torch itself breaks a graph at
make it run as it does uncompiled, between graphs. A compiled graph adds the gradients of a tensor's
several users in float, without a check: where such a sum may need more bits than the dtype has, use
float64.
"""

from __future__ import annotations

import ast
import functools
import threading

import torch
from torch._C._dynamo import eval_frame
from torch._library.effects import EffectType

from emu.nn import functions
from emu.nn.audit import EXACT
from emu.nn.backend import Backend
from emu.nn.config import Site
from emu.nn.layer import Hardware, Layer
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


@torch.compiler.assume_constant_result
def moves(name: str) -> bool:
    """Whether a torch function only moves or compares values, by its schema."""
    packet = getattr(torch.ops.aten, name, None)
    return name in EXACT | {"__get__", "__getitem__"} or (packet is not None and all(
        getattr(packet, overload).is_view for overload in packet.overloads()))


def refuse(what: str) -> None:
    """End the graph before the fixed module that runs, which then runs as it does uncompiled.

    Torch raises instead where the whole graph is wanted.
    """
    torch._dynamo.graph_break(msg=f"emu.nn: {what} is not compiled; leave fullgraph=True out, and "
                              "it runs as it does uncompiled")


def never_begin_with(function, within: bool = True) -> None:
    """Let the compiler have a function inside another's graph only, never alone.

    `within` goes for all that the function calls: a graph that began in the middle of a fixed
    module would run under its mode, and be taken for calls of the model.
    """
    skip, default = eval_frame._FrameAction.SKIP, eval_frame._FrameAction.DEFAULT
    eval_frame.set_code_exec_strategy(function.__code__, eval_frame._FrameExecStrategy(
        skip, skip if within else default))


_lock = threading.Lock()
_stances: list = []  # torch's, once for each scope that is open in any thread


def off():
    """Let torch compile nothing: no graph knows of a scope around it. Gives what `on` takes."""
    before = eval_frame.set_eval_frame(None)  # of this thread, which a compiled function may run in
    with _lock:
        _stances.append(_stances[-1] if _stances else torch.compiler.set_stance("force_eager"))
    return before


def on(before) -> None:
    """Let torch compile as it did before `off`, where no other scope is open."""
    with _lock:
        stance = _stances.pop()
        if not _stances:
            stance.__exit__(None, None, None)
    eval_frame.set_eval_frame(before)


never_begin_with(off, within=False)


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


def _keep(ctx, inputs, output):
    ctx.what = inputs[1]
    ctx.save_for_backward(*inputs[0])


def _backward(ctx, grad):
    tensors = list(ctx.saved_tensors)
    needs = [x.is_floating_point() and x.requires_grad for x in tensors]
    found = iter(torch.ops.emu.call_grad(grad, tensors, needs, ctx.what))
    return [next(found) if need else None for need in needs], None


_call.register_autograd(_backward, setup_context=_keep)
