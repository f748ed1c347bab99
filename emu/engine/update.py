"""Weight updates on whole arrays of codes: SGD with momentum, and through a gradient buffer."""

import functools
from collections.abc import Sequence
from operator import mul
from typing import NamedTuple

import numpy as np

from emu.engine.arrays import (
    INT64,
    as_codes,
    check_kind,
    check_width,
    dtype_of,
    flattened,
    narrowed,
)
from emu.engine.casts import cast_full, codes_on, operands_of, scales
from emu.engine.kernels.jit import CAST, launch
from emu.engine.kernels.lanes import LaneCast, lane_cast, lane_for
from emu.engine.kernels.update import (
    Parts,
    Step,
    buffered_lanes,
    parts_lanes,
    sgd_floats,
    sgd_lanes,
)
from emu.engine.monitor import named, watching
from emu.number import Cast, Format, Rounding
from emu.spec import MacSpec
from emu.update import BufferSpec, UpdateSpec

SHORT = np.empty(0, np.int32)  # the narrow lane, by its dtype
HALF = (1 << 30) - 1  # two addends up to this have a sum in that lane


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
        rand_weight=None, decay: int = 0, rand_nesterov=None) -> Updated:
    """The update of `UpdateSpec`; arrays of one shape, each holding codes of its cast's format.

    `decay` is a code of the spec's decay or shrink. Weight and momentum keep their dtype where it
    holds their format.
    """
    check_kind(spec, "spec", UpdateSpec)
    state = _state(spec, ("weight", "momentum", "grad"), weight, momentum, grad)
    plan = _plan(spec)
    if decay and "decay" not in plan.constants and "shrink" not in plan.constants:
        raise ValueError(f"decay {decay}: the update {spec} has no weight decay; give it the cast "
                         "decay or shrink")
    constants = {name: _constant(spec, name, code)
                 for name, code in zip(plan.constants, (lr, mu, decay), strict=False)}
    rands = {"momentum": rand_momentum, "nesterov": rand_nesterov, "weight": rand_weight}
    if plan.lane is None or watching() is not None:
        return _sgd_by_casts(spec, state, constants, rands)
    drawn = [operands_of(getattr(spec, name), state["grad"].shape, rands[name])
             for name in spec.sums]
    step = Step(constants["lr"], constants["mu"], *plan.ups)
    if plan.parts is None:
        return Updated(*_run(sgd_lanes, spec, state, plan.lane, _near(spec, step.lr, step.mu),
                             SHORT, step, *plan.arrays, *drawn))
    casts = plan.arrays
    if spec.nesterov is None:
        casts, drawn = (casts[0], *casts), (drawn[0], *drawn)  # of no use
    parts = plan.parts._replace(**{name: code for name, code in constants.items()
                                   if name in Parts._fields})
    return Updated(*_run(parts_lanes, spec, state, plan.lane, step, parts, *casts, *drawn))


class _Plan(NamedTuple):
    """How the kernels compute an update; `parts` are None where it has none."""

    ups: tuple[int, ...]  # zeros that align the addends: `Step`
    parts: Parts | None  # without their factors
    casts: tuple[LaneCast, ...]  # of each sum
    arrays: tuple[np.ndarray, ...]  # the same, as kernels take them
    lane: np.dtype | None  # in which all of them are exact
    constants: tuple[str, ...]  # the casts of its factors: lr, mu, and that of the weight decay


@functools.lru_cache(1 << 8)
def _plan(spec: UpdateSpec) -> _Plan:
    ups = {(name, *factors): spec.sum_frac(name) - spec.term_frac(factors)
           for name, terms in spec.sums.items() for _, *factors in terms}
    moved, parts = spec.moved, None
    if any(getattr(spec, name) for name in ("decay", "shrink", "nesterov", "direction")):
        parts = Parts(0, ups.get(("momentum", "decay", "weight"), 0), 0,
                      ups.get(("weight", "shrink", "weight"), 0),
                      ("momentum", "nesterov", "direction").index(moved))
    casts = {name: lane_cast(spec.sum_frac(name), getattr(spec, name)) for name in spec.sums}
    lane = _lane(*((c, spec.sum_bits[name] - c.up) for name, c in casts.items()))
    return _Plan((ups["momentum", "grad"], ups["momentum", "mu", "momentum"],
                  ups["weight", "weight"], ups["weight", "lr", moved]), parts,
                 tuple(casts.values()),
                 () if lane is None else tuple(np.array(c) for c in casts.values()), lane,
                 ("lr", "mu", *(name for name in ("decay", "shrink") if getattr(spec, name))))


@functools.lru_cache(1 << 8)
def _near(spec: UpdateSpec, lr: int, mu: int) -> np.ndarray:
    """Ends (3, 2) of weights, momenta and gradients between which int32 lanes are exact.

    Each addend of a sum is at most HALF. A rounded momentum is at most its sum without what is
    dropped, plus 1, and is fitted towards 0 as its format is signed.
    """
    plan = _plan(spec)
    (grad_up, momentum_up, weight_up, move_up), to_momentum = plan.ups, plan.casts[0]
    grad_up, momentum_up = grad_up + to_momentum.up, momentum_up + to_momentum.up
    if (max(grad_up, momentum_up, weight_up, move_up) > 30 or not spec.momentum.format.signed
            or any(lane_for(c, 0) != SHORT.dtype for c in plan.casts)):
        return np.array([(1, 0)] * 3)  # no code is between them
    moved = (HALF >> move_up) // abs(lr) if lr else HALF
    addend = max(min(HALF, moved - 1 << to_momentum.drop >> 1), 0)
    reach = HALF >> weight_up, (addend >> momentum_up) // max(abs(mu), 1), addend >> grad_up
    return np.array([(max(low, -most), min(high, most)) for (low, high), most in zip(
        _ends(spec, ("weight", "momentum", "grad")), reach, strict=True)])


def _constant(spec: UpdateSpec, name: str, code: int) -> int:
    form = getattr(spec, name).format
    if type(code) is not int or not form.lo <= code <= form.hi:
        return int(as_codes([code], name, form)[0])  # which names what is wrong
    return code


class FloatsPlan(NamedTuple):
    """How `sgd_of_floats` computes an update."""

    dtype: np.dtype  # of weights and gradients
    momentum: np.dtype  # of its codes
    constants: tuple[np.ndarray, ...]  # as the kernel takes them


@functools.lru_cache(1 << 10)
def floats_plan(spec: UpdateSpec, lr: int, mu: int, dtype: np.dtype, frac: int | None
                ) -> FloatsPlan | None:
    """The plan of an update of weights and gradients of a float dtype.

    Gradients must be multiples of 2^-frac, unless that is None. None for an update with more than
    a momentum, casts that draw, codes beyond int32, and weights that the dtype does not carry.
    """
    check_kind(spec, "spec", UpdateSpec)
    plan, names = _plan(spec), ("weight", "momentum", "grad")
    form, found = spec.weight.format, scales(spec.grad, dtype)
    if (plan.lane is None or plan.parts is not None or not found or INT64 in _dtypes(spec, names)
            or any(getattr(spec, name).rounding == Rounding.STOCHASTIC for name in names)
            or codes_on(np.empty(0, dtype), form) is None
            or (frac is not None and abs(frac) > (120 if dtype == np.float32 else 1000))):
        return None
    rails, scale, limit, to_grad, *_ = found[0]
    rates, ends = [_constant(spec, "lr", lr), _constant(spec, "mu", mu)], _ends(spec, names)
    grids, to = [2.0**form.frac, form.step, form.lo, form.hi, 0.0, 0.0, 0, 0], spec.grad.format
    if frac is not None:
        grids[4] = 2.0**frac
    if frac == to.frac and codes_on(np.empty(0, dtype), to) is not None:
        grids[5:] = to.step, *spec.grad.range
    near = ends if plan.lane == SHORT.dtype else _near(spec, lr, mu)
    return FloatsPlan(dtype, dtype_of(spec.momentum.format), (
        np.array(grids, dtype), np.array([scale, limit]), rails,
        np.array([*plan.arrays, to_grad]), np.array([*rates, *plan.ups]), ends[1], near))


def sgd_of_floats(weight, momentum, grad, plan: FloatsPlan) -> tuple[np.ndarray, np.ndarray] | None:
    """New values of the weight and codes of the momentum; arrays of one shape.

    What `sgd` makes of the codes of weights on their grid and of the gradients, quantized. None
    where an array is of another dtype or shape, a weight or a gradient is off its grid, or a
    gradient or a code too large: nothing is said of which.
    """
    if not (weight.shape == momentum.shape == grad.shape and momentum.dtype == plan.momentum
            and weight.dtype == grad.dtype == plan.dtype):
        return None
    new_weight, new_momentum = (np.empty(weight.shape, plan.dtype),
                                np.empty(weight.shape, plan.momentum))
    strays = launch(sgd_floats, 4 * CAST * weight.size, weight.reshape(-1), momentum.reshape(-1),
                    grad.reshape(-1), *plan.constants, new_weight.reshape(-1),
                    new_momentum.reshape(-1))
    return None if strays else (new_weight, new_momentum)


def _sgd_by_casts(spec: UpdateSpec, state: dict, constants: dict, rands: dict) -> Updated:
    """The update as casts of exact sums, which record themselves where someone watches."""
    values = constants | dict(zip(state, _wide(spec, state), strict=True))
    outside = {}
    for name, terms in spec.sums.items():
        frac = spec.sum_frac(name)
        total = np.zeros(state["grad"].shape, np.int64)
        for sign, *factors in terms:
            product = functools.reduce(mul, (values[factor] for factor in factors))
            total += sign * product << frac - spec.term_frac(factors)
        if name == "momentum":
            values["direction"] = total
        with named(name, 0):
            found = cast_full(total, frac, getattr(spec, name), rands[name])
        values[name], outside[name] = found.codes.astype(np.int64), found.outside
    return Updated(*(values[name].astype(state[name].dtype) for name in ("weight", "momentum")),
                   outside["weight"], outside["momentum"])


def clip(grad, limit: int, spec: UpdateSpec | BufferSpec) -> np.ndarray:
    """Codes of `spec.grad` within -limit and limit, a code of `spec.clip`."""
    grad = as_codes(grad, "grad", spec.grad.format)
    limit = _constant(spec, "clip", limit) << spec.grad.format.frac - spec.clip.format.frac
    return narrowed(np.clip(grad, -limit, limit), spec.grad.format)


def squares_mac(form: Format, count: int) -> MacSpec:
    """The hardware that adds the squares of `count` codes and loses nothing.

    Raises ValueError where that needs more bits than an accumulator has.
    """
    operand = form.with_frac(0)
    most = max(-form.lo, form.hi) ** 2 * count
    try:
        return MacSpec(operand, operand, Cast(Format(max(most.bit_length(), 2), 0, signed=False)))
    except ValueError as error:
        raise ValueError(f"the squares of {count} codes of {form}: {error}") from None


def square_sum(grad, form: Format) -> int:
    """The sum of the squares of codes of `form`, exactly."""
    codes = as_codes(grad, "grad", form).reshape(-1)
    squares_mac(form, codes.size)
    return int(codes @ codes)


def norm_shift(squares: Sequence[tuple[int, int]], limit: int, frac: int) -> int:
    """The smallest s >= 0 for which 2^-s times the norm of gradients is at most limit * 2^-frac.

    `squares` are sums of squared codes, each with the frac of the codes. Raises ValueError for a
    limit of 0, which no power of two reaches.
    """
    if limit < 1 and any(square for square, _ in squares):
        raise ValueError(f"norm limit {limit}: no power of two brings a norm to it; use a code "
                         "of 1 at least")
    finest = max([frac, *(of_codes for _, of_codes in squares)])
    total = sum(square << 2 * (finest - of_codes) for square, of_codes in squares)
    bound = limit * limit << 2 * (finest - frac)
    s = max(total.bit_length() - bound.bit_length(), 0) // 2  # brings both to about the same length
    return s + (total > bound << 2 * s)


def buffered_sgd(weight, buffer, grad, shift: int, spec: BufferSpec, rand=None) -> Buffered:
    """The update of `BufferSpec` with a learning rate of 2^-shift; arrays of one shape.

    Weight and buffer keep their dtype where it holds their format.
    """
    check_kind(spec, "spec", BufferSpec)
    state = _state(spec, ("weight", "buffer", "grad"), weight, buffer, grad)
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


def _state(spec, names: tuple[str, ...], *arrays) -> dict[str, np.ndarray]:
    """The arrays in dtypes that hold their casts' formats, of one shape."""
    found = {}
    for name, codes, dtype in zip(names, arrays, _dtypes(spec, names), strict=True):
        array = as_codes(codes, name, dtype=None)
        found[name] = array.astype(dtype) if array.itemsize < dtype.itemsize else array
        if array.shape != np.shape(arrays[0]):
            shapes = ", ".join(f"{name} {np.shape(x)}"
                               for name, x in zip(names, arrays, strict=True))
            raise ValueError(f"{shapes}: shapes differ")
    return found


@functools.lru_cache(1 << 8)
def _dtypes(spec: UpdateSpec | BufferSpec, names: tuple[str, ...]) -> list[np.dtype]:
    """The smallest dtype that holds every code of each of these casts."""
    forms = [getattr(spec, name).format for name in names]
    for form in forms:
        check_width(form)
    return [dtype_of(form) for form in forms]


def _wide(spec, state: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The arrays as int64, checked."""
    return [as_codes(codes, name, getattr(spec, name).format) for name, codes in state.items()]


def _run(kernel, spec, state: dict[str, np.ndarray], lane: np.dtype, *constants) -> tuple:
    """(new first array, new second one, how many of each were outside) of an update."""
    first, second, grad = state.values()
    dtypes = first.dtype, second.dtype, grad.dtype
    if INT64 in dtypes:  # who holds a state in int64 is in no hurry: one kernel will do
        lane, dtypes = INT64, (INT64, INT64, INT64)
    new = [np.empty(first.shape, dtypes[0]), np.empty(first.shape, dtypes[1])]
    *outside, held = launch(kernel, 2 * CAST * first.size, flattened(first, dtypes[0]),
                            flattened(second, dtypes[1]), flattened(grad, dtypes[2]),
                            _ends(spec, tuple(state)), np.empty(0, lane), *constants,
                            new[0].reshape(-1), new[1].reshape(-1))
    if not held:
        _wide(spec, state)  # which names the code
    return (new[0].astype(first.dtype, copy=False), new[1].astype(second.dtype, copy=False),
            *outside)


@functools.lru_cache(1 << 8)
def _ends(spec: UpdateSpec | BufferSpec, names: tuple[str, ...]) -> np.ndarray:
    """The least and the greatest code of each of these casts (names, 2)."""
    forms = [getattr(spec, name).format for name in names]
    return np.array([(form.lo, form.hi) for form in forms])


def _lane(*casts: tuple[LaneCast, int]) -> np.dtype | None:
    """The lane in which all casts of values of so many bits are exact, if there is one."""
    lanes = [lane_for(c, bits) for c, bits in casts]
    return None if None in lanes else max(lanes, key=lambda lane: lane.itemsize)
