"""Affine requantisation: the ratio of real scales as a whole multiplier and a right shift.

Values only, as in `value.py`: frozen, checked once, one text form each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from fractions import Fraction

from emu.number import Cast, Rounding
from emu.value import Text, check_keys, parse_mapping, unknown, whole

MAX_MULTIPLIER = (1 << 31) - 1
MAX_SHIFT = 62
MAX_OUTPUT = 32  # bits of a rescaled code
HIGH = 31  # bits that the doubling high multiply of two int32 drops
# The bits of a multiplier by each rule of `multiplier_and_shift`.
RULES = {"tflite": 31, "tosa32": 31, "tosa16": 15}


@dataclass(frozen=True, repr=False)
class Rescale(Text):
    """Bring an accumulator to the codes of another scale and zero point.

        scaled = round((x - input_zp) * multiplier / 2^shift)
        code   = clamp(fit(scaled + output_zp, to), clamp)

    `multiplier` and `shift` are one for the tensor or one for each channel. `to` has frac 0 and
    gives the rounding and the overflow; `clamp`, by default the range of `to`, is a fused
    activation. With `double`, a shift beyond 31 rounds twice: 31 bits go by TIES_POS, as in
    gemmlowp's SaturatingRoundingDoublingHighMul, and only then the others by `to.rounding`.

    | `to`               | double | is the requantisation of                                      |
    |--------------------|--------|---------------------------------------------------------------|
    | `s8 ties_pos sat`  |        | TOSA SINGLE_ROUND (scale32, scale16), TFLite single rounding  |
    | `s8 ties_away sat` | true   | gemmlowp, TFLite double rounding, TOSA DOUBLE_ROUND (scale32) |
    | `u8 to_neg sat`    |        | a plain multiply and shift                                    |

    TOSA's INEXACT_ROUND is no rule but leave to choose one. Those tools leave a scaled value beyond
    int32 undefined; here it is fitted like any other.

    A quantised layer is exact up to here: subtract the zero points first, as codes minus a zero
    point of 8 bits fit s9, and zeros then pad a convolution. In the MAC `{a: s9, b: s9, acc: s32}`
    the accumulator is matmul(x - x_zp, w - w_zp, mac, bias), the bias a code of that accumulator.

    Source: gemmlowp fixedpoint/fixedpoint.h; tensorflow lite/kernels/internal/common.cc; the
    pseudocode of RESCALE in the TOSA specification.

    >>> str(Rescale.parse("{multiplier: 1992157658, shift: 38, to: s8 ties_pos sat, output_zp: 3}"))
    '{multiplier: 1992157658, shift: 38, to: s8f0 ties_pos sat, output_zp: 3}'
    """

    multiplier: tuple[int, ...]
    shift: tuple[int, ...]
    to: Cast
    double: bool = False
    input_zp: int = 0
    output_zp: int = 0
    clamp: tuple[int, int] | None = None

    def __post_init__(self):
        put = lambda name, x: object.__setattr__(self, name, x)  # noqa: E731
        for name, limit in (("multiplier", MAX_MULTIPLIER), ("shift", MAX_SHIFT)):
            values = getattr(self, name)
            values = values if isinstance(values, Iterable) else [values]
            put(name, tuple(whole(value, 0, limit, f"rescale {name}") for value in values))
        if len(self.shift) == 1:
            put("shift", self.shift * len(self.multiplier))
        if not len(self.multiplier) == len(self.shift) > 0:
            raise ValueError(f"rescale with {len(self.multiplier)} multipliers and "
                             f"{len(self.shift)} shifts: each channel needs one of both")
        if not isinstance(self.to, Cast):
            raise ValueError(f"rescale to {self.to!r}: needs a Cast; Cast.parse takes a text such "
                             "as 's8 ties_pos sat'")
        if self.to.format.frac or self.to.format.width > MAX_OUTPUT:
            raise ValueError(f"rescale to {self.to.format}: needs frac 0 and at most {MAX_OUTPUT} "
                             "bits; the real scale of the result is not part of the hardware")
        if self.to.rounding == Rounding.STOCHASTIC:
            raise ValueError(f"rescale to {self.to}: a rescale has no random operand; use a "
                             "deterministic rounding")
        put("double", bool(self.double))
        if self.double and max(self.shift) <= HIGH:  # the first rounding is the only one
            put("double", False)
            put("to", Cast(self.to.format, Rounding.TIES_POS, self.to.overflow))
        form = self.to.format
        put("input_zp", whole(self.input_zp, -1 << 31, (1 << 31) - 1, "rescale input_zp"))
        put("output_zp", whole(self.output_zp, form.lo, form.hi, f"output_zp of {form}"))
        lo, hi = (whole(x, *self.to.range, f"clamp of {self.to}")
                  for x in (self.to.range if self.clamp is None else self.clamp))
        if lo > hi:
            raise ValueError(f"rescale clamp {lo} {hi}: the first is the lower bound")
        put("clamp", (lo, hi))

    @classmethod
    def parse(cls, text: str | Mapping | Rescale) -> Rescale:
        """A mapping, or its one-line form; lists are whole numbers between blanks."""
        if isinstance(text, cls):
            return text
        items = parse_mapping(text) if isinstance(text, str) else text
        check_keys(items, [f.name for f in fields(cls)], "rescale")
        missing = [key for key in ("multiplier", "shift", "to") if key not in items]
        if missing:
            raise ValueError(f"rescale {text}: {missing[0]!r} is missing; it needs multiplier, "
                             "shift and to")
        return cls(**{key: _FIELDS[key](value) for key, value in items.items()})

    def __str__(self) -> str:
        shift = self.shift if len(set(self.shift)) > 1 else self.shift[:1]
        shown = {"multiplier": _join(self.multiplier), "shift": _join(shift), "to": self.to}
        if self.double:
            shown["double"] = "true"
        for name in ("input_zp", "output_zp"):
            if getattr(self, name):
                shown[name] = getattr(self, name)
        if self.clamp != self.to.range:
            shown["clamp"] = _join(self.clamp)
        return "{" + ", ".join(f"{key}: {value}" for key, value in shown.items()) + "}"


def multiplier_and_shift(real: float | Fraction, rule: str = "tflite") -> tuple[int, int]:
    """A real multiplier >= 0 as (multiplier, right shift), from its exact value.

    real = q * 2^e with 1/2 <= q < 1: the multiplier is q * 2^bits to the nearest, ties up, and the
    shift bits - e; if that is 2^bits, half of it and one shift less. The rules and their ends:

    - `tflite`, 31 bits: where the shift would be above 62 (0, 31), below 1 (2^31 - 1, 1). TFLite
      counts left shifts, 31 minus ours. Source: QuantizeMultiplier in tensorflow
      lite/kernels/internal/quantization_util.cc.
    - `tosa32`, 31 bits, and `tosa16`, 15 bits: where the shift would be above 62, the multiplier
      loses the bits of a shift of 62; below 2 raises ValueError. Source: computeMultiplierAndShift
      in llvm mlir/lib/Dialect/Tosa/Utils/QuantUtils.cpp.

    A tool's own real is the float64 `x_scale * w_scale / y_scale` of its float32 scales.

    >>> multiplier_and_shift(0.007247427341846), multiplier_and_shift(Fraction(27, 10), "tosa16")
    ((1992157658, 38), (22118, 13))
    """
    if rule not in RULES:
        raise unknown("multiplier rule", rule, RULES)
    bits = RULES[rule]
    try:
        top, bottom = real.as_integer_ratio()
    except (AttributeError, OverflowError, ValueError):
        top, bottom = -1, 1
    if top < 0:
        raise ValueError(f"multiplier {real!r}: needs a number from 0 on, such as a float or a "
                         "Fraction")
    if top == 0:
        return 0, bits
    exponent = top.bit_length() - bottom.bit_length()
    exponent += top << max(-exponent, 0) >= bottom << max(exponent, 0)
    shift = bits - exponent
    top, bottom = top << max(shift, 0), bottom << max(-shift, 0)
    multiplier = (2 * top + bottom) // (2 * bottom)
    if multiplier == 1 << bits:
        multiplier, shift = multiplier >> 1, shift - 1
    if rule == "tflite":
        if shift > MAX_SHIFT:
            return 0, bits
        return (multiplier, shift) if shift >= 1 else (MAX_MULTIPLIER, 1)
    if shift < 2:
        raise ValueError(f"multiplier {real}: {rule} has a shift of at least 2, so it ends below "
                         f"2^{bits - 2}; move a power of two to another scale")
    return multiplier >> max(shift - MAX_SHIFT, 0), min(shift, MAX_SHIFT)


def _join(values: Iterable[int]) -> str:
    return " ".join(map(str, values))


def _integers(value: object) -> list[int]:
    words = str(value).split() if isinstance(value, str | int) else value
    try:
        return [int(str(word)) for word in words]
    except (TypeError, ValueError):
        raise ValueError(f"{value!r}: needs whole numbers, with blanks between") from None


def _integer(value: object) -> int:
    found = _integers(value)
    if len(found) != 1:
        raise ValueError(f"{value!r}: needs one whole number")
    return found[0]


def _pair(value: object) -> tuple[int, int]:
    found = _integers(value)
    if len(found) != 2:
        raise ValueError(f"clamp {value!r}: needs two whole numbers, the bounds")
    return found[0], found[1]


def _truth(value: object) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise ValueError(f"double {value!r}: write true or false")
    return str(value).lower() == "true"


_FIELDS = {"multiplier": _integers, "shift": _integers, "double": _truth, "input_zp": _integer,
           "output_zp": _integer, "clamp": _pair,
           "to": lambda value: value if isinstance(value, Cast) else Cast.parse(str(value))}
