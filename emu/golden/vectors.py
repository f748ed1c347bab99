"""Vector sets on disk: hex files and their manifest, written whole and read with every check."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from emu import __version__
from emu.golden.units import Field, Record, Unit

SCHEMA = 1  # the shape of manifest.json
CONTRACT = 1  # raised by any change of golden bits
MANIFEST = "manifest.json"
CHUNK = 4096  # lines formatted at a time


@dataclass(frozen=True)
class VectorFile:
    """One hex file and what the manifest says of it. `name` is its path inside the set."""

    path: Path
    name: str
    unit: str
    spec: str
    parameters: dict[str, int]
    fields: tuple[Field, ...]
    latency: int
    cases: int
    classes: dict[str, list[int]]  # class of cases -> its first and last line
    oracle: str
    sha256: str
    seed: int | None = None
    loads: list[int] | None = None  # what the LFSRs of a stochastic operand were loaded with
    axes: dict[str, list] | None = None  # [name, size] of "sums" and "terms", slowest first
    made: dict[str, str] | None = None  # input -> the formula of what no unit computes

    def lines(self) -> Iterator[list[str]]:
        """The hex fields of each line."""
        with open(self.path, encoding="ascii") as lines:
            for line in lines:
                yield line.rstrip("\n").split("_")


@dataclass(frozen=True)
class Manifest:
    """A vector set that has been read and checked."""

    path: Path
    files: tuple[VectorFile, ...]
    about: dict


class VectorWriter:
    """Adds files to a set under construction; see `vector_set`."""

    def __init__(self, folder: Path, progress=None):
        self.folder, self.progress, self.entries = folder, progress, []

    def add(self, name: str, unit: Unit, classes: Iterable[tuple[str, Iterable[Record]]],
            seed: int | None = None, loads: list[int] | None = None,
            axes: dict[str, list] | None = None, made: dict[str, str] | None = None) -> None:
        """Write one file; its records come class by class and are never held together."""
        path = self.folder / name
        if any(entry["file"] == name for entry in self.entries):
            raise ValueError(f"{name}: a second file of this name; give each trace its own name")
        path.parent.mkdir(parents=True, exist_ok=True)
        line = "_".join(f"%0{f.digits}x" for f in unit.fields) + "\n"
        digest, lines, ranges = hashlib.sha256(), 0, {}
        with open(path, "wb") as out:
            for class_name, records in classes:
                first, rest = lines + 1, iter(records)
                while chunk := list(islice(rest, CHUNK)):
                    data = "".join([line % record for record in chunk]).encode()
                    out.write(data)
                    digest.update(data)
                    lines += len(chunk)
                if lines >= first:
                    ranges[class_name] = [first, lines]
        entry = {"file": name, "unit": unit.module, "spec": unit.spec,
                 "parameters": unit.parameters, "fields": [_field_entry(f) for f in unit.fields],
                 "latency": unit.latency, "cases": lines, "classes": ranges, "seed": seed,
                 "oracle": "reference", "loads": loads, "axes": axes, "made": made,
                 "sha256": digest.hexdigest()}
        self.entries.append({key: value for key, value in entry.items() if value is not None})
        if self.progress:
            self.progress(name, len(self.entries))


@contextmanager
def vector_set(out: Path, about: dict, progress=None) -> Iterator[VectorWriter]:
    """Build a set beside `out` and move it there whole, or leave nothing.

    An existing set is replaced; files in its folder that it did not write are kept. Raises
    ValueError where `out` is something else.
    """
    out = Path(out).resolve()
    check_replaceable(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise ValueError(f"{out}: cannot be written ({error.strerror}); "
                         "choose another output folder") from None
    try:
        fresh = work / "new"
        fresh.mkdir()
        writer = VectorWriter(fresh, progress)
        yield writer
        (fresh / MANIFEST).write_text(_manifest_text(writer.entries, about), encoding="utf-8")
        _replace(out, fresh, work / "old")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def read_manifest(path: Path) -> Manifest:
    """Read a set (its folder or manifest.json) and check every file against its manifest."""
    path = Path(path)
    path = path / MANIFEST if path.is_dir() else path
    data = _read_json(path)
    try:
        if data["schema"] > SCHEMA:
            raise ValueError(f"{path}: schema {data['schema']} is newer than {SCHEMA}, the newest "
                             "this emu reads; update emu")
        if data["contract"] != CONTRACT:
            raise ValueError(f"{path}: contract {data['contract']} has other golden bits than "
                             f"{CONTRACT}, that of this emu; write the set again")
        files = tuple(_vector_file(path.parent, entry) for entry in data["files"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a manifest of schema {SCHEMA} ({error!r}); "
                         "write the set again") from None
    for file in files:
        _check_file(file)
    about = {key: value for key, value in data.items() if key != "files"}
    return Manifest(path, files, about)


def equation(file: VectorFile, number: int, want: list[str], got: list[str],
             word: str = "expected") -> str:
    """One difference: inputs => what came, what was wanted, and its value where that is known."""
    inputs, outputs = [], []
    for field, right, wrong in zip(file.fields, want, got, strict=True):
        if right != wrong:
            value = field.value(int(right, 16)) * 2.0 ** -(field.frac or 0)
            known = f" ({value:g})" if field.frac is not None else ""
            outputs.append(f"{field.name}={wrong}, {word} {right}{known}")
        elif field.dir == "in":
            inputs.append(f"{field.name}={right}")
    return f"{file.name}:{number}  {' '.join(inputs)} => {'; '.join(outputs)}"


def diff(a: Path, b: Path, limit: int = 20) -> list[str]:
    """What differs between two vector sets, at most `limit` lines and then how many more."""
    found = _differences(read_manifest(a), read_manifest(b))
    lines = list(islice(found, limit))
    more = sum(1 for _ in found)
    return lines + ([f"... and {more} more, {len(lines) + more} differences in all"] * (more > 0))


def _differences(a: Manifest, b: Manifest) -> Iterator[str]:
    others = {file.name: file for file in b.files}
    for file in a.files:
        other = others.pop(file.name, None)
        if other is None:
            yield f"{file.name}: only in {a.path.parent}"
        elif (what := _unlike(file, other)) is not None:
            left, right = getattr(file, what), getattr(other, what)
            yield f"{file.name}: {what} {left}, but {right} in {b.path.parent}"
        elif file.sha256 != other.sha256:
            for number, (left, right) in enumerate(zip(file.lines(), other.lines(),
                                                       strict=False), start=1):
                if left != right:
                    yield equation(file, number, right, left, "but")
            if file.cases != other.cases:
                yield f"{file.name}: {file.cases} cases, but {other.cases} in {b.path.parent}"
    for name in others:
        yield f"{name}: only in {b.path.parent}"


def _unlike(a: VectorFile, b: VectorFile) -> str | None:
    return next((name for name in ("unit", "spec", "parameters", "fields")
                 if getattr(a, name) != getattr(b, name)), None)


def _field_entry(field: Field) -> dict:
    return {key: value for key, value in asdict(field).items() if value is not None}


def _manifest_text(entries: list[dict], about: dict) -> str:
    """JSON with one line for each thing said of a file, so that a change reads well."""
    head = {"schema": SCHEMA, "contract": CONTRACT, "tool": f"emu {__version__}", **about}
    files = ",\n".join(
        "  {\n" + ",\n".join(f"   {json.dumps(k)}: {json.dumps(v)}" for k, v in entry.items())
        + "\n  }" for entry in entries)
    lines = "".join(f" {json.dumps(k)}: {json.dumps(v)},\n" for k, v in head.items())
    return "{\n" + lines + ' "files": [\n' + files + "\n ]\n}\n"


def check_replaceable(out: Path) -> None:
    """Raise ValueError unless `out` is new, empty, or a vector set that a new one may replace."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file; vectors are written into a folder")
    if out.is_dir() and any(out.iterdir()):
        try:
            read_manifest(out)
        except ValueError:
            raise ValueError(f"{out}: is not empty and holds no whole vector set; choose another "
                             "output folder, or empty this one") from None


def _replace(out: Path, fresh: Path, old: Path) -> None:
    if not out.exists() or not any(out.iterdir()):
        fresh.rename(out)  # an empty folder gives way
        return
    _keep_foreign_files(out, fresh)
    out.rename(old)
    try:
        fresh.rename(out)
    except BaseException:
        old.rename(out)
        raise


def _keep_foreign_files(old: Path, fresh: Path) -> None:
    written = {MANIFEST} | {entry["file"] for entry in _read_json(old / MANIFEST)["files"]}
    for path in old.rglob("*"):
        name = path.relative_to(old)
        if path.is_file() and name.as_posix() not in written:
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, fresh / name)


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give a vector folder or its "
                         f"{MANIFEST}, or write one with `emu vectors`") from None
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({error}); write the set again") from None


def _vector_file(folder: Path, entry: dict) -> VectorFile:
    values = {**entry, "name": entry["file"], "path": folder / entry["file"],
              "fields": tuple(Field(**field) for field in entry["fields"])}
    del values["file"]
    file = VectorFile(**values)
    numbers = [file.cases, file.latency, *file.parameters.values(),
               *(field.width for field in file.fields)]
    if any(type(number) is not int for number in numbers):
        raise TypeError(f"{file.name}: counts, widths and parameters are whole numbers")
    return file


def _check_file(file: VectorFile) -> None:
    again = "write the set again with `emu vectors`, or restore the file"
    try:
        data = file.path.read_bytes()
    except OSError as error:
        raise ValueError(f"{file.path}: cannot be read ({error.strerror}); {again}") from None
    lines = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
    if lines != file.cases:
        raise ValueError(f"{file.path}: {lines} lines, the manifest says {file.cases}; {again}")
    line = "_".join(f"[0-9a-f]{{{f.digits}}}" for f in file.fields) + "\n"
    if not re.fullmatch(f"(?:{line})*".encode(), data):
        number, bad = next((n, text) for n, text in enumerate(data.splitlines(True), start=1)
                           if not re.fullmatch(line.encode(), text))
        digits = "_".join(str(f.digits) for f in file.fields)
        raise ValueError(f"{file.path}:{number}: {bad.decode('ascii', 'replace')!r} is not a line "
                         f"of {digits} lower-case hex digits; {again}")
    digest = hashlib.sha256(data).hexdigest()
    if digest != file.sha256:
        raise ValueError(f"{file.path}: sha256 {digest[:12]}..., the manifest says "
                         f"{file.sha256[:12]}...; the file was changed: {again}")
