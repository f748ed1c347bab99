"""Proofs that the Verilog equals the definition, for all inputs and from every register state.

Yosys turns a unit into SMT-LIB, `emu.cosim.claims` says what must hold of it, and a solver looks
for an input where that fails.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from emu.cosim.claims import questions
from emu.cosim.places import check_used, rtl_sources
from emu.cosim.question import Case, Question, conjunction
from emu.cosim.solver import SECONDS, model, satisfiable
from emu.cosim.tools import ToolMissing
from emu.golden.cases import expected, file_name, standard
from emu.golden.units import (
    QuantizerSpec,
    Unit,
    mac_unit,
    quantizer_unit,
)
from emu.golden.vectors import VectorFile, equation, vector_set
from emu.number import Overflow
from emu.spec import MacSpec

SOLVERS = ("bitwuzla", "z3")


@dataclass(frozen=True)
class Proof:
    """What became of one unit: proved, unless `difference` says how it fails."""

    name: str
    unit: Unit
    solvers: tuple[str, ...]  # that agree on it
    seconds: float
    difference: str | None = None  # as an equation
    case: Case | None = None  # the case that shows it, where vectors can
    shown_by: Unit | None = None  # the unit whose vectors hold that case


def standard_proofs() -> list[tuple[Unit, dict[str, int]]]:
    """The units of the committed vectors, then wider and stranger ones, with more parameters.

    A MAC of two levels takes small operands: many of its steps are asked about at once.
    """
    some = [(unit, {}) for unit in standard() if unit.module != "mac_tiled"]
    some += [(quantizer_unit(QuantizerSpec.parse(f"{text} {overflow.name.lower()}{align}")),
              {"ROUNDING_PORT": 1})
             for text, align in ANY_ROUNDING for overflow in Overflow
             if overflow != Overflow.SAT_SYM or "-> s1f" not in text]
    return some + [(mac_unit(MacSpec.parse(text), pipeline), {}) for text, pipeline in MACS]


# The rounding is a port here, so each is a proof of all twelve.
ANY_ROUNDING = [
    ("s12f14 -> s5f0 stochastic6", ""), ("s16f8 -> s8f0 stochastic8", ""),
    ("s20f12 -> s8f0 stochastic16", ""), ("u16f12 -> u8f0 stochastic4", ""),
    ("u12f9 -> s8f0 stochastic3", ""), ("s12f9 -> u8f0 stochastic12", ""),
    ("s8f4 -> s16f0 stochastic5", " align 4"), ("s6f20 -> s12f0 stochastic9", ""),
    ("s32f24 -> s8f0 stochastic24", ""), ("s48f31 -> s8f0 stochastic16", ""),
    ("s64f32 -> s32f0 stochastic32", ""), ("s1f1 -> s1f0 stochastic1", " align 2"),
    ("u1f2 -> u1f0 stochastic2", ""), ("s2f1 -> u1f0 stochastic1", " align 1"),
]
MACS = [
    ("{a: s8, b: s8, acc: s20 sat}", 0), ("{a: s8, b: s8, acc: s24 sat}", 1),
    ("{a: s8, b: s8, acc: s32}", 2), ("{a: s4, b: s8, acc: s12 sat}", 0),
    ("{a: s12, b: s12, acc: s28 sat}", 0), ("{a: s16, b: s16, acc: s32 sat}", 1),
    ("{a: s8, b: s8, product: s12f-7 ties_pos sat, acc: s17f-7 sat}", 0),
    ("{a: s8, b: s8, product: s1f-15 ties_even sat, acc: s12f-15 sat}", 0),
    ("{a: s16, b: s16, product: s24f-8 ties_away sat, acc: s32f-8 sat}", 0),
    ("{a: s8, b: s8, acc: s2 sat}", 0), ("{a: u8, b: s8, acc: s2}", 2),
    ("{a: u16, b: s8, acc: s40 sat_sym, lanes: 2}", 0), ("{a: u1, b: s1, acc: s2 sat_sym}", 0),
    ("{a: s4, b: s4, acc: s12 sat, lanes: 8}", 1), ("{a: u32, b: u29, acc: u62 sat}", 0),
    ("{a: s3, b: s3, acc: s6 sat, tile: 2, outer: s8 sat}", 0),
    ("{a: u2, b: s3, acc: s5, lanes: 2, tile: 4, outer: s5f-2 ties_even sat_sym}", 1),
    ("{a: s3, b: s3, product: s4f-2 ties_pos sat, acc: s5f-2 sat_zero, tile: 2, outer: s8f-1}", 2),
    ("{a: s3, b: s3, acc: s6 sat, tile: 2, outer: s4f-3 ties_away sat, reload: true}", 0),
    ("{a: s3, b: s3, acc: s6 sat, tile: 1, outer: s4f-2 ties_odd sat_zero, reload: true}", 0),
    ("{a: u3, b: u3, acc: u6 sat, lanes: 2, tile: 2, outer: u4f-4 to_odd sat, reload: true}", 0),
]


def prove(units: Iterable[tuple[Unit, Mapping[str, int]]], rtl: Sequence[Path] = (),
          second: int = 5, seconds: int = SECONDS, progress=None) -> list[Proof]:
    """Prove units, each with more parameters than its own; `rtl` replaces our modules.

    Bitwuzla is asked, and z3 too for every `second`-th unit. `progress` is called with the name
    of each proof, how many are done and how many there are. Raises RuntimeError where a solver
    gives no verdict or the two differ, and ValueError where nothing is asked.
    """
    asked, done = list(units), []
    if not asked:
        raise ValueError("no unit to prove; name a spec, or leave it out for the standard list")
    check_used(rtl, [unit.module for unit, _ in asked])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = [pool.submit(_prove, unit, more, rtl_sources(rtl, unit.module), seconds,
                               SOLVERS if i % second == 0 else SOLVERS[:1])
                   for i, (unit, more) in enumerate(asked)]
        try:
            for result in results:
                done.append(result.result())
                if progress:
                    progress(done[-1].name, len(done), len(asked))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return done


def store(proofs: Iterable[Proof], out: Path) -> Path | None:
    """Write the cases that show a difference as a vector set; None where there is none."""
    cases = {}
    for proof in proofs:
        if proof.case is not None:
            cases.setdefault(file_name(proof.shown_by), (proof.shown_by, []))[1].append(proof.case)
    if not cases:
        return None
    with vector_set(out, {}) as writer:
        for name, (unit, found) in cases.items():
            writer.add(name, unit, [("counterexample", expected(unit, found))])
    return out


def _prove(unit: Unit, more: Mapping[str, int], sources: Sequence[Path], seconds: int,
           solvers: Sequence[str]) -> Proof:
    start = time.monotonic()
    name = file_name(unit).removesuffix(".hex") + "".join(
        f" {key}={value}" for key, value in more.items())
    try:
        asked = list(questions(unit, more, sources))
        failed = {solver: first_failure(asked, solver, seconds) for solver in solvers}
        if len({question is None for question in failed.values()}) > 1:
            raise RuntimeError(f"{' and '.join(solvers)} disagree")
        wrong = failed[solvers[0]]
        told = (None, None, None) if wrong is None else counterexample(wrong, seconds)
    except ToolMissing:
        raise
    except RuntimeError as error:
        raise RuntimeError(f"{name}: {error}") from None
    return Proof(name, unit, tuple(solvers), time.monotonic() - start, *told)


def first_failure(asked: Sequence[Question], solver: str, seconds: int) -> Question | None:
    """The first question whose claims can fail; raises where one claims nothing."""
    verdicts = satisfiable([text for question in asked
                            for text in (question.text(), question.cover())], solver, seconds)
    for question, wrong, covered in zip(asked, verdicts[::2], verdicts[1::2], strict=True):
        if wrong:
            if question.implies is None:
                return question
            if first_failure([question.implies], solver, seconds):
                return question.implies
        elif not covered:
            raise RuntimeError(f"{question.what}: this can never be, so nothing would be proved")
    return None


def counterexample(question: Question, seconds: int) -> tuple[str, Case | None, Unit | None]:
    """(equation, case, unit of the case) where the claims fail."""
    values = {term.name: name for name, term in question.seen.items()}
    wishes = [f"{question.text()}(assert {conjunction(prefer)})\n" for prefer in question.prefer]
    text = next((text for text in wishes if satisfiable([text], SOLVERS[0], seconds)[0]),
                question.text())
    found = model(text, tuple(values), SOLVERS[0], seconds) if values else {}
    seen = {name: found[term] for term, name in values.items()}
    told = question.tell(seen)
    if told is None:
        bits = " ".join(f"{name}={value:x}" for name, value in seen.items())
        return f"{question.what}: fails{' with ' * bool(bits)}{bits}", None, None
    case, unit, line = told
    return _difference(unit, case, line, seen), case, unit


def _difference(unit: Unit, case: Case, line: int, seen: Mapping[str, int]) -> str:
    """The case as an equation: what the reference wants, what the Verilog answers."""
    record = list(expected(unit, [case]))[line]
    file = VectorFile(Path(), file_name(unit), unit.module, unit.spec, unit.parameters,
                      unit.fields, unit.latency, 1, {}, "reference", "")
    texts = [f"{bits:0{f.digits}x}" for bits, f in zip(record, unit.fields, strict=True)]
    got = [f"{seen[f.name]:0{f.digits}x}" if f.dir == "out" else text
           for text, f in zip(texts, unit.fields, strict=True)]
    if got == texts:
        raise RuntimeError(f"{file.name}: the formula differs from the Verilog where the "
                           f"reference does not: {seen}; the formula is wrong")
    return equation(file, line + 1, texts, got)
