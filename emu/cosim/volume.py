"""A vector set replayed through one of the engines: every file as arrays, in one call each.

The sums of a recorded training step also pass through mac_array, and a sample of every file of it
through Icarus.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from emu.cosim import lines
from emu.cosim.engines import chosen, run
from emu.cosim.matrices import Tiles, through_array, tiles_of
from emu.cosim.places import check_used
from emu.cosim.ports import Port, interface
from emu.cosim.replay import SHOWN, FileReport, Report, checked_files, write_junit
from emu.cosim.tools import require
from emu.golden.explain import explain_line
from emu.golden.units import Field
from emu.golden.vectors import VectorFile, equation

Columns = dict[str, np.ndarray]
SAMPLE = 64  # lines of a file, or sums of a pass, that Icarus sees


def replay_arrays(manifest: Path, backend: str | None = None, rtl: Sequence[Path] = (),
                  junit: Path | None = None, progress=None, seed: int = 1) -> Report:
    """Replay every file of a vector set by `engines.run`; otherwise as `replay`.

    `seed` draws what of a recorded step is replayed in Icarus as well.
    """
    files = checked_files(manifest, junit)
    check_used(rtl, ["mac_array"] * any(map(_recorded, files)) + [file.unit for file in files])
    backend = backend or chosen()
    if backend != "icarus" and any(_recorded(file) for file in files):
        require("icarus")
    reports = []
    for i, file in enumerate(files):
        if progress:
            progress(file.name, i, len(files))
        reports += _replays(file, backend, rtl, seed)
    return write_junit(Report(backend, tuple(reports)), junit)


def _recorded(file: VectorFile) -> bool:
    return "step" in file.classes


def _replays(file: VectorFile, backend: str, rtl: Sequence[Path], seed: int
             ) -> Iterator[FileReport]:
    recorded = _File(file)
    every = np.arange(file.cases)
    yield recorded.report("", every, recorded.answers(every, backend, rtl))
    if not _recorded(file):
        return
    tiles = tiles_of(recorded.codes) if file.unit.startswith("mac") else None
    if tiles is not None:
        yield recorded.tiled(" in mac_array", tiles, backend, rtl)
    if backend == "icarus":
        return
    draw, sampled = np.random.default_rng(seed), f", a sample in icarus, seed {seed}"
    if tiles is not None:
        some = draw.permutation(len(tiles.line))[:max(1, SAMPLE // tiles.line[0].size)]
        yield recorded.tiled(f" in mac_array{sampled}", tiles[some], "icarus", rtl)
    else:
        some = np.arange(min(SAMPLE, file.cases))
        if file.latency == 0:  # its lines depend on none before them
            some = np.sort(draw.permutation(file.cases)[:SAMPLE])
        yield recorded.report(sampled, some, recorded.answers(some, "icarus", rtl))


class _File:
    """One vector file as arrays: its `ports` in the order of the columns, and their `codes`."""

    def __init__(self, file: VectorFile):
        self.file, self.ports = file, columns(file)
        text = np.frombuffer(file.path.read_bytes(), np.uint8).reshape(file.cases, -1)
        self.text = text[:, (text[0] != ord("_")) & (text[0] != ord("\n"))]
        self.codes = lines.decode(self.ports, self.text)

    def answers(self, some: np.ndarray, backend: str, rtl: Sequence[Path]) -> Columns:
        """What the unit answers to these lines."""
        return run(self.file.unit, self.file.parameters, {
            port.name: self.codes[port.name][some] for port in self.ports if not port.out},
            backend, rtl)

    def tiled(self, how: str, tiles: Tiles, backend: str, rtl: Sequence[Path]) -> FileReport:
        """The report on the sums of these tiles."""
        sums, there = through_array(self.file, tiles, backend, rtl), tiles.line >= 0
        order = np.argsort(tiles.line[there])
        return self.report(how, tiles.line[there][order], {
            "acc_o": sums.acc[there][order], "ovf_o": sums.overflowed[there][order]})

    def report(self, how: str, some: np.ndarray, answers: Columns) -> FileReport:
        """The report on what some outputs are at these lines."""
        wrong = np.flatnonzero(np.logical_or.reduce(
            [codes != self.codes[name][some] for name, codes in answers.items()]))
        came = [self._fields(some[i], {name: codes[i:i + 1] for name, codes in answers.items()})
                for i in wrong[:SHOWN]]
        told = [equation(self.file, some[i] + 1, *fields) + how
                for i, fields in zip(wrong, came, strict=False)]
        explained = explain_line(self.file, some[wrong[0]] + 1, came[0][1]) if came else []
        return FileReport(self.file.name + how, self.file.unit, len(some), len(wrong), tuple(told),
                          tuple(explained))

    def _fields(self, line: int, came: Columns) -> tuple[list[str], list[str]]:
        """The hex fields of a line: as they should be, and with what came."""
        want, got, at = [], [], 0
        for port in self.ports:
            digits = lines.digits(port)
            want.append(self.text[line, at:at + digits].tobytes().decode())
            got.append(lines.encode([port], came, 1).decode().strip() if port.name in came
                       else want[-1])
            at += digits
        return want, got


def columns(file: VectorFile) -> list[Port]:
    """The unit's ports in the order of the file's fields. Raises ValueError where they differ."""
    ports = {port.name: port for port in interface(file.unit, file.parameters).ports}
    for field in file.fields:
        port = ports.get(field.name)
        if port is None or (port.bits, "out" if port.out else "in") != (field.width, field.dir):
            raise ValueError(f"{file.name}: its column {_shown(field)} is no port of {file.unit}, "
                             "which has " + ", ".join(f"{p.name} ({p.bits} bits)"
                                                      for p in ports.values()))
    return [ports[field.name] for field in file.fields]


def _shown(field: Field) -> str:
    return f"{field.name} ({field.width} bits, {field.dir})"
