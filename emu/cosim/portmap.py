"""The port map of a user's module: which of its ports carry what, as a TOML file says it.

Knows nothing of the module itself; `emu.cosim.adapter` compares the two.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from emu.golden.cases import from_text
from emu.golden.units import QuantizerSpec, Unit
from emu.number import Rounding
from emu.value import unknown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_CLOCKS = 1024  # of latency and gap
ANSWERS = ("every step", "last step")
_PIECE = re.compile(r"(!)?\s*([A-Za-z_]\w*)\s*(?:\[\s*(\d+)\s*(?::\s*(\d+)\s*)?\])?")

# Which roles a unit has: a role is what a port carries.
INPUTS = {
    "mac": ("a", "b", "bias", "load", "clear", "last", "valid", "ready"),
    "quantizer": ("value", "shift", "rand", "valid", "ready"),
}
OUTPUTS = {"mac": ("result", "overflow", "valid", "ready"),
           "quantizer": ("code", "overflow", "valid", "ready")}
NEEDED = {"mac": ("a", "b", "result"), "quantizer": ("value", "code")}


@dataclass(frozen=True)
class Piece:
    """A port or some of its bits, perhaps low where the role is high."""

    port: str
    high: int | None = None  # None: all bits of the port
    low: int | None = None
    inverted: bool = False

    def __str__(self) -> str:
        bits = "" if self.high is None else f"[{self.high}:{self.low}]" \
            if self.high != self.low else f"[{self.high}]"
        return f"{'!' * self.inverted}{self.port}{bits}"


Pieces = tuple[Piece, ...]  # the lowest first: of a packed operand, lane 0


@dataclass(frozen=True)
class PortMap:
    """What a port map says. A field without a default is what the file must have.

    A port is written `name`, `name[3]` or `name[7:4]`, with `!` before it where it is active low;
    an operand of several lanes is one port with lane 0 lowest, or a list of them, lane 0 first.
    """

    inputs: dict[str, Pieces]  # role -> where it goes
    outputs: dict[str, Pieces]  # role -> where it comes from
    spec: str = ""  # what the module should compute, as for `emu vectors`
    top: str = ""  # the module
    clock: str = ""  # taken at its rising edge
    reset: Pieces = ()  # high, or low by `!`, for two clocks first
    async_reset: bool = False  # whether it acts at once, not at the clock's edge
    latency: int | None = None  # clocks from a step to its answer; else outputs.valid tells
    answers: str = "every step"  # or "last step": which sums of a dot product are right
    gap: int = 0  # idle clocks between two dot products
    ties: dict[str, int] = field(default_factory=dict)  # inputs that stand still
    parameters: dict[str, int] = field(default_factory=dict)  # of the module
    path: Path = Path("ports.toml")

    @property
    def restart(self) -> str:
        """What begins a dot product: load, clear or reset."""
        return next((name for name in ("load", "clear") if name in self.inputs), "reset")


def read_map(path: Path, spec: str = "", top: str = "") -> tuple[PortMap, Unit]:
    """A map and the unit that it maps; `spec` and `top` go before what the file says of them.

    Raises ValueError naming the file and the key.
    """
    try:
        items = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give a port map such as the "
                         "one in docs/your-rtl.md") from None
    except ValueError as error:
        raise ValueError(f"{path}: is not TOML: {error}") from None
    try:
        found = _read(items, Path(path), spec, top)
        if not found.spec:
            raise ValueError("spec: is missing; say what the module should compute, here or on "
                             "the command line: '{a: s8, b: s8, acc: s20 sat}' or "
                             "'s16f8 -> s8f4 ties_even sat'")
        if not found.top:
            raise ValueError("top: is missing; name the module, here or by --top")
        unit = from_text(found.spec)
        _check(found, unit)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return found, unit


def kind_of(unit: Unit) -> str:
    """`mac` or `quantizer`. Raises ValueError for a unit that no map can describe."""
    kind = "mac" if unit.module == "mac_tiled" else unit.module
    if kind not in INPUTS:
        raise ValueError(f"spec: {unit.spec} is a {kind}; a map describes a mac or a quantizer")
    return kind


def _read(items: Mapping, path: Path, spec: str, top: str) -> PortMap:
    names = [f.name for f in fields(PortMap) if f.name != "path"]
    for key in items:
        if key not in names:
            raise unknown("key", key, names)
    for key in ("inputs", "outputs"):
        if key not in items:
            raise ValueError(f"{key}: is missing; it says which port carries what")
    values = {key: _READERS[key](key, value) for key, value in items.items()}
    values |= {key: value for key, value in (("spec", spec), ("top", top)) if value}
    return PortMap(**values, path=path)


def _pieces(key: str, value: object) -> Pieces:
    texts = value if isinstance(value, list) else [value]
    found = []
    for text in texts:
        match = _PIECE.fullmatch(text.strip()) if isinstance(text, str) else None
        if not match:
            raise ValueError(f"{key} = {text!r}: write a port, such as \"name\", \"!name\", "
                             "\"name[7:4]\", or a list of them, lane 0 first")
        inverted, port, high, low = match.groups()
        low = high if low is None else low
        if high is not None and int(high) < int(low):
            raise ValueError(f"{key} = {text!r}: bits go from high to low; write "
                             f"{port}[{low}:{high}]")
        found.append(Piece(port, None if high is None else int(high),
                           None if low is None else int(low), bool(inverted)))
    if not found:
        raise ValueError(f"{key} = []: names no port; leave it out")
    return tuple(found)


def _table(read):
    def reader(key: str, value: object) -> dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{key} = {value!r}: needs a table, [{key}]")
        return {name: read(f"{key}.{name}", item) for name, item in value.items()}
    return reader


def _text(key: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} = {value!r}: needs a text")
    return value


def _clock(key: str, value: object) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*", _text(key, value)):
        raise ValueError(f"{key} = {value!r}: needs the name of a port, whose rising edge counts")
    return value


def _truth(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{key} = {value!r}: write true or false")
    return value


def _whole(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{key} = {value!r}: needs a whole number")
    return value


def _clocks(key: str, value: object) -> int:
    if not 0 <= _whole(key, value) <= MAX_CLOCKS:
        raise ValueError(f"{key} = {value}: needs 0 to {MAX_CLOCKS} clocks")
    return value


def _answers(key: str, value: object) -> str:
    if value not in ANSWERS:
        raise unknown(key, value, ANSWERS)
    return value


_READERS = {"inputs": _table(_pieces), "outputs": _table(_pieces), "spec": _text, "top": _text,
            "clock": _clock, "reset": _pieces, "async_reset": _truth, "latency": _clocks,
            "answers": _answers, "gap": _clocks, "ties": _table(_whole),
            "parameters": _table(_whole)}


def _check(found: PortMap, unit: Unit) -> None:
    """Raise ValueError where the map is not whole, or says what cannot go together."""
    kind, inputs, outputs = kind_of(unit), found.inputs, found.outputs
    for key, given, roles in (("inputs", inputs, INPUTS[kind]), ("outputs", outputs,
                                                                 OUTPUTS[kind])):
        for role in given:
            if role not in roles:
                raise unknown(f"key of {key} for a {kind}", role, roles)
    for role in NEEDED[kind]:
        if role not in (side := inputs if role in INPUTS[kind] else outputs):
            raise ValueError(f"{'inputs' if side is inputs else 'outputs'}.{role}: is missing; a "
                             f"{kind} needs {', '.join(NEEDED[kind])}")
    if (found.latency is None) == ("valid" not in outputs):
        raise ValueError("latency, outputs.valid: one of the two, and only one, says when an "
                         "answer is there")
    for side, other in ((inputs, outputs), (outputs, inputs)):
        if "ready" in side and "valid" not in other:
            names = ("inputs", "outputs") if side is inputs else ("outputs", "inputs")
            raise ValueError(f"{names[0]}.ready: needs {names[1]}.valid; the two are one handshake")
    if not found.clock and (found.latency != 0 or found.reset or kind == "mac"):
        raise ValueError("clock: is missing; only a quantizer of latency 0 has none")
    if found.async_reset and not found.reset:
        raise ValueError("async_reset: is of no use without reset; name the port")
    if kind == "mac":
        _check_mac(found)
    else:
        _check_quantizer(found, unit.source)


def _check_mac(found: PortMap) -> None:
    if {"load", "clear"} <= found.inputs.keys():
        raise ValueError("inputs.load, inputs.clear: a dot product begins by one of them, at its "
                         "first step or a clock before")
    if found.restart == "reset" and not found.reset:
        raise ValueError("inputs.load: is missing; a dot product begins by load (at its first "
                         "step), clear (a clock before) or, where the map has neither, by reset")
    if found.restart == "reset" and "bias" in found.inputs:
        raise ValueError("inputs.bias: needs inputs.load or inputs.clear, which says when to take "
                         "it; a sum that begins by reset begins at 0")


def _check_quantizer(found: PortMap, spec: QuantizerSpec) -> None:
    draws = spec.cast.rounding == Rounding.STOCHASTIC
    if draws != ("rand" in found.inputs):
        raise ValueError(f"inputs.rand: {spec.cast} "
                         + ("needs its random operand" if draws else
                            "draws nothing; tie this port to 0 under ties"))
    for key in ("answers", "gap"):
        if getattr(found, key) != getattr(PortMap, key):
            raise ValueError(f"{key}: is of a mac; a quantizer answers to each value")


def other_maps(found: PortMap) -> Iterator[tuple[str, PortMap]]:
    """The maps beside this one, where a mistake is as likely as in the Verilog."""
    for latency in () if found.latency is None else (1, -1, 2, -2):
        if found.latency + latency >= 0:
            yield (f"latency = {found.latency + latency}, not {found.latency}",
                   replace(found, latency=found.latency + latency))
    for role, pieces in found.inputs.items():
        table = lambda new, role=role: replace(found, inputs={**found.inputs, role: new})  # noqa: E731
        if role in ("load", "clear", "last", "valid", "ready"):
            yield f"inputs.{role} inverted", table(_inverted(pieces))
        elif len(pieces) > 1:
            yield f"inputs.{role} with its highest lane first", table(pieces[::-1])
    for role in ("valid", "ready"):
        if role in found.outputs:
            yield f"outputs.{role} inverted", replace(
                found, outputs={**found.outputs, role: _inverted(found.outputs[role])})
    if found.reset:
        yield "reset inverted", replace(found, reset=_inverted(found.reset))
    if found.answers == "every step":
        yield 'answers = "last step"', replace(found, answers="last step")


def _inverted(pieces: Pieces) -> Pieces:
    return tuple(replace(piece, inverted=not piece.inverted) for piece in pieces)
