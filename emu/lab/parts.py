"""Batch norm and averages as the operations that hardware has: sums on a mac, casts on a quantizer.

No unit of hw/rtl divides, takes a root or reads a table. The entry of a table is what it is; a
quotient or a root is made by the model, cut to odd behind the bits that its cast looks at, and the
quantizer rounds it: once, to the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isqrt
from typing import NamedTuple

import numpy as np

from emu import engine
from emu.golden.trace import exact_mac
from emu.nn.backend import Backend, Place
from emu.norm import NormSpec
from emu.number import ACC_WIDTHS, MAX_OPERAND, MAX_WIDTH, Cast, Format
from emu.spec import MacSpec

MINUS = Format(1)  # whose code -1 subtracts
PARTED = ("norm_statistics", "batch_norm", "running_norm", "frozen_norm", "batch_norm_grad",
          "divide", "lookup_grad")  # what `Parts` makes of `dots` and `cast`


class Exact(NamedTuple):
    """Exact numbers (N, C, S), or one for each channel (1, C, 1): codes of a format."""

    codes: np.ndarray
    form: Format


class Parts(Backend):
    """`Backend` whose batch norm, forward and backward, is made of `dots` and `cast`.

    Raises ValueError for a sum that no accumulator of mac.v holds.
    """

    def dots(self, place: Place, a: np.ndarray, b: np.ndarray, mac: MacSpec,
             bias: np.ndarray | None = None) -> np.ndarray:
        """Rows a and b (M, K) -> the accumulator codes (M,) of the dot product of each pair."""
        raise NotImplementedError

    def made(self, place: Place, what: str, codes: np.ndarray, form: Format, to: Cast
             ) -> engine.Casted:
        """The cast of codes that no unit computes, for which `what` is the formula."""
        return self.cast(place, codes, form, to)

    def norm_statistics(self, place, x, spec):
        x = _planes(x, spec.x)
        n, unbiased = x.codes[:, 0].size, spec.running is not None and spec.running.unbiased
        if unbiased and n == 1:
            raise ValueError(f"{place.site}.{place.name}: 1 element in a channel: an unbiased "
                             "variance needs 2; give more, or write unbiased: false")
        total, squares = self._sum(place.part("sum"), x), self._sum(place.part("squares"), x, x)
        pairs = list(zip(_list(total), _list(squares), strict=True))
        spread = [n * square - first * first for first, square in pairs]
        mean = self._mean(place.part("mean"), total, n, spec.mean).codes.reshape(-1)
        formula = "(n * squares - sum^2) / n^2"
        var = self._quotients(place.part("var"), formula, spread, n * n, 2 * spec.x.frac, spec.var)
        sample = var
        if unbiased:
            sample = self._quotients(place.part("sample_var"), "(n * squares - sum^2) / (n^2 - n)",
                                     spread, n * (n - 1), 2 * spec.x.frac, spec.var)
        return engine.Statistics(mean, *(found.codes.astype(np.int64) for found in (var, sample)))

    def batch_norm(self, place, x, mean, var, gamma, beta, spec):
        shape, x = x.shape, _planes(x, spec.x)
        mean, gamma, beta = (_channel(codes, getattr(spec, name).format) for codes, name in (
            (mean, "mean"), (gamma, "gamma"), (beta, "beta")))
        divisors = self._divisors(place, var, spec)
        centred = self._plus(place.part("centred"), mean, _all(-1, MINUS), x)
        if spec.reciprocal is None:
            each = np.broadcast_to(np.reshape(divisors, (1, -1, 1)), x.codes.shape)
            xhat = self._quotients(place.part("xhat"), "(x - mean) / divisor", _list(centred),
                                   each.ravel().tolist(),
                                   centred.form.frac - spec.std.format.frac, spec.xhat, shape)
        else:
            product = self._plus(place.part("xhat"), centred,
                                 self._reciprocals(place, divisors, spec))
            xhat = self._cast_exact(place.part("xhat"), product, spec.xhat, shape)
        normed = Exact(xhat.codes.reshape(x.codes.shape), spec.xhat.format)
        y = self._cast_exact(place.part("y"), self._plus(place.part("y"), normed, gamma, beta),
                             spec.y, shape)
        return engine.Normed(y.codes, xhat.codes, y.inside, xhat.inside)

    def running_norm(self, place, mean, var, batch, momentum, spec):
        return tuple(self._moved(place.part(name), old, new, momentum, name, spec)
                     for name, old, new in (("mean", mean, batch.mean),
                                            ("var", var, batch.sample_var)))

    def _moved(self, place: Place, old, new, momentum: int, name: str, spec: NormSpec
               ) -> np.ndarray:
        """cast(old + momentum * (new - old)), made by the model where no accumulator holds it."""
        to, share = getattr(spec.running, name), spec.running.momentum.format
        held, found = Exact(old, to.format), Exact(new, getattr(spec, name).format)
        width = _moved_width(held.form, found.form, share)
        if width <= ACC_WIDTHS[1]:
            step = self._plus(place.part("step"), held, _all(-1, MINUS), found)
            moved = self._plus(place, step, _all(momentum, share), held)
            return self._cast_exact(place, moved, to, old.shape).codes.astype(np.int64)
        frac = max(held.form.frac, found.form.frac)
        up, fine = (frac - held.form.frac, frac - found.form.frac), max(share.frac, 0)
        exact = [(a << up[0] + fine) + (momentum * ((b << up[1]) - (a << up[0]))
                                        << fine - share.frac)
                 for a, b in zip(_list(held), _list(found), strict=True)]
        what = f"old + momentum * (new - old): {width} bits, and mac.v adds {ACC_WIDTHS[1]}"
        return self._quotients(place, what, exact, 1, frac + fine, to
                               ).codes.astype(np.int64)

    def frozen_norm(self, place, mean, var, spec):
        return tuple(self.cast(place.part(name), codes, getattr(spec.running, name).format,
                               getattr(spec, name)).codes.astype(np.int64)
                     for name, codes in (("mean", mean), ("var", var)))

    def batch_norm_grad(self, place, error, xhat, var, gamma, spec, frozen, inside):
        back, shape = spec.backward, error.shape
        error, xhat = _planes(error, back.error), _planes(xhat, spec.xhat.format)
        gamma, n = _channel(gamma, spec.gamma.format), error.codes.shape[0] * error.codes.shape[2]
        sums = {"beta": self._sum(place.part("sum"), error),
                "gamma": self._sum(place.part("products"), error, xhat)}
        params = {name: self._cast_exact(place.part(f"grad_{name}"), exact,
                                         getattr(back, f"grad_{name}"), gamma.codes.shape[1])
                  for name, exact in sums.items()}
        if inside is not None:
            error = error._replace(codes=np.where(inside.reshape(error.codes.shape), error.codes,
                                                  0))
            sums = {"beta": self._sum(place.part("passing_sum"), error),
                    "gamma": self._sum(place.part("passing_products"), error, xhat)}
        inner = error
        if not frozen:
            means = [self._mean(place.part(name), sums[of], n, getattr(back, name)) for name, of in
                     (("mean_error", "beta"), ("mean_product", "gamma"))]
            centred = self._plus(place.part("centred"), means[0], _all(-1, MINUS), error)
            inner = self._plus(place.part("inner"), _minus(means[1]), xhat, centred)
        scale = self._scales(place, var, gamma, spec)
        x = self._cast_exact(place.part("grad_x"), self._plus(place.part("grad_x"), inner, scale),
                             back.grad_x, shape)
        return engine.NormGrads(x.codes, *(params[name].codes.astype(np.int64)
                                           for name in ("gamma", "beta")), x.outside)

    def divide(self, place, codes, divisor, form, to):
        each = np.broadcast_to(divisor, codes.shape)
        return self._quotients(place, "sum / area", codes.ravel().tolist(), each.ravel().tolist(),
                               form.frac, to, codes.shape)

    def lookup_grad(self, place, error, frac, x, slope, to):
        low, high = engine.bounds(error)
        given = Exact(error.astype(np.int64), Format.holding(min(low, -1), high, frac))
        product = self._plus(place, given, Exact(engine.lookup(x, slope), slope.y.format))
        return self._cast_exact(place, product, to, error.shape)

    def _divisors(self, place: Place, var, spec: NormSpec) -> list[int]:
        """max(1, std + eps_std) of each channel: std is a root in its cast."""
        to, frac = spec.std, spec.var.format.frac
        bits = max(to.format.frac + 2, -(-frac // 2))
        squares = [code + spec.eps_var << 2 * bits - frac for code in np.asarray(var).tolist()]
        roots = [isqrt(square) for square in squares]
        odd = [root | (root * root != square) for root, square in zip(roots, squares, strict=True)]
        found = self._made(place.part("std"), "sqrt(var + eps_var)", odd, bits, to, (len(odd),))
        return [max(1, code + spec.eps_std) for code in found.codes.tolist()]

    def _reciprocals(self, place: Place, divisors: list[int], spec: NormSpec) -> Exact:
        found = self._quotients(place.part("reciprocal"), "1 / divisor", [1] * len(divisors),
                                divisors, -spec.std.format.frac, spec.reciprocal)
        return _channel(found.codes, spec.reciprocal.format)

    def _scales(self, place: Place, var, gamma: Exact, spec: NormSpec) -> Exact:
        """gamma / divisor in the cast `scale`, or gamma times the code of 1 / divisor."""
        divisors, to = self._divisors(place, var, spec), spec.backward.scale
        place = place.part("scale")
        if spec.reciprocal is None:
            found = self._quotients(place, "gamma / divisor", _list(gamma), divisors,
                                    gamma.form.frac - spec.std.format.frac, to)
        else:
            product = self._plus(place, gamma, self._reciprocals(place, divisors, spec))
            found = self._cast_exact(place, product, to, (len(divisors),))
        return _channel(found.codes, to.format)

    def _mean(self, place: Place, sums: Exact, n: int, to: Cast) -> Exact:
        """sums / n in a cast: a shift where n is a power of two."""
        if n & (n - 1):
            found = self._quotients(place, "sum / n", _list(sums), n, sums.form.frac, to)
        else:
            shifted = sums.form.with_frac(sums.form.frac + n.bit_length() - 1)
            found = self._cast_exact(place, sums._replace(form=shifted), to, (sums.codes.size,))
        return _channel(found.codes, to.format)

    def _quotients(self, place: Place, what: str, tops: Sequence[int],
                   divisors: int | Sequence[int], frac: int, to: Cast,
                   shape: tuple[int, ...] | None = None) -> engine.Casted:
        """tops * 2^-frac / divisors, cut to odd behind the bits that the cast looks at, cast."""
        if isinstance(divisors, int):
            divisors = [divisors] * len(tops)
        bits = to.format.frac + max(2, to.rand_bits + 1)
        up = bits - frac
        floors = [divmod(top << max(up, 0), divisor << max(-up, 0))
                  for top, divisor in zip(tops, divisors, strict=True)]
        return self._made(place, what, [floor | (rest != 0) for floor, rest in floors], bits, to,
                          shape or (len(tops),))

    def _made(self, place: Place, what: str, codes: list[int], frac: int, to: Cast,
              shape: tuple[int, ...]) -> engine.Casted:
        width = 1 + max(max(code, -code - 1).bit_length() for code in codes)
        if width > MAX_WIDTH:
            raise ValueError(f"{place.site}.{place.name}: {what} has {width} bits before its cast "
                             f"{to}, and quantizer.v takes {MAX_WIDTH}; use fewer fraction bits")
        return self.made(place, what, np.array(codes, np.int64).reshape(shape),
                         Format(max(width, 2), frac), to)

    def _cast_exact(self, place: Place, exact: Exact, to: Cast, shape) -> engine.Casted:
        return self.cast(place, exact.codes.reshape(shape), exact.form, to)

    def _sum(self, place: Place, a: Exact, b: Exact | None = None) -> Exact:
        """The sum of a, or of a * b, over each channel."""
        b = b or _all(1, Format(1, 0, False))
        rows = [np.broadcast_to(each.codes, a.codes.shape).transpose(1, 0, 2).reshape(
            a.codes.shape[1], -1) for each in (a, b)]
        corners = [x * y for x in (a.form.lo, a.form.hi) for y in (b.form.lo, b.form.hi)]
        count = rows[0].shape[1]
        mac = _accumulator(place, lambda: MacSpec(
            a.form.with_frac(0), b.form.with_frac(0),
            Cast(_at_least_two(count * min(corners), count * max(corners)))))
        return Exact(self.dots(place, *rows, mac).reshape(1, -1, 1),
                     mac.acc.format.with_frac(a.form.frac + b.form.frac))

    def _plus(self, place: Place, a: Exact, b: Exact, addend: Exact | None = None) -> Exact:
        """addend + a * b; an `a` that is wider than an operand goes in two parts."""
        if a.form.width > MAX_OPERAND:
            low = Format(MAX_OPERAND, a.form.frac, signed=False)
            high = Format(a.form.width - MAX_OPERAND, a.form.frac - MAX_OPERAND, a.form.signed)
            addend = self._plus(place.part("low"), Exact(a.codes & low.hi, low), b, addend)
            a = Exact(a.codes >> MAX_OPERAND, high)
        given = (a, b) if addend is None else (a, b, addend)
        codes = np.broadcast_arrays(*(np.asarray(each.codes, np.int64) for each in given))
        mac, align = _accumulator(place, lambda: exact_mac(*(each.form for each in given)))
        bias = None if addend is None else codes[2].ravel() << align
        sums = self.dots(place, codes[0].reshape(-1, 1), codes[1].reshape(-1, 1), mac, bias)
        return Exact(sums.reshape(codes[0].shape), mac.acc.format.with_frac(
            a.form.frac + b.form.frac + mac.product.format.frac))


def _planes(codes: np.ndarray, form: Format) -> Exact:
    return Exact(codes.reshape(*codes.shape[:2], -1).astype(np.int64), form)


def _channel(codes, form: Format) -> Exact:
    return Exact(np.asarray(codes, np.int64).reshape(1, -1, 1), form)


def _all(code: int, form: Format) -> Exact:
    return Exact(np.full((1, 1, 1), code, np.int64), form)


def _minus(exact: Exact) -> Exact:
    form = exact.form
    return Exact(-exact.codes, Format(form.width + 1, form.frac))


def _list(exact: Exact) -> list[int]:
    return exact.codes.ravel().tolist()


def _at_least_two(low: int, high: int) -> Format:
    found = Format.holding(low, high)
    return Format(max(found.width, 2), 0, found.signed)


def _accumulator(place: Place, make: Callable):
    """make(), whose ValueError names the place."""
    try:
        return make()
    except ValueError as error:
        raise ValueError(f"{place.site}.{place.name}: its exact sum has no accumulator in mac.v, "
                         f"which has at most {ACC_WIDTHS[1]} bits ({error}); use narrower casts"
                         ) from None


def _moved_width(held: Format, found: Format, share: Format) -> int:
    """The bits of old + momentum * (new - old), exactly."""
    frac = max(held.frac, found.frac)
    old, new = (max(form.hi, -form.lo) << frac - form.frac for form in (held, found))
    return ((old << max(share.frac, 0)) + (share.hi * (old + new) << max(-share.frac, 0))
            ).bit_length() + 1
