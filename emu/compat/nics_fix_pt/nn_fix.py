"""Every registered fix module by its name: `nn_fix.Linear_fix`."""

from emu.compat.nics_fix_pt.layers import Activation_fix, ConvBN_fix
from emu.compat.nics_fix_pt.modules import registry
from emu.compat.nics_fix_pt.top import FixTopModule

ActivationFix = Activation_fix  # as the README of 0.4.0 spells it

__all__ = ["ActivationFix", "Activation_fix", "ConvBN_fix", "FixTopModule"]


def __getattr__(name: str):
    if name not in registry:
        raise AttributeError(f"module 'nn_fix' has no {name!r}: register_fix_module makes it, or "
                             "NAR, from a class of torch.nn")
    return registry[name]


def __dir__():
    return [*__all__, *registry]
