"""Fixed modules: each a subclass of a torch module whose forward runs its parent's forward in a
scope.

`fix` swaps the class of a model's modules, so parameters, names and state_dict stay as they were.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import torch

from emu.nn import border
from emu.nn.audit import visit
from emu.nn.backend import Backend
from emu.nn.config import Config, Site
from emu.nn.functions import KINDS, TABLE, Entry
from emu.nn.layer import Hardware, Layer
from emu.nn.ops.casts import activation
from emu.nn.scope import Frame, Region, running
from emu.spec import LayerSpec


class FixedModule(torch.nn.Module):
    """What every fixed module adds to its torch parent: a region of the hardware.

    Built directly, `spec` (a LayerSpec, its mapping or its text) is its hardware, and its site is
    the name of its class, so two of one kind draw the same random operands; `fix` gives each its
    path.
    """

    region: Region

    def __init__(self, *args, spec: LayerSpec | Mapping | str | None = None,
                 backend: Backend | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        hardware = Hardware(_Only(LayerSpec.parse(spec or {})), backend or Backend())
        self.region = _region(type(self).__name__.lower(), self, type(self), hardware)
        to_grid(self)

    @property
    def layer(self) -> Layer:
        """The hardware of the module's own operation and parameters."""
        return self.region.parts[""]

    def forward(self, *args, **kwargs):
        if torch.compiler.is_compiling() and not self.region.hardware.static:
            return self._eager(*args, **kwargs)
        with running(Frame(self.region, self.training)):
            return super().forward(*args, **kwargs)

    @torch.compiler.disable
    def _eager(self, *args, **kwargs):
        return self.forward(*args, **kwargs)

    def extra_repr(self) -> str:
        """The parent's line, then the hardware."""
        lines = [super().extra_repr()]
        for name, layer in self.region.parts.items():
            lines += [f"{name}.{key}".lstrip(".") + f": {value}"
                      for key, value in vars(layer.spec).items() if value is not None]
        if not all(layer.exact for layer in self.region.layers().values()):
            lines.append("exact=False")
        return "\n".join(filter(None, lines))

    def __reduce_ex__(self, protocol):
        return _rebuilt, (type(self).__dict__.get("base", type(self)),), self.__dict__


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
    return type(cls.__name__, (FixedModule, cls), {"__module__": __name__, "base": cls, "__doc__": (
        f"{cls.__module__}.{cls.__qualname__} on the hardware of its region.")})


def _rebuilt(cls: type) -> FixedModule:
    cls = fixed(cls)
    return cls.__new__(cls)


class Activation(FixedModule):
    """Casts activations by the spec's y and, in backward, errors by the spec's error."""

    def forward(self, x):
        visit(self.layer.site)
        return activation(self.layer, self.training, x)


AvgPool2d = fixed(torch.nn.AvgPool2d)
Conv2d = fixed(torch.nn.Conv2d)
Flatten = fixed(torch.nn.Flatten)
Linear = fixed(torch.nn.Linear)
MaxPool2d = fixed(torch.nn.MaxPool2d)
ReLU = fixed(torch.nn.ReLU)
OWN = KINDS | {"Activation": Entry("activation", activation, ("Activation",), ("y", "error"))}


def fix(model: torch.nn.Module, config: Config | Mapping | str | Path,
        backend: Backend | None = None) -> torch.nn.Module:
    """Turn a float model, in place, into one that computes on the hardware of `config`.

    Parameters keep their identity and are brought onto the grid of their master weights
    (`update.weight`). `backend` (default: a new `Backend`) is shared by all layers. Raises
    ValueError, and changes nothing, for settings that match no module.
    """
    config = Config.parse(config)
    hardware, modules = Hardware(config, backend or Backend()), dict(model.named_modules())
    sites = [_site(name, module, fixed(type(module))) for name, module in modules.items()]
    functions = [Site(f"{site.path}.{entry.name}".lstrip("."), entry.name, entry.uses)
                 for site in sites if not site.uses for entry in set(TABLE.values())
                 if entry.kinds == (entry.name,)]
    unused = config.unused(sites + functions)
    if unused:
        raise ValueError(f"config {unused[0]}: matches no module; there are " + ", ".join(
            f"{site.path} ({site.kind})" for site in sites if site.uses or site.kind in OWN))
    regions = {name: _region(name, module, fixed(type(module)), hardware)
               for name, module in modules.items()}
    masters = [value for name, module in modules.items() if "" in regions[name].parts
               for value in _masters(module, regions[name].parts[""])]
    for name, module in modules.items():  # nothing is refused from here on
        module.__class__ = fixed(type(module))
        module.region = regions[name]
    _put(masters)
    return model


def _site(path: str, module: torch.nn.Module, cls: type) -> Site:
    """The site of a module itself."""
    kind = next((base.__name__ for base in cls.__mro__ if base.__name__ in OWN), None)
    uses = OWN[kind].uses if kind else ()
    if "update" not in uses and any(True for _ in module.parameters(recurse=False)):
        uses = (*uses, "update")
    return Site(path, kind or cls.__name__, uses)


def _region(path: str, module: torch.nn.Module, cls: type, hardware: Hardware) -> Region:
    """The region of a module, with the layer of its own operation and parameters."""
    region = Region(path, tuple(base.__name__ for base in cls.__mro__), hardware)
    site = _site(path, module, cls)
    if site.kind in OWN or site.uses:
        region.layer("", site.kind, site.uses,
                     OWN[site.kind].channels if site.kind in OWN else None)
    return region


def to_grid(module: FixedModule) -> None:
    """Bring a module's own parameters into the master format of its update, if it has one."""
    if "" in module.region.parts:
        _put(_masters(module, module.layer))


def _masters(module: torch.nn.Module, layer: Layer
             ) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
    """The parameters of `module` and their values in the master format; changes nothing."""
    update = layer.spec.update
    if update is None:
        return []
    values = []
    for name, parameter in module.named_parameters(recurse=False):
        label = f"{layer.site}.{name}"
        codes, frac = border.to_codes_for(parameter, update.weight, label)
        found = layer.backend.cast(layer.place(f"master.{name}", False), codes,
                                   border.holding(codes, frac), update.weight)
        values.append((parameter, border.to_tensor(found.codes, update.weight.format,
                                                   parameter.dtype, label)))
    return values


@torch.no_grad()
def _put(masters: list[tuple[torch.nn.Parameter, torch.Tensor]]) -> None:
    for parameter, value in masters:
        parameter.copy_(value)


def layers(model: torch.nn.Module) -> dict[str, Layer]:
    """The hardware of every operation of a model, by its site, as far as it is known."""
    found = {}
    for module in model.modules():
        if isinstance(module, FixedModule):
            found |= module.region.layers()
    return found


def use_backend(model: torch.nn.Module, backend: Backend) -> None:
    """Let another backend compute for all fixed modules of a model."""
    for module in model.modules():
        if isinstance(module, FixedModule):
            module.region.hardware.backend = backend
