"""Widths layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from emu.compat.tqt.modules import Quantised, _Weighted


class Fconfig(NamedTuple):
    """The widths of one layer and of the activations behind it."""

    weight: int = 8
    bias: int = 16
    acti: int = 8


def list_to_fconfig(widths: Iterable[Iterable[int]]) -> list[Fconfig]:
    """A configuration for each (weight, bias, acti)."""
    return [Fconfig(*each) for each in widths]


def layers_config(net: torch.nn.Module, configs: Iterable[Fconfig]) -> None:
    """Give the layers with weights, in the order of the network, one configuration each.

    The `acti` of one is for all activations up to the next layer. Raises ValueError where there
    are more or fewer configurations than layers.
    """
    groups: list[list[Quantised]] = []
    for module in net.modules():
        if isinstance(module, _Weighted):
            groups.append([module])
        elif isinstance(module, Quantised) and groups:
            groups[-1].append(module)
    configs = [Fconfig(*config) for config in configs]
    if len(configs) != len(groups):
        raise ValueError(f"{len(configs)} configurations for {len(groups)} layers; give one for "
                         "each")
    for config, group in zip(configs, groups, strict=True):
        for module in group:
            given = {f"{name}_bit_width": bits for name, bits in config._asdict().items()}
            module.set_widths(**{name: bits for name, bits in given.items()
                                 if name in module.widths})
