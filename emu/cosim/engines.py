"""One call over four engines: arrays of codes in, through the Verilog, arrays of codes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from emu.cosim import compiled, gates, stream, tools
from emu.cosim.places import rtl_sources
from emu.cosim.ports import Interface, Port, interface
from emu.value import unknown

# Each engine, the tools it needs, and what it runs: the fastest first.
BACKENDS = {
    "cxxrtl": (compiled.cxxrtl, ("yosys", "g++")),
    "verilator": (compiled.verilator, ("verilator", "g++")),
    "netlist": (gates.netlist, ("yosys",)),
    "icarus": (stream.icarus, ("icarus",)),
}


def run(unit: str, parameters: Mapping[str, int], arrays: Mapping[str, np.ndarray],
        backend: str | None = None, rtl: Sequence[Path] = ()) -> dict[str, np.ndarray]:
    """Send records through a module of hw/rtl, and return what its outputs answer to each.

    `arrays` gives each input port codes of shape (records,), or (records, codes) for one that
    carries several; what it returns is such arrays of int64 (uint64 for 64 unsigned bits), by
    port. A unit without a clock answers each record by itself; a `mac` takes one step a record
    (`load_i` at the first of a transaction, `last_i` at its last), an `lfsr` draws once a record.
    `parameters` are the Verilog ones, all that `emu.golden.units` derives from a spec. `backend`
    is cxxrtl, verilator, netlist (the synthesised gates) or icarus; without it the first of these
    whose tools are installed. `rtl` files replace our modules of the same names.

    Raises ValueError for arrays that do not fit the ports and for parameters that the Verilog
    refuses, ToolMissing where a tool is not installed, RuntimeError where a tool fails.
    """
    face = interface(unit, parameters)
    for name, value in parameters.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{unit}: parameter {name} {value!r}: needs a whole number")
    return through(unit, parameters, rtl_sources(rtl, unit), face, arrays, backend)


def through(unit: str, parameters: Mapping[str, int], sources: list[Path], face: Interface,
            arrays: Mapping[str, np.ndarray], backend: str | None = None,
            waves: Path | None = None) -> dict[str, np.ndarray]:
    """As `run`, through a module that these sources define and that has these ports.

    `waves` is a file for its waves: of icarus only, ValueError for another backend.
    """
    for port in face.ports:
        if port.width > 64:
            raise ValueError(f"{unit}: {port.name} has {port.width} bits; an array holds codes of "
                             "at most 64")
    backend = backend or chosen()
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    engine, needs = BACKENDS[backend]
    tools.require(*needs)
    inputs = _inputs(unit, face, arrays)
    records = len(next(iter(inputs.values())))
    outputs = {port.name: np.zeros((records, port.count) if port.count > 1 else records, np.int64)
               for port in face.outputs}
    if waves is not None:
        if engine is not stream.icarus:
            raise ValueError(f"{waves}: {backend} keeps no waves; use icarus")
        engine = partial(engine, waves=waves)
    answers = engine(unit, parameters, sources, face, inputs, outputs)
    if answers != records:
        raise RuntimeError(f"{unit}: {answers} answers came to {records} records in {backend}")
    return {port.name: outputs[port.name].view(np.uint64)
            if port.width == 64 and not port.signed else outputs[port.name]
            for port in face.outputs}


def chosen() -> str:
    """The first backend whose tools are installed. Raises ToolMissing where there is none."""
    for name, (_, needs) in BACKENDS.items():
        if all(map(tools.found, needs)):
            return name
    raise tools.ToolMissing(f"no backend is installed: {tools.INSTALL['icarus']}, or for speed "
                            f"{tools.INSTALL['yosys']}, and {tools.INSTALL['g++']}")


def _inputs(unit: str, face: Interface, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays as int64, in the order of the ports."""
    ports = {port.name: port for port in face.inputs}
    for name in arrays:
        if name not in ports:
            raise unknown(f"input of {unit}", name, ports)
    missing = [name for name, port in ports.items() if name not in arrays and not port.optional]
    if missing:
        raise ValueError(f"{unit}: no array for {missing[0]}; needs "
                         f"{', '.join(name for name in ports if not ports[name].optional)}")
    found = {name: _codes(port, arrays[name]) for name, port in ports.items() if name in arrays}
    lengths = {name: len(array) for name, array in found.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"{unit}: arrays of different lengths ({shown}); one code a record each")
    if not any(lengths.values()):
        raise ValueError(f"{unit}: arrays without a record; nothing would run")
    return found


def _codes(port: Port, given: np.ndarray) -> np.ndarray:
    array = np.asarray(given)
    if array.dtype.kind not in "iub":
        raise ValueError(f"{port.name}: dtype {array.dtype} holds no codes; give integers")
    if array.shape != (len(array), *[port.count] * (port.count > 1)):
        raise ValueError(f"{port.name}: shape {array.shape}; needs (records"
                         f"{f', {port.count}' if port.count > 1 else ','})")
    low, high = port.range
    if array.size and not low <= (least := int(array.min())) <= (most := int(array.max())) <= high:
        raise ValueError(f"{port.name}: code {least if least < low else most} does not fit "
                         f"{port.width} {'signed' if port.signed else 'unsigned'} bits, which hold "
                         f"{low} to {high}")
    return np.ascontiguousarray(array.astype(np.int64, copy=False))
