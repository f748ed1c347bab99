"""The border between tensors and codes: exact, or refused by name."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emu import Cast, Format, LayerSpec, Overflow, Rounding, nn, reference
from emu.nn import border

DTYPES = [torch.float32, torch.float64]
# The widest formats, and the finest and coarsest binary points, of each carrier.
LIMITS = [(torch.float32, text) for text in ("s25f0", "u24f0", "s25f126", "s25f-102", "u24f-102",
                                             "s1f126", "s8f126", "s8f-119")]
LIMITS += [(torch.float64, text) for text in ("s54f0", "u53f0", "s54f512", "s54f-512", "u53f-512")]
BEYOND = [(torch.float32, "s26f0", "has 25 magnitude bits, torch.float32 carries 24"),
          (torch.float32, "u25f0", "has 25 magnitude bits, torch.float32 carries 24"),
          (torch.float64, "s55f0", "has 54 magnitude bits, torch.float64 carries 53"),
          (torch.float64, "u54f0", "has 54 magnitude bits, torch.float64 carries 53"),
          (torch.float32, "s8f127", "has frac 127, torch.float32 carries -119 to 126"),
          (torch.float32, "s8f-120", "has frac -120, torch.float32 carries -119 to 126"),
          (torch.float32, "s25f-103", "has frac -103, torch.float32 carries -102 to 126")]


def values(codes, frac) -> list[Fraction]:
    """What codes stand for."""
    return [Fraction(int(code)) / Fraction(2)**frac for code in codes]


@st.composite
def carried_codes(draw, dtype):
    """Codes of a format that `dtype` carries, and the format."""
    signed, frac = draw(st.booleans()), draw(st.integers(-70, 120))
    form = Format(draw(st.integers(1, border.CARRIERS[dtype][0] + signed)), frac, signed)
    code = st.sampled_from([form.lo, form.hi, 0]) | st.integers(form.lo, form.hi)
    return np.array(draw(st.lists(code, min_size=1, max_size=6))), form


@st.composite
def casts(draw):
    """Casts of every rounding and overflow."""
    form = Format(draw(st.integers(2, 20)), draw(st.integers(-20, 20)), draw(st.booleans()))
    rounding = draw(st.sampled_from(Rounding))
    bits = draw(st.integers(1, 8)) if rounding == Rounding.STOCHASTIC else 0
    return Cast(form, rounding, draw(st.sampled_from(Overflow)), bits)


def edges(form: Format) -> np.ndarray:
    """The ends of a format, powers of two and their neighbours."""
    near = {sign * (1 << k) + d for k in range(form.width) for sign in (-1, 1) for d in (-1, 0, 1)}
    return np.array(sorted(code for code in near | {0} if form.lo <= code <= form.hi))


@pytest.mark.parametrize("dtype, text", LIMITS)
def test_a_code_of_a_widest_format_is_its_float_exactly(dtype, text):
    form = Format.parse(text)
    codes = edges(form)
    got = border.to_tensor(codes, form, dtype, "y").tolist()
    assert [Fraction(value) for value in got] == values(codes, form.frac)


@pytest.mark.parametrize("dtype, text", LIMITS)
def test_a_code_of_a_widest_format_comes_back(dtype, text):
    form = Format.parse(text)
    codes = edges(form)
    got = border.to_codes(border.to_tensor(codes, form, dtype, "y"), "y")
    assert values(*got) == values(codes, form.frac)


@pytest.mark.parametrize("dtype, text", LIMITS)
def test_a_float_of_a_widest_format_is_normal(dtype, text):
    form = Format.parse(text)
    got = border.to_tensor(edges(form), form, dtype, "y").abs()
    assert got[got > 0].min() >= torch.finfo(dtype).tiny
    assert got.max() <= torch.finfo(dtype).max


@pytest.mark.parametrize("dtype, text, message", BEYOND)
def test_a_format_beyond_its_carrier_is_refused(dtype, text, message):
    with pytest.raises(ValueError, match=f"fc.y: {text} {message}"):
        border.to_tensor(np.zeros(1, np.int64), Format.parse(text), dtype, "fc.y")


def test_a_format_beyond_float32_is_told_the_way_out():
    with pytest.raises(ValueError, match=r"use model\.double\(\) and float64 inputs"):
        border.check_carrier(Format.parse("s26"), torch.float32, "fc.y")


def test_float64_carries_the_first_whole_number_that_float32_does_not():
    codes = np.array([2**24 + 1])
    got = border.to_tensor(codes, Format.parse("u25"), torch.float64, "y")
    assert int(got) == 2**24 + 1


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.data())
def test_codes_make_the_round_trip(dtype, data):
    codes, form = data.draw(carried_codes(dtype))
    found, frac = border.to_codes(border.to_tensor(codes, form, dtype, "y"), "y")
    assert (found.dtype, values(found, frac)) == (np.int64, values(codes, form.frac))


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.data(), casts())
def test_any_float_enters_a_cast_exactly(dtype, data, to):
    width = torch.finfo(dtype).bits
    floats = st.floats(allow_nan=False, allow_infinity=False, width=width)
    x = data.draw(st.lists(floats, min_size=1, max_size=4))
    codes, frac = border.to_codes_for(torch.tensor(x, dtype=dtype), to, "x")
    rand = (1 << to.rand_bits) // 3
    assert ([reference.cast(int(code), frac, to, rand) for code in codes]
            == [reference.quantize(value, to, rand) for value in x])


@pytest.mark.parametrize("dtype, bits", [(torch.float32, 149), (torch.float64, 1074)])
def test_a_subnormal_enters_exactly(dtype, bits):
    codes, frac = border.to_codes(torch.tensor([3 * 2.0**-bits], dtype=dtype), "x")
    assert (codes.tolist(), frac) == ([3], bits)


def test_codes_are_taken_at_the_coarsest_binary_point():
    codes, frac = border.to_codes(torch.tensor([12.0, -20.0]), "x")
    assert (codes.tolist(), frac) == ([3, -5], -2)


def test_tensors_of_any_layout_keep_their_order():
    x = torch.arange(6.0).reshape(2, 3).T
    codes, frac = border.to_codes(x, "x")
    assert (codes.tolist(), frac) == ([[0, 3], [1, 4], [2, 5]], 0)


@pytest.mark.parametrize("codes, want", [([0], "s1f3"), ([1], "s2f3"), ([-1], "s1f3"),
                                         ([-128, 5], "s8f3"), ([128, -1], "s9f3"), ([], "s1f3")])
def test_codes_are_held_by_the_narrowest_signed_format(codes, want):
    assert str(border.holding(np.array(codes, np.int64), 3)) == want


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("enter", [
    border.to_codes, lambda x, name: border.to_codes_for(x, Cast.parse("s8"), name)])
def test_what_is_not_finite_is_refused_by_name(enter, bad):
    with pytest.raises(ValueError, match=f"conv1.x: {bad} is not finite; codes hold numbers only"):
        enter(torch.tensor([1.0, bad]), "conv1.x")


def test_values_too_far_apart_for_one_grid_are_refused_by_name():
    with pytest.raises(ValueError, match=r"pool.x: off the grid: the values span 63 bits"):
        border.to_codes(torch.tensor([2.0**62, 1.0]), "pool.x")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_a_dtype_that_carries_no_codes_is_refused_by_name(dtype):
    with pytest.raises(ValueError, match=f"fc.x: dtype {dtype} carries no codes; use float32 or"):
        border.to_codes(torch.zeros(2, dtype=dtype), "fc.x")


def test_a_tensor_on_another_device_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^fc.x: on meta; it has no values; use .to_empty"):
        border.to_codes(torch.zeros(2, device="meta"), "fc.x")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_layer_names_the_tensor_that_is_not_finite(bad):
    layer = nn.Activation(spec={"y": "s8 auto:max"})
    with pytest.raises(ValueError, match=f"activation.y: {bad} is not finite"):
        layer(torch.tensor([bad]))


@pytest.mark.parametrize(("text", "want"), [("s8 sat", 127), ("s8", 0), ("s8 sat_zero", 0)])
def test_a_finite_value_of_any_size_enters_by_its_cast(text, want):
    layer = nn.Layer("fc", LayerSpec.parse({"x": text}), nn.Hardware(None, nn.Backend()))
    got = layer.enter("x", torch.tensor([2.0**1000], dtype=torch.float64), training=False)
    assert got.codes.tolist() == [want]
