"""Affine requantisation against the reference kernels of LiteRT, bit for bit.

Convolution and QUANTIZE round twice, in integers. The fully-connected kernel of this version
multiplies by a float64 and rounds ties away; it is compared where that product is exact.
"""

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

import emu
from emu import Cast, MacSpec, Rescale, multiplier_and_shift, reference

CODES, FUSED = schema.BuiltinOperator, schema.ActivationFunctionType
ACTIVATIONS = {  # real bounds of a fused activation
    FUSED.NONE: (None, None), FUSED.RELU: (0, None), FUSED.RELU6: (0, 6),
    FUSED.RELU_N1_TO_1: (-1, 1),
}
MAC = MacSpec.parse("{a: s9, b: s8, acc: s32 sat}")
COUNT = 3000  # accumulators of a layer with one input


def tensor(name, shape, dtype, scales, zero_point=0, axis=0, buffer=0):
    """A quantised tensor of the schema."""
    quantization = schema.QuantizationParametersT(
        scale=np.atleast_1d(np.float32(scales)), zeroPoint=[zero_point] * np.size(scales),
        quantizedDimension=axis)
    return schema.TensorT(shape=list(shape), type=getattr(schema.TensorType, dtype), buffer=buffer,
                          name=name, quantization=quantization)


def run(code, options, x, tensors, constants=()):
    """The output of one operator whose tensors are x, the constants and y."""
    kind = type(options).__name__.removesuffix("T")
    buffers = [schema.BufferT(), *(schema.BufferT(data=np.frombuffer(c.tobytes(), np.uint8))
                                   for c in constants)]
    operator = schema.OperatorT(
        inputs=list(range(len(tensors) - 1)), outputs=[len(tensors) - 1], builtinOptions=options,
        builtinOptionsType=getattr(schema.BuiltinOptions, kind))
    graph = schema.SubGraphT(tensors=tensors, inputs=[0], outputs=operator.outputs,
                             operators=[operator])
    model = schema.ModelT(version=3, buffers=buffers, subgraphs=[graph], operatorCodes=[
        schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=code, version=2)])
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    interpreter = Interpreter(model_content=bytes(builder.Output()), num_threads=1,
                              experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    interpreter.set_tensor(0, x)
    interpreter.invoke()
    return interpreter.get_tensor(len(tensors) - 1)


def layer(code, options, x, w, bias, y_shape, scales, x_zp, y_zp):
    """The output of a layer with weights; scales are those of x, w (one or many) and y."""
    x_scale, w_scale, y_scale = scales
    return run(code, options, x, [
        tensor("x", x.shape, "INT8", x_scale, x_zp),
        tensor("w", w.shape, "INT8", w_scale, buffer=1),
        tensor("bias", bias.shape, "INT32", x_scale * w_scale, buffer=2),
        tensor("y", y_shape, "INT8", y_scale, y_zp)], (w, bias))


def ratio(scales):
    """The real multipliers, in float64 as TFLite derives them."""
    x_scale, w_scale, y_scale = map(np.float64, scales)
    return np.atleast_1d(x_scale * w_scale / y_scale)


def requantisation(scales, y_zp, twice, activation=FUSED.NONE):
    """The Rescale of a layer, with its fused activation."""
    real_lo, real_hi = ACTIVATIONS[activation]
    lo = -128 if real_lo is None else max(-128, y_zp + round(real_lo / float(scales[2])))
    hi = 127 if real_hi is None else min(127, y_zp + round(real_hi / float(scales[2])))
    pairs = zip(*map(multiplier_and_shift, ratio(scales)), strict=True)
    return Rescale(*pairs, Cast.parse("s8 ties_away sat"), twice, 0, y_zp, (lo, hi))


def accumulators(scales, generator, bits=31):
    """Codes that land on and around every int8 code and beyond it, within so many bits."""
    real = ratio(scales)
    near = np.rint(generator.integers(-280, 281, COUNT) / 2 / real)
    near += generator.integers(-2, 3, COUNT)
    far = generator.integers(-(2**bits) + 1, 2**bits, COUNT) >> generator.integers(0, bits, COUNT)
    limit = np.minimum(2.0**bits - 1, (2.0**30 - 1) / real)  # of what a left shift may push up
    chosen = np.where(generator.random(COUNT) < 0.8, near, far)
    return np.clip(chosen, -limit, limit).astype(np.int32)


def any_scales(generator, size):
    """float32 scales of x, w and y; the weights' span 40 octaves."""
    w_scale = generator.uniform(0.5, 1, size) * 2.0 ** generator.integers(-31, 9, size)
    return np.float32(generator.uniform(0.01, 4)), np.float32(w_scale), np.float32(0.11)


def exact_scales(generator, size):
    """Scales whose ratio is exact in a multiplier; the weights' have 1 to 24 bits."""
    bits = generator.integers(1, 25, size)
    w_scale = np.ceil(generator.uniform(0.5, 1, size) * 2.0**bits)
    w_scale *= 2.0 ** (-bits - generator.integers(2, 14, size))
    return np.float32(2**-3), np.float32(w_scale), np.float32(2**-2)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("channels", [False, True])
def test_a_convolution_requantises_every_accumulator_as_litert(channels, seed):
    generator = np.random.default_rng(seed)
    scales = any_scales(generator, COUNT if channels else 1)
    bias = accumulators(scales, generator)
    x = np.full((1, 1, 1, 2), -5, np.int8)  # the zero point, so the bias is the accumulator
    w = generator.integers(-127, 128, (bias.size, 1, 1, 2), np.int8)
    options = schema.Conv2DOptionsT(strideH=1, strideW=1)
    want = layer(CODES.CONV_2D, options, x, w, bias, (1, 1, 1, bias.size), scales, -5, 7 - seed)
    spec = requantisation(scales, 7 - seed, True)
    assert emu.rescale(bias[None], spec)[0].tolist() == want.ravel().tolist()
    some = range(0, bias.size, 10)
    assert [reference.rescale(int(bias[i]), spec, i if channels else 0) for i in some] == [
        int(code) for code in want.ravel()[::10]]


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("stride", "dilation", "same", "x_zp"), [
    (1, 1, True, -128), (2, 1, False, 127), (1, 2, True, -7), (2, 1, False, 0)])
def test_a_quantised_convolution_is_litert_s(stride, dilation, same, x_zp, activation, channels):
    generator = np.random.default_rng(stride + 2 * dilation + 5 * activation)
    x = generator.choice([-128, 127, *range(-128, 128)], (2, 9, 11, 5)).astype(np.int8)
    w = generator.choice([-127, 127, *range(-127, 128)], (6, 3, 3, 5)).astype(np.int8)
    bias = generator.integers(-30000, 30000, 6, np.int32)
    scales = (np.float32(0.047), np.float32(generator.uniform(1e-4, 2e-3, 6 if channels else 1)),
              np.float32(0.061))
    padding = dilation if same else 0
    mac_x, mac_w = (c.astype(int).transpose(0, 3, 1, 2) for c in (x, w))
    acc = emu.conv2d(mac_x - x_zp, mac_w, MAC, bias, stride, padding, dilation)
    options = schema.Conv2DOptionsT(
        strideH=stride, strideW=stride, dilationHFactor=dilation, dilationWFactor=dilation,
        padding=schema.Padding.SAME if same else schema.Padding.VALID,
        fusedActivationFunction=activation)
    want = layer(CODES.CONV_2D, options, x, w, bias, (2, *acc.shape[2:], 6), scales, x_zp, -3)
    got = emu.rescale(acc, requantisation(scales, -3, True, activation))
    assert np.array_equal(got.transpose(0, 2, 3, 1), want)
    assert len(np.unique(want)) > 8


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("channels", [False, True])
def test_a_fully_connected_layer_requantises_every_accumulator_as_litert(channels, seed):
    generator = np.random.default_rng(seed)
    scales = exact_scales(generator, COUNT if channels else 1)
    bias = accumulators(scales, generator, 28)
    x = np.full((1, 2), 11, np.int8)
    w = generator.integers(-127, 128, (bias.size, 2), np.int8)
    options = schema.FullyConnectedOptionsT()
    want = layer(CODES.FULLY_CONNECTED, options, x, w, bias, (1, bias.size), scales, 11, seed - 4)
    spec = requantisation(scales, seed - 4, False)
    assert emu.rescale(bias[None], spec).tolist() == want.tolist()


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("x_zp", [-128, -7, 127])
def test_a_quantised_fully_connected_layer_is_litert_s(x_zp, activation, channels):
    generator = np.random.default_rng(activation)
    x = generator.choice([-128, 127, *range(-128, 128)], (20, 33)).astype(np.int8)
    w = generator.choice([-127, 127, *range(-127, 128)], (15, 33)).astype(np.int8)
    bias = generator.integers(-30000, 30000, 15, np.int32)
    x_scale, w_scale, _ = exact_scales(generator, 15 if channels else 1)
    scales = x_scale, np.clip(w_scale, 2.0**-9, None), np.float32(2**-4)
    acc = emu.matmul(x.astype(int) - x_zp, w.T, MAC, bias)
    options = schema.FullyConnectedOptionsT(fusedActivationFunction=activation)
    want = layer(CODES.FULLY_CONNECTED, options, x, w, bias, acc.shape, scales, x_zp, -3)
    got = emu.rescale(acc, requantisation(scales, -3, False, activation))
    assert got.tolist() == want.tolist()


@pytest.mark.parametrize(("x_scale", "x_zp", "y_zp"), [
    (0.5, -128, -1), (0.037, 5, 0), (3.7, 127, -128), (0.0021, 0, 100), (0.111, -4, 127)])
def test_every_int8_code_changes_its_scale_as_litert_s_quantize(x_scale, x_zp, y_zp):
    x = np.arange(-128, 128, dtype=np.int8)
    want = run(CODES.QUANTIZE, schema.QuantizeOptionsT(), x, [
        tensor("x", x.shape, "INT8", x_scale, x_zp), tensor("y", x.shape, "INT8", 0.25, y_zp)])
    multiplier = multiplier_and_shift(np.float64(np.float32(x_scale)) / 0.25)
    spec = Rescale(*multiplier, Cast.parse("s8 ties_away sat"), True, x_zp, y_zp)
    assert emu.rescale(x, spec).tolist() == want.tolist()
