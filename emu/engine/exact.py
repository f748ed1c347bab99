"""Casts of single numbers on Python ints, for what is done once per channel at any width."""

from math import isqrt

from emu.engine.kernels.casts import adds_one
from emu.number import Cast, Overflow, Rounding


def cast_int(x: int, frac: int, to: Cast, rand: int | None = None) -> int:
    """x * 2^-frac as a code of `to`; `rand` is STOCHASTIC's operand."""
    n = frac - to.format.frac
    if to.rounding != Rounding.STOCHASTIC or n <= 0:
        return divide_int(x, 1, frac, to)
    return _fit(x + (rand << n >> to.rand_bits) >> n, to)


def divide_int(x: int, divisor: int, frac: int, to: Cast) -> int:
    """x * 2^-frac / divisor as a code of `to`, one rounding."""
    n = frac - to.format.frac
    top, whole = x << max(-n, 0), divisor << max(n, 0)
    floor, rest = divmod(top, whole)
    return _fit(floor + _adds_one(to, floor, rest, 2 * rest > whole, 2 * rest == whole, x < 0), to)


def root_int(x: int, frac: int, to: Cast) -> int:
    """sqrt(x * 2^-frac) as a code of `to`, one rounding."""
    n = frac - 2 * to.format.frac  # the code is the root of x / 2^n
    top, whole = x << max(-n, 0), 1 << max(n, 0)
    floor = isqrt(top // whole)
    rest = top - floor * floor * whole  # zero where the root is whole; a tie is at floor + 1/2
    half = (4 * floor + 1) * whole
    return _fit(floor + _adds_one(to, floor, rest, 4 * rest > half, 4 * rest == half, False), to)


def _adds_one(to: Cast, floor: int, rest: int, above: bool, tie: bool, negative: bool) -> int:
    return int(rest != 0 and adds_one.py_func(int(to.rounding), floor, above, tie, negative))


def _fit(x: int, to: Cast) -> int:
    low, high = to.range
    if low <= x <= high:
        return x
    if to.overflow == Overflow.WRAP:
        return (x - low) % (1 << to.format.width) + low
    return 0 if to.overflow == Overflow.SAT_ZERO else high if x > high else low
