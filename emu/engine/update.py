"""SGD with momentum on whole arrays of codes."""

from typing import NamedTuple

import numpy as np

from emu.engine.arrays import as_codes
from emu.engine.casts import cast_full, operands_of
from emu.engine.kernels.casts import stage
from emu.engine.kernels.jit import CAST, launch
from emu.engine.kernels.update import sgd_arrays
from emu.engine.monitor import named, watching
from emu.spec import UpdateSpec


class Updated(NamedTuple):
    """New codes (int64) and how many of each were outside their range."""

    weight: np.ndarray
    momentum: np.ndarray
    outside_weight: int
    outside_momentum: int


def sgd(weight, momentum, grad, lr: int, mu: int, spec: UpdateSpec, rand_momentum=None,
        rand_weight=None) -> Updated:
    """The update of `UpdateSpec`; arrays of one shape, each holding codes of its cast's format."""
    weight, momentum, grad = (
        as_codes(codes, name, getattr(spec, name).format)
        for codes, name in ((weight, "weight"), (momentum, "momentum"), (grad, "grad")))
    if not weight.shape == momentum.shape == grad.shape:
        raise ValueError(f"weight {weight.shape}, momentum {momentum.shape}, grad {grad.shape}: "
                         "shapes differ")
    for name, code in (("lr", lr), ("mu", mu)):
        as_codes([code], name, getattr(spec, name).format)
    fracs = {name: getattr(spec, name).format.frac
             for name in ("weight", "momentum", "grad", "lr", "mu")}
    in_momentum, in_weight = (fracs["mu"] + fracs["momentum"], fracs["lr"] + fracs["momentum"])
    finer_m, finer_w = max(in_momentum, fracs["grad"]), max(in_weight, fracs["weight"])
    shifts = (finer_m - fracs["grad"], finer_m - in_momentum,
              finer_w - fracs["weight"], finer_w - in_weight)
    if watching() is not None:
        return _watched(weight, momentum, grad, lr, mu, shifts, (finer_w, finer_m), spec,
                        (rand_weight, rand_momentum))
    weight, momentum = weight.copy(), momentum.copy()
    outside_m, outside_w = launch(
        sgd_arrays, 2 * CAST * weight.size, weight.reshape(-1),
        momentum.reshape(-1), grad.reshape(-1), lr, mu, shifts,
        stage(finer_m, spec.momentum), stage(finer_w, spec.weight),
        operands_of(spec.momentum, weight.shape, rand_momentum).astype(np.int64),
        operands_of(spec.weight, weight.shape, rand_weight).astype(np.int64))
    return Updated(weight, momentum, int(outside_w), int(outside_m))


def _watched(weight, momentum, grad, lr, mu, shifts, fracs, spec, rands) -> Updated:
    """The update as two casts of exact sums, which record themselves."""
    with named("momentum", 0):
        found = cast_full((grad << shifts[0]) + (mu * momentum << shifts[1]), fracs[1],
                          spec.momentum, rands[1])
    momentum = found.codes.astype(np.int64)
    with named("weight", 0):
        moved = cast_full((weight << shifts[2]) - (lr * momentum << shifts[3]), fracs[0],
                          spec.weight, rands[0])
    return Updated(moved.codes.astype(np.int64), momentum, moved.outside, found.outside)
