"""The FuseSoC cores name every file and parameter there is, and run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from emu import __version__
from emu.cosim import default_vectors, hardware

HW = hardware()


def core(name: str) -> dict:
    text = (HW / f"emu_{name}.core").read_text()
    assert text.startswith("CAPI=2:\n")
    return yaml.safe_load(text.removeprefix("CAPI=2:\n"))


def files_of(description: dict) -> set[Path]:
    names = [name if isinstance(name, str) else next(iter(name))
             for part in description["filesets"].values() for name in part["files"]]
    assert len(names) == len(set(names))
    return {HW / name for name in names}


def test_cores_are_complete():
    for name, want in (("rtl", HW.glob("rtl/*.v")), ("check", HW.glob("tb/*.v")),
                       ("dpi", [*HW.glob("c/*"), *HW.glob("dpi/*.c"), *HW.glob("dpi/*.sv")])):
        description = core(name)
        assert files_of(description) == set(want)
        assert description["name"] == f"emu:hw:{name}:{__version__}"
    assert {path.name for path in HW.glob("*.core")} == {f"emu_{name}.core"
                                                        for name in ("rtl", "check", "dpi")}


def test_the_check_core_names_every_parameter():
    description = core("check")
    declared = {}
    for path in HW.glob("tb/check_*.v"):
        declared[path.stem.removeprefix("check_")] = re.findall(r"parameter (\w+)",
                                                                path.read_text())
    assert {name: target["parameters"] for name, target in description["targets"].items()} \
        == declared
    assert set(description["parameters"]) == set().union(*declared.values())


@pytest.mark.parametrize(("bits", "words"), [(8, "PASS"), (7, "FAIL")])
def test_fusesoc_runs_a_check(tmp_path, bits, words):
    done = subprocess.run(
        [sys.executable, "-m", "fusesoc.main", "--cores-root", HW, "run", "--target=lfsr",
         "emu:hw:check", f"--FILE={default_vectors() / 'lfsr/lfsr8.hex'}",
         f"--RAND_WIDTH={bits}"], cwd=tmp_path, text=True, check=False, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT)
    assert f"{words} {default_vectors()}" in done.stdout, done.stdout
    assert (done.returncode == 0) == (words == "PASS")
