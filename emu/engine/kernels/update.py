"""The weight update on flat int64 arrays."""

import numpy as np
from numba import prange

from emu.engine.kernels.casts import cast_one
from emu.engine.kernels.jit import kernel


@kernel(parallel=True)
def sgd_arrays(weight, momentum, grad, lr, mu, shifts, to_momentum, to_weight, rand_m, rand_w):
    """The update in place on flat arrays; `shifts` align (grad, mu*m, weight, lr*m)."""
    outside_m, outside_w = 0, 0
    for i in prange(weight.size):
        total = (grad[i] << shifts[0]) + (mu * momentum[i] << shifts[1])
        momentum[i], inside = cast_one(total, to_momentum,
                                       rand_m[i] if rand_m.size else np.int64(0))
        outside_m += np.int64(not inside)
        total = (weight[i] << shifts[2]) - (lr * momentum[i] << shifts[3])
        weight[i], inside = cast_one(total, to_weight, rand_w[i] if rand_w.size else np.int64(0))
        outside_w += np.int64(not inside)
    return outside_m, outside_w
