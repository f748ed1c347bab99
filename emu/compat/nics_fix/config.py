"""FixedConfigs: the YAML that says how each operation of a nics_fix network is fixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from emu.value import check_keys

MODES = ("auto", "fixed", "none", None)
WIDTHS = (1, 32)  # of what enters a multiplier


class ConfigError(ValueError, AssertionError):
    """A configuration that says what cannot be; nics_fix raises AssertionError."""


@dataclass(frozen=True)
class Datum:
    """One quantisation: its mode in training and outside, and its width.

    A mode is `auto` (the range follows from each tensor), `fixed` (it stays), `none`, or the
    exponent of the range. Gradients have no mode outside training.
    """

    training: str | int | None = None
    not_training: str | int | None = None
    bit_width: int = 8

    def __post_init__(self):
        for name in ("training", "not_training"):
            mode = getattr(self, name)
            if type(mode) is not int and mode not in MODES:
                raise ConfigError(f"{name} {mode!r}: write auto, fixed, none or a whole exponent")
            if mode == "none":
                object.__setattr__(self, name, None)
        if type(self.bit_width) is not int or not WIDTHS[0] <= self.bit_width <= WIDTHS[1]:
            raise ConfigError(f"bit_width {self.bit_width!r}: needs a whole number from "
                              f"{WIDTHS[0]} to {WIDTHS[1]}")


@dataclass(frozen=True)
class FixedConfig:
    """How a weight or an activation is fixed, and how its gradient is."""

    data_config: Datum = field(default_factory=Datum)
    gradient_config: Datum = field(default_factory=lambda: Datum(bit_width=32))

    @classmethod
    def parse(cls, items: Mapping | None, where: str = "config") -> FixedConfig:
        """From `{data_config: {...}, gradient_config: {...}}`; what is missing has defaults."""
        items = {} if items is None else items
        _check(items, ("data_config", "gradient_config"), where)
        parts = {}
        for name, given in items.items():
            width = getattr(cls(), name).bit_width
            phases = ("training", "not_training") if name == "data_config" else ("training",)
            _check(given or {}, (*phases, "bit_width"), f"{where}.{name}")
            try:
                parts[name] = Datum(**{"bit_width": width, **(given or {})})
            except ConfigError as error:
                raise ConfigError(f"{where}.{name}.{error}") from None
        return cls(**parts)


class Section(NamedTuple):
    """What holds for one operation; `mac` is its accumulator, None for one that sums exactly."""

    weight: FixedConfig
    activation: FixedConfig
    mac: Any = None

    @classmethod
    def parse(cls, items: Mapping, where: str) -> Section:
        """From `{weight: ..., activation: ..., mac: ...}`."""
        _check(items, cls._fields, where)
        return cls(*(FixedConfig.parse(items.get(name), f"{where}.{name}")
                     for name in ("weight", "activation")), items.get("mac"))


def _check(items: object, known, where: str) -> None:
    try:
        check_keys(items, known, where)
    except ValueError as error:
        raise ConfigError(str(error)) from None


class FixedConfigs:
    """The configuration of a network: by type and by name of its operations.

    A name replaces its type altogether. A section may begin with `config_name`, one of `configs`;
    what it gives itself replaces that of the named one whole.
    """

    def __init__(self, items: Mapping | None = None):
        items = {} if items is None else items
        _check(items, ("configs", "by_type", "by_name"), "config")
        self.configs = dict(items.get("configs") or {})
        for name, section in self.configs.items():
            Section.parse(section or {}, f"configs.{name}")
        self.by_type, self.by_name = (self._sections(part, items.get(part))
                                      for part in ("by_type", "by_name"))

    def _sections(self, part: str, items: Mapping | None) -> dict[str, Section]:
        found = {}
        for key, given in (items or {}).items():
            section, where = dict(given or {}), f"{part}.{key}"
            name = section.pop("config_name", None)
            if name is not None and name not in self.configs:
                raise ConfigError(f"{where}.config_name {name!r}: is none of the configs "
                                  f"{', '.join(map(str, self.configs)) or '(there are none)'}")
            named = self.configs.get(name) or {}
            found[str(key)] = Section.parse({**named, **section}, where)
        return found

    def section(self, name: str, type_name: str, default: Section | None = None) -> Section:
        """What holds for an operation: by name, else by type, else `default`."""
        return self.by_name.get(name) or self.by_type.get(type_name) or default or Section(
            FixedConfig(), FixedConfig())

    def lookup(self, name: str, type_name: str) -> tuple[FixedConfig, FixedConfig]:
        """(weight, activation) of an operation."""
        return self.section(name, type_name)[:2]


def parse_cfg_from_str(text: str) -> FixedConfigs:
    """The configuration that a YAML text says; raises ConfigError for a wrong one."""
    return FixedConfigs(yaml.safe_load(text))


def parse_cfg_from_file(path: str | Path) -> FixedConfigs:
    """The configuration in a YAML file."""
    return parse_cfg_from_str(Path(path).read_text())
