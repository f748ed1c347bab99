"""How weights are updated: by SGD with momentum, or through a gradient accumulation buffer.

Values only, as in `number.py`. A spec is refused when any intermediate of the hardware could leave
int64, by the spec alone, whatever the codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property

from emu.number import (
    ACC_WIDTHS,
    MAX_OPERAND,
    Cast,
    Rounding,
    _Text,
    check_cast,
    mapping_text,
    parse_fields,
)


class _Casts(_Text):
    """Named casts, whose text is a mapping of theirs."""

    def __post_init__(self):
        for field in fields(self):
            check_cast(f"update {field.name}", getattr(self, field.name))

    @classmethod
    def parse(cls, text: str | Mapping | _Casts):
        """A mapping of cast texts."""
        if isinstance(text, cls):
            return text
        items = parse_fields(cls, text, "update", *(f.name for f in fields(cls)))
        return cls(**{key: Cast.parse(str(value)) for key, value in items.items()})

    def __str__(self) -> str:
        return mapping_text(self)


@dataclass(frozen=True, repr=False)
class UpdateSpec(_Casts):
    """SGD with momentum on codes: every number of the update has a named cast.

        momentum' = cast(mu * momentum + gradient, momentum)
        weight'   = cast(weight - lr * momentum', weight)

    `weight` is the master weight; `grad` is the cast by which a gradient enters the update; `lr`
    and `mu` are the casts of the two float hyperparameters.
    """

    weight: Cast
    momentum: Cast
    grad: Cast
    lr: Cast
    mu: Cast

    def __post_init__(self):
        super().__post_init__()
        for name in ("lr", "mu"):
            value = getattr(self, name)
            if value.rounding == Rounding.STOCHASTIC or value.format.width > MAX_OPERAND - 1:
                raise ValueError(f"update {name} {value}: a constant operand is rounded "
                                 f"deterministically to at most {MAX_OPERAND - 1} bits")
        if self.momentum.format.width > MAX_OPERAND:
            raise ValueError(f"update momentum {self.momentum}: a multiplier operand has at most "
                             f"{MAX_OPERAND} bits")
        for what, bits in zip(("mu * momentum + gradient", "weight - lr * momentum"),
                              self.sum_bits, strict=True):
            if bits > ACC_WIDTHS[1]:
                raise ValueError(f"update {what}: its exact sum needs {bits} bits, the limit is "
                                 f"{ACC_WIDTHS[1]}; use narrower formats or closer fracs")

    @cached_property
    def sum_bits(self) -> tuple[int, int]:
        """Bits of the two exact sums, momentum's and the weight's, as they enter their casts."""
        return (self._sum_bits(self.mu, 1, self.grad, self.momentum),
                self._sum_bits(self.lr, -1, self.weight, self.weight))

    def _sum_bits(self, factor: Cast, sign: int, addend: Cast, to: Cast) -> int:
        frac = factor.format.frac + self.momentum.format.frac
        shift = addend.format.frac - frac
        corners = [sign * x * y << max(shift, 0) for x in (factor.format.lo, factor.format.hi)
                   for y in (self.momentum.format.lo, self.momentum.format.hi)]
        low = min(corners) + (addend.format.lo << max(-shift, 0))
        high = max(corners) + (addend.format.hi << max(-shift, 0))
        bits = max(high.bit_length(), (-low - 1).bit_length()) + 1
        return bits + max(to.format.frac - max(frac, addend.format.frac), 0)  # zeros for the cast


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

    The idea is that of Guo et al., "Compressed CNN Training with FPGA-based Accelerator" (FPGA
    2019); its scales are those of `amend_weight_grad_scales` in walkerning/nics_fix.

    >>> spec = BufferSpec.parse("{weight: s8f7 ties_even sat, buffer: s24f16 sat, grad: s8f12}")
    >>> spec.dropped(shift=3)  # the low bits of the buffer, which no weight shows
    12
    """

    weight: Cast
    buffer: Cast
    grad: Cast

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
