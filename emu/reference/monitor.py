"""What a MAC and a cast did: every value that they fit, and the account of one output."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from emu.number import Cast
from emu.reference.casts import fit, overflows, round_divide, round_shift
from emu.spec import MacSpec


class Fitted(NamedTuple):
    """One value that a stage of a MAC fits; numbers are in steps of the stage's format.

    A stage is a cast (`product`; `spill`, from acc to outer) or a register (`acc`, `outer`).
    """

    stage: str
    step: int  # of the MAC, from 0
    register: int  # what acc (for a spill: outer) held before
    value: Fraction  # as it came: a cast still has to round it
    rounded: int
    code: int
    exact: int  # for a register, what it would hold if it had no limits since it last started
    handed_on: bool  # to the next stage: always by a cast, by a register when it is full


class CastAccount(NamedTuple):
    """What a cast met; extremes include 0, `error` is of the values in range."""

    values: int
    overflows: int
    low: Fraction
    high: Fraction
    error: Fraction  # sum of (code - value)


class RegisterAccount(NamedTuple):
    """What a register was to hold: the values before they are fitted; extremes include 0.

    An overflow is persistent if a value that the register hands on would not even have fit had it
    had no limits before, and transient otherwise: had it wrapped, nothing would be lost.
    """

    values: int
    overflows: int
    transient: bool
    persistent: bool
    low: int
    high: int
    exact_low: int  # of the register without limits
    exact_high: int


class DotAccount(NamedTuple):
    """What happened in one dot product; a stage that the MAC does not have is None.

    The output's overflow is persistent if a register's is, or if a cast overflowed.
    """

    steps: int
    overflowing_steps: int
    transient: bool
    persistent: bool
    product: CastAccount | None
    acc: RegisterAccount
    spill: CastAccount | None
    outer: RegisterAccount | None
    first: Fitted | None  # the first value that overflowed, in the order of the data flow


def fitted_values(a: list[int], b: list[int], mac: MacSpec, bias: int = 0) -> Iterator[Fitted]:
    """Every value that is fitted while sum(a_k * b_k) is accumulated, in the order of the data."""
    acc = exact = outer = exact_outer = bias
    for start in range(0, len(a), mac.lanes):
        step, stop = start // mac.lanes, min(start + mac.lanes, len(a))
        if mac.outer is not None and start % mac.tile == 0:
            acc = exact = 0
            if mac.reload:
                exact = outer << mac.acc.format.frac - mac.outer.format.frac
                acc = fit(exact, mac.acc)
                yield Fitted("acc", step, 0, Fraction(exact), exact, acc, exact, False)
        total = acc
        for k in range(start, stop):
            rounded = round_shift(a[k] * b[k], -mac.product.format.frac, mac.product)
            code = fit(rounded, mac.product)
            value = a[k] * b[k] * Fraction(2)**mac.product.format.frac
            yield Fitted("product", step, acc, value, rounded, code, rounded, True)
            total, exact = total + code, exact + code
        full = stop == len(a) or (mac.outer is not None and stop % mac.tile == 0)
        code = fit(total, mac.acc)
        yield Fitted("acc", step, acc, Fraction(total), total, code, exact, full)
        acc = code
        if mac.outer is not None and full:
            shift = mac.acc.format.frac - mac.outer.format.frac
            rounded = round_shift(acc, shift, mac.outer)
            code = fit(rounded, mac.outer)
            value = acc / Fraction(2)**shift
            yield Fitted("spill", step, outer, value, rounded, code, rounded, True)
            if mac.reload:
                outer = code
            else:
                total, exact_outer = outer + code, exact_outer + code
                code = fit(total, mac.outer)
                yield Fitted("outer", step, outer, Fraction(total), total, code, exact_outer,
                             stop == len(a))
                outer = code


def watch_dot(a: list[int], b: list[int], mac: MacSpec, bias: int = 0) -> DotAccount:
    """The account of one dot product.

    >>> mac = MacSpec.parse("{a: s8, b: s8, acc: s8 sat}")
    >>> found = watch_dot([100, 100, -100], [1, 1, 1], mac)
    >>> found.transient, found.acc.exact_high, found.first.step, found.first.register
    (True, 200, 1, 100)
    """
    values = list(fitted_values(a, b, mac, bias))
    casts = {"product": mac.product, "acc": mac.acc, "spill": mac.outer, "outer": mac.outer}
    bad = [v for v in values if overflows(v.rounded, casts[v.stage])]
    lost = any(v.handed_on and overflows(v.exact, casts[v.stage]) for v in values)

    def account(stage, start):
        mine = [v for v in values if v.stage == stage]
        if stage in ("product", "spill"):
            return cast_account([(v.value, v.rounded) for v in mine], casts[stage])
        return _register_account(mine, casts[stage], start)

    outer = mac.outer is not None
    return DotAccount(
        -(-len(a) // mac.lanes), len({v.step for v in bad}), bool(bad) and not lost, lost,
        None if mac.exact_product else account("product", 0),
        account("acc", 0 if outer else bias), account("spill", 0) if outer else None,
        account("outer", bias) if outer and not mac.reload else None, bad[0] if bad else None)


def cast_account(values: list[tuple[Fraction, int]], to: Cast) -> CastAccount:
    """The account of a cast that met these values, each with what it was rounded to."""
    inside = [(value, rounded) for value, rounded in values if not overflows(rounded, to)]
    return CastAccount(len(values), len(values) - len(inside),
                       min([Fraction(0), *(value for value, _ in values)]),
                       max([Fraction(0), *(value for value, _ in values)]),
                       sum((rounded - value for value, rounded in inside), Fraction(0)))


def _register_account(values: list[Fitted], to: Cast, start: int) -> RegisterAccount:
    bad = sum(overflows(v.rounded, to) for v in values)
    lost = any(v.handed_on and overflows(v.exact, to) for v in values)
    held, exact = ([0, start, *numbers] for numbers in (
        [v.rounded for v in values], [v.exact for v in values]))
    return RegisterAccount(len(values), bad, bad > 0 and not lost, lost,
                           min(held), max(held), min(exact), max(exact))


def watch_cast(x: int, frac: int, to: Cast, rand: int | None = None) -> CastAccount:
    """The account of one value, a code with `frac` fraction bits."""
    n = frac - to.format.frac
    return cast_account([(x / Fraction(2)**n, round_shift(x, n, to, rand))], to)


def watch_divide(x: int, divisor: int, frac: int, to: Cast) -> CastAccount:
    """The account of one value that is divided: x * 2^-frac / divisor."""
    n = frac - to.format.frac
    rounded = round_divide(x << max(-n, 0), divisor << max(n, 0), to.rounding)
    return cast_account([(x / Fraction(2)**n / divisor, rounded)], to)
