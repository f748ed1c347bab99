"""Strategies: what a user's code does to tensors just before and after their casts, in training.

    class Dropped(Strategy):                       # its name in a configuration: dropped
        def pre_weight(self, tensor, scale):
            ...

    nn.fix(model, config, strategies={"by_name": {"fc1": [{"name": "dropped"}]}})

A hook takes the tensor and the exponent of its range, 2^scale, and gives a tensor of that shape.
`weight` is what the casts w and b of a layer see, `activation` x and y, `weight_grad` grad_w and
grad_b, `activation_grad` error; where the hardware has no such cast, no hook runs. The scale of a
rule is that of the tensor as it came. What a post hook gives is cast once more, by the very cast
before it: operands stay on their grid. Gradients pass where they pass the first cast.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml

from emu.nn.audit import host
from emu.nn.backend import Backend, Place
from emu.nn.config import Site
from emu.number import Format
from emu.spec import LayerSpec
from emu.update import BufferSpec, UpdateSpec
from emu.value import check_keys, unknown

# What the tensors of a LayerSpec are to a strategy.
ROLES = {"x": "activation", "y": "activation", "w": "weight", "b": "weight",
         "error": "activation_grad", "grad_w": "weight_grad", "grad_b": "weight_grad"}
_registered: dict[str, type[Strategy]] = {}


class Call(NamedTuple):
    """The cast at which a hook runs."""

    place: Place
    form: Format
    backend: Backend

    def generator(self) -> np.random.Generator:
        """Random numbers of this very call: they follow from the model's seed, the step and the
        place, so that no run, order or restart changes them.
        """
        loads = self.backend.loads(self.place)
        self.backend.calls[self.place] += 1
        return np.random.default_rng([int(word) for word in loads])


class Strategy:
    """Changes nothing; subclasses override hooks. One is made for each layer, with its YAML keys.

    A subclass is registered under `__registry_name__`, by default its own name in snake case; the
    last of a name holds. `call` says which cast a running hook belongs to.
    """

    __registry_name__ = "none_strategy"
    call: Call

    def __init__(self, site: Site, spec: LayerSpec):
        self.site, self.spec = site, spec

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        name = vars(cls).get("__registry_name__") or re.sub(
            r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        _registered[name] = cls

    def update(self, update: UpdateSpec | BufferSpec | None) -> UpdateSpec | BufferSpec | None:
        """How the layer's parameters are updated, instead of `update`."""
        return update

    def pre_weight(self, tensor: torch.Tensor, scale: int) -> torch.Tensor:
        """A weight or bias, before its cast."""
        return tensor

    def post_weight(self, tensor: torch.Tensor, scale: int) -> torch.Tensor:
        """A weight or bias, after its cast."""
        return tensor

    def pre_activation(self, tensor: torch.Tensor, scale: int) -> torch.Tensor:
        """An activation, before its cast."""
        return tensor

    def post_activation(self, tensor: torch.Tensor, scale: int) -> torch.Tensor:
        """An activation, after its cast."""
        return tensor

    def pre_weight_grad(self, tensor: torch.Tensor, scale: int) -> torch.Tensor:
        """The gradient of a weight or bias, before its cast."""
        return tensor

    def post_weight_grad(self, tensor: torch.Tensor, scale: int) -> torch.Tensor:
        """The gradient of a weight or bias, after its cast."""
        return tensor

    def pre_activation_grad(self, tensor: torch.Tensor, scale: int) -> torch.Tensor:
        """The error that enters a layer, before its cast."""
        return tensor

    def post_activation_grad(self, tensor: torch.Tensor, scale: int) -> torch.Tensor:
        """The error that enters a layer, after its cast."""
        return tensor


_registered[Strategy.__registry_name__] = Strategy


def find(name: str) -> type[Strategy]:
    """The strategy of a name; raises ValueError where none is registered under it."""
    if name not in _registered:
        raise unknown("strategy", name, _registered)
    return _registered[name]


class Nest:
    """The strategies of one layer: before a cast in their order, after it the other way round."""

    def __init__(self, strategies: list[Strategy]):
        self.strategies = strategies

    def run(self, when: str, tensor: torch.Tensor, call: Call) -> torch.Tensor:
        """The tensor after all hooks of `when`: itself, unwritten, where none of them changed it.

        Raises ValueError where a hook gives no tensor of that shape.
        """
        hook = f"{when}_{ROLES[call.place.name.partition('.')[0]]}"
        scale = call.form.width - call.form.signed - call.form.frac
        order = enumerate(self.strategies)
        for i, strategy in order if when == "pre" else reversed(list(order)):
            strategy.call = call._replace(place=call.place.part(f"{when}.{i}"))
            with host(), torch.no_grad():
                found = getattr(strategy, hook)(tensor, scale)
            if not isinstance(found, torch.Tensor) or found.shape != tensor.shape:
                what = tuple(found.shape) if isinstance(found, torch.Tensor) else repr(found)
                raise ValueError(f"layer {call.place.site!r}: {hook} of {type(strategy).__name__} "
                                 f"gave {what}; return a tensor {tuple(tensor.shape)}")
            tensor = found
        return tensor


class Strategies:
    """The strategies of a model: `by_type`, and `by_name` (patterns), which replaces it.

    Each entry is a mapping with the `name` of a strategy and its keys, or a list of them, the
    first outermost. Of several patterns the last that matches holds. `str` gives the YAML text,
    which parses back.

    >>> print(Strategies({"fc*": {"name": "none_strategy"}}))
    by_name:
      fc*:
      - name: none_strategy
    <BLANKLINE>
    """

    def __init__(self, by_name: Mapping | None = None, by_type: Mapping | None = None):
        self.by_type, self.by_name = _entries("by_type", by_type), _entries("by_name", by_name)

    @classmethod
    def parse(cls, config: Strategies | Mapping | str | Path | None) -> Strategies:
        """Strategies from a mapping, the path of a YAML file, or a YAML text."""
        if isinstance(config, cls):
            return config
        if isinstance(config, str):
            config = yaml.safe_load(config)
            config = Path(config) if isinstance(config, str) else config  # one word is a path
        if isinstance(config, Path):
            config = yaml.safe_load(config.read_text())
        if config is None:
            return cls()
        if not isinstance(config, Mapping):
            raise ValueError(f"strategies {config!r}: needs a mapping with keys by_type, by_name")
        check_keys(config, ["by_type", "by_name"], "strategies")
        return cls(config.get("by_name"), config.get("by_type"))

    def __str__(self) -> str:
        groups = {"by_type": self.by_type, "by_name": self.by_name}
        return yaml.safe_dump({key: group for key, group in groups.items() if group},
                              sort_keys=False)

    def __bool__(self) -> bool:
        return bool(self.by_type or self.by_name)

    def of(self, site: Site, spec: LayerSpec) -> Nest:
        """Those of one site, made for it; raises ValueError for keys that a strategy has not."""
        found = self.by_type.get(site.kind, [])
        for pattern, entries in self.by_name.items():
            found = entries if fnmatchcase(site.path, pattern) else found
        return Nest([self.make(entry["name"], site, spec, {
            key: value for key, value in entry.items() if key != "name"}) for entry in found])

    def make(self, name: str, site: Site, spec: LayerSpec, keys: Mapping[str, Any]) -> Strategy:
        """One strategy of a site."""
        try:
            return find(name)(site, spec, **keys)
        except TypeError as error:
            raise ValueError(f"layer {site.path!r}: strategy {name}: "
                             f"{str(error).partition('() ')[2] or error}") from None

    def unused(self, sites: list[Site]) -> Iterator[str]:
        """The types and name patterns that match none of these sites."""
        for kind in self.by_type:
            if not any(site.kind == kind for site in sites):
                yield f"by_type.{kind}"
        for pattern in self.by_name:
            if not any(fnmatchcase(site.path, pattern) for site in sites):
                yield f"by_name.{pattern}"


def _entries(part: str, group: Mapping | None) -> dict[str, list[dict]]:
    """The entries of a group, each as a list of mappings with a known name."""
    if not isinstance(group, Mapping | None):
        raise ValueError(f"strategies {part} {group!r}: needs a mapping of names to strategies")
    found = {}
    for key, value in (group or {}).items():
        found[str(key)] = entries = list(value) if isinstance(value, list) else [value]
        for entry in entries:
            if not isinstance(entry, Mapping) or "name" not in entry:
                raise ValueError(f"strategies {part}.{key} {entry!r}: needs a mapping with the "
                                 "name of a strategy and its keys")
            try:
                find(entry["name"])
            except ValueError as error:
                raise ValueError(f"strategies {part}.{key}: {error}") from None
        found[str(key)] = [dict(entry) for entry in entries]
    return found
