"""Widths of all modules of a kind."""

from __future__ import annotations

from typing import NamedTuple

import torch

from emu.compat.tqt.modules import BatchNorm2d, Quantised, _Weighted


class Config(NamedTuple):
    """The widths of convolutions and linear layers, of batch norms, and of activations."""

    conv_and_linear_weight: int = 8
    conv_and_linear_bias: int = 8
    bn_weight: int = 8
    bn_bias: int = 8
    acti: int = 8


def widths_of(module: Quantised, config: Config) -> dict[str, int]:
    """What a configuration says of one module."""
    kind = ("conv_and_linear" if isinstance(module, _Weighted)
            else "bn" if isinstance(module, BatchNorm2d) else None)
    given = {"acti_bit_width": config.acti}
    if kind:
        given |= {f"{name}_bit_width": getattr(config, f"{kind}_{name}")
                  for name in ("weight", "bias")}
    return {name: bits for name, bits in given.items() if name in module.widths}


def config_network(net: torch.nn.Module, name: str = "", config: Config | None = None,
                   show: bool = False) -> None:
    """Give every quantised module of a network the widths of a configuration."""
    for path, module in net.named_modules(prefix=name):
        if isinstance(module, Quantised):
            widths = widths_of(module, config or Config())
            module.set_widths(**widths)
            if show:
                print(path, widths)


network_config = config_network
