"""Normalisation on codes: of channels over a batch, and of the rows of one sample.

Every number after the exact sums has a named cast: the layer's own, those of its `norm`, or what
`emu.norm_casts` derives from the formats.
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
from emu.nn.ops.table import received
from emu.norm import NormSpec
from emu.norm_casts import ONE, NormCasts, parameter_cast, scaled_error
from emu.number import MAX_OPERAND, Cast, Format


class _Normed(Operation):
    """What both have: x, gamma and beta in their casts, the hardware, and the parameter gradients.

    gamma is `w` and beta is `b`; without them they are 1 and 0.
    """

    def __init__(self, eps: float):
        self.eps = eps

    def _enter(self, layer: Layer, training: bool, x, gamma, beta, channels: int) -> None:
        self.x = layer.enter("x", x, training)
        self.gamma, self.beta = entered(layer, training, gamma, beta, channels)
        self.casts = casts_of(layer, training)

    def _spec(self, layer: Layer, gamma: Format, beta: Format, error: Format | None = None,
              running: bool = False) -> NormSpec:
        return spec_of(layer, self.casts, self.x.form, gamma, beta, error, self.eps, running)

    def _left(self, layer: Layer, training: bool, codes, form: Format) -> Codes:
        out = layer.leave("y", codes, form, training)
        self.passes = out.passes
        return out

    def _error(self, layer: Layer, training: bool, gradient: Gradient) -> Codes:
        error = received(gradient.masked(self.passes), layer, training)
        if error.form.width > MAX_OPERAND:
            raise ValueError(f"layer {layer.site!r}: errors of {error.form}, the limit is "
                             f"{MAX_OPERAND} bits; give it a cast error")
        return error

    def _parameter(self, layer: Layer, training: bool, name: str, of: Codes, codes, frac: int,
                   error: Format) -> Codes:
        """The exact gradient of gamma or beta, in its cast."""
        codes, form = masked(codes, of.passes), border.holding(codes, frac)
        if layer.cast_of(name, training) is not None:
            return layer.requantise(name, codes, form, training)
        to = parameter_cast(error)
        return Codes(layer.backend.cast(layer.place(name, training), codes, form, to).codes,
                     to.format, None)


def casts_of(layer: Layer, training: bool) -> NormCasts:
    """The casts that a layer gives."""
    return layer.cast_of("norm", training) or NormCasts()


def spec_of(layer: Layer, casts: NormCasts, *formats, **more) -> NormSpec:
    """`casts.spec`, whose ValueError names the site."""
    try:
        return casts.spec(*formats, **more)
    except ValueError as error:
        raise ValueError(f"layer {layer.site!r}: {error}") from None


def entered(layer: Layer, training: bool, gamma, beta, channels: int) -> tuple[Codes, Codes]:
    """gamma and beta in the casts w and b, or 1 and 0."""
    return tuple(Codes(np.full(channels, code), ONE, None) if values is None
                 else layer.enter(name, values, training)
                 for name, values, code in (("w", gamma, 1), ("b", beta, 0)))


def stored(layer: Layer, training: bool, buffers: tuple, spec: NormSpec) -> list[np.ndarray]:
    """The codes of the buffers of a running mean and variance."""
    found = []
    for name, buffer in zip(("mean", "var"), buffers, strict=True):
        to, label = getattr(spec.running, name), f"{layer.site}.running_{name}"
        codes, frac = border.to_codes_for(buffer, to, label)
        found.append(layer.backend.cast(layer.place(f"stored_{name}", training), codes,
                                        border.holding(codes, frac), to).codes)
    return found


def move(layer: Layer, training: bool, buffers: tuple, batch: engine.Statistics, momentum: float,
         spec: NormSpec) -> None:
    """Move the buffers toward the statistics of a batch."""
    with engine.named(f"{layer.site}.momentum"):
        share = engine.quantize(np.array(float(momentum)), spec.running.momentum)
    moved = layer.backend.running_norm(layer.place("running", training),
                                       *stored(layer, training, buffers, spec), batch, int(share),
                                       spec)
    for name, buffer, codes in zip(("mean", "var"), buffers, moved, strict=True):
        buffer.copy_(border.to_tensor(codes, getattr(spec.running, name).format, buffer.dtype,
                                      f"{layer.site}.running_{name}"))


def inside_of(layer: Layer, training: bool, inside: np.ndarray, to: Cast) -> np.ndarray | None:
    """Where gradients pass a cast."""
    return layer.passes(None if inside.all() else inside, to, training)


class _BatchNorm(_Normed):
    """Channels (axis 1) over a batch. `running` are the buffers that move, or that it is frozen at.

    The buffers hold values on the grids of their casts; others are brought there as they are used.
    """

    def __init__(self, running: tuple | None, frozen: bool, momentum: float, eps: float):
        super().__init__(eps)
        self.running, self.frozen, self.momentum = running, frozen, momentum

    def forward(self, layer, training, x, gamma=None, beta=None):
        self._enter(layer, training, x, gamma, beta, x.shape[1])
        spec = self._spec(layer, self.gamma.form, self.beta.form, None, self.running is not None)
        place = layer.place("forward", training)
        if self.frozen:
            mean, self.var = layer.backend.frozen_norm(
                layer.place("frozen", training), *stored(layer, training, self.running, spec), spec)
        else:
            found = layer.backend.norm_statistics(place, self.x.codes, spec)
            mean, self.var = found.mean, found.var
            if self.running is not None:
                move(layer, training, self.running, found, self.momentum, spec)
        out = layer.backend.batch_norm(place, self.x.codes, mean, self.var, self.gamma.codes,
                                       self.beta.codes, spec)
        self.xhat, self.inside = out.xhat, inside_of(layer, training, out.inside_xhat, spec.xhat)
        return self._left(layer, training, out.y, spec.y.format)

    def backward(self, layer, training, gradient, needs):
        error = self._error(layer, training, gradient)
        spec = self._spec(layer, self.gamma.form, self.beta.form, error.form)
        out = layer.backend.batch_norm_grad(
            layer.place("grad_input", training), error.codes, self.xhat, self.var,
            self.gamma.codes, spec, self.frozen, self.inside)
        back = spec.backward
        found = [Codes(masked(out.x, self.x.passes), back.grad_x.format, None)]
        for name, of, codes, to in (("grad_w", self.gamma, out.gamma, back.grad_gamma),
                                    ("grad_b", self.beta, out.beta, back.grad_beta)):
            found.append(self._parameter(layer, training, name, of, codes, to.format.frac,
                                         error.form) if needs[len(found)] else None)
        return found


class _RowNorm(_Normed):
    """x as `rows` of one sample, each with its own statistics; gamma and beta of each element.

    gamma and beta have the shape `of` against x. The error times gamma, in the cast scaled_error,
    is what each row's gradient is made of.
    """

    def __init__(self, rows: int, of: tuple, eps: float):
        super().__init__(eps)
        self.rows, self.of = rows, of

    def forward(self, layer, training, x, gamma=None, beta=None):
        self._enter(layer, training, x, gamma, beta, 1)
        self.plain, place = gamma is None, layer.place("forward", training)
        shape, ones = (1, self.rows, -1), np.ones(self.rows, np.int64)
        spec, codes = self._spec(layer, ONE, ONE), self.x.codes.reshape(shape)
        found = layer.backend.norm_statistics(place, codes, spec)
        out = layer.backend.batch_norm(place, codes, found.mean, found.var, ones, 0 * ones, spec)
        self.var, self.xhat = found.var, out.xhat.reshape(x.shape).astype(np.int64)
        self.inside = inside_of(layer, training, out.inside_xhat, spec.xhat)
        form = self._spec(layer, self.gamma.form, self.beta.form).y.format
        product = self._against(self.gamma) * self.xhat
        y = ((product << form.frac - spec.xhat.format.frac - self.gamma.form.frac)
             + (self._against(self.beta) << form.frac - self.beta.form.frac))
        return self._left(layer, training, y, form)

    def _against(self, values: Codes) -> np.ndarray:
        return values.codes.astype(np.int64).reshape(self.of if values.codes.size > 1 else ())

    def backward(self, layer, training, gradient, needs):
        error = self._error(layer, training, gradient)
        codes, h_frac = error.codes.astype(np.int64), self._spec(layer, ONE, ONE).xhat.format.frac
        return [self._row_grad(layer, training, codes, error) if needs[0] else None,
                *(self._parameter(layer, training, name, of,
                                  self._summed(layer, values, of.codes.shape),
                                  error.form.frac + frac, error.form) if need else None
                  for name, of, values, frac, need in (
                      ("grad_w", self.gamma, codes * self.xhat, h_frac, needs[1]),
                      ("grad_b", self.beta, codes, 0, needs[2])))]

    def _summed(self, layer, values: np.ndarray, shape: tuple) -> np.ndarray:
        reach = max(int(values.max(initial=0)), -int(values.min(initial=0)))
        if reach * (values.size // max(1, math.prod(shape))) >> 63:
            raise ValueError(f"layer {layer.site!r}: the sum of {values.size} errors leaves int64; "
                             "give it a narrower error")
        return folded(values, self.of).reshape(shape)

    def _row_grad(self, layer, training, codes, error: Codes) -> Codes:
        if not self.plain:
            to, exact = (scaled_error(self.casts, error.form, self.gamma.form),
                         codes * self._against(self.gamma))
            form = border.holding(exact, error.form.frac + self.gamma.form.frac)
            place = layer.place("scaled_error", training)
            error = Codes(layer.backend.cast(place, exact, form, to).codes, to.format, None)
        spec = self._spec(layer, ONE, ONE, error.form)
        rows = 1, self.rows, -1
        out = layer.backend.batch_norm_grad(
            layer.place("grad_input", training), error.codes.reshape(rows),
            self.xhat.reshape(rows), self.var, np.ones(self.rows, np.int64), spec, False,
            self.inside)
        return Codes(masked(out.x.reshape(codes.shape), self.x.passes),
                     spec.backward.grad_x.format, None)


def batch_norm(layer: Layer, phase: bool, input, running_mean, running_var, weight=None, bias=None,
               training=False, momentum=0.1, eps=1e-5):
    """torch.nn.functional.batch_norm on codes; x (N, C, ...)."""
    if input.dim() < 2 or (training and not input.numel()):
        raise ValueError(f"layer {layer.site!r}: x {tuple(input.shape)}; needs (N, C, ...) and, in "
                         "training, elements")
    running = None if running_mean is None else (running_mean, running_var)
    if not training and running is None:
        raise ValueError(f"layer {layer.site!r}: evaluation without running statistics; give them, "
                         "or training=True")
    return run(_BatchNorm(running, not training, momentum, eps), layer, phase, input, weight, bias)


def layer_norm(layer: Layer, training: bool, input, normalized_shape, weight=None, bias=None,
               eps=1e-5):
    """torch.nn.functional.layer_norm on codes."""
    shape, lead = tuple(normalized_shape), input.dim() - len(normalized_shape)
    if not shape or lead < 0 or tuple(input.shape[lead:]) != shape:
        raise ValueError(f"layer {layer.site!r}: x {tuple(input.shape)} does not end in the "
                         f"normalised shape {shape}")
    return run(_RowNorm(math.prod(input.shape[:lead]), (1,) * lead + shape, eps), layer, training,
               input, weight, bias)


def group_norm(layer: Layer, training: bool, input, num_groups, weight=None, bias=None, eps=1e-5):
    """torch.nn.functional.group_norm on codes; x (N, C, ...)."""
    if input.dim() < 2 or input.shape[1] % num_groups:
        raise ValueError(f"layer {layer.site!r}: x {tuple(input.shape)} in {num_groups} groups; "
                         "needs (N, C, ...) with C a multiple of the groups")
    return run(_RowNorm(input.shape[0] * num_groups, _channels(input), eps), layer, training,
               input, weight, bias)


def instance_norm(layer: Layer, training: bool, input, running_mean=None, running_var=None,
                  weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5):
    """torch.nn.functional.instance_norm on codes; x (N, C, ...)."""
    if running_mean is not None or not use_input_stats:
        raise ValueError(f"layer {layer.site!r}: instance norm has no running statistics here; use "
                         "track_running_stats=False")
    return run(_RowNorm(input.shape[0] * input.shape[1], _channels(input), eps), layer, training,
               input, weight, bias)


def _channels(x: torch.Tensor) -> tuple:
    """The shape of one number for each channel of x (N, C, ...)."""
    return 1, x.shape[1], *(1 for _ in x.shape[2:])
