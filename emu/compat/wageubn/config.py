"""Widths of a whole network, as `wageubn.config` sets them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from emu.compat.wageubn import function
from emu.value import unknown


class Config(NamedTuple):
    """The bits of every tensor; the fields that end in `_all` are the real ones (None: the same).

    The defaults are those that the original meant: its own bind to the last fields.
    """

    iostrict: bool = False
    conv_and_linear_weight: int = 8
    conv_and_linear_bias: int = 8
    conv_and_linear_in: int = 8
    conv_and_linear_out: int = 12
    bn_weight: int = 8
    bn_bias: int = 8
    bn_mean: int = 8
    bn_var: int = 8
    bn_in: int = 12
    bn_out: int = 8
    acti_in: int = 8
    acti: int = 8
    conv_and_linear_weight_all: int | None = None
    conv_and_linear_bias_all: int | None = None
    conv_and_linear_in_all: int | None = None
    conv_and_linear_out_all: int | None = None
    bn_weight_all: int | None = None
    bn_bias_all: int | None = None
    bn_mean_all: int | None = None
    bn_var_all: int | None = None
    bn_in_all: int | None = None
    bn_out_all: int | None = None
    acti_in_all: int | None = None
    acti_all: int | None = None

    def widths(self, names: dict[str, str]) -> dict[str, int]:
        """The keywords of a layer whose tensors have these fields."""
        found = {}
        for tensor, field in names.items():
            whole = getattr(self, f"{field}_all")
            found[f"{tensor}_dec_bit_width"] = getattr(self, field)
            found[f"{tensor}_all_bit_width"] = getattr(self, field) if whole is None else whole
        return found


# The fields of each group of layers, by the layer's name of the tensor.
CONV_LINEAR = {"weight": "conv_and_linear_weight", "bias": "conv_and_linear_bias",
               "input": "conv_and_linear_in", "output": "conv_and_linear_out"}
BN = {"weight": "bn_weight", "bias": "bn_bias", "mean": "bn_mean", "var": "bn_var",
      "input": "bn_in", "output": "bn_out"}
ACTI = {"input": "acti_in", "acti": "acti"}


def config_network(net: torch.nn.Module, name: str, config: Config,
                   bn_list: Iterable = (function.BatchNorm2d,),
                   acti_list: Iterable = (function.ReLU, function.ReLU6),
                   conv_linear_list: Iterable = (function.Conv2d, function.Linear),
                   show: bool = False) -> torch.nn.Module:
    """Give every layer of a network the widths of its group, and its strictness.

    The lists hold classes, or their names. `name` is what `show` calls the network. Raises
    ValueError for a class that has no widths.
    """
    for part, module in net.named_modules():
        for group, fields in ((conv_linear_list, CONV_LINEAR), (bn_list, BN), (acti_list, ACTI)):
            if not any(type(module) is each or type(module).__name__ == each for each in group):
                continue
            if not hasattr(module, "set_widths"):
                raise unknown(f"layer {part!r} with widths:", type(module).__name__,
                              ["Conv2d", "Linear", "BatchNorm2d", "ReLU", "ReLU6"])
            module.set_widths(config.iostrict, **config.widths(fields))
            if show:
                print(f"{name}.{part}: {module.widths}, iostrict {module.iostrict}")
    return net


network_config = config_network  # as the README calls it
