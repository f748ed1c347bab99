"""Scopes: while one is open, torch functions run on the hardware of the site that calls them.

A site is a module's path, or the path and a function's name: `fc1`, `block.add`, `block.add_1`.
A fixed module opens its own scope in forward; `emu.fixed_scope` opens one around models that know
nothing of it. What the table does not have either moves values, which is exact, or computes in
float: such a core is surrounded by the casts of its site and says `exact=False`.

This is the only mode of the project. It belongs to the thread that opened it, and to forward: what
runs in a backward pass is its own affair, unless a frame begins there.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode

from emu.nn import compiled, compiler, functions
from emu.nn.audit import FloatSum, audit, host, on_host, visit
from emu.nn.config import Site
from emu.nn.frames import state
from emu.nn.grads import known
from emu.nn.hardware import Hardware
from emu.nn.layer import Layer
from emu.nn.moved import Alias, View, overwrite, sums_nothing
from emu.nn.operation import run
from emu.nn.ops.casts import Cast

# What asks a tensor for something or tells autograd something, and computes nothing here.
_PLAIN = {torch.autograd.backward, torch.autograd.grad, torch.ops.emu.call} | {
    getattr(torch.Tensor, name) for name in (
    "__len__", "backward", "detach", "detach_", "dim", "is_contiguous", "is_floating_point", "item",
    "numel", "numpy", "register_hook", "register_post_accumulate_grad_hook", "requires_grad_",
    "retain_grad", "size", "stride", "tolist")}
# What computes something to show or to decide by.
_HOST = {torch.Tensor.__format__, torch.Tensor.__repr__,
         torch._nested_tensor_from_mask_left_aligned}
# What gives a tensor's values, or some of them, in another shape or order.
_VIEWS = {getattr(home, name) for home in (torch, torch.Tensor) for name in (
    "__getitem__", "adjoint", "chunk", "contiguous", "diagonal", "flatten", "moveaxis", "movedim",
    "narrow", "permute", "ravel", "reshape", "reshape_as", "select", "split", "split_with_sizes",
    "squeeze", "swapaxes", "swapdims", "t", "tensor_split", "transpose", "unbind", "unflatten",
    "unsqueeze", "view", "view_as") if hasattr(home, name)} | {
        getattr(torch.Tensor, name).__get__ for name in ("T", "mT", "H", "mH")}
# Where `inplace` is among the arguments: torch's compiler hands them over as they were written.
_INPLACE = {func: tuple(code.co_varnames).index("inplace") for func in functions.TABLE
            if (code := getattr(func, "__code__", None)) and "inplace" in code.co_varnames}


class Region:
    """The hardware of one module's operations: `parts` holds a Layer for each function's name.

    The name is "" where the module is that operation (a Linear and `linear`). `kinds` are the names
    of the module's classes, `parameters` is its own dict of them, which learned thresholds are
    added to; `names` are other names for these. Layers are made when they are first used.
    """

    def __init__(self, path: str, kinds: tuple[str, ...], hardware: Hardware,
                 parameters: dict[str, torch.nn.Parameter] | None = None, prefix: str = "",
                 names: Mapping[str, str] | None = None):
        self.path, self.kinds, self.hardware = path, kinds, hardware
        self.parameters, self.prefix, self.names = parameters, prefix, names
        self.parts: dict[str, Layer] = {}
        self.regions: dict[str, Region] = {}
        self.alone = False  # whether it holds one function, which then takes its path
        self.floating = False  # whether its module computes in plain torch for now
        self.ran = False  # whether its module's forward has run: then all its layers are known

    def layer(self, name: str, kind: str, uses: tuple[str, ...], channels: int | None) -> Layer:
        """The layer of one function, by its name in this region."""
        found = self.parts.get(name)
        if found is None:
            path = self.path_of(name)
            training, evaluation = (self.hardware.resolve(Site(path, kind, uses, phase))
                                    for phase in (True, False))
            found = self.parts.setdefault(name, Layer(
                path, training, self.hardware, channels, evaluation, kind, uses, self.parameters,
                self._prefix(name), self.names))
        return found

    def path_of(self, name: str) -> str:
        """The site of one function."""
        return f"{self.path}.{name}" if self.path and name else self.path or name

    def part(self, name: str, kinds: tuple[str, ...] = ()) -> Region:
        """The region of a function that is made of others, or of a module without a path."""
        return self.regions.setdefault(name, Region(self.path_of(name), kinds, self.hardware,
                                                    self.parameters, self._prefix(name),
                                                    self.names))

    def _prefix(self, name: str) -> str:
        """What the names of a part's thresholds begin with."""
        return f"{self.prefix}{name}_".replace(".", "_") if name else self.prefix

    def threshold_keys(self) -> set[str]:
        """The names of the module's parameters that are learned thresholds."""
        return {key for layer in self.layers().values() for key in layer.threshold_keys.values()}

    def layers(self) -> dict[str, Layer]:
        """Every layer there is so far, by its site."""
        found = {layer.site: layer for layer in self.parts.values()}
        for region in self.regions.values():
            found |= region.layers()
        return found


class Frame:
    """One running forward of a region, and how often each function has been called in it.

    Where a `fixed_scope` began it, `scope` is that, `module` the one that runs and `root` the
    outermost that does.
    """

    def __init__(self, region: Region, training: bool, scope=None,
                 module: torch.nn.Module | None = None, root: torch.nn.Module | None = None):
        self.region, self.training = region, training
        self.calls: dict[str, int] = {}  # of each name
        self.scope, self.module, self.root = scope, module, root
        self.mode: _Table | None = None
        self.task = -1  # the backward pass in which it began
        self.tracing = torch.compiler.is_compiling()

    def again(self) -> Frame:
        """A frame that goes on from here."""
        other = copy.copy(self)
        other.calls, other.mode = self.calls.copy(), None
        return other

    def call(self, func, args, kwargs):
        """The function on the hardware, where it computes with floats."""
        entry = functions.TABLE.get(func)
        if entry is None or not _has_floats(args, kwargs) or (
                entry.takes is not None and not entry.takes(*args, **kwargs)):
            return self._other(func, args, kwargs)
        target = kwargs.pop("out", None)
        place = _INPLACE.get(func, len(args))
        if kwargs.pop("inplace", False) or any(args[place:]) or func in _CHANGING:
            target = args[0]
        args = args[:place]
        if target is not None and self.tracing:
            # What the graph's backward reads must not change.
            kept = tuple(x.clone() if x is target else x for x in args)
            return target.copy_(self.fixed(entry, kept, kwargs))
        out = self.fixed(entry, args, kwargs)
        return out if target is None else overwrite(target, out)

    def fixed(self, entry: functions.Entry, args, kwargs):
        """The entry's function at the next site of its name."""
        if entry.composite:
            with running(Frame(self._within(entry), self.training)):
                return entry.function(*args, **kwargs)
        for kind in self.region.kinds:
            if kind in entry.kinds:
                break
        else:
            kind = None
        name = self.name("" if kind or self.region.alone else entry.name)
        if self.tracing:
            path = self.region.path_of(name)
            return compiled.call(entry, self.region.hardware.key, path, kind or entry.kinds[0],
                                 self.training, args, kwargs)
        layer = self.region.layer(name, kind or entry.kinds[0], entry.uses, entry.channels)
        visit(layer.site)
        return entry.function(layer, self.training, *args, **kwargs)

    def step(self, name: str, *args):
        """A function of `functions.STEPS` on the hardware of a linear layer."""
        return self.fixed(functions.STEPS[name][1], args, {})

    def _within(self, entry) -> Region:
        """The region of the functions that a composite one is made of."""
        region = self.region
        if any(kind in entry.kinds for kind in region.kinds):
            return region
        return region.part(self.name(entry.name))

    def name(self, name: str) -> str:
        """The name of one more call."""
        calls = self.calls.get(name, 0)
        self.calls[name] = calls + 1
        return name if not calls else f"{name}_{calls}".lstrip("_")

    @contextmanager
    def named(self, name: str):
        """Give the function that a composite one calls here this name, each time."""
        region = self.region.part(name)
        region.alone = True
        with running(Frame(region, self.training)) as inner:
            yield inner

    def _other(self, func, args, kwargs):
        """A function that the hardware does not have: moved as it is, or a float core."""
        if self.tracing and func not in _PLAIN and any(
                x.is_floating_point() for x in _tensors(args, kwargs)):
            if not compiler.moves(func.__name__):
                compiler.refuse(func.__name__)
            if in_place(func) or (func.__name__ == "__get__" and func not in _VIEWS):
                return func(*args, **kwargs)
            args, kwargs = _replaced((args, kwargs), compiled.alias)
            return func(*args, **kwargs)
        if func in _PLAIN or getattr(func, "__module__", "") == "torch.nn.init" or not any(
                x.is_floating_point() for x in _tensors(args, kwargs)):
            return func(*args, **kwargs)
        if func in _HOST:
            with host():
                return func(*args, **kwargs)
        if func.__name__ == "__get__":
            out = func(*args, **kwargs)
            if not isinstance(out, torch.Tensor) or out.grad_fn is None:
                return out
        if func is torch.Tensor.__iter__:
            return iter(self.call(torch.Tensor.unbind, args, {}))
        if func in _VIEWS and torch.is_grad_enabled() and args[0].requires_grad and not any(
                isinstance(x, torch.dtype) for x in args):
            return _viewed(func, *args, **kwargs)
        moved = _aliased((args, kwargs), lambda x: x.grad_fn is not None, in_place(func))
        try:
            with audit():
                out = func(*moved[0], **moved[1])
            if not in_place(func) and any(x.grad_fn is not None for x in _tensors(out)):
                moved = _aliased(moved, lambda x: x.grad_fn is None, False)
                if any(x is not y for x, y in zip(_tensors(moved), _tensors(args, kwargs),
                                                  strict=True)):
                    out = func(*moved[0], **moved[1])
            if all(sums_nothing(known(x)) for x in _tensors(out)):
                return out
        except FloatSum:
            pass
        return self._core(func, *moved)

    def _core(self, func, args, kwargs):
        """A float function between the casts x and y of its site."""
        name = func.__name__.strip("_")
        layer = self.region.layer(self.name(name), name, functions.CAST, None)
        layer.exact = False
        visit(layer.site)
        enter = lambda x: run(Cast("x"), layer, self.training, x)  # noqa: E731
        leave = lambda x: run(Cast("y"), layer, self.training, x)  # noqa: E731
        floats = lambda cast: lambda x: cast(x) if x.is_floating_point() else x  # noqa: E731
        target = args[0] if args else None
        if layer.cast_of("x", self.training) is not None:
            args, kwargs = _replaced((args, kwargs), floats(enter))
        out = _replaced(func(*args, **kwargs), known)
        inplace = args and out is args[0]
        if layer.cast_of("y", self.training) is not None:
            out = _replaced(out, floats(leave))
        return target.copy_(out) if inplace and out is not target else out


def _viewed(func, x, *args, **kwargs):
    """What func, one of `_VIEWS`, gives, with gradients that are codes."""
    out = func(x.detach(), *args, **kwargs)
    if isinstance(out, torch.Tensor):
        return known(View.apply(x, lambda x: func(x, *args, **kwargs)))
    return tuple(known(View.apply(x, lambda x, i=i: func(x, *args, **kwargs)[i]))
                 for i in range(len(out)))


def in_place(func) -> bool:
    """Whether a torch function changes its first argument."""
    name = func.__name__
    return name in ("__setitem__", "__set__", "__delete__") or (
        name[-1] == "_" and name[-2:] != "__")


_CHANGING = {func for func in functions.TABLE if in_place(func)}


def _aliased(arguments: tuple, which, keep_first: bool) -> tuple:
    """The arguments with an Alias of every tensor of `which` that wants a gradient."""
    if not torch.is_grad_enabled():
        return arguments
    found = {id(x): x for x in _tensors(*arguments)}
    aliases = {place: Alias.apply(x) for place, x in list(found.items())[keep_first:]
               if x.requires_grad and x.is_floating_point() and which(x)}
    return _replaced(arguments, lambda x: aliases.get(id(x), x)) if aliases else arguments


class _Table(TorchFunctionMode):
    """Sends every torch function to the frame that runs."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        state.open = False  # torch takes a mode off the stack while it handles a function
        try:
            frame = state.frames[-1]
            if frame.task != _task() or on_host():
                return func(*args, **(kwargs or {}))
            return frame.call(func, args, kwargs or {})
        finally:
            state.open = True


@contextmanager
def running(frame: Frame):
    """Run torch functions in this frame, until its forward ends."""
    push(frame)
    try:
        yield frame
    finally:
        end(frame)


def end(frame: Frame) -> None:
    """End a frame, and those above it that an interrupt has left."""
    while pop() is not frame:
        pass


def within(region: Region) -> bool:
    """Whether torch functions run in this region now."""
    frames = getattr(state, "frames", [])
    return bool(getattr(state, "open", False) and frames and frames[-1].region is region)


def push(frame: Frame) -> None:
    """Begin a frame; the mode is entered with the first one, or with one begun inside it."""
    mode = None if getattr(state, "open", False) else _Table()
    frames = state.frames = getattr(state, "frames", [])
    if mode is not None:
        mode.__enter__()
        state.open = True
    frames.append(frame)
    frame.mode, frame.task = mode, _task()


def pop() -> Frame:
    """End the last frame."""
    frame = state.frames.pop()
    if frame.mode is not None:
        state.open = False
        frame.mode.__exit__(None, None, None)
    return frame


def top() -> Frame | None:
    """The frame in which torch functions now run in this thread, None where they run in torch."""
    if not getattr(state, "open", False):
        return None
    frame = state.frames[-1]
    return frame if frame.task == _task() and not on_host() else None


@torch.compiler.assume_constant_result  # a graph has its backward pass apart
def _task() -> int:
    """The backward pass that runs; -1 for none."""
    return torch._C._current_graph_task_id()


def _has_floats(args, kwargs) -> bool:
    """Whether a float tensor is among the arguments."""
    for x in args:
        if isinstance(x, torch.Tensor) and x.is_floating_point():
            return True
    return any(x.is_floating_point() for x in _tensors(args, kwargs))


def _tensors(*values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(*value)
        elif isinstance(value, dict):
            yield from _tensors(*value.values())


def _replaced(value, change):
    """The value with every tensor in it changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_replaced(x, change) for x in value))
    if isinstance(value, list | tuple):
        return type(value)(_replaced(x, change) for x in value)
    if isinstance(value, dict):
        return {key: _replaced(x, change) for key, x in value.items()}
    return value
