"""The same calls for a float and a quantised build: factories by name.

    for build in (OFUNCTION, QFUNCTION): build["Conv2d"](1, 6, 5, weight_bit_width=8)
"""

from __future__ import annotations

import torch

from emu import nn
from emu.compat.tqt import modules

OWN = ("weight_bit_width", "bias_bit_width", "inter_bit_width", "acti_bit_width", "retrain",
       "quant")
NAMES = ("ReLU", "ReLU6", "BatchNorm2d", "Conv2d", "Linear", "Adder2d")


def _floats(cls: type):
    def build(*args, **kwargs):
        return cls(*args, **{name: value for name, value in kwargs.items() if name not in OWN})
    build.__doc__ = f"A float {cls.__name__}; widths, retrain and quant are taken and left."
    return build


OFUNCTION = {name: _floats(nn.Adder2d if name == "Adder2d" else getattr(torch.nn, name))
             for name in (*NAMES, "MaxPool2d")}
QFUNCTION = {name: getattr(modules, name) for name in NAMES} | {
    "MaxPool2d": _floats(torch.nn.MaxPool2d)}
