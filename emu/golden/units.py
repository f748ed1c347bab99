"""The hardware units as vectors see them: fields, Verilog parameters, expected values.

A record is one line of a vector file: the bits on each wire, in field order. What a unit should
answer comes from `emu.reference`, never from an engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from emu.number import Cast, Format, Rounding
from emu.reference import cast, dot_steps, lfsr_draw, overflows, round_shift
from emu.spec import MacSpec

COUNT_WIDTH = 16  # bits of the mac's overflow counter
MAX_LANES = 1024
MAX_SHIFT = 255

Record = tuple[int, ...]


@dataclass(frozen=True)
class Field:
    """One column of a vector file; its name is the port's. `frac` is known for values only."""

    name: str
    width: int
    signed: bool = False
    dir: str = "in"
    frac: int | None = None

    @property
    def digits(self) -> int:
        """Hex digits of the column."""
        return -(-self.width // 4)

    def value(self, bits: int) -> int:
        """The code that the bits on the wire stand for."""
        return bits - (self.signed and bits >> (self.width - 1) << self.width)


@dataclass(frozen=True)
class Unit:
    """One module with its parameters, as the manifest describes it."""

    module: str
    spec: str
    parameters: dict[str, int]
    fields: tuple[Field, ...]
    latency: int  # enabled clocks from a record's inputs to its outputs; 0 is combinational
    source: object = field(compare=False, default=None)  # the spec value, for the cases


def form_field(name: str, form: Format, direction: str = "in", frac: int | None = None) -> Field:
    return Field(name, form.width, form.signed, direction, frac)


# The quantizer


@dataclass(frozen=True)
class QuantizerSpec:
    """Casts codes of `source` to `cast`; the run-time shift may drop fewer bits than that.

    `align` appends zeros first, so that the shift may also move codes to the left.

    >>> str(QuantizerSpec.parse("s16f8 -> s8f4 ties_even sat"))
    's16f8 -> s8f4 ties_even sat'
    """

    source: Format
    cast: Cast
    align: int = 0

    def __post_init__(self):
        if not 0 <= self.align <= 64:
            raise ValueError(f"align {self.align}: 0 to 64 zeros can be appended")

    @classmethod
    def parse(cls, text: str) -> QuantizerSpec:
        """`s16f8 -> s8f4 ties_even sat`, then perhaps `align 4`."""
        source, arrow, target = text.partition("->")
        target, _, align = target.partition(" align ")
        if not arrow or not (align or "0").strip().isdigit():
            raise ValueError(f"quantizer {text!r}: write the format of the codes, an arrow and a "
                             "cast, like 's16f8 -> s8f4 ties_even sat'")
        return cls(Format.parse(source), Cast.parse(target.strip()), int(align or 0))

    def __str__(self) -> str:
        return f"{self.source} -> {self.cast}" + (f" align {self.align}" if self.align else "")

    @property
    def pre_shift(self) -> int:
        """PRE_SHIFT. Zeros beyond 255 change nothing: out of range stays so, and WRAP leaves 0."""
        return min(self.align + max(self.cast.format.frac - self.source.frac, 0), MAX_SHIFT)

    @property
    def max_shift(self) -> int:
        """MAX_SHIFT. Dropping more than 255 bits changes nothing: at most 64 bits of value and
        32 of random operand are above a rest that is all sign from there on."""
        return min(self.align + max(self.source.frac - self.cast.format.frac, 0), MAX_SHIFT)

    @property
    def shift(self) -> int:
        """The shift_i that casts codes of `source` as they are."""
        exact = self.source.frac - self.cast.format.frac + self.pre_shift
        return max(0, min(self.max_shift, exact))


def quantizer_parameters(spec: QuantizerSpec) -> dict[str, int]:
    """The Verilog parameters of hw/rtl/quantizer.v."""
    to = spec.cast
    return {
        "IN_WIDTH": spec.source.width, "IN_SIGNED": int(spec.source.signed),
        "OUT_WIDTH": to.format.width, "OUT_SIGNED": int(to.format.signed),
        "MAX_SHIFT": spec.max_shift, "PRE_SHIFT": spec.pre_shift,
        "ROUNDING": int(to.rounding), "OVERFLOW": int(to.overflow),
        "RAND_WIDTH": to.rand_bits or 1,
    }


def quantizer_unit(spec: QuantizerSpec) -> Unit:
    """The quantizer that computes `spec`."""
    to = spec.cast
    fields = (form_field("value_i", spec.source), Field("shift_i", 8),
              Field("rand_i", to.rand_bits or 1),
              form_field("code_o", to.format, "out", to.format.frac), Field("ovf_o", 1, dir="out"))
    return Unit("quantizer", str(spec), quantizer_parameters(spec), fields, 0, spec)


def quantizer_records(spec: QuantizerSpec, cases: Iterable[tuple[int, int, int]]
                      ) -> Iterator[Record]:
    """(value, shift, rand) of each case to its record; a shift above the greatest counts as it."""
    to, pre_shift, max_shift = spec.cast, spec.pre_shift, spec.max_shift
    in_mask, out_mask = (1 << spec.source.width) - 1, (1 << to.format.width) - 1
    frac, stochastic = to.format.frac, to.rounding == Rounding.STOCHASTIC
    for value, shift, rand in cases:
        n = min(shift, max_shift) - pre_shift
        operand = rand if stochastic else None
        yield (value & in_mask, shift, rand, cast(value, frac + n, to, operand) & out_mask,
               int(overflows(round_shift(value, n, to, operand), to)))


# The MAC


def mac_parameters(mac: MacSpec, pipeline: int = 0, count_width: int = COUNT_WIDTH
                   ) -> dict[str, int]:
    """The Verilog parameters of hw/rtl/mac.v, or of mac_tiled.v where `mac` has two levels.

    Raises ValueError for what it cannot be.
    """
    if mac.lanes > MAX_LANES:
        raise ValueError(f"lanes {mac.lanes}: mac.v takes at most {MAX_LANES} products a step; "
                         "use fewer lanes")
    if not 0 <= pipeline <= 2:
        raise ValueError(f"pipeline {pipeline}: mac.v has 0 to 2 pipeline stages")
    product, acc = mac.product, mac.acc
    one = {
        "A_WIDTH": mac.a.width, "A_SIGNED": int(mac.a.signed),
        "B_WIDTH": mac.b.width, "B_SIGNED": int(mac.b.signed), "LANES": mac.lanes,
        "P_WIDTH": product.format.width, "P_SIGNED": int(product.format.signed),
        "P_SHIFT": max(-product.format.frac, 0), "P_PRE_SHIFT": max(product.format.frac, 0),
        "P_ROUNDING": int(product.rounding), "P_OVERFLOW": int(product.overflow),
        "ACC_WIDTH": acc.format.width, "ACC_SIGNED": int(acc.format.signed),
        "ACC_OVERFLOW": int(acc.overflow), "PIPELINE": pipeline, "COUNT_WIDTH": count_width,
    }
    return one if mac.outer is None else one | _outer_parameters(mac, pipeline)


def _outer_parameters(mac: MacSpec, pipeline: int) -> dict[str, int]:
    if mac.reload and pipeline:
        raise ValueError(f"pipeline {pipeline} with reload: the next step needs the sum of the "
                         "last one at once; use 0")
    outer = mac.outer
    spilled = QuantizerSpec(mac.acc.format, outer)
    return {
        "TILE": mac.tile // mac.lanes, "RELOAD": int(mac.reload),
        "O_WIDTH": outer.format.width, "O_SIGNED": int(outer.format.signed),
        "O_SHIFT": spilled.max_shift, "O_PRE_SHIFT": spilled.pre_shift,
        "O_ROUNDING": int(outer.rounding), "O_OVERFLOW": int(outer.overflow),
    }


def array_parameters(mac: MacSpec, rows: int, cols: int, to: Cast, pipeline: int = 0
                     ) -> dict[str, int]:
    """The Verilog parameters of hw/rtl/mac_array.v, whose requantisers cast sums by `to`."""
    edge = quantizer_parameters(QuantizerSpec(mac.result.format, to))
    levels = {} if mac.outer is not None else {"TILE": 0}
    return {"ROWS": rows, "COLS": cols, **mac_parameters(mac, pipeline), **levels,
            **{name: value for name, value in edge.items() if not name.startswith("IN_")}}


def mac_unit(mac: MacSpec, pipeline: int = 0, count_width: int = COUNT_WIDTH) -> Unit:
    """The mac, or mac_tiled, that computes `mac`, with so many bits in its overflow counter."""
    form, lanes = mac.result.format, mac.lanes
    fields = (Field("load_i", 1), Field("last_i", 1), form_field("bias_i", form),
              Field("a_i", lanes * mac.a.width, lanes == 1 and mac.a.signed),
              Field("b_i", lanes * mac.b.width, lanes == 1 and mac.b.signed),
              Field("valid_o", 1, dir="out"), form_field("acc_o", form, "out", form.frac),
              Field("ovf_o", 1, dir="out"), Field("ovf_count_o", count_width, dir="out"))
    module, levels = ("mac", 1) if mac.outer is None else ("mac_tiled", 2)
    return Unit(module, str(mac), mac_parameters(mac, pipeline, count_width), fields,
                levels + pipeline, mac)


def mac_records(mac: MacSpec, a: list[int], b: list[int], bias: int | None = 0, idle: int = 0,
                count_width: int = COUNT_WIDTH) -> Iterator[Record]:
    """The steps of one dot product; `idle` is what bias_i shows, unheeded, after the first.

    A bias of None is no load: the steps that come first after reset, which leaves zeros.
    """
    mask, full = (1 << mac.result.format.width) - 1, (1 << count_width) - 1
    a_steps, b_steps = _pack(a, mac.a, mac.lanes), _pack(b, mac.b, mac.lanes)
    load, last, count = int(bias is not None), len(a_steps), 0
    shown = (bias if load else idle) & mask
    for a_bits, b_bits, (acc, overflowed) in zip(
            a_steps, b_steps, dot_steps(a, b, mac, bias or 0), strict=True):
        last -= 1
        if overflowed and count < full:
            count += 1
        done = 0 if last else 1
        yield load, done, shown, a_bits, b_bits, done, acc & mask, 1 if count else 0, count
        load, shown = 0, idle & mask


def _pack(codes: Sequence[int], form: Format, lanes: int) -> list[int]:
    """The operand port at each step: `lanes` codes, lane 0 lowest, zeros after the last one."""
    width, mask = form.width, (1 << form.width) - 1
    packed = [code & mask for code in codes]
    if lanes == 1:
        return packed
    return [sum(bits << i * width for i, bits in enumerate(packed[start:start + lanes]))
            for start in range(0, len(packed), lanes)]


def unpack(bits: int, form: Format, lanes: int) -> list[int]:
    """The codes on an operand port, lane 0 lowest."""
    each = [bits >> i * form.width & (1 << form.width) - 1 for i in range(lanes)]
    return [code - (code > form.hi) * (1 << form.width) for code in each]


# The LFSR


def lfsr_unit(rand_bits: int) -> Unit:
    """The lfsr that draws `rand_bits` bits at a time."""
    if not 1 <= rand_bits <= 32:
        raise ValueError(f"lfsr{rand_bits}: a draw has 1 to 32 bits")
    fields = (Field("load_i", 1), Field("state_i", 32), Field("rand_o", rand_bits, dir="out"))
    return Unit("lfsr", f"lfsr{rand_bits}", {"RAND_WIDTH": rand_bits}, fields, 1, rand_bits)


def lfsr_records(rand_bits: int, loads: Iterable[tuple[int | None, int]]) -> Iterator[Record]:
    """(load word, number of draws) of each run; the word is on state_i all the time.

    A word of None is no load: the draws that come first after reset, which leaves the state 1.
    """
    for word, draws in loads:
        state, load = word or 1, word is not None
        for i in range(draws):
            state, rand = lfsr_draw(state, rand_bits)
            yield int(load and i == 0), word if load else 0xFFFFFFFF, rand
