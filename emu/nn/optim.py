"""SGD with momentum on codes: master weights, momentum, learning rate and gradient all cast."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from emu import engine
from emu.nn import border
from emu.nn.modules import FixedModule
from emu.spec import UpdateSpec


class SGD(torch.optim.Optimizer):
    """momentum' = cast(mu * momentum + gradient), weight' = cast(weight - lr * momentum').

    Works on all parameters of the fixed modules of `model`, each under its layer's `update`.
    `lr` and `momentum` stay floats in `param_groups` for schedulers, and are cast every step.
    The master weight is the parameter itself (grid values); the momentum is an int64 tensor of
    codes in the optimizer's state. A step ends the step of the model's backend.
    """

    def __init__(self, model: torch.nn.Module, lr: float, momentum: float = 0.0):
        groups = []
        self.layers = {}
        for path, module in model.named_modules():
            if not isinstance(module, FixedModule) or "" not in module.region.parts:
                continue
            for name, parameter in module.named_parameters(recurse=False):
                if module.layer.spec.update is None:
                    raise ValueError(f"layer {path!r}: has no update; the configuration must give "
                                     "it weight, momentum, grad, lr and mu")
                first = self.layers.setdefault(parameter, module.layer)
                if first.spec.update != module.layer.spec.update:
                    raise ValueError(f"layer {path!r}: shares its {name} with {first.site!r}, "
                                     "which updates it otherwise; give both the same update")
                if first is module.layer:
                    groups.append({"params": [parameter], "name": name})
        missing = [name for name, parameter in model.named_parameters()
                   if parameter not in self.layers]
        if missing:
            raise ValueError(f"parameter {missing[0]}: belongs to no fixed module; run emu.nn.fix "
                             "on the model first")
        if not groups:
            raise ValueError("the model has no parameters; there is nothing to update")
        super().__init__(groups, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        backends = {id(layer.backend): layer.backend for layer in self.layers.values()}
        updates = [(group, self._update(group["params"][0], group)) for group in self.param_groups
                   if group["params"][0].grad is not None]
        for group, (weight, momentum) in updates:  # nothing is refused from here on
            group["params"][0].copy_(weight)
            self.state[group["params"][0]]["momentum"] = momentum
        for backend in backends.values():
            backend.end_step()
        return loss

    def _update(self, parameter: torch.nn.Parameter, group: dict
                ) -> tuple[torch.Tensor, torch.Tensor]:
        """The new weight and momentum of one parameter; changes neither."""
        layer, name = self.layers[parameter], group["name"]
        spec = layer.spec.update
        label = f"{layer.site}.{name}"
        constants = []
        for key, cast in (("lr", "lr"), ("momentum", "mu")):
            with engine.named(f"{layer.site}.update.{name}.{cast}"):
                constants.append(_constant(group[key], getattr(spec, cast), f"{label}: {key}"))
        lr, mu = constants
        if not lr and group["lr"]:
            warnings.warn(f"{label}: lr {group['lr']} is code 0 of {spec.lr}; the weight will not "
                          "move", stacklevel=3)
        codes, frac = border.to_codes_for(parameter.grad, spec.grad, f"{label}.grad")
        grad = layer.backend.cast(layer.place(f"update.{name}.grad", True), codes,
                                  border.holding(codes, frac), spec.grad).codes
        momentum = self.state.get(parameter, {}).get("momentum")
        if momentum is None:
            momentum = torch.zeros(parameter.shape, dtype=torch.int64)
        found = layer.backend.sgd(layer.place(f"update.{name}", True),
                                  master_codes(parameter, spec, label), momentum.numpy(), grad,
                                  lr, mu, spec)
        return (border.to_tensor(found.weight, spec.weight.format, parameter.dtype, label),
                torch.from_numpy(found.momentum))

    def load_state_dict(self, state_dict: dict) -> None:
        """As torch's, but momentum stays int64: torch would cast it to the parameter's dtype."""
        super().load_state_dict(state_dict)
        order = [p for group in self.param_groups for p in group["params"]]
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        for parameter, i in zip(order, saved, strict=True):
            if i in state_dict["state"]:
                momentum = state_dict["state"][i]["momentum"]
                if momentum.dtype != torch.int64:
                    raise ValueError(f"momentum: dtype {momentum.dtype} in the state; codes are "
                                     "int64")
                self.state[parameter]["momentum"] = momentum.clone()


def master_codes(parameter: torch.Tensor, spec: UpdateSpec, name: str) -> np.ndarray:
    """The master weight's codes; raises ValueError where the parameter left its grid."""
    form = spec.weight.format
    codes, frac = border.to_codes(parameter, name)
    if not codes.any():
        return codes
    shift = form.frac - frac
    low, high = int(codes.min()), int(codes.max())
    if shift < 0 or low << shift < form.lo or high << shift > form.hi:
        raise ValueError(f"{name}: off the grid of its master format {form}; something other than "
                         "this optimizer changed it. emu.nn.to_grid(module) brings it back")
    return codes << shift


def _constant(value: float, cast, name: str) -> int:
    try:
        found = engine.cast_full(*engine.encode_for(np.float64(value), cast), cast)
    except ValueError as error:
        raise ValueError(f"{name} {value}: {error}") from None
    if found.outside:
        low, high = (code * cast.format.step for code in cast.range)
        raise ValueError(f"{name} {value}: outside {cast}, which holds {low} to {high}; widen it "
                         "in the layer's update")
    return int(found.codes)
