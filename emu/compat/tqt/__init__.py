"""TQT (PannenetsF/TQT 1.0.1) by an import swap: `import emu.compat.tqt as tqt`.

Its names, widths and switches; what a quantised module computes runs on the engine of `emu.nn`,
thresholds are the learned ones of `emu.nn.thresholds`. Where the package was broken its formulas
are those of the paper (arXiv 1903.08066).
"""

from emu.compat.tqt import (
    analyse,
    config,
    fold,
    function,
    fused_config,
    threshold,
    utils,
    wrapper,
)

__all__ = ["analyse", "config", "fold", "function", "fused_config", "threshold", "utils", "wrapper"]
