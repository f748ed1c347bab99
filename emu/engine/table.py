"""Functions of one code as tables, and softmax with cross-entropy, on arrays of codes."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from emu.engine.arrays import as_codes, check_kind, largest, narrowed
from emu.engine.casts import Casted, cast_full
from emu.engine.exact import cast_int
from emu.engine.kernels.jit import launch
from emu.engine.kernels.table import lookup_array, softmax_powers
from emu.engine.pool import divide
from emu.number import Cast
from emu.table import SoftmaxSpec, Table


@lru_cache(256)
def _entries(table: Table) -> np.ndarray:
    return np.array([cast_int(x, table.exact_frac, table.y) for x in table.exact], np.int64)


def table_entries(table: Table) -> np.ndarray:
    """The memory (2^x.width,): the code of `table.y` for each code of `table.x`, least first."""
    return narrowed(_entries(table), table.y.format)


def lookup(x, table: Table) -> np.ndarray:
    """The entries of codes of `table.x`, in their shape.

    >>> lookup([-4, 0, 3], Table.parse("{x: s3f1, y: u4f3 ties_even sat, function: sigmoid}"))
    array([1, 4, 7], dtype=int8)
    """
    check_kind(table, "table", Table)
    x = as_codes(x, "x", table.x)
    out = np.empty_like(x)
    launch(lookup_array, x.size, x.reshape(-1), _entries(table), table.x.lo, out.reshape(-1))
    return narrowed(out, table.y.format)


def lookup_grad(error, frac: int, x, slope: Table, to: Cast, rand=None) -> Casted:
    """error * slope[x] in the cast `to`; `slope` is the table of the derivative.

    error, with `frac`, and x, codes of `slope.x`, have one shape. Raises ValueError where a
    product could leave int64.
    """
    check_kind(slope, "slope", Table)
    error, x = as_codes(error, "error"), as_codes(x, "x", slope.x)
    if error.shape != x.shape:
        raise ValueError(f"error {error.shape} and x {x.shape}: shapes differ")
    bits = largest(error).bit_length() + slope.y.format.width
    if bits > 63:
        raise ValueError(f"error of {largest(error).bit_length()} bits times {slope.y.format}: the "
                         f"product needs {bits} bits, the limit is 63; narrow one of them")
    slopes = lookup(x, slope).astype(np.int64)
    return cast_full(error * slopes, frac + slope.y.format.frac, to, rand)


def softmax(x, spec: SoftmaxSpec, masked=None) -> np.ndarray:
    """Logits (N, C), codes of `spec.x`, to probabilities (N, C), codes of `spec.prob`.

    Where `masked` (N, C) the probability is 0 and the logit takes no part.
    """
    check_kind(spec, "spec", SoftmaxSpec)
    x = as_codes(x, "x", spec.x, 2)
    if not x.shape[1]:
        raise ValueError(f"x: shape {x.shape} has no classes")
    if masked is not None:
        if np.shape(masked) != x.shape:
            raise ValueError(f"masked {np.shape(masked)} for logits {x.shape}: shapes differ")
        x = np.where(masked, spec.x.lo, x)  # which is the greatest in a row of masked ones only
    powers, total = np.empty_like(x), np.empty((len(x), 1), np.int64)
    launch(softmax_powers, 2 * x.size, x, _entries(spec.exp_table), powers, total)
    if masked is not None:
        powers[masked] = 0
        total = np.maximum(powers.sum(1, keepdims=True), 1)
    return divide(powers, total, 0, spec.prob).codes


class CrossEntropy(NamedTuple):
    """Codes of `spec.prob` (N, C), of `spec.error` (N, C) and of `spec.loss` (N,) or None."""

    prob: np.ndarray
    error: np.ndarray
    loss: np.ndarray | None


def cross_entropy(x, target, spec: SoftmaxSpec) -> CrossEntropy:
    """Logits (N, C), codes of `spec.x`, against the class numbers `target` (N,).

    The errors are the gradient of the summed loss; one over the batch size is a cast away.
    """
    prob = softmax(x, spec)
    target = as_codes(target, "target", ndim=1)
    if target.shape != prob.shape[:1]:
        raise ValueError(f"target {target.shape} for logits {prob.shape}: needs one class number "
                         "for each row")
    if target.size and not 0 <= target.min() <= target.max() < prob.shape[1]:
        raise ValueError(f"target from {target.min()} to {target.max()}: the classes are 0 to "
                         f"{prob.shape[1] - 1}")
    rows = np.arange(len(target))
    error = prob.astype(np.int64)
    error[rows, target] -= spec.one
    loss = None if spec.loss is None else lookup(prob[rows, target], spec.loss_table)
    return CrossEntropy(prob, narrowed(error, spec.error), loss)
