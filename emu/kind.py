"""Casts whose codes are no plain format: flagged numbers, and ranges closed on both sides."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from emu.number import MAX_OPERAND, Cast, Format, Overflow, Rounding, check_cast
from emu.value import Text


class _Kind(Text):
    """A cast in a code of its own; `cast` is what it makes of a plain one, `format` its integers.

    In hardware it computes with integers of `format`, like any operand.
    """

    cast: Cast

    @classmethod
    def parse(cls, text: str) -> _Kind:
        """The word of the kind, then a cast."""
        word, _, rest = str(text).strip().partition(" ")
        if word != cls.word:
            raise ValueError(f"{text!r}: write {cls.word}, then a cast such as s8f7 ties_even sat")
        return cls(Cast.parse(rest))

    def __str__(self) -> str:
        return f"{self.word} {self.cast}"

    @property
    def rounding(self) -> Rounding:
        """That of the cast."""
        return self.cast.rounding

    @property
    def overflow(self) -> Overflow:
        """That of the cast."""
        return self.cast.overflow

    @property
    def rand_bits(self) -> int:
        """That of the cast."""
        return self.cast.rand_bits

    def with_frac(self, frac: int) -> _Kind:
        """The same bits and modes, the integers having this frac."""
        return type(self)(self.cast.with_frac(self.cast.format.frac + frac - self.format.frac))


@dataclass(frozen=True, repr=False)
class FlagCast(_Kind):
    """A cast of large values, and of what is below its last bit in the same number of bits again.

    With k the magnitude bits of `cast`, a value of at least one code of it is cast by it; a smaller
    one is rounded to its 2^-k. So a number has two possible last bits and a flag that says which:
    one bit more than `cast`, where its integers take k more. `emu.reference` packs and unpacks
    them. A MAC may multiply the bits of `cast` and shift the product by 0 or k: it is the same.

    It is flag-QE2 of WAGEUBN (arXiv 1909.02384; `fe2` in yang-yk/wageubn).

    >>> to = FlagCast.parse("flag s8f7 ties_even sat_sym"); to.format
    Format.parse('s15f14')
    """

    cast: Cast
    word = "flag"

    def __post_init__(self):
        _check_kind(self, self.cast, (MAX_OPERAND + 1) // 2)
        if not self.cast.format.signed:
            raise ValueError(f"{self}: a flagged number has a sign; write "
                             f"s{self.cast.format.width}")

    @property
    def low(self) -> int:
        """The magnitude bits k: by how much the finer of the two last bits is finer."""
        return self.cast.format.width - 1

    @cached_property
    def format(self) -> Format:
        """That of the integers in units of the finer last bit."""
        form = self.cast.format
        return Format(form.width + self.low, form.frac + self.low)

    @cached_property
    def range(self) -> tuple[int, int]:
        """The least and the greatest integer."""
        low, high = self.cast.range
        return low << self.low, high << self.low


@dataclass(frozen=True, repr=False)
class ClosedCast(_Kind):
    """A cast that saturates at powers of two on both sides: [-2^k, 2^k] for k magnitude bits.

    Its integers take one bit more than those of `cast`. So the errors E1 of yang-yk/wageubn are
    clipped (`fe1` clips to +-1), and the values of nics_fix_pytorch.

    >>> to = ClosedCast.parse("closed s8f7 ties_even sat"); to.format, to.range
    (Format.parse('s9f7'), (-128, 128))
    """

    cast: Cast
    word = "closed"

    def __post_init__(self):
        _check_kind(self, self.cast, MAX_OPERAND - 1)
        if self.cast.overflow != Overflow.SAT:
            raise ValueError(f"{self}: a closed range saturates; write sat")

    @cached_property
    def format(self) -> Format:
        """That of the integers."""
        form = self.cast.format
        return Format(form.width + 1, form.frac, form.signed)

    @cached_property
    def range(self) -> tuple[int, int]:
        """The least and the greatest integer."""
        most = self.cast.format.hi + 1
        return (-most if self.cast.format.signed else 0), most


def _check_kind(kind: _Kind, cast: object, most: int) -> None:
    check_cast(kind.word, cast)
    if not 1 + cast.format.signed <= cast.format.width <= most:
        raise ValueError(f"{kind.word} {cast}: its integers are operands; use "
                         f"{1 + cast.format.signed} to {most} bits")


AnyCast = Cast | FlagCast | ClosedCast
