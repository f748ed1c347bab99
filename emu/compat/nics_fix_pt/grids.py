"""The arithmetic of float mode: a tensor put on a grid, and the gradient straight through it.

With a step that is a power of two every operation here is exact in float32 and float64: dividing
moves the exponent, and a rounded code has no more significant bits than its float had. Any other
step is float arithmetic by nature.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from emu import engine
from emu.compat.nics_fix_pt.ranges import powers_of_two
from emu.number import Cast, Format, Overflow, Rounding

RAND_BITS = 16  # of the operand that decides where stochastic rounding goes
LIMITS = {"closed": (0, 0), "twos_complement": (0, -1), "narrow": (1, -1)}  # beside -+2^(b-1)
CARRIERS = (torch.float32, torch.float64)


class Grid(NamedTuple):
    """Values `code * step` for codes from `low` to `high`.

    `ends` are values that bound instead (affine ranges, whose ends are off the grid), `zero` is the
    code of 0 (integer zero points, rounded half away), `rand` the operands of stochastic rounding.
    `clips` is False where no code can be outside; where it is `counted`, how many were is told.
    """

    step: float | torch.Tensor
    low: float | torch.Tensor
    high: float | torch.Tensor
    ends: torch.Tensor | None = None
    zero: torch.Tensor | None = None
    rand: torch.Tensor | None = None
    clips: bool = True
    counted: bool = False


def symmetric(bound: float | torch.Tensor, bits: int, limits: str = "closed") -> Grid:
    """The grid of [-R, R] in `bits` bits: 2^bits + 1 codes, one or two fewer by `limits`.

    Raises ValueError where the step is no normal float.
    """
    if limits not in LIMITS:
        raise ValueError(f"range {limits!r}: write {', '.join(LIMITS)}")
    below, above = LIMITS[limits]
    step = math.ldexp(bound, 1 - bits) if isinstance(bound, float) else bound / 2.0**(bits - 1)
    if isinstance(step, float) and not 2.0**-126 <= step <= 2.0**127:
        raise ValueError(f"scale {bound} with {bits} bits: its step {step} is no normal float32; "
                         "rescale the tensor")
    return Grid(step, below - 2.0**(bits - 1), above + 2.0**(bits - 1), counted=limits != "closed")


def affine(ends: torch.Tensor, bits: int) -> Grid:
    """The grid of [min, max] whose codes start at 0, and whose ends are off it.

    Source: nics_fix_pt 0.4.0 with float_scale and zero_point.
    """
    return Grid((ends[1] - ends[0]) / 2.0**bits, -math.inf, math.inf, ends)


def integer_ends(ends: torch.Tensor, bits: int, pow2: bool) -> torch.Tensor:
    """[min, max] moved so that 0 has an integer code, as the grid of `integer` reads them.

    The range is widened to hold 0; with `pow2` the step is the power of two above. Source: the
    nudging of tensorflow (QuantizationParams; half of a step goes away from zero).
    """
    low, high = ends[0].clamp(max=0), ends[1].clamp(min=0)
    step = ((high - low) / (2.0**bits - 1)).float()
    if pow2:
        step = powers_of_two(step)
    zero = away(-(2.0**(bits - 1)) - low.double() / step.double())
    below, above = _codes(bits)
    zero = zero.clamp(below, above)
    return torch.stack([(below - zero) * step, (above - zero) * step]).float()


def integer(ends: torch.Tensor, bits: int) -> Grid:
    """The grid of b-bit codes around an integer zero point: value = (code - zero) * step."""
    below, above = _codes(bits)
    step = ((ends[1] - ends[0]) / (2.0**bits - 1)).float()
    zero = away(below - ends[0].double() / step.double()).clamp(below, above)
    return Grid(step, below, above, zero=zero)


def _codes(bits: int) -> tuple[float, float]:
    return -2.0**(bits - 1), 2.0**(bits - 1) - 1


def away(x: torch.Tensor) -> torch.Tensor:
    """To the nearest, half away from zero; for float64 quotients of float32 numbers."""
    return torch.copysign((x.abs() + 0.5).floor(), x)


def dither(shape, seed: int) -> torch.Tensor:
    """One operand below 2^16 for each element: those of 16 LFSRs that `seed` loads.

    They are `emu.random_operands(shape, 16, emu.load_words(seed, 0, "nics_fix_pt", "", 0))`, as
    the Verilog draws them.
    """
    loads = engine.load_words(seed, 0, "nics_fix_pt", "", 0)
    return torch.from_numpy(engine.random_operands(tuple(shape), RAND_BITS, loads))


def new_seed() -> int:
    """A seed from torch's own generator, so that `torch.manual_seed` decides it."""
    return int(torch.randint(1 << 31, ()))


def codes_of(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The rounded codes, not clipped yet, in float; a new tensor."""
    if grid.rand is not None:
        return _stochastic(x, grid)
    if grid.zero is not None:
        return away(x.double() / grid.step.double()).add_(grid.zero)
    return (x / grid.step).round_()


def _stochastic(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """floor(x / step + r / 2^16), exactly where the step is a power of two."""
    if isinstance(grid.step, float) and math.frexp(grid.step)[0] == 0.5 and x.dtype in CARRIERS:
        # Two bits more than the codes have: what is clipped is seen.
        to = Cast(Format(int(grid.high).bit_length() + 3, 1 - math.frexp(grid.step)[1]),
                  Rounding.STOCHASTIC, Overflow.SAT, RAND_BITS)
        codes = engine.quantize(x.detach().cpu().numpy(), to, grid.rand.numpy())
        return torch.from_numpy(codes).to(x.device, x.dtype)
    step = grid.step if isinstance(grid.step, float) else grid.step.double()
    up = grid.rand.to(x.device).double() / 2**RAND_BITS
    codes = (x.double() / step + up).floor_()
    return codes.to(x.dtype) if grid.zero is None else codes.add_(grid.zero)


def put(x: torch.Tensor, grid: Grid, masked: bool) -> tuple[torch.Tensor, torch.Tensor | None, int]:
    """(x on the grid, where gradients pass or None for everywhere, how many codes clipped above).

    Gradients pass where the rounded value is inside, ends included. Only what differs from the
    closed range is counted.
    """
    if x.dtype not in CARRIERS:
        out, passes, clipped = put(x.float(), grid, masked)
        return out.to(x.dtype), passes, clipped
    codes, clipped, passes = codes_of(x, grid), 0, None
    if grid.ends is not None:
        codes *= grid.step
        low, high = grid.ends
        if masked:
            passes = (codes >= low) & (codes <= high)
        return torch.maximum(torch.minimum(codes, high), low).to(x.dtype), passes, 0
    if grid.clips:
        if masked:
            passes = (codes >= grid.low) & (codes <= grid.high)
        if grid.counted:
            clipped = int((codes > grid.high).sum())
        codes.clamp_(grid.low, grid.high)
    if grid.zero is not None:
        codes -= grid.zero
    return codes.mul_(grid.step).to(x.dtype), passes, clipped


class Fixed(Function):
    """A tensor on a grid; its gradient, first changed by `change`, goes straight through."""

    @staticmethod
    def forward(ctx, x, out, passes, change):
        ctx.change, ctx.masked = change, passes is not None
        if passes is not None:
            ctx.save_for_backward(passes)
        return x.view_as(x) if out is None else out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        if ctx.change is not None:
            grad = ctx.change(grad)
        if ctx.masked:
            grad = torch.where(ctx.saved_tensors[0], grad, 0)
        return grad, None, None, None
