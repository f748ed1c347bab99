"""An installed wheel, outside the checkout and without torch, writes and replays vectors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUN = ("import sys; sys.modules['torch'] = None; sys.argv[0] = 'emu'; import emu, emu.cli; "
       "assert emu.__file__.startswith({place!r}), emu.__file__; emu.cli.main()")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which the wheel was installed, and an `emu` that runs from there."""
    work = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", work,
                    ROOT], check=True, stdout=subprocess.DEVNULL)
    wheel, = work.glob("*.whl")
    place = work / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
                    "--disable-pip-version-check", "--target", place, wheel], check=True)

    def emu(*arguments):
        return subprocess.run(
            [sys.executable, "-c", RUN.format(place=str(place)), *map(str, arguments)], cwd=work,
            env={**os.environ, "PYTHONPATH": str(place)}, check=False, capture_output=True,
            text=True)

    return emu


def test_wheel_replays_its_own_vectors(installed):
    done = installed("cosim")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 differences" in done.stdout


def test_wheel_writes_the_vectors_of_a_spec(installed, tmp_path):
    spec = "{a: s8, b: u4, product: s10f-2 ties_even sat, acc: s14f-2 sat, lanes: 2}"
    assert installed("vectors", spec, "--out", tmp_path / "mine").returncode == 0
    done = installed("cosim", tmp_path / "mine")
    assert done.returncode == 0, done.stdout + done.stderr


def test_wheel_says_what_training_needs(installed):
    done = installed("train", "digits-mlp-int8")
    assert done.returncode == 2
    assert "emu.nn needs torch; install emu[train]" in done.stderr
