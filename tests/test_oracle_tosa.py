"""Affine requantisation against the reference model of TOSA, bit for bit.

Data keep to what TOSA defines: values within +-2^(shift-1), scaled values within int32. Its
INEXACT_ROUND is left out: it is no rule, and the model computes it in floats.
"""

from itertools import product

import numpy as np
import pytest
import tosa_reference_model
import tosa_serializer as tosa

import emu
from emu import Cast, Format, MacSpec, Overflow, Rescale, Rounding, reference

MODES = {tosa.RoundingMode.SINGLE_ROUND: (Rounding.TIES_POS, False),
         tosa.RoundingMode.DOUBLE_ROUND: (Rounding.TIES_AWAY, True)}
FORMATS = {text: Format.parse(text) for text in ("s8", "u8", "s16", "u16", "s32", "s48")}
MAC = MacSpec.parse("{a: s9, b: s9, acc: s32 sat}")


def dtype(form):
    """TOSA's type of a format; it has no sign."""
    return getattr(tosa.DType, f"INT{form.width}")


def signless(codes, form):
    """Codes as TOSA holds them: those of unsigned formats by their bits."""
    half = 1 << (form.width - 1)
    return (np.asarray(codes, np.int64) + half) % (2 * half) - half


class Graph(tosa.TosaSerializer):
    """A graph that is built operator by operator; tensors go by their names."""

    def constant(self, codes, form):
        """A constant tensor."""
        flat = signless(codes, form).ravel().tolist()
        return self.addConst(list(np.shape(codes)), dtype(form), flat).name

    def operator(self, name, inputs, tensor, *attributes):
        """The name of an operator's output `tensor`."""
        held = tosa.TosaSerializerAttribute()
        getattr(held, f"{name}Attribute")(*attributes)
        self.addOperator(getattr(tosa.Op, name.upper()), inputs, [tensor.name], held)
        return tensor.name

    def rescale(self, x, shape, form, spec, mode, scale32=True):
        """The graph's result: RESCALE of a tensor x, with the numbers of a Rescale."""
        to = spec.to.format
        inputs = [x, self.constant(spec.multiplier, FORMATS["s32" if scale32 else "s16"]),
                  self.constant(spec.shift, FORMATS["s8"]), self.constant([spec.input_zp], form),
                  self.constant([spec.output_zp], to)]
        self.operator("Rescale", inputs, self.addOutput(shape, dtype(to)), scale32, mode,
                      len(spec.multiplier) > 1, not form.signed, not to.signed)

    def run(self, *inputs):
        """The codes of the first result."""
        results, status = tosa_reference_model.run(self.serialize(), list(inputs))
        assert status == tosa_reference_model.GraphStatus.TOSA_VALID
        return results[0]


def rescaled(x, form, spec, mode):
    """x (rows, channels) of a format through one RESCALE."""
    graph = Graph()
    name = graph.addPlaceholder(list(x.shape), dtype(form), None).name
    graph.rescale(name, list(x.shape), form, spec, mode)
    held = signless(x, form).astype(f"int{form.width}")
    return graph.run(held).view(f"{'' if spec.to.format.signed else 'u'}int{spec.to.format.width}")


def parameters(generator, channels, bits, least_shift=2):
    """Multipliers of so many bits, and shifts."""
    size = channels or 1
    multiplier = generator.integers(0, 2**bits, size) >> generator.integers(0, bits, size)
    rounded = generator.random(size) < 0.3  # powers of two meet ties
    multiplier = np.where(rounded, 1 << generator.integers(0, bits, size), multiplier)
    return multiplier.tolist(), generator.integers(least_shift, 63, size).tolist()


def values(generator, spec, form, rows):
    """Codes (rows, channels) around ties and at the bounds, where TOSA defines the result."""
    columns = []
    for multiplier, shift in zip(np.maximum(spec.multiplier, 1).tolist(), spec.shift, strict=True):
        most = min(2 ** (shift - 1) - 1, (2**31 - 2) * 2**shift // multiplier)
        reach = min(most, 2 ** (shift + spec.to.format.width) // multiplier)  # mostly unsaturated
        near = generator.integers(-reach, reach, rows, endpoint=True)
        tie = 2 ** max(shift - multiplier.bit_length(), 0)  # of a power of two
        near = np.where(generator.random(rows) < 0.5, near // tie * tie, near)
        near += spec.input_zp + generator.integers(-1, 2, rows)
        lo, hi = max(form.lo, spec.input_zp - most), min(form.hi, spec.input_zp + most)
        ends = generator.choice([lo, hi], rows)
        columns.append(np.where(generator.random(rows) < 0.9, np.clip(near, lo, hi), ends))
    return np.stack(columns, 1)


def zero_point(generator, form):
    """A zero point that TOSA allows."""
    match str(form):
        case "s8f0" | "u8f0": return int(generator.integers(form.lo, form.hi, endpoint=True))
        case "u16f0": return int(generator.choice([0, 32768]))
    return 0


PAIRS = [(x, y) for x, y in product(("s8", "u8", "s16", "u16", "s32"), repeat=2)
         if (x + y).count("u") <= ("s32" not in (x, y))]


@pytest.mark.parametrize(("x_form", "y_form"), PAIRS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [0, 40])
def test_every_rescale_is_tosa_s(x_form, y_form, mode, channels):
    generator = np.random.default_rng([channels, int(mode), *map(ord, x_form + y_form)])
    form, to = FORMATS[x_form], FORMATS[y_form]
    rounding, double = MODES[mode]
    for _ in range(1 if channels else 12):
        spec = Rescale(*parameters(generator, channels, 31), Cast(to, rounding, Overflow.SAT),
                       double, zero_point(generator, form), zero_point(generator, to))
        x = values(generator, spec, form, 40)
        want = rescaled(x, form, spec, mode)
        assert emu.rescale(x, spec).tolist() == want.tolist(), str(spec)
        assert [reference.rescale(int(code), spec) for code in x[:, 0]] == want[:, 0].tolist()


@pytest.mark.parametrize("y_form", ["s8", "s16", "s32"])
@pytest.mark.parametrize("seed", range(3))
def test_an_accumulator_of_48_bits_is_rescaled_as_tosa_does(seed, y_form):
    generator = np.random.default_rng(seed)
    form, to = FORMATS["s48"], FORMATS[y_form]
    spec = Rescale(*parameters(generator, 200, 15, 16), Cast(to, Rounding.TIES_POS, Overflow.SAT),
                   False, 0, zero_point(generator, to))
    acc = values(generator, spec, form, 1)
    graph, shape = Graph(), [1, 1, 1, 200]
    name = graph.addPlaceholder([1, 1, 1, 1], tosa.DType.INT16, None).name
    inputs = [name, graph.constant(np.zeros((200, 1, 1, 1)), FORMATS["s8"]),
              graph.constant(acc[0], form), graph.constant([0], FORMATS["s16"]),
              graph.constant([0], FORMATS["s8"])]
    name = graph.operator("Conv2d", inputs, graph.addIntermediate(shape, dtype(form)),
                          [0] * 4, [1, 1], [1, 1], False, dtype(form))
    graph.rescale(name, shape, form, spec, tosa.RoundingMode.SINGLE_ROUND, scale32=False)
    want = graph.run(np.zeros((1, 1, 1, 1), np.int16)).view(f"int{to.width}")
    assert emu.rescale(acc, spec).ravel().tolist() == want.ravel().tolist()


def layer_scales(generator, mode, channels, acc):
    """A Rescale under which the sums of a layer use the range of int8, and a bit more."""
    rounding, double = MODES[mode]
    shift = generator.integers(32, 38, channels or 1)
    real = generator.uniform(100, 250, channels or 1) / np.abs(acc).max()
    multiplier = (real * 2.0**shift).astype(int)
    output_zp = int(np.clip(-real.mean() * acc.mean(), -128, 127))
    return Rescale(multiplier, shift, Cast(FORMATS["s8"], rounding, Overflow.SAT), double, 0,
                   output_zp)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [0, 6])
@pytest.mark.parametrize(("x_zp", "w_zp"), [(0, 0), (-128, 127), (127, -128), (5, -3)])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 2, 2)])
def test_a_quantised_convolution_is_tosa_s(stride, padding, dilation, x_zp, w_zp, channels, mode):
    generator = np.random.default_rng(channels + 10 * stride)
    s8, s32 = FORMATS["s8"], FORMATS["s32"]
    x = generator.choice([-128, 127, *range(-128, 128)], (2, 9, 11, 5)).astype(np.int8)
    w = generator.choice([-128, 127, *range(-128, 128)], (6, 3, 3, 5)).astype(np.int8)
    bias = generator.integers(-30000, 30000, 6)
    exact = [c.astype(int).transpose(0, 3, 1, 2) - zp for c, zp in ((x, x_zp), (w, w_zp))]
    acc = emu.conv2d(*exact, MAC, bias, stride, padding, dilation)
    spec = layer_scales(generator, mode, channels, acc)
    graph, shape = Graph(), [2, *acc.shape[2:], 6]
    name = graph.addPlaceholder(list(x.shape), dtype(s8), None).name
    inputs = [name, graph.constant(w, s8), graph.constant(bias, s32), graph.constant([x_zp], s8),
              graph.constant([w_zp], s8)]
    name = graph.operator("Conv2d", inputs, graph.addIntermediate(shape, dtype(s32)),
                          [padding] * 4, [stride] * 2, [dilation] * 2, False, dtype(s32))
    graph.rescale(name, shape, s32, spec, mode)
    want = graph.run(x).view(np.int8)
    assert np.array_equal(emu.rescale(acc, spec).transpose(0, 2, 3, 1), want)
    assert len(np.unique(want)) > 16


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [0, 15])
@pytest.mark.parametrize(("a_zp", "b_zp"), [(0, 0), (-128, 127), (127, -128), (5, -3)])
def test_a_quantised_matrix_product_is_tosa_s(a_zp, b_zp, channels, mode):
    generator = np.random.default_rng(channels)
    s8, s32 = FORMATS["s8"], FORMATS["s32"]
    a = generator.choice([-128, 127, *range(-128, 128)], (20, 33)).astype(np.int8)
    b = generator.choice([-128, 127, *range(-128, 128)], (33, 15)).astype(np.int8)
    acc = emu.matmul(a.astype(int) - a_zp, b.astype(int) - b_zp, MAC)
    spec = layer_scales(generator, mode, channels, acc)
    graph, shape = Graph(), [1, *acc.shape]
    name = graph.addPlaceholder([1, *a.shape], dtype(s8), None).name
    inputs = [name, graph.constant(b[None], s8), graph.constant([a_zp], s8),
              graph.constant([b_zp], s8)]
    name = graph.operator("MatMul", inputs, graph.addIntermediate(shape, dtype(s32)))
    graph.rescale(name, shape, s32, spec, mode)
    want = graph.run(a[None]).view(np.int8)
    assert emu.rescale(acc, spec).tolist() == want[0].tolist()
    assert len(np.unique(want)) > 16
