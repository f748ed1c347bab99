"""Co-simulation: vector sets replayed on Verilog, ours or the user's."""

from emu.cosim.places import default_vectors, hardware
from emu.cosim.replay import FileReport, Report, replay
from emu.cosim.simulator import ToolMissing

__all__ = ["FileReport", "Report", "ToolMissing", "default_vectors", "hardware", "replay"]
