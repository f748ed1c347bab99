"""Yosys as a function: Verilog and parameters in, a synthesised form out."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from emu.cosim import tools


def yosys(commands: str, sources: Sequence[Path], outputs: Sequence[str]) -> list[str]:
    """Run commands on copies of the sources, see `reading`; the texts of the files they write.

    Names in the outputs so do not depend on where the sources lie. Raises ToolMissing, or
    ToolFailed with what Yosys said.
    """
    with tempfile.TemporaryDirectory(prefix="emu-yosys-") as folder:
        for name, source in zip(_names(sources), sources, strict=True):
            shutil.copyfile(source, Path(folder) / name)
        try:
            tools.run_yosys(commands, Path(folder))
        except tools.ToolFailed as error:
            raise tools.ToolFailed(re.sub(
                r"\b(\d+)\.s?v\b", lambda found: str(sources[int(found[1])]), str(error))) from None
        return [(Path(folder) / name).read_text() for name in outputs]


def elaborate(sources: Sequence[Path], module: str, parameters: Mapping[str, int]) -> str:
    """Commands that read sources and leave one flat module of cells and registers.

    Undefined bits become free ones, so that nothing can be proved by choosing them well.
    """
    return (f"{_chosen(sources, module, parameters)}proc; flatten; "
            f"rename -top {module}; check -assert; setundef -undriven -anyseq; "
            "opt_expr; opt_clean; ")


def synthesise(unit: str, parameters: Mapping[str, int], sources: Sequence[Path], passes: str,
               output: str) -> str:
    """The text of the file that some passes make of `unit`.

    Raises ValueError for parameters that the Verilog refuses, RuntimeError where it does not
    elaborate.
    """
    try:
        text, = yosys(f"{_chosen(sources, unit, parameters)}{passes}", sources, [output])
    except tools.ToolFailed as error:
        raise tools.refused(unit, parameters, error) from None
    return text


def _chosen(sources: Sequence[Path], module: str, parameters: Mapping[str, int]) -> str:
    """Commands that read sources and choose one module with its parameters."""
    setting = "".join(f"chparam -set {name} {value} {module}; "
                      for name, value in parameters.items())
    return f"{reading(sources)}{setting}hierarchy -check -top {module}; "


def reading(sources: Sequence[Path]) -> str:
    """Commands that read the copies of these sources."""
    return "".join(f"read_verilog {'-sv ' * name.endswith('.sv')}{name}; "
                   for name in _names(sources))


def _names(sources: Sequence[Path]) -> list[str]:
    """0.v and so on; SystemVerilog is 1.sv."""
    return [f"{i}.sv" if source.suffix == ".sv" else f"{i}.v"
            for i, source in enumerate(sources)]


def version() -> str:
    """`yosys 0.23`."""
    tools.require("yosys")
    said = tools.version(*tools.yosys(), "-V")
    return f"yosys {re.search(r'[0-9][0-9.+]*', said)[0]}"
