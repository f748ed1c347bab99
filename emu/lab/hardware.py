"""Hardware presets of recipes: whole configurations by name, fitted to a network.

A preset is a YAML file of `emu/recipes/hardware`: the keys of `emu.nn.Config`, and

about      what it is
init       how weights are initialised: one of `emu.nn.wage.INITS`
alpha      whether each layer's weights are read at WAGE's shift of it
exempt     settings of the layers that a recipe exempts, as first and last layers often are
preset     another preset, from which this one differs
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import yaml

from emu import nn
from emu.nn import sites, wage
from emu.value import check_keys, unknown

PRESETS = Path(__file__).parents[1] / "recipes" / "hardware"
CONFIG = ("default", "by_type", "by_name")
KEYS = ("preset", *CONFIG, "init", "alpha", "exempt", "exempted")


def presets() -> dict[str, Path]:
    """The shipped presets by name."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}


def expand(hardware: Mapping | str) -> dict:
    """The hardware of a recipe with what its preset says, its own settings winning.

    `exempt` names layers (patterns), which get what the preset has for them. Without a preset the
    hardware is a configuration as it is. Raises ValueError for an unknown preset or key.
    """
    own = {"preset": hardware} if isinstance(hardware, str) else dict(hardware)
    if "preset" not in own:
        return own
    check_keys(own, KEYS, "recipe hardware")
    if own["preset"] not in presets():
        raise unknown("preset", own["preset"], presets())
    whole = yaml.safe_load(presets()[own["preset"]].read_text())
    whole.pop("about")
    if "preset" in whole:
        whole = merged(expand(whole.pop("preset")), whole)
    exempted = own.get("exempted", whole.pop("exempt", whole.pop("exempted", None)))
    names = own.pop("exempt", [])
    if not isinstance(names, list | tuple):
        raise ValueError(f"recipe hardware.exempt {names!r}: needs a list of layers")
    if names and exempted is None:
        raise ValueError(f"preset {own['preset']}: says nothing of exempted layers; give their "
                         "settings by_name")
    by_name = {"by_name": dict.fromkeys(names, exempted)}
    whole = merged(merged(whole, by_name), own)
    return whole | ({"exempt": list(names), "exempted": exempted} if names else {})


def merged(wide: Mapping, special: Mapping) -> dict:
    """Nested settings, those of `special` winning."""
    both = [key for key in special if isinstance(special[key], Mapping)
            and isinstance(wide.get(key), Mapping)]
    return {**wide, **special, **{key: merged(wide[key], special[key]) for key in both}}


def prepared(hardware: Mapping, model: torch.nn.Module) -> nn.Config:
    """The configuration of a model; a preset's types that the model lacks are left out.

    Initialises the model where the preset says how.
    """
    if "preset" not in hardware:
        return nn.Config.parse(hardware)
    if hardware.get("init"):
        wage.initialise(model, hardware["init"])
    return fitted(hardware, model)


def fitted(hardware: Mapping, model: torch.nn.Module) -> nn.Config:
    """As `prepared`, of a model that is initialised."""
    if "preset" not in hardware:
        return nn.Config.parse(hardware)
    kinds = {base.__name__ for module in model.modules() for base in type(module).__mro__}
    config = {key: hardware[key] for key in CONFIG if key in hardware}
    config["by_type"] = {kind: settings for kind, settings in config.get("by_type", {}).items()
                         if kind in kinds or kind not in sites.OWN}
    config = nn.Config.parse(config)
    return wage.with_alpha(config, model) if hardware.get("alpha") else config
