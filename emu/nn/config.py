"""Which hardware each module is: `resolve(site) -> LayerSpec`, from a dict or YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import yaml

from emu.number import check_keys
from emu.spec import LayerSpec

KEYS = [f.name for f in fields(LayerSpec)]


class Site(NamedTuple):
    """An operation of a model: its dotted path, its kind, and the settings that it has.

    The kind is the class of a torch module, or a function's name. `training` is the phase.
    """

    path: str
    kind: str
    uses: tuple[str, ...] = tuple(KEYS)
    training: bool = True


class Config:
    """Layer settings: `default`, then `by_type`, then `by_name` (patterns), later keys winning.

    Each is a mapping with the keys of `LayerSpec`. Raises ValueError naming an unknown key.
    """

    def __init__(self, default: Mapping | None = None, by_type: Mapping | None = None,
                 by_name: Mapping | None = None):
        self.default, self.by_type, self.by_name = default or {}, by_type or {}, by_name or {}
        check_keys(self.default, KEYS, "config default")
        for part, group in (("by_type", self.by_type), ("by_name", self.by_name)):
            if not isinstance(group, Mapping):
                raise ValueError(f"config {part} {group!r}: needs a mapping of layer settings")
            for name, layer in group.items():
                check_keys(layer, KEYS, f"config {part}.{name}")

    @classmethod
    def parse(cls, config: Config | Mapping | str | Path) -> Config:
        """A Config from a mapping, the path of a YAML file, or a YAML text."""
        if isinstance(config, Config):
            return config
        if isinstance(config, str):
            config = yaml.safe_load(config)
            config = Path(config) if isinstance(config, str) else config  # one word is a path
        if isinstance(config, Path):
            config = yaml.safe_load(config.read_text())
        check_keys(config, ["default", "by_type", "by_name"], "config")
        return cls(**config)

    def __str__(self) -> str:
        return str({"default": self.default, "by_type": self.by_type, "by_name": self.by_name})

    def resolve(self, site: Site) -> LayerSpec:
        """The hardware of one module. Raises ValueError, naming the module, for a bad text."""
        merged = {**self.default, **self.by_type.get(site.kind, {})}
        for pattern, layer in self.by_name.items():
            if fnmatchcase(site.path, pattern):
                merged.update(layer)
        try:
            return LayerSpec.parse({key: merged[key] for key in site.uses if key in merged})
        except ValueError as error:
            raise ValueError(f"layer {site.path!r} ({site.kind}): {error}") from None

    def unused(self, sites: list[Site]) -> list[str]:
        """The types, name patterns and settings of theirs that no module of `sites` takes."""
        groups = [("by_type", self.by_type, lambda site, kind: site.kind == kind),
                  ("by_name", self.by_name, lambda site, name: fnmatchcase(site.path, name))]
        found = []
        for part, group, matches in groups:
            for name, layer in group.items():
                uses = [site.uses for site in sites if matches(site, name)]
                taken = {key for keys in uses for key in keys}
                found += ([f"{part}.{name}"] if not uses else
                          [f"{part}.{name}.{key}" for key in layer if key not in taken])
        return found
