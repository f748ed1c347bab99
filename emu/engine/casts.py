"""Casts of whole arrays, and the border where floats become codes and codes floats."""

from typing import NamedTuple

import numpy as np

from emu.engine.arrays import as_codes, check_width, dtype_of, flattened, narrowed
from emu.engine.draws import random_operands
from emu.engine.kernels.border import encode_array, exponents
from emu.engine.kernels.casts import WIDEST, cast_array, stage
from emu.engine.kernels.jit import CAST, launch
from emu.engine.kernels.lanes import LaneCast, cast_lanes, lane_cast, lane_for
from emu.engine.kernels.quantize import quantize_lanes
from emu.engine.monitor import watching
from emu.engine.watched import watch_cast
from emu.number import MAX_FRAC, Cast, Format, Overflow, Rounding

NONE = np.empty(0, np.uint32)  # the operands of a cast that takes none
BORDER_BITS = 61  # of an encoded float: a cast's width and what it drops


class Casted(NamedTuple):
    """The result of a cast: codes, which of them were in range, and how many were not.

    `inside` is read-only where all were.
    """

    codes: np.ndarray
    inside: np.ndarray
    outside: int


def cast(codes, frac: int, to: Cast, rand=None, loads=None) -> np.ndarray:
    """Codes with `frac` fraction bits as codes of `to`, in the smallest sufficient dtype.

    STOCHASTIC takes an operand of `to.rand_bits` bits for each element: `rand`, of the shape of
    `codes`, or what LFSRs draw that start from the 16 `loads` of `load_words`.

    >>> cast(np.array([24, 40, -24, 900]), 4, Cast.parse("s4 ties_even sat"))
    array([ 2,  2, -2,  7], dtype=int8)
    """
    return _cast(codes, frac, to, rand, loads, masked=False).codes


def cast_full(codes, frac: int, to: Cast, rand=None, loads=None) -> Casted:
    """`cast`, with the overflow of every element."""
    return _cast(codes, frac, to, rand, loads, masked=True)


def passes(codes, frac: int, to: Cast, rand=None) -> np.ndarray:
    """The straight-through gradient of the cast: False where saturation changed the value."""
    found = cast_full(codes, frac, to, rand)
    return np.ones_like(found.inside) if to.overflow == Overflow.WRAP else found.inside


def _cast(codes, frac: int, to: Cast, rand, loads, masked: bool) -> Casted:
    x = as_codes(codes, "codes", dtype=None)
    check_width(to.format)
    if (scope := watching()) is None:
        return unwatched(x, frac, to, rand, loads, masked)
    found = unwatched(x, frac, to, rand, loads, masked=True)
    watch_cast(scope, "cast", x.astype(np.int64), frac, to, found.codes, found.inside)
    return found


def unwatched(x: np.ndarray, frac: int, to: Cast, rand=None, loads=None, masked: bool = False
              ) -> Casted:
    """`cast` of signed codes that leaves no record; `inside` says nothing unless `masked`."""
    operands = operands_of(to, x.shape, rand, loads)
    c = lane_cast(frac, to)
    lane = lane_for(c, 8 * x.itemsize)
    if lane is None:
        out, inside = np.empty(x.shape, np.int64), np.empty(x.shape, np.bool_)
        outside = launch(cast_array, CAST * x.size, flattened(x, np.int64), stage(frac, to),
                         operands.astype(np.int64), out.reshape(-1), inside.reshape(-1))
        return Casted(narrowed(out, to.format), inside, int(outside))
    out, outside = _in_lanes(x, c, lane, dtype_of(to.format), operands)
    inside = NONE  # nobody looks
    if masked:
        inside = np.broadcast_to(np.True_, x.shape)
    if masked and outside:
        # In range is what fitting leaves as it is; the rounded value itself fits the lane.
        whole = Cast(Format(8 * lane.itemsize, to.format.frac), to.rounding,
                     rand_bits=to.rand_bits)
        inside = out == _in_lanes(x, lane_cast(frac, whole), lane, lane, operands)[0]
    return Casted(out, inside, outside)


def _in_lanes(x: np.ndarray, c: LaneCast, lane: np.dtype, dtype: np.dtype, rand: np.ndarray
              ) -> tuple[np.ndarray, int]:
    """(codes of a dtype, how many were outside) of a cast that is exact in these lanes."""
    wide = lane == np.int64  # which is rare: one kernel for all dtypes will do
    out = np.empty(x.shape, lane if wide else dtype)
    outside = launch(cast_lanes, CAST * x.size, flattened(x, lane if wide else x.dtype), c,
                     np.empty(0, lane), rand, out.reshape(-1))
    return out.astype(dtype, copy=False), int(outside)


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
    bits = np.asarray(floats, np.float64, order="C").view(np.int64)
    lowest, above = exponents(bits.reshape(-1))
    if above < lowest and lowest == 0:
        bad = floats.reshape(-1)[~np.isfinite(floats.reshape(-1))][0]
        raise ValueError(f"{bad} is not finite; codes hold numbers only")
    if above < lowest:  # all zero
        return np.zeros(floats.shape, np.int64), 0 if limit is None else limit
    if limit is None and above - lowest > WIDEST:
        raise ValueError(f"off the grid: the values span {above - lowest} bits, codes have at "
                         f"most {WIDEST}; quantize them first")
    frac = -lowest if limit is None else max(min(-lowest, limit), -MAX_FRAC)
    out = np.empty(floats.shape, np.int64)
    launch(encode_array, CAST * bits.size, bits.reshape(-1), frac, wraps,
                   out.reshape(-1))
    return out, frac


def encode_for(x, to: Cast) -> tuple[np.ndarray, int]:
    """Floats as (int64 codes, frac) from which the cast `to` gives its exact result.

    Up to 34 bits below `to` are kept as they are (fewer for wide formats), the rest as one
    sticky bit. Raises ValueError for a format too wide for that.
    """
    least = to.rand_bits + 2
    guard = max(least, min(34, BORDER_BITS - to.format.width))
    if to.format.width + guard > BORDER_BITS:
        raise ValueError(f"cast {to}: at the float border the width and {least} guard bits may "
                         f"take {BORDER_BITS} bits, not {to.format.width + guard}; use a "
                         "narrower format")
    return encode(x, to.format.frac + guard, wraps=to.overflow == Overflow.WRAP)


def quantize(x, to: Cast, rand=None) -> np.ndarray:
    """Floats to codes of `to`, rounded once, from their exact binary values.

    >>> quantize(np.array([0.5, 1.49, -3.0]), Cast.parse("s4f1 ties_even sat"))
    array([ 1,  3, -6], dtype=int8)
    """
    return cast(*encode_for(x, to), to, rand)


def quantize_full(x, to: Cast, rand=None, loads=None) -> Casted:
    """`cast_full` of what `encode_for` gives, in one pass where that is exact."""
    floats = np.asarray(x)
    found = None
    if watching() is None and floats.dtype in (np.float32, np.float64):
        found = _one_pass(floats, to, operands_of(to, floats.shape, rand, loads))
    return found or cast_full(*encode_for(floats, to), to, rand, loads)


def _one_pass(x: np.ndarray, to: Cast, rand: np.ndarray) -> Casted | None:
    """Codes from floats times a power of two; None where the lane would not hold them."""
    guard = to.rand_bits + 2  # bits below the cast, the lowest of them sticky
    frac = to.format.frac + guard
    c = lane_cast(frac, to)
    # The least float64 is 2^-1074: times 2^0 or more no bit of any float is lost below.
    if not 0 <= frac <= 900 or to.format.width + guard > BORDER_BITS or lane_for(c, 63) is None:
        return None
    flat, lane = flattened(x, x.dtype), np.empty(0, np.int64)
    out = np.empty(x.shape, dtype_of(to.format))
    outside = launch(quantize_lanes, CAST * x.size, flat, 2.0**frac, c, lane, rand, out.reshape(-1))
    if outside < 0:
        return None
    inside = np.broadcast_to(np.True_, x.shape)
    if outside:
        whole, least = np.empty(x.shape, np.int64), Format(BORDER_BITS, to.format.frac)
        wide = Cast(least, to.rounding, rand_bits=to.rand_bits)
        launch(quantize_lanes, CAST * x.size, flat, 2.0**frac, lane_cast(frac, wide), lane, rand,
               whole.reshape(-1))
        inside = (to.range[0] <= whole) & (whole <= to.range[1])
    return Casted(out, inside, int(outside))


def dequantize(codes, form: Format) -> np.ndarray:
    """Codes to float64: `code * 2^-frac`, exact. Raises ValueError beyond 53 magnitude bits."""
    if form.width - form.signed > 53:
        raise ValueError(f"format {form}: its codes have {form.width - form.signed} magnitude "
                         "bits, a float64 holds 53; keep them as integers")
    return as_codes(codes, "codes", form).astype(np.float64) * form.step
