"""A synthesised unit as one Python function on integers: bit i of each is a separate simulation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

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
