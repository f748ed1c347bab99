"""What computes the operations of a fixed model: one object a model, the engine by default.

Every operation names its place, from which its random operands follow and under which its
overflows are counted. Another backend (a recorder, a compiled RTL) overrides these methods.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np

from emu import engine
from emu.number import Cast, Format, Rounding
from emu.spec import MacSpec, UpdateSpec


class Place(NamedTuple):
    """One operation of a model: the module path, the pass or tensor, and the phase."""

    site: str
    name: str
    training: bool


class Counts:
    """What the hardware did at one place: values written, and those that were out of range.

    For a MAC `values` are its outputs and `steps` its additions, `overflowed_steps` those that
    left the accumulator; a cast has no steps.
    """

    def __init__(self):
        self.values = self.overflowed = self.steps = self.overflowed_steps = 0


class Backend:
    """Computes on `emu.engine`, draws the operands of stochastic casts, counts overflows."""

    def __init__(self, seed: int = 0):
        self.seed = seed
        self.step = 0
        self.calls = Counter()
        self.counts: dict[tuple[str, str], Counts] = {}

    def end_step(self) -> None:
        """The weights were updated: the next operation belongs to the next step."""
        self.step += 1
        self.calls.clear()

    def cast(self, place: Place, codes: np.ndarray, form: Format, to: Cast) -> engine.Casted:
        """Codes of `form` as codes of `to`, with what was inside its range."""
        found = engine.cast_full(codes, form.frac, to, self._operands(place, codes.shape, to))
        self._count(place, found.codes.size, found.outside)
        return found

    def divide(self, place: Place, codes: np.ndarray, divisor: np.ndarray, form: Format, to: Cast
               ) -> engine.Casted:
        """Codes (..., H, W) of `form` over whole divisors (H, W), as codes of `to`."""
        found = engine.divide(codes, divisor, form.frac, to)
        self._count(place, found.codes.size, found.outside)
        return found

    def matmul(self, place: Place, a, b, mac: MacSpec, bias=None) -> np.ndarray:
        """(M, K) @ (K, N) -> accumulator codes."""
        return self._mac(place, (a.shape[0], b.shape[1]), a.shape[1], mac,
                         lambda count: engine.matmul(a, b, mac, bias, count))

    def conv2d(self, place: Place, x, w, mac: MacSpec, bias=None, **geometry) -> np.ndarray:
        """x (N, C, H, W), w (O, C/groups, KH, KW) -> accumulator codes."""
        size = engine.Geometry(**geometry).out_size(x.shape[2:], w.shape[2:])
        terms = _blocked(w.shape[1], mac.block) * w[0, 0].size
        return self._mac(place, (x.shape[0], w.shape[0], *size), terms, mac,
                         lambda count: engine.conv2d(x, w, mac, bias, overflowed=count, **geometry))

    def conv2d_grad_input(self, place: Place, error, w, mac: MacSpec, size, **geometry
                          ) -> np.ndarray:
        """error (N, O, OH, OW) -> accumulator codes (N, C, *size)."""
        groups = geometry.get("groups", 1)
        terms = _blocked(w.shape[0] // groups, mac.block) * w[0, 0].size
        return self._mac(place, (error.shape[0], w.shape[1] * groups, *size), terms, mac,
                         lambda count: engine.conv2d_grad_input(
                             error, w, mac, size, overflowed=count, **geometry))

    def conv2d_grad_weight(self, place: Place, x, error, mac: MacSpec, kernel, **geometry
                           ) -> np.ndarray:
        """x (N, C, H, W), error (N, O, OH, OW) -> accumulator codes (O, C/groups, *kernel)."""
        shape = (error.shape[1], x.shape[1] // geometry.get("groups", 1), *kernel)
        return self._mac(place, shape, error[:, 0].size, mac,
                         lambda count: engine.conv2d_grad_weight(
                             x, error, mac, kernel, overflowed=count, **geometry))

    def sgd(self, place: Place, weight, momentum, grad, lr: int, mu: int, spec: UpdateSpec):
        """The update of one parameter: an `engine.Updated`."""
        names = place._replace(name=place.name + ".momentum"), place._replace(
            name=place.name + ".weight")
        rand = [self._operands(p, weight.shape, to)
                for p, to in zip(names, (spec.momentum, spec.weight), strict=True)]
        found = engine.sgd(weight, momentum, grad, lr, mu, spec, *rand)
        self._count(names[0], weight.size, found.outside_momentum)
        self._count(names[1], weight.size, found.outside_weight)
        return found

    def _mac(self, place: Place, shape: tuple, terms: int, mac: MacSpec, compute) -> np.ndarray:
        if not place.training:
            return compute(None)
        overflowed = np.zeros(shape, np.int64)
        out = compute(overflowed)
        counts = self._count(place, out.size, int(np.count_nonzero(overflowed)))
        counts.steps += out.size * -(-terms // mac.lanes)
        counts.overflowed_steps += int(overflowed.sum())
        return out

    def _operands(self, place: Place, shape: tuple, to: Cast):
        if to.rounding != Rounding.STOCHASTIC:
            return None
        loads = self.loads(place)
        self.calls[place] += place.training
        return engine.random_operands(shape, to.rand_bits, loads)

    def loads(self, place: Place) -> np.ndarray:
        """The LFSR load words of the next stochastic cast at `place`."""
        # Evaluation draws under a name of its own and counts no calls: it moves no training
        # operand, and gives the same answer each time.
        name = place.name if place.training else f"evaluation.{place.name}"
        return engine.load_words(self.seed, self.step, place.site, name, self.calls[place])

    def _count(self, place: Place, values: int, overflowed: int) -> Counts:
        if not place.training:
            return Counts()
        counts = self.counts.setdefault((place.site, place.name), Counts())
        counts.values += values
        counts.overflowed += overflowed
        return counts


def _blocked(channels: int, block: int) -> int:
    return -(-channels // block) * block
