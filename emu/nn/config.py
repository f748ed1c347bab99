"""Which hardware each module is: `resolve(site) -> LayerSpec`, from a dict or YAML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from emu.nn.schema import PHASES, LayerSettings, Phases, Settings, explained, refusal
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


def _group(value: Any) -> Any:
    """A mapping of names, which YAML may have read as numbers; nothing is no settings."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise refusal(f"{value!r}: needs a mapping of names to layer settings")
    return {str(name): layer for name, layer in value.items()}


Group = Annotated[dict[str, LayerSettings], BeforeValidator(_group)]


class Config(Settings):
    """Layer settings: `default`, then `by_type`, then `by_name` (patterns), later keys winning.

    Each is a mapping with the keys of `LayerSpec`. A tensor's setting is a cast, a rule (`auto:...`
    chooses the binary point, `fixed` uses the one that is stored) or `none`; any setting but the
    update may be a mapping `{training: ..., evaluation: ...}`. `str` gives the YAML text, which
    parses back to an equal configuration, and `model_json_schema()` the published schema. Raises
    ValueError beginning with the key that is wrong.

    >>> config = Config(default={"x": "s8f4 sat"}, by_type={"ReLU": {"x": "none"}})
    >>> print(config)
    default:
      x: s8f4 to_neg sat
    by_type:
      ReLU:
        x: null
    <BLANKLINE>
    >>> config.resolve(Site("fc", "Linear"))
    LayerSpec.parse('{x: s8f4 to_neg sat}')
    """

    default: LayerSettings = Field(default_factory=LayerSettings)
    by_type: Group = Field(default_factory=dict)
    by_name: Group = Field(default_factory=dict)

    def __init__(self, **parts):
        try:
            super().__init__(**parts)
        except ValidationError as error:
            raise explained(error) from None

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
        if not isinstance(config, Mapping):
            raise ValueError(f"config {config!r}: needs a mapping with keys "
                             f"{', '.join(cls.model_fields)}")
        return cls(**{str(key): value for key, value in config.items()})

    def dump(self) -> dict:
        """What is set, as plain mappings of texts; `parse` takes them back."""
        return self.model_dump(exclude_unset=True)

    def __str__(self) -> str:
        return yaml.safe_dump(self.dump(), sort_keys=False)

    def __reduce__(self):
        return type(self).parse, (self.dump(),)  # the classes of its parts are made, not imported

    def resolve(self, site: Site) -> LayerSpec:
        """The hardware of one site, in its phase; raises ValueError naming site and key."""
        merged: dict[str, Any] = {}
        origin: dict[str, str] = {}
        for place, layer in self._matching(site):
            for key, where, value in _in_phase(layer, PHASES[not site.training]):
                merged[key], origin[key] = value, f"{place}.{where}"
        try:
            return LayerSpec.parse({key: merged[key] for key in site.uses if key in merged})
        except ValueError as error:
            message = str(error)
            for key, place in origin.items():
                if message.startswith((f"{key}:", f"{key}.")):
                    message = f"config {place}{message.removeprefix(key)}"
                    break
            raise ValueError(f"layer {site.path!r} ({site.kind}): {message}") from None

    def _matching(self, site: Site) -> Iterator[tuple[str, LayerSettings]]:
        """The settings that hold at a site and their places, the most special ones last."""
        yield "default", self.default
        if site.kind in self.by_type:
            yield f"by_type.{site.kind}", self.by_type[site.kind]
        for pattern, layer in self.by_name.items():
            if fnmatchcase(site.path, pattern):
                yield f"by_name.{pattern}", layer

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
                          [f"{part}.{name}.{key}" for key in layer.settings() if key not in taken])
        return found


def _in_phase(layer: LayerSettings, phase: str) -> Iterator[tuple[str, str, Any]]:
    """Each setting that holds in this phase: its key, where it is written, and its value."""
    for key, value in layer.settings().items():
        if not isinstance(getattr(layer, key), Phases):
            yield key, key, _complete(value)
        elif phase in value:
            yield key, f"{key}.{phase}", _complete(value[phase])


def _complete(value: Any) -> Any:
    """Settings without those that are none: a spec's own default holds there."""
    if not isinstance(value, dict):
        return value
    return {key: _complete(item) for key, item in value.items() if item is not None}
