"""The ports of the modules of hw/rtl as arrays see them, and how a clocked one takes a record.

A port carries `count` codes of `width` bits, the first one lowest. Widths follow from the Verilog
parameters, which `emu.golden.units` derives from a spec.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from emu.value import unknown


@dataclass(frozen=True)
class Port:
    """One port; `optional` inputs are 0 where nothing is given for them."""

    name: str
    width: int
    signed: bool = False
    count: int = 1
    optional: bool = False

    @property
    def out(self) -> bool:
        return self.name.endswith("_o")

    @property
    def bits(self) -> int:
        return self.width * self.count

    @property
    def range(self) -> tuple[int, int]:
        """The least and the greatest code."""
        half = 1 << max(self.width - 1, 0)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)


@dataclass(frozen=True)
class Protocol:
    """How a clocked unit is fed: one record for each clock at which `taken` is high.

    `step` is the output that tells of a new answer; without one there is an answer to each
    record, one clock later. `restart` is the input whose record depends on none before it, `within`
    an output that is high only where there is an answer.
    """

    taken: str
    step: str | None
    restart: str | None = None
    within: str | None = None


@dataclass(frozen=True)
class Interface:
    """The ports of one unit under some parameters; `protocol` is None where it has no clock."""

    ports: tuple[Port, ...]
    protocol: Protocol | None

    @property
    def inputs(self) -> list[Port]:
        return [port for port in self.ports if not port.out]

    @property
    def outputs(self) -> list[Port]:
        return [port for port in self.ports if port.out]


PROTOCOLS = {
    "quantizer": None,
    "mac": Protocol("valid_i", "step_o", "load_i", "valid_o"),
    "mac_tiled": Protocol("valid_i", "step_o", "load_i", "valid_o"),
    "mac_array": Protocol("en_i", None),
    "lfsr": Protocol("en_i", "valid_o", "load_i"),
    "flag_quantizer": None,
    "sgd_update": None,
}


def interface(unit: str, parameters: Mapping[str, int]) -> Interface:
    """What `unit` looks like from outside. Raises ValueError for one without this protocol."""
    if unit not in PROTOCOLS:
        raise unknown("unit", unit, PROTOCOLS)
    try:
        return Interface(tuple(_PORTS[unit](parameters)), PROTOCOLS[unit])
    except KeyError as missing:
        raise ValueError(f"{unit}: parameter {missing} is missing; the functions of "
                         "emu.golden.units give all of a spec") from None


def _quantizer(p: Mapping[str, int]) -> list[Port]:
    return [Port("value_i", p["IN_WIDTH"], p["IN_SIGNED"] == 1), Port("shift_i", 8),
            Port("rand_i", p["RAND_WIDTH"], optional=True), Port("rounding_i", 4, optional=True),
            Port("code_o", p["OUT_WIDTH"], p["OUT_SIGNED"] == 1), Port("ovf_o", 1)]


def _mac(p: Mapping[str, int]) -> list[Port]:
    width, signed = _sum(p)
    return [Port("load_i", 1), Port("last_i", 1), Port("bias_i", width, signed),
            Port("a_i", p["A_WIDTH"], p["A_SIGNED"] == 1, p["LANES"]),
            Port("b_i", p["B_WIDTH"], p["B_SIGNED"] == 1, p["LANES"]),
            Port("valid_o", 1), Port("acc_o", width, signed), Port("ovf_o", 1),
            Port("ovf_count_o", p["COUNT_WIDTH"])]


def _mac_array(p: Mapping[str, int]) -> list[Port]:
    rows, (width, signed) = p["ROWS"], _sum(p)
    return [Port("valid_i", 1), Port("load_i", 1), Port("last_i", 1),
            Port("a_i", p["A_WIDTH"], p["A_SIGNED"] == 1, rows * p["LANES"]),
            Port("b_i", p["B_WIDTH"], p["B_SIGNED"] == 1, p["COLS"] * p["LANES"]),
            Port("move_i", 1), Port("bias_i", width, signed, rows),
            Port("shift_i", 8, optional=True),
            Port("rand_i", p["RAND_WIDTH"], count=rows, optional=True),
            Port("done_o", 1), Port("valid_o", 1), Port("acc_o", width, signed, rows),
            Port("ovf_o", 1, count=rows),
            Port("code_o", p["OUT_WIDTH"], p["OUT_SIGNED"] == 1, rows),
            Port("clip_o", 1, count=rows)]


def _sum(p: Mapping[str, int]) -> tuple[int, bool]:
    """Width and sign of a sum and of its bias: the outer accumulator's where there is one."""
    level = "O" if p.get("TILE") else "ACC"
    return p[f"{level}_WIDTH"], p[f"{level}_SIGNED"] == 1


def _lfsr(p: Mapping[str, int]) -> list[Port]:
    return [Port("load_i", 1), Port("state_i", 32), Port("rand_o", p["RAND_WIDTH"])]


def _flag_quantizer(p: Mapping[str, int]) -> list[Port]:
    return [Port("value_i", p["IN_WIDTH"], p["IN_SIGNED"] == 1), Port("shift_i", 8),
            Port("rand_i", p["RAND_WIDTH"], optional=True), Port("code_o", p["WIDTH"] + 1),
            Port("operand_o", 2 * p["WIDTH"] - 1, True), Port("ovf_o", 1)]


def _sgd_update(p: Mapping[str, int]) -> list[Port]:
    code = lambda name, short: Port(name, p[f"{short}_WIDTH"], p[f"{short}_SIGNED"] == 1)  # noqa: E731
    return [code("weight_i", "W"), code("momentum_i", "M"), code("grad_i", "G"),
            code("lr_i", "LR"), code("mu_i", "MU"),
            Port("rand_momentum_i", p["M_RAND_WIDTH"], optional=True),
            Port("rand_weight_i", p["W_RAND_WIDTH"], optional=True),
            code("weight_o", "W"), code("momentum_o", "M"), Port("ovf_weight_o", 1),
            Port("ovf_momentum_o", 1)]


_PORTS = {"quantizer": _quantizer, "mac": _mac, "mac_tiled": _mac, "mac_array": _mac_array,
          "lfsr": _lfsr, "flag_quantizer": _flag_quantizer, "sgd_update": _sgd_update}
