"""Functions that only move values: exact forward, and their gradients added up in integers.

torch's own function says where every value comes from: it is run a second time on tensors that hold
the positions of their elements.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_flatten, tree_unflatten

from emu.nn import border
from emu.nn.audit import FloatSum, host
from emu.nn.layer import Codes, Layer
from emu.nn.operation import Operation, run
from emu.nn.ops.contract import masked
from emu.nn.ops.elementwise import arrived


class _Move(Operation):
    """function(*tensors), each element of which is an element of one of them, or 0."""

    def __init__(self, function, wanted: bool):
        self.function, self.wanted = function, wanted

    def forward(self, layer, training, *tensors):
        with host():  # which may be a function that the auditor does not know
            out = self.function(*(x.detach() for x in tensors))
            if self.wanted:
                self.shapes = [x.shape for x in tensors]
                self.ends = np.cumsum([0] + [x.numel() for x in tensors])
                places = [torch.arange(first + 1, last + 1, dtype=torch.float64).reshape(x.shape)
                          for x, first, last in zip(tensors, self.ends, self.ends[1:],
                                                    strict=False)]
                self.source = self.function(*places).long().numpy().reshape(-1)
        return out

    def backward(self, layer, training, gradient, needs):
        error = gradient.exact(f"{layer.site}.error")
        codes = collected(error.codes.reshape(-1), self.source, int(self.ends[-1]) + 1)[1:]
        found = [codes[first:last].reshape(shape) if need else None for need, first, last, shape
                 in zip(needs, self.ends, self.ends[1:], self.shapes, strict=False)]
        return [part if part is None else
                Codes(part, border.holding(part, error.form.frac), None) for part in found]


def collected(codes: np.ndarray, source: np.ndarray, count: int) -> np.ndarray:
    """The sums (count, ...) of the codes (N, ...) that have the same source (N,), in int64.

    Those of source 0 come from nowhere. Raises FloatSum where a sum could leave int64.
    """
    out = np.zeros((count, *codes.shape[1:]), np.int64)
    users = int(np.bincount(source, minlength=1)[1:].max(initial=0))
    most = max(int(codes.max(initial=0)), -int(codes.min(initial=0)))
    if users * most >> 62:
        raise FloatSum(f"gradients up to {most}: the sum of the {users} that one value has could "
                       "leave 63 bits; cast the error to a narrower format")
    if users <= 1:
        out[source] = codes
    else:
        np.add.at(out, source, codes)
    return out


def moved(layer: Layer, training: bool, function, *operands) -> torch.Tensor:
    """function(*operands), which moves the values of tensors and numbers."""
    dtype = next(x.dtype for x in operands
                 if isinstance(x, torch.Tensor) and x.is_floating_point())
    tensors = [x if isinstance(x, torch.Tensor) else torch.tensor(x, dtype=dtype)
               for x in operands]
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return run(_Move(function, wanted), layer, training, *tensors)


def any_move(function, layer: Layer, training: bool, *args, **kwargs) -> torch.Tensor:
    """A torch function that moves the values of all float tensors in its arguments."""
    leaves, structure = tree_flatten((args, kwargs))
    floats = {i: leaf for i, leaf in enumerate(leaves)
              if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()}
    leaves = [None if i in floats else leaf for i, leaf in enumerate(leaves)]

    def rerun(*tensors):
        filled = list(leaves)
        for i, x in zip(floats, tensors, strict=True):
            filled[i] = x
        args, kwargs = tree_unflatten(filled, structure)
        return function(*args, **kwargs)

    return moved(layer, training, rerun, *floats.values())


def where(layer: Layer, training: bool, condition, input, other):
    """torch.where."""
    return moved(layer, training, lambda x, y: torch.where(condition, x, y), input, other)


def where_method(layer: Layer, training: bool, input, condition, other):
    """torch.Tensor.where."""
    return where(layer, training, condition, input, other)


def masked_fill(layer: Layer, training: bool, input, mask, value):
    """torch.masked_fill."""
    return moved(layer, training, lambda x, y: torch.where(mask, y, x), input, value)


def copy(layer: Layer, training: bool, input, src, non_blocking=False):
    """What torch.Tensor.copy_ makes of `input`."""
    return moved(layer, training, lambda x: x.expand(input.shape), src)


def wants_gradient(input, src, *args, **kwargs) -> bool:
    """Whether copying src into `input` is part of a graph: weights are also set so."""
    return torch.is_grad_enabled() and (input.requires_grad or src.requires_grad)


def setitem(layer: Layer, training: bool, input, index, value):
    """What input[index] = value makes of `input`."""
    def put(x, y):
        x = x.clone()
        x[index] = y
        return x

    return moved(layer, training, put, input, value)


def is_gather(input, index) -> bool:
    """Whether input[index] is more than a view."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, torch.Tensor | list | np.ndarray) for part in parts)


def is_scatter(input, dim, index, src=None, **options) -> bool:
    """Whether scatter puts tensors, without adding them."""
    return isinstance(src, torch.Tensor) and not options


def pad(layer: Layer, training: bool, input, pad, mode="constant", value=None):
    """torch.nn.functional.pad."""
    if mode != "constant":
        return moved(layer, training, lambda x: F.pad(x, pad, mode), input)
    return moved(layer, training, lambda x, y: F.pad(x, pad, mode, y.item()), input, value or 0)


class _Conversion(Operation):
    """The same values in another dtype."""

    def __init__(self, function):
        self.function = function

    def forward(self, layer, training, x):
        return self.function(x.detach())

    def backward(self, layer, training, gradient, needs):
        return [gradient.exact(f"{layer.site}.error")]


def convert(function, layer: Layer, training: bool, input, *args, **kwargs):
    """torch.Tensor.to and its like, between float32 and float64."""
    return run(_Conversion(lambda x: function(x, *args, **kwargs)), layer, training, input)


def converts(to: torch.dtype | None, input, *args, **kwargs) -> bool:
    """Whether a conversion, to this dtype or one among its arguments, has a gradient to convert.

    One that rounds has none here: it is a float core.
    """
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and input.requires_grad):
        return False
    for value in (*args, *kwargs.values()):
        to = getattr(value, "dtype", value if isinstance(value, torch.dtype) else to)
    if input.dtype not in border.CARRIERS or to not in border.CARRIERS or to == input.dtype:
        return False
    with host():
        return torch.equal(input.to(to).double(), input.double())


class _Embedding(Operation):
    """Rows of a table w (rows, features)."""

    def __init__(self, index: torch.Tensor, padding: int | None):
        self.index, self.padding = index.detach().numpy().astype(np.int64), padding

    def forward(self, layer, training, weight):
        self.passes, self.shape = None, weight.shape
        if layer.cast_of("w", training) is None:
            return weight.detach()[torch.from_numpy(self.index)]
        w = layer.enter("w", weight, training)
        self.passes = w.passes
        return Codes(w.codes[self.index], w.form, None)

    def backward(self, layer, training, gradient, needs):
        error, (rows, features) = arrived(layer, gradient, training), self.shape
        codes = collected(error.codes.reshape(-1, features), self.index.reshape(-1) + 1,
                          rows + 1)[1:]
        if self.padding is not None:
            codes[self.padding] = 0
        codes = masked(codes, self.passes)
        form = border.holding(codes, error.form.frac)
        return [layer.leave("grad_w", codes, form, training)]


def embedding(layer: Layer, training: bool, input, weight, padding_idx=None, max_norm=None,
              norm_type=2.0, scale_grad_by_freq=False, sparse=False):
    """torch.nn.functional.embedding: the table cast by w, its gradient summed, then by grad_w."""
    if max_norm is not None or scale_grad_by_freq or sparse:
        raise ValueError(f"layer {layer.site!r}: an embedding has no max_norm, scale_grad_by_freq "
                         "or sparse here; leave them at their defaults")
    rows = weight.shape[0]
    if input.numel() and not 0 <= int(input.min()) <= int(input.max()) < rows:
        raise ValueError(f"layer {layer.site!r}: indices from {int(input.min())} to "
                         f"{int(input.max())}; the table has rows 0 to {rows - 1}")
    if padding_idx is not None and not -rows <= padding_idx < rows:
        raise ValueError(f"layer {layer.site!r}: padding_idx {padding_idx}; the table has rows 0 "
                         f"to {rows - 1}")
    return run(_Embedding(input, padding_idx), layer, training, weight)
