"""Networks whose every sum runs on the hardware: torch modules over the integer engine.

`fix(model, config)` turns a float model into one; `fixed_scope(config)` runs any model so; `SGD`
updates its codes; `audit()` proves that no float sum slips by. Needs torch, which the extra
`emu[train]` installs.
"""

try:
    import torch
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("emu.nn needs torch; install emu[train]", name="torch") from error

from emu.engine import offer_int_mm
from emu.nn import checkpoint as checkpoint  # which has torch's work on the hardware
from emu.nn.audit import FloatSum, audit, host
from emu.nn.backend import Backend, Place
from emu.nn.config import Config, Site
from emu.nn.layer import Hardware, Layer
from emu.nn.models import FixedScope, fixed_scope
from emu.nn.modules import (
    Activation,
    AvgPool2d,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    ReLU,
    fix,
    layers,
    to_grid,
    use_backend,
)
from emu.nn.ops.loss import cross_entropy
from emu.nn.optim import SGD, master_codes

__all__ = ["SGD", "Activation", "AvgPool2d", "Backend", "Config", "Conv2d", "FixedScope", "Flatten",
           "FloatSum", "Hardware", "Layer", "Linear", "MaxPool2d", "Place", "ReLU", "Site", "audit",
           "cross_entropy", "fix", "fixed_scope", "host", "layers", "master_codes", "to_grid",
           "use_backend"]


def _int_mm(a, b):
    return torch._int_mm(torch.from_numpy(a), torch.from_numpy(b)).numpy()


offer_int_mm(_int_mm)  # the fastest exact int8 product, where this CPU has the instructions
