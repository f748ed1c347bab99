"""Replay a vector set on Verilog in one simulator process, and say what differs."""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from xml.sax.saxutils import quoteattr

from emu.cosim.places import check_used, hardware, rtl_sources
from emu.cosim.ports import PROTOCOLS
from emu.cosim.simulator import simulate
from emu.cosim.top import top
from emu.golden.explain import explain_line
from emu.golden.vectors import VectorFile, equation, read_manifest

SHOWN = 20  # differences told


@dataclass(frozen=True)
class FileReport:
    """What became of one vector file."""

    name: str
    unit: str
    cases: int
    mismatches: int
    lines: tuple[str, ...]  # the first differences, as equations
    explained: tuple[str, ...] = ()  # how the first of them came about


@dataclass(frozen=True)
class Report:
    """What became of a vector set; `ok` only when all of it ran and matched."""

    sim: str
    files: tuple[FileReport, ...]

    @property
    def cases(self) -> int:
        return sum(file.cases for file in self.files)

    @property
    def mismatches(self) -> int:
        return sum(file.mismatches for file in self.files)

    @property
    def ok(self) -> bool:
        return bool(self.files) and self.mismatches == 0

    @property
    def differences(self) -> list[str]:
        """The first differences of all files, and how many more there are."""
        lines = [line for file in self.files for line in file.lines][:SHOWN]
        more = self.mismatches - len(lines)
        return lines + ([f"... and {more} more, {self.mismatches} in all"] if more > 0 else [])

    @property
    def explained(self) -> list[str]:
        """How the first difference came about."""
        return next((list(file.explained) for file in self.files if file.explained), [])


def replay(manifest: Path, sim: str = "icarus", rtl: Sequence[Path] = (),
           waves: Path | None = None, junit: Path | None = None, work: Path | None = None,
           progress=None, bubbles: bool = False) -> Report:
    """Replay every file of a vector set; `rtl` files replace our modules of the same names.

    `bubbles` leaves idle and disabled clocks between steps. `waves` and `junit` are files to
    write; `work` keeps the build; `progress` is called with the name of each file, how many
    are done and how many there are. Raises ValueError for bad input, RuntimeError where the
    simulator failed, and its ToolMissing where there is none.
    """
    files = checked_files(manifest, junit, waves)
    check_used(rtl, [file.unit for file in files])
    sources = [*rtl_sources(rtl), *sorted(hardware().glob("tb/stream_*.v"))]
    with _folder(work) as folder:
        for i, file in enumerate(files):
            (folder / f"{i}.hex").unlink(missing_ok=True)
            (folder / f"{i}.log").unlink(missing_ok=True)
            (folder / f"{i}.hex").symlink_to(file.path.resolve())
        (folder / "top.v").write_text(top(files, bubbles))
        with _told(files, folder, progress):
            simulate(sim, folder, "top", [*sources, folder / "top.v"], "replay", len(files),
                     plusargs=[f"+files={len(files)}"],
                     waves=None if waves is None else Path(waves))
        report = Report(sim, tuple(_outcome(file, folder / f"{i}.log")
                                   for i, file in enumerate(files)))
    return write_junit(report, junit)


def checked_files(manifest: Path, *written: Path | None) -> list[VectorFile]:
    """The files of a set, after every check that comes before the work."""
    files = list(read_manifest(manifest).files)
    if not files:
        raise ValueError(f"{manifest}: holds no vector file, so there is nothing to prove")
    for file in files:
        if file.unit not in PROTOCOLS:
            raise ValueError(f"{file.name}: unit {file.unit!r} has no module in hw/rtl; known: "
                             f"{', '.join(PROTOCOLS)}")
        if not file.cases:
            raise ValueError(f"{file.name}: holds no case, so there is nothing to prove")
    for path in written:
        if path is not None:
            check_writable(Path(path))
    return files


def write_junit(report: Report, path: Path | None) -> Report:
    """The report, kept as JUnit XML too where there is a path."""
    if path is not None:
        Path(path).write_text(_junit(report), encoding="utf-8")
    return report


def check_writable(path: Path) -> None:
    """Raise ValueError, before the work rather than after it, where a report cannot go."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.exists()
        with open(path, "a"):
            pass
        if not there:
            path.unlink()  # an empty report would look like one, should the work fail
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror}); choose another file"
                         ) from None


@contextmanager
def _told(files: list[VectorFile], folder: Path, progress) -> Iterator[None]:
    """Call `progress` with the name of each file as its stream starts, by looking at the logs."""
    over = threading.Event()

    def watch():
        for i, file in enumerate(files):
            while not (folder / f"{i}.log").exists():
                if over.wait(0.05):
                    return
            progress(file.name, i, len(files))

    if progress is None:
        yield
        return
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _outcome(file: VectorFile, log: Path) -> FileReport:
    """Read what the stream reported: `line answer` for each difference, then the two counts."""
    *wrong, end = log.read_text().splitlines() if log.exists() else [""]
    if not re.fullmatch(r"end \d+ \d+", end):
        raise RuntimeError(f"{file.name}: the stream did not finish; run again with work=FOLDER "
                           "and read run.log there")
    ran, mismatches = map(int, end.split()[1:])
    answers = dict(line.split() for line in wrong)
    right = dict(zip(answers, _lines(file, [int(n) for n in answers]), strict=True))
    lines = [equation(file, int(n), right[n], _columns(file, answer))
             if right[n] else f"{file.name}:{n}  a step more than the file has"
             for n, answer in answers.items()]
    explained = next((explain_line(file, int(n), _columns(file, answer))
                      for n, answer in answers.items() if right[n]), ())
    if ran < file.cases:
        lines.append(f"{file.name}: only {ran} of {file.cases} steps came out")
        mismatches += file.cases - ran
    return FileReport(file.name, file.unit, file.cases, mismatches, tuple(lines),
                      tuple(explained))


def _lines(file: VectorFile, numbers: list[int]) -> list[list[str]]:
    """The lines of these ascending numbers; empty for one beyond the end."""
    lines, at, found = file.lines(), 0, []
    for number in numbers:
        found.append(next(islice(lines, number - at - 1, None), []))
        at = number
    return found


def _columns(file: VectorFile, answer: str) -> list[str]:
    columns, start = [], 0
    for field in file.fields:
        columns.append(answer[start:start + field.digits])
        start += field.digits
    return columns


@contextmanager
def _folder(work: Path | None) -> Iterator[Path]:
    if work is not None:
        Path(work).mkdir(parents=True, exist_ok=True)
        yield Path(work).resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="emu-cosim-") as folder:
            yield Path(folder).resolve()


def _junit(report: Report) -> str:
    """One test case for each vector file."""
    cases = []
    for file in report.files:
        name = f"  <testcase classname={quoteattr(file.unit)} name={quoteattr(file.name)}"
        if file.mismatches:
            message = f"{file.mismatches} of {file.cases} cases differ"
            cases.append(f"{name}><failure message={quoteattr(message)}>"
                         f"{_escape(file.lines + file.explained)}</failure></testcase>\n")
        else:
            cases.append(f"{name}/>\n")
    failed = sum(file.mismatches > 0 for file in report.files)
    return ('<?xml version="1.0" encoding="utf-8"?>\n'
            f'<testsuite name={quoteattr("emu cosim " + report.sim)} '
            f'tests="{len(report.files)}" failures="{failed}">\n{"".join(cases)}</testsuite>\n')


def _escape(lines: Sequence[str]) -> str:
    return "\n".join(lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
