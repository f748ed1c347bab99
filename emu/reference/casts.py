"""Casts: rounding, then fitting. The only place where bits are lost."""

from __future__ import annotations

from math import isfinite

from emu.kind import AnyCast, ClosedCast, FlagCast
from emu.number import Cast, Overflow, Rounding


def _round_up(rest: int, whole: int, floor: int, negative: bool, rounding: Rounding) -> bool:
    """Whether the floor plus `rest/whole` is rounded to floor + 1; 0 <= rest < whole."""
    odd, lost, above, tie = floor % 2 == 1, rest > 0, 2 * rest > whole, 2 * rest == whole
    match rounding:
        case Rounding.TO_NEG: return False
        case Rounding.TO_POS: return lost
        case Rounding.TO_ZERO: return lost and negative
        case Rounding.TO_AWAY: return lost and not negative
        case Rounding.TO_ODD: return lost and not odd
        case Rounding.TIES_NEG: return above
        case Rounding.TIES_POS: return above or tie
        case Rounding.TIES_ZERO: return above or (tie and negative)
        case Rounding.TIES_AWAY: return above or (tie and not negative)
        case Rounding.TIES_EVEN: return above or (tie and odd)
        case Rounding.TIES_ODD: return above or (tie and not odd)
    raise ValueError(f"{rounding.name}: needs a random operand, so only a shift can use it; "
                     "divide with a deterministic rounding")


def round_divide(x: int, divisor: int, rounding: Rounding) -> int:
    """x / divisor to a whole number, divisor > 0. Raises ValueError for STOCHASTIC."""
    floor, rest = divmod(x, divisor)
    return floor + _round_up(rest, divisor, floor, x < 0, rounding)


def round_shift(x: int, n: int, to: Cast, rand: int | None = None) -> int:
    """x / 2^n to a whole number, in the rounding of `to`; an exact left shift where n <= 0.

    `rand` is the random operand of STOCHASTIC: R = `to.rand_bits` bits, read as a fraction of 1.
    """
    if to.rounding == Rounding.STOCHASTIC and (rand is None or not 0 <= rand < 1 << to.rand_bits):
        raise ValueError(f"rand {rand}: {to} needs a random operand of {to.rand_bits} bits")
    if n <= 0:
        return x << -n
    if to.rounding != Rounding.STOCHASTIC:
        return round_divide(x, 1 << n, to.rounding)
    floor, rest = divmod(x, 1 << n)
    return floor + (rest + (rand << n >> to.rand_bits) >= 1 << n)


def overflows(x: int, to: Cast | ClosedCast) -> bool:
    """Whether the rounded x is outside the range of `to`'s overflow mode."""
    lo, hi = to.range
    return not lo <= x <= hi


def fit(x: int, to: Cast) -> int:
    """The rounded x as a code of `to`."""
    lo, hi = to.range
    match to.overflow:
        case Overflow.WRAP: return (x - lo) % (1 << to.format.width) + lo
        case Overflow.SAT | Overflow.SAT_SYM: return max(lo, min(hi, x))
        case Overflow.SAT_ZERO: return x if lo <= x <= hi else 0


def cast(x: int, frac: int, to: AnyCast, rand: int | None = None) -> int:
    """A code with `frac` fraction bits as a code of `to`.

    >>> [cast(x, 4, Cast.parse("s4 ties_even sat")) for x in (24, 40, -24, 900)]
    [2, 2, -2, 7]
    """
    if isinstance(to, FlagCast):
        return _flag_cast(x, frac, to, rand)
    if isinstance(to, ClosedCast):
        low, high = to.range
        return max(low, min(high, round_shift(x, frac - to.format.frac, to.cast, rand)))
    return fit(round_shift(x, frac - to.format.frac, to, rand), to)


def _is_coarse(x: int, frac: int, to: FlagCast) -> bool:
    """Whether |x| * 2^-frac is at least one code of the cast in `to`."""
    n = frac - to.cast.format.frac
    return abs(x) << max(-n, 0) >= 1 << max(n, 0)


def _flag_cast(x: int, frac: int, to: FlagCast, rand: int | None) -> int:
    """The integer of a flagged cast, in units of the finer last bit.

    Below one code of the coarse cast the rounded value is 2^k of these at most, which is that code.
    """
    if _is_coarse(x, frac, to):
        return cast(x, frac, to.cast, rand) << to.low
    return round_shift(x, frac - to.format.frac, to.cast, rand)


def flag_pack(code: int, to: FlagCast) -> int:
    """The bits that hold an integer of `to`: the flag on top, below it a code of its cast.

    The flag is 1 where the code counts coarse units, 2^k of the integer's.

    >>> [f"{flag_pack(code, FlagCast.parse('flag s8 ties_even sat_sym')):09b}" for code in
    ...  (127 << 7, -1 << 7, 127, -3, 0)]
    ['101111111', '111111111', '001111111', '011111101', '000000000']
    """
    coarse, rest = divmod(code, 1 << to.low)
    flag = abs(code) >> to.low > 0
    if not to.format.lo <= code <= to.format.hi or (flag and rest):
        raise ValueError(f"code {code}: is none of {to}; cast it first")
    width = to.cast.format.width
    return (flag << width) + ((coarse if flag else code) % (1 << width))


def flag_unpack(bits: int, to: FlagCast) -> int:
    """The integer that the bits hold."""
    form = to.cast.format
    flag, code = divmod(bits, 1 << form.width)
    return ((code - form.lo) % (1 << form.width) + form.lo) << (to.low if flag else 0)


def add(a: int, a_frac: int, b: int, b_frac: int, to: Cast, rand: int | None = None) -> int:
    """Two codes with their own fraction bits, aligned and added exactly, then one cast."""
    return cast(*aligned_sum(a, a_frac, b, b_frac), to, rand)


def aligned_sum(a: int, a_frac: int, b: int, b_frac: int) -> tuple[int, int]:
    """(code, frac) of a + b, exactly, at the finer frac of the two."""
    frac = max(a_frac, b_frac)
    return (a << frac - a_frac) + (b << frac - b_frac), frac


def passes(x: int, frac: int, to: AnyCast, rand: int | None = None) -> bool:
    """The straight-through gradient of the cast: False where saturation changed the value."""
    if isinstance(to, FlagCast):
        return not _is_coarse(x, frac, to) or passes(x, frac, to.cast, rand)
    rounded = round_shift(x, frac - to.format.frac, to, rand)
    return to.overflow == Overflow.WRAP or not overflows(rounded, to)


def quantize(x: float, to: AnyCast, rand: int | None = None) -> int:
    """The float border: a finite float is a fraction over a power of two, cast exactly."""
    if not isfinite(x):
        raise ValueError(f"{x} is not finite; codes hold numbers only")
    numerator, denominator = x.as_integer_ratio()
    return cast(numerator, denominator.bit_length() - 1, to, rand)


def divide(x: int, divisor: int, frac: int, to: Cast) -> int:
    """x * 2^-frac / divisor as a code of `to`: one rounding, then fit."""
    n = frac - to.format.frac
    return fit(round_divide(x << max(-n, 0), divisor << max(n, 0), to.rounding), to)


def relu(x: int) -> int:
    """max(x, 0)."""
    return max(x, 0)


def relu_grad(error: int, x: int) -> int:
    """The error where x > 0, else 0."""
    return error if x > 0 else 0
