"""What torch's compiler may have of a fixed model: all of a module, or nothing.

Hardware with state (rules that choose binary points, random operands), float cores and whatever
torch itself breaks a graph at (a print, a branch on data; a network of `torch.nn.LSTM` and the
like, without `torch._dynamo.config.allow_rnn`) make a fixed module run as it does uncompiled,
between graphs. A `fixed_scope` lets no graph run.
"""

from __future__ import annotations

import threading

import torch
from torch._C._dynamo import eval_frame

from emu.nn.audit import EXACT


@torch.compiler.assume_constant_result
def moves(name: str) -> bool:
    """Whether a torch function only moves or compares values, by its schema."""
    packet = getattr(torch.ops.aten, name, None)
    found = [] if packet is None else [getattr(packet, each) for each in packet.overloads()]
    found = [overload for overload in found  # torch splits strings too
             if "Tensor" in [str(argument.type) for argument in overload._schema.arguments[:1]]]
    return name in EXACT | {"__get__", "__getitem__"} or (
        bool(found) and all(overload.is_view for overload in found))


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
