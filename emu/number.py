"""Formats and casts: what a code means, and how a value becomes one.

This file knows of no arrays and does no arithmetic on codes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, lru_cache

from emu.value import Text, hashed_once, unknown, whole

MAX_WIDTH = 64  # bits of a code
MAX_FRAC = 512  # keeps 2^-frac a normal float64
MAX_OPERAND = 32  # bits of a MAC operand
ACC_WIDTHS = (2, 62)  # bits of an accumulator
MAX_RAND_BITS = 32  # bits of a stochastic operand


class Rounding(IntEnum):
    """Floor plus one bit: when the bit is added. The integers are the Verilog parameter values."""

    TO_NEG = 0  # never
    TO_POS = 1  # rest != 0
    TO_ZERO = 2  # rest != 0 and negative
    TO_AWAY = 3  # rest != 0 and not negative
    TO_ODD = 4  # rest != 0 and the floor is even
    TIES_NEG = 5  # rest > half
    TIES_POS = 6  # rest >= half
    TIES_ZERO = 7  # rest > half, or tie and negative
    TIES_AWAY = 8  # rest > half, or tie and not negative
    TIES_EVEN = 9  # rest > half, or tie and the floor is odd
    TIES_ODD = 10  # rest > half, or tie and the floor is even
    STOCHASTIC = 11  # rest + floor(rand * 2^(n-R)) >= 2^n


class Overflow(IntEnum):
    """What an out-of-range value becomes. The integers are the Verilog parameter values."""

    WRAP = 0  # x modulo 2^width
    SAT = 1  # the nearer bound
    SAT_SYM = 2  # the nearer bound of [-hi, hi]
    SAT_ZERO = 3  # 0


@hashed_once
@dataclass(frozen=True, repr=False)
class Format(Text):
    """A fixed-point format: `value = code * 2^-frac`; `frac` may be negative or exceed `width`.

    >>> f = Format.parse("s8f4"); f.lo, f.hi, f.step
    (-128, 127, 0.0625)
    """

    width: int
    frac: int = 0
    signed: bool = True

    def __post_init__(self):
        object.__setattr__(self, "width", whole(self.width, 1, MAX_WIDTH, "format width"))
        object.__setattr__(self, "frac", whole(self.frac, -MAX_FRAC, MAX_FRAC, "format frac"))
        if self.signed not in (True, False):
            raise ValueError(f"format signed {self.signed!r}: needs True or False")
        object.__setattr__(self, "signed", bool(self.signed))

    @classmethod
    def parse(cls, text: str) -> Format:
        """`s8f4`, `u8f0`, `s20f-2`; `s8` is `s8f0`."""
        match = re.fullmatch(r"([su])(\d+)(?:f(-?\d+))?", str(text).strip())
        if not match:
            raise ValueError(f"format {text!r}: write s or u, the width, then f and the fraction "
                             "bits, like s8f4 or u8")
        sign, width, frac = match.groups()
        return cached_format(int(width), int(frac or 0), sign == "s")

    @classmethod
    def holding(cls, lo: int, hi: int, frac: int = 0) -> Format:
        """The narrowest format whose codes include both `lo` and `hi`; unsigned if `lo >= 0`."""
        if lo > hi:
            raise ValueError(f"codes from {lo} to {hi}: the first is the lower bound")
        if lo >= 0:
            return cached_format(max(1, hi.bit_length()), frac, False)
        return cached_format(1 + max(max(hi, 0).bit_length(), (-lo - 1).bit_length()), frac, True)

    def __str__(self) -> str:
        return f"{'s' if self.signed else 'u'}{self.width}f{self.frac}"

    @cached_property
    def lo(self) -> int:
        """The least code."""
        return -(1 << (self.width - 1)) if self.signed else 0

    @cached_property
    def hi(self) -> int:
        """The greatest code."""
        return (1 << (self.width - self.signed)) - 1

    @property
    def step(self) -> float:
        """The value of one code, 2^-frac: exact, for printing and for the float border."""
        return 2.0**-self.frac

    def with_frac(self, frac: int) -> Format:
        """The same bits with another binary point."""
        return cached_format(self.width, frac, self.signed)


cached_format = lru_cache(1 << 12, typed=True)(Format)  # the same value is the same object


@hashed_once
@dataclass(frozen=True, repr=False)
class Cast(Text):
    """Bring a value into `format`: rounding, then fitting. The only place where bits are lost.

    `rand_bits` is the width R of the random operand and belongs to STOCHASTIC only.

    >>> str(Cast.parse("s8f4 ties_even sat")), str(Cast.parse("s8f4"))
    ('s8f4 ties_even sat', 's8f4 to_neg wrap')
    """

    format: Format
    rounding: Rounding = Rounding.TO_NEG
    overflow: Overflow = Overflow.WRAP
    rand_bits: int = 0

    def __post_init__(self):
        if not isinstance(self.format, Format):
            raise ValueError(f"cast format {self.format!r}: needs a Format; "
                             "Cast.parse takes a text such as 's8f4 ties_even sat'")
        normalise_modes(self, self.format.signed, self.format.width)

    @classmethod
    def parse(cls, text: str) -> Cast:
        """A format, a rounding and an overflow; what is left out is `to_neg` and `wrap`."""
        first, *words = str(text).split() or [""]
        return cached_cast(Format.parse(first), *parse_modes(words, text))

    def __str__(self) -> str:
        return f"{self.format} {modes_text(self)}"

    @cached_property
    def range(self) -> tuple[int, int]:
        """The codes of the overflow mode's own range: narrower than the format's for SAT_SYM."""
        lo, hi = self.format.lo, self.format.hi
        return (-hi if self.overflow == Overflow.SAT_SYM else lo), hi

    def with_frac(self, frac: int) -> Cast:
        """The same bits and modes with another binary point."""
        form = self.format.with_frac(frac)
        return cached_cast(form, self.rounding, self.overflow, self.rand_bits)


cached_cast = lru_cache(1 << 12, typed=True)(Cast)


def normalise_modes(value: Text, signed: bool, width: int) -> None:
    """Check rounding, overflow and rand_bits; bring what cannot matter to one form."""
    put = lambda name, x: object.__setattr__(value, name, x)  # noqa: E731
    for name, kind in (("rounding", Rounding), ("overflow", Overflow)):
        if getattr(value, name) not in list(kind):
            raise ValueError(f"{name} {getattr(value, name)!r}: needs an emu.{kind.__name__}; "
                             "Cast.parse takes a text such as 's8f4 ties_even sat'")
        put(name, kind(getattr(value, name)))
    if value.overflow == Overflow.SAT_SYM and not signed:
        put("overflow", Overflow.SAT)
    if value.overflow == Overflow.SAT_SYM and width < 2:
        raise ValueError(f"width {width} with sat_sym: a symmetric signed range needs at least "
                         "2 bits; use sat")
    if value.rounding == Rounding.STOCHASTIC:
        put("rand_bits", whole(value.rand_bits, 1, MAX_RAND_BITS,
                                "rand_bits of stochastic rounding (stochastic16 has 16)"))
    else:
        put("rand_bits", 0)


def modes_text(value: Text) -> str:
    bits = value.rand_bits or ""
    return f"{value.rounding.name.lower()}{bits} {value.overflow.name.lower()}"


def parse_modes(words: list[str], text: str) -> tuple[Rounding, Overflow, int]:
    rounding, overflow, rand_bits = None, None, 0
    roundings = {r.name.lower(): r for r in Rounding}
    overflows = {o.name.lower(): o for o in Overflow}
    for word in words:
        name, bits = re.fullmatch(r"(.*?)(\d*)", word).groups()
        if name == "stochastic":
            mode, rand_bits = Rounding.STOCHASTIC, int(bits or 0)
        else:
            mode = roundings.get(word, overflows.get(word))
        if mode is None:
            raise unknown(f"mode in {text!r}:", word, [*roundings, *overflows])
        if isinstance(mode, Rounding) and rounding is None:
            rounding = mode
        elif isinstance(mode, Overflow) and overflow is None:
            overflow = mode
        else:
            raise ValueError(f"{text!r}: {word!r} is a second {type(mode).__name__.lower()}; "
                             "a cast has one of each")
    return (Rounding.TO_NEG if rounding is None else rounding,
            Overflow.WRAP if overflow is None else overflow, rand_bits)


def check_cast(name: str, value: object) -> None:
    """Raise ValueError unless the value is a Cast."""
    if not isinstance(value, Cast):
        raise ValueError(f"{name} {value!r}: needs a Cast; Cast.parse takes a text such as "
                         "'s20 sat'")
