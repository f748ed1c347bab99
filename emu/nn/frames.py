"""The frames that run in this thread, the last of which torch functions belong to.

Functions of the table that are made of others name those by it.
"""

from __future__ import annotations

import threading

state = threading.local()  # `frames`, and `open`: whether the mode is on top of torch's stack


def here():
    """The frame of the composite function that runs."""
    return state.frames[-1]


def named(name: str):
    """A context in which the function that is called has this name, each time."""
    return here().named(name)


def site() -> str:
    """The path of the composite function that runs, for messages."""
    return f"layer {here().region.path!r}"
