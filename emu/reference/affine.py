"""Affine requantisation: multiply, shift, round once or twice, add the zero point, clamp."""

from __future__ import annotations

from emu.affine import HIGH, Rescale
from emu.number import Rounding
from emu.reference.casts import fit, round_divide


def rescale(x: int, spec: Rescale, channel: int = 0) -> int:
    """The code of an accumulator x; `channel` picks one of several multipliers.

    >>> once = Rescale.parse("{multiplier: 1073741824, shift: 32, to: s8 ties_pos sat}")
    >>> twice = Rescale.parse("{multiplier: 1073741824, shift: 32, to: s8 ties_away sat, "
    ...                       "double: true}")
    >>> [rescale(x, once) for x in (-6, 1)], [rescale(x, twice) for x in (-6, 1)]
    ([-1, 0], [-2, 1])
    """
    multiplier, shift = spec.multiplier[channel], spec.shift[channel]
    first = min(shift, HIGH) if spec.double else 0
    high = round_divide((x - spec.input_zp) * multiplier, 1 << first, Rounding.TIES_POS)
    scaled = round_divide(high, 1 << (shift - first), spec.to.rounding)
    lo, hi = spec.clamp
    return max(lo, min(hi, fit(scaled + spec.output_zp, spec.to)))
