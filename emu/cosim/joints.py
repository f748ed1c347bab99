"""Which bits of a user's ports carry which bits of a role: a port map against its module."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from emu.cosim import tools
from emu.cosim.places import modules_of
from emu.cosim.portmap import Piece, Pieces, PortMap
from emu.cosim.ports import Interface
from emu.cosim.yosys import reading, yosys
from emu.value import unknown


class Wire(NamedTuple):
    """A port of the user's module."""

    direction: str  # input, output or inout
    width: int


class Joint(NamedTuple):
    """Bits of a port that carry as many bits of a role, from `low` and `at` upwards."""

    key: str  # of the map
    role: str
    at: int
    port: str
    low: int
    width: int
    inverted: bool


def wires_of(found: PortMap, sources: Sequence[Path]) -> dict[str, Wire]:
    """The ports of the user's module, as Icarus or Yosys tells them.

    Raises ValueError where no source defines the module, RuntimeError with the tool's words where
    it does not elaborate.
    """
    defined = [name for source in sources for name in modules_of(source)]
    if found.top not in defined:
        raise ValueError(f"top: {unknown('module', found.top, defined)}")
    try:
        return _by_icarus(found, sources) if tools.found("icarus") else _by_yosys(found, sources)
    except tools.ToolFailed as error:
        raise RuntimeError(f"{found.top} does not elaborate: {error}") from None


def _by_icarus(found: PortMap, sources: Sequence[Path]) -> dict[str, Wire]:
    compiler, _ = tools.icarus()
    chosen = [f"-P{found.top}.{name}={value}" for name, value in found.parameters.items()]
    with tempfile.TemporaryDirectory(prefix="emu-cosim-") as folder:
        out = Path(folder) / "unit.vvp"
        said = tools.call([compiler, tools.generation(sources), "-s", found.top, *chosen,
                           "-o", out, *sources])
        text = out.read_text()
    if missing := re.search(r"parameter (\w+) not found", said):
        own = text.split(".scope ")[1]  # the module itself comes first
        known = re.findall(r'\.param/\w+ "(\w+)"', own)
        raise ValueError(f"parameters.{missing[1]}: " + (str(unknown(
            f"parameter of {found.top}", missing[1], known)) if known else
            f"{found.top} has no parameters; leave it out"))
    listed = re.findall(r'\.port_info \d+ /(\w+) (\d+) "(\w+)"', text)
    return {name: Wire(direction.lower(), int(width)) for direction, width, name in listed}


def _by_yosys(found: PortMap, sources: Sequence[Path]) -> dict[str, Wire]:
    chosen = "".join(f"chparam -set {name} {value} {found.top}; "
                     for name, value in found.parameters.items())
    text, = yosys(f"{reading(sources)}{chosen}hierarchy -check -top {found.top}; proc; "
                  f"rename -top {found.top}; write_json unit.json", sources, ["unit.json"])
    return {name: Wire(port["direction"], len(port["bits"]))
            for name, port in json.loads(text)["modules"][found.top]["ports"].items()}


def joints(found: PortMap, face: Interface, wires: Mapping[str, Wire]) -> list[Joint]:
    """All of them. Raises ValueError, naming the key, where the map does not fit the module."""
    bits = {port.name: port for port in face.ports}
    listed = []
    for key, role, pieces, direction in _wanted(found):
        spans = [_span(key, piece, direction, found.top, wires) for piece in pieces]
        port = bits.get(f"{role}_{'i' if direction == 'input' else 'o'}")
        _check_width(key, spans, 1 if port is None else port.bits, 1 if port is None else
                     port.count, found.spec)
        at = 0
        for piece, (high, low) in zip(pieces, spans, strict=True):
            listed.append(Joint(key, role, at, piece.port, low, high - low + 1, piece.inverted))
            at += high - low + 1
    for name, value in found.ties.items():
        high, _ = _span(f"ties.{name}", Piece(name), "input", found.top, wires)
        if not 0 <= value < 2 << high:
            raise ValueError(f"ties.{name} = {value}: {name} has {high + 1} bits, which hold 0 to "
                             f"{(2 << high) - 1}")
    for name, wire in wires.items():
        if wire.direction == "inout":
            raise ValueError(f"{found.top} has an inout port, {name}; wrap the module so that each "
                             "port goes one way")
        if wire.direction == "input":
            tied = [Joint(f"ties.{name}", "", 0, name, 0, wire.width, False)] * (
                name in found.ties)
            _check_driven(found, name, wire.width,
                          [*tied, *(joint for joint in listed if joint.port == name)])
    return listed


def _wanted(found: PortMap) -> Iterator[tuple[str, str, Pieces, str]]:
    """(key, role, pieces, direction) of all that the map connects."""
    if found.clock:
        yield "clock", "clock", (Piece(found.clock),), "input"
    if found.reset:
        yield "reset", "reset", found.reset, "input"
    for role, pieces in found.inputs.items():
        yield f"inputs.{role}", role, pieces, "input"
    for role, pieces in found.outputs.items():
        yield f"outputs.{role}", role, pieces, "output"


def _span(key: str, piece: Piece, direction: str, top: str, wires: Mapping[str, Wire]
          ) -> tuple[int, int]:
    """The bits (high, low) of a piece. Raises ValueError where the module has none such."""
    what = f"{key} = \"{piece}\""
    wire = wires.get(piece.port)
    if wire is None:
        known = [name for name, wire in wires.items() if wire.direction == direction]
        raise ValueError(f"{what}: {unknown(f'{direction} of {top}', piece.port, known)}")
    if wire.direction != direction:
        raise ValueError(f"{what}: {piece.port} is an {wire.direction} of {top}; this needs an "
                         f"{direction}")
    high = wire.width - 1 if piece.high is None else piece.high
    if high >= wire.width:
        raise ValueError(f"{what}: {piece.port} has {wire.width} bits, {wire.width - 1} to 0")
    return high, piece.low or 0


def _check_width(key: str, spans: Sequence[tuple[int, int]], bits: int, lanes: int, spec: str
                 ) -> None:
    given = sum(high - low + 1 for high, low in spans)
    if given != bits:
        why = f"{lanes} lanes of {bits // lanes}" if lanes > 1 else "what it carries"
        raise ValueError(f"{key}: its ports have {given} bits; by the spec {spec} it needs {bits} "
                         f"({why}); correct the spec, or choose bits as in \"name[7:0]\"")
    if lanes > 1 and len(spans) > 1 and len(spans) != lanes:
        raise ValueError(f"{key}: names {len(spans)} ports for {lanes} lanes; name one that has "
                         "them all, or one for each, lane 0 first")


def _check_driven(found: PortMap, name: str, width: int, driven: list[Joint]) -> None:
    """Raise ValueError unless every bit of an input is driven once."""
    free = 0
    for joint in sorted(driven, key=lambda joint: joint.low):
        if joint.low < free:
            others = " and ".join(dict.fromkeys(j.key for j in driven))
            raise ValueError(f"{others}: both drive bit {joint.low} of {name}")
        if joint.low > free:
            break
        free += joint.width
    if free < width:
        raise ValueError(f"{found.top}: nothing drives bit {free} of its input {name}; name it "
                         "under inputs, or give it a value under [ties]")
