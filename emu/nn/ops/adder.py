"""AdderNet: sums of absolute differences on codes; and weights that are powers of two."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from emu import engine
from emu.nn import border
from emu.nn.adder import nearest_power
from emu.nn.audit import host
from emu.nn.layer import Codes, Layer
from emu.nn.operation import Operation, run
from emu.nn.ops.contract import _check, masked, padding_of, pair
from emu.number import Cast, Format
from emu.spec import MacSpec

FACTOR_WIDTH = 63  # bits of a gradient times its factor


class _Adder2d(Operation):
    """x (N, C, H, W) from w (O, C/groups, KH, KW), whose codes are aligned to one grid.

    The operands of the three MACs follow: aligned x and w, and differences against errors.
    """

    def __init__(self, stride, padding, dilation, groups, normalise: bool):
        self.geometry = {"stride": stride, "padding": padding, "dilation": dilation,
                         "groups": groups}
        self.normalise = normalise

    def forward(self, layer, training, x, w, b=None):
        self.x, self.w = layer.enter("x", x, training), layer.enter("w", w, training)
        self.frac = max(self.x.form.frac, self.w.form.frac, 0)  # of a grid that holds 1
        mac, form = layer.mac("forward", training), layer.result("forward", training, self.frac)
        self.bias = None
        if b is not None:
            self.bias = layer.preload(layer.enter("b", b, training), form, training)
        (x, of_x), (w, of_w) = self._aligned()
        codes = layer.backend.adder2d(
            layer.place("forward", training), x, w, with_operands(mac, of_x, of_w),
            None if self.bias is None else self.bias.codes, **self.geometry)
        out = layer.leave("y", codes, form, training)
        self.passes = out.passes
        return out

    def _aligned(self) -> list[tuple[np.ndarray, Format]]:
        """The codes of x and w on their common grid, and their formats there, in integer units."""
        found = []
        for of in (self.x, self.w):
            up = self.frac - of.form.frac
            found.append((of.codes.astype(np.int64) << up,
                          Format(of.form.width + up, 0, of.form.signed)))
        return found

    def backward(self, layer, training, gradient, needs):
        error = gradient.masked(self.passes).enter(layer, training)
        (x, of_x), (w, of_w) = self._aligned()
        of_error = error.form.with_frac(0)
        found: list[Codes | None] = [None] * len(needs)
        if needs[0]:
            reach = max(of_w.hi - of_x.lo, of_x.hi - of_w.lo)
            limit = min(1 << self.frac, reach)
            mac = with_operands(layer.mac("grad_input", training), Format.holding(-limit, limit),
                                of_error)
            codes = layer.backend.adder2d_grad_input(layer.place("grad_input", training), x, w,
                                                     error.codes, mac, limit, **self.geometry)
            found[0] = Codes(masked(codes, self.x.passes), self._of(mac, error), None)
        if needs[1]:
            low, high = min(of_x.lo, 0) - of_w.hi, max(of_x.hi, 0) - of_w.lo
            mac = with_operands(layer.mac("grad_weight", training), Format.holding(low, high),
                                of_error)
            codes = layer.backend.adder2d_grad_weight(layer.place("grad_weight", training), x, w,
                                                      error.codes, mac, **self.geometry)
            codes, form = masked(codes, self.w.passes), self._of(mac, error)
            if self.normalise:
                codes, form = _normalised(layer, codes, form)
            found[1] = layer.requantise("grad_w", codes, form, training)
        if self.bias is not None and needs[2]:
            rows = np.moveaxis(error.codes, 1, -1).reshape(-1, error.codes.shape[1])
            mac = layer.mac("grad_bias", training)
            codes = layer.backend.matmul(layer.place("grad_bias", training), rows.T,
                                         np.ones((rows.shape[0], 1), np.int64), mac)[:, 0]
            form = mac.result.format.with_frac(error.form.frac + mac.result.format.frac)
            found[2] = layer.requantise("grad_b", masked(codes, self.bias.passes), form, training)
        return found

    def _of(self, mac: MacSpec, error: Codes) -> Format:
        form = mac.result.format
        return form.with_frac(self.frac + error.form.frac + form.frac)


def _normalised(layer: Layer, codes: np.ndarray, form: Format) -> tuple[np.ndarray, Format]:
    """The gradient times its factor, exactly."""
    factor, frac = engine.adder_factor(codes, form.frac)
    most = border.holding(codes, 0).width + factor.bit_length()
    if most > FACTOR_WIDTH:
        raise ValueError(f"layer {layer.site!r}: a weight gradient times its factor needs {most} "
                         f"bits, the limit is {FACTOR_WIDTH}; use a narrower accumulator in "
                         "grad_weight")
    codes = codes.astype(np.int64) * factor
    return codes, border.holding(codes, form.frac + frac)


def with_operands(mac: MacSpec, a: Format, b: Format) -> MacSpec:
    """The same accumulation of other operands; an exact product stays exact."""
    product, frac = mac.product, mac.product.format.frac
    if mac.exact_product:
        product = None if not frac else Cast(Format(62, frac))
    return replace(mac, a=a, b=b, product=product)


class _Powers(Operation):
    """Powers of two, straight through."""

    def __init__(self, threshold: float):
        self.threshold = threshold

    def forward(self, layer, training, x):
        border.to_numpy(x, f"{layer.site}.x")
        with host():  # frexp, exact
            return nearest_power(x.detach(), self.threshold)

    def backward(self, layer, training, gradient, needs):
        return [gradient.exact(f"{layer.site}.error")]


def adder2d(layer: Layer, training: bool, input, weight, bias=None, stride=1, padding=0, dilation=1,
            groups=1, normalise=True):
    """emu.nn.adder.adder2d on codes."""
    _check(layer, input, "(N, C, H, W)")
    padding = padding_of(layer, padding, weight.shape[2:], pair(dilation))
    return run(_Adder2d(stride, padding, dilation, groups, normalise), layer, training, input,
               weight, bias)


def power_of_two(layer: Layer, training: bool, input, threshold=0.0):
    """emu.nn.adder.power_of_two: exact."""
    return run(_Powers(threshold), layer, training, input)
