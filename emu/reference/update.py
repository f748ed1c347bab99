"""The weight update on codes."""

from __future__ import annotations

from collections.abc import Sequence

from emu.number import Cast
from emu.reference.casts import cast, fit, round_shift
from emu.update import BufferSpec, UpdateSpec


def sgd(weight: int, momentum: int, grad: int, lr: int, mu: int, spec: UpdateSpec,
        rand_momentum: int | None = None, rand_weight: int | None = None, decay: int = 0,
        rand_nesterov: int | None = None) -> tuple[int, int]:
    """(weight', momentum') of one weight; every argument is a code of its cast in `spec`.

    `decay` is a code of `spec.decay` or `spec.shrink`. Sums are exact, each with one cast:

        gradient' = grad + decay * weight                   # where `spec` has a decay
        momentum' = cast(mu * momentum + gradient')
        direction = cast(mu * momentum' + gradient')        # with nesterov, else momentum', or
                  = mu * momentum + gradient'               # exactly, where `spec` says so
        weight'   = cast(weight - lr * direction - decay * weight)     # where it has a shrink
    """
    frac = {name: to.format.frac for name, to in vars(spec).items() if isinstance(to, Cast)}
    gradient = [(grad, frac["grad"])]
    if spec.decay is not None:
        gradient.append((decay * weight, frac["decay"] + frac["weight"]))
    exact = _sum((mu * momentum, frac["mu"] + frac["momentum"]), *gradient)
    momentum = cast(*exact, spec.momentum, rand_momentum)
    direction, of_direction = momentum, frac["momentum"]
    if spec.direction is not None:
        direction, of_direction = exact
    if spec.nesterov is not None:
        direction = cast(*_sum((mu * momentum, frac["mu"] + frac["momentum"]), *gradient),
                         spec.nesterov, rand_nesterov)
        of_direction = frac["nesterov"]
    moved = [(weight, frac["weight"]), (-lr * direction, frac["lr"] + of_direction)]
    if spec.shrink is not None:
        moved.append((-decay * weight, frac["shrink"] + frac["weight"]))
    return cast(*_sum(*moved), spec.weight, rand_weight), momentum


def _sum(*terms: tuple[int, int]) -> tuple[int, int]:
    """(code, frac) of the exact sum of terms, each a code and its frac, at the finest frac."""
    finest = max(frac for _, frac in terms)
    return sum(code << finest - frac for code, frac in terms), finest


def clip(grad: int, limit: int, spec: UpdateSpec | BufferSpec) -> int:
    """A gradient of `spec.grad` within -limit and limit, which is a code of `spec.clip`."""
    limit <<= spec.grad.format.frac - spec.clip.format.frac
    return max(-limit, min(limit, grad))


def norm_shift(squares: Sequence[tuple[int, int]], limit: int, frac: int) -> int:
    """The smallest s >= 0 for which 2^-s times the norm of gradients is at most limit * 2^-frac.

    `squares` are the sums of the squared codes of some tensors, each with the frac of its codes;
    the norm is the root of the sum of them all. No root is taken: both sides are squared. Raises
    ValueError for a limit of 0, which no power of two reaches.
    """
    if limit < 1 and any(square for square, _ in squares):
        raise ValueError(f"norm limit {limit}: no power of two brings a norm to it; use a code "
                         "of 1 at least")
    finest = max(frac, *(of_codes for _, of_codes in squares)) if squares else frac
    total = sum(square << 2 * (finest - of_codes) for square, of_codes in squares)
    bound, s = limit * limit << 2 * (finest - frac), 0
    while total > bound << 2 * s:
        s += 1
    return s


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
