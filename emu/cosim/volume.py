"""A vector set replayed through one of the engines: every file as arrays, in one call each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emu.cosim import lines
from emu.cosim.engines import chosen, run
from emu.cosim.ports import Port, interface
from emu.cosim.replay import SHOWN, FileReport, Report, checked_files, write_junit
from emu.golden.units import Field
from emu.golden.vectors import VectorFile, equation

Columns = dict[str, np.ndarray]


def replay_arrays(manifest: Path, backend: str | None = None, rtl: Sequence[Path] = (),
                  junit: Path | None = None, progress=None) -> Report:
    """Replay every file of a vector set by `engines.run`; otherwise as `replay`."""
    files = checked_files(manifest, junit)
    backend = backend or chosen()
    reports = []
    for i, file in enumerate(files):
        if progress:
            progress(file.name, i, len(files))
        reports.append(_file(file, backend, rtl))
    return write_junit(Report(backend, tuple(reports)), junit)


def _file(file: VectorFile, backend: str, rtl: Sequence[Path]) -> FileReport:
    ports = columns(file)
    text = digits_of(file)
    expected = lines.decode(ports, text)
    answers = run(file.unit, file.parameters,
                  {port.name: expected[port.name] for port in ports if not port.out}, backend, rtl)
    wrong = differing(ports, expected, answers)
    told = [difference(file, ports, text, int(line), answers) for line in wrong[:SHOWN]]
    return FileReport(file.name, file.unit, file.cases, len(wrong), tuple(told))


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


def digits_of(file: VectorFile) -> np.ndarray:
    """The hex digits of every line, (cases, digits)."""
    text = np.frombuffer(file.path.read_bytes(), np.uint8).reshape(file.cases, -1)
    return text[:, (text[:1] != ord("_")).all(0) & (text[:1] != ord("\n")).all(0)]


def differing(ports: Sequence[Port], expected: Columns, answers: Columns) -> np.ndarray:
    """The lines, from 0, at which some output differs."""
    wrong = np.zeros(len(expected[ports[0].name]), np.bool_)
    for port in ports:
        if port.out:
            wrong |= answers[port.name] != expected[port.name]
    return np.flatnonzero(wrong)


def difference(file: VectorFile, ports: Sequence[Port], text: np.ndarray, line: int,
               answers: Columns) -> str:
    """One difference as an equation."""
    want, got, at = [], [], 0
    for port in ports:
        digits = lines.digits(port)
        want.append(text[line, at:at + digits].tobytes().decode())
        at += digits
        came = {port.name: answers[port.name][line:line + 1]} if port.out else {}
        got.append(lines.encode([port], came, 1).decode().strip() if port.out else want[-1])
    return equation(file, line + 1, want, got)
