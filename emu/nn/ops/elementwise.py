"""Sums, differences, products and quotients of two operands, element by element.

Binary points are aligned exactly and products are whole: only the casts of the site lose bits.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from emu import engine
from emu.nn import border
from emu.nn.grads import Gradient
from emu.nn.layer import Codes, Layer
from emu.nn.operation import Operation, run
from emu.nn.ops.contract import folded, masked
from emu.nn.ops.pool import divided


class _Binary(Operation):
    """Two operands that broadcast, each a tensor or a number; the first is cast by x.

    A parameter's gradient leaves in the cast grad_w where the site has one.
    """

    second = "w"  # the cast of the second

    def __init__(self, *values):
        self.numbers = [None if isinstance(x, torch.Tensor) else x for x in values]

    def enter(self, layer: Layer, training: bool, tensors) -> list[Codes]:
        """The operands in their casts."""
        self.parameters = [isinstance(x, torch.nn.Parameter) for x in tensors]
        self.operands = [entered(layer, name, number if x is None else x, training)
                         for name, number, x in zip(("x", self.second), self.numbers, tensors,
                                                    strict=True)]
        return self.operands

    def leave(self, layer: Layer, training: bool, codes: np.ndarray, frac: int) -> Codes:
        """The result in the cast y."""
        out = layer.leave("y", codes, border.holding(codes, frac), training)
        self.passes = out.passes
        return out

    def hand_back(self, layer: Layer, training: bool, i: int, codes: np.ndarray, frac: int
                  ) -> Codes:
        """The gradient of one operand, before what was broadcast is added up."""
        operand = self.operands[i]
        codes = masked(folded(codes, operand.codes.shape), operand.passes)
        found = Codes(codes, border.holding(codes, frac), None)
        if self.parameters[i]:
            found = layer.leave(f"grad_w.{i}", found.codes, found.form, training)
        return found


def entered(layer: Layer, name: str, value, training: bool) -> Codes:
    """An operand cast by the spec's `name` where it has one, else as it is; also a number."""
    if not isinstance(value, torch.Tensor):
        value = torch.tensor(value, dtype=torch.float64)
    elif not value.is_floating_point():
        value = value.double()
    if layer.cast_of(name, training) is not None:
        return layer.enter(name, value, training)
    codes, frac = border.to_codes(value, f"{layer.site}.{name}")
    return Codes(codes, border.holding(codes, frac), None)


def arrived(layer: Layer, gradient: Gradient, training: bool) -> Codes:
    """The gradient cast by the spec's `error` where it has one, else as it is."""
    if layer.cast_of("error", training) is not None:
        return gradient.enter(layer, training)
    return gradient.exact(f"{layer.site}.error")


class _Sum(_Binary):
    """factor * x + factor * y, for factors ±2^k."""

    second = "x.1"

    def __init__(self, x, y, *factors: tuple[int, int]):
        super().__init__(x, y)
        self.factors = factors  # signs and exponents

    def forward(self, layer, training, *tensors):
        terms = []
        for operand, (sign, up) in zip(self.enter(layer, training, tensors), self.factors,
                                       strict=True):
            terms += [signed(operand.codes, sign), operand.form.frac - up]
        try:
            return self.leave(layer, training, *engine.aligned_sum(*terms))
        except ValueError as error:
            raise ValueError(f"layer {layer.site!r}: {error}") from None

    def backward(self, layer, training, gradient, needs):
        error = arrived(layer, gradient.masked(self.passes), training)
        return [self.hand_back(layer, training, i, signed(error.codes, sign),
                               error.form.frac - up) if need else None
                for i, (need, (sign, up)) in enumerate(zip(needs, self.factors, strict=True))]


def signed(codes: np.ndarray, sign: int) -> np.ndarray:
    """sign * codes, in a dtype that holds them."""
    return codes if sign == 1 else codes.astype(np.int64) * sign


class _Product(_Binary):
    def forward(self, layer, training, *tensors):
        return self.leave(layer, training, *product(layer, *self.enter(layer, training, tensors)))

    def backward(self, layer, training, gradient, needs):
        error = arrived(layer, gradient.masked(self.passes), training)
        return [self.hand_back(layer, training, i, *product(layer, error, other)) if need else None
                for i, (need, other) in enumerate(zip(needs, self.operands[::-1], strict=True))]


class _Square(_Binary):
    def forward(self, layer, training, x):
        self.parameters, self.operands = [False], [entered(layer, "x", x, training)]
        return self.leave(layer, training, *product(layer, *self.operands * 2))

    def backward(self, layer, training, gradient, needs):
        error = arrived(layer, gradient.masked(self.passes), training)
        codes, frac = product(layer, error, self.operands[0])
        return [self.hand_back(layer, training, 0, codes, frac - 1)]


def product(layer: Layer, a: Codes, b: Codes) -> tuple[np.ndarray, int]:
    """The whole products of two operands, and their frac; raises ValueError beyond int64."""
    bits = a.form.width + b.form.width
    if bits > 63:
        raise ValueError(f"layer {layer.site!r}: {a.form} times {b.form} needs {bits} bits, the "
                         "limit is 63; give the site narrower casts x, w and error")
    return np.asarray(a.codes.astype(np.int64) * b.codes), a.form.frac + b.form.frac


class _Quotient(_Binary):
    """x / w, rounded once in the cast y; its error over w once in the cast error.

    The gradient of w is minus the product of that error and y.
    """

    def forward(self, layer, training, *tensors):
        x, w = self.enter(layer, training, tensors)
        if not w.codes.all():
            raise ValueError(f"layer {layer.site!r}: division by zero; a divisor's code is 0 in "
                             f"{w.form}")
        out = self.y = self._over(layer, "y", x, w, training)
        self.passes = out.passes
        return out

    def backward(self, layer, training, gradient, needs):
        error = gradient.masked(self.passes).exact(f"{layer.site}.error")
        error = self._over(layer, "error", error, self.operands[1], training)
        codes, frac = product(layer, error, self.y)
        grads = (error.codes, error.form.frac), (-codes, frac)
        return [self.hand_back(layer, training, i, *grad) if need else None
                for i, (need, grad) in enumerate(zip(needs, grads, strict=True))]

    def _over(self, layer, name: str, x: Codes, w: Codes, training: bool) -> Codes:
        codes = x.codes.astype(np.int64) * np.sign(w.codes)
        divisor = np.broadcast_to(np.abs(w.codes.astype(np.int64)), codes.shape)
        return divided(layer, name, codes, divisor, x.form.frac - w.form.frac, training)


class _Signs(Operation):
    """x times the signs that its codes give."""

    def __init__(self, of):
        self.of = of

    def forward(self, layer, training, x):
        codes, frac = border.to_codes(x, f"{layer.site}.x")
        self.signs = self.of(codes)
        codes = codes * self.signs
        return Codes(codes, border.holding(codes, frac), None)

    def backward(self, layer, training, gradient, needs):
        error = gradient.exact(f"{layer.site}.error")
        codes = error.codes.astype(np.int64) * self.signs
        return [Codes(codes, border.holding(codes, error.form.frac), None)]


def _run(operation: _Binary, layer: Layer, training: bool, *values) -> torch.Tensor:
    return run(operation, layer, training,
               *(x if isinstance(x, torch.Tensor) else None for x in values))


def _power_of_two(layer: Layer, alpha) -> tuple[int, int]:
    """(sign, k) of alpha = sign * 2^k; raises ValueError for another."""
    fraction, exponent = math.frexp(alpha)
    if abs(fraction) != 0.5:
        raise ValueError(f"layer {layer.site!r}: alpha {alpha} is no power of two, which a shift "
                         "could be; multiply first, as an operation of its own")
    return (1 if alpha > 0 else -1), exponent - 1


def add(layer: Layer, training: bool, input, other, *, alpha=1):
    """torch.add: both operands cast by x where it is given, the exact sum by y."""
    factors = (1, 0), _power_of_two(layer, alpha)
    return _run(_Sum(input, other, *factors), layer, training, input, other)


def sub(layer: Layer, training: bool, input, other, *, alpha=1):
    """torch.sub, as `add`."""
    return add(layer, training, input, other, alpha=-alpha)


def rsub(layer: Layer, training: bool, input, other, *, alpha=1):
    """torch.rsub: other - alpha * input, as `add`."""
    factors = _power_of_two(layer, -alpha), (1, 0)
    return _run(_Sum(input, other, *factors), layer, training, input, other)


def mul(layer: Layer, training: bool, input, other):
    """torch.mul: operands cast by x and w where they are given, the whole product by y.

    A parameter is the operand w. Both gradients are whole products.
    """
    if isinstance(input, torch.nn.Parameter) and not isinstance(other, torch.nn.Parameter):
        input, other = other, input
    return _run(_Product(input, other), layer, training, input, other)


def div(layer: Layer, training: bool, input, other):
    """torch.div: operands cast by x and w where they are given, the quotient rounded once by y."""
    return _run(_Quotient(input, other), layer, training, input, other)


def rdiv(layer: Layer, training: bool, input, other):
    """other / input."""
    return div(layer, training, other, input)


def square(layer: Layer, training: bool, input, exponent=2):
    """torch.square: x cast once, its whole square by y."""
    return run(_Square(input), layer, training, input)


def neg(layer: Layer, training: bool, input):
    """torch.neg, exact."""
    return run(_Signs(lambda codes: np.int64(-1)), layer, training, input)


def absolute(layer: Layer, training: bool, input):
    """torch.abs, exact; the error of 0 is 0."""
    return run(_Signs(np.sign), layer, training, input)
