"""The weight update on codes."""

from __future__ import annotations

from emu.number import Cast
from emu.reference.casts import cast, fit, round_shift
from emu.update import BufferSpec, UpdateSpec


def sgd(weight: int, momentum: int, grad: int, lr: int, mu: int, spec: UpdateSpec,
        rand_momentum: int | None = None, rand_weight: int | None = None) -> tuple[int, int]:
    """(weight', momentum') of one weight; every argument is a code of its cast in `spec`.

        momentum' = cast(mu * momentum + grad), weight' = cast(weight - lr * momentum')
    """
    momentum = cast(*_add(grad, spec.grad, mu * momentum, spec.mu, spec.momentum),
                    spec.momentum, rand_momentum)
    weight = cast(*_add(weight, spec.weight, -lr * momentum, spec.lr, spec.momentum),
                  spec.weight, rand_weight)
    return weight, momentum


def _add(addend: int, addend_cast: Cast, product: int, *factors: Cast) -> tuple[int, int]:
    """(code, frac) of addend + product, exactly, at the finer frac of the two."""
    frac = sum(factor.format.frac for factor in factors)
    finer = max(frac, addend_cast.format.frac)
    return (addend << finer - addend_cast.format.frac) + (product << finer - frac), finer


def buffered_sgd(weight: int, buffer: int, grad: int, shift: int, spec: BufferSpec,
                 rand: int | None = None) -> tuple[int, int]:
    """(weight', buffer') of one weight, with a learning rate of 2^-shift; codes of `spec`'s casts.

    The high part of the buffer, rounded, goes to the weight; the remainder stays:

        (weight' << n) - buffer' == (weight << n) - buffer - gradient

    in the buffer's units, unless the buffer or the weight overflows.
    """
    n = spec.dropped(shift)
    buffer = fit(buffer + (grad << spec.buffer.format.frac - spec.grad.format.frac), spec.buffer)
    step = round_shift(buffer, n, spec.weight, rand)
    return fit(weight - step, spec.weight), buffer - (step << n)
