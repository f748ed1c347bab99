"""nics_fix_pt 0.4.0: training with quantised parameters, activations and gradients in PyTorch.

`import emu.compat.nics_fix_pt as nfp` takes what was written for that package; a key "mac" in the
configuration of a weight moves a layer's sums to the integer engine (`hardware`).
"""

import torch

from emu.compat.nics_fix_pt import (
    consts,
    fix_modules,
    nn_fix,
    nn_fix_inner,
    quant,
    utils,
)
from emu.compat.nics_fix_pt.consts import (
    FIX_AUTO,
    FIX_FIXED,
    FIX_NONE,
    RANGE_3SIGMA,
    RANGE_MAX,
    QuantizeMethod,
    RangeMethod,
)
from emu.compat.nics_fix_pt.fix_modules import FixTopModule, register_fix_module
from emu.compat.nics_fix_pt.modules import registry
from emu.compat.nics_fix_pt.quant import quantitize, quantitize_cfg, quantize, quantize_cfg

__version__ = "0.4.0"

__all__ = ["FIX_AUTO", "FIX_FIXED", "FIX_NONE", "NAR", "RANGE_3SIGMA", "RANGE_MAX", "FixTopModule",
           "QuantizeMethod", "RangeMethod", "consts", "fix_modules", "nn_auto_register", "nn_fix",
           "nn_fix_inner", "quant", "quantitize", "quantitize_cfg", "quantize", "quantize_cfg",
           "register_fix_module", "utils"]


class _AutoRegister:
    """Fix modules of any class of torch.nn by attribute, `NAR.Bilinear` or `NAR.Bilinear_fix`."""

    def __getattr__(self, name: str):
        fixed, plain = f"{name.removesuffix('_fix')}_fix", name.removesuffix("_fix")
        if fixed not in registry and not hasattr(nn_fix, fixed):
            cls = getattr(torch.nn, plain)
            if not (isinstance(cls, type) and issubclass(cls, torch.nn.Module)):
                raise AttributeError(f"torch.nn.{plain} is no module class")
            register_fix_module(cls)
        return getattr(nn_fix, fixed)


NAR = nn_auto_register = _AutoRegister()
