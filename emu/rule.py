"""Rules: casts whose binary point is chosen for each tensor, from its codes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

from emu.kind import AnyCast, ClosedCast, FlagCast
from emu.number import (
    Cast,
    Format,
    Overflow,
    Rounding,
    cached_cast,
    cached_format,
    modes_text,
    normalise_modes,
    parse_modes,
)
from emu.value import Text, unknown

SCALE = re.compile(r"(?:auto:(?P<statistic>max|shift|3sigma|sweep|percentile(?=\d))"
                   r"(?P<percent>(?<=percentile)\d+(?:\.\d+)?)?"
                   r"(?P<margin>(?<=max)\+(?:\d+\.\d+(?:e-?\d+)?|\d+e-?\d+))?"
                   r"(?:\+(?P<spare>\d+))?(?P<previous>@previous)?"
                   r"|f(?P<constant>-?\d+)(?==))(?:=f(?P<read>-?\d+))?")
KINDS = ("flag", "closed")  # what may stand before a cast
FIXED = "fixed"  # the scale of a rule that takes the binary point that is stored
LEARNED = "learned"  # and of one whose binary point follows from a threshold that is trained
RULE_FRAC = 96  # a rule's exponent register; keeps 2^-frac a normal float32


@dataclass(frozen=True, repr=False)
class Rule(Text):
    """A cast whose binary point is chosen for each tensor, from its codes.

    The range is the least power of two that holds a statistic of the tensor x:

    - `auto:max`: the largest |x|; `auto:max+1e-5`: and a margin, also for zeros;
    - `auto:shift`: the nearest power of two to the largest |x|, by their logarithms; that may be
      exceeded by a factor of sqrt(2) (R of WAGE, arXiv 1802.04680);
    - `auto:3sigma`: |mean| and three standard deviations;
    - `auto:percentile99.9`: the largest |x| but for 0.1 % of them;
    - `auto:sweep`: of the range of `auto:max`, its half and its quarter the one with the least
      squared error.

    `auto:shift+1` makes the range 2^1 times as wide, which leaves a bit above the statistic. With
    `@previous` after it, the statistic of the tensor before this one decides, as in hardware
    that cannot look ahead. `emu.reference` defines each statistic exactly. `fixed` chooses nothing:
    it takes the binary point that another rule left for this tensor, and `learned` the one of a
    threshold t that is trained by gradient: the range is the least power of two that holds t.

    With `=f14` at the end the codes are *read* at another binary point than was chosen for them,
    always this one: so WAGE drops the scale of its errors, and WAGEUBN gives gradients a constant
    last bit. `f1=f4` is a chosen binary point that is constant too: a shift by a constant.

    `flag` or `closed` before the format make it a `FlagCast` or a `ClosedCast`.

    >>> str(Rule.parse("s8 auto:max ties_even sat").cast_for(largest=100, frac=4))
    's8f4 ties_even sat'
    """

    width: int
    signed: bool = True
    scale: str = "auto:max"
    rounding: Rounding = Rounding.TO_NEG
    overflow: Overflow = Overflow.WRAP
    rand_bits: int = 0
    kind: str = ""

    def __post_init__(self):
        form = Format(self.width, 0, self.signed)
        object.__setattr__(self, "width", form.width)
        object.__setattr__(self, "signed", form.signed)
        object.__setattr__(self, "scale", _scale(str(self.scale)))
        normalise_modes(self, self.signed, self.width)
        if self.learned and self.overflow not in (Overflow.SAT, Overflow.SAT_SYM):
            raise ValueError(f"{self}: a threshold is learned by what saturates at it; use sat or "
                             "sat_sym")
        if self.kind and self.kind not in KINDS:
            raise unknown("kind of cast", self.kind, KINDS)
        if self.kind and (self.learned or self.scale.startswith("auto:sweep")):
            raise ValueError(f"{self}: {self.scale} is of plain casts; use auto:max or auto:shift")
        self.with_frac(0)  # which checks the kind

    @classmethod
    def parse(cls, text: str) -> Rule:
        """A kind if any, a format without frac, a scale rule, a rounding and an overflow."""
        kind, _, rest = str(text).strip().partition(" ")
        if kind in KINDS:
            return replace(cls.parse(rest), kind=kind)
        first, scale, *words = str(text).split() if len(str(text).split()) > 1 else (text, "")
        form = Format.parse(first)
        if "f" in first:
            raise ValueError(f"rule {text!r}: {first!r} fixes the binary point that {scale!r} "
                             f"is to choose; write {first.split('f')[0]!r}")
        return cls(form.width, form.signed, scale, *parse_modes(words, text))

    def __str__(self) -> str:
        form = f"{'s' if self.signed else 'u'}{self.width}"
        return f"{self.kind} {form} {self.scale} {modes_text(self)}".strip()

    @cached_property
    def _parts(self) -> Mapping[str, str | None]:
        """The words of the scale."""
        return dict.fromkeys(SCALE.groupindex) if self.fixed else SCALE.fullmatch(
            self.scale).groupdict()

    @property
    def statistic(self) -> str:
        """What of a tensor decides: `max`, `shift`, `3sigma`, `percentile` or `sweep`."""
        return self._parts["statistic"]

    @property
    def constant(self) -> int | None:
        """The binary point, where no tensor decides."""
        text = self._parts["constant"]
        return None if text is None else int(text)

    @property
    def spare(self) -> int:
        """By how many bits the range is wider than what decides asks for."""
        return int(self._parts["spare"] or 0)

    @property
    def operand(self) -> Format:
        """The format of the integers in units of their last bit, as a MAC has them."""
        return self.with_frac(0).format

    def read(self, to: AnyCast) -> Format:
        """The format at which the codes of `to` are read, one of the casts that this becomes."""
        text = self._parts["read"]
        return to.format if text is None else to.format.with_frac(int(text))

    @property
    def fixed(self) -> bool:
        """Whether a binary point that is stored decides, whatever the tensor."""
        return self.scale in (FIXED, LEARNED)

    @property
    def learned(self) -> bool:
        """Whether a threshold that is trained decides."""
        return self.scale == LEARNED

    @property
    def percent(self) -> Fraction:
        """How many percent of a tensor a percentile's range is to hold."""
        return Fraction(self._parts["percent"])

    @property
    def margin(self) -> Fraction:
        """What the largest |x| is raised by, before the range is chosen."""
        return Fraction(self._parts["margin"] or 0)

    @property
    def previous(self) -> bool:
        """Whether the tensor before the one that is cast decides."""
        return "@previous" in self.scale

    def with_frac(self, frac: int) -> AnyCast:
        """The cast this rule becomes once the binary point of its integers is known."""
        if not self.kind:
            form = cached_format(self.width, frac, self.signed)
            return cached_cast(form, self.rounding, self.overflow, self.rand_bits)
        to = Cast(Format(self.width, 0, self.signed), self.rounding, self.overflow, self.rand_bits)
        return {"flag": FlagCast, "closed": ClosedCast}[self.kind](to).with_frac(frac)

    def stored(self, frac: int | None) -> AnyCast:
        """The cast of a `fixed` rule; raises ValueError where no binary point is stored."""
        if frac is None:
            raise ValueError(f"{self}: no binary point is stored; train with an auto rule first, "
                             "load a state that has one, or write a format such as s8f4")
        return self.with_frac(frac)

    def cast_for(self, largest: int, frac: int) -> AnyCast:
        """The cast whose range holds a magnitude `largest` > 0 of `frac` fraction bits.

        With `auto:shift` the range is the power of two nearest to it, so it may not: log2 of m is
        above k + 1/2 where m^2 > 2^(2k + 1), and never equal, that being no square.
        The chosen frac stays within +-96, as the exponent register of real hardware ends too.
        """
        if self.constant is not None:
            return self.with_frac(self.constant)
        if largest < 1:
            raise ValueError(f"largest {largest}: zeros choose no binary point; with_frac takes "
                             "the last one")
        if self.statistic == "shift":
            floor = largest.bit_length() - 1
            return self.with_range(floor + (largest * largest >> 2 * floor + 1) - frac)
        return self.with_range((largest - 1).bit_length() - frac)  # its ceil(log2), exactly

    def cast_beyond(self, largest: int, frac: int) -> AnyCast:
        """The cast whose range holds the margin and a magnitude `largest` >= 0 of `frac`."""
        bound = Fraction(largest) / Fraction(2) ** frac + self.margin
        # ceil(log2(p / q)) for whole p and q: the least e with p <= q 2^e
        p, q = bound.numerator, bound.denominator
        e = p.bit_length() - q.bit_length()
        return self.with_range(e if p << max(-e, 0) <= q << max(e, 0) else e + 1)

    def with_range(self, exponent: int) -> AnyCast:
        """The cast whose range is 2^exponent: [-2^exponent, 2^exponent), or from 0 on."""
        magnitude = self.width - self.signed  # bits, and as many again below a flag
        frac = magnitude * (2 if self.kind == "flag" else 1) - exponent - self.spare
        return self.with_frac(max(-RULE_FRAC, min(RULE_FRAC, frac)))


def _scale(text: str) -> str:
    """A scale rule in its one spelling."""
    if text in (FIXED, LEARNED):
        return text
    match = SCALE.fullmatch(text)
    if not match:
        raise unknown("scale rule", text, ["auto:max", "auto:max+1e-5", "auto:shift", "auto:3sigma",
                                           "auto:percentile99.9", "auto:sweep", "each with "
                                           "+1, @previous and =f7", "f1=f4", FIXED, LEARNED])
    read = "" if match["read"] is None else f"=f{int(match['read'])}"
    if match["constant"] is not None:
        return f"f{int(match['constant'])}{read}"
    name = match["statistic"]
    if match["margin"]:
        margin = Fraction(match["margin"])
        if not 0 < margin <= 1:
            raise ValueError(f"{text!r}: a margin is above 0 and at most 1; auto:max has none")
        name += f"+{float(margin)!r}"
    if match["percent"]:
        percent = Fraction(match["percent"])
        if not 0 < percent <= 100:
            raise ValueError(f"{text}: a percentile is above 0 and at most 100")
        whole, _, part = match["percent"].partition(".")
        name += f"{int(whole)}.{part}".rstrip("0").rstrip(".")
        if percent == 100:
            name = "max"  # the same hardware
    spare = int(match["spare"] or 0)
    if spare > RULE_FRAC:
        raise ValueError(f"{text}: a range is wider by at most {RULE_FRAC} bits")
    return f"auto:{name}{f'+{spare}' * (spare > 0)}{match['previous'] or ''}{read}"


def parse_cast(value: str | AnyCast | Rule) -> AnyCast | Rule:
    """A cast of any kind or a Rule from its text; a value passes through."""
    if isinstance(value, AnyCast | Rule):
        return value
    modes = [mode.name.lower() for kind in (Rounding, Overflow) for mode in kind]
    kind, *words = str(value).split() or [""]
    for word in words:  # a misspelt one counts as what it is most like
        near = difflib.get_close_matches(word, [FIXED, LEARNED, *modes], 1, 0.65)
        if word.startswith("auto") or "=" in word or near in ([FIXED], [LEARNED]):
            return Rule.parse(value)
    return {"flag": FlagCast, "closed": ClosedCast}.get(kind, Cast).parse(value)
