"""Casts of single numbers on Python ints, for what is done once per channel at any width."""

from collections.abc import Sequence
from fractions import Fraction
from math import isqrt

from emu.engine.kernels.casts import adds_one
from emu.engine.monitor import CastAccount, First, Record, watching
from emu.number import MAX_WIDTH, Cast, Format, Overflow, Rounding


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


def cast_each(exact: Sequence[int], frac: int, to: Cast, divisors: Sequence[int] | None = None,
              rands: Sequence[int] | None = None) -> list[int]:
    """exact * 2^-frac, or that over `divisors`, as codes of `to`: one number for each channel.

    Records itself where someone watches.
    """
    if divisors is None:
        codes = [cast_int(x, frac, to, rand)
                 for x, rand in zip(exact, rands or [None] * len(exact), strict=True)]
    else:
        codes = [divide_int(x, d, frac, to) for x, d in zip(exact, divisors, strict=True)]
    if (scope := watching()) is not None:
        scope.seen.append(_record(scope, exact, frac, to, divisors, rands, codes))
    return codes


def _record(scope, exact, frac: int, to: Cast, divisors, rands, codes: list[int]) -> Record:
    unfitted = Cast(Format(MAX_WIDTH, to.format.frac), to.rounding, Overflow.SAT, to.rand_bits)
    accounts, first = [], None
    for i, (x, code) in enumerate(zip(exact, codes, strict=True)):
        divisor = 1 if divisors is None else divisors[i]
        value = Fraction(x, divisor) * Fraction(2)**(to.format.frac - frac)
        whole = (divide_int(x, divisor, frac, unfitted) if rands is None else
                 cast_int(x, frac, unfitted, rands[i]))
        if whole != code:
            first = first or First((i,), "cast", 0, (x,), (), 0, value)
        accounts.append(CastAccount(1, int(whole != code), min(value, Fraction(0)),
                                    max(value, Fraction(0)),
                                    code - value if whole == code else Fraction(0)))
    return Record("cast" if divisors is None else "divide", scope.label, to, tuple(accounts), first)
