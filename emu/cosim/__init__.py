"""Co-simulation: vector sets and arrays through Verilog, ours or the user's."""

import importlib

from emu.cosim.places import default_vectors, hardware
from emu.cosim.replay import FileReport, Report, replay
from emu.cosim.tools import ToolFailed, ToolMissing, require

# Imported on first use, as they load numpy and numba.
_LAZY = {"check_rtl": "emu.cosim.yours", "replay_arrays": "emu.cosim.volume",
         "run": "emu.cosim.engines"}

__all__ = [  # noqa: PLE0604 (the lazy names are strings too)
    "FileReport", "Report", "ToolFailed", "ToolMissing", "default_vectors", "hardware",
    "replay", "require", *_LAZY]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'emu.cosim' has no attribute {name!r}")
