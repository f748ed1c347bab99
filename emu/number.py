"""The values that say what the hardware is: formats, casts, rules, MACs and layers.

Everything here is a frozen value that checks itself once, has one text form, and parses that text
back to an equal value. This file knows of no arrays and does no arithmetic on codes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from enum import IntEnum
from functools import cached_property, lru_cache

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


def unknown(what: str, name: object, known: Iterable[str]) -> ValueError:
    """The error for a name that does not exist, with the nearest one that does."""
    known = [str(k) for k in known]
    folded = {k.lower(): k for k in known}
    near = difflib.get_close_matches(str(name).lower(), folded, n=1)
    hint = f"did you mean {folded[near[0]]!r}? " if near else ""
    return ValueError(f"unknown {what} {name!r}: {hint}known: {', '.join(known)}")


def check_keys(mapping: object, known: Iterable[str], what: str) -> None:
    """Raise ValueError unless `mapping` is a mapping whose keys are all in `known`."""
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{what} {mapping!r}: needs a mapping with keys {', '.join(known)}")
    for key in mapping:
        if key not in known:
            raise unknown(f"{what} key", key, known)


def parse_fields(cls: type, text: str | Mapping, what: str, *needed: str) -> Mapping:
    """The items of a mapping or its text, whose keys are fields of `cls`, among them `needed`."""
    items = parse_mapping(text) if isinstance(text, str) else text
    check_keys(items, [field.name for field in fields(cls)], what)
    missing = [name for name in needed if name not in items]
    if missing:
        raise ValueError(f"{what}: {missing[0]!r} is missing; it needs {', '.join(needed)}")
    return items


def mapping_text(value: object) -> str:
    """The fields of a dataclass that are not None, as a mapping of texts."""
    shown = {field.name: getattr(value, field.name) for field in fields(value)}
    inner = ", ".join(f"{key}: {item}" for key, item in shown.items() if item is not None)
    return "{" + inner + "}"


class _Text:
    """A value with one text form, which its repr shows."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}.parse({str(self)!r})"

    def __getstate__(self) -> dict:
        """The fields: what is worked out from them is worked out anew, in this process."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def hashed_once(cls: type) -> type:
    """A frozen dataclass that works its hash out once: values are the keys of every plan."""
    of_fields = cls.__hash__

    def __hash__(self) -> int:
        found = self.__dict__.get("_hash")
        if found is None:
            found = self.__dict__["_hash"] = of_fields(self)
        return found

    cls.__hash__ = __hash__
    return cls


def _whole(value: object, lo: int, hi: int, what: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or not lo <= value <= hi:
        raise ValueError(f"{what} {value!r}: needs a whole number from {lo} to {hi}")
    return value.__index__()


@hashed_once
@dataclass(frozen=True, repr=False)
class Format(_Text):
    """A fixed-point format: `value = code * 2^-frac`; `frac` may be negative or exceed `width`.

    >>> f = Format.parse("s8f4"); f.lo, f.hi, f.step
    (-128, 127, 0.0625)
    """

    width: int
    frac: int = 0
    signed: bool = True

    def __post_init__(self):
        object.__setattr__(self, "width", _whole(self.width, 1, MAX_WIDTH, "format width"))
        object.__setattr__(self, "frac", _whole(self.frac, -MAX_FRAC, MAX_FRAC, "format frac"))
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
class Cast(_Text):
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


class _Kind(_Text):
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


def normalise_modes(value: _Text, signed: bool, width: int) -> None:
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
        put("rand_bits", _whole(value.rand_bits, 1, MAX_RAND_BITS,
                                "rand_bits of stochastic rounding (stochastic16 has 16)"))
    else:
        put("rand_bits", 0)


def modes_text(value: _Text) -> str:
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


def parse_mapping(text: str) -> dict[str, str]:
    """`{a: s8, acc: s20 sat}` to a dict of texts; a value may be such a mapping itself."""
    body = text.strip()
    if body.startswith("{") and body.endswith("}"):
        body = body[1:-1]
    parts, depth = [""], 0
    for char in body:
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    items = [part.partition(":") for part in parts if part.strip()]
    if depth or any(not colon for _, colon, _ in items):
        raise ValueError(f"mapping {text!r}: write {{key: value, key: value}}")
    keys = [key.strip() for key, _, _ in items]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"mapping {text!r}: {twice!r} stands twice; leave one")
    return {key.strip(): value.strip() for key, _, value in items}
