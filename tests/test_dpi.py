"""The SystemVerilog example agrees with the Verilog, in Verilator, and tells a wrong spec."""

import re
import subprocess

import pytest
from hw_make import HW, make

from emu.cosim import tools
from emu.cosim.places import rtl_sources

WRONG = {
    "+cast=s8f-11 stochastic7 sat": r"sum \d+, step \d+: code_o=-?\d+, expected -?\d+",
    "+cast=s8f-11 stochastic8 wrap": r"sum \d+, step \d+: code_o=-?\d+, expected -?\d+",
    "+cast=s8f-11 sometimes": r'emu_cast "s8f-11 sometimes": unknown mode: the roundings are',
    "+mac={a: s8, b: u4, product: s10f-2 ties_odd sat, acc: s18f-2 sat, lanes: 2}":
        r"sum \d+, step \d+: acc_o=-?\d+, expected -?\d+",
    "+mac={a: s8, b: u4, product: s10f-2 ties_even sat, acc: s19f-2 sat, lanes: 2}":
        r"sum \d+, step \d+: (acc_o|ovf_o)=-?\d+, expected -?\d+",
    "+mac={a: s8, b: u4, product: s10f-2 ties_even sat, acc: s18f-2 sat}":
        r"emu_mac: a step has 1 products",
}


def test_the_example_agrees_and_tells_a_wrong_spec(tmp_path):
    """One build by Verilator; what the model should compute is an argument of its runs."""
    program, root = tools.verilator()
    done = make(tmp_path, "dpi", "SIM=verilator", f"VERILATOR={program}",
                "ARGS=+sums=2000 +seed=7", VERILATOR_ROOT=str(root),
                MAKEFLAGS="CFG_CXXFLAGS_PCH_I=-include CFG_CXXFLAGS_COROUTINES=-fcoroutines "
                "OPT_FAST=-O0 OPT_SLOW=-O0 OPT_GLOBAL=-O0")
    assert done.returncode == 0, done.stdout
    assert "2000 dot products and casts, 0 differences (seed 7)" in done.stdout
    for argument, words in WRONG.items():
        done = subprocess.run([tmp_path / "build/dpi/example", argument, "+sums=2000"], text=True,
                              check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode != 0, argument
        assert re.search(words, done.stdout), done.stdout
        assert "0 differences" not in done.stdout


@pytest.mark.parametrize("simulator", ["vcs", "questa", "xcelium"])
def test_file_lists_are_complete(simulator):
    lines = (HW / "dpi" / f"{simulator}.f").read_text().splitlines()
    assert any("Untested" in line for line in lines)
    files = {(HW / "dpi" / line).resolve() for line in lines if line.endswith((".v", ".sv", ".c"))}
    example = (HW / "dpi/example.sv").read_text()
    units = [path for module in ("mac", "lfsr", "quantizer") for path in rtl_sources((), module)]
    assert all(re.search(rf"^  {path.stem} #", example, re.M)
               for path in units if path.stem != "register")
    want = {*units, *HW.glob("dpi/*.sv")}
    if simulator != "questa":  # which loads libemu.so
        want |= {*HW.glob("c/*.c"), HW / "dpi/emu_dpi.c"}
    assert files == {path.resolve() for path in want}
