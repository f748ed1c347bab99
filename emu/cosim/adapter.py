"""Verilog that gives a user's module ports that every engine knows: roles, seen clock by clock.

A record is a clock: what is offered in it, and what the module's outputs are just before the edge
that ends it, so that nothing depends on when an engine looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from emu.cosim.joints import Joint, Wire
from emu.cosim.portmap import PortMap
from emu.cosim.ports import Interface, Port, Protocol
from emu.golden.units import QuantizerSpec, Unit

NAME = "emu_adapter"
QUEUE = "emu_step_queue"
# Of each clock: an answer was there, a step was taken, one came too fast, something was X.
TOLD = ("seen", "moved", "lost", "unknown")


def interface(found: PortMap, unit: Unit) -> Interface:
    """The ports of the adapter: a role is `role_i` or `role_o`, as codes."""
    codes = _codes(unit)
    controls = {"valid", *found.inputs} | ({"last"} if found.answers == "last step" else set())
    given = [codes[role] for role in codes if role in found.inputs]
    given += [Port(f"{role}_i", 1) for role in ("valid", "load", "clear", "last", "ready")
              if role in controls]
    given += [Port("reset_i", 1)] if found.reset else []
    answers = [codes[role] for role in codes if role in found.outputs]
    return Interface((*given, *answers, *(Port(f"{name}_o", 1) for name in TOLD)),
                     Protocol("en_i", "told_o"))


def _codes(unit: Unit) -> dict[str, Port]:
    """The roles that carry codes."""
    spec = unit.source
    if isinstance(spec, QuantizerSpec):
        to = spec.cast
        return {"value": Port("value_i", spec.source.width, spec.source.signed),
                "shift": Port("shift_i", max(spec.max_shift.bit_length(), 1)),
                "rand": Port("rand_i", to.rand_bits or 1),
                "code": Port("code_o", to.format.width, to.format.signed),
                "overflow": Port("overflow_o", 1)}
    form = spec.result.format
    return {"a": Port("a_i", spec.a.width, spec.a.signed, spec.lanes),
            "b": Port("b_i", spec.b.width, spec.b.signed, spec.lanes),
            "bias": Port("bias_i", form.width, form.signed),
            "result": Port("result_o", form.width, form.signed),
            "overflow": Port("overflow_o", 1)}


def adapter(found: PortMap, face: Interface, wires: Mapping[str, Wire], joined: Sequence[Joint],
            always: bool = False) -> str:
    """The text of module `emu_adapter`; with `always` every clock counts as an answer."""
    fed = [port for port in face.inputs if port.name != "ready_i"]
    answers = [port for port in face.outputs if port.name[:-2] not in TOLD]
    outputs = [f"output reg {_range(port.bits)}{port.name}" for port in face.outputs]
    ports = ["input wire clk_i", "input wire rst_ni", "input wire en_i",
             *(f"input wire {_range(port.bits)}{port.name}" for port in face.inputs),
             "output reg told_o", *outputs]
    lines = [f"wire {_range(wire.width)}w_{name};" for name, wire in wires.items()
             if wire.direction == "output"]
    lines += [f"wire {_range(port.bits)}{port.name[:-2]};" for port in fed]
    lines += _queue(fed) if "ready" in found.outputs else [
        *(f"assign {port.name[:-2]} = {port.name};" for port in fed), "wire lost = 1'b0;"]
    if found.reset:
        lines.append("wire restart = !rst_ni || reset;")
    if "ready" in found.inputs:
        lines.append("wire [0:0] ready = ready_i;")
    lines += [f"wire {_range(bits)}out_{role} = {_joined(joined, role)};"
              for role, bits in [*((port.name[:-2], port.bits) for port in answers),
                                 *((role, 1) for role in ("valid", "ready"))]
              if role in found.outputs]
    lines.append("wire moved = valid" + " && out_ready" * ("ready" in found.outputs) + ";")
    lines += ["wire seen = 1'b1;"] if always else _seen(found)
    known = ", ".join(f"{{{port.bits}{{seen}}}} & out_{port.name[:-2]}" for port in answers)
    lines += ["`ifdef __ICARUS__", f"wire unknown = (^{{seen, moved, {known}}}) === 1'bx;",
              "`else", "wire unknown = 1'b0;", "`endif",
              f"{found.top}{_parameters(found)} unit ({_connections(found, wires, joined)});",
              *_registers(face, answers)]
    return _module(ports, lines)


def bare(found: PortMap, face: Interface, wires: Mapping[str, Wire], joined: Sequence[Joint]
         ) -> str:
    """The text of module `emu_adapter` without registers around yours: for a proof."""
    given = [port for port in face.inputs if port.name[:-2] in {*found.inputs, "reset"}]
    answers = [port for port in face.outputs if port.name[:-2] in found.outputs]
    ports = ["input wire clk_i",
             *(f"input wire {_range(port.bits)}{port.name}" for port in given),
             *(f"output wire {_range(port.bits)}{port.name}" for port in answers)]
    lines = [f"wire {_range(wire.width)}w_{name};" for name, wire in wires.items()
             if wire.direction == "output"]
    lines += [f"wire {_range(port.bits)}{port.name[:-2]} = {port.name};" for port in given]
    lines += ["wire restart = reset;"] if found.reset else []
    lines += [f"{found.top}{_parameters(found)} unit ({_connections(found, wires, joined)});",
              *(f"assign {port.name} = {_joined(joined, port.name[:-2])};" for port in answers)]
    return _module(ports, lines)


def _module(ports: Sequence[str], lines: Sequence[str]) -> str:
    return "\n".join([f"module {NAME} (", ",\n".join(f"    {port}" for port in ports), ");",
                      *(f"  {line}" for line in lines), "endmodule", ""])


def _range(bits: int) -> str:
    return f"[{bits - 1}:0] "


def _queue(fed: Sequence[Port]) -> list[str]:
    """What is offered waits until the module is ready; only a step waits."""
    width = sum(port.bits for port in fed)
    controls = {"valid_i", "load_i", "clear_i", "last_i", "reset_i"}
    acts = " || ".join(port.name for port in fed
                       if port.name in ("valid_i", "clear_i", "reset_i"))
    lines = [f"wire {_range(width)}word;", "wire some, lost;",
             f"{QUEUE} #(.WIDTH({width})) queue (.clk_i(clk_i), .rst_ni(rst_ni), "
             f".push_i(en_i && ({acts})), .data_i({{{', '.join(p.name for p in fed)}}}), "
             ".pop_i(!valid || out_ready), .data_o(word), .some_o(some), .lost_o(lost));"]
    low = width
    for port in fed:
        low -= port.bits
        gate = f"{{{port.bits}{{some}}}} & " if port.name in controls else ""
        lines.append(f"assign {port.name[:-2]} = {gate}word[{low + port.bits - 1}:{low}];")
    return lines


def _seen(found: PortMap) -> list[str]:
    """The wire that tells of an answer, and which it counts."""
    if found.latency is None:
        return ["wire seen = out_valid" + " && ready" * ("ready" in found.inputs) + ";"]
    asked = "moved" + " && last" * (found.answers == "last step")
    if found.latency == 0:
        return [f"wire seen = {asked};"]
    top = found.latency - 1
    stop = "restart" if found.reset else "!rst_ni"
    return [f"reg [{top}:0] under_way;",
            f"always @(posedge clk_i) under_way <= {stop} ? {top + 1}'d0 "
            f": {{under_way, {asked}}};",
            f"wire seen = under_way[{top}];"]


def _joined(joined: Sequence[Joint], role: str) -> str:
    """What the module says in an output role."""
    parts = [f"{'~' * j.inverted}w_{j.port}[{j.low + j.width - 1}:{j.low}]"
             for j in joined if j.role == role and j.key.startswith("outputs.")]
    return f"{{{', '.join(reversed(parts))}}}"


def _parameters(found: PortMap) -> str:
    chosen = ", ".join(f".{name}({value})" for name, value in found.parameters.items())
    return f" #({chosen})" * bool(chosen)


def _connections(found: PortMap, wires: Mapping[str, Wire], joined: Sequence[Joint]) -> str:
    """The ports of the user's module."""
    ports = []
    for name, wire in wires.items():
        if wire.direction == "output":
            ports.append(f".{name}(w_{name})")
        elif name in found.ties:
            ports.append(f".{name}({wire.width}'d{found.ties[name]})")
        else:
            parts = sorted((j for j in joined if j.port == name), key=lambda j: -j.low)
            ports.append(f".{name}({{{', '.join(map(_driver, parts))}}})")
    return ", ".join(ports)


def _driver(joint: Joint) -> str:
    wire = {"clock": "clk_i", "reset": "restart"}.get(joint.role)
    return "~" * joint.inverted + (
        wire or f"{joint.role}[{joint.at + joint.width - 1}:{joint.at}]")


def _registers(face: Interface, answers: Sequence[Port]) -> list[str]:
    """What is told of the clock that an edge ends."""
    told = {"told_o": "en_i", "seen_o": "unknown || seen", "moved_o": "!unknown && moved",
            "lost_o": "lost", "unknown_o": "unknown"}
    told |= {port.name: f"unknown || !seen ? {port.bits}'d0 : out_{port.name[:-2]}"
             for port in answers}
    return ["always @(posedge clk_i) begin",
            *(f"  {name} <= rst_ni ? {value} : 0;" for name, value in told.items()), "end"]
