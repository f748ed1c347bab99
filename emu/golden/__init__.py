"""Golden vectors: designed cases and recorded steps, with what `emu.reference` answers."""

from emu.golden.cases import write_vectors
from emu.golden.trace import (
    BufferTrace,
    CastTrace,
    MacTrace,
    UpdateTrace,
    check_traces,
    write_step,
)
from emu.golden.vectors import check_replaceable, diff, read_manifest

__all__ = ["BufferTrace", "CastTrace", "MacTrace", "UpdateTrace", "check_replaceable",
           "check_traces", "diff", "read_manifest", "write_step", "write_vectors"]
