"""The Verilog around the units: one stream and one unit for each vector file. Wiring only."""

from __future__ import annotations

from emu.cosim.ports import Interface, interface
from emu.golden.units import Field
from emu.golden.vectors import VectorFile


def top(files: list[VectorFile], bubbles: bool = False, starts: bool = False,
        face: Interface | None = None) -> str:
    """The module `top`; file i is read from i.hex and reported in i.log.

    The streams wait to be started, or, with `starts`, run one after the other and end it all.
    `face` is how the units look that are none of hw/rtl.
    """
    start = ""
    if starts:
        runs = "".join(f"    file_{i}.go = 1'b1;\n    wait (file_{i}.done);\n"
                       for i in range(len(files)))
        start = f"  initial begin\n{runs}    $finish;\n  end\n"
    return "module top;\n" + "\n".join(
        _pair(i, f, bubbles, face or interface(f.unit, f.parameters))
        for i, f in enumerate(files)) \
        + start + "endmodule\n"


def _pair(i: int, file: VectorFile, bubbles: bool, face: Interface) -> str:
    width = 4 * sum(field.digits for field in file.fields)
    clocked = file.latency > 0
    setup = {"FILE": f'"{i}.hex"', "LOG": f'"{i}.log"', "WIDTH": width}
    if clocked:
        setup["BUBBLES"] = int(bubbles)
    drive, check = (f"drive_{i}", f"check_{i}") if clocked else (f"line_{i}",) * 2
    names = ["clk", "rst_n", "en", "valid", "step"] if clocked else []
    wires = [f"wire {', '.join(f'{name}_{i}' for name in names)};"] if clocked else []
    wires.append(f"wire [{width - 1}:0] {', '.join({drive: 0, check: 0})}, answer_{i};")

    ports, answer, low = {}, [], width
    for field in file.fields:
        low -= 4 * field.digits
        bits = f"[{low + field.width - 1}:{low}]"
        if field.dir == "in":
            ports[field.name] = drive + bits
            answer.append(f"{check}[{low + 4 * field.digits - 1}:{low}]")
        else:
            ports[field.name] = f"{field.name}_{i}"
            wires.append(f"wire [{field.width - 1}:0] {field.name}_{i};")
            answer += [f"{_padding(field)}'d0"] * (_padding(field) > 0) + [ports[field.name]]
    ports |= _controls(i, face, ports)

    stream = {"line_o": drive, "answer_i": f"answer_{i}"}
    if clocked:
        stream = {"clk_o": f"clk_{i}", "rst_no": f"rst_n_{i}", "en_o": f"en_{i}",
                  "valid_o": f"valid_{i}", "step_i": f"step_{i}", "drive_o": drive,
                  "check_o": check, "answer_i": f"answer_{i}"}
        if face.protocol.within:  # high alone it is a step too many
            stream["step_i"] += f" || {face.protocol.within}_{i}"
    kind = "stream_clocked" if clocked else "stream_combinational"
    if clocked and face.protocol.step is None:  # an answer to each record, a clock later
        wires[0] = wires[0].replace(f", step_{i}", f";  reg step_{i}")
        wires.append(f"always @(posedge clk_{i}) step_{i} <= en_{i} && valid_{i};")
    return "".join(f"  {line}\n" for line in [
        f"// {file.name}", *wires, f"assign answer_{i} = {{{', '.join(answer)}}};",
        _instance(kind, f"file_{i}", setup, stream),
        _instance(file.unit, f"unit_{i}", file.parameters, ports)])


def _controls(i: int, face: Interface, columns: dict[str, str]) -> dict[str, str]:
    """What a unit's ports beside its columns are connected to."""
    wires = {port.name: f"{port.bits}'d0" for port in face.inputs if port.name not in columns}
    if (protocol := face.protocol) is not None:
        wires |= {"clk_i": f"clk_{i}", "rst_ni": f"rst_n_{i}", "en_i": f"en_{i}"}
        wires[protocol.taken] = f"en_{i} && valid_{i}" if protocol.taken == "en_i" else f"valid_{i}"
        if protocol.step is not None:
            wires[protocol.step] = f"step_{i}"
    return wires


def _padding(field: Field) -> int:
    return 4 * field.digits - field.width


def _instance(module: str, name: str, parameters: dict, ports: dict) -> str:
    joined = lambda pairs: ", ".join(f".{k}({v})" for k, v in pairs.items())  # noqa: E731
    return f"{module} #({joined(parameters)}) {name} ({joined(ports)});"
