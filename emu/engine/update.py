"""Weight updates on whole arrays of codes: SGD with momentum, and through a gradient buffer."""

import functools
from typing import NamedTuple

import numpy as np

from emu.engine.arrays import as_codes, check_width, dtype_of, flattened
from emu.engine.casts import cast_full, operands_of
from emu.engine.kernels.jit import CAST, launch
from emu.engine.kernels.lanes import LaneCast, lane_cast, lane_for
from emu.engine.kernels.update import Step, buffered_lanes, sgd_lanes
from emu.engine.monitor import named, watching
from emu.number import Cast, Format
from emu.update import BufferSpec, UpdateSpec


class Updated(NamedTuple):
    """New codes, and how many of each were outside their range."""

    weight: np.ndarray
    momentum: np.ndarray
    outside_weight: int
    outside_momentum: int


class Buffered(NamedTuple):
    """New codes, and how many of each were outside their range."""

    weight: np.ndarray
    buffer: np.ndarray
    outside_weight: int
    outside_buffer: int


def sgd(weight, momentum, grad, lr: int, mu: int, spec: UpdateSpec, rand_momentum=None,
        rand_weight=None) -> Updated:
    """The update of `UpdateSpec`; arrays of one shape, each holding codes of its cast's format.

    Weight and momentum keep their dtype where it holds their format.
    """
    state = _state(spec, weight=weight, momentum=momentum, grad=grad)
    fracs, shifts, casts, lane = _plan(spec)
    step = Step(_constant(spec, "lr", lr), _constant(spec, "mu", mu), *shifts)
    rands = rand_momentum, rand_weight
    if lane is None or watching() is not None:
        return _sgd_by_casts(spec, state, step, fracs, rands)
    rands = [operands_of(to, state["grad"].shape, rand) for to, rand in
             zip((spec.momentum, spec.weight), rands, strict=True)]
    return Updated(*_run(sgd_lanes, spec, state, lane, step, *casts, *rands))


@functools.lru_cache(1 << 8)
def _plan(spec: UpdateSpec) -> tuple:
    """(fracs of the two sums, zeros that align their addends, their casts, a lane for both)."""
    frac = {name: getattr(spec, name).format.frac
            for name in ("weight", "momentum", "grad", "lr", "mu")}
    in_momentum, in_weight = frac["mu"] + frac["momentum"], frac["lr"] + frac["momentum"]
    finer_m, finer_w = max(in_momentum, frac["grad"]), max(in_weight, frac["weight"])
    shifts = (finer_m - frac["grad"], finer_m - in_momentum,
              finer_w - frac["weight"], finer_w - in_weight)
    casts = lane_cast(finer_m, spec.momentum), lane_cast(finer_w, spec.weight)
    lane = _lane(*((c, bits - c.up) for c, bits in zip(casts, spec.sum_bits, strict=True)))
    return (finer_m, finer_w), shifts, casts, lane


def _constant(spec: UpdateSpec, name: str, code: int) -> int:
    form = getattr(spec, name).format
    if type(code) is not int or not form.lo <= code <= form.hi:
        return int(as_codes([code], name, form)[0])  # which names what is wrong
    return code


def _sgd_by_casts(spec: UpdateSpec, state: dict, step: Step, fracs: tuple, rands: tuple) -> Updated:
    """The update as two casts of exact sums, which record themselves where someone watches."""
    weight, momentum, grad = _wide(spec, state)
    with named("momentum", 0):
        total = (grad << step.grad_up) + (step.mu * momentum << step.momentum_up)
        held = cast_full(total, fracs[0], spec.momentum, rands[0])
    with named("weight", 0):
        move = step.lr * held.codes.astype(np.int64) << step.move_up
        moved = cast_full((weight << step.weight_up) - move, fracs[1], spec.weight, rands[1])
    return Updated(moved.codes.astype(state["weight"].dtype),
                   held.codes.astype(state["momentum"].dtype), moved.outside, held.outside)


def buffered_sgd(weight, buffer, grad, shift: int, spec: BufferSpec, rand=None) -> Buffered:
    """The update of `BufferSpec` with a learning rate of 2^-shift; arrays of one shape.

    Weight and buffer keep their dtype where it holds their format.
    """
    state = _state(spec, weight=weight, buffer=buffer, grad=grad)
    frac, in_weight = spec.buffer.format.frac, spec.weight.format.frac
    grad_up = frac - spec.grad.format.frac
    drop = spec.dropped(shift)
    if watching() is not None:
        return _buffered_by_casts(spec, state, grad_up, drop, rand)
    casts = (lane_cast(frac, spec.buffer), lane_cast(in_weight + drop, spec.weight),
             lane_cast(in_weight, spec.weight))
    # Buffer and gradient, or weight and step, have one bit more than the wider one; a step is no
    # wider than the buffer.
    bits = 1 + max(form.width + up + (not form.signed) for form, up in (
        (spec.buffer.format, 0), (spec.grad.format, grad_up), (spec.weight.format, 0)))
    rand = operands_of(spec.weight, state["grad"].shape, rand)
    lane = _lane(*((c, bits) for c in casts))
    return Buffered(*_run(buffered_lanes, spec, state, lane, grad_up, *casts, rand))


def _buffered_by_casts(spec: BufferSpec, state: dict, grad_up: int, drop: int, rand) -> Buffered:
    """The update as three casts, which record themselves: buffer, step and weight."""
    weight, buffer, grad = _wide(spec, state)
    to = spec.weight
    with named("buffer", 0):
        held = cast_full(buffer + (grad << grad_up), spec.buffer.format.frac, spec.buffer)
    rest = held.codes.astype(np.int64)
    with named("step", 0):
        whole = Cast(Format(64, to.format.frac), to.rounding, rand_bits=to.rand_bits)
        step = cast_full(rest, to.format.frac + drop, whole, rand).codes
    with named("weight", 0):
        moved = cast_full(weight - step, to.format.frac, Cast(to.format, overflow=to.overflow))
    return Buffered(moved.codes.astype(state["weight"].dtype),
                    (rest - (step << drop)).astype(state["buffer"].dtype),
                    moved.outside, held.outside)


def _state(spec, **arrays) -> dict[str, np.ndarray]:
    """The arrays in dtypes that hold their casts' formats, of one shape."""
    found = {}
    for name, codes in arrays.items():
        form = getattr(spec, name).format
        check_width(form)
        array, dtype = as_codes(codes, name, dtype=None), dtype_of(form)
        found[name] = array.astype(dtype) if array.itemsize < dtype.itemsize else array
    if len({x.shape for x in found.values()}) > 1:
        shapes = ", ".join(f"{name} {x.shape}" for name, x in found.items())
        raise ValueError(f"{shapes}: shapes differ")
    return found


def _wide(spec, state: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The arrays as int64, checked."""
    return [as_codes(codes, name, getattr(spec, name).format) for name, codes in state.items()]


def _run(kernel, spec, state: dict[str, np.ndarray], lane: np.dtype, *constants) -> tuple:
    """(new first array, new second one, how many of each were outside) of an update."""
    dtypes = [x.dtype for x in state.values()]
    if np.int64 in dtypes:  # who holds a state in int64 is in no hurry: one kernel will do
        lane, dtypes = np.int64, [np.int64] * 3
    arrays = [flattened(x, dtype) for x, dtype in zip(state.values(), dtypes, strict=True)]
    new = [np.empty_like(x) for x in arrays[:2]]
    forms = [getattr(spec, name).format for name in state]
    *outside, held = launch(kernel, 2 * CAST * new[0].size, *arrays,
                            np.array([(form.lo, form.hi) for form in forms]), np.empty(0, lane),
                            *constants, *new)
    if not held:
        _wide(spec, state)  # which names the code
    new = [x.reshape(old.shape).astype(old.dtype, copy=False)
           for x, old in zip(new, state.values(), strict=False)]
    return *new, *map(int, outside)


def _lane(*casts: tuple[LaneCast, int]) -> np.dtype | None:
    """The lane in which all casts of values of so many bits are exact, if there is one."""
    lanes = [lane_for(c, bits) for c, bits in casts]
    return None if None in lanes else max(lanes, key=lambda lane: lane.itemsize)
