"""Tables: a function of one code as a memory of codes, and softmax with cross-entropy made of them.

Values only, as in `spec.py`. The entries of a named function are exact numbers here, rounded once
by the table's cast wherever they are used: the only place where bits are lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from math import ceil

from emu.functions import FUNCTIONS, to_odd
from emu.number import MAX_OPERAND, Cast, Format, Overflow, Rounding, check_cast
from emu.rule import Rule
from emu.value import Text, mapping_text, parse_fields, unknown

MAX_ADDRESS = 16  # bits of a table's input
MAX_EXPONENT = 20  # of the largest input: |x| < 2^20
MAX_QUOTIENT = 60  # bits of what is divided
GUARD_BITS = 2  # below an entry's last bit: one for the tie, one for all that is left
SAMPLED_BITS = 10  # of an input, whose values tell the range of its table
WIDEST = 31  # bits of a derived entry


@dataclass(frozen=True, repr=False)
class Table(Text):
    """A function of one code: an entry of the cast `y` for every code of `x`, from the least on.

    Either `function` names a real function (`FUNCTIONS`, or `grad_` and its name for its
    derivative), and every entry is its correctly rounded value, or `codes` are the entries.

    >>> t = Table.parse("{x: s3f1, y: u4f3 ties_even sat, function: sigmoid}"); t.exact
    (3, 5, 9, 13, 16, 19, 23, 27)
    >>> Table.parse("{x: u2, y: s4, codes: 3 1 -1 -3}").codes
    (3, 1, -1, -3)
    """

    x: Format
    y: Cast
    function: str | None = None
    codes: tuple[int, ...] | None = None

    def __post_init__(self):
        if not isinstance(self.x, Format):
            raise ValueError(f"table x {self.x!r}: needs a Format such as s8f4")
        check_cast("table y", self.y)
        for name, form, most in (("x", self.x, MAX_ADDRESS), ("y", self.y.format, MAX_OPERAND)):
            if form.width > most:
                raise ValueError(f"table {name} {form}: at most {most} bits")
        if (self.function is None) == (self.codes is None):
            raise ValueError(f"table with function {self.function!r} and codes {self.codes!r}: "
                             "give one of them")
        if self.codes is not None:
            self._check_codes()
            return
        if self.function.removeprefix("grad_") not in FUNCTIONS:
            raise unknown("table function", self.function, FUNCTIONS)
        if self.y.rounding == Rounding.STOCHASTIC:
            raise ValueError(f"table y {self.y}: an entry is rounded once, when the table is "
                             "built; use a deterministic rounding")
        if self.x.width - self.x.signed - self.x.frac > MAX_EXPONENT:
            raise ValueError(f"table x {self.x}: magnitudes go up to 2^"
                             f"{self.x.width - self.x.signed - self.x.frac}, a named function "
                             f"takes up to 2^{MAX_EXPONENT}; use a larger frac, or codes")

    def _check_codes(self):
        object.__setattr__(self, "y", Cast(self.y.format))  # nothing is rounded
        if not all(re.fullmatch(r"-?\d+", str(code)) for code in self.codes):
            raise ValueError(f"table codes {self.codes!r}: need whole numbers")
        object.__setattr__(self, "codes", tuple(int(str(code)) for code in self.codes))
        if len(self.codes) != 1 << self.x.width:
            raise ValueError(f"table of {len(self.codes)} codes for x {self.x}: needs "
                             f"{1 << self.x.width}, from code {self.x.lo} to {self.x.hi}")
        low, high = self.y.range
        bad = [code for code in self.codes if not low <= code <= high]
        if bad:
            raise ValueError(f"table code {bad[0]}: outside {self.y.format}, whose codes go from "
                             f"{low} to {high}")

    @classmethod
    def parse(cls, text: str | Mapping | Table) -> Table:
        """A mapping of texts; `codes` are whole numbers between spaces, or a list."""
        if isinstance(text, cls):
            return text
        items = parse_fields(cls, text, "table", "x", "y")
        codes = items.get("codes")
        if isinstance(codes, str):
            codes = codes.split()
        return cls(Format.parse(items["x"]), Cast.parse(items["y"]), items.get("function"),
                   None if codes is None else tuple(codes))

    def __str__(self) -> str:
        if self.codes is None:
            return mapping_text(self)
        return f"{{x: {self.x}, y: {self.y}, codes: {' '.join(map(str, self.codes))}}}"

    @cached_property
    def exact(self) -> tuple[int, ...]:
        """The entries with `exact_frac` fraction bits; their cast to `y` gives its codes.

        Of a function: rounded to odd two bits below y, so that the one rounding of y is that of
        the exact value; beyond the range of y they are cut. Raises ValueError for a value out of
        the range of a `y` that wraps.
        """
        if self.codes is not None:
            return self.codes
        least, most = (bound << GUARD_BITS for bound in self.y.range)
        cut = (least - (1 << GUARD_BITS), most + (1 << GUARD_BITS))
        entries = tuple(to_odd(self.function, code, self.x.frac, self.exact_frac, *cut)
                        for code in range(self.x.lo, self.x.hi + 1))
        for code, entry in zip(range(self.x.lo, self.x.hi + 1), entries, strict=True):
            if self.y.overflow == Overflow.WRAP and not least <= entry <= most:
                raise ValueError(f"table {self}: {self.function} at code {code} is outside "
                                 f"{self.y.format}; write sat, or a wider format")
        return entries

    @property
    def exact_frac(self) -> int:
        """Fraction bits of `exact`."""
        return self.y.format.frac + (GUARD_BITS if self.codes is None else 0)

    def gradient(self, y: Cast) -> Table:
        """The table of the derivative of a named function, in the cast `y`."""
        if self.function is None or self.function.startswith("grad_"):
            raise ValueError(f"table {self}: only a function of {', '.join(FUNCTIONS)} has a "
                             "derivative here; give its table as codes")
        return Table(self.x, y, f"grad_{self.function}")


@lru_cache(256)
def entries_cast(function: str, x: Format, width: int | None = None,
                 rounding: Rounding = Rounding.TIES_EVEN) -> Cast:
    """The cast of a named function's entries where none is given.

    It has the width of `x` (or `width`), saturates, is signed where an entry is negative, and its
    range is the least power of two that holds the finite entries, a 1 too: of every code of x, or
    of 1024 and the greatest where there are more.

    >>> str(entries_cast("sigmoid", Format.parse("s8f4")))
    'u8f8 ties_even sat'
    """
    width = x.width if width is None else width
    frac = WIDEST - _reach(function, x)
    bound = 1 << WIDEST
    codes = [*range(x.lo, x.hi, 1 << max(0, x.width - SAMPLED_BITS)), x.hi]
    entries = [to_odd(function, code, x.frac, frac, -bound, bound) for code in codes]
    finite = [entry for entry in entries if abs(entry) <= bound]
    rule = Rule(width, min(finite) < 0, rounding=rounding, overflow=Overflow.SAT)
    return rule.cast_for(max(map(abs, finite)) + 1, frac)


def _reach(function: str, x: Format) -> int:
    """The integer bits of a bound of the function's magnitude; 64 at most."""
    most = Fraction(max(x.hi, -x.lo)) / Fraction(2) ** x.frac
    if function == "neg_log":
        return max(x.frac, x.width - x.frac).bit_length()  # |ln 2^k| < |k|
    if function.removeprefix("grad_") in ("exp", "exp_neg"):
        return min(64, ceil(most * 3 / 2))  # e < 2^(3/2)
    return max(0, ceil(most).bit_length()) + 1  # |f(x)| < |x| + 2


@dataclass(frozen=True, repr=False)
class SoftmaxSpec(Text):
    """Softmax and cross-entropy on codes: two tables, a sum and a division.

        e_i   = exp table[max(x) - x_i]     the entry is exp(-d 2^-frac) in the cast `exp`
        p_i   = e_i / sum(e), rounded once in the cast `prob`
        error = p - onehot(target)          exact, codes of the format `error`
        loss  = loss table[p_target]        the entry is -ln(p) in the cast `loss`, where given

    >>> str(SoftmaxSpec.parse("{x: s8f4, exp: u16f15 ties_even sat, prob: u8f8 ties_even sat}"))
    '{x: s8f4, exp: u16f15 ties_even sat, prob: u8f8 ties_even sat}'
    """

    x: Format
    exp: Cast
    prob: Cast
    loss: Cast | None = None

    def __post_init__(self):
        for name, value in (("exp", self.exp), ("prob", self.prob)):
            check_cast(f"softmax {name}", value)
            if value.format.signed or value.format.width > MAX_OPERAND - 1:
                raise ValueError(f"softmax {name} {value}: needs an unsigned format of at most "
                                 f"{MAX_OPERAND - 1} bits, as nothing here is negative")
            if not 0 <= value.format.frac <= MAX_OPERAND - 1:
                raise ValueError(f"softmax {name} {value}: its frac goes from 0 to "
                                 f"{MAX_OPERAND - 1}, so that 1 is a whole number of its steps")
            if value.rounding == Rounding.STOCHASTIC:
                raise ValueError(f"softmax {name} {value}: a table or a quotient has no random "
                                 "operand; use a deterministic rounding")
        if self.exp.format.width + self.prob.format.frac > MAX_QUOTIENT:
            raise ValueError(f"softmax exp {self.exp} with prob {self.prob}: their quotient needs "
                             f"{self.exp.format.width + self.prob.format.frac} bits, the limit is "
                             f"{MAX_QUOTIENT}; narrow one of them")
        if self.exp.format.hi < 1 << self.exp.format.frac and self.exp.overflow != Overflow.SAT:
            raise ValueError(f"softmax exp {self.exp}: exp(0) = 1 is outside; use sat, or a frac "
                             f"of at most {self.exp.format.width - 1}")
        if self.loss is not None and self.loss.overflow == Overflow.WRAP:
            raise ValueError(f"softmax loss {self.loss}: -ln(0) is outside every format; use sat")
        self.exp_table, self.loss_table  # noqa: B018 (refuse what no table holds)

    @classmethod
    def derived(cls, x: Format, exp: Cast | None = None, prob: Cast | None = None) -> SoftmaxSpec:
        """The softmax of logits of `x`; the casts that are not given follow from its width.

        For W bits (31 at most): exp `u{2W}f{2W-1}`, prob `u{W}f{W}`, both `ties_even sat`. A signed
        cast stands for the unsigned one of the same codes, as nothing here is negative.

        >>> str(SoftmaxSpec.derived(Format.parse("s8f4")))
        '{x: s8f4, exp: u16f15 ties_even sat, prob: u8f8 ties_even sat}'
        """
        width, modes = min(2 * x.width, WIDEST), (Rounding.TIES_EVEN, Overflow.SAT)
        exp = exp or Cast(Format(width, width - 1, signed=False), *modes)
        prob = prob or Cast(Format(x.width, x.width, signed=False), *modes)
        return cls(x, _unsigned("exp", exp), _unsigned("prob", prob))

    def with_loss(self, loss: Cast) -> SoftmaxSpec:
        """The same with a table of the loss."""
        return SoftmaxSpec(self.x, self.exp, self.prob, loss)

    @classmethod
    def parse(cls, text: str | Mapping | SoftmaxSpec) -> SoftmaxSpec:
        """A mapping of texts."""
        if isinstance(text, cls):
            return text
        items = parse_fields(cls, text, "softmax", "x", "exp", "prob")
        return cls(Format.parse(items["x"]), *(Cast.parse(items[key]) for key in ("exp", "prob")),
                   Cast.parse(items["loss"]) if "loss" in items else None)

    def __str__(self) -> str:
        return mapping_text(self)

    @cached_property
    def exp_table(self) -> Table:
        """exp(-d) of the difference d to the greatest, whose codes are those of x shifted."""
        return Table(Format(self.x.width, self.x.frac, signed=False), self.exp, "exp_neg")

    @cached_property
    def loss_table(self) -> Table | None:
        """-ln(p) of a probability's code; infinite, so cut, at 0."""
        return None if self.loss is None else Table(self.prob.format, self.loss, "neg_log")

    @property
    def one(self) -> int:
        """The code of probability 1."""
        return 1 << self.prob.format.frac

    @cached_property
    def error(self) -> Format:
        """The format of the errors: the narrowest that holds p and p - 1."""
        return Format.holding(-self.one, self.prob.format.hi, self.prob.format.frac)



def _unsigned(name: str, to: Cast) -> Cast:
    """The cast without the sign bit that no code sets."""
    form = to.format
    if not form.signed or form.width < 2:
        return to
    if to.overflow == Overflow.WRAP and form.hi < 1 << max(form.frac, 0):
        raise ValueError(f"softmax {name} {to}: 1 is outside and would wrap below 0; write sat, or "
                         f"a frac of at most {form.width - 2}")
    return Cast(Format(form.width - 1, form.frac, signed=False), to.rounding, to.overflow,
                to.rand_bits)
