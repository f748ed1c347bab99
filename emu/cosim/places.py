"""Where the Verilog and the committed vectors lie: in a checkout, or inside an installed wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def hardware() -> Path:
    """The folder with rtl/ and tb/."""
    return _find("hw")


def default_vectors() -> Path:
    """The folder of the committed vector set."""
    return _find("vectors")


def _find(name: str) -> Path:
    for folder in (PACKAGE / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise ValueError(f"no folder {name} in {PACKAGE} or beside it; install emu again, or run from "
                     "a checkout")
