"""Batch norm, forward and backward, on the codes of one channel.

The sums over a channel are exact, as in hardware whose accumulators are wide enough for the batch.
"""

from __future__ import annotations

from math import isqrt
from typing import NamedTuple

from emu.norm import NormSpec
from emu.number import Cast
from emu.reference.casts import cast, divide


class Statistics(NamedTuple):
    """Codes of `spec.mean` and `spec.var`, and the variance that enters the running one."""

    mean: int
    var: int
    sample_var: int


def norm_statistics(x: list[int], spec: NormSpec) -> Statistics:
    """The mean and the variance of a channel: exact sums, each quotient rounded once."""
    n, total, squares = len(x), sum(x), sum(code * code for code in x)
    spread = n * squares - total * total  # n^2 times the variance
    mean = divide(total, n, spec.x.frac, spec.mean)
    var = divide(spread, n * n, 2 * spec.x.frac, spec.var)
    if spec.running is None or not spec.running.unbiased:
        return Statistics(mean, var, var)
    if n == 1:
        raise ValueError("1 element in a channel: an unbiased variance needs 2; give more, or "
                         "write unbiased: false")
    return Statistics(mean, var, divide(spread, n * (n - 1), 2 * spec.x.frac, spec.var))


def root(x: int, frac: int, to: Cast) -> int:
    """sqrt(x * 2^-frac) as a code of `to`, one rounding."""
    bits = max(to.format.frac + 2, -(-frac // 2))  # of the root, cut to odd before it is rounded
    square = x << 2 * bits - frac
    floor = isqrt(square)
    return cast(floor | (floor * floor != square), bits, to)


def norm_divisor(var: int, spec: NormSpec) -> int:
    """The deviation that divides: sqrt(var + eps_var) in the cast `std`, plus eps_std, not 0."""
    return max(1, root(var + spec.eps_var, spec.var.format.frac, spec.std) + spec.eps_std)


def norm_xhat(x: int, mean: int, divisor: int, spec: NormSpec) -> int:
    """(x - mean) / divisor in the cast `xhat`, or by the code of 1 / divisor."""
    frac = max(spec.x.frac, spec.mean.format.frac)
    centred = (x << frac - spec.x.frac) - (mean << frac - spec.mean.format.frac)
    if spec.reciprocal is None:
        return divide(centred, divisor, frac - spec.std.format.frac, spec.xhat)
    inverse = divide(1, divisor, -spec.std.format.frac, spec.reciprocal)
    return cast(centred * inverse, frac + spec.reciprocal.format.frac, spec.xhat)


def batch_norm(x: list[int], mean: int, var: int, gamma: int, beta: int, spec: NormSpec,
               rand: list[int] | None = None) -> tuple[list[int], list[int]]:
    """(y, xhat) of one channel. In training `mean` and `var` are its own statistics."""
    divisor = norm_divisor(var, spec)
    xhat = [norm_xhat(code, mean, divisor, spec) for code in x]
    in_product, in_beta = spec.gamma.format.frac + spec.xhat.format.frac, spec.beta.format.frac
    frac = max(in_product, in_beta)
    y = [cast((gamma * code << frac - in_product) + (beta << frac - in_beta), frac, spec.y,
              rand and rand[i]) for i, code in enumerate(xhat)]
    return y, xhat


def running_norm(mean: int, var: int, batch: Statistics, momentum: int, spec: NormSpec,
                 rand_mean: int | None = None, rand_var: int | None = None) -> tuple[int, int]:
    """The running (mean', var'), codes of `spec.running`; `momentum` is a code of its cast."""
    running, bits = spec.running, spec.running.momentum.format.frac
    return (_moved(mean, running.mean, batch.mean, spec.mean, momentum, bits, rand_mean),
            _moved(var, running.var, batch.sample_var, spec.var, momentum, bits, rand_var))


def _moved(old: int, to: Cast, new: int, new_cast: Cast, momentum: int, bits: int,
           rand: int | None) -> int:
    """cast(old + momentum * 2^-bits * (new - old)), exact inside."""
    frac = max(to.format.frac, new_cast.format.frac)
    old, new = old << frac - to.format.frac, new << frac - new_cast.format.frac
    step = momentum * (new - old)
    total = (old << max(bits, 0)) + (step << max(-bits, 0))
    return cast(total, frac + max(bits, 0), to, rand)


def frozen_norm(mean: int, var: int, spec: NormSpec) -> tuple[int, int]:
    """(mean, var) of evaluation: the running statistics in the casts `mean` and `var`."""
    return (cast(mean, spec.running.mean.format.frac, spec.mean),
            cast(var, spec.running.var.format.frac, spec.var))


def batch_norm_grad(error: list[int], xhat: list[int], var: int, gamma: int, spec: NormSpec,
                    frozen: bool = False, passes: list[bool] | None = None,
                    rand: dict[str, list[int] | int] | None = None
                    ) -> tuple[list[int], int, int]:
    """(grad_x, grad_gamma, grad_beta) of one channel, codes of the casts of `spec.backward`.

    `passes` is the straight-through gradient of the cast `xhat`: an error that it blocks reaches
    gamma and beta, but not x. The casts of a whole channel pass everywhere. `frozen` statistics do
    not depend on x. `rand` holds the operands of stochastic casts under their names.
    """
    back, n, rand = spec.backward, len(error), rand or {}
    e_frac, h_frac = back.error.frac, spec.xhat.format.frac
    grad_gamma = cast(sum(e * h for e, h in zip(error, xhat, strict=True)), e_frac + h_frac,
                      back.grad_gamma, rand.get("grad_gamma"))
    grad_beta = cast(sum(error), e_frac, back.grad_beta, rand.get("grad_beta"))

    error = error if passes is None else [e if p else 0 for e, p in
                                          zip(error, passes, strict=True)]
    mean_error = mean_product = 0
    if not frozen:
        mean_error = divide(sum(error), n, e_frac, back.mean_error)
        mean_product = divide(sum(e * h for e, h in zip(error, xhat, strict=True)), n,
                              e_frac + h_frac, back.mean_product)
    m_frac, p_frac = back.mean_error.format.frac, h_frac + back.mean_product.format.frac
    frac = max(e_frac, m_frac, p_frac)
    scale, grad_x = _scale(var, gamma, spec), []
    for i, (e, h) in enumerate(zip(error, xhat, strict=True)):
        inner = ((e << frac - e_frac) - (mean_error << frac - m_frac)
                 - (h * mean_product << frac - p_frac))
        grad_x.append(cast(scale * inner, back.scale.format.frac + frac, back.grad_x,
                           rand["grad_x"][i] if "grad_x" in rand else None))
    return grad_x, grad_gamma, grad_beta


def _scale(var: int, gamma: int, spec: NormSpec) -> int:
    """gamma / divisor in the cast `scale`, or gamma times the code of 1 / divisor."""
    divisor, to = norm_divisor(var, spec), spec.backward.scale
    if spec.reciprocal is None:
        return divide(gamma, divisor, spec.gamma.format.frac - spec.std.format.frac, to)
    inverse = divide(1, divisor, -spec.std.format.frac, spec.reciprocal)
    return cast(gamma * inverse, spec.gamma.format.frac + spec.reciprocal.format.frac, to)
