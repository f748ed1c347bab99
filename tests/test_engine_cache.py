"""Kernels on disk and in forked processes: never stale, never another's, never a hang."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import emu
from emu.engine.kernels.jit import KeyedFiles

PACKAGE = Path(emu.__file__).parent


def run(script: str, root: Path) -> str:
    """What a Python script prints that imports emu from `root`, in a process of its own."""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True,
                           text=True, check=False, timeout=120, cwd=root,
                           env={**os.environ, "PYTHONPATH": str(root), "NUMBA_NUM_THREADS": "2"})
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout.strip()


RESCALE = """
import io
import sys
import numpy as np
from emu import Rescale, engine
from emu.engine.kernels.affine import rescale_rows

class Terminal(io.StringIO):
    def isatty(self):
        return True

sys.stderr = Terminal()
spec = Rescale.parse("{multiplier: 1, shift: 1, to: s8 ties_pos sat}")
code = engine.rescale(np.array([1000]), spec)[0]
stats = rescale_rows.serial().stats  # a product this small starts no team
told = sys.stderr.getvalue().count("emu: compiling kernels, once on this machine")
print(code, sum(stats.cache_hits.values()), sum(stats.cache_misses.values()), told)
"""


def test_a_kernel_follows_its_helpers_and_is_else_loaded_from_disk(tmp_path):
    """A terminal is told, once, where something is compiled."""
    shutil.copytree(PACKAGE, tmp_path / "emu", ignore=shutil.ignore_patterns("__pycache__"))
    helper = tmp_path / "emu/engine/kernels/casts.py"
    assert run(RESCALE, tmp_path) == "127 0 1 1"
    assert run(RESCALE, tmp_path) == "127 1 0 0"
    text = helper.read_text()
    changed = text.replace("return s.hi if x > 0 else s.lo", "return s.lo if x > 0 else s.hi  # !")
    assert changed != text
    helper.write_text(changed)
    assert run(RESCALE, tmp_path) == "-128 0 1 1"


def test_a_file_that_holds_another_kernel_is_not_loaded(tmp_path):
    """As two processes leave it that compiled at once and chose the same file."""
    one, other = (KeyedFiles(str(tmp_path), "kernels", "stamp") for _ in range(2))
    one.save("step32", "code of step32")
    assert other.load("step32") == "code of step32"
    other._save_index({"pairs": one._data_name(1)})
    assert other.load("pairs") is None
    other.save("pairs", "code of pairs")
    assert other.load("pairs") == "code of pairs" and one.load("step32") is None


FORK = """
import os
import numpy as np
import numba
import torch
import emu.nn
from emu import Cast, MacSpec, engine
from emu.engine.kernels import jit

jit.TEAM = 0  # every launch below starts a team of threads
numba.set_num_threads(2)
torch.set_num_threads(2)
rng = np.random.default_rng(0)
A, B = (rng.integers(-128, 128, (96, 96)).astype(np.int8) for _ in "ab")
MACS = [MacSpec.parse("{a: s8, b: s8, acc: %s}" % acc)
        for acc in ("s20", "s16 sat", "s18 sat", "s9 sat_zero")]

def results():
    macs = [engine.matmul(A, B, mac) for mac in MACS]
    return [*macs, engine.cast(macs[2], 0, Cast.parse("s8f-7 ties_even sat"))]

class Results(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return [torch.from_numpy(np.ascontiguousarray(codes)) for codes in results()]

want = results()
torch._int_mm(torch.from_numpy(A), torch.from_numpy(B))
child = os.fork()
if not child:
    os._exit(not all(np.array_equal(g, w) for g, w in zip(results(), want, strict=True)))
print("a child ends with", os.waitpid(child, 0)[1])
loader = torch.utils.data.DataLoader(Results(), batch_size=None, num_workers=2,
                                     multiprocessing_context="fork")
print("workers differ in", sum(not np.array_equal(g.numpy(), w) for item in loader
                               for g, w in zip(item, want, strict=True)))
assert all(np.array_equal(g, w) for g, w in zip(results(), want, strict=True))  # parent goes on
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_process_computes_what_its_parent_does():
    assert run(FORK, PACKAGE.parent) == "a child ends with 0\nworkers differ in 0"
