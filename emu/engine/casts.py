"""Casts of whole arrays, and the border where floats become codes and codes floats."""

from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from emu.engine.arrays import (
    SIGNED,
    as_codes,
    check_kind,
    check_width,
    dtype_of,
    flattened,
    narrowed,
)
from emu.engine.draws import random_operands
from emu.engine.kernels.border import encode_array, exponents, scaled_codes
from emu.engine.kernels.casts import WIDEST, cast_array, stage
from emu.engine.kernels.jit import CAST, launch
from emu.engine.kernels.lanes import cast_lanes, lane_cast, lane_for
from emu.engine.kernels.quantize import float_lanes, grid_codes, off_grid, quantize_lanes
from emu.engine.monitor import watching
from emu.engine.watched import watch_cast
from emu.kind import AnyCast, ClosedCast, FlagCast
from emu.number import MAX_FRAC, Cast, Format, Overflow, Rounding

NONE = np.empty(0, np.uint32)  # the operands of a cast that takes none
NOBODY = np.empty(0, np.bool_)  # nobody looks at what was inside
BORDER_BITS = 61  # of an encoded float: a cast's width and what it drops


class Casted(NamedTuple):
    """The result of a cast: codes, which of them were in range, and how many were not.

    Where all were in range, `inside` cannot be written to.
    """

    codes: np.ndarray
    inside: np.ndarray
    outside: int


_casted = partial(tuple.__new__, Casted)  # of the three, without a frame of Python's


def cast(codes, frac: int, to: AnyCast, rand=None, loads=None) -> np.ndarray:
    """Codes with `frac` fraction bits as codes of `to`, in the smallest sufficient dtype.

    STOCHASTIC takes an operand of `to.rand_bits` bits for each element: `rand`, of the shape of
    `codes`, or what LFSRs draw that start from the 16 `loads` of `load_words`.

    >>> cast(np.array([24, 40, -24, 900]), 4, Cast.parse("s4 ties_even sat"))
    array([ 2,  2, -2,  7], dtype=int8)
    """
    return _cast(codes, frac, to, rand, loads, masked=False).codes


def cast_full(codes, frac: int, to: AnyCast, rand=None, loads=None) -> Casted:
    """`cast`, with the overflow of every element."""
    if (type(to) is Cast and type(codes) is np.ndarray and codes.dtype in SIGNED
            and watching() is None):
        return unwatched(codes, frac, to, rand, loads, masked=True)
    return _cast(codes, frac, to, rand, loads, masked=True)


def passes(codes, frac: int, to: AnyCast, rand=None) -> np.ndarray:
    """The straight-through gradient of the cast: False where saturation changed the value."""
    found = cast_full(codes, frac, to, rand)
    return np.ones_like(found.inside) if to.overflow == Overflow.WRAP else found.inside.copy()


def _cast(codes, frac: int, to: AnyCast, rand, loads, masked: bool) -> Casted:
    check_kind(to, "to", AnyCast)
    x = as_codes(codes, "codes", dtype=None)
    compute = {FlagCast: _flagged, ClosedCast: _closed}.get(type(to), unwatched)
    if (scope := watching()) is None:
        return compute(x, frac, to, rand, loads, masked)
    found = compute(x, frac, to, rand, loads, masked=True)
    watch_cast(scope, "cast", x.astype(np.int64), frac, to, found.codes, found.inside)
    return found


class _Plan(NamedTuple):
    """How a cast is computed: in which lane, and with which constants."""

    cast: np.ndarray  # its `LaneCast`, of no use without a lane
    rails: np.ndarray | None  # an empty array of the lane; None where none holds the cast
    kind: np.dtype  # that the codes are read in
    out: np.dtype
    result: np.dtype  # the smallest that holds every code
    random: bool  # whether every element takes an operand


@lru_cache(1 << 12)
def _plan(frac: int, to: Cast, itemsize: int) -> _Plan:
    check_width(to.format)
    c, result = lane_cast(frac, to), dtype_of(to.format)
    lane, random = lane_for(c, 8 * itemsize), to.rounding == Rounding.STOCHASTIC
    if lane is None:
        return _Plan(NONE, None, np.dtype(np.int64), np.dtype(np.int64), result, random)
    wide = lane == np.int64  # which is rare: one kernel for all dtypes will do
    return _Plan(np.array(c), np.empty(0, lane), lane if wide else np.dtype(f"i{itemsize}"),
                 lane if wide else result, result, random)


def unwatched(x: np.ndarray, frac: int, to: Cast, rand=None, loads=None, masked: bool = False
              ) -> Casted:
    """`cast` of signed codes that leaves no record; `inside` says nothing unless `masked`."""
    c, rails, kind, dtype, result, random = _plan(frac, to, x.itemsize)
    operands = operands_of(to, x.shape, rand, loads) if random else NONE
    flat, out = flattened(x, kind), np.empty(x.shape, dtype)
    inside = np.empty(x.shape, np.bool_) if masked else NOBODY
    if rails is None:
        outside = launch(cast_array, CAST * x.size, flat, stage(frac, to),
                         operands.astype(np.int64), out.ravel(), inside.ravel())
    else:
        outside = launch(cast_lanes, CAST * x.size, flat, c, rails, operands, out.ravel(),
                         inside.ravel())
    return _casted((out if dtype == result else out.astype(result),
                    inside if outside or not masked else _all(x.shape), outside))


@lru_cache(1 << 10)
def _all(shape: tuple) -> np.ndarray:
    """A mask that is true everywhere and takes no memory."""
    return np.broadcast_to(np.True_, shape)


def _flagged(x: np.ndarray, frac: int, to: FlagCast, rand, loads, masked: bool) -> Casted:
    """Two casts with the same operands, and a choice between them."""
    check_width(to.format)
    x = x.astype(np.int64)
    shift = max(frac - to.cast.format.frac, 0)
    magnitude = np.abs(x).view(np.uint64)  # that of the least code too
    is_coarse = magnitude >> np.uint64(min(shift, 63)) > (0 if shift < 64 else 1)
    rand = operands_of(to.cast, x.shape, rand, loads).reshape(x.shape) if to.rand_bits else None
    coarse = unwatched(np.where(is_coarse, x, 0), frac, to.cast, rand, masked=masked)
    finer = Cast(to.format, to.rounding, Overflow.SAT, to.rand_bits)  # what is small fits
    fine = unwatched(np.where(is_coarse, 0, x), frac, finer, rand)
    codes = np.where(is_coarse, coarse.codes.astype(np.int64) << to.low, fine.codes)
    return Casted(narrowed(codes, to.format), coarse.inside, coarse.outside)


def _closed(x: np.ndarray, frac: int, to: ClosedCast, rand, loads, masked: bool) -> Casted:
    """A cast to twice the range, cut at the powers of two."""
    check_width(to.format)
    wide = Cast(Format(to.format.width + 2, to.format.frac), to.rounding, Overflow.SAT,
                to.rand_bits)
    whole = unwatched(x, frac, wide, rand, loads).codes
    codes = np.clip(whole, *to.range)
    inside = codes == whole
    return Casted(narrowed(codes, to.format), inside, int(inside.size - inside.sum()))


def operands_of(to: Cast, shape: tuple, rand=None, loads=None) -> np.ndarray:
    """The flat uint32 operands of a cast of so many codes; none where nothing is random.

    They are `rand`, or drawn from `loads`. Raises ValueError where neither gives them.
    """
    if to.rounding != Rounding.STOCHASTIC:
        return NONE
    if rand is None and loads is None:
        raise ValueError(f"rand None: {to} needs a random operand of {to.rand_bits} bits for "
                         "every element; emu.random_operands draws them")
    if rand is None:
        return random_operands(shape, to.rand_bits, loads).reshape(-1)
    operands = as_codes(rand, "rand", Format(to.rand_bits, 0, signed=False), dtype=np.uint32)
    if operands.shape != shape:
        raise ValueError(f"rand: shape {operands.shape} for codes of shape {shape}; every element "
                         "draws one operand")
    return operands.reshape(-1)


def encode(x, limit: int | None = None, wraps: bool = False) -> tuple[np.ndarray, int]:
    """Floats as (int64 codes, frac): exactly, at the coarsest frac that holds them all.

    With `limit`, frac is from -512 to `limit`, and what is finer is rounded to odd there: a cast
    that drops two bits or more (STOCHASTIC: R + 2) gives what it would have given for the exact
    value. Magnitudes beyond 62 bits then saturate, or wrap if `wraps`. Raises ValueError for
    values that are not finite, and without `limit` for those that need more than 62 bits.
    """
    floats = np.asarray(x)
    if floats.dtype not in (np.float32, np.float64):
        raise ValueError(f"dtype {floats.dtype}: the border takes float32 or float64")
    flat = flattened(floats, floats.dtype)
    lowest, above = exponents(flat)
    if above < lowest and lowest == 0:
        bad = flat[~np.isfinite(flat)][0]
        raise ValueError(f"{bad} is not finite; codes hold numbers only")
    if above < lowest:  # all zero
        return np.zeros(floats.shape, np.int64), 0 if limit is None else limit
    if limit is None and above - lowest > WIDEST:
        raise ValueError(f"off the grid: the values span {above - lowest} bits, codes have at "
                         f"most {WIDEST}; quantize them first")
    frac = -lowest if limit is None else max(min(-lowest, limit), -MAX_FRAC)
    out = np.empty(floats.shape, np.int64)
    if frac == -lowest and above - lowest <= WIDEST and abs(frac) <= 1000:
        launch(scaled_codes, CAST * flat.size, flat, 2.0**frac, out.ravel())
    else:
        launch(encode_array, CAST * flat.size, flat.astype(np.float64).view(np.int64), frac, wraps,
               out.ravel())
    return out, frac


def encode_for(x, to: AnyCast) -> tuple[np.ndarray, int]:
    """Floats as (int64 codes, frac) from which the cast `to` gives its exact result.

    Up to 34 bits below `to` are kept as they are (fewer for wide formats), the rest as one
    sticky bit. Raises ValueError for a format too wide for that.
    """
    check_kind(to, "to", AnyCast)
    least = to.rand_bits + 2
    guard = max(least, min(34, BORDER_BITS - to.format.width))
    if to.format.width + guard > BORDER_BITS:
        raise ValueError(f"cast {to}: at the float border the width and {least} guard bits may "
                         f"take {BORDER_BITS} bits, not {to.format.width + guard}; use a "
                         "narrower format")
    return encode(x, to.format.frac + guard, wraps=to.overflow == Overflow.WRAP)


def quantize(x, to: AnyCast, rand=None) -> np.ndarray:
    """Floats to codes of `to`, rounded once, from their exact binary values.

    >>> quantize(np.array([0.5, 1.49, -3.0]), Cast.parse("s4f1 ties_even sat"))
    array([ 1,  3, -6], dtype=int8)
    """
    return cast(*encode_for(x, to), to, rand)


def quantize_full(x, to: AnyCast, rand=None, loads=None) -> Casted:
    """`cast_full` of what `encode_for` gives, in one pass where that is exact."""
    floats = x if type(x) is np.ndarray else np.asarray(x)
    if type(to) is Cast and watching() is None:
        flat = flattened(floats, floats.dtype)
        for rails, scale, limit, c, dtype, random in scales(to, floats.dtype):
            operands = operands_of(to, floats.shape, rand, loads) if random else NONE
            out = np.empty(floats.shape, dtype)
            inside = np.empty(floats.shape, np.bool_)
            outside = launch(quantize_lanes, CAST * flat.size, flat, scale, limit, c, rails,
                             operands, out.ravel(), inside.ravel())
            if outside >= 0:
                return _casted((out, inside if outside else _all(floats.shape), outside))
    return cast_full(*encode_for(floats, to), to, rand, loads)


@lru_cache(1 << 10)
def scales(to: Cast, dtype: np.dtype) -> list[tuple]:
    """(rails, scale, limit, constants, dtype of the codes, whether it is random) of each lane.

    In each, floats times `scale` may be cast that are below its limit. The fastest comes first.
    """
    guard = to.rand_bits + 2  # bits below the cast, the lowest of them sticky
    # The CPU rounds floats in two ways itself, and then needs none.
    native = to.rounding in (Rounding.TO_NEG, Rounding.TIES_EVEN) and to.format.frac >= 0
    frac = to.format.frac + (0 if native else guard)
    c, found = lane_cast(frac, to), []
    if native:
        c = c._replace(odd=int(to.rounding == Rounding.TIES_EVEN))
    # Times 2^0 or more no bit of any float is lost below, and the scale itself is a float.
    if dtype == np.float32 and 0 <= frac <= 120 and lane_for(c, 31) == np.int32:
        found.append((np.empty(0, np.int32), np.float32(2.0**frac), np.float32(2.0**29)))
    if (dtype in (np.float32, np.float64) and 0 <= frac <= 900
            and to.format.width + guard <= BORDER_BITS and lane_for(c, 63) is not None):
        found.append((np.empty(0, np.int64), 2.0**frac, 2.0**61))
    return [(*lane, np.array(c), dtype_of(to.format), to.rounding == Rounding.STOCHASTIC)
            for lane in found]


def codes_on(x, form: Format) -> np.ndarray | None:
    """The codes of floats that lie on the grid of `form`, else None.

    None also where not every code of `form` is a normal number in the dtype of the floats.
    """
    floats = x if type(x) is np.ndarray else np.asarray(x)
    grid = _grid(floats.dtype, form)
    if grid is None:
        return None
    dtype, *constants = grid
    out = np.empty(floats.shape, dtype)
    strays = launch(grid_codes, CAST * floats.size, flattened(floats, floats.dtype), *constants,
                    out.ravel())
    return None if strays else out


@lru_cache(1 << 10)
def _grid(dtype: np.dtype, form: Format) -> tuple | None:
    """(dtype of the codes, scale, step, lo, hi) of a format in a float dtype.

    None unless every code is exact and normal in it, and so is its scale.
    """
    bits, limits, kind = form.width - form.signed, np.finfo(dtype), dtype.type
    if not (bits <= limits.nmant + 1 and bits + limits.minexp <= form.frac <= -limits.minexp):
        return None
    return (dtype_of(form), kind(2.0**form.frac), kind(form.step), kind(form.lo), kind(form.hi))


def on_grid(x: np.ndarray, frac: int) -> bool:
    """Whether all floats are multiples of 2^-frac; beyond 2^-1000 and 2^1000 only zeros count."""
    if abs(frac) > 1000:
        return not x.any()
    narrow = x.dtype == np.float32 and abs(frac) <= 120
    return not launch(off_grid, CAST * x.size, flattened(x, x.dtype),
                      np.float32(2.0**frac) if narrow else 2.0**frac)


def floats_of(codes: np.ndarray, frac: int, dtype) -> np.ndarray:
    """The floats of a dtype nearest to the codes, times 2^-frac."""
    out = np.empty(codes.shape, dtype)
    launch(float_lanes, CAST * codes.size, flattened(codes, codes.dtype),
           out.dtype.type(2.0**-frac), out.ravel())
    return out


def dequantize(codes, form: Format) -> np.ndarray:
    """Codes to float64: `code * 2^-frac`, exact. Raises ValueError beyond 53 magnitude bits."""
    check_kind(form, "form", Format)
    if form.width - form.signed > 53:
        raise ValueError(f"format {form}: its codes have {form.width - form.signed} magnitude "
                         "bits, a float64 holds 53; keep them as integers")
    return as_codes(codes, "codes", form).astype(np.float64) * form.step
