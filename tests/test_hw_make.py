"""`make` in hw replays vector files without Python, and tells what is wrong with one."""

import shutil
import subprocess
from pathlib import Path

import pytest
from hw_make import HW, make

from emu.cosim import default_vectors
from emu.golden.vectors import read_manifest

FILES = ["flag_quantizer/s7f4-flag-s2f1-to_neg-sat.hex", "lfsr/lfsr1.hex",
         "quantizer/s8f2-u4-stochastic3-wrap.hex",
         "sgd_update/weight-u8f4-to_zero-sat-momentum-u6f6-to_odd-sat_zero-grad-u5f2-lr-u3f1-mu-u1.hex",
         "mac/s4-s4-product-s4fm2-ties_even-sat-acc-s8fm2-to_neg-sat-lanes-4-pipeline-1-count-4.hex",
         "mac_tiled/u4-u4-acc-u9-to_neg-sat-lanes-2-tile-2-outer-u5fm5-to_odd-sat-reload-true.hex"]


@pytest.fixture
def copies(tmp_path):
    """Some committed vector files, with their manifest."""
    for name in ("manifest.json", *FILES):
        (tmp_path / "vectors" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(default_vectors() / name, tmp_path / "vectors" / name)
    return tmp_path / "vectors"


def replay(copies: Path, *files: str) -> subprocess.CompletedProcess:
    return make(copies.parent, f"VECTORS={copies}", f"FILES={' '.join(files)}")


def test_awk_reads_what_the_manifest_says():
    said = subprocess.run(["awk", "-f", HW / "tb/parameters.awk",
                           default_vectors() / "manifest.json"], text=True, check=True,
                          stdout=subprocess.PIPE).stdout
    found = {}
    for line in said.splitlines():
        name, unit, *words = line.split()
        found[name] = unit, {key: int(value) for key, value in (w.split("=") for w in words)}
    files = read_manifest(default_vectors()).files
    assert found == {file.name: (file.unit, {"CASES": file.cases, **file.parameters})
                     for file in files}


def test_make_replays_a_file_of_each_unit(copies):
    done = replay(copies, *FILES)
    assert done.returncode == 0, done.stdout
    assert "6 files replayed in icarus, 0 differences" in done.stdout
    assert done.stdout.count("PASS") == 6


@pytest.mark.parametrize("name", FILES)
def test_one_wrong_bit_is_one_difference(copies, name):
    path, number = copies / name, 7
    lines = path.read_text().splitlines(keepends=True)
    *rest, last = lines[number - 1].rstrip("\n")
    wrong = "".join([*rest, f"{int(last, 16) ^ 1:x}"]) + "\n"
    path.write_text("".join([*lines[:number - 1], wrong, *lines[number:]]))
    done = replay(copies, name)
    assert done.returncode != 0
    assert f"FAIL {path}: 1 of {len(lines)} lines differ" in done.stdout
    answer = lines[number - 1].replace("_", "").strip()
    assert f"\n{number} {answer}\n" in done.stdout  # what the unit said, which was right
    assert "differences" not in done.stdout


@pytest.mark.parametrize("kept", [0, 10])
def test_a_short_file_is_no_pass(copies, kept):
    path = copies / "lfsr/lfsr1.hex"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:kept]))
    done = replay(copies, "lfsr/lfsr1.hex")
    assert done.returncode != 0
    assert f"has {kept} lines, expected 580" in done.stdout


def test_make_refuses_what_it_does_not_know(tmp_path):
    for argument, words in (("SIM=modelsim", "known are icarus, verilator"),
                            ("UNIT=adder", "has no vectors of adder; known units are"),
                            ("FILES=mac/mine.hex", "has no mac/mine.hex"),
                            ("VECTORS=/nowhere", "has no vectors")):
        done = make(tmp_path, argument)
        assert done.returncode != 0
        assert words in done.stdout
