"""What can be told of one cast: the kind of what it drops, the sign, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator

from emu.number import Cast, Overflow
from emu.reference import overflows

KINDS, SIGNS = ("exact", "below", "tie", "above"), ("negative", "positive")


def kind(x: int, n: int) -> str:
    """What is left over of x / 2^n."""
    whole = 1 << max(n, 0)
    rest = x % whole
    if rest == 0:
        return "exact"
    return "tie" if 2 * rest == whole else "above" if 2 * rest > whole else "below"


def outcomes(to: Cast) -> tuple[str, ...]:
    """What can become of a rounded value."""
    return ("in", "wrap") if to.overflow == Overflow.WRAP else ("in", "low", "high")


def outcome(rounded: int, to: Cast) -> str:
    """What becomes of one."""
    if not overflows(rounded, to):
        return "in"
    if to.overflow == Overflow.WRAP:
        return "wrap"
    return "low" if rounded < to.range[0] else "high"


def near(lo: int, hi: int, n: int, to: Cast) -> Iterator[int]:
    """Of values from lo to hi those around every bound of their cast by 2^n, with every rest.

    For one kind and sign of rest the outcome depends on the floor alone, and changes only where
    the floor, or the code after it, passes a bound; odd and even are both here.
    """
    whole, half = 1 << max(n, 0), (1 << max(n, 0)) // 2
    ends = (lo // whole, hi // whole)
    bounds = [bound >> max(-n, 0) for bound in to.range]
    floors = {end + d for end in (0, *ends, *bounds) for d in (-2, -1, 0, 1, 2)}
    rests = sorted({rest for rest in (0, 1, half - 1, half, half + 1, whole - 1)
                    if 0 <= rest < whole})
    for floor in sorted(floors, key=lambda x: (abs(x), x)):
        yield from (x for x in (floor * whole + rest for rest in rests) if lo <= x <= hi)
