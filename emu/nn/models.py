"""`fixed_scope`: any unmodified model on the hardware, while the scope is open.

The scope follows which module runs by torch's global forward hooks. The outermost one is the root,
whose children's sites are their paths in it; a function outside any module has its own name.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch._dynamo import OptimizedModule
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils.weak import WeakIdKeyDictionary

from emu.nn import compiler, scope, state
from emu.nn.backend import Backend
from emu.nn.config import Config
from emu.nn.hardware import Hardware
from emu.nn.layer import Layer
from emu.nn.moved import outgoing
from emu.nn.scope import Frame, Region
from emu.nn.strategy import Strategies

FUNCTIONS = "<functions>"  # the path of those outside any module, in a state


class FixedScope:
    """What `fixed_scope` gives: a context that may be entered again, and by several threads.

    Each module keeps its hardware, with the state of its rules, as long as both live.
    """

    def __init__(self, hardware: Hardware):
        self.hardware = hardware
        self._functions = Region("", (), hardware)
        self._modules = WeakIdKeyDictionary()
        self._loaded: dict[str, dict] = {}  # of modules that have not run yet, by their paths
        self._roots = 0
        self._lock = threading.Lock()
        self._open = threading.local()

    def __enter__(self) -> FixedScope:
        was = compiler.off()
        opened = self._open.stack = getattr(self._open, "stack", [])
        opened.append((self._running(Frame(self._functions, True, self)), was))
        opened[-1][0].__enter__()
        return self

    def __exit__(self, *error) -> None:
        running, was = self._open.stack.pop()
        running.__exit__(*error)
        compiler.on(was)

    compiler.never_begin_with(__enter__, within=False)

    @contextmanager
    def _running(self, frame: Frame):
        with _watching(), scope.running(frame):
            yield

    @property
    def layers(self) -> dict[str, Layer]:
        """The hardware of every operation that has run, by its site."""
        with self._lock:
            regions = [self._functions, *self._modules.values()]
        return {site: layer for region in regions for site, layer in region.layers().items()}

    def state_dict(self) -> dict[str, dict]:
        """What the layers have chosen and drawn, under the keys that a fixed model's state has.

        The parameters are the models' own. What functions outside any module have is under
        `<functions>`.
        """
        with self._lock:
            regions = self._regions()
            found = {**self._loaded, **{path: state.saved(region, None)
                                        for path, region in regions.items()}}
        return {_key(path): kept for path, kept in found.items() if kept is not None}

    def load_state_dict(self, state_dict: Mapping[str, dict]) -> None:
        """Continue from what `state_dict` gave: modules are known by their paths when they run.

        Raises ValueError, and changes nothing, where a key is no layer's state, or the state has
        another schema or other formats.
        """
        found = {key.removesuffix(state.KEY).removesuffix("."): kept
                 for key, kept in state_dict.items()}
        for key, kept in state_dict.items():
            if not key.endswith(state.KEY) or not state.is_ours(kept):
                raise ValueError(f"{key}: is no state of a scope's hardware; load what its "
                                 "state_dict() gave, and parameters into the model")
        state.check([(f"{path}." if path else "", Region(path, (), self.hardware))
                     for path in found], state_dict)
        with self._lock:
            self._loaded = found
            for path, region in self._regions().items():
                self._restore(path, region)
        for kept in state_dict.values():  # all say the same
            state.restore_generator(self.hardware, kept)

    def _regions(self) -> dict[str, Region]:
        return {FUNCTIONS: self._functions,
                **{region.path: region for region in self._modules.values()}}

    def _restore(self, path: str, region: Region) -> Region:
        """The region, with the state that was loaded for its path."""
        if path in self._loaded:
            state.restore_layers(region, self._loaded.pop(path))
        return region

    def region_of(self, module: torch.nn.Module, caller: Frame) -> Region:
        """The region of a module that is called in a frame."""
        with self._lock:
            if module not in self._modules and caller.root is None:
                self._know(module, f"root_{self._roots}" if self._roots else "")
                self._roots += 1
            elif module not in self._modules:  # it came later, or is in no list of modules
                self._know(caller.root, self._modules[caller.root].path)
            if module not in self._modules:
                kinds = _kinds(module)
                region = caller.region.part(caller.name(kinds[0].lower()), kinds)
                region.kinds = kinds  # a state that was loaded made it without them
                self._modules[module] = region
            return self._modules[module]

    def _know(self, root: torch.nn.Module, prefix: str) -> None:
        """Name what is in a root by its paths."""
        for name, module in root.named_modules():
            if module not in self._modules:
                path = ".".join(part for part in (prefix, name) if part)
                self._modules[module] = self._restore(
                    path, Region(path, _kinds(module), self.hardware))


def fixed_scope(config: Config | Mapping | str | Path, backend: Backend | None = None,
                strategies: Strategies | Mapping | str | Path | None = None) -> FixedScope:
    """A context in which every torch function computes on the hardware of `config`.

    Models stay as they are: parameters are cast where they are used, a backward pass may run
    outside. The phase of a site is that of the module that runs (`module.training`), and training
    outside modules. Fixed modules keep their own hardware. The paths of a second model that is
    called begin with `root_1`. Keep the scope, or its `state_dict()`, to keep the state of its
    rules. `strategies` act on what is cast (see `emu.nn.strategy`).
    """
    return FixedScope(Hardware(Config.parse(config), backend or Backend(),
                               Strategies.parse(strategies)))


def _key(path: str) -> str:
    """Where the state of what is at a path is in a state_dict."""
    return f"{path}.{state.KEY}" if path else state.KEY


def _kinds(module: torch.nn.Module) -> tuple[str, ...]:
    return tuple(base.__name__ for base in type(module).__mro__)


@contextmanager
def resumed(frame: Frame):
    """Run in this frame, and follow its scope's modules if it has one."""
    if frame.scope is None:
        with scope.running(frame):
            yield
    else:
        with frame.scope._running(frame):
            yield


_lock = threading.Lock()
_watchers: list[tuple] = []  # the handles of the hooks, once for each that watches


@contextmanager
def _watching():
    """Have the hooks that follow which module runs."""
    with _lock:
        _watchers.append(_watchers[-1] if _watchers else (
            register_module_forward_pre_hook(_begin),
            register_module_forward_hook(_end, always_call=True)))
    try:
        yield
    finally:
        with _lock:
            handles = _watchers.pop()
            if not _watchers:
                for handle in handles:
                    handle.remove()


def _begin(module: torch.nn.Module, args) -> None:
    caller = scope.top()
    if caller is None or caller.scope is None or isinstance(
            vars(module).get("_emu_region"), Region) or isinstance(module, OptimizedModule):
        return  # a fixed module has its own hardware, a compiled one runs what it is made of
    scope.push(Frame(caller.scope.region_of(module, caller), module.training, caller.scope, module,
                     module if caller.root is None else caller.root))


def _end(module: torch.nn.Module, args, output):
    frame = scope.top()
    if frame is None or frame.module is not module:
        return None
    scope.pop()
    return outgoing(output) if frame.root is module else None
