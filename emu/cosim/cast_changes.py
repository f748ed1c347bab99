"""What a quantizer may compute instead of its spec, by one change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from emu.cosim.changes import (
    Case,
    Change,
    Told,
    bits_as,
    each,
    modes,
    other_sign,
    swapped,
    widths,
)
from emu.golden.units import QuantizerSpec
from emu.number import Cast, Format, Rounding
from emu.reference import fit, overflows, round_shift


def cast_changes(spec: QuantizerSpec) -> Iterator[Change]:
    """The likely ones first."""
    to, source = spec.cast, spec.source
    casts = [*modes(to), *widths(to)]
    if to.rounding == Rounding.STOCHASTIC:
        casts += [replace(to, rand_bits=to.rand_bits + by) for by in (1, -1)
                  if 1 <= to.rand_bits + by <= 32]
    known = {to}
    for other in casts:
        if other not in known:
            known.add(other)
            yield Change(swapped("cast", other, to), partial(each, partial(
                _by_cast, spec, other, source)))
    yield Change(swapped("value", other_sign(source), source),
                 partial(each, partial(_by_cast, spec, to, other_sign(source))))
    for by, words in ((1, "one bit more is dropped"), (-1, "one bit less is dropped")):
        yield Change(words, partial(each, partial(_by_cast, spec, to, source, more=by)))
    yield Change("the value is fitted before it is rounded, and may wrap then",
                 partial(each, partial(_fitted_first, spec)))
    if to.rounding == Rounding.STOCHASTIC:
        for words, carries in _dithers(to.rand_bits):
            yield Change(words, partial(each, partial(_dithered, spec, carries)))


def _by_cast(spec: QuantizerSpec, to: Cast, source: Format, case: Case, more: int = 0) -> Told:
    value, shift, rand = case
    operand = rand & (1 << to.rand_bits) - 1 if to.rounding == Rounding.STOCHASTIC else None
    rounded = round_shift(bits_as(value, source), _dropped(spec, shift) + more, to, operand)
    return [(fit(rounded, to), overflows(rounded, to))]


def _dropped(spec: QuantizerSpec, shift: int) -> int:
    return min(shift, spec.max_shift) - spec.pre_shift


def _fitted_first(spec: QuantizerSpec, case: Case) -> Told:
    value, shift, rand = case
    to, n = spec.cast, _dropped(spec, shift)
    floor = round_shift(value, n, Cast(to.format))
    up = round_shift(value, n, to, rand if to.rand_bits else None) - floor
    return [(bits_as(fit(floor, to) + up, to.format), overflows(floor, to))]


def _dithers(bits: int) -> list[tuple[str, Callable[[int, int, int], bool]]]:
    """Wrong ways to carry, from rest, rand and the dropped bits n."""
    return [
        ("the random operand is aligned at its lowest bit",
         lambda rest, rand, n: rest + (rand & (1 << n) - 1) >= 1 << n),
        ("rest + rand must exceed one code, not reach it",
         lambda rest, rand, n: rest + (rand << n >> bits) > 1 << n),
        ("the bits of the random operand are reversed",
         lambda rest, rand, n: rest + (int(f"{rand:0{bits}b}"[::-1], 2) << n >> bits) >= 1 << n),
    ]


def _dithered(spec: QuantizerSpec, carries: Callable[[int, int, int], bool], case: Case) -> Told:
    value, shift, rand = case
    to, n = spec.cast, _dropped(spec, shift)
    rounded = value << -n if n <= 0 else (value >> n) + carries(value & (1 << n) - 1, rand, n)
    return [(fit(rounded, to), overflows(rounded, to))]
