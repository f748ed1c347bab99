"""Which layer each parameter of a model belongs to, and the codes of its master weight."""

from __future__ import annotations

import numpy as np
import torch

from emu.nn import border
from emu.nn.backend import Place
from emu.nn.layer import Layer
from emu.nn.modules import FixedModule
from emu.update import BufferSpec, UpdateSpec


class Owner:
    """The layer that updates a parameter, and the parameter's name there."""

    def __init__(self, layer: Layer, name: str):
        self.layer, self.name = layer, name
        self.label = f"{layer.site}.{name}"  # the parameter's path

    @property
    def spec(self) -> UpdateSpec | BufferSpec:
        """How the parameter is updated."""
        return self.layer.spec.update

    def place(self, part: str = "") -> Place:
        """The place of a part of the update."""
        return self.layer.place(f"update.{self.name}{part}", True)


def owners_of(model: torch.nn.Module) -> dict[torch.nn.Parameter, Owner]:
    """The first layer of each parameter of the fixed modules of a model, thresholds left out.

    Raises ValueError where two layers share a parameter and update it otherwise.
    """
    owners, thresholds = {}, set()
    for path, module in model.named_modules():
        if not isinstance(module, FixedModule):
            continue
        keys = module._emu_region.threshold_keys()
        thresholds |= {module._parameters[key] for key in keys if key in module._parameters}
        if "" not in module._emu_region.parts:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if name in keys:
                continue
            layer = module._emu_region.parts[""]
            first = owners.setdefault(parameter, Owner(layer, name))
            if first.spec != layer.spec.update:
                raise ValueError(f"layer {path!r}: shares its {name} with {first.layer.site!r}, "
                                 "which updates it otherwise; give both the same update")
    missing = [name for name, parameter in model.named_parameters()
               if parameter not in owners and parameter not in thresholds]
    if missing:
        raise ValueError(f"parameter {missing[0]}: belongs to no fixed module; run emu.nn.fix "
                         "on the model first")
    if not owners:
        raise ValueError("the model has no parameters; there is nothing to update")
    return owners


def master_codes(parameter: torch.Tensor, spec: UpdateSpec | BufferSpec, name: str) -> np.ndarray:
    """The master weight's codes; raises ValueError where the parameter left its grid."""
    return border.codes_in(parameter, spec.weight.format, name)
