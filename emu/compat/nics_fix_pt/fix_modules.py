"""The names of nics_fix_pt's module of this name."""

from emu.compat.nics_fix_pt.layers import Activation_fix, ConvBN_fix
from emu.compat.nics_fix_pt.modules import FixMeta, FixModule, register_fix_module
from emu.compat.nics_fix_pt.top import FixTopModule

__all__ = ["Activation_fix", "ConvBN_fix", "FixMeta", "FixModule", "FixTopModule",
           "register_fix_module"]
