"""Flagged casts as vectors see them: hw/rtl/flag_quantizer.v, its records, cases and situations.

A case is (value, shift, random operand), as for a quantizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from random import Random

from emu.golden.situations import KINDS, SIGNS, kind, near, outcome, outcomes
from emu.golden.units import (
    MAX_SHIFT,
    Field,
    QuantizerSpec,
    Record,
    Unit,
    form_field,
    quantizer_parameters,
)
from emu.kind import FlagCast
from emu.number import Cast, Format, Overflow, Rounding
from emu.reference import cast, flag_pack, overflows, round_shift

Case = tuple[int, ...]


@dataclass(frozen=True)
class FlagQuantizerSpec:
    """Casts codes of `source` to flagged ones; otherwise as `QuantizerSpec`.

    >>> str(FlagQuantizerSpec.parse("s16f10 -> flag s8f7 ties_even sat_sym"))
    's16f10 -> flag s8f7 ties_even sat_sym'
    """

    source: Format
    cast: FlagCast
    align: int = 0

    @classmethod
    def parse(cls, text: str) -> FlagQuantizerSpec:
        """As the text of a `QuantizerSpec`, with `flag` before the cast."""
        plain = QuantizerSpec.parse(text.replace("flag ", "", 1))
        return cls(plain.source, FlagCast(plain.cast), plain.align)

    def __str__(self) -> str:
        return str(self.coarse).replace("-> ", "-> flag ")

    @property
    def coarse(self) -> QuantizerSpec:
        """The cast of what is at least one code of it."""
        return QuantizerSpec(self.source, self.cast.cast, self.align)

    @property
    def fine(self) -> Cast:
        """The cast of what is smaller: it fits."""
        to = self.cast
        return Cast(to.format, to.rounding, Overflow.SAT, to.rand_bits)


def flag_parameters(spec: FlagQuantizerSpec) -> dict[str, int]:
    """The Verilog parameters of hw/rtl/flag_quantizer.v."""
    found = quantizer_parameters(spec.coarse)
    del found["OUT_SIGNED"]
    # so many zeros already leave nothing but overflow, or 0
    found["PRE_SHIFT"] = min(found["PRE_SHIFT"], MAX_SHIFT - spec.cast.low)
    return {{"OUT_WIDTH": "WIDTH"}.get(name, name): value for name, value in found.items()}


def flag_unit(spec: FlagQuantizerSpec) -> Unit:
    """The flag_quantizer that computes `spec`."""
    to = spec.cast
    fields = (form_field("value_i", spec.source), Field("shift_i", 8),
              Field("rand_i", to.rand_bits or 1), Field("code_o", to.cast.format.width + 1,
                                                        dir="out"),
              form_field("operand_o", to.format, "out", to.format.frac), Field("ovf_o", 1,
                                                                               dir="out"))
    return Unit("flag_quantizer", str(spec), flag_parameters(spec), fields, 0, spec)


def _fate(spec: FlagQuantizerSpec, case: Case) -> tuple[int, bool, bool]:
    """(bits that the coarse cast drops, whether there is a coarse code, whether that overflows)."""
    value, shift, rand = case
    n = min(shift, spec.coarse.max_shift) - spec.coarse.pre_shift
    is_coarse = abs(value) << max(-n, 0) >= 1 << max(n, 0)
    to = spec.cast.cast
    operand = rand if to.rand_bits else None
    return n, is_coarse, is_coarse and overflows(round_shift(value, n, to, operand), to)


def flag_records(spec: FlagQuantizerSpec, cases: Iterable[Case]) -> Iterator[Record]:
    """Each case to its record; a shift above the greatest counts as it."""
    to = spec.cast
    in_mask, out_mask = (1 << spec.source.width) - 1, (1 << to.format.width) - 1
    for case in cases:
        value, shift, rand = case
        n, _, lost = _fate(spec, case)
        code = cast(value, to.cast.format.frac + n, to, rand if to.rand_bits else None)
        yield (value & in_mask, shift, rand, flag_pack(code, to), code & out_mask, int(lost))


def flag_bins(spec: FlagQuantizerSpec, case: Case) -> Iterator[tuple]:
    """What of one case can be told: of the one cast that it takes."""
    value, _, rand = case
    n, is_coarse, _ = _fate(spec, case)
    to, drop = (spec.cast.cast, n) if is_coarse else (spec.fine, n - spec.cast.low)
    rounded = round_shift(value, drop, to, rand if to.rand_bits else None)
    yield ("coarse" if is_coarse else "fine", max(drop, 0), kind(value, drop), SIGNS[value >= 0],
           outcome(rounded, to))


def all_flag_bins(spec: FlagQuantizerSpec) -> list[tuple]:
    """Every combination, whether or not it can be."""
    most = spec.coarse.max_shift - spec.coarse.pre_shift
    return [bin_ for name, drop, to in (("coarse", most, spec.cast.cast),
                                        ("fine", most - spec.cast.low, spec.fine))
            for bin_ in product([name], range(max(drop, 0) + 1), KINDS, SIGNS, outcomes(to))]


def flag_aimed(spec: FlagQuantizerSpec) -> Iterator[Case]:
    """The values around every bound of either cast, and around the one between them."""
    source, top = spec.source, (1 << spec.cast.rand_bits) - 1
    for shift in range(spec.coarse.max_shift + 1):
        n = shift - spec.coarse.pre_shift
        values = [*near(source.lo, source.hi, n, spec.cast.cast),
                  *near(source.lo, source.hi, n - spec.cast.low, spec.fine)]
        one, step = 1 << max(n, 0), 1 << max(n - spec.cast.low, 0)
        values += [sign * (one + d) for sign in (1, -1)
                   for d in (-step, -step // 2 - 1, -step // 2, -1, 0, 1)]
        for value in values:
            if source.lo <= value <= source.hi:
                yield from ((value, shift, rand) for rand in sorted({0, top}))


def flag_plan(unit: Unit, random: Random, count: int) -> list[tuple[str, list[Case]]]:
    """The cases of a unit, class by class."""
    spec: FlagQuantizerSpec = unit.source
    source, to = spec.source, spec.cast
    top, most = (1 << to.rand_bits) - 1, spec.coarse.max_shift
    dither = []
    for shift, rand in product(range(most + 1), (0, 1, top // 2, top // 2 + 1, top - 1, top)):
        for n in (shift - spec.coarse.pre_shift, shift - spec.coarse.pre_shift - to.low):
            if to.rounding == Rounding.STOCHASTIC and n > 0:
                carry = (1 << n) - (rand << n >> to.rand_bits)  # the rest that carries
                dither += [(((floor << n) + carry - below), shift, rand)
                           for floor in (-2, -1, 0, 1) for below in (0, 1)]
    bits = lambda: random.getrandbits(spec.source.width)  # noqa: E731
    picked = [(source.lo + bits() >> random.randrange(source.width), random.randint(0, most),
               random.randint(0, top)) for _ in range(2 * count)]
    beyond = [(value, 255, random.randint(0, top)) for value in (source.lo, 0, source.hi)]
    return [(name, [case for case in cases if source.lo <= case[0] <= source.hi])
            for name, cases in (("bounds", [*beyond, *flag_aimed(spec)]), ("dither", dither),
                                ("random", picked))]
