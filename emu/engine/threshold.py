"""The gradient of a learned threshold: exact sums over whole arrays."""

import numpy as np

from emu.engine.arrays import largest
from emu.engine.casts import Casted
from emu.number import Cast

DIGIT = 21  # bits: a product has 42, and 2^20 of them fit
TERMS = 1 << 20


def threshold_steps(x: np.ndarray, frac: int, found: Casted, to: Cast) -> tuple[np.ndarray, int]:
    """(int64 steps, their frac): how each cast, `found` of codes x, moves with its range 2^log2_t.

    As `emu.reference.threshold_step`. Those of casts that pass are less than a step of `to`; the
    others are bounds that x is beyond, so that all fit where x does. Raises ValueError where a
    step is more than 2^62 codes of x and one was rounded up to it.
    """
    fine = max(frac, to.format.frac)
    up = fine - to.format.frac
    if up > 62:
        if found.codes.any():
            raise ValueError(f"codes of frac {frac} rounded up to {to}: the step is 2^{up} of "
                             "them; use a smaller threshold")
        up = 0
    steps = found.codes.astype(np.int64) << up
    moved = steps - (x.astype(np.int64) << fine - frac)
    return (np.where(found.inside, moved, steps) if found.outside else moved), fine


def dot_exactly(a: np.ndarray, b: np.ndarray) -> int:
    """The sum of the products of two arrays of codes of one shape, whatever its width."""
    a, b = a.astype(np.int64).reshape(-1), b.astype(np.int64).reshape(-1)
    if largest(a).bit_length() + largest(b).bit_length() + a.size.bit_length() <= 63:
        return int(a @ b)
    total = 0
    for start in range(0, a.size, TERMS):
        parts = [_digits(x[start:start + TERMS]) for x in (a, b)]
        total += sum(int(x @ y) << DIGIT * (i + j) for i, x in enumerate(parts[0])
                     for j, y in enumerate(parts[1]))
    return total


def _digits(x: np.ndarray) -> list[np.ndarray]:
    """The digits of DIGIT bits, the last one with the sign."""
    count = largest(x).bit_length() // DIGIT + 1
    low = [(x >> DIGIT * i) & ((1 << DIGIT) - 1) for i in range(count - 1)]
    return [*low, x >> DIGIT * (count - 1)]
