"""What the tests of elementwise operations and moves share: exact values, and one call under test.

A tensor is a numpy array of Fractions, which only broadcasts and sums them: every cast is that of
`emu.reference`.
"""

from fractions import Fraction

import numpy as np
import torch
from integer_network import Grid, Layer, flat, some

from emu import Cast, LayerSpec, Overflow, Rounding, nn, reference

DEEP = 90  # a frac at which every value of the tests is whole
MODES = [f"{rounding.name.lower()}{'4' if rounding == Rounding.STOCHASTIC else ''} "
         f"{overflow.name.lower()}" for rounding in Rounding for overflow in Overflow]


def values(grid: Grid) -> np.ndarray:
    """The values of a grid."""
    return np.array(grid.codes, object) * Fraction(2)**-grid.frac


def seeded(shape: tuple, reach: int, frac: int, seed: int) -> np.ndarray:
    """Seeded values of codes up to `reach`, as `integer_network.some` has them."""
    return values(some(shape, reach, frac, seed))


def tensor(x: np.ndarray, dtype=torch.float32) -> torch.Tensor:
    """The values as a tensor that wants a gradient."""
    return torch.tensor(np.array(x, np.float64), dtype=dtype).requires_grad_()


def folded(x: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The sum over what was broadcast from the shape of `like`."""
    x = x.sum(tuple(range(x.ndim - like.ndim))) if x.ndim > like.ndim else x
    axes = tuple(i for i, n in enumerate(like.shape) if n == 1 and x.shape[i] != 1)
    return x.sum(axes, keepdims=True) if axes else x


class Site(Layer):
    """The casts of one site, on values."""

    def __init__(self, site: str, spec: LayerSpec):
        super().__init__(site, spec)

    def cast(self, name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(the values in the cast, where gradients pass); as they are without one."""
        to: Cast | None = getattr(self.spec, name.partition(".")[0])
        if to is None:
            return x, np.ones(x.shape, bool)
        whole = [int(value * 2**DEEP) for value in x.reshape(-1)]
        rands = self.random(name, to, len(whole))
        pairs = list(zip(whole, rands, strict=True))
        codes = [reference.cast(code, DEEP, to, rand) for code, rand in pairs]
        passes = [reference.passes(code, DEEP, to, rand) for code, rand in pairs]
        return (np.array(codes, object).reshape(x.shape) * Fraction(2)**-to.format.frac,
                np.array(passes, bool).reshape(x.shape))


class Call(torch.nn.Module):
    """A module that calls one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def fixed(function, spec=None, training=True) -> torch.nn.Module:
    """The function on hardware of this spec."""
    default = {key: value for key, value in vars(LayerSpec.parse(spec or {})).items()
               if value is not None}
    return nn.fix(Call(function), {"default": default}).train(training)


def called(function, spec, operands: list[np.ndarray], grad: np.ndarray, dtype=torch.float32
           ) -> list[list]:
    """[y, then the gradient of each operand] of the function, flat, under the auditor."""
    tensors = [tensor(x, dtype) for x in operands]
    with nn.audit():
        y = fixed(function, spec)(*tensors)
        y.backward(torch.tensor(np.array(grad, np.float64), dtype=dtype))
    return [flat(x.tolist()) if x.dim() else [x.item()]
            for x in (y, *(x.grad for x in tensors))]


def lists(*arrays: np.ndarray) -> list[list]:
    """Values as flat lists, as `called` gives them."""
    return [[float(value) for value in np.asarray(x, object).reshape(-1)] for x in arrays]
