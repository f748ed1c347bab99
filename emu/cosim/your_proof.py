"""Proofs that a user's module computes its spec, from every state of its registers.

What a step does to the sum that is at the outputs, a clock without a step, and how a dot product
begins: together they are every dot product of any length. A cast is proved as it is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from emu.cosim import adapter
from emu.cosim.joints import joints, wires_of
from emu.cosim.model import Model, smt_text
from emu.cosim.portmap import PortMap, read_map
from emu.cosim.prove import SOLVERS, first_failure
from emu.cosim.question import Question, conjunction
from emu.cosim.smt import Number
from emu.cosim.solver import SECONDS, model, satisfiable
from emu.golden import formula
from emu.golden.units import QuantizerSpec, Unit, quantizer_records, unpack
from emu.reference import dot_steps
from emu.spec import MacSpec

Seen = dict[str, Number]


def prove_rtl(rtl: Sequence[Path], path: Path, spec: str = "", top: str = "",
              solvers: Sequence[str] = SOLVERS[:1], seconds: int = SECONDS
              ) -> tuple[str, str | None]:
    """(the module and its spec, how it fails or None where it is proved for all inputs).

    Raises ValueError for a map that does not fit or that leaves too little at the outputs,
    RuntimeError where a tool fails, where a solver gives no verdict, or where two differ.
    """
    if not rtl:
        raise ValueError("--map describes a module of yours; name its files by --rtl")
    found, unit = read_map(path, spec, top)
    name, sources = f"{found.top} {unit.spec}", [Path(file).resolve() for file in rtl]
    try:
        _check(found, unit)
        face, wires = adapter.interface(found, unit), wires_of(found, sources)
        text = adapter.bare(found, face, wires, joints(found, face, wires))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    with tempfile.TemporaryDirectory(prefix="emu-prove-") as folder:
        wrapped = Path(folder) / f"{adapter.NAME}.v"
        wrapped.write_text(text)
        try:
            smt = smt_text(Unit(adapter.NAME, unit.spec, {}, (), 0), {}, [*sources, wrapped], "")
        except RuntimeError as error:
            raise RuntimeError(f"{found.top} does not elaborate: {error}") from None
    asked = list(_questions(found, unit, partial(Model, smt, adapter.NAME)))
    failed = {solver: first_failure(asked, solver, seconds) for solver in solvers}
    if len({question is None for question in failed.values()}) > 1:
        raise RuntimeError(f"{name}: {' and '.join(solvers)} disagree")
    wrong = failed[solvers[0]]
    return name, None if wrong is None else _told(found, unit, wrong, seconds)


def _check(found: PortMap, unit: Unit) -> None:
    """Raise ValueError for a map whose outputs show too little for a proof."""
    for holds, what in [
            (found.latency is None, "latency: is missing; a proof needs it, as answers that a "
                                    "valid tells of may come whenever they like"),
            ("ready" in found.outputs, "outputs.ready: a proof needs a module that takes every "
                                       "step at once"),
            (unit.module == "mac" and found.latency == 0,
             "latency = 0: the sum of a mac is in a register; give 1 or more"),
            (unit.module == "mac_tiled", f"spec: {unit.spec} has two levels, and the inner one is "
                                         "not at the outputs"),
            (found.answers != "every step", "answers: a proof needs the sum after every step at "
                                            "the outputs")]:
        if holds:
            raise ValueError(f"{what}; without a proof, `emu cosim` compares it")


def _questions(found: PortMap, unit: Unit, fresh: Callable[[], Model]) -> Iterator[Question]:
    if unit.module == "quantizer":
        yield _cast(found, unit.source, fresh())
        return
    yield _step(found, unit.source, fresh())
    if "valid" in found.inputs:
        yield _idle(found, unit.source, fresh())
    if found.restart != "load":
        yield _begin(found, unit.source, fresh())


class _Clocks:
    """States of a model, clock by clock, each driven as the map says."""

    def __init__(self, found: PortMap, model: Model):
        self.found, self.model, self.states = found, model, []

    def clock(self, **drive: int) -> int:
        """One more: no reset, and the controls named here."""
        known = {*self.found.inputs} | ({"reset"} if self.found.reset else set())
        drive = {f"{role}_i": value for role, value in ({"reset": 0} | drive).items()
                 if role in known}
        self.states.append(self.model.clock(self.states[-1], **drive) if self.states
                           else self.model.state(**drive))
        return self.states[-1]

    def idle(self, mac: MacSpec, **drive: int) -> int:
        """A clock without a step: of zeros, where the module has no valid."""
        state = self.clock(**({"load": 0, "clear": 0, "valid": 0} | drive))
        if "valid" not in self.found.inputs:
            for role in "ab":
                zero = self.port(role, state) == 0
                self.model.script.lines.append(f"(assert {zero.name})")
        return state

    def after(self, mac: MacSpec) -> tuple[int, int]:
        """The states at which the last clock's answer, and the one before it, are seen."""
        for i in range(1, self.found.latency + 1):
            self.clock(**({"clear": 0} if i <= self.found.gap else {}))
        return self.states[-1], self.states[-2]

    def port(self, role: str, state: int, signed: bool = False) -> Number:
        side = "i" if role in self.found.inputs else "o"
        return self.model.port(state, f"{role}_{side}", signed)

    def operands(self, mac: MacSpec, state: int) -> tuple[list[Number], list[Number], Seen]:
        """The codes of a and b, and their ports."""
        codes, seen = [], {}
        for role, form in (("a", mac.a), ("b", mac.b)):
            port = seen[role] = self.port(role, state)
            codes.append([self.model.script.number(
                f"((_ extract {i * form.width + form.width - 1} {i * form.width}) {port.name})",
                form.width, form.signed) for i in range(mac.lanes)])
        return *codes, seen


def _step(found: PortMap, mac: MacSpec, model: Model) -> Question:
    """From any sum, a step: the first of a dot product where load tells."""
    clocks = _Clocks(found, model)
    state = clocks.clock(valid=1, clear=0)
    a, b, seen = clocks.operands(mac, state)
    after, before = clocks.after(mac)
    base = seen["sum"] = clocks.port("result", before, mac.acc.format.signed)
    held = clocks.port("overflow", before) == 1 if "overflow" in found.outputs else False
    if "load" in found.inputs:
        load = seen["load"] = clocks.port("load", state)
        bias = 0
        if "bias" in found.inputs:
            bias = seen["bias"] = clocks.port("bias", state, mac.acc.format.signed)
        base, held = formula.pick(load == 1, bias, base), held & (load == 0)
    return _question("a step", clocks, after, seen, formula.mac_step(mac, a, b, base), held)


def _idle(found: PortMap, mac: MacSpec, model: Model) -> Question:
    """A clock without a step leaves the sum."""
    clocks = _Clocks(found, model)
    clocks.idle(mac)
    after, before = clocks.after(mac)
    names = [role for role in ("result", "overflow") if role in found.outputs]
    seen = {name: clocks.port(name, after) for name in names}
    claims = [seen[name] == clocks.port(name, before) for name in names]
    return Question("a clock without a step", model, claims, [seen["result"] > 0], seen,
                    lambda bits: None)


def _begin(found: PortMap, mac: MacSpec, model: Model) -> Question:
    """From any state: a clear or a reset, then the first step."""
    clocks = _Clocks(found, model)
    waits = found.gap if found.restart == "clear" else max(found.gap, found.latency)
    for _ in range(waits):
        clocks.idle(mac)
    begun = clocks.idle(mac, **{found.restart: 1})
    state = clocks.clock(valid=1, clear=0)
    a, b, seen = clocks.operands(mac, state)
    base = 0
    if "bias" in found.inputs:
        base = seen["bias"] = clocks.port("bias", begun, mac.acc.format.signed)
    after, _ = clocks.after(mac)
    return _question(f"the first step after {found.restart}", clocks, after, seen,
                     formula.mac_step(mac, a, b, base), False)


def _cast(found: PortMap, spec: QuantizerSpec, model: Model) -> Question:
    clocks = _Clocks(found, model)
    state = clocks.clock(valid=1)
    seen = {"value": clocks.port("value", state, spec.source.signed)}
    shift, rand = spec.shift, 0
    if "shift" in found.inputs:
        shift = seen["shift"] = clocks.port("shift", state)
        if not isinstance(legal := shift <= spec.max_shift, bool):
            model.script.lines.append(f"(assert {legal.name})")
    if "rand" in found.inputs:
        rand = seen["rand"] = clocks.port("rand", state)
    for _ in range(found.latency):
        clocks.clock()
    return _question("a cast", clocks, clocks.states[-1], seen, formula.cast(
        seen["value"] << spec.pre_shift, shift, spec.cast, rand), False)


def _question(what: str, clocks: _Clocks, after: int, seen: Seen, computed: tuple, held
              ) -> Question:
    """That at state `after` the outputs are what was computed; `held` is an older overflow."""
    code, overflowed = computed
    role = "code" if "code" in clocks.found.outputs else "result"
    answer = seen[role] = clocks.port(role, after)
    width = clocks.model.ports[f"{role}_o"]
    claims = [answer == (code & (1 << width) - 1)]
    if "overflow" in clocks.found.outputs:
        seen["overflow"] = clocks.port("overflow", after)
        claims.append(seen["overflow"] == formula.pick(overflowed | held, 1, 0))
    return Question(what, clocks.model, claims, [answer > 0], seen, lambda bits: None)


def _told(found: PortMap, unit: Unit, question: Question, seconds: int) -> str:
    """The inputs at which the claims fail, what came and what the reference says."""
    easy = conjunction([question.seen["load"] == 1] if "load" in question.seen else [])
    text = question.text()
    wish = f"{text}(assert {easy})\n"  # a first step is easier to read
    if satisfiable([wish], SOLVERS[0], seconds)[0]:
        text = wish
    values = model(text, [term.name for term in question.seen.values()], SOLVERS[0], seconds)
    bits = {role: values[term.name] for role, term in question.seen.items()}
    outputs = [role for role in bits if role in found.outputs]
    given = " ".join(f"{role}={value:x}" for role, value in bits.items() if role not in outputs)
    came = " ".join(f"{role}={bits[role]:x}" for role in outputs)
    line = f"{found.top}: {question.what}{': ' * bool(given)}{given} => {came}"
    wanted = _wanted(unit, bits)
    return f"{line}, expected {wanted}" if wanted else f"{line}, which the sum was not before"


def _wanted(unit: Unit, bits: Mapping[str, int]) -> str:
    """The answer by the reference, in hex; nothing for a clock without a step."""
    spec = unit.source
    if isinstance(spec, QuantizerSpec):
        case = (unpack(bits["value"], spec.source, 1)[0], bits.get("shift", spec.shift),
                bits.get("rand", 0))
        return f"{next(iter(quantizer_records(spec, [case])))[3]:x}"
    if "a" not in bits:
        return ""
    form = spec.acc.format
    base = bits.get("bias", 0) if bits.get("load", 1 - ("sum" in bits)) else bits["sum"]
    a, b = (unpack(bits[role], operand, spec.lanes) for role, operand in (("a", spec.a),
                                                                          ("b", spec.b)))
    result, _ = next(dot_steps(a, b, spec, unpack(base, form, 1)[0]))
    return f"{result & (1 << form.width) - 1:x}"
