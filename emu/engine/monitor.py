"""What the hardware did: a record of every operation inside `with monitor()`.

An operation asks `watching()`, and records itself (`watched.py`) only if that is not None. What
each number is, `emu.reference.watch_dot` and `watch_cast` define, whose names are used here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cache, reduce
from math import floor
from operator import add
from typing import NamedTuple

from emu.number import Cast
from emu.spec import MacSpec


def magnitude(low: int, high: int) -> int:
    """The magnitude bits of two's complement codes from `low` <= 0 to `high` >= 0."""
    return max((~low).bit_length() if low else 0, high.bit_length())


def _either(one, two):
    return two if one is None else one if two is None else one + two


JOINED_BY = {"low": min, "exact_low": min, "high": max, "exact_high": max,
             "product": _either, "acc": _either, "spill": _either, "outer": _either}


@cache
def _joins(kind: type) -> list[tuple]:
    return [(field.name, JOINED_BY.get(field.name, add)) for field in fields(kind)]


class Account:
    """Numbers that are joined by +: counts add up, extremes take the further one."""

    def __add__(self, other):
        return type(self)(*[join(getattr(self, name), getattr(other, name))
                            for name, join in _joins(type(self))])


@dataclass(frozen=True)
class CastAccount(Account):
    """What a cast met: values, those out of its range, and the extremes of what came in.

    `low`, `high` and `error` are exact, in steps of the cast's format; the extremes include 0.
    `error` is the sum of (code - value) over the values in range.
    """

    values: int = 0
    overflows: int = 0
    low: Fraction = Fraction(0)
    high: Fraction = Fraction(0)
    error: Fraction = Fraction(0)

    @property
    def bias(self) -> Fraction:
        """The mean rounding error of the values in range, in steps; 0 where there are none."""
        return self.error / max(self.values - self.overflows, 1)

    @property
    def bits(self) -> int:
        """Magnitude bits of the largest value, rounded to_neg: a format adds its sign."""
        return magnitude(floor(self.low), floor(self.high))


@dataclass(frozen=True)
class RegisterAccount(Account):
    """What a register was to hold, before it was fitted; extremes include 0.

    An output overflowed persistently if a value that the register handed on would not have fit in
    it whatever happened before, and else transiently. `exact_low` and `exact_high` are the
    extremes of the same register without limits.
    """

    values: int = 0
    overflows: int = 0
    transient: int = 0
    persistent: int = 0
    low: int = 0
    high: int = 0
    exact_low: int = 0
    exact_high: int = 0

    @property
    def bits(self) -> int:
        """Magnitude bits of the largest value that it was to hold: a format adds its sign."""
        return magnitude(self.low, self.high)

    @property
    def exact_bits(self) -> int:
        """Magnitude bits with which nothing would have overflowed: a format adds its sign."""
        return magnitude(self.exact_low, self.exact_high)


@dataclass(frozen=True)
class MacAccount(Account):
    """What a MAC did: outputs, steps, and those of both in which a value was out of range.

    A persistent output lost bits for good: a register's overflow was persistent, or a cast
    overflowed. A transient one would be right if the registers wrapped. Stages that the MAC does
    not have are None, and so is an exact product.
    """

    outputs: int = 0
    steps: int = 0
    overflowing_steps: int = 0
    transient: int = 0
    persistent: int = 0
    product: CastAccount | None = None
    acc: RegisterAccount | None = None
    spill: CastAccount | None = None
    outer: RegisterAccount | None = None


@dataclass(frozen=True)
class First:
    """The first overflow: in the first output that has one, row-major, its first in the data flow.

    `register` is what acc (for `spill` and `outer`: outer) held before, `value` what was out of
    range, exactly, in steps of the stage's format; a cast's is not rounded yet. A tensor's cast
    is stage `cast`, with its code as `a`.
    """

    output: tuple[int, ...]
    stage: str
    step: int
    a: tuple[int, ...]
    b: tuple[int, ...]
    register: int
    value: Fraction

    def __str__(self) -> str:
        operands = f", a {list(self.a)}, b {list(self.b)}, register {self.register}"
        return (f"output {list(self.output)}"
                + (f", step {self.step}{operands}: {self.stage}" if self.b else ":")
                + f" {self.value}")


@dataclass(frozen=True)
class Record:
    """One operation, or several at one place joined by +: an account for each output channel.

    The channels are the columns of a matmul and the output channels of a convolution; a cast has
    one, unless the place names an axis. `spec` is that of the first call.
    """

    operation: str
    label: str
    spec: MacSpec | Cast
    channels: tuple[MacAccount, ...] | tuple[CastAccount, ...]
    first: First | None = None
    calls: int = 1

    def __add__(self, other: Record) -> Record:
        if len(self.channels) != len(other.channels):
            raise ValueError(f"{self.label}: records of {len(self.channels)} and "
                             f"{len(other.channels)} channels; join the same operation only")
        return Record(self.operation, self.label, self.spec,
                      tuple(map(add, self.channels, other.channels)),
                      self.first or other.first, self.calls + other.calls)

    @property
    def total(self) -> MacAccount | CastAccount:
        """All channels together."""
        return reduce(add, self.channels,
                      MacAccount() if isinstance(self.spec, MacSpec) else CastAccount())

    def __str__(self) -> str:
        total, name = self.total, " ".join(filter(None, [self.operation, self.label]))
        if isinstance(total, CastAccount):
            text = (f"{total.values} values, {total.overflows} out of range, bias "
                    f"{float(total.bias):+.3f} steps")
        else:
            text = (f"{total.outputs} outputs, {total.transient} overflowed transiently and "
                    f"{total.persistent} persistently; {total.steps} steps, "
                    f"{total.overflowing_steps} overflowed")
        return f"{name} {self.spec}: {text}" + (f"; first {self.first}" if self.first else "")


class Scope(NamedTuple):
    """Where records go, what they are called, and which axis holds the channels."""

    seen: list[Record]
    label: str = ""
    axis: int | None = None


_SCOPE: ContextVar[Scope | None] = ContextVar("emu.monitor", default=None)


@contextmanager
def monitor() -> Iterator[list[Record]]:
    """Record what the hardware does inside: the list fills with a `Record` of every operation.

    Results do not change; a watched MAC is stepped plainly, which takes longer. An inner
    `monitor()` takes the records of what is inside it.

    >>> import emu
    >>> with emu.monitor() as seen:
    ...     codes = emu.cast([24, 40, -24, 900], 4, emu.Cast.parse("s4 ties_even sat"))
    >>> print(seen[0])
    cast s4f0 ties_even sat: 4 values, 1 out of range, bias -0.167 steps; first output [3]: 225/4
    """
    seen: list[Record] = []
    token = _SCOPE.set(Scope(seen))
    try:
        yield seen
    finally:
        _SCOPE.reset(token)


watching = _SCOPE.get  # () -> Scope | None: the innermost `monitor()`, if there is one


@contextmanager
def named(label: str, axis: int | None = None) -> Iterator[None]:
    """Label the records of what is inside; a label inside a label follows it, after a dot.

    `axis` is the one of a tensor's cast, or of a matmul's result, that holds the channels.
    """
    scope = _SCOPE.get()
    if scope is None:
        yield
        return
    token = _SCOPE.set(Scope(scope.seen, ".".join(filter(None, [scope.label, label])), axis))
    try:
        yield
    finally:
        _SCOPE.reset(token)
