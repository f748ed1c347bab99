"""Where the Verilog and the committed vectors lie: in a checkout, or inside an installed wheel."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

_MODULE = re.compile(r"^\s*module\s+(\w+)", re.M)
PACKAGE = Path(__file__).resolve().parents[1]


def hardware() -> Path:
    """The folder with rtl/ and tb/."""
    return _find("hw")


def default_vectors() -> Path:
    """The folder of the committed vector set."""
    return _find("vectors")


def rtl_sources(rtl: Sequence[Path] = (), top: str | None = None) -> list[Path]:
    """Our modules, without those that the user's files `rtl` define, and these files.

    With `top` only the files whose modules it uses, so that nothing else can matter to it.
    """
    ours = {path.stem: path for path in sorted(hardware().glob("rtl/*.v"))}
    known = ", ".join(ours)
    for path in rtl:
        defined = modules_of(path)
        if not set(defined) & ours.keys():
            raise ValueError(f"{path}: defines {', '.join(defined) or 'no module'}, and so "
                             f"replaces nothing; name the module as ours: {known}")
        for module in defined:
            ours.pop(module, None)
    sources = [*ours.values(), *(Path(path).resolve() for path in rtl)]
    if top is None:
        return sources
    return _used(top, tuple((path, path.stat().st_mtime_ns) for path in sources))


def check_used(rtl: Sequence[Path], tops: Iterable[str]) -> None:
    """Raise ValueError where the user gave files and none is a part of these modules."""
    tops = sorted(set(tops))
    used = {source for top in tops for source in rtl_sources(rtl, top)}
    if rtl and not used & {Path(path).resolve() for path in rtl}:
        raise ValueError(f"{', '.join(map(str, rtl))}: no part of {', '.join(tops)}, which alone "
                         "would be tried; name its vectors or specs")


def modules_of(path: Path) -> list[str]:
    """The modules that a file defines. Raises ValueError where it cannot be read."""
    try:
        return _MODULE.findall(Path(path).read_text(errors="replace"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None


@functools.lru_cache(256)
def _used(top: str, stamps: tuple[tuple[Path, int], ...]) -> list[Path]:
    texts = {path: path.read_text(errors="replace") for path, _ in stamps}
    defines = {module: path for path, text in texts.items() for module in _MODULE.findall(text)}
    used, todo = set(), [top]
    while todo:
        path = defines.get(todo.pop())
        if path is not None and path not in used:
            used.add(path)
            todo += set(re.findall(r"\w+", texts[path])) & defines.keys()
    return [path for path in texts if path in used]


def _find(name: str) -> Path:
    for folder in (PACKAGE / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise ValueError(f"no folder {name} in {PACKAGE} or beside it; install emu again, or run from "
                     "a checkout")
