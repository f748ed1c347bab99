"""One Verilog unit as terms of SMT-LIB: its registers and ports, clock by clock."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from emu.cosim.smt import Number, Script, Truth
from emu.cosim.yosys import elaborate, yosys
from emu.golden.units import Unit

_FREE = re.compile(r"^\(declare-fun (\|\S+#\d+\|) \(\|\S+\|\) (Bool|\(_ BitVec \d+\))\)")
_DEFINED = re.compile(r"^\(define-fun (\|[^|]+\|) \(\(state \|\S+\|\)\) (Bool|\(_ BitVec \d+\)) "
                      r"(.*?)\)(?: ; .*)?$")
_NEXT = re.compile(r"^  \(= (.*) \((\|\S+#\d+\|) next_state\)\)")
_PORT = re.compile(r"^; yosys-smt2-(?:in|out)put (\w+) (\d+)$")


def smt_text(unit: Unit, more: Mapping[str, int], sources: Sequence[Path], change: str) -> str:
    """What Yosys writes of a unit with more parameters than its own, after a change to it."""
    text, = yosys(elaborate(sources, unit.module, {**unit.parameters, **more})
                  + f"{change}; async2sync; dffunmap; opt_clean; write_smt2 unit.smt2",
                  sources, ["unit.smt2"])
    return text


class Model:
    """The terms that speak of a unit. A state is the registers of one clock and the inputs then."""

    def __init__(self, text: str, module: str):
        self.module, self.script, self.states = module, Script(), 0
        lines = text.splitlines()
        self.ports = {found[1]: int(found[2]) for line in lines if (found := _PORT.match(line))}
        self.next = {found[2]: found[1] for line in lines if (found := _NEXT.match(line))}
        self.terms = [(found[1], found[2], found[3] if found.re is _DEFINED else None)
                      for line in lines
                      if (found := _FREE.match(line) or _DEFINED.match(line))]
        self.free = {name.split()[1][:-1]: body[1:-len(" state)")] for name, _, body in self.terms
                     if body and re.fullmatch(r"\|\S+_n \w+\|", name)}

    def state(self, registers: Mapping[str, str] | None = None, inputs: int | None = None,
              **drive: int) -> int:
        """A new state: any registers, or these; any inputs, or those of another state.

        One-bit inputs named in `drive` have these values.
        """
        self.states += 1
        given = dict(registers or {})
        if inputs is not None:
            given |= {name: _at(name, inputs) for name, _, body in self.terms
                      if body is None and name not in self.next}
        given |= {self.free[name]: "true" if value else "false" for name, value in drive.items()}
        for name, sort, body in self.terms:
            value = given.get(name, body and _at_state(body, self.states))
            self.script.lines.append(
                f"(declare-const {_at(name, self.states)} {sort})" if value is None else
                f"(define-fun {_at(name, self.states)} () {sort} {value})")
        return self.states

    def clock(self, state: int, inputs: int | None = None, **drive: int) -> int:
        """The state one clock later."""
        return self.state({name: _at_state(body, state) for name, body in self.next.items()},
                          inputs, **drive)

    def holds(self, state: int) -> Truth:
        """Whether the next clock leaves every register as it is."""
        same = " ".join(f"(= {_at_state(body, state)} {_at(name, state)})"
                        for name, body in self.next.items())
        return self.script.truth(f"(and true {same})")

    def port(self, state: int, name: str, signed: bool = False) -> Number:
        """The value of a port. Raises ValueError where the module has none of this name."""
        if name not in self.ports:
            raise ValueError(f"module {self.module}: has no port {name}; it has "
                             f"{', '.join(sorted(self.ports))}")
        width, term = self.ports[name], _at(f"|{self.module}_n {name}|", state)
        if width == 1:
            term = f"(ite {term} #b1 #b0)"
        return self.script.number(term, width, signed)


def _at(name: str, state: int) -> str:
    return f"{name[:-1]} {state}|"


def _at_state(body: str, state: int) -> str:
    """The body of a definition, with `(|name| state)` become the name of that state's own."""
    return re.sub(r"\((\|[^|]+\|) state\)", lambda found: _at(found[1], state), body)
