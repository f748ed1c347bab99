"""Default arguments of operations: `kwargs_scope` and `kwargs_scope_by_type`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_state = threading.local()  # `defaults`: those of each open scope, by argument or `Type.argument`


@contextmanager
def kwargs_scope(_override: bool = False, **defaults: Any) -> Iterator[dict[str, Any]]:
    """Operations in this context have these defaults, for every type or as `Type.argument`.

    An operation takes those of its arguments alone, and what it is given itself wins. An inner
    scope adds to the outer one, or replaces it with `_override`.

        with kwargs_scope(**{"use_bias": False, "Conv2D.padding": "same"}):
    """
    scopes = _state.defaults = getattr(_state, "defaults", [])
    outer = {} if _override or not scopes else scopes[-1]
    scopes.append({**outer, **defaults})
    try:
        yield scopes[-1]
    finally:
        scopes.pop()


def kwargs_scope_by_type(_override: bool = False, **defaults: Mapping[str, Any]):
    """`kwargs_scope`, the defaults of each type as a mapping: `Conv2D={"padding": "same"}`."""
    return kwargs_scope(_override, **{f"{kind}.{name}": value for kind, given in defaults.items()
                                      for name, value in given.items()})


def defaults_of(kind: str, arguments: list[str]) -> dict[str, Any]:
    """The defaults that hold now for these arguments of an operation; those of its type win."""
    scopes = getattr(_state, "defaults", [])
    found = scopes[-1] if scopes else {}
    return {name: found.get(f"{kind}.{name}", found.get(name)) for name in arguments
            if name in found or f"{kind}.{name}" in found}
