"""What nics_fix for TensorFlow offers, over torch: its YAML, its scopes, its chained operations.

    cfgs = nics_fix.parse_cfg_from_file("fixed.yaml")
    with nics_fix.fixed_scope("net", cfgs) as (scope, training, mapping):
        logits = nics_fix.wrap(x).Conv2D(16, 3).ReLU().Flatten().Dense(10).tensor
    ...
    with nics_fix.fixed_scope(scope, cfgs) as (_, training, mapping):   # the same network again

The arithmetic is that of `emu.nn`: integers, forward and, where errors are fixed, backward.
"""

from emu.compat.nics_fix.config import (
    ConfigError,
    FixedConfig,
    FixedConfigs,
    parse_cfg_from_file,
    parse_cfg_from_str,
)
from emu.compat.nics_fix.kwargs import kwargs_scope, kwargs_scope_by_type
from emu.compat.nics_fix.ops import (
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    MaxPool,
    ReLU,
    Split,
    fixed_register,
    no_fixed_register,
    quantitize,
    wrap,
)
from emu.compat.nics_fix.report import FixedMapping, get_collection
from emu.compat.nics_fix.scope import Scope, fixed_scope, set_log_level
from emu.compat.nics_fix.strategy import (
    Strategy,
    StrategyConfigs,
    parse_strategy_cfg_from_file,
    parse_strategy_cfg_from_str,
)
from emu.compat.nics_fix.utils import amend_weight_grad_scales, fixed_model_saver, load_from
from emu.nn import AccumulationStrategy, NoiseStrategy, WeightGradSaver

__all__ = ["AccumulationStrategy", "ConfigError", "Conv2D", "Dense", "Dropout", "FixedConfig",
           "FixedConfigs", "FixedMapping", "Flatten", "MaxPool", "NoiseStrategy", "ReLU", "Scope",
           "Split", "Strategy", "StrategyConfigs", "WeightGradSaver", "amend_weight_grad_scales",
           "fixed_model_saver", "fixed_register", "fixed_scope", "get_collection", "kwargs_scope",
           "kwargs_scope_by_type", "load_from", "no_fixed_register", "parse_cfg_from_file",
           "parse_cfg_from_str", "parse_strategy_cfg_from_file", "parse_strategy_cfg_from_str",
           "quantitize", "set_log_level", "wrap"]
