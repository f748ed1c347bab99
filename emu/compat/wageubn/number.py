"""The quantisers of `wageubn.function.number`: tensors to tensors on a grid, gradients straight
through. They compute on codes.
"""

from __future__ import annotations

import torch
from torch.autograd import Function

from emu import engine
from emu.kind import AnyCast
from emu.nn import border
from emu.number import Cast, Format, Overflow, Rounding
from emu.rule import Rule, parse_cast

OPEN = 56  # bits of what the original does not bound: all that the float border takes
RAND_BITS = 16


def _cast(x: torch.Tensor, to: AnyCast | Rule) -> torch.Tensor:
    floats = border.to_numpy(x, "x")
    rule = to if isinstance(to, Rule) else None
    if rule is not None:
        to = engine.cast_for(rule, floats, None)
    rand = None
    if to.rand_bits:  # of torch's generator, as the original's
        rand = torch.randint(0, 1 << to.rand_bits, x.shape).numpy()
    codes = engine.quantize_full(floats, to, rand).codes
    return border.each_to_tensor(codes, to.format if rule is None else rule.read(to), x.dtype, "x")


class _Straight(Function):
    @staticmethod
    def forward(ctx, x, to):
        return _cast(x, to)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class _Backward(Function):
    @staticmethod
    def forward(ctx, x, to):
        ctx.to = to
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return _cast(grad, ctx.to), None


def _open(k: int) -> Cast:
    return Cast(Format(OPEN, k - 1), Rounding.TIES_EVEN, Overflow.SAT)


def directquant(x: torch.Tensor, k: int, k_: int = 0) -> torch.Tensor:
    """Q: to the nearest multiple of 2^-(k-1), without a bound."""
    return _Straight.apply(x, _open(k))


def alldirectquant(x: torch.Tensor, k: int, k_all: int) -> torch.Tensor:
    """Q within k_all bits, whose codes are symmetric."""
    return _Straight.apply(x, Cast(Format(k_all, k - 1), Rounding.TIES_EVEN, Overflow.SAT_SYM))


def shiftquant(x: torch.Tensor, k: int, k_: int = 0) -> torch.Tensor:
    """SQ: k bits over the power of two nearest to the largest |x|."""
    return _Straight.apply(x, parse_cast(f"s{k} auto:shift ties_even sat_sym"))


def constquant(x: torch.Tensor, k_dr: int, k: int) -> torch.Tensor:
    """CQ: k_dr bits over that power of two, stochastically, read with a last bit of 2^-(k-1)."""
    return _Straight.apply(
        x, parse_cast(f"s{k_dr} auto:shift=f{k - 1} stochastic{RAND_BITS} sat_sym"))


def sround(x: torch.Tensor) -> torch.Tensor:
    """To a whole number, up with the probability of the fraction."""
    return _Straight.apply(x, Cast(Format(32), Rounding.STOCHASTIC, Overflow.SAT, RAND_BITS))


def weightquant(x: torch.Tensor, k: int, k_: int = 0) -> torch.Tensor:
    """Q within +-(1 - 2^-(k-1))."""
    return alldirectquant(x, k, k)


def errquant(x: torch.Tensor, k: int, k_: int = 0) -> torch.Tensor:
    """Flag-QE2: k bits over that power of two; what is below the last of them has k bits again."""
    return _Straight.apply(x, parse_cast(f"flag s{k} auto:shift ties_even sat_sym"))


def gwquant(x: torch.Tensor, kgw: int, kdr: int) -> torch.Tensor:
    """x itself; its gradient by `constquant(g, kdr, kgw)`."""
    return _Backward.apply(
        x, parse_cast(f"s{kdr} auto:shift=f{kgw - 1} stochastic{RAND_BITS} sat_sym"))


def gbnquant(x: torch.Tensor, k: int, k_: int = 0) -> torch.Tensor:
    """x itself; its gradient by `directquant(g, k)`."""
    return _Backward.apply(x, _open(k))


errorquant, gradquant = errquant, gwquant  # as the README calls them
