"""Real functions between fractions, to judge tables by: every end is exact or rounded outward.

Shares no code with `emu`: series with their remainders, pi as a literal.
"""

from fractions import Fraction
from functools import cache
from math import ceil, floor

UNIT = 1 << 140  # ends are kept as multiples of 2^-140
PI = Fraction("3.14159265358979323846264338327950288419716939937510")  # cut after 50 digits


class Between:
    """A number from lo to hi."""

    def __init__(self, lo, hi=None):
        self.lo, self.hi = Fraction(lo), Fraction(lo if hi is None else hi)

    def trimmed(self):
        return Between(Fraction(floor(self.lo * UNIT), UNIT), Fraction(ceil(self.hi * UNIT), UNIT))

    def __add__(self, other):
        other = lift(other)
        return Between(self.lo + other.lo, self.hi + other.hi)

    def __mul__(self, other):
        other = lift(other)
        corners = [x * y for x in (self.lo, self.hi) for y in (other.lo, other.hi)]
        return Between(min(corners), max(corners)).trimmed()

    def __neg__(self):
        return Between(-self.hi, -self.lo)

    def __sub__(self, other):
        return self + -lift(other)

    def __truediv__(self, other):
        other = lift(other)
        assert other.lo > 0
        return self * Between(1 / other.hi, 1 / other.lo)

    def __rsub__(self, other):
        return lift(other) - self

    def __rtruediv__(self, other):
        return lift(other) / self

    __radd__, __rmul__ = __add__, __mul__


def lift(x):
    return x if isinstance(x, Between) else Between(x)


@cache
def exp_of(q):
    """exp of a fraction: the series of q / 2^k, then k squarings."""
    if q < 0:
        return 1 / exp_of(-q)
    k = max(0, floor(q).bit_length() + 3)
    small, term, total, n = q / 2**k, Between(1), Between(0), 0
    while term.hi * UNIT > 1:
        total, n = total + term, n + 1
        term = term * small * Fraction(1, n)
    total = total + Between(0, 2 * term.hi)  # each later term is less than half the one before
    for _ in range(k):
        total = total * total
    return total


def exp(x):
    x = lift(x)
    return Between(exp_of(x.lo).lo, exp_of(x.hi).hi)


@cache
def log_of(q):
    """ln of a positive fraction: q = 2^k m, and 2 artanh((m - 1) / (m + 1))."""
    k = 0
    while not Fraction(2, 3) < q / Fraction(2) ** k <= Fraction(4, 3):
        k += 1 if q > Fraction(2) ** k else -1
    return artanh_twice(q / Fraction(2) ** k) + k * artanh_twice(Fraction(2))


def artanh_twice(m):
    z, total, n = Fraction(m - 1) / (m + 1), Between(0), 0
    while abs(z) ** (2 * n + 1) * UNIT > 1:
        total, n = total + Between(2 * z ** (2 * n + 1) / (2 * n + 1)).trimmed(), n + 1
    rest = 4 * abs(z) ** (2 * n + 1)
    return total + Between(-rest, rest)


def log(x):
    x = lift(x)
    return Between(log_of(x.lo).lo, log_of(x.hi).hi)


def root(x):
    """The square root, by bisection."""
    ends = []
    for bound, side in ((x.lo, 0), (x.hi, 1)):
        low, high = Fraction(0), bound + 1
        while (high - low) * UNIT > 1:
            middle = (low + high) / 2
            low, high = (middle, high) if middle * middle <= bound else (low, middle)
        ends.append((low, high)[side])
    return Between(*ends)


ROOT_OF_TWO_PI = root(Between(2 * PI, 2 * PI + Fraction(2, 10**50)))


@cache
def normal(q):
    """The share of the normal distribution below q, by its power series; |q| <= 8."""
    term, total, n = Fraction(q), Fraction(0), 0
    while abs(term) * UNIT > 1 or n < q * q:
        total, n = total + Fraction(term, 2 * n + 1), n + 1
        term = -term * q * q / (2 * n)
    return Fraction(1, 2) + (Between(total - abs(term), total + abs(term)) / ROOT_OF_TWO_PI)


def sigmoid(x):
    return 1 / (1 + exp(-lift(x)))


def tanh(x):
    return 1 - 2 / (exp(2 * lift(x)) + 1)


def inner(q):
    """sqrt(2 / pi) (q + 0.044715 q^3) and its derivative."""
    factor, cubic = 2 / ROOT_OF_TWO_PI, Fraction("0.044715")
    return factor * (q + cubic * q**3), factor * (1 + 3 * cubic * q**2)


def grad_gelu_tanh(q):
    u, slope = inner(q)
    return (1 + tanh(u)) * Fraction(1, 2) + q * (1 - tanh(u) * tanh(u)) * slope * Fraction(1, 2)


def grad_mish(q):
    """As the paper of Misra (arXiv 1908.08681) writes it."""
    e = exp(q)
    omega = 4 * (q + 1) + 4 * e * e + e * e * e + e * (4 * q + 6)
    delta = 2 * e + e * e + 2
    return e * omega / (delta * delta)


def hard(q):
    return min(max(q + 3, 0), 6) / Fraction(6)


FUNCTIONS = {
    "exp": exp, "grad_exp": exp,
    "exp_neg": lambda q: exp(-q), "grad_exp_neg": lambda q: -exp(-q),
    "neg_log": lambda q: -log(q), "grad_neg_log": lambda q: -1 / q,
    "sigmoid": sigmoid,
    "grad_sigmoid": lambda q: exp(-q) / ((1 + exp(-q)) * (1 + exp(-q))),
    "tanh": tanh, "grad_tanh": lambda q: 1 - tanh(q) * tanh(q),
    "softplus": lambda q: log(1 + exp(q)), "grad_softplus": sigmoid,
    "silu": lambda q: q * sigmoid(q),
    "grad_silu": lambda q: sigmoid(q) * (1 + q * (1 - sigmoid(q))),
    "gelu": lambda q: q * normal(q),
    "grad_gelu": lambda q: normal(q) + q * exp(-q * q / 2) / ROOT_OF_TWO_PI,
    "gelu_tanh": lambda q: q * (1 + tanh(inner(q)[0])) * Fraction(1, 2),
    "grad_gelu_tanh": grad_gelu_tanh,
    "mish": lambda q: q * tanh(log(1 + exp(q))), "grad_mish": grad_mish,
    "elu": lambda q: q if q > 0 else exp(q) - 1, "grad_elu": lambda q: 1 if q > 0 else exp(q),
    "hardsigmoid": hard, "grad_hardsigmoid": lambda q: Fraction(-3 < q < 3, 6),
    "hardswish": lambda q: q * hard(q),
    "grad_hardswish": lambda q: (2 * q + 3) / 6 if -3 < q < 3 else q >= 3,
}


@cache
def value(function, q):
    """Fractions below and above the value."""
    found = lift(FUNCTIONS[function](q))
    return found.lo, found.hi
