"""A backend that computes in the compiled Verilog: every MAC, cast, draw and update of a model."""

from __future__ import annotations

import numpy as np

from emu import cosim, engine
from emu.cosim.matrices import COLS, ROWS
from emu.cosim.tiles import array
from emu.engine import im2col
from emu.engine.arrays import narrowed
from emu.engine.conv import Geometry
from emu.golden.flagged import FlagQuantizerSpec, flag_parameters
from emu.golden.trace import exact_mac
from emu.golden.units import QuantizerSpec, lfsr_unit, mac_unit, quantizer_parameters
from emu.golden.update import is_whole, update_parameters
from emu.kind import AnyCast, FlagCast
from emu.lab.parts import PARTED, Parts
from emu.nn.backend import Backend, Place
from emu.number import Cast, Format
from emu.spec import MacSpec
from emu.update import UpdateSpec

COMPILED = "cxxrtl"  # the engine of co-simulation
GRAIN = 32  # shifts of a quantizer come in steps of so many, so that a few serve all binary points
ALIGN = 64  # the most zeros that QuantizerSpec appends
INHERITED = ("end_step", "loads", "quantize",  # which compute nothing, but for `cast`
             *PARTED,  # in parts, which are here
             "lookup", "softmax")  # tables, whose entries the model has
DROP = 240  # no cast of 64 bits drops more with another result


class RtlBackend(Parts):
    """`Backend` with mac_array, mac, quantizer and lfsr of hw/rtl in the place of the engine.

    In Python data moves, and so do the exact sums that are no operation of a backend: of average
    pooling's windows, of tensors added and of gradients that meet; their casts come here. The model
    makes what no unit does: the quotients and roots of `Parts`, and the entries of tables. Refuses
    every other operation that no module of hw/rtl does.
    """

    def cast(self, place, codes, form, to):
        return self._cast(codes, form.frac, to, self._operands(place, codes.shape, to))

    def matmul(self, place, a, b, mac, bias=None):
        return narrowed(_product(a, b, mac, 0 if bias is None else bias), mac.result.format)

    def conv2d(self, place, x, w, mac, bias=None, **geometry):
        g = Geometry(**geometry)
        return _groups(im2col.conv2d(x, w, g, mac.block), mac, bias)

    def conv2d_grad_input(self, place, error, w, mac, size, **geometry):
        g = Geometry(**geometry)
        return _groups(im2col.conv2d_grad_input(error, w, g, tuple(size), mac.block), mac)

    def conv2d_grad_weight(self, place, x, error, mac, kernel, **geometry):
        g = Geometry(**geometry)
        return _groups(im2col.conv2d_grad_weight(x, error, g, tuple(kernel)), mac)

    def dots(self, place, a, b, mac, bias=None):
        return _dots(a, b, mac, 0 if bias is None else bias)

    def sgd(self, place, weight, momentum, grad, lr, mu, spec, decay=0):
        if is_whole(spec):
            return self._update(place, weight, momentum, grad, lr, mu, spec)
        tensors = {"weight": (weight, spec.weight.format), "grad": (grad, spec.grad.format),
                   "momentum": (momentum, spec.momentum.format)}
        constants = {"lr": lr, "mu": mu, "decay": decay, "shrink": decay}
        outside = {}
        for name in spec.sums:
            to = getattr(spec, name)
            codes, frac = _update_sum(spec, name, tensors, constants)
            found = self._cast(codes, frac, to, self._operands(place.part(name), weight.shape, to))
            tensors[name], outside[name] = (found.codes, to.format), found.outside
        return engine.Updated(*(tensors[name][0].astype(old.dtype) for name, old in (
            ("weight", weight), ("momentum", momentum))), outside["weight"], outside["momentum"])

    def _update(self, place, weight, momentum, grad, lr, mu, spec: UpdateSpec) -> engine.Updated:
        """All of it in one unit."""
        size, given = weight.size, {}
        for name, codes in (("weight", weight), ("momentum", momentum), ("grad", grad),
                            ("lr", lr), ("mu", mu)):
            given[f"{name}_i"] = np.broadcast_to(np.asarray(codes, np.int64).reshape(-1), size)
        for name in ("momentum", "weight"):
            rand = self._operands(place.part(name), weight.shape, getattr(spec, name))
            if rand is not None:
                given[f"rand_{name}_i"] = rand.reshape(-1)
        out = cosim.run("sgd_update", update_parameters(spec), given, COMPILED)
        return engine.Updated(
            out["weight_o"].reshape(weight.shape).astype(weight.dtype),
            out["momentum_o"].reshape(momentum.shape).astype(momentum.dtype),
            int(out["ovf_weight_o"].sum()), int(out["ovf_momentum_o"].sum()))

    def _cast(self, codes: np.ndarray, frac: int, to: AnyCast, rand: np.ndarray | None
              ) -> engine.Casted:
        flagged = isinstance(to, FlagCast)
        if not flagged and not isinstance(to, Cast):
            raise ValueError(f"{to}: no module of hw/rtl casts so; train it on the engine")
        plain = to.cast if flagged else to
        drop = max(-ALIGN, min(frac - plain.format.frac, DROP))
        align, top = _up(max(-drop, 0)), _up(max(drop, 0))
        source = Format(32 if codes.dtype.itemsize <= 4 else 64, top)
        values = codes.reshape(-1)
        given = {"value_i": values, "shift_i": np.full(values.size, align + drop)}
        if rand is not None:
            given["rand_i"] = rand.reshape(-1)
        if flagged:
            spec = FlagQuantizerSpec(source, FlagCast(plain.with_frac(0)), align)
            out = cosim.run("flag_quantizer", flag_parameters(spec), given, COMPILED)
        else:
            spec = QuantizerSpec(source, plain.with_frac(0), align)
            out = cosim.run("quantizer", quantizer_parameters(spec), given, COMPILED)
        found = out["operand_o" if flagged else "code_o"].reshape(codes.shape)
        inside = out["ovf_o"].reshape(codes.shape) == 0
        return engine.Casted(narrowed(found, to.format), inside, inside.size - int(inside.sum()))

    def _draw(self, shape: tuple, rand_bits: int, loads: np.ndarray) -> np.ndarray:
        """Each of the LFSRs runs for its elements, one after the other in one lfsr."""
        count, streams = int(np.prod(shape)), len(loads)
        each = -(-count // streams)
        load = np.zeros((streams, each), np.int64)
        load[:, 0] = 1
        drawn = cosim.run("lfsr", lfsr_unit(rand_bits).parameters, {
            "load_i": load.reshape(-1), "state_i": np.repeat(np.asarray(loads, np.int64), each)},
            COMPILED)["rand_o"]
        return drawn.reshape(streams, each).T.reshape(-1)[:count].reshape(shape)


def _refusing(operation: str):
    def refuse(self, place: Place, *_, **__):
        raise ValueError(f"{place.site}.{place.name}: no module of hw/rtl does {operation}; train "
                         "it on the engine")

    return refuse


for _name, _method in vars(Backend).items():  # what the Verilog does not compute, nothing else may
    if callable(_method) and not (_name.startswith("_") or _name in vars(RtlBackend)
                                  or _name in INHERITED):
        setattr(RtlBackend, _name, _refusing(_name))


def _up(shift: int) -> int:
    return -(-shift // GRAIN) * GRAIN


def _product(a: np.ndarray, b: np.ndarray, mac: MacSpec, bias) -> np.ndarray:
    """(M, K) @ (K, N) through mac_array, tile by tile."""
    (rows, terms), cols = a.shape, b.shape[1]
    start = np.broadcast_to(np.asarray(bias, np.int64), (rows, cols))
    down, across = -(-rows // ROWS), -(-cols // COLS)
    a = _padded(a, (down * ROWS, terms)).reshape(down, 1, ROWS, terms)
    b = _padded(b.T, (across * COLS, terms)).reshape(1, across, COLS, terms)
    start = _padded(start, (down * ROWS, across * COLS))
    tiled = start.reshape(down, ROWS, across, COLS).transpose(0, 2, 1, 3)
    each = (down, across)
    sums = array(np.broadcast_to(a, (*each, ROWS, terms)).reshape(-1, ROWS, terms),
                 np.broadcast_to(b, (*each, COLS, terms)).reshape(-1, COLS, terms),
                 mac, tiled.reshape(-1, ROWS, COLS), backend=COMPILED).acc
    whole = sums.reshape(*each, ROWS, COLS).transpose(0, 2, 1, 3).reshape(start.shape)
    return whole[:rows, :cols]


def _dots(a: np.ndarray, b: np.ndarray, mac: MacSpec, bias: np.ndarray | int) -> np.ndarray:
    """The dot product of each row of a (M, K) with that of b, one transaction of a mac each."""
    unit, first = mac_unit(mac), np.zeros(a.shape, np.int64)
    first[:, 0] = 1
    start = np.broadcast_to(np.reshape(bias, (-1, 1)), a.shape)
    sums = cosim.run(unit.module, unit.parameters, {
        "load_i": first.reshape(-1), "last_i": first[:, ::-1].reshape(-1), "a_i": a.reshape(-1),
        "b_i": b.reshape(-1), "bias_i": start.reshape(-1)}, COMPILED)["acc_o"]
    return sums.reshape(a.shape)[:, -1]


def _padded(codes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    out = np.zeros(shape, np.int64)
    out[:codes.shape[0], :codes.shape[1]] = codes
    return out


def _groups(lowered: im2col.Lowered, mac: MacSpec, bias: np.ndarray | None = None) -> np.ndarray:
    """A convolution as the products of its groups."""
    start = np.zeros((lowered.groups, lowered.shape[-1]), np.int64)
    if bias is not None:
        start[:] = np.reshape(bias, start.shape)
    return narrowed(lowered.assemble([_product(*lowered.operands(group), mac, start[group])
                                      for group in range(lowered.groups)]), mac.result.format)


def _update_sum(spec: UpdateSpec, name: str, tensors: dict, constants: dict
                ) -> tuple[np.ndarray, int]:
    """(codes, frac) of an exact sum of an update: its products are added one after the other."""
    terms = sorted(spec.sums[name], key=len)  # the one that is no product comes first
    (codes, form), = (tensors[factor] for _, factor in terms[:1])
    for sign, constant, factor in terms[1:]:
        operand, held = tensors[factor]
        to = getattr(spec, constant).format
        if sign < 0:  # the negated codes need one bit more
            to = Format(to.width + 1, to.frac)
        mac, align = exact_mac(held, to, form)
        flat = operand.reshape(-1, 1).astype(np.int64)
        codes = _dots(flat, np.full_like(flat, sign * constants[constant]), mac,
                      codes.reshape(-1).astype(np.int64) << align)
        form = mac.acc.format.with_frac(held.frac + to.frac + mac.product.format.frac)
    return codes.reshape(tensors["grad"][0].shape), form.frac
