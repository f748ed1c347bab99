"""The MAC over whole matrices: the fastest path that is provably exact, else step by step."""

import numpy as np

from emu.engine.arrays import as_codes, largest, narrowed
from emu.engine.kernels.casts import stage
from emu.engine.kernels.jit import launch
from emu.engine.kernels.mac import Steps, exact_matmul, step_matmul
from emu.number import Overflow
from emu.spec import MacSpec

NONE = np.empty((0, 0), np.int64)


def matmul(a, b, mac: MacSpec, bias=None, overflowed: np.ndarray | None = None) -> np.ndarray:
    """(M, K) @ (K, N) -> codes of `mac.result` (M, N), accumulated in the order of k.

    `bias` (N,) holds codes of `mac.result.format`. `overflowed`, an int64 array (M, N), is
    increased by the number of overflowing steps of each output.

    >>> mac = MacSpec.parse("{a: s8, b: s8, acc: s8 sat}")
    >>> matmul(np.array([[100, 100, -100], [100, -100, 100]]), np.ones((3, 1), int), mac)
    array([[ 27],
           [100]], dtype=int8)
    """
    a, b = as_codes(a, "a", mac.a, 2), as_codes(b, "b", mac.b, 2)
    if a.shape[1] != b.shape[0]:
        raise ValueError(f"a {a.shape} @ b {b.shape}: the inner sizes {a.shape[1]} and "
                         f"{b.shape[0]} differ")
    M, N = a.shape[0], b.shape[1]
    start = np.zeros(N, np.int64)
    if bias is not None:
        start = as_codes(bias, "bias", mac.result.format, 1)
    if start.shape != (N,):
        raise ValueError(f"bias: shape {start.shape} for {N} outputs; give one for each column")
    out = np.empty((M, N), np.int64)
    if overflowed is not None and (overflowed.shape, overflowed.dtype) != (out.shape, out.dtype):
        raise ValueError(f"overflowed: {overflowed.dtype} {overflowed.shape} counts for outputs "
                         f"{out.shape}; give int64 of that shape")
    acc = stage(0, mac.acc)
    if out.size and order_free(a, b, start, mac, overflowed is not None):
        launch(exact_matmul, a.size * N, a, b, start, mac.product.format.frac, acc,
                       out)
    elif out.size:
        outer = stage(mac.acc.format.frac, mac.result)
        steps = Steps(mac.lanes, mac.tile or 0, int(mac.reload), int(mac.exact_product))
        launch(step_matmul, a.size * N, a, b, start,
                       stage(0, mac.product), acc, outer, steps, out,
                       NONE if overflowed is None else overflowed)
    return narrowed(out, mac.result.format)


def order_free(a: np.ndarray, b: np.ndarray, bias: np.ndarray, mac: MacSpec, count: bool) -> bool:
    """Whether the exact sum, fitted once at the end, is the MAC's result."""
    if not mac.exact_product or mac.outer is not None:
        return False
    if mac.acc.overflow == Overflow.WRAP and not count:
        return True  # reduction modulo 2^width commutes with addition
    terms = a.shape[1] * (largest(a) * largest(b) << mac.product.format.frac)
    lo, hi = mac.acc.range
    reach = largest(bias) + terms
    return lo <= -reach and reach <= hi  # every prefix is in [-reach, reach]: no step overflows
