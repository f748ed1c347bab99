"""Fixed modules: each a subclass of a torch module whose forward runs its parent's forward in a
scope.

`fix` swaps the class of a model's modules, so parameters and their names stay as they were.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils._pytree import tree_map

from emu.nn import compiled, compiler, frames, sites, state
from emu.nn.adder import Adder2d, SEConv2d
from emu.nn.audit import fixed_again, floating, in_floating, visit
from emu.nn.backend import Backend
from emu.nn.config import Config, Site
from emu.nn.hardware import Hardware
from emu.nn.layer import Layer
from emu.nn.moved import outgoing
from emu.nn.ops.casts import activation
from emu.nn.scope import Frame, Region, end, push, running, top, within
from emu.nn.strategy import Strategies
from emu.spec import LayerSpec
from emu.value import unknown


class _Yielding:
    """An attribute of fixed modules that gives way to one of the same name in the model itself."""

    def __init__(self, find):
        self.find, self.name, self.__doc__ = find, find.__name__, find.__doc__

    def __get__(self, module, cls=None):
        if module is None:
            return self
        for kept in ("_modules", "_parameters", "_buffers"):
            if self.name in vars(module).get(kept, ()):
                return vars(module)[kept][self.name]
        try:
            return getattr(super(FixedModule, module), self.name)
        except AttributeError:
            return self.find(module)


class FixedModule(torch.nn.Module):
    """What every fixed module adds to its torch parent: a region of the hardware.

    Built directly, `spec` (a LayerSpec, its mapping or its text) is its hardware, and its site is
    the name of its class, so two of one kind draw the same random operands; `fix` gives each its
    path. The state of its rules and draws is in its `state_dict` (see `emu.nn.state`). A class may
    have `threshold_names`, other names than `w` or `y` for its learned thresholds.
    """

    def __init__(self, *args, spec: LayerSpec | Mapping | str | None = None,
                 backend: Backend | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        hardware = Hardware(_Only(LayerSpec.parse(spec or {})), backend or Backend())
        self._emu_region = _region(type(self).__name__.lower(), self, type(self), hardware)
        to_grid(self)

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if FixedModule not in cls.__bases__ and "forward" in vars(cls):
            cls.forward = _scoped(cls.forward)

    @_Yielding
    def region(self) -> Region:
        """The hardware of the module and of the functions that it calls."""
        return self._emu_region

    @_Yielding
    def layer(self) -> Layer:
        """The hardware of the module's own operation and parameters, which containers lack."""
        found = self._emu_region.parts.get("")
        if found is None:
            raise AttributeError(f"{type(self).__name__} is no operation: emu.nn.layers(model) has "
                                 "those of its parts")
        return found

    def forward(self, *args, **kwargs):
        return _in_scope(self, super().forward, args, kwargs)

    def extra_repr(self) -> str:
        """The parent's line, then the hardware."""
        lines = [super().extra_repr()]
        for name, layer in self._emu_region.parts.items():
            lines += [f"{name}.{key}".lstrip(".") + f": {text}"
                      for key, text in layer.texts().items()]
        if not is_exact(self):
            lines.append("exact=False")
        return "\n".join(filter(None, lines))

    def __reduce_ex__(self, protocol):
        kept = getattr(self, "__getstate__", lambda: self.__dict__)()  # Python 3.10 has no default
        return _rebuilt, (type(self).__dict__.get("_emu_base", type(self)),), kept

    def get_extra_state(self) -> dict | None:
        """The state of the module's hardware, for `state_dict`; None where there is none."""
        own = super().get_extra_state() if self._has_extra_state else None
        return state.saved(self._emu_region, own)

    def set_extra_state(self, saved) -> None:
        """What `get_extra_state` gave; called by `load_state_dict`."""
        if state.is_ours(saved):
            state.restore(self._emu_region, saved)
            saved = saved["model"]
        if self._has_extra_state and saved is not None:
            super().set_extra_state(saved)

    @property
    def _has_extra_state(self) -> bool:
        """Whether the model's own class keeps an extra state, beside that of the hardware."""
        own = super().get_extra_state
        return own.__func__ is not torch.nn.Module.get_extra_state

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if destination[prefix + state.KEY] is None:
            del destination[prefix + state.KEY]

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys,
                              *reports):
        state.check([(prefix, self._emu_region)], state_dict)
        kept = state_dict.get(prefix + state.KEY)
        if state.is_ours(kept):
            state.make_layers(self._emu_region, kept["hardware"])
        found = state.on_grid(self, self._emu_region, state_dict, prefix, loading=True)
        missing: list[str] = []
        super()._load_from_state_dict({**state_dict, **found}, prefix, local_metadata, strict,
                                      missing, *reports)
        missing_keys += [key for key in missing
                         if key != prefix + state.KEY or self._has_extra_state]

    def load_state_dict(self, state_dict, *args, **kwargs):
        """As torch's, but what is refused is refused before anything changes."""
        fixed_modules = [(f"{name}." if name else "", module)
                         for name, module in self.named_modules()
                         if isinstance(module, FixedModule)]
        state.check([(prefix, module._emu_region) for prefix, module in fixed_modules], state_dict)
        for prefix, module in fixed_modules:
            state.on_grid(module, module._emu_region, state_dict, prefix)
        return super().load_state_dict(state_dict, *args, **kwargs)


EAGER = Adder2d, SEConv2d  # their functions are no torch functions, which the graph follows


def _in_scope(module: FixedModule, forward, args, kwargs):
    """forward(*args, **kwargs), its functions on the module's hardware."""
    region = module._emu_region
    if region.floating:
        with floating():
            return forward(*args, **kwargs)
    frame = Frame(region, module.training)
    if frame.tracing and region.hardware.eager:
        compiler.refuse(region.hardware.eager)
    if within(region):  # called by the forward of a subclass
        return forward(*args, **kwargs)
    region.ran = True
    inner = getattr(frames.state, "open", False) if frame.tracing else top() is not None
    if in_floating():
        with fixed_again(), running(frame):
            out = forward(*args, **kwargs)
    else:  # the same without contexts, as this happens all the time
        push(frame)
        try:
            out = forward(*args, **kwargs)
        finally:
            end(frame)
    if inner:
        return out
    return tree_map(compiled.alias, out) if frame.tracing else outgoing(out)


compiler.never_begin_with(_in_scope)


def _scoped(forward):
    """The forward of a user's subclass of a fixed module."""
    @functools.wraps(forward)
    def scoped(self, *args, **kwargs):
        return _in_scope(self, functools.partial(forward, self), args, kwargs)
    return scoped


class _Only:
    """The resolver of a module that is built with its hardware."""

    def __init__(self, spec: LayerSpec):
        self.spec = spec

    def resolve(self, site: Site) -> LayerSpec:
        return self.spec

    def __str__(self) -> str:
        return str(self.spec)


@functools.cache
def fixed(cls: type[torch.nn.Module]) -> type[FixedModule]:
    """The fixed subclass of a torch module's class."""
    if issubclass(cls, FixedModule):
        return cls
    return type(cls.__name__, (FixedModule, cls), {
        "__module__": "emu.nn", "_emu_base": cls,  # `base` would shadow a module's own
        "__doc__": f"{cls.__module__}.{cls.__qualname__} on the hardware of its region."})


def _rebuilt(cls: type) -> FixedModule:
    cls = fixed(cls)
    return cls.__new__(cls)


_registered: dict[str, type[FixedModule]] = {}


def register_fix_module(cls: type[torch.nn.Module], name: str | None = None) -> type[FixedModule]:
    """The fixed version of a user's module class, which is also `emu.nn.<name>` from here on.

    Its forward runs on the hardware of its site, forward and backward; `name` (default: that of
    the class) is what a configuration calls it by type. `fix` makes the same class by itself, and
    any module of torch.nn is there without being registered. Raises ValueError for what is no
    module class, a name that is taken, and a second name.

    >>> class Scale(torch.nn.Module):
    ...     def forward(self, x):
    ...         return torch.matmul(x, x)
    >>> register_fix_module(Scale, "Squared")
    <class 'emu.nn.Squared'>
    """
    if not (isinstance(cls, type) and issubclass(cls, torch.nn.Module)):
        raise ValueError(f"register_fix_module {cls!r}: needs a class of torch.nn.Module; "
                         "emu.nn.fix(model, config) takes a model")
    name, made = name or cls.__name__, fixed(cls)
    if not name.isidentifier():
        raise ValueError(f"register_fix_module name {name!r}: needs a Python name")
    old = next((old for old, kept in _registered.items() if kept is made), cls.__name__)
    if old != name and find(old) is made:
        raise ValueError(f"register_fix_module {cls.__qualname__}: is emu.nn.{old} already; a "
                         "class has one name")
    if getattr(sys.modules[__package__], name, made) is not made:
        raise ValueError(f"register_fix_module {cls.__qualname__}: emu.nn.{name} is another class; "
                         "give this one another name")
    _registered[name] = made
    if made is not cls:
        made.__name__ = made.__qualname__ = name
    return made


def find(name: str) -> type[FixedModule] | None:
    """The fixed class of this name: a registered one, or that of a module of torch.nn."""
    cls = getattr(torch.nn, name, None)
    if isinstance(cls, type) and issubclass(cls, torch.nn.Module):
        return fixed(cls)
    return _registered.get(name)


class Activation(FixedModule):
    """Casts activations by the spec's y and, in backward, errors by the spec's error."""

    def forward(self, x):
        visit(self.layer.site)
        return activation(self.layer, self.training, x)


def fix(model: torch.nn.Module, config: Config | Mapping | str | Path,
        backend: Backend | None = None, strategies: Strategies | Mapping | str | Path | None = None,
        float_backward: bool = False) -> torch.nn.Module:
    """Turn a float model, in place, into one that computes on the hardware of `config`.

    Parameters keep their identity and are brought onto the grid of their master weights
    (`update.weight`). `backend` (default: a new `Backend`) is shared by all layers; `strategies`
    act on what is cast (see `emu.nn.strategy`). A fixed model, or one with fixed parts, is
    configured anew. `config` may also be anything that has `resolve(site) -> LayerSpec`. Raises
    ValueError, and changes nothing, for settings that match no module.

    With `float_backward` the model trains in software: forward passes stay exact, gradients are
    floats that pass straight through the casts, and a layer without MACs for its gradients computes
    them in float64, between its casts error and grad_w where it has them. No backward pass is
    audited: run it in `host()`.
    """
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"fix {model!r}: needs a torch.nn.Module")
    config = config if hasattr(config, "resolve") else Config.parse(config)
    strategies, modules = Strategies.parse(strategies), dict(model.named_modules())
    hardware = Hardware(config, backend or Backend(), strategies, float_backward)
    classes = {name: fixed(type(module)) for name, module in modules.items()}
    known = [(sites.site_of(name, module, classes[name]), module)
             for name, module in modules.items()]
    if isinstance(config, Config):
        sites.check(config, known)
    sites.check(strategies, known)
    regions = {name: _region(name, module, classes[name], hardware)
               for name, module in modules.items()}
    masters = [value for name, module in modules.items()
               for value in state.masters(module, regions[name])]
    for name, module in modules.items():  # nothing is refused from here on
        module.__class__ = classes[name]
        module._emu_region = regions[name]
    state.put(masters)
    return model


def reconfigure(model: torch.nn.Module, config: Config | Mapping | str | Path) -> None:
    """Give a fixed model other hardware between two steps, as a schedule does; its state stays.

    Binary points, running statistics, weights and momenta are kept. Raises ValueError, and changes
    nothing, where a layer's update is another, or a setting matches no module.
    """
    config = Config.parse(config)
    sites.check(config, [(sites.site_of(name, module, type(module)), module)
                         for name, module in model.named_modules()])
    found = [(layer, [config.resolve(Site(layer.site, layer.kind, layer.uses, phase))
                      for phase in (True, False)]) for layer in layers(model).values()]
    for layer, (spec, _) in found:
        if spec.update != layer.spec.update:
            raise ValueError(f"layer {layer.site!r}: another update {spec.update} in the middle of "
                             "a training; its weights and momenta have the formats of "
                             f"{layer.spec.update}")
    for layer, (spec, evaluation) in found:
        layer.become(spec, evaluation)
        layer.hardware.config = config


def _region(path: str, module: torch.nn.Module, cls: type, hardware: Hardware) -> Region:
    """The region of a module, with the layer of its own operation and parameters.

    Raises ValueError for a lazy module, which becomes another class and draws its parameters.
    """
    if isinstance(module, LazyModuleMixin):
        raise ValueError(f"layer {path!r}: a {type(module).__name__} has no shape yet; run the "
                         "float model on an input first")
    region = Region(path, tuple(base.__name__ for base in cls.__mro__), hardware,
                    module._parameters, names=getattr(cls, "threshold_names", None))
    site = sites.site_of(path, module, cls)
    if not hardware.eager and (isinstance(module, EAGER)
                               or sites.computes_in_float(module, region.kinds)):
        hardware.eager = f"layer {path!r} ({type(module).__name__})"
    if site.kind in sites.OWN or site.uses:
        region.layer("", site.kind, site.uses,
                     sites.OWN[site.kind].channels if site.kind in sites.OWN else None)
    return region


def configure(module: FixedModule, config: Config | Mapping | str | Path) -> None:
    """Give one fixed module, and the functions that it calls, another hardware.

    Its path begins with the name of its class, as where it is built directly.
    """
    hardware = Hardware(Config.parse(config), Backend())
    module._emu_region = _region(type(module).__name__.lower(), module, type(module), hardware)
    to_grid(module)


def to_grid(module: torch.nn.Module) -> None:
    """Bring the parameters of a module and those within it into the master formats of their
    updates, where they have them.
    """
    for part in module.modules():
        if isinstance(part, FixedModule):
            state.put(state.masters(part, part._emu_region))


def is_exact(module: FixedModule) -> bool:
    """Whether all that a module computes is exact, as far as its forward has shown it."""
    region = module._emu_region
    if region.floating:
        return False
    if not region.ran and sites.computes_in_float(module, region.kinds):
        return False
    return not region.hardware.float_backward and all(
        layer.exact for layer in region.layers().values())


def layers(model: torch.nn.Module) -> dict[str, Layer]:
    """The hardware of every operation of a model, by its path in it, as far as it is known."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, FixedModule):
            region = module._emu_region
            for site, layer in region.layers().items():
                below = site.removeprefix(region.path).lstrip(".")
                found[".".join(filter(None, [path, below])) if path else site] = layer
    return found


def use_float(model: torch.nn.Module, on: bool = True, exclude: Iterable[str] = ()) -> None:
    """Let all modules of a fixed model compute in plain float torch, or on the hardware again.

    Those whose paths match a pattern of `exclude` (`*` stands for any text), with what is in them,
    stay as they are. Raises ValueError for a pattern that matches none.
    """
    exclude = list(exclude)
    modules = dict(model.named_modules())
    for pattern in exclude:
        if not any(fnmatchcase(path, pattern) for path in modules):
            raise unknown("module to exclude", pattern, filter(None, modules))
    for path, module in modules.items():
        parts = path.split(".")
        if isinstance(module, FixedModule) and not any(
                fnmatchcase(".".join(parts[:i + 1]), pattern)
                for pattern in exclude for i in range(len(parts))):
            module._emu_region.floating = on


def use_backend(model: torch.nn.Module, backend: Backend) -> None:
    """Let another backend compute for all fixed modules of a model."""
    for module in model.modules():
        if isinstance(module, FixedModule):
            module._emu_region.hardware.backend = backend
