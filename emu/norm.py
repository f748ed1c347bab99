"""What batch norm is in hardware: its statistics, its normalisation and its gradients.

Values only, as in `spec.py`. What is done once per channel (sums, means, roots, reciprocals) is
exact or named by a cast, of any width; what is done per element fits int64 by the spec alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

from emu.number import ACC_WIDTHS, MAX_OPERAND, Cast, Format, Rounding, check_cast
from emu.value import Text, mapping_text, parse_fields, whole

INT64 = (-(1 << 63), (1 << 63) - 1)
QUOTIENT = (1 - (1 << 60), (1 << 60) - 1)  # what is divided

_DITHERED = ("y", "grad_x", "grad_gamma", "grad_beta", "running mean", "running var")


@dataclass(frozen=True, repr=False)
class RunningSpec(Text):
    """Running statistics: `running' = cast(running + momentum * (batch - running))`, exact inside.

    `mean` and `var` are their casts, `momentum` is the cast of the float hyperparameter (a shift
    by s is code 1 of frac s). `unbiased` divides the variance that enters by n - 1, as torch does.
    """

    mean: Cast
    var: Cast
    momentum: Cast
    unbiased: bool = False

    def __post_init__(self):
        _check("running mean", self.mean, ACC_WIDTHS[1])
        _check("running var", self.var, ACC_WIDTHS[1], signed=False)
        _check("running momentum", self.momentum, MAX_OPERAND - 1)
        object.__setattr__(self, "unbiased", self.truth(self.unbiased))

    @staticmethod
    def truth(value: object) -> bool:
        """Whether a text says true; raises ValueError where it says neither."""
        if str(value).lower() not in ("true", "false"):
            raise ValueError(f"running unbiased {value!r}: write true or false")
        return str(value).lower() == "true"

    @classmethod
    def parse(cls, text: str | Mapping | RunningSpec) -> RunningSpec:
        """A mapping of texts."""
        return _parse(cls, text, "running", "mean", "var", "momentum")

    def __str__(self) -> str:
        return mapping_text(self)


@dataclass(frozen=True, repr=False)
class NormGradSpec(Text):
    """The backward pass of batch norm over the n elements of a channel.

        grad_beta  = cast(sum of error)                 grad_gamma = cast(sum of error * xhat)
        mean_error = cast(sum of error / n)             mean_product = cast(sum(error * xhat) / n)
        scale      = cast(gamma / std)                  or of gamma * reciprocal
        grad_x     = cast(scale * (error - mean_error - xhat * mean_product))

    `error` is the format of the errors that arrive. The sums are exact, of any width.
    """

    error: Format
    mean_error: Cast
    mean_product: Cast
    scale: Cast
    grad_x: Cast
    grad_gamma: Cast
    grad_beta: Cast

    def __post_init__(self):
        _check_operand("error", self.error)
        for name in ("mean_error", "mean_product", "scale"):
            _check(name, getattr(self, name), MAX_OPERAND)
        for name in ("grad_x", "grad_gamma", "grad_beta"):
            _check(name, getattr(self, name), ACC_WIDTHS[1])

    @classmethod
    def parse(cls, text: str | Mapping | NormGradSpec) -> NormGradSpec:
        """A mapping of texts."""
        return _parse(cls, text, "backward", *(f.name for f in fields(cls)))

    def __str__(self) -> str:
        return mapping_text(self)


@dataclass(frozen=True, repr=False)
class NormSpec(Text):
    """Batch norm on codes of `x`; every number after the exact sums has a named cast.

        mean = cast(sum x / n)             var = cast((n sum x^2 - (sum x)^2) / n^2)
        std  = cast(sqrt(var + eps_var)) + eps_std, at least one code
        xhat = cast((x - mean) / std)      or of (x - mean) * cast(1 / std, reciprocal)
        y    = cast(gamma * xhat + beta)

    `eps_var` and `eps_std` are codes of `var` and `std`. The root is rounded once, from the code of
    var; with `var` `to_odd` at a frac of 2 std.frac + 3 or more, std is the exact deviation rounded
    once. `gamma` and `beta` are the casts of the parameters. A division and a root are rounded
    deterministically; y, the running statistics and the three gradients may be stochastic.

    `eps_var` is torch's epsilon; `eps_std`, of one code, that of yang-yk/wageubn (BatchNorm.py),
    whose casts and straight-through gradients these are (arXiv 1909.02384).

    >>> spec = NormSpec.parse("{x: s8f4, mean: s16f8, var: u24f12, std: u16f8, xhat: s16f12, "
    ...                       "gamma: s8f6, beta: s8f4, y: s8f4 ties_even sat, eps_var: 1}")
    >>> spec.xhat, spec.eps_var
    (Cast.parse('s16f12 to_neg wrap'), 1)
    """

    x: Format
    mean: Cast
    var: Cast
    std: Cast
    xhat: Cast
    gamma: Cast
    beta: Cast
    y: Cast
    eps_var: int = 0
    eps_std: int = 0
    reciprocal: Cast | None = None
    running: RunningSpec | None = None
    backward: NormGradSpec | None = None

    def __post_init__(self):
        _check_operand("x", self.x)
        for name in ("mean", "xhat", "gamma", "beta"):
            _check(name, getattr(self, name), MAX_OPERAND, dithered=name in ("gamma", "beta"))
        _check("var", self.var, ACC_WIDTHS[1], signed=False)
        _check("std", self.std, MAX_OPERAND - 1, signed=False)
        _check("y", self.y, ACC_WIDTHS[1])
        if self.reciprocal is not None:
            _check("reciprocal", self.reciprocal, MAX_OPERAND)
        for name, most in (("eps_var", 1 << ACC_WIDTHS[1]), ("eps_std", 1 << MAX_OPERAND - 1)):
            object.__setattr__(self, name, whole(getattr(self, name), 0, most, f"norm {name}"))
        for name, kind in (("running", RunningSpec), ("backward", NormGradSpec)):
            if not isinstance(getattr(self, name), kind | None):
                raise ValueError(f"norm {name} {getattr(self, name)!r}: needs a {kind.__name__}")
        self._check_forward()
        if self.backward is not None:
            self._check_backward(self.backward)

    def _check_forward(self):
        _product("x * x", _span(self.x), _span(self.x))
        centred = _sum("x - mean", _span(self.x), _span(self.mean), -1)
        if self.reciprocal is not None:
            _product("(x - mean) * reciprocal", centred, _span(self.reciprocal))
        else:
            zeros = max(self.xhat.format.frac - centred.frac + self.std.format.frac, 0)
            _fits("x - mean, aligned for the quotient", centred.lo << zeros, centred.hi << zeros,
                  centred.frac + zeros, QUOTIENT)
        scaled = _product("gamma * xhat", _span(self.gamma), _span(self.xhat))
        _sum("gamma * xhat + beta", scaled, _span(self.beta))

    def _check_backward(self, back: NormGradSpec):
        _product("error * xhat", _span(back.error), _span(self.xhat))
        centred = _sum("error - mean_error", _span(back.error), _span(back.mean_error), -1)
        product = _product("xhat * mean_product", _span(self.xhat), _span(back.mean_product))
        inner = _sum("error - mean_error - xhat * mean_product", centred, product, -1)
        _product("scale * (error - mean_error - xhat * mean_product)", _span(back.scale), inner)

    @classmethod
    def parse(cls, text: str | Mapping | NormSpec) -> NormSpec:
        """A mapping of texts; running and backward may be mappings themselves."""
        return _parse(cls, text, "norm", "x", "mean", "var", "std", "xhat", "gamma", "beta", "y")

    def __str__(self) -> str:
        return mapping_text(self)


class _Span(NamedTuple):
    """The codes that a number takes."""

    lo: int
    hi: int
    frac: int


def _span(value: Cast | Format) -> _Span:
    form = value.format if isinstance(value, Cast) else value
    return _Span(form.lo, form.hi, form.frac)


def _fits(what: str, lo: int, hi: int, frac: int, limit: tuple[int, int] = INT64) -> _Span:
    if lo < limit[0] or hi > limit[1]:
        raise ValueError(f"norm {what}: its exact value can reach {max(-lo, hi)}, the limit is "
                         f"{limit[1]}; use narrower formats or closer fracs")
    return _Span(lo, hi, frac)


def _sum(what: str, a: _Span, b: _Span, sign: int = 1) -> _Span:
    """a + b or a - b at the finer frac of the two."""
    frac = max(a.frac, b.frac)
    low, high = (b.lo, b.hi) if sign > 0 else (-b.hi, -b.lo)
    return _fits(what, (a.lo << frac - a.frac) + (low << frac - b.frac),
                 (a.hi << frac - a.frac) + (high << frac - b.frac), frac)


def _product(what: str, a: _Span, b: _Span) -> _Span:
    corners = [x * y for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
    return _fits(what, min(corners), max(corners), a.frac + b.frac)


def _check_operand(name: str, form: Format) -> None:
    if not isinstance(form, Format) or form.width > MAX_OPERAND:
        raise ValueError(f"norm {name} {form!r}: needs a Format of at most {MAX_OPERAND} bits")


def _check(name: str, value: Cast, most: int, signed: bool = True, dithered: bool | None = None):
    check_cast(f"norm {name}", value)
    if value.format.width > most:
        raise ValueError(f"norm {name} {value}: has at most {most} bits")
    if value.format.signed and not signed:
        raise ValueError(f"norm {name} {value}: is never negative; use an unsigned format")
    if dithered is None:
        dithered = name in _DITHERED
    if value.rounding == Rounding.STOCHASTIC and not dithered:
        raise ValueError(f"norm {name} {value}: has no random operand; use a deterministic "
                         f"rounding (stochastic may be: {', '.join(_DITHERED)})")


def _parse(cls: type, text, what: str, *needed: str):
    if isinstance(text, cls):
        return text
    items, values = parse_fields(cls, text, what, *needed), {}
    for key, value in items.items():
        if key in ("x", "error"):
            values[key] = value if isinstance(value, Format) else Format.parse(value)
        elif key in ("eps_var", "eps_std"):
            values[key] = int(value) if str(value).isdigit() else value
        elif key in ("running", "backward"):
            values[key] = {"running": RunningSpec, "backward": NormGradSpec}[key].parse(value)
        else:
            values[key] = value if key == "unbiased" else Cast.parse(str(value))
    return cls(**values)

