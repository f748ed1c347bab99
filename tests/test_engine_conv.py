"""Convolution and its two gradients, against the definition; narrow MACs show the order of k."""

from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import conv_cases
import numpy as np
import pytest
from engine_cases import accounted, filled, stepped, watched
from hypothesis import given, settings
from hypothesis import strategies as st
from path_cases import MATRICES, expected
from strategies import macs

from emu import MacSpec, engine, reference
from emu.engine import run
from emu.engine.kernels import gemm, jit

PAIR = tuple[int, int]
SAT = MacSpec.parse("{a: s4, b: s4, acc: s7 sat}")
SEEDS = st.integers(0, 99)


class Layer(NamedTuple):
    """The shape of a convolution: x (batch, groups * inputs, *size) to groups * outputs."""

    size: PAIR
    kernel: PAIR = (1, 1)
    stride: PAIR = (1, 1)
    padding: PAIR = (0, 0)
    dilation: PAIR = (1, 1)
    groups: int = 1
    inputs: int = 1
    outputs: int = 1
    batch: int = 1

    @property
    def geometry(self) -> dict:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation,
                "groups": self.groups}

    @property
    def x(self) -> tuple:
        return self.batch, self.groups * self.inputs, *self.size

    @property
    def w(self) -> tuple:
        return self.groups * self.outputs, self.inputs, *self.kernel

    @property
    def error(self) -> tuple:
        return self.batch, self.groups * self.outputs, *(
            (n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in
            zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True))


def small_macs(blocks: int):
    """Narrow MACs, most of which overflow, with a channel block of up to `blocks`."""
    narrow = macs((1, 5), (1, 9), (2, 8), (-3, 3), 3)
    return st.builds(lambda mac, block: replace(mac, block=block), narrow,
                     st.integers(1, blocks))


@st.composite
def layers(draw, padding=3, stride=3) -> Layer:
    """Convolutions whose kernel fits; depthwise where a group has one channel each way."""
    kernel, dilation = draw(pairs(1, 3)), draw(pairs(1, 3))
    padded, groups = draw(pairs(0, padding)), draw(st.integers(1, 3))
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = tuple(draw(st.integers(max(1, span - 2 * p), max(span - 2 * p, 0) + 4))
                 for span, p in zip(spans, padded, strict=True))
    channels = st.integers(1, 3 if groups == 1 else 2)
    return Layer(size, kernel, draw(pairs(1, stride)), padded, dilation, groups, draw(channels),
                 draw(channels), draw(st.integers(1, 2)))


def pairs(low: int, high: int):
    return st.tuples(st.integers(low, high), st.integers(low, high))


CASES = {
    "plain": Layer((4, 5), (3, 2), inputs=2, outputs=3, batch=2),
    "depthwise": Layer((3, 4), (2, 2), padding=(1, 1), groups=3),
    "depthwise with a multiplier": Layer((3, 3), (2, 2), groups=2, outputs=2),
    "strided, dilated, grouped": Layer((6, 5), (2, 3), (2, 1), (1, 2), (2, 1), 2, 2, 2, 2),
    "rows and columns that no window touches": Layer((4, 6), (1, 2), (2, 4), inputs=2),
    "a stride beyond the image": Layer((2, 3), (1, 2), (5, 7), (1, 0)),
    "padding beyond the kernel": Layer((2, 1), (1, 2), (1, 1), (3, 4), inputs=2),
    "only padding under the first windows": Layer((1, 1), (1, 1), (3, 2), (4, 4)),
    "only padding under all windows": Layer((1, 1), (1, 1), (20, 20), (5, 5)),
    "a kernel as large as the image": Layer((3, 4), (3, 4), inputs=2, outputs=2),
    "one pixel": Layer((1, 1), inputs=3, outputs=2, batch=2),
}
table = pytest.mark.parametrize("layer", CASES.values(), ids=CASES.keys())


def flat(x: np.ndarray) -> list[int]:
    return x.reshape(-1).tolist()


def check_forward(mac, layer, seed, watch=False):
    """Results with a bias for each output; if `watch`, accounts of each channel too."""
    x, w = filled(layer.x, mac.a, seed), filled(layer.w, mac.b, seed + 1)
    bias = filled(layer.w[:1], mac.result.format, seed + 2)
    terms = list(reference.conv2d_terms(x.tolist(), w.tolist(), block=mac.block, **layer.geometry))
    pixels = layer.error[2] * layer.error[3]
    biases = [code for code in bias.tolist() for _ in range(pixels)] * layer.batch
    check(engine.conv2d, (x, w, mac, bias), layer, terms, biases, layer.error, 1, watch)


def check_grad_input(mac, layer, seed, watch=False):
    """Results, and accounts of each channel of x."""
    error, w = filled(layer.error, mac.a, seed), filled(layer.w, mac.b, seed + 1)
    terms = list(reference.conv2d_grad_input_terms(error.tolist(), w.tolist(), layer.size,
                                                   block=mac.block, **layer.geometry))
    check(engine.conv2d_grad_input, (error, w, mac, layer.size), layer, terms, [0] * len(terms),
          layer.x, 1, watch)


def check_grad_weight(mac, layer, seed, watch=False):
    """Results, and accounts of each output channel."""
    x, error = filled(layer.x, mac.a, seed), filled(layer.error, mac.b, seed + 1)
    terms = list(reference.conv2d_grad_weight_terms(x.tolist(), error.tolist(), layer.kernel,
                                                    **layer.geometry))
    check(engine.conv2d_grad_weight, (x, error, mac, layer.kernel), layer, terms,
          [0] * len(terms), layer.w, 0, watch)


def check(operation, arguments, layer, terms, biases, shape, axis, watch):
    mac = arguments[2]
    got = operation(*arguments, **layer.geometry)
    assert (got.shape, flat(got)) == (shape, stepped(terms, mac, biases))
    if watch:
        assert watched(operation, *arguments, **layer.geometry) == accounted(
            terms, mac, biases, shape, axis)


@table
def test_forward_agrees(layer):
    check_forward(SAT, layer, 0, watch=True)


@table
def test_the_gradient_of_x_agrees(layer):
    check_grad_input(SAT, layer, 0, watch=True)


@table
def test_the_gradient_of_w_agrees(layer):
    check_grad_weight(SAT, layer, 0, watch=True)


@given(small_macs(4), layers(), SEEDS)
def test_every_forward_agrees(mac, layer, seed):
    check_forward(mac, layer, seed)


@given(small_macs(4), layers(), SEEDS)
def test_every_gradient_of_x_agrees(mac, layer, seed):
    check_grad_input(mac, layer, seed)


@given(small_macs(1), layers(), SEEDS)
def test_every_gradient_of_w_agrees(mac, layer, seed):
    check_grad_weight(mac, layer, seed)


@settings(max_examples=50)
@given(layers(padding=9, stride=12), SEEDS)
def test_forward_agrees_under_wide_padding_and_stride(layer, seed):
    check_forward(SAT, layer, seed)


@settings(max_examples=50)
@given(layers(padding=9, stride=12), SEEDS)
def test_the_gradient_of_x_agrees_under_wide_padding_and_stride(layer, seed):
    check_grad_input(SAT, layer, seed)


@settings(max_examples=50)
@given(layers(padding=9, stride=12), SEEDS)
def test_the_gradient_of_w_agrees_under_wide_padding_and_stride(layer, seed):
    check_grad_weight(SAT, layer, seed)


def test_the_planes_agree_with_im2col_by_every_path():
    taken, active = Counter(), Counter()
    for case in range(250):
        conv_cases.compare(np.random.default_rng([2, case]), taken, active)
    assert {*conv_cases.PASSES, *expected()} - MATRICES <= {*taken}
    assert all(active[which] > 50 for which in conv_cases.PASSES), active


@pytest.mark.parametrize("text", ["acc: s20", "acc: s16 sat, block: 3", "acc: s40 sat, lanes: 3",
                                  "acc: s20 sat, block: 4"])
def test_no_kernel_reads_beyond_its_operands(text, monkeypatch):
    """All that a kernel reads of a row of k is inside the array, the fill of its last tile too."""
    met = []

    def launch(kernel, additions, *arguments):
        if kernel is gemm.tracked or kernel in gemm.KERNELS.values():
            x, off, _, c = arguments[1:5]
            met.append(off.min() >= 0 and off.max() + c.shape[1] <= x.size)
        return jit.launch(kernel, additions, *arguments)

    monkeypatch.setattr(run, "launch", launch)
    mac, rng = MacSpec.parse(f"{{a: s8, b: s8, {text}}}"), np.random.default_rng(0)
    wide = {"x": (13, 1, 1, 5), "w": (2, 1, 1, 5), "error": (13, 2, 1, 1), "geometry": {}}
    for layer in [wide, *(conv_cases.drawn_layer(rng) for _ in range(100))]:
        codes = {name: rng.integers(-128, 128, layer[name], np.int8)
                 for name in ("x", "w", "error")}
        for which, names in zip(conv_cases.PASSES, (("x", "w"), ("error", "w"), ("x", "error")),
                                strict=True):
            conv_cases.call(which, mac, layer, [codes[name] for name in names], None)
    assert len(met) > 300 and all(met)


def test_an_error_that_no_tap_reaches_is_not_read():
    error, w = np.full((1, 1, 1, 1), 7), np.full((1, 1, 1, 2), 7)
    got = engine.conv2d_grad_input(error, w, SAT, (1, 3), stride=(1, 3), padding=(0, 9),
                                   dilation=(1, 20))
    assert flat(got) == [0, 0, 0]


@pytest.mark.parametrize(("block", "want"), [(1, 27), (2, 100), (3, 100)])
def test_the_channel_block_decides_the_order_of_saturation(block, want):
    x = np.array([[[[100, 100]], [[-100, 0]]]])
    mac = MacSpec.parse(f"{{a: s8, b: s8, acc: s8 sat, block: {block}}}")
    assert flat(engine.conv2d(x, np.ones((1, 2, 1, 2), int), mac)) == [want]


def test_one_number_stands_for_both_axes():
    x, w = filled((1, 2, 6, 6), SAT.a, 0), filled((2, 1, 2, 2), SAT.b, 1)
    want = engine.conv2d(x, w, SAT, None, (2, 2), (1, 1), (2, 2), 2)
    assert engine.conv2d(x, w, SAT, None, 2, 1, 2, 2).tolist() == want.tolist()


def test_pixels_that_no_window_touches_get_no_gradient():
    error, w = np.ones((1, 1, 2, 2), int), np.ones((1, 1, 1, 1), int)
    got = engine.conv2d_grad_input(error, w, SAT, (4, 3), stride=2)
    assert got[0, 0].tolist() == [[1, 0, 1], [0, 0, 0], [1, 0, 1], [0, 0, 0]]


def test_an_empty_batch_gives_an_empty_result():
    got = engine.conv2d(np.ones((0, 2, 4, 4), int), np.ones((3, 2, 3, 3), int), SAT)
    assert got.shape == (0, 3, 2, 2)


def test_an_empty_batch_gives_an_empty_gradient_of_x():
    got = engine.conv2d_grad_input(np.ones((0, 3, 2, 2), int), np.ones((3, 2, 3, 3), int), SAT,
                                   (4, 4))
    assert got.shape == (0, 2, 4, 4)


def test_an_empty_batch_gives_weights_no_gradient():
    got = engine.conv2d_grad_weight(np.ones((0, 2, 4, 4), int), np.ones((0, 3, 2, 2), int), SAT,
                                    (3, 3))
    assert got.tolist() == np.zeros((3, 2, 3, 3), int).tolist()


@settings(max_examples=20)
@given(small_macs(4), layers(), SEEDS)
def test_every_forward_is_accounted_for(mac, layer, seed):
    check_forward(mac, layer, seed, watch=True)


@settings(max_examples=20)
@given(small_macs(4), layers(), SEEDS)
def test_every_gradient_of_x_is_accounted_for(mac, layer, seed):
    check_grad_input(mac, layer, seed, watch=True)


@settings(max_examples=20)
@given(small_macs(1), layers(), SEEDS)
def test_every_gradient_of_w_is_accounted_for(mac, layer, seed):
    check_grad_weight(mac, layer, seed, watch=True)


def test_strided_images_are_read_in_their_own_order():
    x, w = filled((2, 3, 5, 4), SAT.a, 0), filled((2, 3, 2, 2), SAT.b, 1)
    channels_last = x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
    got = engine.conv2d(channels_last, w[:, :, ::-1][:, :, ::-1], SAT)
    assert flat(got) == flat(engine.conv2d(x, w, SAT))


X, W = np.ones((1, 4, 5, 5), int), np.ones((4, 2, 3, 3), int)


@pytest.mark.parametrize(("x", "w", "options", "message"), [
    (X, W, {}, r"4 input channels and w \(4, 2, 3, 3\) with groups 1: needs 2 channels"),
    (X, W[:3], {"groups": 2}, "outputs a multiple of groups"),
    (X, W, {"groups": 0}, "groups 0: needs a whole number of at least 1"),
    (X, W, {"groups": 2.0}, "groups 2.0: needs a whole number of at least 1"),
    (X, W, {"groups": None}, "groups None: needs a whole number of at least 1"),
    (X, W, {"groups": 2, "stride": None}, "stride None: needs a whole number, or two, of"),
    (X, W, {"groups": 2, "stride": "22"}, "stride '22': needs a whole number, or two, of"),
    (X, W, {"groups": 2, "stride": 0}, "stride 0: needs a whole number, or two, of at least 1"),
    (X, W, {"groups": 2, "stride": 1.5}, "stride 1.5: needs a whole number"),
    (X, W, {"groups": 2, "padding": (1, -1)}, r"padding \(1, -1\): needs a whole number"),
    (X, W, {"groups": 2, "dilation": (1, 1, 1)}, r"dilation \(1, 1, 1\): needs a whole number"),
    (X, W, {"groups": 2, "dilation": 3}, r"the output would be \(-1, -1\); both need at least"),
    (X, W[:, :, :0], {"groups": 2}, r"kernel \(0, 3\) .* would be \(6, 3\); both need"),
    (X, W, {"groups": 2, "bias": [0] * 5}, r"bias: shape \(5,\) for 4 outputs"),
    (X, W, {"groups": 2, "bias": 0}, r"bias: shape \(\) for 4 outputs"),
    (X, W, {"groups": 2, "bias": [64, 0, 0, 0]}, "bias: code 64 is outside s7f0"),
    (X * 8, W, {"groups": 2}, "x: code 8 is outside s4f0"),
    (X, W * -9, {"groups": 2}, "w: code -9 is outside s4f0"),
    (X * 1.0, W, {"groups": 2}, "x: dtype float64 holds no codes"),
    (X[0], W, {"groups": 2}, r"x: shape \(4, 5, 5\) has 3 axes, needs 4"),
])
def test_what_a_convolution_cannot_take_is_refused(x, w, options, message):
    with pytest.raises(ValueError, match=message):
        engine.conv2d(x, w, SAT, **options)


@pytest.mark.parametrize(("error", "size", "message"), [
    ((1, 4, 3, 2), (5, 5), r"error \(1, 4, 3, 2\): an input of \(5, 5\) under w \(4, 2, 3, 3\)"),
    ((1, 2, 3, 3), (5, 5), r"needs \(N, \*\(4, 3, 3\)\)"),
    ((1, 4, 3, 3), (5, 6), r"needs \(N, \*\(4, 3, 4\)\)"),
    ((1, 4, 3, 3), (0, 5), r"size \(0, 5\): needs a whole number, or two, of at least 1"),
])
def test_an_error_of_another_convolution_has_no_gradient_of_x(error, size, message):
    with pytest.raises(ValueError, match=message):
        engine.conv2d_grad_input(np.ones(error, int), W, SAT, size, groups=2)


@pytest.mark.parametrize(("error", "kernel", "message"), [
    ((1, 4, 3, 2), (3, 3), r"needs \(N, \*\(4, 3, 3\)\)"),
    ((1, 4, 3, 3), (3, 2), r"needs \(N, \*\(4, 3, 4\)\)"),
    ((2, 4, 3, 3), (3, 3), r"x \(1, 4, 5, 5\) and error \(2, 4, 3, 3\): batches differ"),
    ((1, 3, 3, 3), (3, 3), "outputs a multiple of groups"),
])
def test_an_error_of_another_convolution_has_no_gradient_of_w(error, kernel, message):
    with pytest.raises(ValueError, match=message):
        engine.conv2d_grad_weight(X, np.ones(error, int), SAT, kernel, groups=2)
