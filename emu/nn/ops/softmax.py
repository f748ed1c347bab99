"""Softmax and cross-entropy on codes: tables, an exact sum and a division."""

from __future__ import annotations

import numpy as np

from emu.nn import border
from emu.nn.layer import Codes, Layer
from emu.nn.operation import Operation, run
from emu.nn.ops.contract import masked
from emu.nn.ops.table import entry_cast, received
from emu.number import Cast, Format, Overflow, Rounding
from emu.rule import Rule
from emu.table import WIDEST, SoftmaxSpec, entries_cast

MOST = 1 << 62  # what an exact gradient stays below
LOSS = "neg_log"


class _Softmax(Operation):
    """Probabilities along one axis, in the cast `y`; the entries of exp have the cast `w`.

    The gradient is p (e - sum of p e), exact, of the errors e in the cast `error`. A `y` that is a
    rule or stochastic follows the derived one. A logit of -inf takes no part: its probability and
    its gradient are 0.
    """

    def __init__(self, axis: int):
        self.axis = axis

    def forward(self, layer, training, x):
        prob = entry_cast(layer, "y", training)
        self._normalise(layer, training, x, prob)
        self.passes = None
        if prob is not None:
            return Codes(self._in_line(self.p), self.spec.prob.format, None)
        out = layer.leave("y", self._in_line(self.p), self.spec.prob.format, training)
        self.passes = out.passes
        return out

    def _normalise(self, layer, training, x, prob: Cast | None) -> None:
        """Find the probabilities `p` (rows, classes) of x; `shape` has the axis at its end."""
        self.absent = border.to_numpy(x, f"{layer.site}.x") == -np.inf
        if not x.dim() or not x.shape[self.axis]:
            raise ValueError(f"layer {layer.site!r}: x {tuple(x.shape)} has no classes along axis "
                             f"{self.axis}")
        if self.absent.any():
            x = x.masked_fill(x == -np.inf, 0)  # which no range sees
        self.x = layer.enter("x", x, training)
        self.shape = np.moveaxis(self.absent, self.axis, -1).shape
        self.spec = softmax_spec(layer, self.x.form, training, prob)
        self.p = layer.backend.softmax(
            layer.place("forward", training), self._rows(self.x.codes), self.spec,
            self._rows(self.absent) if self.absent.any() else None).astype(np.int64)

    def _rows(self, codes: np.ndarray) -> np.ndarray:
        return np.moveaxis(codes, self.axis, -1).reshape(-1, self.shape[-1])

    def _in_line(self, rows: np.ndarray) -> np.ndarray:
        """Rows in the shape of x."""
        return np.moveaxis(rows.reshape(self.shape), -1, self.axis)

    def backward(self, layer, training, gradient, needs):
        error = received(gradient.masked(self.passes), layer, training)
        e, one = self._rows(error.codes).astype(np.int64), self.spec.one
        most, p = _largest(e), _largest(self.p)
        self._check(layer, p * most * (one + self.shape[-1] * p), error)
        codes = self.p * (e * one - (self.p * e).sum(1, keepdims=True))
        return self._handed(codes, error.form.frac + 2 * self.spec.prob.format.frac)

    def _check(self, layer: Layer, reach: int, error: Codes) -> None:
        if reach >= MOST:
            raise ValueError(f"layer {layer.site!r}: errors of {error.form} times probabilities of "
                             f"{self.spec.prob.format} can reach {reach}, the limit is {MOST}; "
                             "give it a narrower error or y")

    def _handed(self, rows: np.ndarray, frac: int) -> list[Codes]:
        """The gradient of x, where it passes the cast x."""
        codes = np.where(self.absent, 0, masked(self._in_line(rows), self.x.passes))
        return [Codes(codes, border.holding(codes, frac), None)]


class _LogSoftmax(_Softmax):
    """ln p in the cast `y`, of the probabilities p that follow from the width of x.

    The gradient is e - p sum(e), exact. Where p is 0 its logarithm is the least that there is.
    """

    def forward(self, layer, training, x):
        self._normalise(layer, training, x, None)
        form, given = self.spec.prob.format, layer.cast_of("y", training) is not None
        to = (entries_cast(LOSS, form, WIDEST, Rounding.TO_ODD) if given
              else entries_cast(LOSS, form))
        table = self.spec.with_loss(to).loss_table
        codes = -layer.backend.lookup(layer.place("log", training), self.p, table).astype(np.int64)
        out = layer.leave("y", self._in_line(codes), border.holding(codes, to.format.frac),
                          training)
        self.passes = out.passes
        return out

    def backward(self, layer, training, gradient, needs):
        error = received(gradient.masked(self.passes), layer, training)
        e, one = self._rows(error.codes).astype(np.int64), self.spec.one
        self._check(layer, _largest(e) * (one + self.shape[-1] * _largest(self.p)), error)
        codes = e * one - self.p * e.sum(1, keepdims=True)
        return self._handed(codes, error.form.frac + self.spec.prob.format.frac)


class _CrossEntropy(_Softmax):
    """The mean (or sum) of -ln p of the target, in the cast `y`.

    The gradient is p - 1 (target) or p, over the number of rows, in the cast `error`; the casts of
    the loss block none of it. Without `y` the loss has the cast of its table, without `error` the
    quotient keeps 8 more bits.
    """

    def __init__(self, target: np.ndarray, reduction: str):
        super().__init__(1 if target.ndim else 0)
        self.target, self.reduction = target.reshape(-1), reduction

    def forward(self, layer, training, x):
        self._normalise(layer, training, x, None)
        form = self.spec.prob.format
        to = entries_cast(LOSS, form, min(2 * form.width, WIDEST))
        rows = np.arange(len(self.target))
        losses = layer.backend.lookup(layer.place("log", training), self.p[rows, self.target],
                                      self.spec.with_loss(to).loss_table).astype(np.int64)
        if self.reduction == "none":
            shape = np.delete(self.absent.shape, self.axis)
            return layer.leave("y", losses.reshape(shape), to.format, training)
        total = losses.sum()
        if self.reduction == "sum":
            return layer.leave("y", total, border.holding(total, to.format.frac), training)
        given = entry_cast(layer, "y", training)
        mean = _over(layer, "y", total.reshape(1, 1), len(losses), to.format.frac, given or to,
                     training).reshape(())
        if given:
            return Codes(mean, given.format, None)
        return layer.leave("y", mean, to.format, training)

    def backward(self, layer, training, gradient, needs):
        grad = gradient.exact(f"{layer.site}.grad")
        errors, form = self.p.copy(), self.spec.error
        errors[np.arange(len(errors)), self.target] -= self.spec.one
        self._check(layer, _largest(errors) * _largest(grad.codes), grad)
        errors = errors * grad.codes.reshape(-1, 1)
        frac, n = form.frac + grad.form.frac, len(errors)
        if self.reduction == "mean" and n & (n - 1):
            zeros, given = (n - 1).bit_length(), entry_cast(layer, "error", training)
            to = given or Cast(Format(border.holding(errors, 0).width + 9, frac + zeros + 8),
                               Rounding.TIES_EVEN, Overflow.SAT)
            errors, frac = _over(layer, "error", errors, n, frac, to, training), to.format.frac
            if given:
                return self._handed(errors, frac)
        elif self.reduction == "mean":
            frac += n.bit_length() - 1
        out = layer.leave("error", errors, border.holding(errors, frac), training)
        return self._handed(out.codes, out.form.frac)


def _over(layer: Layer, name: str, codes: np.ndarray, n: int, frac: int, to: Cast, training: bool
          ) -> np.ndarray:
    """codes / n in a cast."""
    divisor = np.full(codes.shape[-1:], n)
    return layer.backend.divide(layer.place(name, training), codes, divisor,
                                border.holding(codes, frac), to).codes


def _largest(codes: np.ndarray) -> int:
    return max(int(codes.max(initial=0)), -int(codes.min(initial=0)))


def softmax_spec(layer: Layer, x: Format, training: bool, prob: Cast | None) -> SoftmaxSpec:
    """The hardware of a site; raises ValueError, naming it, where there is none."""
    exp = layer.cast_of("w", training)
    try:
        if isinstance(exp, Rule):  # the greatest entry is 1
            exp = exp.stored(layer.fracs.get("w")) if exp.fixed else exp.cast_for(1, 0)
        return SoftmaxSpec.derived(x, exp, prob)
    except ValueError as error:
        raise ValueError(f"layer {layer.site!r}: {error}") from None


def _axis(layer: Layer, dim, dtype) -> int:
    if dim is None or dtype is not None:
        raise ValueError(f"layer {layer.site!r}: softmax with dim {dim} and dtype {dtype}; give "
                         "dim, and leave dtype out")
    return dim


def softmax(layer: Layer, training: bool, input, dim=None, dtype=None, _stacklevel=3):
    """torch.softmax by a table of exp, a sum and a division."""
    return run(_Softmax(_axis(layer, dim, dtype)), layer, training, input)


def log_softmax(layer: Layer, training: bool, input, dim=None, dtype=None, _stacklevel=3):
    """torch.log_softmax: a second table, of the probabilities' logarithms."""
    return run(_LogSoftmax(_axis(layer, dim, dtype)), layer, training, input)


def cross_entropy(layer: Layer, training: bool, input, target, weight=None, size_average=None,
                  ignore_index=-100, reduce=None, reduction="mean", label_smoothing=0.0):
    """torch.nn.functional.cross_entropy of class numbers, without a float."""
    if weight is not None or label_smoothing or size_average is not None or reduce is not None:
        raise ValueError(f"layer {layer.site!r}: cross entropy has no weight, label_smoothing, "
                         "size_average or reduce here; leave them at their defaults")
    classes = input.shape[1 if input.dim() > 1 else 0] if input.dim() else 0
    shape = (*input.shape[:1], *input.shape[2:]) if input.dim() > 1 else ()
    if target.is_floating_point() or target.shape != shape or not target.numel():
        raise ValueError(f"layer {layer.site!r}: logits {tuple(input.shape)} and target "
                         f"{target.dtype} {tuple(target.shape)}; needs (N, classes, ...) and a "
                         "class number for each of (N, ...)")
    low, high = int(target.min()), int(target.max())
    if not 0 <= low <= high < classes:
        raise ValueError(f"layer {layer.site!r}: target from {low} to {high}; the logits have "
                         f"classes 0 to {classes - 1}")
    return run(_CrossEntropy(target.numpy(), reduction), layer, training, input)
