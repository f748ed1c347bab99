"""Yosys as a function: Verilog and parameters in, a synthesised form out."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from emu.cosim.simulator import ToolMissing


def yosys(commands: str, sources: Sequence[Path], outputs: Sequence[str]) -> list[str]:
    """Run commands on copies of the sources, 0.v and so on; the texts of the files they write.

    Names in the outputs so do not depend on where the sources lie. Raises RuntimeError with what
    Yosys said.
    """
    _check()
    with tempfile.TemporaryDirectory(prefix="emu-yosys-") as folder:
        for i, source in enumerate(sources):
            shutil.copyfile(source, Path(folder) / f"{i}.v")
        done = subprocess.run(["yosys", "-q", "-p", commands], cwd=folder, text=True, check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            said = [line for line in done.stdout.splitlines() if "ERROR" in line]
            word = said[0] if said else done.stdout.strip()[-300:] or "died without a word"
            raise RuntimeError("yosys: " + re.sub(
                r"^(\d+)\.v\b", lambda found: str(sources[int(found[1])]), word))
        return [(Path(folder) / name).read_text() for name in outputs]


def elaborate(sources: Sequence[Path], module: str, parameters: Mapping[str, int]) -> str:
    """Commands that read sources and leave one flat module of cells and registers.

    Undefined bits become free ones, so that nothing can be proved by choosing them well.
    """
    setting = "".join(f"chparam -set {name} {value} {module}; "
                      for name, value in parameters.items())
    names = " ".join(f"{i}.v" for i in range(len(sources)))
    return (f"read_verilog {names}; {setting}hierarchy -check -top {module}; proc; flatten; "
            f"rename -top {module}; check -assert; setundef -undriven -anyseq; "
            "opt_expr; opt_clean; ")


@cache
def version() -> str:
    """`yosys 0.23`."""
    _check()
    said = subprocess.run(["yosys", "-V"], text=True, check=True, stdout=subprocess.PIPE).stdout
    return f"yosys {re.search(r'[0-9][0-9.+]*', said)[0]}"


def _check() -> None:
    if not shutil.which("yosys"):
        raise ToolMissing("yosys is not on PATH: apt-get install yosys")
