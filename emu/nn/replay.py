"""A stretch of forward that runs twice: the second time from the state that it first began with.

Activation checkpointing drops what a function computed and computes it again in backward. The
hardware then makes the same choices: rules see the binary points of then, stochastic casts draw the
same operands, and what rules and counters hold now stays. `current` is where a layer's rules and a
backend's counters look their state up.
"""

from __future__ import annotations

import copy
import threading
from contextlib import contextmanager

_state = threading.local()  # `stretches` that run for the first time, `again`: the states of then


class Stretch:
    """What each owner's state was when the stretch first used it."""

    def __init__(self):
        self.before: dict[object, dict] = {}

    @contextmanager
    def first(self):
        """The first run, which is remembered."""
        stretches = _state.stretches = getattr(_state, "stretches", [])
        stretches.append(self)
        try:
            yield
        finally:
            stretches.remove(self)

    @contextmanager
    def again(self):
        """Another run: from copies of what was, which are dropped at its end."""
        outer = getattr(_state, "again", None)
        _state.again = {owner: copy.copy(before) for owner, before in self.before.items()}
        try:
            yield
        finally:
            _state.again = outer


def current(owner: object, own: dict) -> dict:
    """The state that `owner` has in this thread: its `own`, unless a stretch runs again."""
    again = getattr(_state, "again", None)
    now = own if again is None else again.setdefault(owner, copy.copy(own))
    for stretch in getattr(_state, "stretches", ()):
        if owner not in stretch.before:
            stretch.before[owner] = copy.copy(now)
    return now
