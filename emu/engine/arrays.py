"""What every operation asks of its arrays: integer codes, inside their format, in one layout."""

import functools
from collections.abc import Iterable

import numpy as np

from emu.engine.kernels.ranges import extremes
from emu.number import MAX_WIDTH, Format

DTYPES = [np.dtype(name) for name in ("int8", "int16", "int32", "int64")]
SIGNED, INT64 = frozenset(DTYPES), DTYPES[-1]
LIMITS = {np.dtype(kind): (int(np.iinfo(kind).min), int(np.iinfo(kind).max))
          for kind in ("i1", "i2", "i4", "i8", "u1", "u2", "u4")}


def as_codes(codes, name: str, form: Format | None = None, ndim: int | None = None,
             dtype: np.dtype | None = INT64) -> np.ndarray:
    """`codes` as a C-contiguous array of `dtype`, checked against `form`.

    With dtype None they stay as they lie, in a signed integer dtype. Raises ValueError for a dtype
    that is no integer (or uint64, which no int64 holds), for another number of axes, and for a code
    outside its format.
    """
    array = codes if type(codes) is np.ndarray else np.asarray(codes)
    if array.dtype not in SIGNED:
        array = _integers(codes, array, name)
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{name}: shape {array.shape} has {array.ndim} axes, needs {ndim}")
    if form is not None and array.size:
        least, most = LIMITS[array.dtype]
        # Else no code of this dtype can be outside.
        if least < form.lo or form.hi < most or form.width == MAX_WIDTH:
            _check_range(array, name, form)
    if dtype is not None:
        return ready(array, dtype)
    return array if array.dtype in SIGNED else array.astype(f"i{2 * array.itemsize}")


def _integers(codes, array: np.ndarray, name: str) -> np.ndarray:
    """The array of the codes in the machine's byte order; raises ValueError for no integers."""
    if array.size == 0 and not isinstance(codes, np.ndarray):
        array = array.astype(np.int64)  # numpy makes an empty list float
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype not in LIMITS:
        raise ValueError(f"{name}: dtype {array.dtype} holds no codes; give int8, int16, int32 or "
                         "int64 (emu.quantize turns floats into codes)")
    return array


def check_kind(value, name: str, kind) -> None:
    """Raise ValueError unless the value is of a kind (or one of several) that is read from text."""
    if not isinstance(value, kind):
        first = getattr(kind, "__args__", [kind])[0].__name__
        raise ValueError(f"{name} {value!r}: needs a {first}; emu.{first}.parse reads one from its "
                         "text")


def ready(array: np.ndarray, dtype) -> np.ndarray:
    """The array as kernels take it: contiguous, of one dtype, and writable.

    For read-only ones, and for other layouts, numba would compile anew.
    """
    if array.dtype == dtype and array.flags.carray:
        return array
    return np.require(array, dtype, ["C", "W"])


def _check_range(array: np.ndarray, name: str, form: Format) -> None:
    if form.width == MAX_WIDTH:
        check_width(form)
    low, high = bounds(array)
    if low < form.lo or high > form.hi:
        code = low if low < form.lo else high
        raise ValueError(f"{name}: code {code} is outside {form}, whose codes go from {form.lo} to "
                         f"{form.hi}; cast it first")


def check_width(form: Format) -> None:
    """Raise ValueError for the one format that int64 cannot hold."""
    if form.width == 64 and not form.signed:
        raise ValueError(f"format {form}: its codes do not fit int64; use at most 63 unsigned "
                         "bits here, or emu.reference")


def bounds(codes: np.ndarray) -> tuple[int, int]:
    """The least and the greatest code, and 0."""
    flat = codes.ravel("K")
    return extremes(flat if flat.flags.carray else ready(flat, codes.dtype))


def largest(codes: np.ndarray) -> int:
    """The largest magnitude, 0 where there are no codes."""
    low, high = bounds(codes)
    return max(-low, high)


@functools.lru_cache(1 << 10)
def dtype_of(form: Format) -> np.dtype:
    """The smallest of int8, int16, int32, int64 that holds every code of `form`."""
    bits = form.width + (not form.signed)
    return next(dtype for dtype in DTYPES if bits <= 8 * dtype.itemsize)


def narrowed(codes: np.ndarray, form: Format) -> np.ndarray:
    """`codes` in the smallest dtype that holds every code of `form`."""
    return codes.astype(dtype_of(form), copy=False)


def flattened(codes: np.ndarray, dtype) -> np.ndarray:
    """The codes in one row, as kernels take them."""
    flat = codes.ravel()
    return flat if flat.dtype == dtype and flat.flags.carray else ready(flat, dtype)


def pair(value, name: str, least: int) -> tuple[int, int]:
    """A whole number or a pair of them, each at least `least`."""
    values = tuple(value) if isinstance(value, Iterable) else (value, value)
    if len(values) != 2 or not all(hasattr(v, "__index__") and v >= least for v in values):
        raise ValueError(f"{name} {value!r}: needs a whole number, or two, of at least {least}")
    return int(values[0]), int(values[1])
