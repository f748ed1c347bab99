"""Models and measurements on disk, each in a folder named by the hash of all it was made from."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path


def kept(parts: Iterable[str | bytes], build: Callable[[Path], None]) -> Path:
    """The folder that `build` fills from what `parts` say, built once for this user.

    It is filled under another name and then renamed: a second process finds it whole or builds
    its own, and the first one stays. Raises ValueError where nothing can be written.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    place = folder() / digest.hexdigest()[:32]
    if place.is_dir():
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".building-", dir=place.parent))
    except OSError as error:
        raise ValueError(f"{place.parent}: nothing can be kept there "
                         f"({error.strerror}); set XDG_CACHE_HOME to another folder") from None
    try:
        build(work)
        try:
            work.rename(place)
        except OSError:
            if not place.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return place


def folder() -> Path:
    """Where the user's caches lie, by the convention of freedesktop.org."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "emu" / "models"
