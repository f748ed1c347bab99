"""Questions to an SMT solver in a process of its own; no answer is an error."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from emu.cosim.tools import ToolMissing

SECONDS = 120  # no proof of the standard list needs more than a few

# The wheel of bitwuzla has no program of its own.
_BITWUZLA = """
import sys, bitwuzla
options = bitwuzla.Options()
options.set(bitwuzla.Option.PRODUCE_MODELS, True)
bitwuzla.Parser(bitwuzla.TermManager(), options).parse(sys.argv[1], False, True)
"""


class NoVerdict(RuntimeError):
    """A solver did not decide in its time."""


def satisfiable(texts: Sequence[str], solver: str, seconds: int = SECONDS) -> list[bool]:
    """Whether each SMT-LIB text has a model; all in one process, which may take so many seconds.

    Raises NoVerdict where that is too short, and RuntimeError, with the solver's own words, where
    it gives no verdict for another reason.
    """
    answers = _run(solver, "(reset)\n".join(f"{text}(check-sat)\n" for text in texts), seconds)
    said = answers.split("\n")
    if len(said) != len(texts) or not set(said) <= {"sat", "unsat"}:
        raise RuntimeError(f"{solver} gave no verdict: {answers[-300:] or 'it printed nothing'}")
    return [word == "sat" for word in said]


def model(text: str, names: Sequence[str], solver: str, seconds: int = SECONDS) -> dict[str, int]:
    """A model of a satisfiable text: the bits of these terms."""
    said = _run(solver, f"{text}(check-sat)\n(get-value ({' '.join(names)}))\n", seconds)
    found = {name: int(digits, 2 if base == "b" else 16) for name, base, digits
             in re.findall(r"\((\w+)\s+#([bx])([0-9a-f]+)\)", said)}
    if missing := set(names) - found.keys():
        raise RuntimeError(f"{solver} gave no value of {min(missing)}: {said[-300:]}")
    return found


def version(solver: str) -> str:
    """The name and version of an installed solver."""
    from importlib.metadata import version as installed

    _command(solver, Path())
    return f"{solver} {installed({'z3': 'z3-solver'}.get(solver, solver))}"


def _run(solver: str, text: str, seconds: int) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".smt2") as file:
        file.write(text)
        file.flush()
        try:
            done = subprocess.run(_command(solver, Path(file.name)), text=True, check=False,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  timeout=seconds)
        except subprocess.TimeoutExpired:
            raise NoVerdict(f"{solver} gave no verdict in {seconds} s") from None
    if done.returncode:
        raise RuntimeError(f"{solver} died (status {done.returncode}): "
                           f"{done.stdout.strip()[-300:] or 'it printed nothing'}")
    return done.stdout.strip()


def _command(solver: str, file: Path) -> list[str]:
    if solver not in ("bitwuzla", "z3"):
        raise ValueError(f"solver {solver!r}: known are bitwuzla and z3")
    if solver == "bitwuzla":
        if find_spec("bitwuzla") is None:
            raise ToolMissing("bitwuzla is not installed: pip install emu[prove]")
        return [sys.executable, "-I", "-c", _BITWUZLA, str(file)]
    found = shutil.which("z3", path=sysconfig.get_path("scripts")) or shutil.which("z3")
    if found is None:
        raise ToolMissing("z3 is not installed: pip install emu[prove]")
    return [found, str(file)]
