"""`tqt.function`: the modules, the quantisers, and torch's containers and pools as they are."""

from torch.nn import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    Dropout,
    Flatten,
    Identity,
    MaxPool2d,
    Module,
    ModuleDict,
    ModuleList,
    Parameter,
    Sequential,
)

from emu.compat.tqt.modules import (
    Adder2d,
    BatchNorm2d,
    Conv2d,
    Linear,
    ReLU,
    ReLU6,
    SEConv2d,
    ShareQuant,
)
from emu.compat.tqt.quantise import qsigned, qunsigned

__all__ = ["AdaptiveAvgPool2d", "Adder2d", "AvgPool2d", "BatchNorm2d", "Conv2d", "Dropout",
           "Flatten", "Identity", "Linear", "MaxPool2d", "Module", "ModuleDict", "ModuleList",
           "Parameter", "ReLU", "ReLU6", "SEConv2d", "Sequential", "ShareQuant", "qsigned",
           "qunsigned"]
