"""Networks whose every sum runs on the hardware: torch modules over the integer engine.

`fix(model, config)` turns a float model into one; `fixed_scope(config)` runs any model so; `SGD`
updates its codes, `FloatMasters` brings any other optimizer; a `Strategy` is a user's code around
casts; `audit()` proves that no float sum slips by. `emu.nn.X` is the fixed version of any module
`torch.nn.X`. Needs torch, which the extra `emu[train]` installs.
"""

try:
    import torch
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("emu.nn needs torch; install emu[train]", name="torch") from error

from emu.engine import offer_int_mm
from emu.nn import checkpoint as checkpoint  # which has torch's work on the hardware
from emu.nn.adder import Adder2d, SEConv2d
from emu.nn.audit import FloatSum, audit, host
from emu.nn.backend import Backend, Place
from emu.nn.calibrate import calibrate, observe
from emu.nn.compare import Similarity, compare_outputs, compare_parameters
from emu.nn.config import Config, Site
from emu.nn.float_masters import FloatMasters
from emu.nn.fold import ConvBN, fold
from emu.nn.hardware import Hardware
from emu.nn.layer import Layer
from emu.nn.models import FixedScope, fixed_scope
from emu.nn.modules import (
    Activation,
    configure,
    find,
    fix,
    is_exact,
    layers,
    reconfigure,
    register_fix_module,
    to_grid,
    use_backend,
    use_float,
)
from emu.nn.ops.loss import cross_entropy
from emu.nn.optim import SGD
from emu.nn.owners import master_codes
from emu.nn.report import Row, table
from emu.nn.state import fix_state_dict, load_fix_state_dict
from emu.nn.strategies import AccumulationStrategy, NoiseStrategy, WeightGradSaver
from emu.nn.strategy import Strategies, Strategy
from emu.nn.thresholds import Freezer, freeze_thresholds, log2_of, share_thresholds, thresholds

__all__ = ["SGD", "AccumulationStrategy", "Activation", "Adder2d", "Backend", "Config", "ConvBN",
           "FixedScope", "FloatMasters", "FloatSum", "Freezer", "Hardware", "Layer",
           "NoiseStrategy", "Place", "Row", "SEConv2d", "Similarity", "Site", "Strategies",
           "Strategy", "WeightGradSaver", "audit", "calibrate", "compare_outputs",
           "compare_parameters", "configure", "cross_entropy", "fix", "fix_state_dict",
           "fixed_scope", "fold", "freeze_thresholds", "host", "is_exact", "layers",
           "load_fix_state_dict", "log2_of", "master_codes", "observe", "reconfigure",
           "register_fix_module", "share_thresholds", "table", "thresholds", "to_grid",
           "use_backend", "use_float"]


def __getattr__(name: str):
    """The fixed version of any module of torch.nn, and those that were registered."""
    found = find(name)
    if found is None:
        raise AttributeError(f"module 'emu.nn' has no attribute {name!r}: neither torch.nn has a "
                             "module of that name, nor was one registered")
    return found


def _int_mm(a, b):
    return torch._int_mm(torch.from_numpy(a), torch.from_numpy(b)).numpy()


offer_int_mm(_int_mm)  # the fastest exact int8 product, where this CPU has the instructions
