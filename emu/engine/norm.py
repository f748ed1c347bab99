"""Batch norm, forward and backward, on arrays (N, C, ...) of codes.

What a channel has one of (sums, mean, deviation, scale) is computed on Python ints of any width;
what an element has one of is a sum that `NormSpec` proves to fit int64, and a cast or a division.
"""

from typing import NamedTuple

import numpy as np

from emu.engine.arrays import INT64, as_codes, check_kind, dtype_of, largest, ready
from emu.engine.casts import Casted, cast_full, operands_of
from emu.engine.exact import cast_each, root_int
from emu.engine.kernels.jit import CAST, launch
from emu.engine.kernels.lanes import lane_cast, lane_for
from emu.engine.kernels.norm import Threshold, channel_sums, line_casts, quotients
from emu.engine.monitor import named, watching
from emu.engine.pool import divide
from emu.norm import NormSpec
from emu.number import Cast, Format, Rounding

EXACT = 51  # bits of a numerator or divisor: twice of either is still exact in float64
INT32 = np.dtype(np.int32)
THRESHOLDS = {rounding: Threshold(*map(float, constants)) for rounding, constants in {
    Rounding.TO_NEG: (2, 0, 0, 0, 0, 0), Rounding.TO_POS: (0, 0, 0, 0, 0, 0),
    Rounding.TO_ZERO: (2, -2, 0, 0, 0, 0), Rounding.TO_AWAY: (0, 2, 0, 0, 0, 0),
    Rounding.TO_ODD: (0, 0, 2, 0, 0, 0), Rounding.TIES_NEG: (1, 0, 0, 0, 0, 0),
    Rounding.TIES_POS: (1, 0, 0, -1, 0, 0), Rounding.TIES_ZERO: (1, 0, 0, 0, -1, 0),
    Rounding.TIES_AWAY: (1, 0, 0, -1, 1, 0), Rounding.TIES_EVEN: (1, 0, 0, 0, 0, -1),
    Rounding.TIES_ODD: (1, 0, 0, -1, 0, 1),
}.items()}
MOST_ELEMENTS = 1 << 31  # of a channel, so that its sums in two words are exact


class Statistics(NamedTuple):
    """Codes (C,) of `spec.mean` and `spec.var`, and the variance that enters the running one."""

    mean: np.ndarray
    var: np.ndarray
    sample_var: np.ndarray


class Normed(NamedTuple):
    """Codes of `spec.y` and `spec.xhat`, and which of them were in range."""

    y: np.ndarray
    xhat: np.ndarray
    inside_y: np.ndarray
    inside_xhat: np.ndarray


class NormGrads(NamedTuple):
    """Codes of the casts of `spec.backward`, and how many of `x` were outside their range."""

    x: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    outside_x: int


def norm_statistics(x, spec: NormSpec) -> Statistics:
    """The mean and the variance of each channel of x (N, C, ...): exact sums, one rounding each."""
    check_kind(spec, "spec", NormSpec)
    x = _planes(x, "x", spec.x)
    n, frac = _count(x), spec.x.frac
    unbiased = spec.running is not None and spec.running.unbiased
    if unbiased and n == 1:
        raise ValueError("1 element in a channel: an unbiased variance needs 2; give more, or "
                         "write unbiased: false")
    sums = _sums(x, x)
    spread = [n * squares - total * total for total, squares in sums]  # n^2 times the variance
    mean = _each("mean", [total for total, _ in sums], frac, spec.mean, n)
    var = sample = _each("var", spread, 2 * frac, spec.var, n * n)
    if unbiased:
        sample = _each("sample_var", spread, 2 * frac, spec.var, n * (n - 1))
    return Statistics(mean, var, sample)


def batch_norm(x, mean, var, gamma, beta, spec: NormSpec, rand=None) -> Normed:
    """x (N, C, ...) normalised, scaled and shifted; mean, var, gamma and beta are codes (C,).

    In training `mean` and `var` are `norm_statistics`, in evaluation `frozen_norm`. `rand` holds
    the operands of a stochastic `y`, in the shape of x.
    """
    check_kind(spec, "spec", NormSpec)
    codes, shape = _planes(x, "x", spec.x), np.shape(x)
    mean, gamma, beta = (_channel(values, name, getattr(spec, name).format, codes).tolist()
                         for values, name in ((mean, "mean"), (gamma, "gamma"), (beta, "beta")))
    divisors = _divisors(var, spec, codes)
    (to_x, to_mean), frac = _aligned(spec.x.frac, spec.mean.format.frac)
    with named("xhat", 1):
        if spec.reciprocal is None:
            xhat = _quotients(codes, to_x, [-m << to_mean for m in mean], divisors,
                              frac - spec.std.format.frac, spec.xhat, shape)
        else:
            factors = _reciprocals(divisors, spec).tolist()
            xhat = _cast_line(codes, [f << to_x for f in factors],
                              [-m * f << to_mean for m, f in zip(mean, factors, strict=True)],
                              frac + spec.reciprocal.format.frac, spec.xhat, shape)
    (to_product, to_beta), frac = _aligned(spec.gamma.format.frac + spec.xhat.format.frac,
                                           spec.beta.format.frac)
    with named("y", 1):
        y = _cast_line(xhat.codes.reshape(codes.shape), [g << to_product for g in gamma],
                       [b << to_beta for b in beta], frac, spec.y, shape, rand=rand)
    return Normed(y.codes, xhat.codes, y.inside, xhat.inside)


def running_norm(mean, var, batch: Statistics, momentum: int, spec: NormSpec, rand_mean=None,
                 rand_var=None) -> tuple[np.ndarray, np.ndarray]:
    """The running (mean', var') (C,), codes of `spec.running`; `momentum` is a code of its cast."""
    running = _part(spec, "running")
    as_codes([momentum], "momentum", running.momentum.format)
    return (_moved(mean, "mean", batch.mean, momentum, spec, rand_mean),
            _moved(var, "var", batch.sample_var, momentum, spec, rand_var))


def _moved(old, name: str, new: np.ndarray, momentum: int, spec: NormSpec, rand) -> np.ndarray:
    """cast(old + momentum * (new - old)), exact inside."""
    to, bits = getattr(spec.running, name), spec.running.momentum.format.frac
    codes = as_codes(old, f"running {name}", to.format, 1)
    if codes.shape != new.shape:
        raise ValueError(f"running {name} {codes.shape} for {len(new)} channels: give one for each")
    (to_old, to_new), frac = _aligned(to.format.frac, getattr(spec, name).format.frac)
    exact = [(a << to_old + max(bits, 0)) + (momentum * ((b << to_new) - (a << to_old))
                                             << max(-bits, 0))
             for a, b in zip(codes.tolist(), new.tolist(), strict=True)]
    return _each(f"running_{name}", exact, frac + max(bits, 0), to, rand=rand)


def frozen_norm(mean, var, spec: NormSpec) -> tuple[np.ndarray, np.ndarray]:
    """(mean, var) (C,) of evaluation: the running statistics in the casts `mean` and `var`."""
    running = _part(spec, "running")
    return tuple(_each(name, as_codes(codes, f"running {name}", stored.format, 1).tolist(),
                       stored.format.frac, to)
                 for codes, name, stored, to in ((mean, "mean", running.mean, spec.mean),
                                                 (var, "var", running.var, spec.var)))


def batch_norm_grad(error, xhat, var, gamma, spec: NormSpec, frozen: bool = False, passes=None,
                    rand=None) -> NormGrads:
    """The gradients of x (N, C, ...), gamma and beta (C,) from the error (N, C, ...) of y.

    `passes` (N, C, ...) is the straight-through gradient of the cast `xhat`: an error that it
    blocks reaches gamma and beta, but not x. The casts of a whole channel pass everywhere. With
    `frozen` the statistics do not depend on x. `rand` holds the operands of stochastic casts under
    their names.
    """
    back, rand, shape = _part(spec, "backward"), rand or {}, np.shape(error)
    if shape != np.shape(xhat) or (passes is not None and shape != np.shape(passes)):
        raise ValueError(f"error {shape}, xhat {np.shape(xhat)}, passes {np.shape(passes)}: shapes "
                         "differ")
    error, xhat = _planes(error, "error", back.error), _planes(xhat, "xhat", spec.xhat.format)
    gamma = _channel(gamma, "gamma", spec.gamma.format, error)
    e_frac, h_frac = back.error.frac, spec.xhat.format.frac
    n, sums = _count(error), _sums(error, xhat)
    grad_gamma = _each("grad_gamma", [s[1] for s in sums], e_frac + h_frac, back.grad_gamma,
                       rand=rand.get("grad_gamma"))
    grad_beta = _each("grad_beta", [s[0] for s in sums], e_frac, back.grad_beta,
                      rand=rand.get("grad_beta"))
    if passes is not None:
        error = np.where(np.reshape(passes, error.shape), error, 0)
        sums = _sums(error, xhat)
    if frozen:
        sums = [(0, 0)] * len(sums)
    mean_error = _each("mean_error", [s[0] for s in sums], e_frac, back.mean_error, n).tolist()
    mean_product = _each("mean_product", [s[1] for s in sums], e_frac + h_frac, back.mean_product,
                         n).tolist()
    (to_e, to_mean, to_product), frac = _aligned(
        e_frac, back.mean_error.format.frac, h_frac + back.mean_product.format.frac)
    scale = _scales(gamma.tolist(), _divisors(var, spec, error), spec).tolist()
    with named("grad_x", 1):
        x = _cast_line(error, [k << to_e for k in scale],
                       [-k * m << to_mean for k, m in zip(scale, mean_error, strict=True)],
                       back.scale.format.frac + frac, back.grad_x, shape, xhat,
                       [-k * m << to_product for k, m in zip(scale, mean_product, strict=True)],
                       rand.get("grad_x"))
    return NormGrads(x.codes, grad_gamma, grad_beta, x.outside)


def _part(spec: NormSpec, name: str):
    """`spec.running` or `spec.backward`, which may be missing."""
    check_kind(spec, "spec", NormSpec)
    if getattr(spec, name) is None:
        raise ValueError(f"norm {spec} has no {name}; give it one")
    return getattr(spec, name)


def _each(name: str, exact: list[int], frac: int, to: Cast,
          divisors: int | list[int] | None = None, rand=None) -> np.ndarray:
    """Numbers of any width, one for each channel, or these over divisors, as codes of `to`."""
    operands = operands_of(to, (len(exact),), rand).tolist()
    if isinstance(divisors, int):
        divisors = [divisors] * len(exact)
    with named(name, 0):
        return np.array(cast_each(exact, frac, to, divisors, operands or None), np.int64)


def _planes(codes, name: str, form: Format) -> np.ndarray:
    """(N, C, ...) as codes (N, C, S)."""
    array = as_codes(codes, name, form, dtype=None)
    if array.ndim < 2:
        raise ValueError(f"{name}: shape {array.shape} has no channels; needs (N, C, ...)")
    return array.reshape(*array.shape[:2], int(np.prod(array.shape[2:])))


def _channel(codes, name: str, form: Format, x: np.ndarray) -> np.ndarray:
    array = as_codes(codes, name, form, 1)
    if len(array) != x.shape[1]:
        raise ValueError(f"{name} {array.shape} for {x.shape[1]} channels: give one for each")
    return array


def _count(x: np.ndarray) -> int:
    """The elements of a channel."""
    n = x.shape[0] * x.shape[2]
    if not 1 <= n <= MOST_ELEMENTS:
        raise ValueError(f"{n} elements in a channel: needs 1 to {MOST_ELEMENTS}")
    return n


def _sums(a: np.ndarray, b: np.ndarray) -> list[tuple[int, int]]:
    """(sum of a, sum of a * b) of each channel, exact."""
    words, dtype = np.empty((a.shape[1], 3), np.int64), np.int32
    if max(a.itemsize, b.itemsize) > 4:
        dtype = np.int64
    launch(channel_sums, 3 * a.size, ready(a, dtype), ready(b, dtype), words)
    return [(total, (high << 32) + low) for total, high, low in words.tolist()]


def _cast_line(a: np.ndarray, p: list[int], r: list[int], frac: int, to: Cast, shape: tuple,
               b: np.ndarray | None = None, q: list[int] | None = None, rand=None) -> Casted:
    """a * p + b * q + r by channel, exactly, as codes of `to` in the original shape.

    In lanes where the sum of the three magnitudes fits one; else by `cast_full`, which records
    itself where someone watches.
    """
    most_a, most_b = (max(1, largest(x)) for x in (a, a if b is None else b))
    q = q or [0] * len(p)
    reach = max((abs(x) * most_a + abs(y) * most_b + abs(z)
                 for x, y, z in zip(p, q, r, strict=True)), default=0)
    c = lane_cast(frac, to)
    lane = lane_for(c, reach.bit_length() + 1)
    if lane is None or watching() is not None:
        return cast_full(_line(a, p, r, b, q).reshape(shape), frac, to, rand)
    left = _factors(a)
    right = left if b is None else _factors(b)
    kind = INT32 if all(-1 << 31 <= x < 1 << 31 for x in (*p, *q)) else INT64
    out, inside = np.empty(a.shape, dtype_of(to.format)), np.empty(a.shape, np.bool_)
    outside = launch(line_casts, CAST * a.size, left, np.array(p, kind), right, np.array(q, kind),
                     np.array(r, lane), c, np.empty(0, lane), operands_of(to, shape, rand), out,
                     inside)
    return Casted(out.reshape(shape), inside.reshape(shape), outside)


def _factors(codes: np.ndarray) -> np.ndarray:
    """Codes in one of two dtypes, for which kernels are compiled."""
    return ready(codes, INT64 if codes.dtype == INT64 else INT32)


def _quotients(a: np.ndarray, up: int, r: list[int], divisors: list[int], frac: int, to: Cast,
               shape: tuple) -> Casted:
    """(a << up) + r over the divisors, by channel, one rounding, in the original shape.

    In float64 where all that occurs is exact in it; else by `divide`, which records itself where
    someone watches.
    """
    n = frac - to.format.frac
    zeros, below = max(-n, 0), max(n, 0)
    top = [x << zeros for x in r]
    reach = (largest(a) << up + zeros) + max((abs(x) for x in top), default=0)
    whole = [d << min(below, EXACT) for d in divisors]
    if (watching() is not None or to.rounding not in THRESHOLDS or to.format.width > EXACT
            or max([reach, *whole]).bit_length() > EXACT):
        by_channel = np.reshape(divisors, (-1, *[1] * (len(shape) - 2)))
        centred = _line(a, [1 << up] * len(r), r).reshape(shape)
        return divide(centred, by_channel, frac, to)
    out, inside = np.empty(a.shape, dtype_of(to.format)), np.empty(a.shape, np.bool_)
    outside = launch(quotients, CAST * a.size, _factors(a), 2.0**(up + zeros),
                     np.array(top, np.float64), np.array(whole, np.float64),
                     THRESHOLDS[to.rounding], lane_cast(to.format.frac, to), np.empty(0, INT64),
                     out, inside)
    return Casted(out.reshape(shape), inside.reshape(shape), outside)


def _line(a: np.ndarray, p: list[int], r: list[int], b: np.ndarray | None = None,
          q: list[int] | None = None) -> np.ndarray:
    """a * p + b * q + r by channel, in int64, modulo 2^64: the spec proves that the sum fits."""
    p, q, r = (np.array([(x + (1 << 63)) % (1 << 64) - (1 << 63) for x in each or [0]], np.int64)
               for each in (p, q, r))
    total = a * p[:, None] + r[:, None]
    return total if b is None else total + b * q[:, None]


def norm_divisors(var, spec: NormSpec) -> list[int]:
    """Each channel's deviation, sqrt(var + eps_var), plus eps_std, at least one code of std."""
    return [max(1, root_int(code + spec.eps_var, spec.var.format.frac, spec.std) + spec.eps_std)
            for code in as_codes(var, "var", spec.var.format, 1).tolist()]


def _divisors(var, spec: NormSpec, x: np.ndarray) -> list[int]:
    return norm_divisors(_channel(var, "var", spec.var.format, x), spec)


def _reciprocals(divisors: list[int], spec: NormSpec) -> np.ndarray:
    return _each("reciprocal", [1] * len(divisors), -spec.std.format.frac, spec.reciprocal,
                 divisors)


def _scales(gamma: list[int], divisors: list[int], spec: NormSpec) -> np.ndarray:
    """gamma / divisors in the cast `scale`, or by the codes of 1 / divisors."""
    frac, to = spec.gamma.format.frac, spec.backward.scale
    if spec.reciprocal is None:
        return _each("scale", gamma, frac - spec.std.format.frac, to, divisors)
    products = [g * r for g, r in zip(gamma, _reciprocals(divisors, spec).tolist(), strict=True)]
    return _each("scale", products, frac + spec.reciprocal.format.frac, to)


def _aligned(*fracs: int) -> tuple[tuple[int, ...], int]:
    """The left shift of each, and the finest frac, at which they add exactly."""
    finest = max(fracs)
    return tuple(finest - frac for frac in fracs), finest
