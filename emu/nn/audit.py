"""The auditor: raises on any float arithmetic in ATen that could round or sum unseen.

Inside `audit()` a float tensor may be moved, compared and combined elementwise; every other
operation (contractions, reductions, normalisations, their backwards) raises, forward and
backward, naming the operation and the layer that ran last. The list is of what is allowed, so an
operation nobody thought of is refused. The sums that autograd makes itself (fan-out, shared
parameters, repeated backward) are float additions: each is proved exact, or raises. `host()` marks
what is meant to be float: the loss.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_state = threading.local()

# Operations that move or compare values and round nothing; views and elementwise ones are known
# by their schema and tag.
_EXACT = {
    "_local_scalar_dense", "_to_copy", "_unsafe_view", "amax", "amin", "any", "argmax", "argmin",
    "argsort", "cat", "clone", "constant_pad_nd", "copy_", "empty_like", "equal", "fill_", "flip",
    "full_like", "gather", "index", "index_select", "isfinite", "masked_fill", "max", "min",
    "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros", "nonzero", "ones_like",
    "repeat", "roll", "select_backward", "select_scatter", "slice_backward", "slice_scatter",
    "sort", "stack", "topk", "tril", "triu", "where", "zero_", "zeros_like",
}


class FloatSum(RuntimeError):
    """A float operation that the hardware does not have reached ATen in a fixed region."""


class _Auditor(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if getattr(_state, "host", 0):
            return func(*args, **(kwargs or {}))
        if name in ("add", "add_", "sub", "sub_"):
            return _proved_sum(func, *args, **(kwargs or {}))
        allowed = func.is_view or torch.Tag.pointwise in func.tags or name in _EXACT
        if not allowed and any(isinstance(x, torch.Tensor) and x.is_floating_point()
                               for x in _flat([*args, *(kwargs or {}).values()])):
            raise FloatSum(f"{func}: float arithmetic outside the hardware, after layer "
                           f"{getattr(_state, 'site', None)!r}; give this operation a fixed "
                           "module, or mark it as emu.nn.host()")
        return func(*args, **(kwargs or {}))


def _proved_sum(func, a, b, alpha=1):
    """a + alpha * b, whose rounding error (Knuth's TwoSum) must be zero."""
    before = a.clone() if isinstance(a, torch.Tensor) else a
    addend = (-b if "sub" in func._schema.name else b) * alpha
    total = func(a, b, alpha=alpha) if alpha != 1 else func(a, b)
    if isinstance(total, torch.Tensor) and total.is_floating_point():
        a, b = (torch.as_tensor(x).to(torch.float64) for x in (before, addend))
        s = total.to(torch.float64)
        rest = s - a
        if ((s != a + b) | ((a - (s - rest)) + (b - rest) != 0)).any():
            raise FloatSum(f"{func}: a float sum that rounds, after layer "
                           f"{getattr(_state, 'site', None)!r}; use float64 (model.double()), or "
                           "narrower formats for what is added")
    return total


def _flat(values):
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def audit() -> TorchDispatchMode:
    """A context in which no float contraction or reduction passes unseen."""
    return _Auditor()


@contextmanager
def host():
    """A region that is meant to compute in float, on the host: the loss, a metric."""
    _state.host = getattr(_state, "host", 0) + 1
    try:
        yield
    finally:
        _state.host -= 1


def visit(site: str) -> None:
    """Remember the layer that runs, for the auditor's message."""
    _state.site = site
