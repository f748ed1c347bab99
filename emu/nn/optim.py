"""SGD on codes: master weights, momentum, hyperparameters and gradients all cast."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from emu import engine
from emu.nn import border
from emu.nn.grads import Grid, grid_of
from emu.nn.owners import Owner, master_codes, owners_of
from emu.number import Cast, Format
from emu.update import BufferSpec, UpdateSpec

CODES = torch.int8, torch.int16, torch.int32, torch.int64


class New(NamedTuple):
    """What a step is to write: the weight of a parameter, and the codes of its state."""

    parameter: torch.nn.Parameter
    weight: torch.Tensor  # its new values
    key: str  # "momentum" or "buffer"
    codes: torch.Tensor


class SGD(torch.optim.Optimizer):
    """SGD under each layer's `update`: by an `UpdateSpec`, or a `BufferSpec`.

    Works on all parameters of `model` but learned thresholds, which are float masters of another
    optimizer (`emu.nn.thresholds`), or on `params`: some of them, or param groups. The
    hyperparameters stay floats in `param_groups` for schedulers, and are cast every step;
    `clip_value` and `max_norm` limit the gradients, of a group together. The learning rate of a
    `BufferSpec` is a power of two. The master weight is the parameter itself (grid values); the
    momentum or buffer is a tensor of codes in the optimizer's state, in the smallest integer dtype
    that holds its format. A step ends the step of the model's backend.
    """

    _step_supports_amp_scaling = True  # a GradScaler leaves the scale here: it moves a frac

    def __init__(self, model: torch.nn.Module, lr: float, momentum: float = 0.0,
                 weight_decay: float = 0.0, clip_value: float | None = None,
                 max_norm: float | None = None, params: Iterable | None = None):
        self.owners = owners_of(model)
        super().__init__(list(self.owners) if params is None else params, {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "clip_value": clip_value,
            "max_norm": max_norm})

    def add_param_group(self, param_group: dict) -> None:
        """As torch's; raises ValueError, adding nothing, for what no layer updates so."""
        super().add_param_group(param_group)
        try:
            for parameter in self.param_groups[-1]["params"]:
                self._check(parameter, self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def _check(self, parameter: torch.nn.Parameter, group: dict) -> Owner:
        """The parameter's owner; raises ValueError where its update has not what its group asks
        for.
        """
        if parameter not in self.owners:
            raise ValueError(f"a parameter {tuple(parameter.shape)} is none of the model's; add "
                             "only parameters of the model that the optimizer was made with")
        owner = self.owners[parameter]
        if owner.spec is None:
            raise ValueError(f"layer {owner.layer.site!r}: has no update; the configuration must "
                             "give it weight, momentum, grad, lr and mu")
        for key, casts in (("momentum", ["mu"]), ("weight_decay", ["decay", "shrink"]),
                           ("clip_value", ["clip"]), ("max_norm", ["norm"])):
            if group[key] and not any(getattr(owner.spec, name, None) for name in casts):
                raise ValueError(f"{owner.label}: {key} {group[key]}, and the update "
                                 f"{owner.spec} has no {' or '.join(casts)}; add that cast, or "
                                 f"leave {key} out")
        return owner

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        if getattr(self, "found_inf", 0):
            return loss  # as a GradScaler asks
        try:
            zeros = _scale_exponent(getattr(self, "grad_scale", None))
            updates = [new for group in self.param_groups for new in self._updates(group, zeros)]
        except Exception:
            vars(self).pop("grad_scale", None)  # which a GradScaler takes away after steps only
            raise
        for new in updates:  # nothing is refused from here on
            new.parameter.copy_(new.weight)
            self.state[new.parameter][new.key] = new.codes
        for backend in {owner.layer.backend for owner in self.owners.values()}:
            backend.end_step()
        return loss

    def _updates(self, group: dict, zeros: int) -> list[New]:
        """The updates of a group's parameters that have gradients; changes nothing."""
        given = [parameter for parameter in group["params"] if parameter.grad is not None]
        if group["max_norm"]:
            grads = {parameter: self._gradient(parameter, group, zeros) for parameter in given}
            return [self._update(parameter, grad, group)
                    for parameter, grad in self._limited(group["max_norm"], grads).items()]
        rates = None
        if not (zeros or group["clip_value"] or group["weight_decay"]):
            rates = float(group["lr"]), float(group["momentum"])
        return [(rates and self._at_once(parameter, *rates))
                or self._update(parameter, self._gradient(parameter, group, zeros), group)
                for parameter in given]

    def _at_once(self, parameter: torch.nn.Parameter, lr: float, momentum: float) -> New | None:
        """The update in one pass, by a momentum that is there and no other part.

        None where that is not all, is not exact, or something is to be refused.
        """
        owner, held, grad = self.owners.get(parameter), self.state.get(parameter), parameter.grad
        if (owner is None or "momentum" not in (held or ()) or grad.dtype != parameter.dtype
                or grad.is_sparse or grad.requires_grad or not (grad.is_cpu and parameter.is_cpu)):
            return None
        layer, grid = owner.layer, grid_of(parameter)
        if not layer.backend.updates_at_once:  # asked first: a plan casts the rates, unnamed
            return None
        plan = _plan(layer.spec.update, lr, momentum, parameter.dtype, grid and grid.frac)
        if plan is None:
            return None
        found = engine.sgd_of_floats(parameter.detach().numpy(), held["momentum"].numpy(),
                                     grad.numpy(), plan)
        return found and New(parameter, torch.from_numpy(found[0]), "momentum",
                             torch.from_numpy(found[1]))

    def _gradient(self, parameter: torch.nn.Parameter, group: dict, zeros: int) -> np.ndarray:
        """The gradient times 2^-zeros as codes of the update's `grad`, clipped by the group."""
        grad, owner = parameter.grad, self._check(parameter, group)
        spec, label = owner.spec, f"{owner.label}.grad"
        if grad.is_sparse:
            raise ValueError(f"{label}: is sparse; build the layer with sparse=False")
        floats = border.to_numpy(grad, label)
        to = spec.grad.with_frac(spec.grad.format.frac - zeros) if zeros else spec.grad
        _check_grid(grid_of(parameter), grad, floats, to, label)
        backend = owner.layer.backend
        try:
            codes = backend.quantize(owner.place(".grad"), floats, to).codes
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from None
        if group["clip_value"]:
            limit = _constant(group["clip_value"], spec.clip, owner, "clip", "clip_value")
            codes = backend.clip(owner.place(".clip"), codes, limit, spec)
        return codes

    def _limited(self, limit: float, grads: dict[torch.nn.Parameter, np.ndarray]
                 ) -> dict[torch.nn.Parameter, np.ndarray]:
        """All gradients, scaled by the power of two that brings their norm to the limit."""
        owners = [self.owners[parameter] for parameter in grads]
        if not owners:
            return grads
        norm = owners[0].spec.norm
        for owner in owners:
            if owner.spec.norm != norm:
                raise ValueError(f"{owner.label}: its norm {owner.spec.norm} is not the "
                                 f"{norm} of {owners[0].label}; one norm has one limit, so give "
                                 "both the same cast, or put them into two param groups")
        forms = [owner.spec.grad.format for owner in owners]
        squares = [(owner.layer.backend.square_sum(owner.place(".square"), grad, form), form.frac)
                   for owner, grad, form in zip(owners, grads.values(), forms, strict=True)]
        code = _constant(limit, norm, owners[0], "norm", "max_norm")
        shift = engine.norm_shift(squares, code, norm.format.frac)
        if not shift:
            return grads
        return {parameter: owner.layer.backend.cast(
            owner.place(".norm"), grads[parameter], form.with_frac(form.frac + shift),
            owner.spec.grad).codes for parameter, owner, form in zip(
                grads, owners, forms, strict=True)}

    def _update(self, parameter: torch.nn.Parameter, grad: np.ndarray, group: dict) -> New:
        owner = self.owners[parameter]
        spec = owner.spec
        key = "buffer" if isinstance(spec, BufferSpec) else "momentum"
        held = self.state[parameter].get(key) if parameter in self.state else None
        if held is None:
            held = torch.zeros(parameter.shape, dtype=_dtype(getattr(spec, key).format))
        weight, backend = master_codes(parameter, spec, owner.label), owner.layer.backend
        if key == "buffer":
            shift = _shift(group["lr"], owner.label)
            found = backend.buffered_sgd(owner.place(), weight, held.numpy(), grad, shift, spec)
            codes = found.buffer
        else:
            found = backend.sgd(owner.place(), weight, held.numpy(), grad,
                                *_constants(group, owner), spec, _decay(group, owner))
            codes = found.momentum
        moved = border.to_tensor(found.weight, spec.weight.format, parameter.dtype, owner.label)
        return New(parameter, moved, key, torch.from_numpy(codes))

    def load_state_dict(self, state_dict: dict) -> None:
        """As torch's, but codes stay integers: torch would cast them to the parameter's dtype.

        Raises ValueError, and loads nothing, for codes that are not those of these parameters.
        """
        order = [p for group in self.param_groups for p in group["params"]]
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        codes = {}
        if len(order) == len(saved):  # which torch says better
            codes = {p: self._loaded(p, state_dict["state"][i])
                     for p, i in zip(order, saved, strict=True) if i in state_dict["state"]}
        super().load_state_dict(state_dict)
        self.state.update(codes)

    def _loaded(self, parameter: torch.nn.Parameter, state: dict) -> dict[str, torch.Tensor]:
        """The state of one parameter, checked and copied."""
        owner = self.owners[parameter]
        key = "buffer" if isinstance(owner.spec, BufferSpec) else "momentum"
        if set(state) != {key}:
            raise ValueError(f"{owner.label}: the state has {', '.join(map(str, state))}; its "
                             f"update keeps a {key}")
        codes, form = state[key], getattr(owner.spec, key).format
        if codes.dtype not in CODES:
            raise ValueError(f"{owner.label}: {key}: dtype {codes.dtype} in the state; codes are "
                             "int8 to int64")
        if codes.shape != parameter.shape:
            raise ValueError(f"{owner.label}: {key}: shape {tuple(codes.shape)} in the state; the "
                             f"parameter has {tuple(parameter.shape)}")
        if codes.numel() and not form.lo <= codes.min() <= codes.max() <= form.hi:
            raise ValueError(f"{owner.label}: {key}: codes from {codes.min()} to {codes.max()} in "
                             f"the state; {form} holds {form.lo} to {form.hi}")
        return {key: codes.to(_dtype(form), copy=True)}

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "owners": self.owners}


def _check_grid(grid: Grid | None, grad: torch.Tensor, floats: np.ndarray, to: Cast, label: str
                ) -> None:
    """Raise ValueError where a gradient left the grid on which it was computed."""
    if grid is None or engine.on_grid(floats, grid.frac):
        return
    codes, frac = border.to_codes_for(grad, to, label)
    # A power of two moves the frac and no bit; any other factor needs more bits than before.
    if frac > grid.frac and border.holding(codes, frac).width > grid.width:
        raise ValueError(f"{label}: off the grid of 2^-{grid.frac} on which it was computed; "
                         "something like clip_grad_norm_ changed it. Scale by powers of two; "
                         "max_norm and clip_value of emu.nn.SGD limit gradients exactly")


def _scale_exponent(scale: torch.Tensor | None) -> int:
    """The e of a gradient scale 2^e. Raises ValueError for another scale."""
    if scale is None:
        return 0
    mantissa, exponent = math.frexp(float(scale))
    if mantissa != 0.5:
        raise ValueError(f"a gradient scale of {float(scale)} is no power of two, and would round "
                         "every gradient; give the GradScaler an init_scale, growth_factor and "
                         "backoff_factor that are powers of two")
    return exponent - 1


def _constants(group: dict, owner: Owner) -> tuple[int, int]:
    """The codes of lr and mu; warns where an lr is lost."""
    spec = owner.spec
    lr = _constant(group["lr"], spec.lr, owner, "lr", "lr")
    if not lr and group["lr"]:
        warnings.warn(f"{owner.label}: lr {group['lr']} is code 0 of {spec.lr}; the weight will "
                      "not move", stacklevel=2)
    return lr, _constant(group["momentum"], spec.mu, owner, "mu", "momentum")


@lru_cache(1 << 10)
def _plan(spec: UpdateSpec | BufferSpec | None, lr: float, momentum: float, dtype: torch.dtype,
          frac: int | None) -> engine.FloatsPlan | None:
    """How to update in one pass; None also where `_constants` refuses a rate, or warns of it."""
    if not isinstance(spec, UpdateSpec) or dtype not in border.CARRIERS:
        return None
    try:
        codes, outside = zip(_coded(lr, spec.lr), _coded(momentum, spec.mu), strict=True)
    except ValueError:
        return None
    if any(outside) or (lr and not codes[0]):
        return None
    carrier = np.dtype(np.float32 if dtype == torch.float32 else np.float64)
    return engine.floats_plan(spec, *codes, carrier, frac)


def _decay(group: dict, owner: Owner) -> int:
    """The code of the weight decay; warns where it is lost."""
    spec, decay = owner.spec, group["weight_decay"]
    if not decay:
        return 0
    name = "decay" if spec.shrink is None else "shrink"
    what, factor = ("weight_decay", decay) if spec.shrink is None else (
        f"lr {group['lr']} times weight_decay {decay},", group["lr"] * decay)
    code = _constant(factor, getattr(spec, name), owner, name, what)
    if not code and factor:
        warnings.warn(f"{owner.label}: {what} {factor} is code 0 of {getattr(spec, name)}; the "
                      "weight will not decay", stacklevel=2)
    return code


def _shift(lr: float, label: str) -> int:
    """The shift of a buffer's learning rate, rounded down to a power of two with a warning."""
    mantissa, exponent = math.frexp(lr)
    if not 0 < lr < math.inf:
        raise ValueError(f"{label}: lr {lr}: the rate of a gradient buffer is a shift; use a power "
                         "of two above 0")
    if mantissa != 0.5:
        warnings.warn(f"{label}: lr {lr} is no power of two; the buffer shifts by "
                      f"{1 - exponent}, a rate of {2.0 ** (exponent - 1)}", stacklevel=2)
    return 1 - exponent


def _constant(value: float, to: Cast, owner: Owner, name: str, key: str) -> int:
    """A hyperparameter's code, recorded as the cast `name` where someone watches."""
    try:
        if engine.watching() is None:
            code, outside = _coded(float(value), to)
        else:
            with engine.named(f"{owner.layer.site}.update.{owner.name}.{name}"):
                code, outside = _coded.__wrapped__(float(value), to)
    except ValueError as error:
        raise ValueError(f"{owner.label}: {key} {value}: {error}") from None
    if outside:
        low, high = (code * to.format.step for code in to.range)
        raise ValueError(f"{owner.label}: {key} {value}: outside {to}, which holds {low} to "
                         f"{high}; widen it in the layer's update")
    return code


@lru_cache
def _dtype(form: Format) -> torch.dtype:
    """The smallest dtype that holds every code of `form`."""
    return torch.from_numpy(engine.narrowed(np.empty(0, np.int64), form)).dtype


@lru_cache(1 << 10)
def _coded(value: float, to: Cast) -> tuple[int, int]:
    """(code, whether it was out of range) of a number."""
    found = engine.cast_full(*engine.encode_for(np.float64(value), to), to)
    return int(found.codes), found.outside
