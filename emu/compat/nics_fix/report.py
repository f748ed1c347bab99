"""What a scope has fixed: `fixed_mapping`, and the collections of its tensors and scales."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from emu import engine, nn
from emu.compat.nics_fix.config import FixedConfig
from emu.compat.nics_fix.hardware import Scale
from emu.nn import Layer, border
from emu.rule import Rule

if TYPE_CHECKING:
    from emu.compat.nics_fix.scope import Scope

KINDS = ("weight", "activation", "other")
WEIGHT_DATA, WEIGHT_GRAD = "nf_fix_weight_data", "nf_fix_weight_grad"
ACTIVATION_DATA, ACTIVATION_GRAD = "nf_fix_activation_data", "nf_fix_activation_grad"
SCALE = "_scale"  # after each: its scales
OPERANDS = {"weight": ("w", "grad_w"), "bias": ("b", "grad_b")}


class FixedMapping(Mapping):
    """All that a scope has fixed: `weight`, `activation` and `other`, each by name.

    An entry has `data_cfg` and `grad_cfg`, `q_data_scale` and `q_grad_scale` (each with a `value`,
    the exponent of the range), and of a weight also `data`, the parameter, `q_data`, what the
    hardware sees of it now, and `ori_grad`. nics_fix has the tensors of its graph as keys: names
    outlive a forward pass.
    """

    def __init__(self, scope: Scope):
        self.scope = scope

    def __iter__(self) -> Iterator[str]:
        return iter(KINDS)

    def __len__(self) -> int:
        return len(KINDS)

    def __getitem__(self, kind: str) -> dict[str, dict[str, Any]]:
        if kind not in KINDS:
            raise KeyError(kind)
        found, modules = {}, dict(self.scope.named_modules())
        for path, layer in nn.layers(self.scope).items():
            name = path.partition(".")[0]
            section = self.scope.operations[name][2]
            if kind == "weight":
                for of, (data, grad) in OPERANDS.items():
                    parameter = getattr(modules.get(path), of, None)  # a function has none
                    if isinstance(parameter, torch.Tensor) and "w" in layer.uses:
                        found[f"{path}.{of}"] = self._weight(layer, parameter, section.weight,
                                                             data, grad)
            elif name == path and "y" in layer.uses and self.scope.labels[name][0] == kind:
                found[self.scope.labels[name][1]] = self._entry(layer, section.activation, "y",
                                                                "error")
        return found

    def _entry(self, layer: Layer, config: FixedConfig, data: str, grad: str) -> dict[str, Any]:
        training = self.scope.training
        return {"data_cfg": config.data_config, "grad_cfg": config.gradient_config,
                "q_data_scale": Scale(layer, data, training),
                "q_grad_scale": Scale(layer, grad, training)}

    def _weight(self, layer: Layer, parameter: torch.Tensor, config: FixedConfig, data: str,
                grad: str) -> dict[str, Any]:
        entry = self._entry(layer, config, data, grad)
        return {"data": parameter, "q_data": quantised(entry["q_data_scale"], parameter),
                "ori_grad": parameter.grad, **entry}

    def __repr__(self) -> str:
        lines = [f"{kind} {name}: data 2^{entry['q_data_scale'].value}, "
                 f"gradient 2^{entry['q_grad_scale'].value}"
                 for kind in KINDS for name, entry in self[kind].items()]
        return "\n".join(lines).replace("2^None", "not fixed")


def quantised(scale: Scale, parameter: torch.Tensor) -> torch.Tensor:
    """A parameter as its cast makes it; changes no scale."""
    cast, label = scale.cast, f"{scale.layer.site}.{scale.name}"
    if cast is None:
        return parameter.detach().clone()
    floats = border.to_numpy(parameter, label)
    if isinstance(cast, Rule):
        last = scale.layer.fracs.get(scale.name)
        cast = engine.cast_for(cast, floats, last) if last is None else cast.with_frac(last)
    return border.to_tensor(engine.quantize(floats, cast), cast.format, parameter.dtype, label)


def get_collection(fixed_mapping: FixedMapping, key: str) -> list:
    """What nics_fix keeps in the collection `key`, in the order of the operations.

    `nf_fix_{weight,activation}_{data,grad}_scale` have scales; `nf_fix_weight_data` the fixed
    weights, `nf_fix_weight_grad` their gradients. Activations are gone after a forward pass.
    """
    what = key.removeprefix("nf_fix_").removesuffix(SCALE)
    kind, _, part = what.partition("_")
    known = [base + end for base in (WEIGHT_DATA, WEIGHT_GRAD, ACTIVATION_DATA, ACTIVATION_GRAD)
             for end in ("", SCALE)]
    if key not in known or key in (ACTIVATION_DATA, ACTIVATION_GRAD):
        raise ValueError(f"collection {key!r}: there are " + ", ".join(
            name for name in known if name not in (ACTIVATION_DATA, ACTIVATION_GRAD)))
    entry = f"q_{part}_scale" if key.endswith(SCALE) else {"data": "q_data", "grad": "ori_grad"}[
        part]
    return [found[entry] for found in fixed_mapping[kind].values()]
