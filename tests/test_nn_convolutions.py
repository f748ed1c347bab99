"""Convolutions along a line and transposed ones, forward and backward, against Python ints."""

from dataclasses import replace

import integer_network as ints
import pytest
import torch
from fixed_layers import expected, give, hardware, passed, tensor
from integer_network import Grid, shape_of, shaped, some

from emu import nn, reference
from emu.nn.modules import fixed

MACS = ["{acc: s9 sat}", "{acc: s9 wrap, lanes: 4}", "{acc: s9 sat, block: 2}",
        "{product: s7f-2 ties_even sat, acc: s8f-2 sat}",
        "{acc: s9 sat, tile: 2, outer: s8f-2 ties_even sat}"]
PASSES = ["forward", "grad_input", "grad_weight"]
LINES, IMAGES = some((2, 4, 7), 220, 5, 1), some((2, 4, 3, 4), 220, 5, 2)
B = Grid([9, -200, 77, 3], 6)


def image(x: Grid) -> Grid:
    """Lines (N, C, L) as images one pixel high."""
    return Grid([[[line] for line in channels] for channels in x.codes], x.frac)


class Line(ints.Layer):
    """A layer of images at work on lines."""

    def __init__(self, of):
        self.of = of

    def forward(self, x, w, *b):
        return self._line(self.of.forward(image(x), image(w), *b))

    def backward(self, grad):
        x, w, *b = self.of.backward(image(grad))
        return [self._line(x), self._line(w), *b]

    def _line(self, x):
        return Grid([[rows[0] for rows in channels] for channels in x.codes], x.frac)


class ConvTranspose2d(ints.Contraction):
    """x (N, C, H, W), w (C, O/groups, KH, KW): the convolution's input gradient."""

    def __init__(self, site, spec, stride=(1, 1), padding=(0, 0), output_padding=(0, 0),
                 dilation=(1, 1), groups=1):
        super().__init__(site, spec)
        self.extra = output_padding
        self.geometry = {"stride": stride, "padding": padding, "dilation": dilation,
                         "groups": groups}

    def outputs(self, bias):
        batch, _, *size = shape_of(self.x.codes)
        _, share, *kernel = shape_of(self.w.codes)
        out = [(n - 1) * s - 2 * p + d * (k - 1) + 1 + e for n, k, s, p, d, e in zip(
            size, kernel, *list(self.geometry.values())[:3], self.extra, strict=True)]
        channels, mac = share * self.geometry["groups"], self.spec.forward
        terms = reference.conv2d_grad_input_terms(self.x.codes, self.w.codes, out, **self.geometry,
                                                  block=mac.block)
        pixels = out[0] * out[1]
        codes = [reference.dot(*pair, mac, bias[i // pixels % channels] if bias else 0)
                 for i, pair in enumerate(terms)]
        return shaped(codes, (batch, channels, *out))

    def input_gradients(self, error):
        return ints.like(reference.conv2d(error, self.w.codes, self.spec.grad_input,
                                          **self.geometry), self.x.codes)

    def weight_gradients(self, error):
        _, _, *kernel = shape_of(self.w.codes)
        mac = self.spec.grad_weight
        swapped = replace(mac, a=mac.b, b=mac.a)
        return ints.like(reference.conv2d_grad_weight(error, self.x.codes, swapped, kernel,
                                                      **self.geometry), self.w.codes)

    def samples(self, error):
        return error


def compared(module, twin, x, w, *b):
    """(got, want) of one pass through a module."""
    give(module, w, *b)
    with torch.no_grad():
        grad = some(tuple(module.eval()(tensor(x)).shape), 90, 5, 7)
    return passed(module.train(), x, grad), expected(twin, x, grad, w, *b)


def conv1d(spec, stride=1, padding=0, dilation=1, groups=1, bias=True, torch_padding=None):
    """(got, want) of a Conv1d."""
    module = fixed(torch.nn.Conv1d)(4, 4, 3, stride, padding if torch_padding is None else
                                    torch_padding, dilation, groups, bias, spec=spec)
    twin = ints.Conv2d("conv1d", spec, stride=(1, stride), padding=(0, padding),
                       dilation=(1, dilation), groups=groups)
    return compared(module, Line(twin), LINES, some((4, 4 // groups, 3), 70, 5, 3),
                    *[B] * bias)


def transposed(spec, stride=(1, 1), padding=(0, 0), output_padding=(0, 0), dilation=(1, 1),
               groups=1):
    """(got, want) of a ConvTranspose2d."""
    module = fixed(torch.nn.ConvTranspose2d)(4, 4, (2, 3), stride, padding, output_padding, groups,
                                             True, dilation, spec=spec)
    twin = ConvTranspose2d("convtranspose2d", spec, stride, padding, output_padding, dilation,
                           groups)
    return compared(module, twin, IMAGES, some((4, 4 // groups, 2, 3), 70, 5, 3), B)


@pytest.mark.parametrize("geometry", [
    {}, {"stride": 2}, {"padding": 2, "bias": False}, {"dilation": 2, "groups": 2},
    {"stride": 3, "padding": 1, "groups": 4}, {"padding": 1, "torch_padding": "same"}], ids=str)
def test_a_convolution_along_a_line_agrees_in_every_pass(geometry):
    got, want = conv1d(hardware(), **geometry)
    assert got == want


@pytest.mark.parametrize("mac", MACS)
@pytest.mark.parametrize("name", PASSES)
def test_every_pass_along_a_line_has_its_own_mac(name, mac):
    got, want = conv1d(hardware(**{name: mac}), padding=1)
    assert got == want


@pytest.mark.parametrize("geometry", [
    {}, {"stride": (2, 2), "padding": (1, 1), "output_padding": (1, 1)},
    {"stride": (3, 2), "output_padding": (2, 1), "groups": 2},
    {"dilation": (2, 1), "padding": (0, 1), "groups": 4}], ids=str)
def test_a_transposed_convolution_agrees_in_every_pass(geometry):
    got, want = transposed(hardware(), **geometry)
    assert got == want


@pytest.mark.parametrize("mac", MACS)
@pytest.mark.parametrize("name", PASSES)
def test_every_pass_of_a_transposed_convolution_has_its_own_mac(name, mac):
    got, want = transposed(hardware(**{name: mac}), stride=(2, 1))
    assert got == want


def test_a_transposed_convolution_along_a_line_is_that_of_images_one_pixel_high():
    spec = hardware(grad_weight="{acc: s9 sat, lanes: 4}")
    module = fixed(torch.nn.ConvTranspose1d)(4, 4, 3, 2, 1, 1, 2, spec=spec)
    twin = ConvTranspose2d("convtranspose1d", spec, (1, 2), (0, 1), (0, 1), groups=2)
    got, want = compared(module, Line(twin), LINES, some((4, 2, 3), 70, 5, 3), B)
    assert got == want


@pytest.mark.parametrize(("module", "x", "axes"), [
    (torch.nn.Conv1d(4, 4, 3), LINES, "N, C, L"),
    (torch.nn.ConvTranspose1d(4, 4, 3), LINES, "N, C, L"),
    (torch.nn.ConvTranspose2d(4, 4, 3), IMAGES, "N, C, H, W")], ids=str)
def test_input_without_a_batch_is_refused(module, x, axes):
    model = nn.fix(torch.nn.Sequential(module), {"default": dict(vars(hardware()))})
    with pytest.raises(ValueError, match=rf"layer '0': x .*; needs \({axes}\)"):
        model(tensor(x)[0])
