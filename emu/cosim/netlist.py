"""The gates and D flip-flops of one module, as Yosys writes them in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from graphlib import CycleError, TopologicalSorter

import numpy as np

# What each cell computes; a row of `gates` has the place in this table.
GATES = {"$_AND_": "{A} & {B}", "$_OR_": "{A} | {B}", "$_XOR_": "{A} ^ {B}",
         "$_NAND_": "({A} & {B}) ^ ones", "$_NOR_": "({A} | {B}) ^ ones",
         "$_XNOR_": "{A} ^ {B} ^ ones", "$_NOT_": "{A} ^ ones",
         "$_ANDNOT_": "{A} & ({B} ^ ones)", "$_ORNOT_": "{A} | ({B} ^ ones)",
         "$_MUX_": "{A} ^ (({A} ^ {B}) & {S})"}
ZERO, ONE = 0, 1  # the first two slots


class Netlist:
    """One bit of the module is a slot: 0 and 1 first, then inputs, registers and gates.

    `gates` (gates, 5) are in the order of evaluation: place in GATES, slots of A, B and S (ZERO
    where there is none) and Y; `registers` (registers, 2) are slots of d and q; `inputs` and
    `outputs` give the slots of each port, lowest bit first. Raises RuntimeError for a loop, for a
    second clock, for a bit that nothing drives and for a cell that is no gate.
    """

    def __init__(self, text: str, module: str):
        found = json.loads(text)["modules"][module]
        slots = {"0": ZERO, "1": ONE}
        slot = lambda bit: slots.setdefault(bit, len(slots))  # noqa: E731
        ports = {direction: {name: [slot(bit) for bit in port["bits"]]
                             for name, port in found["ports"].items()
                             if port["direction"] == direction}
                 for direction in ("input", "output")}
        self.inputs, self.outputs = ports["input"], ports["output"]
        flops, gates = [], {}
        for cell in found["cells"].values():
            kind, pins = cell["type"], {pin: slot(bit) for pin, (bit,) in
                                        cell["connections"].items()}
            if kind == "$_DFF_P_":
                if [pins["C"]] != self.inputs.get("clk_i"):
                    raise RuntimeError("a register has another clock than the rising clk_i; use "
                                       "icarus, verilator or cxxrtl")
                flops.append((pins["D"], pins["Q"]))
            elif kind in GATES:
                gates[pins["Y"]] = (list(GATES).index(kind), *(pins.get(pin, ZERO)
                                                               for pin in "ABS"))
            else:
                raise RuntimeError(f"{module} has a cell {kind}, which is no gate; use icarus, "
                                   "verilator or cxxrtl")
        try:
            order = [*TopologicalSorter({y: known for y, (_, *known) in gates.items()})
                     .static_order()]
        except CycleError as error:
            raise RuntimeError(f"{len(error.args[1]) - 1} gates of {module} feed themselves"
                               ) from None
        driven = {ZERO, ONE, *gates, *(q for _, q in flops)}.union(*self.inputs.values())
        if floating := set(slots.values()) - driven:
            raise RuntimeError(f"nothing drives {len(floating)} bits of {module}; icarus shows "
                               "which are x")
        self.slots = len(slots)
        self.gates = np.array([(*gates[y], y) for y in order if y in gates],
                              np.int32).reshape(-1, 5)
        self.registers = np.array(flops, np.int32).reshape(-1, 2)

    def step(self, inputs: Mapping[str, list], state: Sequence, ones: int
             ) -> tuple[dict[str, list], Sequence]:
        """(outputs, next state) of one clock. A port is its bits, lowest first.

        Each bit is an integer whose bit i belongs to simulation i, and `ones` has one bit for each;
        or, with 1 for `ones`, anything with `&`, `|` and `^`.
        """
        given = [bit for name in self.inputs for bit in inputs[name]]
        answers, following = self._function(given, state, ones)
        outputs, start = {}, 0
        for name, bits in self.outputs.items():
            outputs[name] = list(answers[start:start + len(bits)])
            start += len(bits)
        return outputs, following

    @cached_property
    def _function(self):
        """A function of (input bits, state, ones) that returns (output bits, next state)."""
        name = lambda slot: ("0", "ones")[slot] if slot <= ONE else f"n{slot}"  # noqa: E731
        listed = lambda slots: "(" + "".join(f"{name(s)}, " for s in slots) + ")"  # noqa: E731
        forms, registers = list(GATES.values()), self.registers.tolist()
        lines = [f"{listed(slot for port in self.inputs.values() for slot in port)} = inputs",
                 f"{listed(q for _, q in registers)} = state"]
        lines += [f"{name(y)} = {forms[kind].format(A=name(a), B=name(b), S=name(s))}"
                  for kind, a, b, s, y in self.gates.tolist()]
        answers = listed(slot for port in self.outputs.values() for slot in port)
        lines.append(f"return {answers}, {listed(d for d, _ in registers)}")
        scope = {}
        exec("def step(inputs, state, ones):\n  " + "\n  ".join(lines), scope)
        return scope["step"]
