"""Default arguments of fix modules, within a scope."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_state = threading.local()


@contextmanager
def fix_kwargs_scope(_override: bool = False, **defaults: Mapping) -> Iterator[None]:
    """Give every fix module that is built in the scope the keyword arguments of its class's name.

    `fix_kwargs_scope(Linear_fix={"nf_fix_params": ...})`. Explicit arguments win; a class in an
    inner scope replaces that of the outer one, `_override` drops the outer scope. Values are
    shared by reference.
    """
    outer = getattr(_state, "defaults", {})
    _state.defaults = defaults if _override else {**outer, **defaults}
    try:
        yield
    finally:
        _state.defaults = outer


def defaults_of(cls: type) -> Mapping:
    """The keyword arguments that the scope has for a class, by its name or that of a base."""
    known = getattr(_state, "defaults", None)
    if not known:
        return {}
    return next((known[base.__name__] for base in cls.__mro__ if base.__name__ in known), {})
