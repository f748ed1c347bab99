"""Where the Verilog and the committed vectors lie: in a checkout, or inside an installed wheel."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def hardware() -> Path:
    """The folder with rtl/ and tb/."""
    return _find("hw")


def default_vectors() -> Path:
    """The folder of the committed vector set."""
    return _find("vectors")


def modules(rtl: Sequence[Path] = ()) -> list[Path]:
    """The files of our modules, without those that the user's `rtl` files define, and these."""
    ours = {path.stem: path for path in sorted(hardware().glob("rtl/*.v"))}
    known = ", ".join(ours)
    for path in rtl:
        try:
            text = Path(path).read_text(errors="replace")
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
        defined = re.findall(r"^\s*module\s+(\w+)", text, re.M)
        if not set(defined) & ours.keys():
            raise ValueError(f"{path}: defines {', '.join(defined) or 'no module'}, and so "
                             f"replaces nothing; name the module as ours: {known}")
        for module in defined:
            ours.pop(module, None)
    return [*ours.values(), *(Path(path).resolve() for path in rtl)]


def _find(name: str) -> Path:
    for folder in (PACKAGE / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise ValueError(f"no folder {name} in {PACKAGE} or beside it; install emu again, or run from "
                     "a checkout")
