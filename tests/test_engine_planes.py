"""Images of every width into planes and back: convolutions against im2col, which has no planes."""

import numpy as np
import pytest

from emu import MacSpec, engine

WIDTHS = [1, 2, 7, 8, 9, 15, 16, 17, 24, 31, 40]  # around what is moved at once
HARDWARE = ["a: s8, b: s8, acc: s20", "a: u8, b: s8, acc: s32", "a: s8, b: s8, acc: s16 sat",
            "a: s12, b: s8, acc: s24 sat", "a: s8, b: s8, acc: s40"]


def codes(rng, form, shape, dtype=None) -> np.ndarray:
    """Codes over the whole range; at both ends of every row those that differ most from zero."""
    x = rng.integers(form.lo, form.hi + 1, shape)
    x[..., 0], x[..., -1] = form.lo or form.hi, form.hi
    return x.astype(dtype or ("i1" if form.width - 1 < 8 and form.signed else "i2"))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("text", HARDWARE)
def test_images_of_every_width_agree(text, stride):
    mac, rng = MacSpec.parse(f"{{{text}}}"), np.random.default_rng(stride)
    w = codes(rng, mac.b, (5, 2, 2, 3))
    for width in WIDTHS:
        for padding in (0, 1, 3):
            if width + 2 * padding < 3:
                continue
            geometry = {"stride": stride, "padding": (1, padding)}
            x = codes(rng, mac.a, (2, 2, 4, width))
            want = engine.conv2d(x, w, mac, path="plain", **geometry)
            assert np.array_equal(engine.conv2d(x, w, mac, **geometry), want), (width, padding)
            error = codes(rng, mac.a, want.shape)
            back = [engine.conv2d_grad_input(error, w, mac, x.shape[2:], path=path, **geometry)
                    for path in (None, "plain")]
            assert np.array_equal(*back), (width, padding)


def test_images_that_may_not_be_written_or_lie_apart_agree():
    mac, rng = MacSpec.parse("{a: s8, b: s8, acc: s20}"), np.random.default_rng(0)
    x, w = codes(rng, mac.a, (2, 18, 9, 3)).transpose(0, 3, 2, 1), codes(rng, mac.b, (4, 3, 3, 3))
    want = engine.conv2d(x, w, mac, path="plain", padding=1)
    assert np.array_equal(engine.conv2d(x, w, mac, padding=1), want)
    x = np.ascontiguousarray(x)
    x.flags.writeable = False
    assert np.array_equal(engine.conv2d(x, w, mac, padding=1), want)
    assert np.array_equal(engine.conv2d(x.astype(">i8"), w, mac, padding=1), want)


def test_an_image_far_beyond_its_outputs_agrees():
    """A stride that leaves phases, and whole rows, without any pixel."""
    mac, rng = MacSpec.parse("{a: s8, b: s8, acc: s20}"), np.random.default_rng(0)
    for size, stride, padding in (((1, 1), 2, 4), ((2, 9), 7, 3), ((9, 2), 2, 5)):
        x, w = codes(rng, mac.a, (2, 2, *size)), codes(rng, mac.b, (4, 2, 3, 3))
        geometry = {"stride": stride, "padding": padding, "dilation": padding}
        want = engine.conv2d(x, w, mac, path="plain", **geometry)
        assert np.array_equal(engine.conv2d(x, w, mac, **geometry), want)
