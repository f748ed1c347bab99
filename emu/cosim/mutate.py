"""How strong the vectors are: what share of small changes to the Verilog they notice.

Yosys changes one bit of one cell at a time, all changes in one design behind a selector. The
vectors are replayed on its gates. What they do not notice is either proved to be no change at
all, or it is a gap, with a case that would close it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from os import cpu_count
from pathlib import Path

from emu.cosim import yosys
from emu.cosim.claims import questions
from emu.cosim.netlist import Netlist
from emu.cosim.places import rtl_sources
from emu.cosim.prove import counterexample, first_failure
from emu.cosim.solver import SECONDS, NoVerdict
from emu.cosim.survivors import SELECT, survivors, unchanged
from emu.golden.cases import SHORT_COUNTS, STRENGTH, from_text, write_vectors
from emu.golden.units import Unit, mac_unit
from emu.golden.vectors import Manifest, VectorFile, read_manifest
from emu.number import Overflow
from emu.spec import MacSpec

SEED = 1
FOLD = "opt -full; "  # what constants decide is no logic, and cannot be changed
GATES = FOLD + "techmap; simplemap; opt -full; "
EACH = 125  # mutants of a unit under one spec
BARS = {"quantizer": 1, "lfsr": 1, "mac": 0.99, "mac_tiled": 0.99, "flag_quantizer": 1,
        "sgd_update": 1}  # the least share that must be noticed


@dataclass(frozen=True)
class Design:
    """One unit that is changed, the `mutants` of it, and its parameters beside its own.

    A mutant changes one bit of an operation, such as an addition, or a pin of one of its `gates`.
    """

    unit: Unit
    mutants: int
    more: Mapping[str, int]
    gates: bool = False

    @property
    def passes(self) -> str:
        """The commands that leave the cells that are changed."""
        return GATES if self.gates else FOLD


@dataclass(frozen=True)
class Gap:
    """A change that no vector notices, and what shows it."""

    mutation: str
    difference: str  # as an equation
    spec: str | None  # whose vectors could show it, with the case
    case: tuple | None


@dataclass(frozen=True)
class Score:
    """What became of one design's mutants."""

    design: Design
    key: str  # of the design, for what is known of its mutants
    killed: int
    equivalent: tuple[int, ...]
    gaps: tuple[Gap, ...]


def designs(specs: Sequence[str] = (), gates: bool = False) -> list[Design]:
    """Those of some specs; without one, at least 400 mutants of quantizer, mac and lfsr each."""
    some = [Design(from_text(text), EACH, {}) for text in specs]
    if not specs:
        some = [Design(from_text(f"s12f14 -> s5f0 stochastic6 {overflow.name.lower()}"), EACH,
                       {"ROUNDING_PORT": 1}) for overflow in Overflow]
        some += [Design(mac_unit(MacSpec.parse(text), pipeline, 4), EACH, {})
                 for text, pipeline in SHORT_COUNTS]
        some += [Design(from_text(f"lfsr{bits}"), EACH, {}) for bits in (1, 8, 16, 32)]
    return [replace(design, gates=gates) for design in some]


def mutate(vectors: Path, asked: Sequence[Design] | None = None, rtl: Sequence[Path] = (),
           progress=None) -> list[Score]:
    """Replay a vector set on mutants of each design, `designs()` if not said which.

    `progress` is called with the name of each design, how many are done and how many there are.
    Raises RuntimeError where the unchanged design fails, and ValueError where no vectors fit it.
    """
    manifest, asked, scores = read_manifest(vectors), asked or designs(), []
    for design in asked:
        if progress:
            progress(f"{design.unit.module} {design.unit.spec}", len(scores), len(asked))
        scores.append(_score(design, manifest, rtl_sources(rtl, design.unit.module)))
    return scores


def update(vectors: Path, asked: Sequence[Design] | None = None, progress=None) -> list[Score]:
    """Close the gaps that a case can close, and keep what was proved, in the package's data.

    Of other designs than `designs()` only the cases are kept.
    """
    scores = mutate(vectors, asked, progress=progress)
    if any(gap.case is not None for score in scores for gap in score.gaps):
        _remember(scores, cases_only=asked is not None)
        write_vectors(vectors)
        scores = mutate(vectors, asked, progress=progress)
    _remember(scores, cases_only=asked is not None)
    write_vectors(vectors)
    return scores


def strength(scores: Sequence[Score]) -> dict[str, dict[str, int]]:
    """{unit: its mutants, how many of them are none, and how many the vectors notice}."""
    return {module: {"mutants": sum(s.design.mutants for s in scores if _is(s, module)),
                     "equivalent": sum(len(s.equivalent) for s in scores if _is(s, module)),
                     "killed": sum(s.killed for s in scores if _is(s, module))}
            for module in dict.fromkeys(score.design.unit.module for score in scores)}


def _remember(scores: Sequence[Score], cases_only: bool) -> None:
    kept = json.loads(STRENGTH.read_text())
    found = kept["found"]
    for gap in (gap for score in scores for gap in score.gaps if gap.case is not None):
        case = json.loads(json.dumps(gap.case))
        if case not in found.setdefault(gap.spec, []):
            found[gap.spec].append(case)
    if not cases_only:
        kept = {"strength": strength(scores),
                "equivalent": {score.key: score.equivalent for score in scores}}
    STRENGTH.write_text("{\n" + ",\n".join([
        f' "strength": {_mapping(kept["strength"])}', f' "found": {_mapping(found)}',
        f' "equivalent": {_mapping(kept["equivalent"])}']) + "\n}\n")


def share(counts: Mapping[str, int]) -> float:
    """Of the mutants that change anything, the share that the vectors notice."""
    return counts["killed"] / (counts["mutants"] - counts["equivalent"])


def _is(score: Score, module: str) -> bool:
    return score.design.unit.module == module


def _mapping(values: Mapping) -> str:
    if not values:
        return "{}"
    return "{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}"
                              for k, v in values.items()) + "\n }"


def _score(design: Design, manifest: Manifest, sources: Sequence[Path]) -> Score:
    unit = design.unit
    files = [file for file in manifest.files if _fits(file, design)]
    if not files:
        raise ValueError(f"{unit.spec}: no vector file of {manifest.path.parent} has these "
                         "parameters, so nothing measures it")
    mutations, netlist = changed(design, sources)
    left = survivors(netlist, files, design.mutants)
    if 0 in left:
        left.remove(0)
    else:
        raise RuntimeError(f"{unit.spec}: the unchanged unit fails its vectors; "
                           "emu cosim says where")
    key = _key(mutations, sources)
    known = json.loads(STRENGTH.read_text())["equivalent"].get(key)
    equivalent, gaps = _classify(design, netlist, mutations, left, known or [], sources)
    return Score(design, key, design.mutants - len(left), equivalent, gaps)


def changed(design: Design, sources: Sequence[Path]) -> tuple[list[str], Netlist]:
    """The mutations of a design, and all its mutants behind `mutsel`: 0 is the unchanged unit."""
    unit = design.unit
    elaborated = yosys.elaborate(sources, unit.module, {**unit.parameters, **design.more})
    elaborated += design.passes
    listed, = yosys.yosys(f"{elaborated}mutate -list {4 * design.mutants} -seed {SEED} -o list",
                          sources, ["list"])
    mutations = _changes(listed)[:design.mutants]
    if len(mutations) < design.mutants:
        raise RuntimeError(f"{unit.spec}: yosys found {len(mutations)} mutants, not "
                           f"{design.mutants}")
    chosen = "; ".join(f"{mutation} -ctrl mutsel {SELECT} {k}"
                       for k, mutation in enumerate(mutations, start=1))
    text, = yosys.yosys(f"{elaborated}{chosen}; async2sync; dffunmap; techmap; simplemap; "
                        "opt_clean; write_json unit.json", sources, ["unit.json"])
    return mutations, Netlist(text, unit.module)


def _changes(listed: str) -> list[str]:
    """The mutations of a list; not those of a clock, which no model here has."""
    found = [re.sub(r" -(src|wire|wirebit) \S+", "", line) for line in listed.splitlines()]
    return [line for line in dict.fromkeys(found)
            if " -port CLK " not in line and " -port C " not in line]


def _fits(file: VectorFile, design: Design) -> bool:
    """Whether the file's unit is this design, or this design with its mode port set."""
    mine = {**file.parameters, **({name: design.unit.parameters[name] for name in
                                   ("ROUNDING", "RAND_WIDTH")} if design.more else {})}
    return file.unit == design.unit.module and mine == design.unit.parameters


def _key(mutations: Sequence[str], sources: Sequence[Path]) -> str:
    """Stands for the Verilog, the tool and the changes."""
    digest = hashlib.sha256(yosys.version().encode())
    for part in (*(path.read_bytes() for path in sources), *map(str.encode, mutations)):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]


def _classify(design: Design, netlist: Netlist, mutations: Sequence[str],
              survivors: Sequence[int], known: Sequence[int], sources: Sequence[Path]
              ) -> tuple[tuple[int, ...], tuple[Gap, ...]]:
    """Of what no vector notices: what is proved to be no change, and what is not."""
    def difference(mutant: int):
        try:
            if unchanged(netlist, mutant):
                return None
            asked = list(questions(design.unit, design.more, sources,
                                   design.passes + mutations[mutant - 1]))
            wrong = first_failure(asked, "bitwuzla", SECONDS)
            return wrong and counterexample(wrong, SECONDS)
        except NoVerdict as error:
            return f"it may be no change: {error}", None, None

    unknown = [mutant for mutant in survivors if mutant not in known]
    with ThreadPoolExecutor(cpu_count()) as pool:
        told = dict(zip(unknown, pool.map(difference, unknown), strict=True))
    gaps = []
    for mutant, found in told.items():
        if found is not None:
            text, case, unit = found
            gaps.append(Gap(mutations[mutant - 1], text, unit and unit.spec, case))
    return tuple(m for m in survivors if m in known or told[m] is None), tuple(gaps)
