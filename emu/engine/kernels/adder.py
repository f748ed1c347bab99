"""AdderNet's accumulators on int64 matrices, step by step."""

import numpy as np
from numba import prange

from emu.engine.kernels.casts import cast_one, fit
from emu.engine.kernels.jit import kernel
from emu.engine.kernels.mac import COLUMNS


@kernel(parallel=True)
def step_adder(a, b, at, limit, bias, product, acc, outer, steps, out):
    """The MAC of `step_matmul` with other terms, a (M, K), b (K, N), all else (M, N).

    Where `at` is empty they are -|a - b|; else clip(a - at, +-limit) * b, unclipped for limit 0.
    """
    M, K, N = a.shape[0], a.shape[1], b.shape[1]
    blocks = (N + COLUMNS - 1) // COLUMNS
    for t in prange(M * blocks):
        i, j0 = t // blocks, t % blocks * COLUMNS
        n = min(N - j0, COLUMNS)
        register = np.zeros(n, np.int64)
        spilled = np.zeros(n, np.int64)
        total = np.zeros(n, np.int64)
        for j in range(n):
            register[j] = spilled[j] = bias[i, j0 + j]
        for k in range(K):
            x, y = a[i, k], b[k, j0:j0 + n]
            if steps.tile != 0 and k % steps.tile == 0:
                for j in range(n):
                    value = spilled[j] << outer.n if steps.reload else np.int64(0)
                    register[j] = fit(value, acc)
            if at.size == 0:
                for j in range(n):
                    total[j] -= abs(x - y[j]) << -product.n
            else:
                here = at[i, j0:j0 + n]
                for j in range(n):
                    difference = x - here[j]
                    if limit:
                        difference = min(max(difference, -limit), limit)
                    code, _ = cast_one(difference * y[j], product, np.int64(0))
                    total[j] += code
            last = k + 1 == K
            if not last and (k + 1) % steps.lanes != 0:
                continue
            for j in range(n):
                value = register[j] + total[j]
                register[j] = fit(value, acc)
                total[j] = 0
            if steps.tile != 0 and (last or (k + 1) % steps.tile == 0):
                for j in range(n):
                    code, _ = cast_one(register[j], outer, np.int64(0))
                    value = code if steps.reload else spilled[j] + code
                    spilled[j] = fit(value, outer)
        for j in range(n):
            out[i, j0 + j] = register[j] if steps.tile == 0 else spilled[j]
