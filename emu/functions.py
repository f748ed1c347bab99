"""Real functions, enclosed so tightly that a table's entries are proved to be rounded correctly.

A value is held as `base + rest`: an exact decimal, and an interval of decimals around the rest, so
that 1 - 10^-99 keeps its 10^-99 at any number of digits. Intervals add, multiply and divide with
directed roundings. Python's `decimal` rounds `exp`, `ln` and `sqrt` correctly, so one step to each
side encloses them. More digits narrow every interval: Ziv's strategy (ACM TOMS 17, 1991).
"""

from __future__ import annotations

import decimal
from collections.abc import Callable
from decimal import Decimal
from functools import cache

FIRST_DIGITS, MOST_DIGITS = 30, 1000
ZERO, ONE = Decimal(0), Decimal(1)
# Bases are codes times powers of two and their products: exact, or decimal.Inexact is raised.
EXACT = decimal.Context(4 * MOST_DIGITS, traps=[decimal.Inexact, decimal.InvalidOperation])


class Undecided(Exception):
    """More digits are needed."""


@cache
def directed(digits: int) -> tuple[decimal.Context, decimal.Context]:
    """The contexts that round toward minus and toward plus infinity."""
    return tuple(decimal.Context(digits, rounding, decimal.MIN_EMIN, decimal.MAX_EMAX,
                                 traps=[decimal.InvalidOperation])
                 for rounding in (decimal.ROUND_FLOOR, decimal.ROUND_CEILING))


@cache
def power_of_two(exponent: int) -> Decimal:
    return Decimal(5**-exponent).scaleb(exponent, EXACT) if exponent < 0 else Decimal(2**exponent)


class Real:
    """A real number from base + low to base + high; what is computed from it has its digits."""

    __slots__ = ("base", "digits", "high", "low")

    def __init__(self, digits: int, base: Decimal | int, low: Decimal = ZERO,
                 high: Decimal = ZERO):
        self.digits, self.base, self.low, self.high = digits, Decimal(base), low, high

    def _lift(self, other: Real | Decimal | int) -> Real:
        return other if isinstance(other, Real) else Real(self.digits, other)

    def __add__(self, other: Real | Decimal | int) -> Real:
        other, (down, up) = self._lift(other), directed(self.digits)
        return Real(self.digits, EXACT.add(self.base, other.base), down.add(self.low, other.low),
                    up.add(self.high, other.high))

    def __neg__(self) -> Real:
        return Real(self.digits, self.base.copy_negate(), self.high.copy_negate(),
                    self.low.copy_negate())

    def __sub__(self, other: Real | Decimal | int) -> Real:
        return self + -self._lift(other)

    def __rsub__(self, other: Decimal | int) -> Real:
        return self._lift(other) - self

    def __mul__(self, other: Real | Decimal | int) -> Real:
        other, (down, up) = self._lift(other), directed(self.digits)
        low = high = ZERO
        rests = (self.low, self.high), (other.low, other.high)
        for p, q in (((self.base,), rests[1]), (rests[0], (other.base,)), rests):
            if any(p) and any(q):
                low = down.add(low, min(down.multiply(x, y) for x in p for y in q))
                high = up.add(high, max(up.multiply(x, y) for x in p for y in q))
        return Real(self.digits, EXACT.multiply(self.base, other.base), low, high)

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other: Real | Decimal | int) -> Real:
        """Divided by a positive value."""
        (low, high), (down, up) = self.ends(), directed(self.digits)
        least, most = self._lift(other).ends()
        if least <= 0:
            raise Undecided
        return Real(self.digits, 0, down.divide(low, least if low < 0 else most),
                    up.divide(high, most if high < 0 else least))

    def ends(self) -> tuple[Decimal, Decimal]:
        """Decimals that enclose the value: equal where it is exact and short enough."""
        down, up = directed(self.digits)
        return down.add(self.base, self.low), up.add(self.base, self.high)

    def to_odd(self, frac: int, least: int, most: int) -> int:
        """The value times 2^frac, floored, with the last bit set if that was not exact.

        What is below `least` or above `most` becomes the whole number next to that bound.
        """
        scaled = self * power_of_two(frac)
        low, high = scaled.ends()
        if high < least or low > most:
            return least - 1 if high < least else most + 1
        if low < least - 1 or high > most + 1:
            raise Undecided
        whole = scaled.base.to_integral_value(decimal.ROUND_FLOOR)
        part = EXACT.subtract(scaled.base, whole)
        low, high = Real(self.digits, part, scaled.low, scaled.high).ends()
        floor = int(low.to_integral_value(decimal.ROUND_FLOOR))
        if low == high == floor:
            return int(whole) + floor
        if floor < low and high < floor + 1:
            return (int(whole) + floor) | 1
        raise Undecided


def monotone(function: str, x: Real) -> Real:
    """`exp` or `ln` of an interval, by its ends."""
    (low, high), context = x.ends(), directed(x.digits)[0]
    below = getattr(context, function)(low)
    above = below if low == high else getattr(context, function)(high)
    return Real(x.digits, 0, context.next_minus(below), context.next_plus(above))


def exp(x: Real) -> Real:
    return Real(x.digits, 1) if x.ends() == (0, 0) else monotone("exp", x)


def neg_log(x: Real) -> Real:
    """-ln(x) of an exact x; infinite at 0."""
    if x.base < 0:
        raise ValueError(f"neg_log of {x.base}: a logarithm has no value below 0; use an unsigned "
                         "input format, or give the entries as codes")
    if x.base == 0:
        return Real(x.digits, 0, Decimal("inf"), Decimal("inf"))
    return Real(x.digits, 0) if x.base == 1 else -monotone("ln", x)


def grad_neg_log(x: Real) -> Real:
    return Real(x.digits, -1) / x if x.base > 0 else -neg_log(x)


def log1p(x: Real) -> Real:
    """ln(1 + x) for x > 0; of a small x, x - x^2/2 < ln(1 + x) < x keeps the digits."""
    high = x.ends()[1]
    if high < ONE.scaleb(-x.digits // 2, EXACT):
        return Real(x.digits, 0, (x - x * x / 2).ends()[0], high)
    return monotone("ln", 1 + x)


def sigmoid(x: Real) -> Real:
    """1 / (1 + exp(-x)), from the side where nothing cancels."""
    if x.ends()[0] > 0:
        return 1 - sigmoid(-x)
    power = exp(x)
    return power / (1 + power)


def grad_sigmoid(x: Real) -> Real:
    share = sigmoid(x)
    return share * (1 - share)


def tanh(x: Real) -> Real:
    return 2 * sigmoid(2 * x) - 1


def softplus(x: Real) -> Real:
    """ln(1 + exp(x))."""
    return x + log1p(exp(-x)) if x.base > 0 else log1p(exp(x))


@cache
def root_of_two_pi(digits: int) -> Real:
    """sqrt(2 pi), by Machin's pi/4 = 4 arctan(1/5) - arctan(1/239) in integers."""
    one, pi, error = 10 ** (2 * digits), 0, 0
    for factor, inverse in ((16, 5), (-4, 239)):
        power, k = one // inverse, 0
        while power:
            pi += factor * (-1) ** k * (power // (2 * k + 1))
            error += 3 * abs(factor)  # two floors for each term, and all that is left out
            power, k = power // inverse**2, k + 1
    down, up = directed(digits)
    low = down.sqrt(down.divide(Decimal(2 * (pi - error)), Decimal(one)))
    high = up.sqrt(up.divide(Decimal(2 * (pi + error)), Decimal(one)))
    return Real(digits, 0, down.next_minus(low), up.next_plus(high))


def density(x: Real) -> Real:
    """exp(-x^2/2) / sqrt(2 pi)."""
    return exp(-(x * x) / 2) / root_of_two_pi(x.digits)


def normal(x: Real) -> Real:
    """The share of a normal distribution below an exact x (Abramowitz and Stegun 26.2.11, 12)."""
    if x.base >= 0:
        return 1 - normal(-x) if x.base else Real(x.digits, Decimal("0.5"))
    height, square = density(x), x * x
    if height.high < ONE.scaleb(-x.digits // 2, EXACT):  # (1 - 1/x^2) h/|x| < share < h/|x|
        most = height / -x
        return Real(x.digits, 0, (most - most / square).ends()[0], most.ends()[1])
    # 1/2 - h * sum of |x|^(2n+1) / (2n+1)!!, in units of 10^-digits, each term from below and from
    # above, until a term is less than half the one before: what follows is less than that term.
    one, n = 10**x.digits, 0
    top, bottom = square.base.as_integer_ratio()
    p, q = (-x).base.as_integer_ratio()
    low, high, sums = one * p // q, -(-one * p // q), [0, 0]
    while high > 1 or 2 * top > (2 * n + 1) * bottom:
        sums, n = [sums[0] + low, sums[1] + high], n + 1
        low = low * top // (bottom * (2 * n + 1))
        high = -(-high * top // (bottom * (2 * n + 1)))
    total = Real(x.digits, 0, Decimal(sums[0]), Decimal(sums[1] + 2 * high)) / Decimal(one)
    return Decimal("0.5") - height * total


def gelu_tanh_inner(x: Real) -> tuple[Real, Real]:
    """2 sqrt(2/pi) (x + 0.044715 x^3), so that gelu_tanh(x) = x sigmoid of it; its derivative."""
    cubic = Decimal("0.044715")
    return tuple(4 * polynomial / root_of_two_pi(x.digits) for polynomial in
                 (x + cubic * x * x * x, 1 + 3 * cubic * x * x))


def grad_gelu_tanh(x: Real) -> Real:
    inner, slope = gelu_tanh_inner(x)
    return sigmoid(inner) + x * grad_sigmoid(inner) * slope


def tanh_softplus(x: Real) -> Real:
    """tanh(ln(1 + exp(x))) = ((1 + e^x)^2 - 1) / ((1 + e^x)^2 + 1), without cancellation."""
    power = exp(x)
    above = power * (power + 2)
    return 1 - Real(x.digits, 2) / (above + 2) if x.base > 0 else above / (above + 2)


def grad_mish(x: Real) -> Real:
    inner = tanh_softplus(x)
    return inner + x * (1 - inner * inner) * sigmoid(x)


def hardsigmoid(x: Real) -> Real:
    return Real(x.digits, min(max(EXACT.add(x.base, 3), 0), 6)) / 6


def grad_hardsigmoid(x: Real) -> Real:
    return Real(x.digits, int(-3 < x.base < 3)) / 6


def grad_hardswish(x: Real) -> Real:
    return x / 3 + Decimal("0.5") if -3 < x.base < 3 else Real(x.digits, int(x.base >= 3))


# Each function of an exact x, and its derivative (at a kink, the one torch uses).
FUNCTIONS: dict[str, tuple[Callable[[Real], Real], Callable[[Real], Real]]] = {
    "exp": (exp, exp),
    "exp_neg": (lambda x: exp(-x), lambda x: -exp(-x)),
    "neg_log": (neg_log, grad_neg_log),
    "sigmoid": (sigmoid, grad_sigmoid),
    "tanh": (tanh, lambda x: 4 * grad_sigmoid(2 * x)),
    "softplus": (softplus, sigmoid),
    "silu": (lambda x: x * sigmoid(x), lambda x: sigmoid(x) + x * grad_sigmoid(x)),
    "gelu": (lambda x: x * normal(x), lambda x: normal(x) + x * density(x)),
    "gelu_tanh": (lambda x: x * sigmoid(gelu_tanh_inner(x)[0]), grad_gelu_tanh),
    "mish": (lambda x: x * tanh_softplus(x), grad_mish),
    "elu": (lambda x: x if x.base > 0 else exp(x) - 1,
            lambda x: Real(x.digits, 1) if x.base > 0 else exp(x)),
    "hardsigmoid": (hardsigmoid, grad_hardsigmoid),
    "hardswish": (lambda x: x * hardsigmoid(x), grad_hardswish),
}


def to_odd(function: str, code: int, code_frac: int, frac: int, least: int, most: int) -> int:
    """The function at code * 2^-code_frac, times 2^frac, to odd, as in `Real.to_odd`.

    `grad_<function>` is its derivative. Raises ValueError where the function has no value.
    """
    name = function.removeprefix("grad_")
    compute, x = FUNCTIONS[name][name != function], EXACT.multiply(code, power_of_two(-code_frac))
    digits = FIRST_DIGITS
    while digits <= MOST_DIGITS:
        try:
            return compute(Real(digits, x)).to_odd(frac, least, most)
        except Undecided:
            digits *= 2
    raise ValueError(f"{function} of {x}: {MOST_DIGITS} digits do not decide its code; give the "
                     "table's entries as codes")
