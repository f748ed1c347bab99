"""Ranges: how a rule chooses the binary point of a tensor. Exact; no logarithm, no square root."""

from __future__ import annotations

from math import floor, isfinite

from emu.kind import AnyCast
from emu.number import MAX_FRAC, Cast, Format, Overflow, Rounding
from emu.reference.casts import cast, quantize
from emu.rule import RULE_FRAC, Rule

FLOAT_BITS = 60  # of the largest of a tensor of floats


def cast_by(rule: Rule, codes: list[int], frac: int, last: int | None = None,
            rand: list[int] | None = None) -> tuple[list[int], Format]:
    """(codes, the format at which they are read) of a tensor in the cast that a rule chooses.

    With a rule that reads its codes elsewhere this is the constant quantisation of WAGEUBN and the
    errors and gradients of WAGE (`CQ`, `QE`, `QG`): the direction is kept, the scale dropped. The
    official codes round stochastically on the magnitude, here floor and dither decide: up with
    the probability of the dropped part, which away from zero with that of the magnitude's is.

    >>> cast_by(Rule.parse("s4 auto:shift=f14 ties_even sat_sym"), [-12, 5, 3, 0], 9)
    ([-6, 2, 2, 0], Format.parse('s4f14'))
    """
    to = cast_for(rule, codes, frac, last)
    return [cast(x, frac, to, rand and rand[i]) for i, x in enumerate(codes)], rule.read(to)


def cast_for(rule: Rule, codes: list[int], frac: int, last: int | None = None) -> AnyCast:
    """The cast that a rule chooses by looking at codes of `frac` fraction bits.

    The range is the least 2^e that holds the statistic (`auto:shift`: the nearest one). Zeros
    choose nothing, unless there is a margin: the frac stays at `last`, that of the tensor before,
    or 0 where there was none. A rule that says `@previous` chooses in the same way, but for the
    tensor that follows; the first one is looked at.

    The statistics are those of nics_fix_pytorch (`quant.py`: RANGE_MAX, RANGE_3SIGMA,
    RANGE_MAX_TENPERCENT, which is percentile90, RANGE_SWEEP), on exact integers and with squared
    errors; a margin of 1e-5 is what nics_fix for TensorFlow adds (`quant.py`).

    >>> [cast_for(Rule.parse(f"s4 auto:{scale}"), [1, -2, 0, 3, 9], 0).format.frac
    ...  for scale in ("max", "3sigma", "percentile60", "sweep")]
    [-1, -1, 1, -1]
    """
    if rule.fixed:
        return rule.stored(last)
    if rule.constant is not None:
        return rule.with_frac(rule.constant)
    largest = max(map(abs, codes), default=0)
    if rule.margin:
        return rule.cast_beyond(largest, frac)
    if not largest:
        return rule.with_frac(0 if last is None else last)
    match rule.statistic:
        case "max" | "shift": return rule.cast_for(largest, frac)
        case "3sigma": return _three_sigma(rule, codes, frac)
        case "percentile": return rule.cast_for(_percentile(codes, rule) or largest, frac)
        case "sweep": return _sweep(rule, codes, frac)


def _three_sigma(rule: Rule, codes: list[int], frac: int) -> Cast:
    """2^e >= |mean| + 3 standard deviations of a sample: its variance divides by n - 1.

    With S the sum of n codes and Q that of their squares, the variance is (n Q - S^2) / (n (n - 1))
    and the condition n 2^e - |S| >= 3 sqrt(n (n Q - S^2) / (n - 1)), which is compared by squares.
    One code has no deviation.
    """
    n = len(codes)
    scale = n.bit_length()  # the statistic is at least 1 / n, so that e need not be negative
    codes = [x << scale for x in codes]
    total, squares = sum(codes), sum(x * x for x in codes)
    e = 0
    while ((rest := (n << e) - abs(total)) < 0
           or rest**2 * (n - 1) < 9 * n * (n * squares - total**2)):
        e += 1
    return rule.cast_for(1 << e, frac + scale)


def _percentile(codes: list[int], rule: Rule) -> int:
    """The k-th largest magnitude, k being the share of n beyond the percentile: at least the first.

    So fewer than k magnitudes are larger. 0 where so many are zero; then all the others count.
    """
    k = max(1, floor(len(codes) * (100 - rule.percent) / 100))
    return sorted(map(abs, codes))[-k]


def _sweep(rule: Rule, codes: list[int], frac: int) -> Cast:
    """Of the range that holds the largest, its half and its quarter, that of the least error.

    The error is the sum of squares of what the rule's own cast changes, stochastic rounding taken
    as ties to even; of equal errors the widest range wins. Only within the exponent register.
    """
    widest = rule.cast_for(max(map(abs, codes)), frac)
    modes = widest if rule.rounding != Rounding.STOCHASTIC else Cast(
        widest.format, Rounding.TIES_EVEN, rule.overflow)
    fracs = range(widest.format.frac, min(widest.format.frac + 2, RULE_FRAC) + 1)
    finest = max(frac, *fracs)

    def error(candidate: int) -> int:
        to = modes.with_frac(candidate)
        return sum(((cast(x, frac, to) << finest - candidate) - (x << finest - frac)) ** 2
                   for x in codes)

    return widest.with_frac(min(fracs, key=error))  # the first of equals


def float_codes(values: list[float]) -> tuple[list[int], int]:
    """How floats enter a statistic: as (codes, frac), at most 60 bits, rounded to odd below.

    The largest is below 2^60 in them. `auto:max` looks at that one alone, exactly. Raises
    ValueError for a float that is not finite.
    """
    largest = max((abs(x) for x in values if isfinite(x)), default=0.0)
    numerator, denominator = largest.as_integer_ratio()
    exponent = numerator.bit_length() - denominator.bit_length() + 1  # largest < 2^exponent
    frac = max(-MAX_FRAC, min(MAX_FRAC, FLOAT_BITS - exponent))
    to = Cast(Format(FLOAT_BITS + 3, frac), Rounding.TO_ODD, Overflow.SAT_SYM)
    return [quantize(x, to) for x in values], frac
