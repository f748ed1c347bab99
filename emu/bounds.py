"""How wide an accumulator must be: exact integer bounds, and the inputs that reach them.

A bound holds for every input that the operand's format allows, and is reached by one of them
unless its stage says otherwise. Integers only: no logarithm, no float, so nothing is misjudged
beside a power of two.

As a code of 0 is always possible, every product's range includes 0. So no prefix of a sum exceeds
the whole of it, and one accumulator needs the same width in every order of addition; an order
narrows the bound only by what tiles cut off.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import numpy as np

from emu.engine import Geometry
from emu.engine.arrays import as_codes, check_kind, largest, pair
from emu.number import ACC_WIDTHS, Cast, Format, Overflow
from emu.reference.casts import round_shift
from emu.spec import INT64, MacSpec


class Stage(NamedTuple):
    """The values that one cast of a MAC is given, before it fits them.

    `lo` and `hi` (N,) are the least and the greatest for each output channel, of int64, or of
    Python ints where their sums leave int64. They suppose that this cast never overflows (so they
    say how wide it must be), and take from the casts before it what those deliver. `exact` is
    False where one of those wraps or zeroes what it is given: then the bounds hold, but it may be
    that no input reaches them.
    """

    cast: Cast
    lo: np.ndarray
    hi: np.ndarray
    exact: bool = True

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the greatest value over all channels."""
        return min(self.lo.tolist(), default=0), max(self.hi.tolist(), default=0)

    @property
    def width(self) -> int | None:
        """Bits that never overflow in any channel: see `width`."""
        return width(self.cast, *self.limits)

    @property
    def widths(self) -> list[int | None]:
        """Bits that never overflow, for each channel."""
        return [width(self.cast, *ends)
                for ends in zip(self.lo.tolist(), self.hi.tolist(), strict=True)]

    @property
    def safe(self) -> bool:
        """Whether no input makes this cast overflow."""
        (lo, hi), (least, greatest) = self.limits, self.cast.range
        return least <= lo and hi <= greatest


class Bounds(NamedTuple):
    """The stages of a MAC over K = `k` products.

    `any_order` is one accumulator that takes all products (after their cast) in whatever order,
    by whatever tree, with no tiles; it starts at the bias, unless the MAC has two levels.
    """

    k: int
    any_order: Stage
    product: Stage
    acc: Stage
    outer: Stage | None

    @property
    def stages(self) -> dict[str, Stage]:
        """The casts that the MAC has, in the order of the data."""
        named = {"product": self.product, "acc": self.acc, "outer": self.outer}
        return {name: stage for name, stage in named.items() if stage is not None}

    @property
    def safe(self) -> bool:
        """Whether no input makes any stage overflow."""
        return all(stage.safe for stage in self.stages.values())


def width(cast: Cast, lo: int, hi: int) -> int | None:
    """Bits of the narrowest cast, signed and overflowing like `cast`, that no value lo..hi leaves.

    At least 2, as an accumulator has; None where `cast` is unsigned and `lo` negative.

    >>> width(Cast.parse("s8"), -128, 127), width(Cast.parse("s8 sat_sym"), -128, 127)
    (8, 9)
    """
    if not cast.format.signed:
        return None if lo < 0 else max(hi.bit_length(), ACC_WIDTHS[0])
    below = -lo if cast.overflow == Overflow.SAT_SYM else -lo - 1
    return max(1 + max(below, hi, 0).bit_length(), ACC_WIDTHS[0])


def matmul(w, mac: MacSpec, bias=None, inputs: tuple[int, int] | None = None) -> Bounds:
    """Bounds of every `a @ w + bias`; w (K, N) holds codes of `mac.b`, k in their order.

    `bias` (N,) holds codes of `mac.result.format`; `inputs` are the least and the greatest code
    of `a` that occur, by default those of `mac.a`.

    >>> mac = MacSpec.parse("{a: u8, b: s8, acc: s15 sat}")
    >>> found = matmul(np.array([[60], [-40]]), mac)
    >>> found.acc.limits, found.acc.width, found.safe
    ((-10200, 15300), 15, True)
    """
    check_kind(mac, "mac", MacSpec)
    w = as_codes(w, "w", mac.b, 2)
    ends = [_rounded(w, end, mac) for end in _inputs(mac, inputs)]
    return _bounds(np.minimum(*ends), np.maximum(*ends), mac, _start(bias, w.shape[1], mac))


def witness(w, mac: MacSpec, inputs: tuple[int, int] | None = None
            ) -> tuple[np.ndarray, np.ndarray]:
    """The inputs (K, N) that reach the lower bound of every stage, and those for the upper one.

    Column n is one vector of operands a for output channel n; w (K, N) as in `matmul`.
    """
    w = as_codes(w, "w", mac.b, 2)
    first, last = _inputs(mac, inputs)
    return (np.select([w > 0, w < 0], [first, last], 0),
            np.select([w > 0, w < 0], [last, first], 0))


def data_types(k: int, mac: MacSpec) -> Bounds:
    """Bounds from K and the formats alone, whatever the weights; without a bias."""
    corners = [x * y for x in (mac.a.lo, mac.a.hi) for y in (mac.b.lo, mac.b.hi)]
    lo, hi = (round_shift(x, -mac.product.format.frac, mac.product)
              for x in (min(corners), max(corners)))
    low, high = (np.full((k, 1), x, np.int64) for x in (lo, hi))
    return _bounds(low, high, mac, np.zeros(1, np.int64))


def conv2d(w, mac: MacSpec, bias=None, inputs: tuple[int, int] | None = None,
           size: tuple[int, int] | None = None, stride=1, padding=0, dilation=1) -> Bounds:
    """Bounds of every convolution with w (O, C/groups, KH, KW), for each of O channels.

    `size` is (H, W) of x, by default large enough that some output meets every tap; where none
    does, as padding covers the rest, the bounds are those of the taps that are met.
    """
    w = as_codes(w, "w", mac.b, 4)
    taps = [_met(*axis) for axis in
            _axes(w.shape[2:], size, Geometry(stride, padding, dilation))]
    return _over_taps(w.transpose(1, 2, 3, 0), taps, mac, bias, inputs)


def conv2d_grad_input(w, mac: MacSpec, inputs: tuple[int, int] | None = None,
                      size: tuple[int, int] | None = None, stride=1, padding=0, dilation=1,
                      groups: int = 1) -> Bounds:
    """Bounds of every gradient with respect to x, for each of C channels; w (O, C/groups, KH, KW).

    `size` is (H, W) of x. A stride leaves holes: each pixel meets only some of the taps.
    """
    w = as_codes(w, "w", mac.b, 4)
    geometry = Geometry(stride, padding, dilation, groups)
    geometry.check(w.shape[1] * groups, w.shape)
    taps = [_met_backward(*axis) for axis in _axes(w.shape[2:], size, geometry)]
    split = w.reshape(groups, w.shape[0] // groups, *w.shape[1:]).transpose(1, 3, 4, 0, 2)
    return _over_taps(split.reshape(*split.shape[:3], -1), taps, mac, None, inputs)


def a2q_width(l1: int, inputs: Format) -> int:
    """Accumulator bits by the A2Q bound, for weights whose magnitudes sum to `l1`.

    ceil(alpha + log2(1 + 2^-alpha) + 1) with alpha = log2(l1) + N - signed, in integers. Colbert,
    Pappalardo, Petri-Koenig: A2Q, arXiv 2308.13504, section 3, the bound by the l1-norm; as in
    Xilinx/brevitas, src/brevitas_examples/super_resolution/utils/evaluate.py.

    >>> [a2q_width(l1, Format(n, 0, False)) for l1, n in ((100, 8), (1000, 4), (4000, 8))]
    [16, 15, 21]
    """
    return (l1 << (inputs.width - inputs.signed)).bit_length() + 1


def a2q_plus_width(l1: int, inputs: Format) -> int:
    """Accumulator bits by the A2Q+ bound, for weights of every channel that sum to zero.

    ceil(log2(l1 * (2^N - 1) + 2)), in integers. Colbert and others: A2Q+, arXiv 2401.10432,
    section 3.1, the bound for zero-centred weights; as in the same file of Xilinx/brevitas.

    >>> [a2q_plus_width(l1, Format(n, 0, False)) for l1, n in ((100, 8), (1000, 4), (4000, 8))]
    [15, 14, 20]
    """
    return (l1 * ((1 << inputs.width) - 1) + 1).bit_length()


def a2q_data_type_width(k: int, inputs: Format, weights: Format) -> int:
    """Accumulator bits by the A2Q bound from data types: alpha = log2(K) + N + M - 1 - signed."""
    return a2q_width(k << (weights.width - weights.signed), inputs)


def _inputs(mac: MacSpec, inputs: tuple[int, int] | None) -> tuple[int, int]:
    first, last = (mac.a.lo, mac.a.hi) if inputs is None else inputs
    if not mac.a.lo <= first <= 0 <= last <= mac.a.hi:
        raise ValueError(f"inputs from {first} to {last}: needs codes of {mac.a}, from "
                         f"{mac.a.lo} to {mac.a.hi}, and 0 among them, as padding is 0")
    return int(first), int(last)


def _start(bias, outputs: int, mac: MacSpec) -> np.ndarray:
    if bias is None:
        return np.zeros(outputs, np.int64)
    bias = as_codes(bias, "bias", mac.result.format, 1)
    if bias.shape != (outputs,):
        raise ValueError(f"bias: shape {bias.shape} for {outputs} outputs; give one for each")
    return bias


def _rounded(w: np.ndarray, x: int, mac: MacSpec) -> np.ndarray:
    """Every product w * x in the rounding of the product cast: monotone in x, like the product."""
    return _shifted(w * x, -mac.product.format.frac, mac.product)  # int64 holds it, by the spec


def _shifted(codes: np.ndarray, n: int, to: Cast) -> np.ndarray:
    """`round_shift` of each code: by the reference, once for each value that occurs."""
    if n <= 0:
        return codes << -n
    values, index = np.unique(codes, return_inverse=True)
    table = [round_shift(value, n, to) for value in values.tolist()]
    return np.array(table, codes.dtype)[index].reshape(codes.shape)


def _fitted(to: Cast, lo: np.ndarray, hi: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """The bounds after fitting, and whether they are reached where `lo` and `hi` are."""
    least, greatest = to.range
    outside = (lo < least) | (hi > greatest)
    if not outside.any():
        return lo, hi, True
    if to.overflow in (Overflow.SAT, Overflow.SAT_SYM):  # monotone, so the ends stay the ends
        return np.clip(lo, least, greatest), np.clip(hi, least, greatest), True
    return np.where(outside, to.format.lo, lo), np.where(outside, to.format.hi, hi), False


def _bounds(low: np.ndarray, high: np.ndarray, mac: MacSpec, bias: np.ndarray) -> Bounds:
    """`low` <= 0 <= `high` (K, N) bound the rounded products, which vary independently."""
    k = len(low)
    product = Stage(mac.product, low.min(0, initial=0), high.max(0, initial=0))
    low, high, exact = _fitted(mac.product, low, high)
    n = 0 if mac.outer is None else mac.acc.format.frac - mac.outer.format.frac
    reach = k * max(largest(low), largest(high)) + largest(bias) + k  # each tile may round up
    if reach << abs(n) > INT64[1]:
        low, high, bias = (x.astype(object) for x in (low, high, bias))
    start = bias if mac.outer is None else 0
    whole = Stage(mac.acc, start + low.sum(0), start + high.sum(0), exact)
    if mac.outer is None:
        return Bounds(k, whole, product, whole, None)
    if k:
        starts = np.arange(0, k, mac.tile)
        low, high = np.add.reduceat(low, starts), np.add.reduceat(high, starts)
    two_levels = _reloaded if mac.reload else _spilled
    return Bounds(k, whole, product, *two_levels(low, high, mac, bias, n, exact))


def _spilled(low, high, mac: MacSpec, bias, n: int, exact: bool) -> tuple[Stage, Stage]:
    """acc and outer where acc restarts at 0; `low` and `high` (tiles, N) bound a tile's sum."""
    acc = Stage(mac.acc, low.min(0, initial=0), high.max(0, initial=0), exact)
    low, high, reached = _fitted(mac.acc, low, high)  # sums of one sign: clipping once is the same
    low, high = _shifted(low, n, mac.outer), _shifted(high, n, mac.outer)
    return acc, Stage(mac.outer, np.minimum(low.min(0, initial=0), bias + low.sum(0)),
                      np.maximum(high.max(0, initial=0), bias + high.sum(0)), exact and reached)


def _reloaded(low, high, mac: MacSpec, bias, n: int, exact: bool) -> tuple[Stage, Stage]:
    """acc and outer where acc continues from outer: one sum, so neither is cut by the other."""
    lo = hi = bias
    accs, outers = [(lo << n, hi << n)], [(lo, hi)]
    for tile_low, tile_high in zip(low, high, strict=True):
        accs.append(((lo << n) + tile_low, (hi << n) + tile_high))
        lo, hi = (_shifted(end, n, mac.outer) for end in accs[-1])
        outers.append((lo, hi))
    return tuple(Stage(cast, np.min([lo for lo, _ in ends], 0), np.max([hi for _, hi in ends], 0),
                       exact) for cast, ends in ((mac.acc, accs), (mac.outer, outers)))


def _axes(kernel, size, geometry: Geometry):
    """(pixels of x, pixels of the output, taps, stride, padding, dilation) of either axis."""
    if size is None:  # so large that the borders are far from some pixel of every phase
        size = [2 * (k * d + s) for k, d, s in
                zip(kernel, geometry.dilation, geometry.stride, strict=True)]
    size = pair(size, "size", 1)
    return zip(size, geometry.out_size(size, kernel), kernel, geometry.stride, geometry.padding,
               geometry.dilation, strict=True)


def _met(n, out, k, s, p, d) -> list[np.ndarray]:
    """The sets of taps that an output pixel meets inside x, without those that are part of one."""
    return _maximal({tuple(0 <= o * s - p + t * d < n for t in range(k)) for o in range(out)})


def _met_backward(n, out, k, s, p, d) -> list[np.ndarray]:
    """The sets of taps by which a pixel of x reached an output."""
    return _maximal({tuple((x + p - t * d) % s == 0 and 0 <= (x + p - t * d) // s < out
                           for t in range(k)) for x in range(n)})


def _maximal(sets: set[tuple[bool, ...]]) -> list[np.ndarray]:
    within = lambda x, y: all(b or not a for a, b in zip(x, y, strict=True))  # noqa: E731
    return [np.array(x) for x in sets if not any(x != y and within(x, y) for y in sets)]


def _over_taps(columns: np.ndarray, taps, mac: MacSpec, bias, inputs) -> Bounds:
    """The hull over every set of taps; columns (channels, KH, KW, N)."""
    found = [matmul(_blocked(columns * np.outer(rows, cols)[:, :, None], mac.block), mac, bias,
                    inputs) for rows in taps[0] for cols in taps[1]]
    return reduce(lambda x, y: Bounds(x.k, *map(_hull, x[1:], y[1:])), found)


def _hull(x: Stage | None, y: Stage | None) -> Stage | None:
    return x and Stage(x.cast, np.minimum(x.lo, y.lo), np.maximum(x.hi, y.hi), x.exact and y.exact)


def _blocked(columns: np.ndarray, block: int) -> np.ndarray:
    """(channels, KH, KW, N) to (K, N): k is (channel block, ky, kx, channel in the block)."""
    channels, *taps, outputs = columns.shape
    blocks = -(-channels // block)
    padded = np.pad(columns, ((0, blocks * block - channels), (0, 0), (0, 0), (0, 0)))
    split = padded.reshape(blocks, block, *taps, outputs).transpose(0, 2, 3, 1, 4)
    return split.reshape(blocks * taps[0] * taps[1] * block, outputs)
