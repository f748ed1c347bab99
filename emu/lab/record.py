"""Record a training step: a backend that keeps what every operation was given and gave."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from emu import engine, reference
from emu.golden import BufferTrace, CastTrace, MacTrace, UpdateTrace
from emu.kind import ClosedCast
from emu.lab.parts import PARTED, Parts
from emu.nn.backend import Backend, Place
from emu.number import Cast, Rounding


class Recorder(Parts):
    """Computes as `Backend` does, and keeps a trace of each operation in `traces`.

    What `Parts` takes apart is kept part by part. `tables` names what was read from tables, which
    no trace shows.
    """

    def __init__(self, backend: Backend):
        super().__init__(backend.seed)
        self.step = backend.step
        self.traces: list[BufferTrace | CastTrace | MacTrace | UpdateTrace] = []
        self.tables: dict[str, str] = {}
        self._names: dict[tuple[str, str], int] = {}

    def cast(self, place, codes, form, to):
        if isinstance(to, ClosedCast):
            raise ValueError(f"{place.site}.{place.name}: {to} saturates at a power of two, and no "
                             "RTL unit does; use sat_sym to record it")
        rand, loads = self._drawn(place, codes.shape, to)
        found = super().cast(place, codes, form, to)
        self.traces.append(CastTrace(self._name(place, "cast"), form, to, _list(codes),
                                     _list(found.codes), rand, loads))
        return found

    def made(self, place, what, codes, form, to):
        found = self.cast(place, codes, form, to)
        self.traces[-1] = replace(self.traces[-1], made=what)
        return found

    def lookup(self, place, x, table):
        self.tables[f"{place.site}.{place.name}"] = str(table)
        return super().lookup(place, x, table)

    def softmax(self, place, x, spec, absent=None):
        self.tables[f"{place.site}.{place.name}"] = f"softmax {spec}"
        return super().softmax(place, x, spec, absent)

    def dots(self, place, a, b, mac, bias=None):
        out = (a * b).sum(1) << mac.product.format.frac
        out = out if bias is None else out + bias
        return self._keep(place, mac, zip(a.tolist(), b.tolist(), strict=True), bias, out)

    def matmul(self, place, a, b, mac, bias=None):
        out = super().matmul(place, a, b, mac, bias)
        spread = None if bias is None else np.broadcast_to(bias, out.shape)
        return self._keep(place, mac, reference.matmul_terms(a.tolist(), b.tolist()), spread, out,
                          ("row", "column"))

    def conv2d(self, place, x, w, mac, bias=None, **geometry):
        out = super().conv2d(place, x, w, mac, bias, **geometry)
        terms = reference.conv2d_terms(x.tolist(), w.tolist(), block=mac.block, **_pairs(geometry))
        spread = None if bias is None else np.broadcast_to(bias[:, None, None], out.shape)
        return self._keep(place, mac, terms, spread, out, ("n", "out", "y", "x"),
                          _taps("in", w.shape[1], w.shape[2:], mac.block))

    def conv2d_grad_input(self, place, error, w, mac, size, **geometry):
        out = super().conv2d_grad_input(place, error, w, mac, size, **geometry)
        terms = reference.conv2d_grad_input_terms(error.tolist(), w.tolist(), size,
                                                  block=mac.block, **_pairs(geometry))
        outputs = w.shape[0] // geometry.get("groups", 1)
        return self._keep(place, mac, terms, None, out, ("n", "in", "y", "x"),
                          _taps("out", outputs, w.shape[2:], mac.block))

    def conv2d_grad_weight(self, place, x, error, mac, kernel, **geometry):
        out = super().conv2d_grad_weight(place, x, error, mac, kernel, **geometry)
        terms = reference.conv2d_grad_weight_terms(x.tolist(), error.tolist(), kernel,
                                                   **_pairs(geometry))
        sizes = error.shape[0], *error.shape[2:]
        return self._keep(place, mac, terms, None, out, ("out", "in", "ky", "kx"),
                          list(zip(("n", "y", "x"), sizes, strict=True)))

    def sgd(self, place, weight, momentum, grad, lr, mu, spec, decay=0):
        drawn = {}
        for name in spec.sums:
            drawn[f"rand_{name}"], drawn[f"loads_{name}"] = self._drawn(
                place.part(name), weight.shape, getattr(spec, name))
        found = super().sgd(place, weight, momentum, grad, lr, mu, spec, decay)
        self.traces.append(UpdateTrace(
            self._name(place, "update"), spec, lr, mu, _list(weight), _list(momentum), _list(grad),
            _list(found.weight), _list(found.momentum), decay=decay, **drawn))
        return found

    def buffered_sgd(self, place, weight, buffer, grad, shift, spec):
        rand, loads = self._drawn(place.part("step"), weight.shape, spec.weight)
        found = super().buffered_sgd(place, weight, buffer, grad, shift, spec)
        self.traces.append(BufferTrace(
            self._name(place, "update"), spec, shift, _list(weight), _list(buffer), _list(grad),
            _list(found.weight), _list(found.buffer), rand, loads))
        return found

    def clip(self, place, grad, limit, spec):
        raise ValueError(f"{place.site}.{place.name}: clips gradients at a limit, and no RTL unit "
                         "does; let a saturating cast clip them (grad), or limit their norm")

    def square_sum(self, place, grad, form):
        found = super().square_sum(place, grad, form)
        codes = _list(grad)
        return self._keep(place, engine.squares_mac(form, len(codes)), [(codes, codes)], None,
                          found)

    def _keep(self, place, mac, terms, bias, out, sums=(), taps=()):
        axes = None
        if sums:
            axes = {"sums": [list(axis) for axis in zip(sums, out.shape, strict=True)],
                    "terms": [list(axis) for axis in taps]}
        self.traces.append(MacTrace(self._name(place, "mac"), mac, terms,
                                    None if bias is None else _list(bias), _list(out), axes))
        return out

    def _name(self, place: Place, kind: str) -> str:
        """The trace's name; a later call of the same kind of operation is numbered."""
        name = f"{place.site}.{place.name}"
        calls = self._names[kind, name] = self._names.get((kind, name), 0) + 1
        return name if calls == 1 else f"{name}.{calls}"

    def _drawn(self, place: Place, shape: tuple, to: Cast) -> tuple[list | None, list | None]:
        """The operands the next cast at `place` will draw, and the words that load its LFSRs."""
        if to.rounding != Rounding.STOCHASTIC:
            return None, None
        loads = self.loads(place)
        return _list(engine.random_operands(shape, to.rand_bits, loads)), _list(loads)


def _refusing(operation: str):
    def refuse(self, place: Place, *_, **__):
        raise ValueError(f"{place.site}.{place.name}: no RTL unit does {operation}; train it "
                         "without recording")

    return refuse


for _name in ("adder2d", "adder2d_grad_input", "adder2d_grad_weight", "conv_transpose2d"):
    setattr(Recorder, _name, _refusing(_name))


def _compared(operation: str):
    """The operation in parts, which ValueError says are not what the engine makes of the whole."""
    def both(self, place: Place, *given):
        whole = Backend(self.seed)
        whole.step = self.step
        whole.calls.update(self.calls)
        wanted = getattr(whole, operation)(place, *given)
        found = getattr(Parts, operation)(self, place, *given)
        if not all(map(np.array_equal, found, wanted)):
            raise ValueError(f"{place.site}.{place.name}: the parts of {operation} are not what "
                             "the engine makes of it")
        return found

    return both


for _name in PARTED:
    setattr(Recorder, _name, _compared(_name))


def _taps(name: str, channels: int, kernel: tuple[int, int], block: int) -> list[tuple[str, int]]:
    """The axes of k in a convolution, slowest first, those of size 1 left out."""
    axes = [(f"{name} block", -(-channels // block)), ("ky", kernel[0]), ("kx", kernel[1]),
            (name, block)]
    if block == 1:
        axes = [(name, channels), *axes[1:3]]
    return [axis for axis in axes if axis[1] > 1]


def _list(codes: np.ndarray) -> list[int]:
    return np.asarray(codes).reshape(-1).tolist()


def _pairs(geometry: dict) -> dict:
    return {key: value if key == "groups" or not isinstance(value, int) else (value, value)
            for key, value in geometry.items()}
