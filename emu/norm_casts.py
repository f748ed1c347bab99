"""The casts of a normalising layer, and what is derived from its formats where they are left out.

A layer gives x, gamma, beta, y and error by its own settings; `NormCasts` has the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import lru_cache

from emu.norm import NormGradSpec, NormSpec, RunningSpec
from emu.number import ACC_WIDTHS, MAX_OPERAND, Cast, Format, Overflow, Rounding, check_cast
from emu.value import Text, mapping_text, parse_fields

SPARE = 8  # bits of a mean and a deviation beyond those of what they are of
BUFFER = 24  # bits of a running statistic and of a gradient that float32 carries
SPREAD = 6  # a deviation is at least 2^-6 of the range of x, or `scale` saturates
NEAREST = (Rounding.TIES_EVEN, Overflow.SAT)
ONE = Format(1, 0, signed=False)  # of a gamma that is left out; the code of a beta is 0


@dataclass(frozen=True, repr=False)
class NormCasts(Text):
    """The casts of `NormSpec`, `RunningSpec` and `NormGradSpec` by name, each of which may be None.

    For x of W bits and an error of E bits they are, `ties_even sat` where nothing else is said:

    - mean and std: 8 more fraction bits than x (fewer where W > 22); var: those that std needs,
      `to_odd sat`, so that the deviation is rounded once; eps_var: the nearest code;
    - xhat: `s{W+4}f{W}`, from -8 to 8;
    - running_mean and running_var: 24 bits over the range of x and of its variance; momentum:
      `u16f15`;
    - scaled_error, of error * gamma where each element has its gamma (layer norm), mean_error and
      mean_product: 8 more bits than the error (fewer where a product would leave int64);
    - scale: 24 bits (likewise), for deviations from a 64th of the range of x on;
    - grad_x: `s{E+16}`, the range of the error times the range of the scale.

    >>> casts = NormCasts.parse("{xhat: s16f12 ties_even sat}")
    >>> x, w = Format.parse("s8f4"), Format.parse("s8f6")
    >>> spec = casts.spec(x, w, x, eps=1e-5)
    >>> spec.mean, spec.std.format, spec.var.format, spec.eps_var
    (Cast.parse('s16f12 ties_even sat'), Format.parse('u16f12'), Format.parse('u33f27'), 1342)
    """

    mean: Cast | None = None
    var: Cast | None = None
    std: Cast | None = None
    xhat: Cast | None = None
    reciprocal: Cast | None = None
    eps_var: int | None = None
    eps_std: int = 0
    running_mean: Cast | None = None
    running_var: Cast | None = None
    momentum: Cast | None = None
    unbiased: bool = True
    scaled_error: Cast | None = None
    mean_error: Cast | None = None
    mean_product: Cast | None = None
    scale: Cast | None = None
    grad_x: Cast | None = None

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if "Cast" in field.type and value is not None:
                check_cast(f"norm {field.name}", value)

    @classmethod
    def parse(cls, text: str | Mapping | NormCasts) -> NormCasts:
        """A mapping of texts."""
        if isinstance(text, cls):
            return text
        items, values = parse_fields(cls, text, "norm"), {}
        for key, value in items.items():
            if key in ("eps_var", "eps_std"):
                values[key] = int(value) if str(value).isdigit() else value
            elif key == "unbiased":
                values[key] = RunningSpec.truth(value)
            else:
                values[key] = value if isinstance(value, Cast) else Cast.parse(str(value))
        return cls(**values)

    def __str__(self) -> str:
        return mapping_text(self)

    def spec(self, x: Format, gamma: Format, beta: Format, error: Format | None = None,
             eps: float = 0.0, running: bool = True) -> NormSpec:
        """The whole hardware: y and the gradients of gamma and beta are exact.

        Raises ValueError for formats that leave no room for what is derived.
        """
        return _spec(self, x, gamma, beta, error, eps, running)


@lru_cache(256)
def _spec(casts: NormCasts, x: Format, gamma: Format, beta: Format, error: Format | None,
          eps: float, running: bool) -> NormSpec:
    width = x.width
    spare = max(0, min(SPARE, (61 - 2 * width) // 2, MAX_OPERAND - 1 - width))
    var = casts.var or Cast(_form(2 * (width + spare) + 1, 2 * (x.frac + spare) + 3, False),
                            Rounding.TO_ODD, Overflow.SAT)
    xhat = casts.xhat or _nearest(width + 4, width)
    eps_var = casts.eps_var
    if eps_var is None:
        eps_var = round(Fraction(eps) * Fraction(2) ** var.format.frac)
    return NormSpec(
        x=x, mean=casts.mean or _nearest(width + spare, x.frac + spare, x.signed), var=var,
        std=casts.std or _nearest(width + spare, x.frac + spare, signed=False), xhat=xhat,
        gamma=Cast(gamma), beta=Cast(beta), y=_exact(gamma, xhat.format, beta), eps_var=eps_var,
        eps_std=casts.eps_std, reciprocal=casts.reciprocal,
        running=_running(casts, x) if running else None,
        backward=None if error is None else _backward(casts, x, gamma, xhat.format, error))


def _running(casts: NormCasts, x: Format) -> RunningSpec:
    bits = max(BUFFER, x.width)
    return RunningSpec(
        casts.running_mean or _nearest(bits, x.frac + bits - x.width, x.signed),
        casts.running_var or _nearest(BUFFER, 2 * (x.frac - x.width) + BUFFER + 1, signed=False),
        casts.momentum or _nearest(16, 15, signed=False), casts.unbiased)


def _backward(casts: NormCasts, x: Format, gamma: Format, xhat: Format, error: Format
              ) -> NormGradSpec:
    bits = error.width + (not error.signed)
    spare = max(0, min(SPARE, 45 - xhat.width - bits, MAX_OPERAND - bits))
    mean = _nearest(bits + spare, error.frac + spare)
    means = casts.mean_error or mean, casts.mean_product or mean
    first, second = (to.format for to in means)
    frac = max(error.frac, first.frac, xhat.frac + second.frac)
    reach = ((1 << bits - 1 + frac - error.frac) + (_most(first) << frac - first.frac)
             + (_most(xhat) * _most(second) << frac - xhat.frac - second.frac))
    factor = _whole_bits(gamma) + SPREAD - _whole_bits(x)  # of the greatest scale, as a power of 2
    room = max(2, min(BUFFER, 63 - reach.bit_length()))
    exact = Cast(_form(ACC_WIDTHS[1], error.frac + xhat.frac), overflow=Overflow.SAT)
    scale = casts.scale or _nearest(room, room - 1 - factor)
    grad_x = casts.grad_x or _nearest(bits + 16, error.frac + 16 - _whole_bits(scale.format))
    return NormGradSpec(error, *means, scale, grad_x, exact, exact.with_frac(error.frac))


def scaled_error(casts: NormCasts, error: Format, gamma: Format) -> Cast:
    """The cast of error * gamma, where each element has its own gamma."""
    bits = error.width + (not error.signed)
    width = min(bits + SPARE, MAX_OPERAND)
    return casts.scaled_error or _nearest(width, error.frac + width - bits - _whole_bits(gamma))


def parameter_cast(error: Format) -> Cast:
    """The cast of the gradient of gamma or beta, where none is given: of 4096 errors, 24 bits."""
    return _nearest(BUFFER, error.frac + 12 - error.width - (not error.signed))


def _exact(gamma: Format, xhat: Format, beta: Format) -> Cast:
    """The cast that holds every gamma * xhat + beta."""
    frac = max(gamma.frac + xhat.frac, beta.frac)
    corners = [g * h << frac - gamma.frac - xhat.frac for g in (gamma.lo, gamma.hi)
               for h in (xhat.lo, xhat.hi)]
    low, high = (pick(corners) + (bound << frac - beta.frac)
                 for pick, bound in ((min, beta.lo), (max, beta.hi)))
    bits = max(low.bit_length(), high.bit_length()) + 1
    return Cast(_form(bits, frac), overflow=Overflow.SAT)


def _most(form: Format) -> int:
    return max(form.hi, -form.lo)


def _whole_bits(form: Format) -> int:
    """The exponent of the power of two that bounds the values."""
    return form.width - form.signed - form.frac


def _form(width: int, frac: int, signed: bool = True) -> Format:
    if width > ACC_WIDTHS[1]:
        raise ValueError(f"norm: a derived cast would have {width} bits, the limit is "
                         f"{ACC_WIDTHS[1]}; use narrower formats of x, w, b or error")
    return Format(width, frac, signed)


def _nearest(width: int, frac: int, signed: bool = True) -> Cast:
    return Cast(_form(width, frac, signed), *NEAREST)
