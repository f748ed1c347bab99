"""Icarus as one of the engines: arrays as a hex file, streamed by the bench of the replay."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from emu.cosim import lines, tools
from emu.cosim.places import hardware
from emu.cosim.ports import Interface, Port
from emu.cosim.top import top
from emu.golden.units import Field
from emu.golden.vectors import VectorFile


def icarus(unit: str, parameters: Mapping[str, int], sources: list[Path], face: Interface,
           inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray],
           waves: Path | None = None) -> int:
    """Fill `outputs`, int64 arrays, and say how many answers came.

    The stream reports where an answer differs from the file, which expects zeros everywhere: what
    it does not report is zero. `waves` is a file for the waves: FST, or VCD by its name.
    """
    tools.require("icarus")
    ports = [port for port in face.ports if port.out or port.name in inputs]
    records = len(next(iter(inputs.values())))
    fields = tuple(Field(port.name, port.bits, dir="out" if port.out else "in") for port in ports)
    compiler, runtime = tools.icarus()
    with tempfile.TemporaryDirectory(prefix="emu-cosim-") as folder:
        work = Path(folder)
        (work / "0.hex").write_bytes(lines.encode(ports, inputs, records))
        file = VectorFile(work / "0.hex", unit, unit, "", dict(parameters), fields,
                          int(face.protocol is not None), records, {}, "", "")
        text = top([file], starts=True, face=face)
        if waves is not None:
            text = text.replace("endmodule\n", "  initial begin\n    $dumpfile(\"waves.fst\");\n"
                                "    $dumpvars(0, unit_0);\n  end\nendmodule\n")
        (work / "top.v").write_text(text.replace(".WIDTH(", f".SHOWN({records}), .WIDTH(", 1))
        try:
            tools.call([compiler, tools.generation(sources), "-s", "top", "-o", "top.vvp",
                        "top.v", *sources, *sorted(hardware().glob("tb/stream_*.v"))], work)
        except tools.ToolFailed as error:
            raise tools.refused(unit, dict(parameters), error) from None
        kind = [] if waves is None or waves.suffix == ".vcd" else ["-fst"]
        said = tools.call([runtime, "-n", "top.vvp", *kind], work)
        if waves is not None:
            shutil.copyfile(work / "waves.fst", waves)
        return _answers(work / "0.log", ports, records, outputs, said)


def _answers(log: Path, ports: list[Port], records: int, outputs: dict[str, np.ndarray],
             said: str) -> int:
    """Read `line answer` of each difference, then `end lines differences`."""
    *differing, end = log.read_bytes().splitlines() if log.exists() else [b""]
    if not end.startswith(b"end "):
        raise RuntimeError(f"icarus stopped early: {tools.words(said)}")
    pairs = [line.split() for line in differing]
    at = np.array([int(number) - 1 for number, _ in pairs], np.int64)
    kept = [answer for (_, answer), line in zip(pairs, at, strict=True) if line < records]
    text = np.frombuffer(b"".join(kept), np.uint8).reshape(len(kept), sum(map(lines.digits, ports)))
    try:
        found = lines.decode(ports, text)
    except ValueError as error:
        raise RuntimeError(f"icarus: {error} of those that are not zero") from None
    for port in ports:
        if port.out:
            outputs[port.name][at[at < records]] = found[port.name]
    return int(end.split()[1])
