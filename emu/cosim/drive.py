"""What a user's module is given clock by clock, and which answers it owes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple

import numpy as np

from emu.cosim.portmap import PortMap
from emu.cosim.ports import Interface, Port
from emu.golden.cases import classes
from emu.golden.units import QuantizerSpec, Unit, quantizer_records
from emu.number import Rounding
from emu.reference import dot_steps
from emu.spec import MacSpec

DRAIN = 64  # idle clocks at the end, besides the latency: later answers are lost
Case = tuple  # as the records functions of `emu.golden.units` take it
Codes = dict[str, int | list[int]]  # by role


class Step(NamedTuple):
    """One step of a dot product, or one value to cast: what goes in, what should come out."""

    case: int
    index: int  # of the step, within its case
    given: Codes
    want: Codes


def golden_cases(unit: Unit) -> list[Case]:
    """Those of the vector files of level 1."""
    return [case for _, cases in classes(unit, level=1) for case in cases]


def fitting(found: PortMap, unit: Unit, listed: list[Case]) -> list[Case]:
    """The cases that the module's ports can be given, each once."""
    if isinstance(unit.source, QuantizerSpec):
        return _casts(found, unit.source, listed)
    bias = "bias" in found.inputs
    kept = {(tuple(a), tuple(b), start if bias and start else 0): None for a, b, start in listed}
    return [(list(a), list(b), start) for a, b, start in kept]


def _casts(found: PortMap, spec: QuantizerSpec, listed: list[Case]) -> list[Case]:
    draws = spec.cast.rounding == Rounding.STOCHASTIC
    kept = {(value, shift if "shift" in found.inputs else spec.shift, draws * rand): None
            for value, shift, rand in listed if shift <= spec.max_shift}
    return list(kept)


def steps_of(unit: Unit, cases: Sequence[Case]) -> list[list[Step]]:
    """The steps of each case; what they should answer is the reference's."""
    of = _cast_steps if isinstance(unit.source, QuantizerSpec) else _mac_steps
    return [list(of(unit.source, i, case)) for i, case in enumerate(cases)]


def _cast_steps(spec: QuantizerSpec, i: int, case: Case) -> Iterator[Step]:
    value, shift, rand = case
    (*_, code, overflowed), = quantizer_records(spec, [case])
    form = spec.cast.format
    code -= (code > form.hi) << form.width
    yield Step(i, 0, {"value": value, "shift": shift, "rand": rand},
               {"code": code, "overflow": overflowed})


def _mac_steps(mac: MacSpec, i: int, case: Case) -> Iterator[Step]:
    a, b, bias = case
    sticky = 0
    for k, (result, overflowed) in enumerate(dot_steps(a, b, mac, bias)):
        sticky |= overflowed
        part = slice(k * mac.lanes, (k + 1) * mac.lanes)
        given = {name: codes[part] + [0] * (mac.lanes - len(codes[part]))
                 for name, codes in (("a", a), ("b", b))}
        if mac.lanes == 1:
            given = {name: code for name, (code,) in given.items()}
        yield Step(i, k, {**given, "bias": bias, "load": int(k == 0),
                          "last": int((k + 1) * mac.lanes >= len(a))},
                   {"result": result, "overflow": int(sticky)})


def owed(found: PortMap, cases: Sequence[Sequence[Step]]) -> list[Step]:
    """The steps that are answered."""
    return [step for steps in cases
            for step in (steps if found.answers == "every step" else steps[-1:])]


class Stream:
    """The clocks of a run: `rows` of what is offered in each, by role."""

    def __init__(self, found: PortMap, face: Interface, spacing: int):
        self.found, self.spacing, self.rows = found, spacing, []
        self.data = [port for port in face.inputs
                     if port.name[:-2] in ("a", "b", "bias", "value", "shift", "rand")]

    def feed(self, cases: Sequence[Sequence[Step]], random: Random | None = None) -> None:
        """These cases one after the other; with `random` idle clocks and stalls between them."""
        for steps in cases:
            self._begin(steps[0])
            for step in steps:
                while random and random.random() < 0.3:
                    self._idle(random)
                self._offer({**step.given, "valid": 1}, random)

    def reset(self) -> None:
        """A clock in reset."""
        self._offer({"reset": 1})

    def drain(self) -> None:
        """Clocks in which all answers that are under way should come."""
        for _ in range(DRAIN * self.spacing + (self.found.latency or 0)):
            self._idle()

    def arrays(self, face: Interface) -> dict[str, np.ndarray]:
        """The rows by port."""
        return {port.name: _array(port, [row.get(port.name[:-2], 0) for row in self.rows])
                for port in face.inputs}

    def _begin(self, first: Step) -> None:
        """What comes before the first step of a dot product."""
        if "load" not in first.given:
            return
        restart = self.found.restart
        waits = self.found.gap
        if restart == "reset":
            waits = max(waits, self.found.latency or DRAIN)
        for _ in range(waits):
            self._idle()
        if restart != "load":
            self._offer({restart: 1, "bias": first.given["bias"]})

    def _offer(self, row: Codes, random: Random | None = None) -> None:
        self._row(row, random)
        for _ in range(self.spacing - 1):
            self._idle(random)

    def _idle(self, random: Random | None = None) -> None:
        """A clock without a step; a module that has no valid takes it for one of zeros."""
        noise = {}
        if random and "valid" in self.found.inputs:
            noise = {port.name[:-2]: _draw(port, random) for port in self.data}
        self._row(noise, random)

    def _row(self, row: Codes, random: Random | None) -> None:
        stalls = random is not None and "ready" in self.found.outputs
        self.rows.append({**row, "ready": random.getrandbits(1) if stalls else 1})


def _draw(port: Port, random: Random) -> int | list[int]:
    codes = [random.randint(*port.range) for _ in range(port.count)]
    return codes if port.count > 1 else codes[0]


def _array(port: Port, codes: list) -> np.ndarray:
    kind = np.uint64 if port.width == 64 and not port.signed else np.int64
    if port.count > 1:
        codes = [code or [0] * port.count for code in codes]
    return np.array(codes, kind)
