"""How weights are updated: by SGD with momentum, or through a gradient accumulation buffer.

Values only, as in `value.py`. A spec is refused when any intermediate of the hardware could leave
int64, by the spec alone, whatever the codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from itertools import product
from math import prod
from typing import NamedTuple

from emu.number import ACC_WIDTHS, MAX_OPERAND, Cast, Format, Overflow, Rounding, check_cast
from emu.value import Text, hashed_once, mapping_text, parse_fields, parse_mapping

CONSTANTS = ("lr", "mu", "decay", "shrink", "clip", "norm")  # casts of float hyperparameters


class _Casts(Text):
    """Named casts, whose text is a mapping of theirs."""

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None or field.default is MISSING:
                check_cast(f"update {field.name}", value)
        for name in CONSTANTS:
            value = getattr(self, name, None)
            if value is not None and (value.rounding == Rounding.STOCHASTIC
                                      or value.format.width > MAX_OPERAND - 1):
                raise ValueError(f"update {name} {value}: a constant operand is rounded "
                                 f"deterministically to at most {MAX_OPERAND - 1} bits")
        for name in ("clip", "norm"):
            value = getattr(self, name)
            if value is not None and value.format.signed:
                raise ValueError(f"update {name} {value}: a limit is not negative; write "
                                 f"u{value.format.width}f{value.format.frac}")
        if self.clip is not None:
            _check_clip(self.clip.format, self.grad.format)

    @classmethod
    def parse(cls, text: str | Mapping | _Casts):
        """A mapping of cast texts."""
        if isinstance(text, cls):
            return text
        items = parse_fields(cls, text, "update",
                             *(f.name for f in fields(cls) if f.default is MISSING))
        return cls(**{key: Cast.parse(str(value)) for key, value in items.items()})

    def __str__(self) -> str:
        return mapping_text(self)


def _check_clip(clip: Format, grad: Format) -> None:
    """Raise ValueError unless every limit is on the gradient's grid, and fits an accumulator."""
    shift = grad.frac - clip.frac
    if shift < 0 or clip.width + shift >= ACC_WIDTHS[1]:
        raise ValueError(f"update clip {clip}: a limit is compared with gradients {grad}; use a "
                         f"frac from {grad.frac + clip.width - ACC_WIDTHS[1] + 1} to {grad.frac}")


@hashed_once
@dataclass(frozen=True, repr=False)
class UpdateSpec(_Casts):
    """SGD with momentum on codes: every number of the update has a named cast.

        gradient' = gradient + decay * weight                       # where there is a `decay`
        momentum' = cast(mu * momentum + gradient', momentum)
        direction = cast(mu * momentum' + gradient', nesterov)      # else it is momentum'
                  = mu * momentum + gradient'                       # with a `direction`
        weight'   = cast(weight - lr * direction - shrink * weight, weight)

    `weight` is the master weight; `grad` is the cast by which a gradient enters the update; `lr`
    and `mu` are the casts of the two float hyperparameters. The rest is optional: `decay` casts
    the factor of a weight decay that joins the gradient, and `shrink` that of one that does not
    (the learning rate times the weight decay); with `nesterov` the weight looks ahead.

    `direction` is the order of WAGEUBN (arXiv 1909.02384): the weight moves by the exact sum and
    the momentum that is kept rounds it, the only rounding there is. That needs widths which agree,
    in its notation (k bits have a last bit of 2^-(k-1)) kGC = kMom + kAcc - 1 and kWU = kGC + klr
    - 1; others are refused. The cast `direction` only says the format of the sum.

    Before all that a gradient may be limited. `clip` casts a limit c: gradients beyond -c and c
    become these. `norm` casts a limit of the root of the sum of all squared gradients: where it is
    exceeded all gradients are scaled by 2^-s and cast by `grad` once more, for the smallest s that
    brings the norm, before that cast, to the limit.
    """

    weight: Cast
    momentum: Cast
    grad: Cast
    lr: Cast
    mu: Cast
    decay: Cast | None = None
    shrink: Cast | None = None
    nesterov: Cast | None = None
    clip: Cast | None = None
    norm: Cast | None = None
    direction: Cast | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.direction is not None:
            self._check_direction()
        if self.decay is not None and self.shrink is not None:
            raise ValueError(f"update decay {self.decay} and shrink {self.shrink}: weight decay "
                             "joins the gradient, or it does not; leave one out")
        for name in {factors[1] for terms in self.sums.values() for _, *factors in terms
                     if len(factors) > 1}:
            if getattr(self, name).format.width > MAX_OPERAND:
                raise ValueError(f"update {name} {getattr(self, name)}: a multiplier operand has "
                                 f"at most {MAX_OPERAND} bits")
        for name, bits in self.sum_bits.items():
            if bits > ACC_WIDTHS[1]:
                what = " ".join(f"{'+-'[sign < 0]} {' * '.join(factors)}"
                                for sign, *factors in self.sums[name])
                what = what.removeprefix("+ ").replace("grad", "gradient")
                raise ValueError(f"update {what}: its exact sum needs {bits} bits, the limit is "
                                 f"{ACC_WIDTHS[1]}; use narrower formats or closer fracs")

    def _check_direction(self) -> None:
        """Raise ValueError unless the momentum's rounding is the only one."""
        if self.nesterov is not None or self.decay is not None or self.shrink is not None:
            raise ValueError(f"update direction {self.direction}: the weight moves by the exact "
                             "sum of momentum and gradient; leave out nesterov, decay and shrink")
        fracs = {name: getattr(self, name).format.frac
                 for name in ("weight", "momentum", "grad", "lr", "mu", "direction")}
        for total, factor, addend, rule in (
                ("grad", "mu", "momentum", "kGC = kMom + kAcc - 1"),
                ("weight", "lr", "grad", "kWU = kGC + klr - 1")):
            found, want = fracs[total], fracs[factor] + fracs[addend]
            if found != want:
                raise ValueError(
                    f"update {total} {getattr(self, total).format}: breaks the width algebra "
                    f"{rule}, as {factor} has {fracs[factor]} fraction bits and {addend} "
                    f"{fracs[addend]}; give {total} a frac of {want}, or leave direction out, "
                    "with which the sums are exact")
        exact = _exact_direction(self.mu, self.momentum, self.grad)
        to = self.direction
        if to.format.frac != exact.frac or not (to.format.lo <= exact.lo and
                                                exact.hi <= to.format.hi):
            raise ValueError(f"update direction {to.format}: the exact sum takes {exact}; write "
                             "that")
        object.__setattr__(self, "direction", Cast(to.format))

    @cached_property
    def sums(self) -> dict[str, list[tuple]]:
        """The exact sums in their order, by the cast that ends each: (sign, factors...) of a term.

        A constant comes first in a product. What a sum gave, a later one uses; a `direction` is
        the sum of the momentum itself.
        """
        gradient = [(1, "grad"), *([(1, "decay", "weight")] if self.decay else [])]
        ahead = [(1, "mu", "momentum"), *gradient]
        moved = self.moved
        shrunk = [(-1, "shrink", "weight")] if self.shrink else []
        return {"momentum": ahead} | ({"nesterov": ahead} if self.nesterov else {}) | {
            "weight": [(1, "weight"), (-1, "lr", moved), *shrunk]}

    @property
    def moved(self) -> str:
        """The cast of what the weight moves by."""
        return next((name for name in ("nesterov", "direction") if getattr(self, name)),
                    "momentum")

    def sum_frac(self, name: str) -> int:
        """The frac of an exact sum: that of its finest term."""
        return max(self.term_frac(factors) for _, *factors in self.sums[name])

    def term_frac(self, factors: Iterable[str]) -> int:
        """The frac of a product of codes of these casts."""
        return sum(getattr(self, factor).format.frac for factor in factors)

    @cached_property
    def sum_bits(self) -> dict[str, int]:
        """Bits of each exact sum, as it enters its cast."""
        found = {}
        for name, terms in self.sums.items():
            frac, low, high = self.sum_frac(name), 0, 0
            for sign, *factors in terms:
                ends = [(form.lo, form.hi) for form in
                        (getattr(self, factor).format for factor in factors)]
                corners = [sign * prod(codes) << frac - self.term_frac(factors)
                           for codes in product(*ends)]
                low, high = low + min(corners), high + max(corners)
            zeros = max(getattr(self, name).format.frac - frac, 0)  # which the cast appends
            found[name] = max(high.bit_length(), (-low - 1).bit_length()) + 1 + zeros
        return found


def _exact_direction(mu: Cast, momentum: Cast, grad: Cast) -> Format:
    """The narrowest format of mu * momentum + gradient."""
    frac = max(mu.format.frac + momentum.format.frac, grad.format.frac)
    corners = [a * b << frac - mu.format.frac - momentum.format.frac
               for a in (mu.format.lo, mu.format.hi)
               for b in (momentum.format.lo, momentum.format.hi)]
    up = frac - grad.format.frac
    return Format.holding(min(*corners, -1) + (grad.format.lo << up),
                          max(corners) + (grad.format.hi << up), frac)


@hashed_once
@dataclass(frozen=True, repr=False)
class BufferSpec(_Casts):
    """SGD through a gradient accumulation buffer, the learning rate being a shift: 2^-shift.

        buffer' = fit(buffer + gradient, buffer)
        step    = buffer' * 2^-shift, rounded to the weight's frac by its rounding
        weight' = fit(weight - step, weight)
        buffer" = buffer' - step * 2^shift                # the remainder waits for more gradients

    So a weight of few bits moves by many small gradients: nothing is lost but where the buffer or
    the weight overflows. `weight` is the master weight and `grad` the cast by which a gradient
    enters; both are aligned with the buffer, whose last bit weighs at most as much as theirs.
    `clip` and `norm` limit gradients as in `UpdateSpec`.

    The idea is that of Guo et al., "Compressed CNN Training with FPGA-based Accelerator" (FPGA
    2019); its scales are those of `amend_weight_grad_scales` in walkerning/nics_fix.

    >>> spec = BufferSpec.parse("{weight: s8f7 ties_even sat, buffer: s24f16 sat, grad: s8f12}")
    >>> spec.dropped(shift=3)  # the low bits of the buffer, which no weight shows
    12
    """

    weight: Cast
    buffer: Cast
    grad: Cast
    clip: Cast | None = None
    norm: Cast | None = None

    def __post_init__(self):
        super().__post_init__()
        form = self.buffer.format
        if self.buffer.rounding == Rounding.STOCHASTIC or not form.signed or not (
                ACC_WIDTHS[0] <= form.width < ACC_WIDTHS[1]):
            raise ValueError(f"update buffer {self.buffer}: a buffer adds and rounds nothing, and "
                             f"is signed, of {ACC_WIDTHS[0]} to {ACC_WIDTHS[1] - 1} bits; write "
                             "something like s24f16 sat")
        object.__setattr__(self, "buffer", Cast(form, overflow=self.buffer.overflow))
        shift = form.frac - self.grad.format.frac
        if shift < 0:
            raise ValueError(f"update grad {self.grad.format} is finer than the buffer {form}, "
                             f"which would lose bits of it; use a frac of {form.frac} at most")
        for name, bits in (("grad", self.grad.format.width + shift),
                           ("weight", self.weight.format.width)):
            if bits >= ACC_WIDTHS[1]:
                raise ValueError(f"update {name} {getattr(self, name).format}: beside the buffer "
                                 f"{form} it takes {bits} bits, the limit is {ACC_WIDTHS[1] - 1}; "
                                 "use a narrower format or a closer frac")

    def dropped(self, shift: int) -> int:
        """How many low bits of the buffer a learning rate of 2^-shift keeps from the weight.

        Raises ValueError unless that is between 1 and the buffer's magnitude bits: then there is a
        remainder, and any remainder fits the buffer.
        """
        n = self.buffer.format.frac + shift - self.weight.format.frac
        most = self.buffer.format.width - 1
        if not 1 <= n <= most:
            ends = [self.weight.format.frac - self.buffer.format.frac + n for n in (1, most)]
            raise ValueError(f"shift {shift}: the buffer {self.buffer.format} feeds the weight "
                             f"{self.weight.format} at shifts from {ends[0]} to {ends[1]}; choose "
                             "one, or another frac of the buffer")
        return n


class Exponents(NamedTuple):
    """The ranges 2^e of a gradient and of the buffer that adds it up."""

    grad: int
    buffer: int


def buffer_exponents(seen: tuple[int, int], weight: Format, grad_width: int, width: int, rate: int,
                     from_min: bool = True) -> Exponents:
    """The ranges of a gradient and of its buffer, for gradients whose ranges were 2^e before.

    `seen` are the least and the largest e; the buffer has `width` bits, the learning rate is
    2^rate. A full buffer must move the weight by its last bit, -frac(weight) <= buffer + rate.
    Beyond that `from_min` takes the least e for the gradient and the buffer whose last bit is the
    gradient's, so that nothing is rounded away; otherwise the largest e is for both, so that
    nothing saturates.

    Signed formats throughout: the last bit of w bits and the range 2^e weighs 2^(e - (w - 1)).
    `amend_weight_grad_scales` in walkerning/nics_fix, which this follows, counts the buffer's as
    2^(e - w) in `from_min`, so its buffer is an octave coarser than the gradient.

    >>> seen, weight = (-7, -3), Format.parse("s8f7")
    >>> [tuple(buffer_exponents(seen, weight, 8, 24, -5, from_min)) for from_min in (True, False)]
    [(-7, 9), (-3, -2)]
    """
    least, largest = seen
    need = -weight.frac - rate
    if from_min:
        return Exponents(least, max(need, least - (grad_width - 1) + (width - 1)))
    return Exponents(largest, max(need, largest))


def derived_buffer(seen: tuple[int, int], weight: Cast, grad: Cast, width: int, rate: int,
                   from_min: bool = True) -> BufferSpec:
    """The update by a buffer of `width` bits of these `buffer_exponents`.

    Of `grad`, the cast of the gradients, width and modes hold; where the buffer is coarser, they
    enter it on its grid. Raises ValueError where the buffer cannot feed the weight at 2^rate.
    """
    ranges = buffer_exponents(seen, weight.format, grad.format.width, width, rate, from_min)
    buffer = Format(width, width - 1 - ranges.buffer)
    frac = min(grad.format.width - 1 - ranges.grad, buffer.frac)
    spec = BufferSpec(weight, Cast(buffer, overflow=Overflow.SAT), grad.with_frac(frac))
    spec.dropped(-rate)
    return spec


def parse_update(text: str | Mapping | UpdateSpec | BufferSpec) -> UpdateSpec | BufferSpec:
    """A `BufferSpec` where there is a `buffer`, else an `UpdateSpec`."""
    if isinstance(text, UpdateSpec | BufferSpec):
        return text
    items = parse_mapping(text) if isinstance(text, str) else text
    buffered = isinstance(items, Mapping) and "buffer" in items
    return (BufferSpec if buffered else UpdateSpec).parse(items)
