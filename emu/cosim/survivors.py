"""Which mutants of a unit, all in one netlist behind a selector, are like the unchanged unit.

They may be so for all vectors, which are replayed on many mutants at once, or for all inputs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from random import Random

from emu.cosim.netlist import Netlist
from emu.cosim.ports import PROTOCOLS
from emu.cosim.smt import Script, Truth
from emu.cosim.solver import SECONDS, satisfiable
from emu.golden.vectors import VectorFile
from emu.number import Rounding

SELECT = 16  # bits of the port `mutsel` that chooses a mutant
SEED = 1  # of the idle clocks between records


def survivors(netlist: Netlist, files: Sequence[VectorFile], mutants: int) -> list[int]:
    """The mutants, 0 being the unchanged unit, that answer every line of the files as expected."""
    return (_transactions if len(netlist.registers) else _records)(netlist, files, mutants)


def unchanged(netlist: Netlist, mutant: int, seconds: int = SECONDS) -> bool:
    """Whether a mutant does in every clock, from any state of its registers, what the unit does.

    Where both have the same gates they are the same terms, so a solver sees the change alone.
    Raises NoVerdict.
    """
    script = Script()
    inputs = {name: [script.free() for _ in bits] for name, bits in netlist.inputs.items()}
    state = [script.free() for _ in netlist.registers]
    (plain, kept), (changed, left) = (
        netlist.step({**inputs, "mutsel": _bits(which, SELECT, 1)}, state, 1)
        for which in (0, mutant))
    differs = 0
    for name in plain:
        for x, y in zip(plain[name], changed[name], strict=True):
            differs = differs | (x ^ y)
    for x, y in zip(kept, left, strict=True):
        differs = differs | (x ^ y)
    if not isinstance(differs, Truth):
        return not differs
    text = "\n".join(["(set-logic QF_BV)", *script.lines, f"(assert {differs.name})", ""])
    return not satisfiable([text], "bitwuzla", seconds)[0]


def _bits(value: int, width: int, ones: int) -> list[int]:
    """A number on the wires of a port, the same in every simulation."""
    return [ones if value >> i & 1 else 0 for i in range(width)]


def _records(netlist: Netlist, files: Sequence[VectorFile], mutants: int) -> list[int]:
    """The mutants that answer every line as expected: each line is a simulation.

    The modes that no number stands for count as TO_NEG, so its lines are replayed with them too.
    """
    columns: dict[str, list[int]] = {}
    for file in files:
        mode = file.parameters.get("ROUNDING")
        for rounding in (mode, 12, 13, 14, 15) if mode == Rounding.TO_NEG else (mode,):
            for line in file.lines():
                columns.setdefault("rounding_i", []).append(rounding)
                for field, digits in zip(file.fields, line, strict=True):
                    columns.setdefault(field.name, []).append(int(digits, 16))
    count = len(columns["rounding_i"])
    ones = (1 << count) - 1
    ports = {**netlist.inputs, **netlist.outputs}
    packed = {name: _transposed(values, len(ports[name])) for name, values in columns.items()
              if name in ports}
    inputs = {name: packed[name] for name in netlist.inputs if name != "mutsel"}
    survivors = []
    for mutant in range(mutants + 1):
        outputs, _ = netlist.step({**inputs, "mutsel": _bits(mutant, SELECT, ones)}, [], ones)
        if all(outputs[name] == packed[name] for name in outputs):
            survivors.append(mutant)
    return survivors


def _transposed(values: Sequence[int], width: int) -> list[int]:
    """For each wire of a port, an integer with one bit for each value."""
    return [int("".join("1" if value >> i & 1 else "0" for value in reversed(values)), 2)
            for i in range(width)]


def _transactions(netlist: Netlist, files: Sequence[VectorFile], mutants: int) -> list[int]:
    """The mutants that answer every line as expected: each mutant is a simulation."""
    ones = (1 << mutants + 1) - 1
    select = [sum((k >> bit & 1) << k for k in range(mutants + 1)) for bit in range(SELECT)]
    killed = 0
    for file in files:
        protocol = PROTOCOLS[file.unit]
        state = [ones] * len(netlist.registers)  # what power-up left
        for inputs, check, record in _clocks(file):
            given = {name: _bits(inputs.get(name, 0), len(bits), ones)
                     for name, bits in netlist.inputs.items() if name != "mutsel"}
            outputs, following = netlist.step({**given, "mutsel": select}, state, ones)
            if check:
                step = outputs[protocol.step][0]
                if protocol.within:
                    step |= outputs[protocol.within][0]
                wrong = step ^ (ones if record else 0)
                for name, value in (record or {}).items():
                    for got, want in zip(outputs[name], _bits(value, len(outputs[name]), ones),
                                         strict=True):
                        wrong |= got ^ want
                killed |= wrong
            state = following
    return [mutant for mutant in range(mutants + 1) if not killed >> mutant & 1]


def _clocks(file: VectorFile) -> Iterator[tuple[dict[str, int], bool, dict[str, int] | None]]:
    """(inputs, whether the outputs are judged, the record they must show) of every clock.

    Reset comes first; then, as in hw/tb/stream_clocked.v, idle and disabled clocks are mixed
    with the steps at random.
    """
    taken = PROTOCOLS[file.unit].taken
    widths = {field.name: field.width for field in file.fields if field.dir == "in"}
    random, under_way = Random(SEED), deque([None] * (file.latency - 1))
    shown, lines = None, file.lines()
    for _ in range(2):
        yield {"en_i": 1, taken: 1, "rst_ni": 0}, False, None
    judged = True
    line = next(lines, None)
    drained = 0
    while drained <= file.latency + 2:
        record = {f.name: int(digits, 16) for f, digits in zip(file.fields, line, strict=True)} \
            if line else {}
        inputs = {name: record.get(name, 0) for name in widths}
        noise = {name: ~inputs[name] & (1 << width) - 1 for name, width in widths.items()}
        what = random.choice(("stall", "bubble", "step", "step", "step")) if line else "bubble"
        if what == "step":
            driven = {**inputs, "en_i": 1, taken: 1, "rst_ni": 1}
        elif what == "stall":
            driven = {**noise, taken: 1, "en_i": 0, "rst_ni": 1}
        else:
            driven = {**noise, "en_i": 1, taken: 0, "rst_ni": 1}
        yield driven, judged, shown
        judged = what != "stall" or taken == "en_i"
        if judged:
            under_way.append({f.name: record[f.name] for f in file.fields if f.dir == "out"}
                             if what == "step" else None)
            shown = under_way.popleft()
        if what == "step":
            line = next(lines, None)
        drained += line is None
