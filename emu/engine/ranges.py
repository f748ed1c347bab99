"""Where a rule puts the binary point of a tensor: statistics of whole arrays, exactly."""

import math

import numpy as np

from emu.engine.arrays import as_codes, check_kind, check_width, flattened, largest
from emu.engine.casts import encode, unwatched
from emu.engine.kernels.jit import CAST, launch
from emu.engine.kernels.ranges import CHUNK, squared_digits
from emu.kind import AnyCast
from emu.number import MAX_FRAC, Cast, Rounding
from emu.rule import RULE_FRAC, Rule

FLOAT_BITS = 60  # of the largest of an array of floats, where a statistic looks at all of them
DIGITS = (0, 32, 32 + 1, 64 + 1, 64, 96)  # exponents of the sums of `squared_digits`


def cast_for(rule: Rule, x, last: int | None) -> AnyCast:
    """The cast a rule becomes for floats `x`; a zero tensor keeps the frac `last` (or takes 0).

    Like `cast_for_codes`, this looks at the tensor itself whether or not the rule is for the
    next one.
    """
    check_kind(rule, "rule", Rule)
    if rule.fixed:
        return rule.stored(last)
    if rule.constant is not None:
        return rule.with_frac(rule.constant)
    most = float(np.max(np.abs(x), initial=0.0))
    if not math.isfinite(most) or not (most or rule.margin):  # encode refuses what is not finite
        return rule.with_frac(0 if last is None else last)
    if rule.statistic not in ("max", "shift"):
        limit = min(MAX_FRAC, FLOAT_BITS - math.frexp(most)[1])
        return cast_for_codes(rule, *encode(x, limit), last)
    numerator, denominator = most.as_integer_ratio()
    choose = rule.cast_beyond if rule.margin else rule.cast_for
    return choose(numerator, denominator.bit_length() - 1)


def cast_for_codes(rule: Rule, codes: np.ndarray, frac: int, last: int | None) -> AnyCast:
    """The cast a rule becomes for codes of `frac` fraction bits; zeros keep the frac `last`."""
    check_kind(rule, "rule", Rule)
    if rule.fixed:
        return rule.stored(last)
    if rule.constant is not None:
        return rule.with_frac(rule.constant)
    codes = as_codes(codes, "codes", dtype=None)
    most = largest(codes)
    if rule.margin:
        return rule.cast_beyond(most, frac)
    if not most:
        return rule.with_frac(0 if last is None else last)
    match rule.statistic:
        case "max" | "shift": return rule.cast_for(most, frac)
        case "3sigma": return _three_sigma(rule, codes, frac)
        case "percentile": return rule.cast_for(_percentile(codes, rule) or most, frac)
        case "sweep": return _sweep(rule, codes, frac, most)
    raise AssertionError(rule.statistic)


def _three_sigma(rule: Rule, codes: np.ndarray, frac: int) -> Cast:
    n, zeros = codes.size, codes.size.bit_length()
    wide = codes.astype(np.int64)
    total = abs((int((wide >> 32).sum()) << 32) + int((wide & 0xFFFFFFFF).sum())) << zeros
    squares = _squares(wide, np.zeros_like(wide)) << 2 * zeros
    # n 2^e >= |S| + r for the least whole r with r^2 (n - 1) >= 9 n (n Q - S^2)
    spread = -(-9 * n * (n * squares - total**2) // max(n - 1, 1))
    root = math.isqrt(spread - 1) + 1 if spread else 0
    return rule.cast_for(-(-(total + root) // n), frac + zeros)


def _percentile(codes: np.ndarray, rule: Rule) -> int:
    k = max(1, int(codes.size * (100 - rule.percent) / 100))
    # The magnitude of the least code is that of an unsigned dtype.
    magnitudes = np.abs(codes).reshape(-1).view(codes.dtype.str.replace("i", "u"))
    return int(np.partition(magnitudes, codes.size - k)[codes.size - k])


def _sweep(rule: Rule, codes: np.ndarray, frac: int, most: int) -> Cast:
    widest = rule.cast_for(most, frac)
    to = widest if rule.rounding != Rounding.STOCHASTIC else Cast(
        widest.format, Rounding.TIES_EVEN, rule.overflow)
    fracs = range(to.format.frac, min(to.format.frac + 2, RULE_FRAC) + 1)
    finest = max(frac, *fracs)
    # Errors in units of the finer of both fracs, whose squares weigh 4^-frac.
    errors = [_error(codes, frac, to.with_frac(f)) << 2 * (finest - max(frac, f)) for f in fracs]
    return widest.with_frac(fracs[errors.index(min(errors))])


def _error(codes: np.ndarray, frac: int, to: Cast) -> int:
    """The sum of squares of what a cast changes, in units of the finer of the two fracs."""
    check_width(to.format)
    cut = unwatched(codes, frac, to).codes
    up, down = max(to.format.frac - frac, 0), max(frac - to.format.frac, 0)
    if largest(codes) << up >= 1 << 63 or largest(cut) << down >= 1 << 63:
        return sum(((y << down) - (x << up)) ** 2 for x, y in
                   zip(codes.reshape(-1).tolist(), cut.reshape(-1).tolist(), strict=True))
    return _squares(codes.astype(np.int64) << up, cut.astype(np.int64) << down)


def _squares(x: np.ndarray, y: np.ndarray) -> int:
    """The exact sum of (x - y)^2 over two int64 arrays."""
    sums = np.zeros((-(-x.size // CHUNK), len(DIGITS)), np.uint64)
    launch(squared_digits, CAST * x.size, flattened(x, np.int64), flattened(y, np.int64), sums)
    return sum(int(digits) << place for digits, place in zip(sums.sum(0), DIGITS, strict=True))
