"""Where tensors and codes meet: float32 or float64 values on a 2^-frac grid, and numpy codes.

A float32 holds a code exactly up to 24 magnitude bits, a float64 up to 53. Anything wider, off
the grid or not finite is refused here by name.
"""

import numpy as np
import torch

from emu import engine
from emu.number import Cast, Format

CARRIERS = {torch.float32: (24, 126), torch.float64: (53, 1022)}  # magnitude bits, exponents


def to_numpy(tensor: torch.Tensor, name: str) -> np.ndarray:
    """The float values of a tensor; raises ValueError for another dtype or device."""
    if tensor.dtype not in CARRIERS:
        raise ValueError(f"{name}: dtype {tensor.dtype} carries no codes; use float32 or float64")
    if not tensor.is_cpu:
        help = ("it has no values; use .to_empty(device='cpu') and load some"
                if tensor.device.type == "meta" else "the engine computes on the CPU, use .cpu()")
        raise ValueError(f"{name}: on {tensor.device}; {help}")
    return tensor.detach().numpy()


def to_codes(tensor: torch.Tensor, name: str) -> tuple[np.ndarray, int]:
    """A tensor of grid values as (int64 codes, frac), exactly, at the coarsest frac."""
    floats = to_numpy(tensor, name)
    try:
        return engine.encode(floats)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def codes_in(tensor: torch.Tensor, form: Format, name: str) -> np.ndarray:
    """The codes of a tensor that is on the grid of `form`; raises ValueError where it is not."""
    found = engine.codes_on(to_numpy(tensor, name), form)
    if found is not None:
        return found
    codes, frac = to_codes(tensor, name)
    if not codes.any():
        return codes
    shift = form.frac - frac
    if shift < 0 or int(codes.min()) << shift < form.lo or int(codes.max()) << shift > form.hi:
        raise ValueError(f"{name}: off the grid of its master format {form}; something other than "
                         "this optimizer changed it. emu.nn.to_grid(module) brings it back")
    return codes << shift


def to_codes_for(tensor: torch.Tensor, to: Cast, name: str) -> tuple[np.ndarray, int]:
    """A tensor of any finite floats as (int64 codes, frac) from which the cast `to` is exact."""
    floats = to_numpy(tensor, name)
    try:
        return engine.encode_for(floats, to)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def carries(form: Format, dtype: torch.dtype) -> bool:
    """Whether every code of `form` is exact and normal in `dtype`."""
    bits, exponents = CARRIERS[dtype]
    magnitude = form.width - form.signed
    return magnitude <= bits and magnitude - exponents <= form.frac <= exponents


def check_carrier(form: Format, dtype: torch.dtype, name: str) -> None:
    """Raise ValueError unless `dtype` carries `form`; a `name` that ends in y is an output."""
    if carries(form, dtype):
        return
    bits, exponents = CARRIERS[dtype]
    magnitude = form.width - form.signed
    if magnitude > bits:
        raise ValueError(f"{name}: {form} has {magnitude} magnitude bits, {dtype} carries {bits}; "
                         + ("give the layer a narrower cast y, or " if name.endswith(".y") else "")
                         + ("use model.double() and float64 inputs" if dtype == torch.float32
                            else "use a narrower format"))
    raise ValueError(f"{name}: {form} has frac {form.frac}, {dtype} carries "
                     f"{magnitude - exponents} to {exponents}; rescale the tensor")


def to_tensor(codes: np.ndarray, form: Format, dtype: torch.dtype, name: str) -> torch.Tensor:
    """Codes of `form` as grid values `code * 2^-frac` in `dtype`, exactly."""
    check_carrier(form, dtype, name)
    return rounded(codes, form, dtype)


def each_to_tensor(codes: np.ndarray, form: Format, dtype: torch.dtype, name: str) -> torch.Tensor:
    """As `to_tensor`, also where `dtype` holds not every code of `form` but each of these."""
    carrier = np.float32 if dtype == torch.float32 else np.float64
    if abs(form.frac) <= 60 and np.array_equal(codes.astype(carrier).astype(np.int64), codes):
        return rounded(codes, form, dtype)
    return to_tensor(codes, form, dtype, name)


def rounded(codes: np.ndarray, form: Format, dtype: torch.dtype) -> torch.Tensor:
    """Codes of `form` as the values nearest to them in `dtype`."""
    carrier = np.float32 if dtype == torch.float32 else np.float64
    return torch.from_numpy(engine.floats_of(codes, form.frac, carrier))


def holding(codes: np.ndarray, frac: int) -> Format:
    """The narrowest signed format of these very codes."""
    low, high = engine.bounds(codes)
    return Format.holding(min(low, -1), high, frac)
