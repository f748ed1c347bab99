"""Does this Verilog implement this spec? A user's module, told by a port map, and explained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from emu.cosim.bench import Answers, Bench
from emu.cosim.cast_changes import cast_changes
from emu.cosim.changes import Said, explaining
from emu.cosim.drive import golden_cases
from emu.cosim.mac_changes import mac_changes
from emu.cosim.portmap import PortMap, other_maps, read_map
from emu.cosim.ports import Port
from emu.cosim.replay import SHOWN, FileReport, Report, check_writable, write_junit
from emu.golden.explain import explain_step
from emu.golden.units import Field, QuantizerSpec
from emu.golden.vectors import VectorFile, equation

SHOWN_CHANGES = 3


def check_rtl(rtl: Sequence[Path], path: Path, spec: str = "", top: str = "",
              backend: str = "icarus", seed: int = 1, junit: Path | None = None,
              waves: Path | None = None) -> Report:
    """Compare the module that a port map describes with its spec, on golden cases.

    `spec` and `top` go before what the map says. A report that is not ok explains itself: the
    first difference, and the change of spec, rule or map that gives every answer. `junit` and
    `waves` (of icarus) are files to write. Raises
    ValueError for a map or files that do not fit, RuntimeError where the module does not
    elaborate or a tool fails.
    """
    if not rtl:
        raise ValueError("--map describes a module of yours; name its files by --rtl")
    for file in (junit, waves):
        if file is not None:
            check_writable(Path(file))
    found, unit = read_map(path, spec, top)
    bench = Bench(found, unit, golden_cases(unit), [Path(file).resolve() for file in rtl],
                  backend, seed)
    got = bench.run(waves=None if waves is None else Path(waves))
    wrong = bench.wrong(got)
    reset = _reset(bench)
    lines = [*reset, *_counts(bench, got), *(_equation(bench, i, got) for i in wrong[:SHOWN])]
    differences = len(reset) + abs(len(got) - len(bench.owed)) + len(wrong)
    explained = tuple(_explained(bench, got, wrong)) if lines else ()
    file = FileReport(f"{found.top} {unit.spec}", unit.module, len(bench.owed), differences,
                      tuple(lines), explained)
    return write_junit(Report(backend, (file,)), junit)


def _equation(bench: Bench, i: int, got: Answers) -> str:
    """Answer i: what went in under the keys of the map, what came out, what should have."""
    step, spec = bench.owed[i], bench.unit.source
    of = spec.cast if isinstance(spec, QuantizerSpec) else spec.result
    fields, want, came = [], [], []
    for port in bench.face.ports:
        role = port.name[:-2]
        given = step.want if port.out else step.given
        if role not in given or role not in bench.found.inputs.keys() | bench.found.outputs.keys():
            continue
        field = Field(role, port.bits, port.signed, "out" if port.out else "in",
                      of.format.frac if role in ("result", "code") else None)
        fields.append(field)
        want.append(_digits(field, port, given[role]))
        came.append(want[-1] if not port.out else "x" if got.unknown[i] else
                    _digits(field, port, int(got.codes[role][i])))
    file = VectorFile(Path(), bench.found.top, bench.unit.module, bench.unit.spec, {},
                      tuple(fields), 0, 0, {}, "reference", "")
    return equation(file, i + 1, want, came)


def _digits(field: Field, port: Port, codes: int | list[int]) -> str:
    """The bits of a port in hex, lane 0 lowest."""
    mask = (1 << port.width) - 1
    each = codes if isinstance(codes, list) else [codes]
    bits = sum((code & mask) << i * port.width for i, code in enumerate(each))
    return f"{bits:0{field.digits}x}"


def _counts(bench: Bench, got: Answers) -> list[str]:
    """A line where answers are missing or too many."""
    if len(got) == len(bench.owed):
        return []
    steps = bench.passes * sum(map(len, bench.steps))
    why = f"; {got.moved} of {steps} steps were taken" if got.moved != steps else ""
    return [f"{bench.found.top}: {len(got)} answers came to {len(bench.owed)} that were owed{why}"]


def _reset(bench: Bench) -> list[str]:
    """A line where reset is not of the kind that the map says."""
    at_once = bench.resets_at_once()
    if at_once in (None, bench.found.async_reset):
        return []
    acts = "at once" if at_once else "at the edge of the clock"
    return [f"{bench.found.top}: reset acts {acts}; {bench.found.path} says async_reset = "
            f"{str(bench.found.async_reset).lower()}"]


def _explained(bench: Bench, got: Answers, wrong: Sequence[int]) -> Iterator[str]:
    """The first difference at its step, and the change that would explain all of them."""
    if wrong:
        first = bench.owed[wrong[0]]
        if got.unknown[wrong[0]]:
            yield ("x: a register is read before it is written, or something is driven by nothing "
                   "(only icarus sees this)")
        elif bench.unit.module != "quantizer":
            yield from explain_step(bench.unit.source, *bench.cases[first.case], first.index,
                                    int(got.codes["result"][wrong[0]]))
        if wrong[0] >= len(bench.once):
            yield (f"the first {len(bench.once)} answers are right: idle clocks between the steps, "
                   f"or stalls, make it differ (--seed {bench.seed} draws them)")
            return
    if wrong or len(got) != len(bench.owed):
        yield from _rule(bench, got, len(wrong))


def _rule(bench: Bench, got: Answers, differences: int) -> Iterator[str]:
    """The change of the spec, of its rule or of the map that gives every answer."""
    removes = "one change removes every difference: "
    changes, found = [], []
    if len(got) == len(bench.owed) and not got.unknown.any():
        spec, said = bench.unit.source, _said(bench, got)
        changes = list(cast_changes(spec) if isinstance(spec, QuantizerSpec) else
                       mac_changes(spec))
        found = explaining(changes, said)
    for change in found[:SHOWN_CHANGES]:
        yield f"{removes}{change.words}"
    if len(found) > 1:
        yield f"these cases do not tell {len(found)} such changes apart"
    if found:
        return
    for words, other in other_maps(bench.found):
        if _right(other, bench):
            yield f"{removes}in {bench.found.path} {words}"
            return
    yield f"no single change of {bench.found.spec}, of its rule or of the map removes them all"
    if changes:
        left, change = min(((sum(said.differences(change)), change) for change in changes),
                           key=lambda pair: pair[0])
        if 2 * left < differences:
            yield f"the nearest leaves {left} of {differences}: {change.words}"


def _said(bench: Bench, got: Answers) -> Said:
    result = next(role for role in ("result", "code") if role in got.codes)
    width = next(port.bits for port in bench.face.ports if port.name == f"{result}_o")
    bits = [int(code) & (1 << width) - 1 for code in got.codes[result]]
    overs = got.codes["overflow"].tolist() if "overflow" in got.codes else [None] * len(bits)
    pairs = iter(zip(bits, overs, strict=True))
    every = bench.found.answers == "every step"
    answers = [list(islice(pairs, len(steps) if every else 1))
               for steps in bench.steps * bench.passes]
    return Said(bench.cases * bench.passes, answers, every, width)


def _right(found: PortMap, bench: Bench) -> bool:
    """Whether every answer would be right if this were the map."""
    other = bench.by(found)
    try:
        got = other.run(most=bench.spacing)
    except RuntimeError:  # it is never ready then
        return False
    return len(got) == len(other.owed) and not other.wrong(got)
