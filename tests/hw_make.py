"""`make` in hw, as its users call it."""

import os
import subprocess
from pathlib import Path

from emu.cosim import hardware

HW = hardware()


def make(work: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """`make` in hw, which builds in `work`."""
    clean = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "SIM")}
    return subprocess.run(["make", "-C", HW, f"BUILD={work / 'build'}", *arguments], text=True,
                          check=False, env=clean | environment, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
