"""What the values of this floor share: checks, one text form, and errors that help.

A value is a frozen dataclass that checks itself once, has one text form, and parses that text back
to an equal value.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields


def unknown(what: str, name: object, known: Iterable[str]) -> ValueError:
    """The error for a name that does not exist, with the nearest one that does."""
    known = [str(k) for k in known]
    folded = {k.lower(): k for k in known}
    near = difflib.get_close_matches(str(name).lower(), folded, n=1)
    hint = f"did you mean {folded[near[0]]!r}? " if near else ""
    return ValueError(f"unknown {what} {name!r}: {hint}known: {', '.join(known)}")


def check_keys(mapping: object, known: Iterable[str], what: str) -> None:
    """Raise ValueError unless `mapping` is a mapping whose keys are all in `known`."""
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{what} {mapping!r}: needs a mapping with keys {', '.join(known)}")
    for key in mapping:
        if key not in known:
            raise unknown(f"{what} key", key, known)


def parse_fields(cls: type, text: str | Mapping, what: str, *needed: str) -> Mapping:
    """The items of a mapping or its text, whose keys are fields of `cls`, among them `needed`."""
    items = parse_mapping(text) if isinstance(text, str) else text
    check_keys(items, [field.name for field in fields(cls)], what)
    missing = [name for name in needed if name not in items]
    if missing:
        raise ValueError(f"{what}: {missing[0]!r} is missing; it needs {', '.join(needed)}")
    return items


def mapping_text(value: object) -> str:
    """The fields of a dataclass that are not None, as a mapping of texts."""
    shown = {field.name: getattr(value, field.name) for field in fields(value)}
    inner = ", ".join(f"{key}: {item}" for key, item in shown.items() if item is not None)
    return "{" + inner + "}"


class Text:
    """A value with one text form, which its repr shows."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}.parse({str(self)!r})"

    def __getstate__(self) -> dict:
        """The fields: what is worked out from them is worked out anew, in this process."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def hashed_once(cls: type) -> type:
    """A frozen dataclass that works its hash out once: values are the keys of every plan."""
    of_fields = cls.__hash__

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            found = self.__dict__["_hash"] = of_fields(self)
            return found

    cls.__hash__ = __hash__
    return cls


def whole(value: object, lo: int, hi: int, what: str) -> int:
    """The value as an int; raises ValueError unless it is a whole number from lo to hi."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or not lo <= value <= hi:
        raise ValueError(f"{what} {value!r}: needs a whole number from {lo} to {hi}")
    return value.__index__()


def parse_mapping(text: str) -> dict[str, str]:
    """`{a: s8, acc: s20 sat}` to a dict of texts; a value may be such a mapping itself."""
    body = text.strip()
    if body.startswith("{") and body.endswith("}"):
        body = body[1:-1]
    parts, depth = [""], 0
    for char in body:
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    items = [part.partition(":") for part in parts if part.strip()]
    if depth or any(not colon for _, colon, _ in items):
        raise ValueError(f"mapping {text!r}: write {{key: value, key: value}}")
    keys = [key.strip() for key, _, _ in items]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"mapping {text!r}: {twice!r} stands twice; leave one")
    return {key.strip(): value.strip() for key, _, value in items}
