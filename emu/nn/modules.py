"""Fixed modules: each a subclass of a torch module whose forward runs its parent's forward
under a table from torch functions to `functional.py`.

`fix` swaps the class of a model's modules, so parameters, names and state_dict stay as they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from emu.nn import border, functional
from emu.nn.audit import visit
from emu.nn.backend import Backend
from emu.nn.config import Config, Site
from emu.nn.layer import Layer
from emu.spec import LayerSpec

TABLE = {
    F.linear: functional.linear,
    torch.conv2d: functional.conv2d,
    F.relu: functional.relu,
    F.max_pool2d: functional.max_pool2d,
    F.max_pool2d_with_indices: functional.max_pool2d,  # refuses
    F.avg_pool2d: functional.avg_pool2d,
}


class _OnHardware(TorchFunctionMode):
    """Sends the torch functions of TABLE to the hardware of one layer; the rest pass."""

    def __init__(self, layer: Layer, training: bool):
        super().__init__()
        self.layer, self.training = layer, training

    def __torch_function__(self, func, types, args=(), kwargs=None):
        fixed = TABLE.get(func)
        if fixed is None:
            return func(*args, **(kwargs or {}))
        return fixed(self.layer, self.training, *args, **(kwargs or {}))


class FixedModule(torch.nn.Module):
    """What every fixed module adds to its torch parent: a `Layer`, and the table in forward.

    Built directly, `spec` (a LayerSpec, its mapping or its text) is its hardware, and its site is
    the name of its class, so two of one kind draw the same random operands; `fix` gives each its
    path. `uses` names the parts of a LayerSpec that this kind of module has, `channels` the axis of
    its tensors that holds the channels.
    """

    uses: tuple[str, ...] = ()
    channels: int | None = None

    def __init__(self, *args, spec: LayerSpec | Mapping | str | None = None,
                 backend: Backend | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.layer = Layer(type(self).__name__.lower(), LayerSpec.parse(spec or {}),
                           backend or Backend(), self.channels)
        to_grid(self)

    @classmethod
    def masters(cls, module: torch.nn.Module, layer: Layer
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

    def forward(self, *args, **kwargs):
        visit(self.layer.site)
        with _OnHardware(self.layer, self.training):
            return super().forward(*args, **kwargs)

    def extra_repr(self) -> str:
        """The parent's line, then the hardware."""
        hardware = [f"{name}: {getattr(self.layer.spec, name)}" for name in self.uses
                    if getattr(self.layer.spec, name) is not None]
        return "\n".join(filter(None, [super().extra_repr(), *hardware]))


class Activation(FixedModule):
    """Casts activations by the spec's y and, in backward, errors by the spec's error."""

    uses = ("y", "error")

    def forward(self, x):
        visit(self.layer.site)
        return functional.activation(self.layer, self.training, x)


class Linear(FixedModule, torch.nn.Linear):
    """torch.nn.Linear on codes: x, w, b, forward and three gradients in the spec's hardware."""

    uses = tuple(f.name for f in fields(LayerSpec))
    channels = -1


class Conv2d(FixedModule, torch.nn.Conv2d):
    """torch.nn.Conv2d on codes: x, w, b, forward and three gradients in the spec's hardware."""

    uses = Linear.uses
    channels = 1

    @classmethod
    def masters(cls, module, layer):
        if module.padding_mode != "zeros":
            raise ValueError(f"layer {layer.site!r}: padding_mode {module.padding_mode!r} adds "
                             "gradients up in float; use padding_mode='zeros'")
        return super().masters(module, layer)


class ReLU(FixedModule, torch.nn.ReLU):
    """torch.nn.ReLU on codes: exact, forward and backward."""


class MaxPool2d(FixedModule, torch.nn.MaxPool2d):
    """torch.nn.MaxPool2d on codes: exact, forward and backward."""


class AvgPool2d(FixedModule, torch.nn.AvgPool2d):
    """torch.nn.AvgPool2d on codes: sums, divided in the casts y and error."""

    uses = ("y", "error")
    channels = -3


class Flatten(FixedModule, torch.nn.Flatten):
    """torch.nn.Flatten: moves codes."""


FIXED = {cls.__bases__[1]: cls for cls in (Linear, Conv2d, ReLU, MaxPool2d, AvgPool2d, Flatten)}


def fix(model: torch.nn.Module, config: Config | Mapping | str | Path,
        backend: Backend | None = None) -> torch.nn.Module:
    """Turn a float model, in place, into one that computes on the hardware of `config`.

    Parameters keep their identity and are brought onto the grid of their master weights
    (`update.weight`). `backend` (default: a new `Backend`) is shared by all layers. The state of
    rules is not part of `state_dict`: keep `layers(model)[...].fracs` beside it. Raises ValueError,
    and changes nothing, for a module that has no fixed version and for settings that match none.
    """
    config, backend = Config.parse(config), backend or Backend()
    leaves = [(name, module) for name, module in model.named_modules()
              if not any(True for _ in module.children())]
    for name, module in leaves:
        if not isinstance(module, FixedModule) and type(module) not in FIXED:
            known = ", ".join(cls.__name__ for cls in FIXED)
            raise ValueError(f"module {name!r} ({type(module).__name__}): has no fixed version; "
                             f"there are {known}")
    fixed = {name: FIXED.get(type(module), type(module)) for name, module in leaves}
    sites = {name: Site(name, cls.__name__, cls.uses) for name, cls in fixed.items()}
    unused = config.unused(list(sites.values()))
    if unused:
        raise ValueError(f"config {unused[0]}: matches no module; there are "
                         + ", ".join(f"{site.path} ({site.kind})" for site in sites.values()))
    layers = {name: Layer(name, config.resolve(site), backend, fixed[name].channels)
              for name, site in sites.items()}
    masters = {name: fixed[name].masters(module, layers[name]) for name, module in leaves}
    for name, module in leaves:  # nothing is refused from here on
        module.__class__, module.layer = fixed[name], layers[name]
        _put(masters[name])
    return model


def to_grid(module: FixedModule) -> None:
    """Bring a module's own parameters into the master format of its update, if it has one."""
    _put(module.masters(module, module.layer))


@torch.no_grad()
def _put(masters: list[tuple[torch.nn.Parameter, torch.Tensor]]) -> None:
    for parameter, value in masters:
        parameter.copy_(value)


def layers(model: torch.nn.Module) -> dict[str, Layer]:
    """The hardware of every fixed module of a model, by module path."""
    return {name: module.layer for name, module in model.named_modules()
            if isinstance(module, FixedModule)}
