"""What computes the operations of a fixed model: one object a model, the engine by default.

Every operation names its place, from which its random operands follow and under which
`emu.monitor()` records it. Another backend (a recorder, a compiled RTL) overrides these methods.
"""

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from emu import engine
from emu.nn.replay import current
from emu.norm import NormSpec
from emu.number import Cast, Format, Rounding
from emu.spec import MacSpec
from emu.table import SoftmaxSpec, Table
from emu.update import BufferSpec, UpdateSpec


@dataclass(frozen=True)
class Place:
    """One operation of a model: the module path, the pass or tensor, and the phase.

    `axis` is the one that holds the channels, where the operation does not say so itself.
    """

    site: str
    name: str
    training: bool
    axis: int | None = field(default=None, compare=False)

    def part(self, name: str) -> "Place":
        """A place within this one."""
        return replace(self, name=f"{self.name}.{name}")


class Backend:
    """Computes on `emu.engine` and draws the operands of stochastic casts."""

    def __init__(self, seed: int = 0):
        self.seed = seed
        self.step = 0
        self._calls = Counter()

    @property
    def calls(self) -> Counter:
        """How many stochastic casts each place has made in this step."""
        return current(self, self._calls)

    @property
    def updates_at_once(self) -> bool:
        """Whether nobody sees `quantize` and `sgd` apart: each is the engine's, and unwatched."""
        kind = type(self)
        return (kind.sgd is Backend.sgd and kind.quantize is Backend.quantize
                and kind.cast is Backend.cast and engine.watching() is None)

    def end_step(self) -> None:
        """The weights were updated: the next operation belongs to the next step."""
        self.step += 1
        self.calls.clear()

    def cast(self, place: Place, codes: np.ndarray, form: Format, to: Cast) -> engine.Casted:
        """Codes of `form` as codes of `to`, with what was inside its range."""
        rand = self._operands(place, codes.shape, to) if to.rand_bits else None
        if engine.watching() is None:  # as `_named`, but this happens all the time
            return engine.cast_full(codes, form.frac, to, rand)
        return _named(place, engine.cast_full, codes, form.frac, to, rand)

    def quantize(self, place: Place, floats: np.ndarray, to: Cast) -> engine.Casted:
        """Floats as codes of `to`: what `cast` makes of their exact codes, in one pass."""
        if type(self).cast is not Backend.cast:  # another one computes casts
            codes, frac = engine.encode_for(floats, to)
            return self.cast(place, codes, _holding(codes, frac), to)
        rand = self._operands(place, floats.shape, to) if to.rand_bits else None
        if engine.watching() is None:
            return engine.quantize_full(floats, to, rand)
        return _named(place, engine.quantize_full, floats, to, rand)

    def divide(self, place: Place, codes: np.ndarray, divisor: np.ndarray, form: Format, to: Cast
               ) -> engine.Casted:
        """Codes (..., H, W) of `form` over whole divisors (H, W), as codes of `to`."""
        return _named(place, engine.divide, codes, divisor, form.frac, to)

    def matmul(self, place: Place, a, b, mac: MacSpec, bias=None) -> np.ndarray:
        """(M, K) @ (K, N) -> accumulator codes."""
        # Of x.T @ error, the gradient of a weight, the transposed one is wanted.
        order = "F" if a.flags.f_contiguous and not b.flags.f_contiguous else "C"
        if engine.watching() is not None:
            return _sited(place, engine.matmul, a, b, mac, bias, order=order)
        try:
            return engine.matmul(a, b, mac, bias, None, order)
        except ValueError as error:
            raise _about(place, error) from None

    def conv2d(self, place: Place, x, w, mac: MacSpec, bias=None, **geometry) -> np.ndarray:
        """x (N, C, H, W), w (O, C/groups, KH, KW) -> accumulator codes."""
        return _sited(place, engine.conv2d, x, w, mac, bias, **geometry)

    def conv2d_grad_input(self, place: Place, error, w, mac: MacSpec, size, **geometry
                          ) -> np.ndarray:
        """error (N, O, OH, OW) -> accumulator codes (N, C, *size)."""
        return _sited(place, engine.conv2d_grad_input, error, w, mac, size, **geometry)

    def conv2d_grad_weight(self, place: Place, x, error, mac: MacSpec, kernel, **geometry
                           ) -> np.ndarray:
        """x (N, C, H, W), error (N, O, OH, OW) -> accumulator codes (O, C/groups, *kernel)."""
        return _sited(place, engine.conv2d_grad_weight, x, error, mac, kernel, **geometry)

    def conv_transpose2d(self, place: Place, x, w, mac: MacSpec, bias=None, **geometry
                         ) -> np.ndarray:
        """x (N, C, H, W), w (C, O/groups, KH, KW) -> accumulator codes."""
        return _sited(place, engine.conv_transpose2d, x, w, mac, bias, **geometry)

    def adder2d(self, place: Place, x, w, mac: MacSpec, bias=None, **geometry) -> np.ndarray:
        """x (N, C, H, W), w (O, C/groups, KH, KW) of one grid -> accumulator codes."""
        return _sited(place, engine.adder2d, x, w, mac, bias, **geometry)

    def adder2d_grad_input(self, place: Place, x, w, error, mac: MacSpec, limit: int, **geometry
                           ) -> np.ndarray:
        """error (N, O, OH, OW) -> accumulator codes of the shape of x."""
        return _sited(place, engine.adder2d_grad_input, x, w, error, mac, limit, **geometry)

    def adder2d_grad_weight(self, place: Place, x, w, error, mac: MacSpec, **geometry
                            ) -> np.ndarray:
        """error (N, O, OH, OW) -> accumulator codes of the shape of w."""
        return _sited(place, engine.adder2d_grad_weight, x, w, error, mac, **geometry)

    def lookup(self, place: Place, x, table: Table) -> np.ndarray:
        """The entries of a table for codes x of its input."""
        return _named(place, engine.lookup, x, table)

    def lookup_grad(self, place: Place, error, frac: int, x, slope: Table, to: Cast
                    ) -> engine.Casted:
        """error times the entries of the slope's table, as codes of `to`."""
        return _named(place, engine.lookup_grad, error, frac, x, slope, to)

    def softmax(self, place: Place, x, spec: SoftmaxSpec, absent=None) -> np.ndarray:
        """Logits (N, C) -> probabilities (N, C), 0 where `absent`."""
        return _named(place, engine.softmax, x, spec, absent)

    def norm_statistics(self, place: Place, x, spec: NormSpec) -> engine.Statistics:
        """The mean and the variance of each channel of x (N, C, ...)."""
        return _named(place, engine.norm_statistics, x, spec)

    def batch_norm(self, place: Place, x, mean, var, gamma, beta, spec: NormSpec) -> engine.Normed:
        """x (N, C, ...) normalised, scaled and shifted."""
        return _named(place, engine.batch_norm, x, mean, var, gamma, beta, spec)

    def running_norm(self, place: Place, mean, var, batch: engine.Statistics, momentum: int,
                     spec: NormSpec) -> tuple[np.ndarray, np.ndarray]:
        """The running (mean', var') (C,)."""
        rand = [self._operands(place.part(name), mean.shape, getattr(spec.running, name))
                for name in ("mean", "var")]
        return _named(place, engine.running_norm, mean, var, batch, momentum, spec, *rand)

    def frozen_norm(self, place: Place, mean, var, spec: NormSpec
                    ) -> tuple[np.ndarray, np.ndarray]:
        """The running (mean, var) (C,) in the casts of a batch's."""
        return _named(place, engine.frozen_norm, mean, var, spec)

    def batch_norm_grad(self, place: Place, error, xhat, var, gamma, spec: NormSpec,
                        frozen: bool, inside) -> engine.NormGrads:
        """The gradients of x, gamma and beta; those of the parameters are exact."""
        rand = self._operands(place.part("grad_x"), error.shape, spec.backward.grad_x)
        return _named(place, engine.batch_norm_grad, error, xhat, var, gamma, spec, frozen, inside,
                      {"grad_x": rand})

    def sgd(self, place: Place, weight, momentum, grad, lr: int, mu: int, spec: UpdateSpec,
            decay: int = 0) -> engine.Updated:
        """The update of one parameter; `decay` is a code of the spec's decay or shrink."""
        rand = {f"rand_{name}": self._operands(place.part(name), weight.shape, getattr(spec, name))
                for name in spec.sums if getattr(spec, name).rounding == Rounding.STOCHASTIC}
        return _named(place, engine.sgd, weight, momentum, grad, lr, mu, spec, decay=decay,
                      **rand)

    def buffered_sgd(self, place: Place, weight, buffer, grad, shift: int, spec: BufferSpec
                     ) -> engine.Buffered:
        """The update of one parameter through its gradient buffer."""
        rand = self._operands(place.part("step"), weight.shape, spec.weight)
        return _named(place, engine.buffered_sgd, weight, buffer, grad, shift, spec, rand)

    def clip(self, place: Place, grad, limit: int, spec: UpdateSpec | BufferSpec) -> np.ndarray:
        """Gradients within -limit and limit, a code of the spec's clip."""
        return engine.clip(grad, limit, spec)

    def square_sum(self, place: Place, grad, form: Format) -> int:
        """The exact sum of the squares of codes of `form`."""
        return engine.square_sum(grad, form)

    def _operands(self, place: Place, shape: tuple, to: Cast):
        if to.rounding != Rounding.STOCHASTIC:
            return None
        loads = self.loads(place)
        self.calls[place] += place.training
        return self._draw(shape, to.rand_bits, loads)

    def _draw(self, shape: tuple, rand_bits: int, loads: np.ndarray) -> np.ndarray:
        return engine.random_operands(shape, rand_bits, loads)

    def loads(self, place: Place) -> np.ndarray:
        """The LFSR load words of the next stochastic cast at `place`."""
        # Evaluation draws under a name of its own and counts no calls: it moves no training
        # operand, and gives the same answer each time.
        name = place.name if place.training else f"evaluation.{place.name}"
        return engine.load_words(self.seed, self.step, place.site, name, self.calls[place])


def _named(place: Place, operation, *args, **kwargs):
    """operation(*args, **kwargs), its records under the name of the place."""
    if engine.watching() is None:
        return operation(*args, **kwargs)
    with engine.named(f"{place.site}.{place.name}", place.axis):
        return operation(*args, **kwargs)


def _sited(place: Place, operation, *args, **kwargs):
    """As `_named`; a ValueError, which is about shapes, names the layer."""
    try:
        return _named(place, operation, *args, **kwargs)
    except ValueError as error:
        raise _about(place, error) from None


def _about(place: Place, error: ValueError) -> ValueError:
    return ValueError(f"layer {place.site!r}: {place.name}: {error}")


def _holding(codes: np.ndarray, frac: int) -> Format:
    return Format.holding(int(codes.min(initial=-1)), int(codes.max(initial=0)), frac)
