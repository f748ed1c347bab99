"""nics_fix_pt: one tensor, row by row, against Python fractions and the numbers of its package."""

import math
import random
import re
from fractions import Fraction

import numpy as np
import pytest
import torch

import emu
import emu.compat.nics_fix_pt as nfp
import emu.compat.nics_fix_pt.quant as nfpq
from emu import reference
from emu.compat.nics_fix_pt import ranges
from emu.number import Cast, Format, Overflow, Rounding

SEED = random.Random(5)
FLOATS = torch.tensor([0.0, 1e-30, 0.24999999, 0.25, 0.3, 0.5, 0.50000006, 0.75, 0.99999994, 1.0,
                       1.1, 1.25, 1.2500001, 2.0, 7.3, 1e30])
FLOATS = torch.cat([FLOATS, -FLOATS, torch.tensor([SEED.gauss(0, 1) for _ in range(200)])])
R = {"closed": lambda b: (-2**(b - 1), 2**(b - 1)),
     "twos_complement": lambda b: (-2**(b - 1), 2**(b - 1) - 1),
     "narrow": lambda b: (1 - 2**(b - 1), 2**(b - 1) - 1)}


def rne(x: Fraction) -> int:
    """To the nearest integer, ties to even; no float."""
    return round(x)


def expected(x: float, bound: Fraction, bits: int, limits: str = "closed"
             ) -> tuple[float, bool, int]:
    """(the value, whether gradients pass, the unclipped code) by the definition."""
    step = bound / 2**(bits - 1)
    code, (low, high) = rne(Fraction(x) / step), R[limits](bits)
    return float(min(max(code, low), high) * step), low <= code <= high, code


def fixed(x, bound, bits, **more):
    return nfpq.quantize_cfg(torch.as_tensor(x), torch.tensor([bound]), torch.tensor([bits]),
                             nfp.FIX_FIXED, **more)


def auto(x, bits=8, **more):
    """(out, step, the scale that AUTO wrote)."""
    scale = torch.zeros(1)
    out, step = nfpq.quantize_cfg(torch.as_tensor(x), scale, bits, nfp.FIX_AUTO, **more)
    return out, step, scale


def test_A01_constants():
    assert nfp.__version__ == "0.4.0"
    assert (nfp.FIX_NONE, nfp.FIX_AUTO, nfp.FIX_FIXED) == (0, 1, 2)
    assert (nfp.RANGE_MAX, nfp.RANGE_3SIGMA) == (0, 1)
    assert [nfp.QuantizeMethod.FIX_NONE, nfp.QuantizeMethod.FIX_AUTO,
            nfp.QuantizeMethod.FIX_FIXED] == [0, 1, 2]
    assert [nfp.RangeMethod.RANGE_MAX, nfp.RangeMethod.RANGE_3SIGMA,
            nfp.RangeMethod.RANGE_MAX_TENPERCENT, nfp.RangeMethod.RANGE_SWEEP] == [0, 1, 2, 3]
    assert nfp.consts.QuantizeMethod is nfp.QuantizeMethod


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bits", range(1, 33))
def test_A02_closed_power_of_two(bits, dtype):
    for exponent in (-16, -1, 0, 5):
        out, step = fixed(FLOATS.to(dtype), 2.0**exponent, bits)
        want = [expected(float(x), Fraction(2)**exponent, bits)[0] for x in FLOATS]
        assert out.dtype == dtype and out.tolist() == want
        assert step.tolist() == [2.0**(exponent + 1 - bits)]


def test_A02_golden_numbers():
    x = [-2, -1.25, -1, -.75, -.25, 0, .25, .75, 1, 1.25, 2]
    assert fixed(x, 1.0, 2)[0].tolist() == [-1, -1, -1, -1, 0, 0, 0, 1, 1, 1, 1]
    for bits in range(2, 9):
        out, _ = fixed(torch.linspace(-2, 2, 4001), 1.0, bits)
        assert len(out.unique()) == 2**bits + 1
    assert fixed([-.7, .2, .9], 1.0, 1)[0].tolist() == [-1, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_A02_half_keeps_its_dtype(dtype):
    x = FLOATS.to(dtype)[torch.isfinite(FLOATS.to(dtype))]
    for bits, bound in ((2, 1.0), (8, 1.0), (16, 1.0), (20, 2.0**-10)):
        out, _ = fixed(x, bound, bits)
        assert out.dtype == dtype
        want = [expected(float(v), Fraction(bound), bits)[0] for v in x]
        assert out.tolist() == torch.tensor(want).to(dtype).tolist()


@pytest.mark.parametrize("limits", R)
@pytest.mark.parametrize("bits", [2, 3, 8, 16])
def test_A03_limits_of_one_configuration(bits, limits):
    x = FLOATS.clone().requires_grad_()
    out, _ = fixed(x, 1.0, bits, range=limits)
    out.backward(torch.ones_like(x))
    want = [expected(float(v), Fraction(1), bits, limits) for v in FLOATS]
    assert out.tolist() == [value for value, _, _ in want]
    assert x.grad.tolist() == [float(passes) for _, passes, _ in want]


def test_A03_twos_complement_is_the_cast_of_the_hardware():
    out, _ = fixed(FLOATS, 1.0, 8, range="twos_complement")
    codes = emu.quantize(FLOATS.numpy(), Cast.parse("s8f7 ties_even sat"))
    assert (out * 128).tolist() == codes.tolist()


@pytest.mark.parametrize(("data", "settings", "out", "step", "scale"), [
    ([.2513, -.5, 0], {"scale": .5, "bitwidth": 2, "method": 2}, [.25, -.5, 0], [.25], .5),
    ([.2513, -.5, 0], {"scale": .5, "bitwidth": 16, "method": 2}, [.25129700, -.5, 0], [2**-16],
     .5),
    ([.2513, -.5, 0], {"bitwidth": 2, "method": 1}, [.25, -.5, 0], [.25], .5),
    ([.2513, -.52, 0], {"bitwidth": 2, "method": 1}, [.5, -.5, 0], [.5], 1.),
    ([.2513, -.52, 0], {"bitwidth": 4, "method": 1, "range_method": 1}, [.25, -.5, 0], [.25], 2.),
    ([.2513, -.52, 0], {"bitwidth": 4, "method": 1, "float_scale": True}, [.26, -.52, 0], [.065],
     .52),
])
def test_A04_numbers_of_the_package(data, settings, out, step, scale):
    for kind in (lambda v: v, torch.tensor, lambda v: torch.tensor([v])):
        given = {key: kind(value) for key, value in settings.items()
                 if key in ("bitwidth", "method", "range_method")}
        tensor = torch.tensor([settings.get("scale", 0)])
        more = {key: settings[key] for key in ("float_scale",) if key in settings}
        found, width = nfpq.quantize_cfg(torch.tensor(data), tensor, **given, **more)
        assert np.allclose(found, out, atol=1e-7) and np.allclose(width.view(-1), step)
        assert np.isclose(tensor, scale) and tensor.shape == (1,)


def test_A04_none_is_the_same_object():
    x = torch.randn(3)
    for method in (0, torch.tensor([0]), torch.tensor(0)):
        out, step = nfpq.quantize_cfg(x, torch.tensor([0]), torch.tensor([8]), method)
        assert out is x and step is None


@pytest.mark.parametrize("exponent", [*range(-16, 40)])
def test_A05_range_max(exponent):
    for factor, up in ((1, 0), (1 - 2**-24, 0), (1 + 2**-23, 1), (1.5, 1)):
        scale = torch.zeros(1, dtype=torch.int32)
        kept = scale
        x = torch.tensor([-factor * 2.0**exponent, 0.0])
        nfpq.quantize_cfg(x, scale, 8, nfp.FIX_AUTO)
        assert scale is kept and scale.dtype == torch.float32 and scale.shape == (1,)
        assert scale.item() == 2.0**(exponent + up)


def test_A05_a_zero_tensor():
    out, step, scale = auto(torch.zeros(3))
    assert scale.item() == 1.52587890625e-05 and not out.any() and step.item() == 2.0**-23
    _, _, scale = auto(torch.zeros(3), float_scale=True)
    assert scale.item() == float(torch.tensor(1e-5))


def test_A05_changes_the_scale_in_place_only_where_it_must():
    scale = torch.zeros(1, dtype=torch.float64)
    pointer = scale.data_ptr()
    nfpq.quantize_cfg(torch.tensor([3.0]), scale, 8, nfp.FIX_AUTO)
    assert scale.item() == 4 and scale.data_ptr() == pointer and scale.dtype == torch.float64


def test_A06_three_sigma():
    for _ in range(30):
        x = torch.tensor([SEED.gauss(0.2, 1) for _ in range(SEED.randint(2, 40))])
        mean, n = float(x.double().mean()), len(x)
        deviation = math.sqrt(sum((float(v) - mean)**2 for v in x) / (n - 1))
        _, _, scale = auto(x, range_method=nfp.RANGE_3SIGMA)
        assert scale.item() == 2.0**math.ceil(math.log2(3 * deviation + abs(mean)))
    assert auto([.1, .2, -.3, .4], range_method=nfp.RANGE_3SIGMA)[2].item() == 1
    assert auto([.3], range_method=nfp.RANGE_3SIGMA)[2].item() == .5  # one value has no deviation


def test_A07_ten_percent():
    assert auto(torch.arange(1, 101) / 100, range_method=2)[2].item() == 1  # the tenth: .91
    for n in (1, 5, 9, 10, 19, 20, 57):
        x = torch.tensor([SEED.gauss(0, 4) for _ in range(n)])
        kth = sorted(map(abs, x.tolist()))[-max(1, n // 10)]
        _, step, scale = auto(x, range_method=2)
        assert scale.item() == 2.0**math.ceil(math.log2(kth)) == 128 * step.item()


def test_A08_sweep():
    for _ in range(40):
        bits = SEED.choice([2, 3, 4, 8])
        x = torch.tensor([SEED.gauss(0, 1)**3 for _ in range(SEED.randint(1, 30))])
        widest = Fraction(2)**math.ceil(math.log2(max(map(abs, x.tolist()))))
        bounds = [widest / 2**i for i in range(3)]
        errors = [sum(abs(Fraction(expected(v, bound, bits)[0]) - Fraction(v))
                      for v in x.tolist()) for bound in bounds]
        assert auto(x, bits, range_method=3)[2].item() == bounds[errors.index(min(errors))]


def test_A09_float_scale():
    out, step, scale = auto([.3, -.7], 4, float_scale=True)
    assert np.allclose(out, [.2625, -.7]) and np.allclose(step, .0875)
    assert out[1] == torch.tensor(-.7) and scale == torch.tensor(.7)


def test_A09_fixed_is_fixed_unless_it_is_to_reestimate():
    scale = torch.tensor([.7])
    nfpq.quantize_cfg(torch.tensor([-.9, .3]), scale, 4, nfp.FIX_FIXED, float_scale=True)
    assert scale == torch.tensor([.7])
    out, _ = nfpq.quantize_cfg(torch.tensor([-.9, .3]), scale, 4, nfp.FIX_FIXED, float_scale=True,
                               reestimate=True)
    assert scale == torch.tensor([.9]) and out[0] == torch.tensor(-.9)
    unset = torch.zeros(1)
    nfpq.quantize_cfg(torch.tensor([-.9, .3]), unset, 4, nfp.FIX_FIXED, float_scale=True)
    assert unset == torch.tensor([.9])


def test_A10_affine_of_the_package():
    out, step, scale = auto([.2513, -.52, 0], 4, float_scale=True, zero_point=True)
    assert np.isclose(step.item(), (.2513 + .52) / 16) and out[1] == torch.tensor(-.52)
    assert torch.equal(scale, torch.tensor([-.52, .2513]))
    levels, _ = nfpq.quantize_cfg(torch.linspace(-1, 1, 1001), torch.tensor([-.1, .75]), 2, 2,
                                  float_scale=True, zero_point=True)
    assert np.allclose(levels.unique(), [-.1, 0, .2125, .425, .6375, .75])
    again, _ = nfpq.quantize_cfg(torch.tensor([.2513, -.52, 0]), scale, 4, nfp.FIX_FIXED,
                                 float_scale=True, zero_point=True)
    assert torch.equal(again, out)
    for value in (.3, -.3, 0.):  # a constant tensor, which was NaN
        out, _, _ = auto([value, value], 4, float_scale=True, zero_point=True)
        assert torch.equal(out, torch.tensor([value, value]))


def half_away(x: Fraction) -> int:
    return math.floor(abs(x) + Fraction(1, 2)) * (-1 if x < 0 else 1)


@pytest.mark.parametrize("settings", [{"zero_point": "integer", "float_scale": True},
                                      {"zero_point": True}, {"zero_point": "integer"}])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_A10_integer_zero_point(settings, bits):
    lowest, highest = -2**(bits - 1), 2**(bits - 1) - 1
    for low, high in ((-.52, .25), (0., 3.), (-2., -.5), (.4, .9), (-1., 1.), (0., 0.)):
        x = torch.tensor([low, high, *(SEED.uniform(low, high) for _ in range(20))])
        out, step, scale = auto(x, bits, **settings)
        codes, width, zero = nfpq.zero_point_codes(x, scale, bits)
        assert Fraction(width) == Fraction(step.item())
        if not settings.get("float_scale"):
            assert math.frexp(width)[0] == .5
        assert lowest <= zero <= highest and codes.dtype == torch.int64
        want = [min(max(half_away(Fraction(v) / Fraction(width)) + zero, lowest), highest)
                for v in x.tolist()]
        assert codes.tolist() == want
        assert torch.equal(out, ((codes - zero) * step.double()).float())
        more = 1 if not settings.get("float_scale") else .5001  # nudging moves by half a step
        assert scale[0] <= min(low, 0) + more * width and scale[1] >= max(high, 0) - more * width
        fixed_out, _ = nfpq.quantize_cfg(x, scale, bits, nfp.FIX_FIXED, **settings)
        assert torch.equal(fixed_out, out)


def test_A10_integer_zero_point_in_the_mac():
    """The fake-quantised product is the integer one, requantised by `emu.rescale`."""
    torch.manual_seed(0)
    x, w = torch.rand(5, 7) * 3, torch.randn(7, 4)
    parts = []
    for tensor in (x, w):
        out, _, scale = auto(tensor, 8, zero_point=True)
        parts.append((out, *nfpq.zero_point_codes(tensor, scale, 8)))
    (xq, xc, xs, xz), (wq, wc, ws, wz) = parts
    acc = emu.matmul(xc.numpy() - xz, wc.numpy() - wz, emu.MacSpec.parse(
        "{a: s9, b: s9, acc: s32 sat}"))
    assert torch.equal(torch.from_numpy(acc.astype(np.float64)) * xs * ws,
                       xq.double() @ wq.double())
    multiplier, shift = emu.multiplier_and_shift(xs * ws / 2**-4)
    codes = emu.rescale(acc, emu.Rescale.parse(
        f"{{multiplier: {multiplier}, shift: {shift}, to: s8 ties_pos sat, output_zp: -3}}"))
    exact = [[Fraction(float(v)) * 16 for v in row] for row in (xq.double() @ wq.double())]
    assert codes.tolist() == [[min(max(math.floor(v + Fraction(1, 2)) - 3, -128), 127)
                               for v in row] for row in exact]


@pytest.mark.parametrize("range_method", range(4))
@pytest.mark.parametrize(("group", "axis"), [("batch", 0), ("channel", 1)])
def test_A11_groups(group, axis, range_method):
    torch.manual_seed(range_method)
    x = torch.randn(3, 4, 5, 2) * torch.rand(3, 4, 1, 1)
    out, step, scale = auto(x, 4, group=group, range_method=range_method)
    assert list(scale.shape) == [x.shape[axis]] and step.numel() == x.shape[axis]
    assert [n for n in step.shape if n > 1] == [x.shape[axis]] and step.dim() == 4
    for i in range(x.shape[axis]):
        part = x.select(axis, i)
        want, _, bound = auto(part, 4, range_method=range_method)
        assert torch.equal(out.select(axis, i), want) and bound == scale[i]
    again, _ = nfpq.quantize_cfg(x, scale, 4, nfp.FIX_FIXED, group=group)
    assert torch.equal(again, out)


def test_A11_channel_maxima_and_numbers_of_the_package():
    x = torch.arange(1., 13).reshape(2, 3, 2, 1)
    scale = torch.zeros(1)
    nfpq.quantize_cfg(x, scale, 8, nfp.FIX_AUTO, group="channel", float_scale=True)
    assert scale.tolist() == [8, 10, 12]
    x = torch.tensor([[.2513, -.52], [.4532, 0.]]).reshape(2, 2, 1, 1)
    _, step = nfpq.quantize_cfg(x, scale, 4, nfp.FIX_AUTO, group="batch", float_scale=True)
    assert np.allclose(step.view(-1), [.52 / 8, .4532 / 8])
    for more in ({"zero_point": True}, {"zero_point": True, "float_scale": True}):
        out, _, scale = auto(x, 4, group="batch", **more)
        assert scale.shape == (2, 2) and torch.isfinite(out).all()
        assert torch.equal(out, nfpq.quantize_cfg(x, scale, 4, nfp.FIX_FIXED, group="batch",
                                                  **more)[0])


def test_A11_gradients_at_the_bounds_are_whole():
    x = torch.tensor([1., -1., .5, 2.]).reshape(1, 1, 2, 2).requires_grad_()
    out, _ = nfpq.quantize_cfg(x, torch.ones(1), 4, nfp.FIX_FIXED, group="batch")
    out.sum().backward()
    assert x.grad.flatten().tolist() == [1, 1, 1, 0]


def test_A11_gradients_have_a_group_of_their_own():
    x = torch.randn(2, 3, 1, 1, requires_grad=True)
    scale = torch.zeros(1)
    cfg = {"method": 1, "scale": scale, "bitwidth": 3, "group": "batch"}
    data = {"method": 1, "scale": torch.zeros(1), "bitwidth": 3, "group": "channel"}
    out, _ = nfp.quantize(x, data, cfg)
    g = torch.tensor([[.3, -.9, .1], [3., 5., 1.]]).reshape(2, 3, 1, 1)
    out.backward(g)
    assert scale.tolist() == [1, 8] and data["scale"].shape == (3,)
    assert torch.equal(x.grad, auto(g, 3, group="batch")[0])


def test_A12_stochastic_rounding_is_that_of_the_verilog():
    for bits, exponent in ((2, 0), (4, -3), (8, 2)):
        out, _ = fixed(FLOATS, 2.0**exponent, bits, stochastic=True, seed=7)
        loads = reference.load_words(7, 0, "nics_fix_pt", "", 0)
        rand = reference.random_operands(len(FLOATS), 16, loads)
        to = Cast(Format(40, bits - 1 - exponent), Rounding.STOCHASTIC, Overflow.SAT, 16)
        top = 2**(bits - 1)
        step = 2.0**(exponent + 1 - bits)
        want = [min(max(reference.quantize(float(x), to, r), -top), top) * step for x, r
                in zip(FLOATS, rand, strict=True) if abs(x) < 1e6]
        assert [y for x, y in zip(FLOATS, out.tolist(), strict=True) if abs(x) < 1e6] == want


def test_A12_stochastic_rounding_rounds_as_often_as_the_fraction_says():
    x = torch.full((20000,), .3)
    torch.manual_seed(1)
    first, step = fixed(x, 1.0, 3, stochastic=True)
    assert step.item() == .25 and set(first.tolist()) == {.25, .5}
    assert abs(float(first.mean()) - .3) < .002 and torch.equal(x, torch.full((20000,), .3))
    second, _ = fixed(x, 1.0, 3, stochastic=True)
    torch.manual_seed(1)
    again, _ = fixed(x, 1.0, 3, stochastic=True)
    assert torch.equal(first, again) and not torch.equal(first, second)
    y = torch.full((64,), .3, requires_grad=True)
    out, _ = auto(y, 3, stochastic=True, float_scale=True)[:2]
    out.sum().backward()
    assert y.grad.tolist() == [1] * 64


def test_A13_gradients_pass_where_the_rounded_value_is_inside():
    x = torch.tensor([-1.3, -1.2, -1, -.3, .3, 1, 1.2, 1.3], requires_grad=True)
    out, _ = fixed(x, 1.0, 2)
    out.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 1, 0]
    x = FLOATS.clone().requires_grad_()
    fixed(x, .5, 5)[0].sum().backward()
    assert x.grad.tolist() == [float(expected(float(v), Fraction(1, 2), 5)[1]) for v in FLOATS]
    for method, more in ((1, {}), (1, {"float_scale": True}), (1, {"range_method": 3})):
        x = torch.randn(50, requires_grad=True)
        scale = torch.zeros(1)
        nfpq.quantize_cfg(x, scale, 4, method, **more)[0].sum().backward()
        want = [float(expected(float(v), Fraction(float(scale)), 4)[1])
                for v in x.tolist()]
        assert x.grad.tolist() == want


def test_A13_straight_through_functions():
    x = torch.tensor([.4, .5, 1.5, -2.5], requires_grad=True)
    y = nfpq.StraightThroughRound().apply(x)
    assert y.tolist() == [0, 0, 2, -2]
    (y * torch.arange(4.)).sum().backward()
    assert x.grad.tolist() == [0, 1, 2, 3]
    x = torch.full((100,), .5, requires_grad=True)
    y = nfpq.StraightThroughStochasticRound().apply(x)
    assert set(y.tolist()) == {0, 1}
    y.sum().backward()
    assert x.grad.tolist() == [1] * 100
    torch.manual_seed(3)
    x = torch.full((100,), 2.5)
    assert set(nfpq.StraightThroughStochasticRound.apply(x).tolist()) == {2, 3}


def test_A14_gradient_quantisation():
    x = torch.tensor([1., 2.], requires_grad=True)
    scale = torch.zeros(1, dtype=torch.int32)
    y = nfpq.QuantitizeGradient().apply(x, scale, torch.tensor([2]), 1)
    assert torch.equal(y, x) and y is not x
    y.backward(torch.tensor([.5, .26]))
    assert x.grad.tolist() == [.5, .25] and scale.item() == .5


def test_A14_upstream_then_gradient_then_mask():
    w = torch.tensor([.2, 1.4], requires_grad=True)
    out, _ = nfp.quantize(w, {"method": 2, "scale": torch.tensor([1.]), "bitwidth": 4},
                          {"method": 2, "scale": torch.tensor([1.]), "bitwidth": 2})
    out.backward(torch.tensor([.3, .3]))
    assert w.grad.tolist() == [.5, 0]


def test_A14_each_use_is_quantised_alone():
    w = torch.tensor([1.], requires_grad=True)
    cfg = {"method": 2, "scale": torch.tensor([1.]), "bitwidth": 2}
    total = sum(nfp.quantize(w, {}, cfg)[0] * .3 for _ in range(2))
    total.backward()
    assert w.grad.tolist() == [1.0]
    grad_scale = torch.zeros(1)
    w = torch.tensor([1.], requires_grad=True)
    (nfp.quantize(w, {}, {**cfg, "method": 1, "scale": grad_scale})[0] * 0).sum().backward()
    assert grad_scale.item() == 2.0**-16


def test_A15_quantize_returns_the_step_and_what_held():
    x = torch.tensor([.2513, -.52, 0.], requires_grad=True)
    data = {"method": torch.tensor([1]), "scale": torch.tensor([0]), "bitwidth": torch.tensor([4])}
    grad = {"method": 0, "scale": torch.tensor([0]), "bitwidth": torch.tensor([4])}
    out, step = nfp.quantize(x, data, grad, name="weight")
    assert step.tolist() == [.125] and out.nfp_actual_data is x
    assert out.data_cfg == data and out.data_cfg is not data
    assert out.data_cfg["scale"] is data["scale"] and out.grad_cfg == grad
    out, step = nfp.quantize(x, data, kwarg_cfg={"weight_fix": {"bitwidth": 2}}, name="weight")
    assert step.tolist() == [.5] and out.data_cfg["bitwidth"] == 2
    out, _ = nfp.quantize(x, data, {**grad, "bitwidth": 4}, {"weight_grad_fix": {
        "method": 1, "bitwidth": 2}}, "weight")
    out.backward(torch.tensor([.5, .26, 0.]))
    assert x.grad.tolist() == [.5, .25, 0] and grad["method"] == 0 and grad["scale"] == .5
    y = torch.randn(2)
    out, step = nfp.quantize(y)
    assert out is y and step is None and out.data_cfg == {}
    out, step = nfp.quantize(y, {"method": torch.tensor([0]), "scale": 0, "bitwidth": 8})
    assert out is y and step is None


def test_A30_older_spellings():
    assert nfpq.quantitize is nfpq.quantize is nfp.quantitize
    assert nfpq.quantitize_cfg is nfpq.quantize_cfg
    out, step = nfpq._do_quantize(torch.tensor([.3, -2.]), torch.tensor([1.]), torch.tensor([2]))
    assert out.tolist() == [.5, -1] and step.tolist() == [.5]
    ends = torch.tensor([-.1, .75])
    out, step = nfpq._do_quantize(torch.tensor([.3, -2.]), ends, 2, symmetric=False)
    assert np.allclose(out, [.2125, -.1]) and np.allclose(step, .2125)
    assert nfpq._do_quantitize is nfpq._do_quantize
    assert nfp.nn_fix.ActivationFix is nfp.nn_fix.Activation_fix


@pytest.mark.parametrize(("settings", "says"), [
    ({"method": 2}, "never set"), ({"method": 2, "scale": torch.tensor([-1])}, "never set"),
    ({"method": 2, "scale": torch.tensor([math.nan])}, "never set"),
    ({"method": 2, "scale": torch.ones(3)}, "scale of shape [3]"),
    ({"method": 2, "scale": torch.ones(3), "group": "batch"}, "scale of shape [3], needs [2]"),
    ({"method": 2, "scale": torch.ones(1), "zero_point": True}, "needs [2]"),
    ({"method": 5}, "method 5 is not legal"), ({"bitwidth": 0}, "bitwidth 0"),
    ({"bitwidth": torch.tensor(33)}, "bitwidth 33"), ({"group": "rows"}, "group 'rows'"),
    ({"range": "open"}, "range 'open'"), ({"zero_point": "int"}, "zero_point 'int'"),
    ({"method": 2, "scale": torch.tensor([2.0**-100]), "bitwidth": 32}, "no normal float32"),
])
def test_A33_errors_say_what_is_wrong(settings, says):
    given = {"scale": torch.zeros(1), "bitwidth": 8, "method": 1, **settings}
    with pytest.raises(ValueError, match=re.escape(says)):
        nfpq.quantize_cfg(torch.randn(2, 2, 2, 2), **given)


def test_A33_what_has_no_range():
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"fc\.weight: has values that are not finite"):
            nfpq.quantize_cfg(torch.tensor([1., bad]), torch.zeros(1), 8, 1, name="fc.weight")
    assert fixed([math.inf, -math.inf], 1.0, 8)[0].tolist() == [1, -1]
    out, _, scale = auto(torch.zeros(0))
    assert out.numel() == 0 and scale.item() == 2.0**-16
    for more in ({"range_method": 1, "float_scale": True}, {"range_method": 9},
                 {"range_method": 1, "zero_point": True}):
        with pytest.raises(NotImplementedError):
            auto(torch.randn(4), **more)
    with pytest.raises(ValueError, match="w: its configuration has a method and no scale"):
        nfp.quantize(torch.randn(2), {"method": 1, "bitwidth": 8}, name="w")


def test_A34_powers_of_two_of_many():
    values = torch.tensor([2.0**e * f for e in range(-140, 120, 7) for f in (1, 1.1, 1.9999999)],
                          dtype=torch.float64)
    assert ranges.powers_of_two(values).tolist() == list(map(ranges.power_of_two, values.tolist()))
    assert [ranges.power_of_two(v) for v in (1.0, 1.1, .5, .49)] == [1, 2, .5, .5]
