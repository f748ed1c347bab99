"""Any torch optimizer on float master weights, whose casts are what the hardware sees."""

from __future__ import annotations

import inspect
from typing import NamedTuple

import torch

from emu.nn import border
from emu.nn.audit import host
from emu.nn.owners import Owner, owners_of
from emu.number import Cast


class Master(NamedTuple):
    """A float weight, and what was written to its parameter."""

    value: torch.Tensor
    written: torch.Tensor


class FloatMasters(torch.optim.Optimizer):
    """`optimizer_class(model.parameters(), **settings)` on float masters outside the grid.

        FloatMasters(torch.optim.Adam, model, lr=1e-3)

    After each step every parameter that has a gradient holds its master, cast by `update.weight`
    of its layer, or where that has no update by its `w` (a bias: `b`). The update itself is float
    arithmetic, so it is not exact and runs on no hardware. A parameter that something else changed
    since (a loaded model) is the new master. Learned thresholds are parameters of the inner
    optimizer as they are. A step ends the step of the model's backend.
    """

    exact = False

    def __init__(self, optimizer_class: type[torch.optim.Optimizer], model: torch.nn.Module,
                 **settings):
        self.owners = owners_of(model)
        needs = inspect.signature(optimizer_class.step).parameters.get("closure")
        if needs is not None and needs.default is inspect.Parameter.empty:
            raise ValueError(f"{optimizer_class.__name__}: evaluates the model several times a "
                             "step, between weights that no hardware holds; use another optimizer")
        self.inner = optimizer_class(model.parameters(), **settings)
        for owner in self.owners.values():
            _cast_of(owner)  # refused before anything is moved
        self.masters: dict[torch.nn.Parameter, Master] = {}
        self._share(self.inner.defaults)
        with torch.no_grad():
            for parameter in self.owners:
                value = parameter.clone()
                parameter.copy_(self._on_grid(parameter, value))
                self.masters[parameter] = Master(value, parameter.clone())

    def _share(self, defaults: dict) -> None:
        """Let this optimizer's state and param groups be those of the inner one."""
        self.__setstate__({"defaults": defaults, "state": self.inner.state,
                           "param_groups": self.inner.param_groups})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner!r}, exact=False)"

    def add_param_group(self, param_group: dict) -> None:
        """Refused: all parameters of the model are in the groups."""
        raise ValueError("FloatMasters has all parameters of its model already; change the "
                         "hyperparameters in its param_groups")

    @torch.no_grad()
    def step(self, closure=None):
        """One step of the inner optimizer on the masters; changes nothing where it is refused."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        moved = [p for p in self.owners if p.grad is not None]
        before = [p.clone() for p in moved]
        for parameter, now in zip(moved, before, strict=True):
            master = self.masters[parameter]
            parameter.copy_(master.value if torch.equal(now, master.written) else now)
        after = before
        try:
            with host():
                self.inner.step()
            values = [p.clone() for p in moved]
            after = [self._on_grid(p, value) for p, value in zip(moved, values, strict=True)]
        finally:
            for parameter, value in zip(moved, after, strict=True):
                parameter.copy_(value)
        self.masters.update(zip(moved, map(Master, values, after), strict=True))
        for backend in {id(owner.layer.backend): owner.layer.backend
                        for owner in self.owners.values()}.values():
            backend.end_step()
        return loss

    def _on_grid(self, parameter: torch.nn.Parameter, value: torch.Tensor) -> torch.Tensor:
        """The cast of a master, as what its parameter is to hold."""
        owner = self.owners[parameter]
        to = _cast_of(owner)
        codes, frac = border.to_codes_for(value, to, owner.label)
        found = owner.layer.backend.cast(owner.place(".master"), codes,
                                         border.holding(codes, frac), to)
        return border.to_tensor(found.codes, to.format, value.dtype, owner.label)

    def _order(self) -> list[torch.nn.Parameter]:
        return [p for group in self.param_groups for p in group["params"]]

    def state_dict(self) -> dict:
        """The inner optimizer's, and the masters in the order of its parameters."""
        masters = [self.masters[p] for p in self._order() if p in self.owners]
        return self.inner.state_dict() | {
            "masters": [master.value.clone() for master in masters],
            "written": [master.written.clone() for master in masters]}

    def load_state_dict(self, state_dict: dict) -> None:
        """Raises ValueError for a state without masters, or whose shapes are others."""
        order = [p for p in self._order() if p in self.owners]
        loaded = [state_dict.get(key, ()) for key in ("masters", "written")]
        if not all([x.shape for x in values] == [p.shape for p in order] for values in loaded):
            raise ValueError("state: holds no float masters of these parameters; load one that "
                             "FloatMasters saved for this model")
        self.inner.load_state_dict({key: value for key, value in state_dict.items()
                                    if key not in ("masters", "written")})
        self._share(self.inner.defaults)
        self.masters = {p: Master(value.to(p.dtype, copy=True), written.to(p.dtype, copy=True))
                        for p, value, written in zip(order, *loaded, strict=True)}

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "owners": self.owners, "inner": self.inner,
                "masters": self.masters}


def _cast_of(owner: Owner) -> Cast:
    """The cast that brings a master to its parameter."""
    own = owner.layer.spec.b if owner.name == "bias" else owner.layer.spec.w
    to = own if owner.spec is None else owner.spec.weight
    if not isinstance(to, Cast):
        raise ValueError(f"{owner.label}: its layer gives it no cast ({to}); give the layer an "
                         "update, or a fixed w and b")
    return to
