"""The weight updates on flat arrays: everything of a weight in one pass, in int32 or int64 lanes.

numpy's functions keep the dtype of a lane, where Python's operators would widen it to int64.
"""

from typing import NamedTuple

import numpy as np
from numba import prange

from emu.engine.kernels.jit import kernel
from emu.engine.kernels.lanes import fitted, in_lane, rounded
from emu.engine.kernels.quantize import float_chunk, grid_chunk, off_grid_chunk, quantize_chunk

AHEAD, EXACT = 1, 2
CHUNK = 1 << 12  # weights of one turn of a thread: what is read twice stays in its cache


class Step(NamedTuple):
    """The constants of SGD with momentum; `_up` are the zeros that align two addends."""

    lr: int
    mu: int
    grad_up: int
    momentum_up: int
    weight_up: int
    move_up: int


class Parts(NamedTuple):
    """The constants of weight decay and of what moves the weight: 0 where an update has them not.

    `ahead` is AHEAD for Nesterov momentum, EXACT where the sum itself is the direction.
    """

    decay: int
    decay_up: int
    shrink: int
    shrink_up: int
    ahead: int


@kernel
def stray(x, bounds):
    """Whether a code is outside the bounds, which its dtype holds."""
    lo, hi = x.dtype.type(bounds[0]), x.dtype.type(bounds[1])
    found = False
    for i in range(x.size):
        found |= (x[i] < lo) | (x[i] > hi)
    return found


@kernel
def operand(rand, i):
    """The operand of element i, 0 where there are none."""
    return rand[i] if rand.size else np.uint32(0)


@kernel
def sgd_chunk(weight, momentum, grad, rails, step, to_momentum, to_weight, rand_m, rand_w,
              new_weight, new_momentum):
    """`sgd_lanes` on one thread."""
    lane = rails.dtype.type
    to_momentum, to_weight = in_lane(to_momentum, rails), in_lane(to_weight, rails)
    # The momentum's cast may append zeros, here to both addends; the weight's is no finer than
    # the weight.
    grad_up, momentum_up = (np.add(lane(step.grad_up), to_momentum.up),
                            np.add(lane(step.momentum_up), to_momentum.up))
    weight_up, move_up = lane(step.weight_up), lane(step.move_up)
    # Factors of 32 bits, which LLVM must see: int64 lanes multiply two of those at once.
    lr, mu = lane(np.int32(-step.lr)), lane(np.int32(step.mu))
    outside_w, outside_m = lane(0), lane(0)
    for i in range(weight.size):
        total = np.add(np.left_shift(lane(grad[i]), grad_up),
                       np.left_shift(np.multiply(mu, lane(momentum[i])), momentum_up))
        whole = rounded(total, to_momentum, operand(rand_m, i), rails)
        code = fitted(whole, to_momentum, rails)
        outside_m = np.add(outside_m, lane(code != whole))
        new_momentum[i] = code
        total = np.add(np.left_shift(lane(weight[i]), weight_up),
                       np.left_shift(np.multiply(lr, code), move_up))
        whole = rounded(total, to_weight, operand(rand_w, i), rails)
        code = fitted(whole, to_weight, rails)
        outside_w = np.add(outside_w, lane(code != whole))
        new_weight[i] = code
    return np.int64(outside_w), np.int64(outside_m)


@kernel(parallel=True)
def sgd_lanes(weight, momentum, grad, bounds, rails, near, short, step, to_momentum, to_weight,
              rand_m, rand_w, new_weight, new_momentum):
    """The update of flat arrays whose codes are in `bounds` (3, 2), else of no use.

    In the bounds `near`, which are within those, the lanes of `short` are exact too. Returns how
    many weights and momenta were outside, and whether all codes were in bounds.
    """
    outside_w, outside_m, strays = 0, 0, 0
    for k in prange((weight.size + CHUNK - 1) // CHUNK):
        a, b = k * CHUNK, min(weight.size, (k + 1) * CHUNK)
        if not (stray(weight[a:b], near[0]) or stray(momentum[a:b], near[1])
                or stray(grad[a:b], near[2])):
            found = sgd_chunk(weight[a:b], momentum[a:b], grad[a:b], short, step, to_momentum,
                              to_weight, rand_m[a:b], rand_w[a:b], new_weight[a:b],
                              new_momentum[a:b])
        else:
            strays += (stray(weight[a:b], bounds[0]) or stray(momentum[a:b], bounds[1])
                       or stray(grad[a:b], bounds[2]))
            found = sgd_chunk(weight[a:b], momentum[a:b], grad[a:b], rails, step, to_momentum,
                              to_weight, rand_m[a:b], rand_w[a:b], new_weight[a:b],
                              new_momentum[a:b])
        outside_w += found[0]
        outside_m += found[1]
    return outside_w, outside_m, strays == 0


@kernel
def floats_chunk(weight, momentum, grad, grids, scaling, quantized, casts, step, bounds, near,
                 new_weight, new_momentum):
    """`sgd_floats` on one thread; returns whether something strays."""
    none, nobody = np.empty(0, np.uint32), np.empty(0, np.bool_)
    codes = np.empty((3, weight.size), np.int32)
    held, gradient, moved = codes[0], codes[1], codes[2]
    if grid_chunk(weight, grids[0], grids[1], grids[2], grids[3], held):
        return True
    # On the grid of their cast, and in range, gradients are their codes; else they are cast.
    if (not grids[5] or grid_chunk(grad, grids[4], grids[5], grids[6], grids[7], gradient)) and (
            (grids[4] and off_grid_chunk(grad, grids[4]))
            or quantize_chunk(grad, scaling[0], scaling[1], casts[2], quantized, none, gradient,
                              nobody) < 0):
        return True
    step = Step(step[0], step[1], step[2], step[3], step[4], step[5])
    if not (stray(held, near[0]) or stray(momentum, near[1]) or stray(gradient, near[2])):
        sgd_chunk(held, momentum, gradient, codes[0, :0], step, casts[0], casts[1], none, none,
                  moved, new_momentum)
    elif stray(momentum, bounds):
        return True
    else:
        sgd_chunk(held, momentum, gradient, np.empty(0, np.int64), step, casts[0], casts[1], none,
                  none, moved, new_momentum)
    float_chunk(moved, grids[1], new_weight)
    return False


@kernel(parallel=True)
def sgd_floats(weight, momentum, grad, grids, scaling, quantized, casts, step, bounds, near,
               new_weight, new_momentum):
    """`sgd_lanes` from floats to floats: a chunk's codes stay in the cache, as int32.

    `grids` are the weight's scale, step, least and greatest code, and those of the gradient: the
    scale that makes all of them whole, or 0, and the step of their cast, if that is the same, or 0.
    `scaling` and `quantized` are the scale, limit and rails that quantize it; `casts` are those of
    momentum, weight and gradient. Returns how many chunks have a weight off its grid, a gradient
    off its own or beyond the limit, or a momentum out of bounds: then the results are of no use.
    """
    strays = 0
    for k in prange((weight.size + CHUNK - 1) // CHUNK):
        a, b = k * CHUNK, min(weight.size, (k + 1) * CHUNK)
        strays += floats_chunk(weight[a:b], momentum[a:b], grad[a:b], grids, scaling, quantized,
                               casts, step, bounds, near, new_weight[a:b], new_momentum[a:b])
    return strays


@kernel
def parts_chunk(weight, momentum, grad, rails, step, parts, to_momentum, to_ahead, to_weight,
                rand_m, rand_n, rand_w, new_weight, new_momentum):
    """`parts_lanes` on one thread."""
    lane = rails.dtype.type
    grad_up, momentum_up = lane(step.grad_up), lane(step.momentum_up)
    weight_up, move_up = lane(step.weight_up), lane(step.move_up)
    decay_up, shrink_up = lane(parts.decay_up), lane(parts.shrink_up)
    to_momentum, to_ahead, to_weight = (in_lane(to_momentum, rails), in_lane(to_ahead, rails),
                                        in_lane(to_weight, rails))
    lr, mu = lane(np.int32(-step.lr)), lane(np.int32(step.mu))
    decay, shrink = lane(np.int32(parts.decay)), lane(np.int32(-parts.shrink))
    outside_w, outside_m = lane(0), lane(0)
    for i in range(weight.size):
        held = lane(weight[i])
        gradient = np.add(np.left_shift(lane(grad[i]), grad_up),
                          np.left_shift(np.multiply(decay, held), decay_up))
        total = np.add(gradient, np.left_shift(np.multiply(mu, lane(momentum[i])), momentum_up))
        whole = rounded(np.left_shift(total, to_momentum.up), to_momentum, operand(rand_m, i),
                        rails)
        code = fitted(whole, to_momentum, rails)
        outside_m = np.add(outside_m, lane(code != whole))
        new_momentum[i] = code
        if parts.ahead == EXACT:
            code = total
        if parts.ahead == AHEAD:
            total = np.add(gradient, np.left_shift(np.multiply(mu, code), momentum_up))
            code = fitted(rounded(np.left_shift(total, to_ahead.up), to_ahead, operand(rand_n, i),
                                  rails), to_ahead, rails)
        total = np.add(np.add(np.left_shift(held, weight_up),
                              np.left_shift(np.multiply(lr, code), move_up)),
                       np.left_shift(np.multiply(shrink, held), shrink_up))
        whole = rounded(total, to_weight, operand(rand_w, i), rails)
        code = fitted(whole, to_weight, rails)
        outside_w = np.add(outside_w, lane(code != whole))
        new_weight[i] = code
    return np.int64(outside_w), np.int64(outside_m)


@kernel(parallel=True)
def parts_lanes(weight, momentum, grad, bounds, rails, step, parts, to_momentum, to_ahead,
                to_weight, rand_m, rand_n, rand_w, new_weight, new_momentum):
    """`sgd_lanes` with weight decay and Nesterov momentum."""
    outside_w, outside_m, strays = 0, 0, 0
    for k in prange((weight.size + CHUNK - 1) // CHUNK):
        a, b = k * CHUNK, min(weight.size, (k + 1) * CHUNK)
        strays += (stray(weight[a:b], bounds[0]) or stray(momentum[a:b], bounds[1])
                   or stray(grad[a:b], bounds[2]))
        found = parts_chunk(weight[a:b], momentum[a:b], grad[a:b], rails, step, parts, to_momentum,
                            to_ahead, to_weight, rand_m[a:b], rand_n[a:b], rand_w[a:b],
                            new_weight[a:b], new_momentum[a:b])
        outside_w += found[0]
        outside_m += found[1]
    return outside_w, outside_m, strays == 0


@kernel
def buffered_chunk(weight, buffer, grad, rails, grad_up, to_buffer, to_step, to_weight, rand,
                   new_weight, new_buffer):
    """`buffered_lanes` on one thread."""
    lane = rails.dtype.type
    to_buffer, to_step, to_weight = (in_lane(to_buffer, rails), in_lane(to_step, rails),
                                     in_lane(to_weight, rails))
    grad_up = lane(grad_up)
    outside_w, outside_b = lane(0), lane(0)
    for i in range(weight.size):
        total = np.add(lane(buffer[i]), np.left_shift(lane(grad[i]), grad_up))
        held = fitted(total, to_buffer, rails)
        outside_b = np.add(outside_b, lane(held != total))
        step = rounded(held, to_step, operand(rand, i), rails)
        new_buffer[i] = np.subtract(held, np.left_shift(step, to_step.drop))
        total = np.subtract(lane(weight[i]), step)
        code = fitted(total, to_weight, rails)
        outside_w = np.add(outside_w, lane(code != total))
        new_weight[i] = code
    return np.int64(outside_w), np.int64(outside_b)


@kernel(parallel=True)
def buffered_lanes(weight, buffer, grad, bounds, rails, grad_up, to_buffer, to_step, to_weight,
                   rand, new_weight, new_buffer):
    """The update through a buffer; `grad_up` zeros align, `to_step` rounds, the others only fit.

    Returns how many weights and buffers were outside, and whether all codes were in bounds.
    """
    outside_w, outside_b, strays = 0, 0, 0
    for k in prange((weight.size + CHUNK - 1) // CHUNK):
        a, b = k * CHUNK, min(weight.size, (k + 1) * CHUNK)
        strays += (stray(weight[a:b], bounds[0]) or stray(buffer[a:b], bounds[1])
                   or stray(grad[a:b], bounds[2]))
        found = buffered_chunk(weight[a:b], buffer[a:b], grad[a:b], rails, grad_up, to_buffer,
                               to_step, to_weight, rand[a:b], new_weight[a:b], new_buffer[a:b])
        outside_w += found[0]
        outside_b += found[1]
    return outside_w, outside_b, strays == 0
