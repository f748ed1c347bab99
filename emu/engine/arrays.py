"""What every operation asks of its arrays: integer codes, inside their format, in one layout."""

from collections.abc import Iterable

import numpy as np

from emu.number import Format

DTYPES = [np.dtype(name) for name in ("int8", "int16", "int32", "int64")]
LIMITS = {np.dtype(kind): (int(np.iinfo(kind).min), int(np.iinfo(kind).max))
          for kind in ("i1", "i2", "i4", "i8", "u1", "u2", "u4")}


def as_codes(codes, name: str, form: Format | None = None, ndim: int | None = None,
             dtype: type | None = np.int64) -> np.ndarray:
    """`codes` as a C-contiguous array of `dtype`, checked against `form`.

    With dtype None they stay as they lie, in a signed integer dtype. Raises ValueError for a dtype
    that is no integer (or uint64, which no int64 holds), for another number of axes, and for a code
    outside its format.
    """
    array = np.asarray(codes)
    if array.size == 0 and not isinstance(codes, np.ndarray):
        array = array.astype(np.int64)  # numpy makes an empty list float
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype.kind not in "iu" or array.dtype == np.uint64:
        raise ValueError(f"{name}: dtype {array.dtype} holds no codes; give int8, int16, int32 or "
                         "int64 (emu.quantize turns floats into codes)")
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{name}: shape {array.shape} has {array.ndim} axes, needs {ndim}")
    if form is not None and array.size:
        check_width(form)
        _check_range(array, name, form)
    if dtype is None:
        return array if array.dtype.kind == "i" else array.astype(f"i{2 * array.itemsize}")
    return np.require(array, dtype, ["C", "W"])  # numba compiles anew for read-only ones


def _check_range(array: np.ndarray, name: str, form: Format) -> None:
    least, most = LIMITS[array.dtype]
    if form.lo <= least and most <= form.hi:
        return  # no code of this dtype can be outside
    low, high = int(array.min()), int(array.max())
    if low < form.lo or high > form.hi:
        code = low if low < form.lo else high
        raise ValueError(f"{name}: code {code} is outside {form}, whose codes go from {form.lo} to "
                         f"{form.hi}; cast it first")


def check_width(form: Format) -> None:
    """Raise ValueError for the one format that int64 cannot hold."""
    if form.width == 64 and not form.signed:
        raise ValueError(f"format {form}: its codes do not fit int64; use at most 63 unsigned "
                         "bits here, or emu.reference")


def largest(codes: np.ndarray) -> int:
    """The largest magnitude, 0 where there are no codes."""
    return max(int(codes.max(initial=0)), -int(codes.min(initial=0)))


def dtype_of(form: Format) -> np.dtype:
    """The smallest of int8, int16, int32, int64 that holds every code of `form`."""
    bits = form.width + (not form.signed)
    return next(dtype for dtype in DTYPES if bits <= 8 * dtype.itemsize)


def narrowed(codes: np.ndarray, form: Format) -> np.ndarray:
    """`codes` in the smallest dtype that holds every code of `form`."""
    return codes.astype(dtype_of(form), copy=False)


def flattened(codes: np.ndarray, dtype) -> np.ndarray:
    """The codes in one row, as kernels take them: contiguous, writable, of one dtype."""
    if codes.dtype == dtype and codes.flags.c_contiguous and codes.flags.writeable:
        return codes.reshape(-1)
    return np.require(codes, dtype, ["C", "W"]).reshape(-1)


def pair(value, name: str, least: int) -> tuple[int, int]:
    """A whole number or a pair of them, each at least `least`."""
    values = tuple(value) if isinstance(value, Iterable) else (value, value)
    if len(values) != 2 or not all(hasattr(v, "__index__") and v >= least for v in values):
        raise ValueError(f"{name} {value!r}: needs a whole number, or two, of at least {least}")
    return int(values[0]), int(values[1])
