"""A synthesised unit as one Python function on integers: bit i of each is a separate simulation.

So vectors are replayed on many mutants of a unit at once.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from random import Random

from emu.cosim.ports import PROTOCOLS
from emu.golden.vectors import VectorFile
from emu.number import Rounding

SELECT = 16  # bits of the port `mutsel` that chooses a mutant
SEED = 1  # of the idle clocks between records

_GATES = {"$_AND_": "{A} & {B}", "$_OR_": "{A} | {B}", "$_XOR_": "{A} ^ {B}",
          "$_NOT_": "{A} ^ ones", "$_NAND_": "({A} & {B}) ^ ones", "$_NOR_": "({A} | {B}) ^ ones",
          "$_XNOR_": "{A} ^ {B} ^ ones", "$_ANDNOT_": "{A} & ({B} ^ ones)",
          "$_ORNOT_": "{A} | ({B} ^ ones)", "$_MUX_": "{A} ^ (({A} ^ {B}) & {S})"}


class Netlist:
    """Gates and D flip-flops of one module, as Yosys writes them in JSON."""

    def __init__(self, text: str, module: str):
        found = json.loads(text)["modules"][module]
        ports = {direction: {name: port["bits"] for name, port in found["ports"].items()
                             if port["direction"] == direction}
                 for direction in ("input", "output")}
        self.inputs, self.outputs = ports["input"], ports["output"]
        flops, gates = [], {}
        for cell in found["cells"].values():
            bits = {pin: bit for pin, (bit,) in cell["connections"].items()}
            if cell["type"] == "$_DFF_P_":
                flops.append((bits["D"], bits["Q"]))
            else:
                output = bits.pop("Y")
                gates[output] = (_GATES[cell["type"]], bits)
        self.registers = len(flops)
        self._step = _compile(self.inputs, self.outputs, flops, gates)

    def step(self, inputs: Mapping[str, list[int]], state: Sequence[int], ones: int
             ) -> tuple[dict[str, list[int]], Sequence[int]]:
        """(outputs, next state) of one clock. A port is its bits, lowest first.

        Each bit is an integer whose bit i belongs to simulation i; `ones` has one bit for each.
        """
        given = [bit for name in self.inputs for bit in inputs[name]]
        answers, following = self._step(given, state, ones)
        outputs, start = {}, 0
        for name, bits in self.outputs.items():
            outputs[name] = list(answers[start:start + len(bits)])
            start += len(bits)
        return outputs, following


def _compile(inputs, outputs, flops, gates):
    """A function of (input bits, state, ones) that returns (output bits, next state)."""
    name = lambda bit: {"0": "0", "1": "ones"}.get(bit) or f"n{bit}"  # noqa: E731
    listed = lambda bits: "(" + "".join(f"{name(bit)}, " for bit in bits) + ")"  # noqa: E731
    given = [bit for bits in inputs.values() for bit in bits]
    answers = [bit for bits in outputs.values() for bit in bits]
    lines = [f"{listed(given)} = inputs", f"{listed(q for _, q in flops)} = state"]
    ready = {"0", "1", *given, *(q for _, q in flops)}
    for wanted in [*answers, *(d for d, _ in flops)]:
        todo = [wanted]
        while todo:
            bit = todo[-1]
            if bit in ready:
                todo.pop()
                continue
            form, pins = gates[bit]
            missing = [pin for pin in pins.values() if pin not in ready]
            if missing:
                todo += missing
                assert len(todo) < 1_000_000, f"a loop through bit {bit}"
                continue
            lines.append(f"{name(bit)} = {form.format(**{p: name(b) for p, b in pins.items()})}")
            ready.add(bit)
    lines.append(f"return {listed(answers)}, {listed(d for d, _ in flops)}")
    scope = {}
    exec("def step(inputs, state, ones):\n  " + "\n  ".join(lines), scope)
    return scope["step"]


def survivors(netlist: Netlist, files: Sequence[VectorFile], mutants: int) -> list[int]:
    """The mutants, 0 being the unchanged unit, that answer every line of the files as expected."""
    return (_transactions if netlist.registers else _records)(netlist, files, mutants)


def _bits(value: int, width: int, ones: int) -> list[int]:
    """A number on the wires of a port, the same in every simulation."""
    return [ones if value >> i & 1 else 0 for i in range(width)]


def _records(netlist: Netlist, files: Sequence[VectorFile], mutants: int) -> list[int]:
    """The mutants that answer every line as expected: each line is a simulation.

    The modes that no number stands for count as TO_NEG, so its lines are replayed with them too.
    """
    columns: dict[str, list[int]] = {"rounding_i": []}
    for file in files:
        mode = file.parameters["ROUNDING"]
        for rounding in (mode, 12, 13, 14, 15) if mode == Rounding.TO_NEG else (mode,):
            for line in file.lines():
                columns["rounding_i"].append(rounding)
                for field, digits in zip(file.fields, line, strict=True):
                    columns.setdefault(field.name, []).append(int(digits, 16))
    count = len(columns["rounding_i"])
    ones = (1 << count) - 1
    ports = {**netlist.inputs, **netlist.outputs}
    packed = {name: _transposed(values, len(ports[name])) for name, values in columns.items()}
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
        step_port = PROTOCOLS[file.unit].step
        state = [ones] * netlist.registers  # what power-up left
        for inputs, check, record in _clocks(file):
            given = {name: _bits(inputs.get(name, 0), len(bits), ones)
                     for name, bits in netlist.inputs.items() if name != "mutsel"}
            outputs, following = netlist.step({**given, "mutsel": select}, state, ones)
            if check:
                step = outputs[step_port][0]
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
