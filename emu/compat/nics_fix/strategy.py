"""StrategyConfigs, and strategies as nics_fix has them: `(name, weight config, activation config)`.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from emu import nn
from emu.compat.nics_fix.config import FixedConfig, Section
from emu.nn import Site
from emu.nn.strategy import Nest, find
from emu.spec import LayerSpec


class Strategy(nn.Strategy):
    """A user's strategy: hooks `pre_` and `post_` of `weight`, `activation` and their `_grad`."""

    __registry_name__ = "nics_fix_strategy"

    def __init__(self, name: str, fixed_weight_cfg: FixedConfig,
                 fixed_activation_cfg: FixedConfig):
        self.name = name
        self.fixed_weight_cfg, self.fixed_activation_cfg = fixed_weight_cfg, fixed_activation_cfg


class StrategyConfigs(nn.Strategies):
    """The strategies of a network: by type and by name of its operations; a name replaces."""

    def bound(self, operations: dict[str, tuple[str, str, Section]]) -> BoundStrategies:
        """Those of a scope, whose modules belong to these operations: (name, type, section)."""
        return BoundStrategies(self, operations)


class BoundStrategies(nn.Strategies):
    """The strategies of one scope; `given` are those of modules that were made with their own."""

    def __init__(self, configs: StrategyConfigs, operations: dict[str, tuple[str, str, Section]]):
        super().__init__(configs.by_name, configs.by_type)
        self.operations, self.given = operations, {}

    def of(self, site: Site, spec: LayerSpec) -> Nest:
        module = site.path.partition(".")[0]
        if module in self.given:
            return Nest(self.given[module])
        name, kind, section = self.operations[module]
        entries = self.by_name.get(name, self.by_type.get(kind, []))
        return Nest([self._made(entry, site, spec, name, section) for entry in entries])

    def _made(self, entry: dict, site: Site, spec: LayerSpec, name: str, section: Section):
        keys = {key: value for key, value in entry.items() if key != "name"}
        cls = find(entry["name"])
        if not issubclass(cls, Strategy):
            return self.make(entry["name"], site, spec, keys)
        return cls(name, section.weight, section.activation, **keys)

    def __bool__(self) -> bool:
        return True  # also where modules may bring their own

    def unused(self, sites: list[Site]) -> list[str]:
        """None: operations come one after another."""
        return []


def parse_strategy_cfg_from_str(text: str) -> StrategyConfigs:
    """The strategies that a YAML text says."""
    return StrategyConfigs.parse(yaml.safe_load(text))


def parse_strategy_cfg_from_file(path: str | Path) -> StrategyConfigs:
    """The strategies in a YAML file."""
    return parse_strategy_cfg_from_str(Path(path).read_text())
