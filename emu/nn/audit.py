"""The auditor: raises on any float arithmetic in ATen that could round or sum unseen.

Inside `audit()` a float tensor may be moved and compared; sums and conversions of two tensors
(autograd makes such sums itself: fan-out, shared parameters, repeated backward) are each proved
exact, or raise. Every other operation (contractions, reductions, products, functions, their
backwards) raises, forward and backward, naming the operation and the layer that ran last. The list
is of what is allowed, so an operation nobody thought of is refused. `host()` marks what is meant to
be float: the loss.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

_state = threading.local()

# Operations that move or compare values and round nothing; views are known by their schema.
EXACT = {
    "abs", "bitwise_and", "clamp", "clamp_max", "clamp_min", "eq", "ge", "gt", "isinf", "isnan",
    "le", "logical_and", "logical_not", "logical_or", "lt", "maximum", "minimum", "ne", "neg",
    "relu", "relu_", "sign", "threshold_backward",
    "_local_scalar_dense", "_unsafe_view", "amax", "amin", "aminmax", "any", "argmax", "argmin",
    "argsort", "cat", "channel_shuffle", "clone", "constant_pad_nd", "empty_like", "equal", "fill_",
    "flip", "full_like", "gather", "index", "index_select", "isfinite", "masked_fill", "max", "min",
    "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros", "nonzero", "ones_like",
    "pixel_shuffle", "pixel_unshuffle",
    "repeat", "roll", "scatter", "select_backward", "select_scatter", "slice_backward",
    "slice_scatter", "sort", "stack", "topk", "tril", "triu", "where", "zero_", "zeros_like",
}


class FloatSum(RuntimeError):
    """A float operation that the hardware does not have reached ATen in a fixed region."""


class _Auditor(TorchDispatchMode):
    def __enter__(self):
        self.outer = getattr(_state, "counted", None)
        _state.counted = WeakTensorKeyDictionary()
        return super().__enter__()

    def __exit__(self, *error):
        _state.counted = self.outer
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if getattr(_state, "host", 0):
            return func(*args, **(kwargs or {}))
        if name in ("add", "add_", "sub", "sub_", "rsub"):
            return _proved_sum(func, *args, **(kwargs or {}))
        if name in ("_to_copy", "copy_"):
            return _proved_copy(func, *args, **(kwargs or {}))
        exact = name in EXACT and "reduce" not in func._overloadname
        if not func.is_view and not exact and any(
                isinstance(x, torch.Tensor) and x.is_floating_point()
                for x in _flat([*args, *(kwargs or {}).values()])):
            raise FloatSum(f"{func}: float arithmetic outside the hardware, after layer "
                           f"{getattr(_state, 'site', None)!r}; give this operation a fixed "
                           "module, or mark it as emu.nn.host()")
        return func(*args, **(kwargs or {}))


def _proved_sum(func, a, b, alpha=1, **kwargs):
    """a + alpha * b, which must round nothing, or add gradients that are counted elsewhere."""
    before = a.clone() if isinstance(a, torch.Tensor) else a
    total = func(a, b, alpha=alpha, **kwargs)
    if isinstance(total, torch.Tensor) and total.is_floating_point():
        with host():
            x, y = (torch.as_tensor(x, dtype=torch.float64) for x in (before, b))
            name = func._schema.name
            x, y = (y, -x) if "rsub" in name else (x, -y) if "sub" in name else (x, y)
            exact = alpha == 1 and sum_is_exact(x, y, total)
        counted = _is_counted(a) and _is_counted(b)
        if not exact and not counted:
            raise FloatSum(f"{func}: a float sum that rounds, after layer "
                           f"{getattr(_state, 'site', None)!r}; use float64 (model.double()), or "
                           "narrower formats for what is added")
        if counted:
            allow_sums_of(total)
    return total


def sum_is_exact(a: torch.Tensor, b: torch.Tensor, total: torch.Tensor) -> bool:
    """Whether total is a + b without rounding: the error of the sum, Knuth's TwoSum, is zero."""
    with host():
        a, b, s = a.double(), b.double(), total.double()
        rest = s - a
        return not bool(((s != a + b) | ((a - (s - rest)) + (b - rest) != 0)).any())


def allow_sums_of(gradient: torch.Tensor) -> None:
    """Autograd may add this tensor up and round: its codes are counted, exactly, elsewhere."""
    if getattr(_state, "counted", None) is not None:
        _state.counted[gradient] = None


def _is_counted(x) -> bool:
    return isinstance(x, torch.Tensor) and x in (getattr(_state, "counted", None) or ())


def _proved_copy(func, *args, **kwargs):
    """A copy into another dtype, which must hold the values as they are."""
    copy, source = func(*args, **kwargs), args[func._schema.name == "aten::copy_"]
    wide, floats = torch.float64, copy.is_floating_point() or source.is_floating_point()
    if floats and copy.dtype != source.dtype and not torch.equal(
            copy.to(wide), source.to(wide).expand_as(copy)):
        raise FloatSum(f"{func}: {source.dtype} to {copy.dtype} rounds, after layer "
                       f"{getattr(_state, 'site', None)!r}; use one dtype, float64 for wide "
                       "formats")
    return copy


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


@contextmanager
def floating():
    """A host region of a module that computes in float, which fixed modules within it leave."""
    _state.floats = getattr(_state, "floats", 0) + 1
    try:
        with host():
            yield
    finally:
        _state.floats -= 1


def in_floating() -> bool:
    """Whether this is within a `floating` region."""
    return bool(getattr(_state, "floats", 0))


@contextmanager
def fixed_again():
    """Out of all `floating` regions."""
    floats = getattr(_state, "floats", 0)
    _state.floats, _state.host = 0, getattr(_state, "host", 0) - floats
    try:
        yield
    finally:
        _state.floats, _state.host = floats, _state.host + floats


def on_host() -> bool:
    """Whether this is such a region."""
    return bool(getattr(_state, "host", 0))


def visit(site: str) -> None:
    """Remember the layer that runs, for the auditor's message."""
    _state.site = site
