"""Does this Verilog implement this spec? A user's module under golden cases, by a port map."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np

from emu.cosim import adapter, tools
from emu.cosim.drive import Stream, cases_of, owed, steps_of
from emu.cosim.engines import through
from emu.cosim.joints import joints, wires_of
from emu.cosim.neighbours import Said, explaining, neighbours
from emu.cosim.places import hardware
from emu.cosim.portmap import PortMap, read_map
from emu.cosim.ports import Port
from emu.cosim.replay import SHOWN, FileReport, Report, write_junit
from emu.golden.explain import explain_step
from emu.golden.units import Field, QuantizerSpec, Unit
from emu.golden.vectors import VectorFile, equation

MAX_SPACING = 64  # clocks that a module may need for a step
SHOWN_CHANGES = 3
LATENCIES = (1, -1, 2, -2)  # tried where the answers are wrong


@dataclass(frozen=True)
class Answers:
    """What a module said, in its order: the outputs of each answer, and which of them were X."""

    codes: dict[str, np.ndarray]  # by role
    unknown: np.ndarray
    moved: int  # steps that the module took


def check_rtl(rtl: Sequence[Path], path: Path, spec: str = "", top: str = "",
              backend: str = "icarus", level: int = 1, seed: int = 1, junit: Path | None = None
              ) -> Report:
    """Feed the module that a port map describes with the golden cases of its spec.

    They come twice: as fast as the module takes them, then (where it has a valid) with idle
    clocks and stalls drawn from `seed`. A report that is not ok explains itself. Raises
    ValueError for a map or files that do not fit, RuntimeError where the module does not
    elaborate or a tool fails.
    """
    if not rtl:
        raise ValueError("--map describes a module of yours; name its files by --rtl")
    found, unit = read_map(path, spec, top)
    bench = _Bench(found, unit, [Path(file).resolve() for file in rtl], backend, level, seed)
    return write_junit(Report(backend, (bench.report(),)), junit)


class _Bench:
    """A module, its cases and what they should answer."""

    def __init__(self, found: PortMap, unit: Unit, sources: list[Path], backend: str, level: int,
                 seed: int):
        self.found, self.unit, self.sources, self.backend = found, unit, sources, backend
        self.level, self.seed = level, seed
        self.cases = cases_of(found, unit, level)
        self.steps = steps_of(unit, self.cases)
        self.owed = owed(found, self.steps)
        if not self.owed:
            raise ValueError(f"{found.path}: the spec {found.spec} has no case that these ports "
                             "can be given, so nothing would be checked")
        self.passes = 2 if "valid" in found.inputs else 1
        self.face = adapter.interface(found, unit)
        wires = wires_of(found, sources)
        try:
            self.text = adapter.adapter(found, self.face, wires, joints(found, self.face, wires))
        except ValueError as error:
            raise ValueError(f"{found.path}: {error}") from None

    def report(self) -> FileReport:
        """What became of it."""
        got = self.run()
        wrong = self.differences(got)
        count = self.passes * len(self.owed)
        return FileReport(f"{self.found.top} {self.unit.spec}", self.unit.module, count,
                          len(wrong) + abs(count - len(got.unknown)),
                          tuple(self.told(got, wrong)), tuple(self.explained(got, wrong)))

    def run(self) -> Answers:
        """The answers of the module, slowed down until it can follow."""
        spacing = 1
        while True:
            stream = Stream(self.found, self.face, spacing)
            stream.feed(self.steps)
            if self.passes == 2:
                stream.feed(self.steps, Random(self.seed))
            stream.drain()
            out = self._through(stream)
            if not out["lost_o"].any():
                break
            spacing *= 2
            if spacing > MAX_SPACING:
                raise RuntimeError(f"{self.found.top}: is not ready for a step in "
                                   f"{MAX_SPACING} clocks; is outputs.ready of "
                                   f"{self.found.path} the right port, and its reset?")
        seen = np.flatnonzero(out["seen_o"])
        return Answers({port.name[:-2]: out[port.name][seen] for port in self.face.outputs
                        if port.name[:-2] not in adapter.TOLD}, out["unknown_o"][seen] != 0,
                       int(out["moved_o"].sum()))

    def _through(self, stream: Stream) -> dict[str, np.ndarray]:
        with tempfile.TemporaryDirectory(prefix="emu-cosim-") as folder:
            path = Path(folder) / f"{adapter.NAME}.v"
            path.write_text(self.text)
            sources = [*self.sources, path, hardware() / "tb" / "emu_step_queue.v"]
            try:
                return through(adapter.NAME, {}, sources, self.face, stream.arrays(self.face),
                               self.backend)
            except tools.ToolMissing:
                raise
            except RuntimeError as error:
                raise RuntimeError(str(error).replace(adapter.NAME, self.found.top)) from None

    def differences(self, got: Answers) -> list[int]:
        """Which answers are not what was owed, or X."""
        count = min(len(got.unknown), self.passes * len(self.owed))
        wrong = got.unknown[:count].copy()
        for role, codes in got.codes.items():
            want = np.array([step.want[role] for step in self.owed] * self.passes, codes.dtype)
            wrong |= codes[:count] != want[:count]
        return np.flatnonzero(wrong).tolist()

    def told(self, got: Answers, wrong: list[int]) -> list[str]:
        """The first differences as equations, and answers that are missing or too many."""
        lines = [self._equation(i, got) for i in wrong[:SHOWN]]
        owed, came = self.passes * len(self.owed), len(got.unknown)
        if came != owed:
            steps = self.passes * sum(map(len, self.steps))
            why = f"; {got.moved} of {steps} steps were taken" if got.moved != steps else ""
            lines.append(f"{self.found.top}: {came} answers came to {owed} that were owed{why}")
        return lines

    def _equation(self, i: int, got: Answers) -> str:
        step = self.owed[i % len(self.owed)]
        fields, want, came = [], [], []
        for port in self.face.ports:
            role = port.name[:-2]
            given = step.want if port.out else step.given
            if role not in given or role not in {**self.found.inputs, **self.found.outputs}:
                continue
            frac = self.frac if role in ("result", "code") else None
            field = Field(role, port.bits, port.signed, "out" if port.out else "in", frac)
            want.append(_digits(field, port, given[role]))
            came.append(want[-1] if not port.out else "x" if got.unknown[i] else
                        _digits(field, port, int(got.codes[role][i])))
            fields.append(field)
        file = VectorFile(Path(), self.found.top, self.unit.module, self.unit.spec, {},
                          tuple(fields), 0, 0, {}, "reference", "")
        return equation(file, i + 1, want, came)

    @property
    def frac(self) -> int:
        """Of the result."""
        spec = self.unit.source
        return (spec.cast if isinstance(spec, QuantizerSpec) else spec.result).format.frac

    def explained(self, got: Answers, wrong: list[int]) -> Iterator[str]:
        """The first difference at its step, and the change that would explain all of them."""
        if not wrong:
            return
        first = self.owed[wrong[0] % len(self.owed)]
        if got.unknown[wrong[0]]:
            yield ("X: something is read before it is written, or driven by nothing; give it a "
                   "reset, or look at it with --waves")
            return
        if self.unit.module != "quantizer":
            case = self.cases[first.case]
            yield from explain_step(self.unit.source, *case, first.index,
                                    int(got.codes["result"][wrong[0]]))
        if wrong[0] >= len(self.owed):
            yield (f"the first {len(self.owed)} answers are right: only idle clocks between the "
                   f"steps, or stalls, make it differ (--seed {self.seed} draws them)")
            return
        if len(got.unknown) == self.passes * len(self.owed):
            yield from self._rule(got, len(wrong))

    def _rule(self, got: Answers, differences: int) -> Iterator[str]:
        """The change of the spec, or else of the map, that gives every answer."""
        said = self._said(got)
        changes = neighbours(self.unit)
        found = explaining(changes, said)
        for change in found[:SHOWN_CHANGES]:
            yield f"one change removes all {differences} differences: {change.words}"
        if len(found) > 1:
            yield "these cases do not tell the changes above apart"
        for by in LATENCIES if not found and self.found.latency is not None else ():
            latency = self.found.latency + by
            if latency >= 0 and self._right_at(latency):
                yield (f"one change removes all {differences} differences: latency = {latency} "
                       f"in {self.found.path}, not {self.found.latency}")
                return
        if not found:
            left, change = min(((sum(said.differences(change)), change) for change in changes),
                               key=lambda pair: pair[0])
            yield (f"none of {len(changes)} single changes removes all {differences} differences"
                   + (f"; nearest, {left} left: {change.words}" if left < differences else ""))

    def _said(self, got: Answers) -> Said:
        result = next(role for role in ("result", "code") if role in got.codes)
        width = next(port.bits for port in self.face.ports if port.name == f"{result}_o")
        bits = [int(code) & (1 << width) - 1 for code in got.codes[result]]
        overs = got.codes["overflow"].tolist() if "overflow" in got.codes else [None] * len(bits)
        pairs, answers = iter(zip(bits, overs, strict=True)), []
        every = self.found.answers == "every step"
        for steps in self.steps * self.passes:
            answers.append(list(islice(pairs, len(steps) if every else 1)))
        cases = [(*case[:2], case[2] or 0) for case in self.cases]
        return Said(cases * self.passes, answers, every, width)

    def _right_at(self, latency: int) -> bool:
        """Whether all would be right if answers came at this latency."""
        other = _Bench(replace(self.found, latency=latency), self.unit, self.sources, self.backend,
                       self.level, self.seed)
        got = other.run()
        return len(got.unknown) == self.passes * len(self.owed) and not other.differences(got)


def _digits(field: Field, port: Port, codes: int | list[int]) -> str:
    """The bits of a port in hex, lane 0 lowest."""
    mask = (1 << port.width) - 1
    each = codes if isinstance(codes, list) else [codes]
    bits = sum((code & mask) << i * port.width for i, code in enumerate(each))
    return f"{bits:0{field.digits}x}"
