"""Where the Verilog and the committed vectors lie: in a checkout, or inside an installed wheel."""

from __future__ import annotations

import functools
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
        defined = _defined(text)
        if not set(defined) & ours.keys():
            raise ValueError(f"{path}: defines {', '.join(defined) or 'no module'}, and so "
                             f"replaces nothing; name the module as ours: {known}")
        for module in defined:
            ours.pop(module, None)
    return [*ours.values(), *(Path(path).resolve() for path in rtl)]


def modules_of(unit: str, rtl: Sequence[Path] = ()) -> list[Path]:
    """Of `modules`, the files that hold `unit` and what it is made of."""
    return _made_of(unit, tuple((path, path.stat().st_mtime_ns) for path in modules(rtl)))


@functools.lru_cache(256)
def _made_of(unit: str, stamps: tuple[tuple[Path, int], ...]) -> list[Path]:
    texts = {path: path.read_text(errors="replace") for path, _ in stamps}
    files = {name: path for path, text in texts.items() for name in _defined(text)}
    found, waiting = [], [unit]
    while waiting:
        path = files.get(waiting.pop())
        if path is not None and path not in found:
            found.append(path)
            waiting += set(re.findall(r"\w+", texts[path])) & files.keys()
    return sorted(found, key=list(texts).index)


def _defined(text: str) -> list[str]:
    return re.findall(r"^\s*module\s+(\w+)", text, re.M)


def _find(name: str) -> Path:
    for folder in (PACKAGE / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise ValueError(f"no folder {name} in {PACKAGE} or beside it; install emu again, or run from "
                     "a checkout")
