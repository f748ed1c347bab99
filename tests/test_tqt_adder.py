"""AdderNet: sums of absolute differences, from the definition to a layer."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from conv_cases import drawn_layer, drawn_mac
from engine_cases import accounted, watched
from fixed_layers import tensor
from hypothesis import given
from hypothesis import strategies as st
from integer_network import flat, some

from emu import Format, LayerSpec, MacSpec, engine, nn, reference

SUM = MacSpec.parse("{a: s8, b: s8, acc: s8 sat}")


def plain(mac: MacSpec) -> MacSpec:
    """The same register behind exact products."""
    items = {key: value for key, value in vars(mac).items() if key != "product"}
    return MacSpec(**items) if mac.acc.format.frac == 0 else MacSpec(
        mac.a, mac.b, mac.acc.with_frac(0), None, mac.lanes, mac.block)


def drawn(rng: np.random.Generator, form: Format, shape: tuple) -> np.ndarray:
    return rng.integers(form.lo, form.hi + 1, shape)


def test_the_accumulator_is_fitted_after_every_step():
    assert reference.adder_dot([100, 100], [-100, 100], SUM) == -128
    assert reference.adder_dot([100, 0], [-100, 0], SUM, 127) == -73
    wrap = MacSpec.parse("{a: s8, b: s8, acc: s8}")
    assert reference.adder_dot([100, 100], [-100, 100], wrap) == 56
    assert [acc for acc, _ in reference.adder_steps([9, 8, 7], [0, 0, 9], SUM)] == [-9, -17, -19]
    lanes = MacSpec.parse("{a: s8, b: s8, acc: s6 sat, lanes: 2}")
    assert list(reference.adder_steps([9, 8, 7], [0, 0, 9], lanes, 31)) == [(14, False),
                                                                            (12, False)]


def test_wide_accumulators_are_the_sum_in_python_ints():
    rng = np.random.default_rng(1)
    x, w = rng.integers(-128, 128, (2, 30)).tolist()
    mac = MacSpec.parse("{a: s8, b: s8, acc: s30 sat, lanes: 4, tile: 8, outer: s40}")
    assert reference.adder_dot(x, w, mac, 77) == 77 - sum(abs(a - b) for a, b in
                                                          zip(x, w, strict=True))


@pytest.mark.parametrize("seed", range(40))
def test_D11_the_engine_equals_the_definition(seed):
    """Every register of `drawn_mac`: rounding and overflow, lanes, blocks, two levels."""
    rng = np.random.default_rng(seed)
    mac, layer = drawn_mac(rng), drawn_layer(rng)
    while math.prod(layer["error"]) * math.prod(layer["w"][1:]) > 3000:
        layer = drawn_layer(rng)
    x, w = drawn(rng, mac.a, layer["x"]), drawn(rng, mac.b, layer["w"])
    unit = plain(mac)
    bias = drawn(rng, unit.result.format, layer["w"][:1])
    got = engine.adder2d(x, w, unit, bias, **layer["geometry"])
    assert flat(got.tolist()) == reference.adder2d(x.tolist(), w.tolist(), unit, bias.tolist(),
                                                   **layer["geometry"])
    wide = max(mac.a.width, mac.b.width) + 2
    grads = MacSpec.parse({"a": f"s{wide}", "b": "s8", "acc": str(mac.acc.with_frac(0)),
                           "lanes": mac.lanes, "block": mac.block})
    error, limit = drawn(rng, Format(8), layer["error"]), int(rng.choice([1, 5, 64]))
    if limit > grads.a.hi:
        limit = 1
    lists = [codes.tolist() for codes in (x, w, error)]
    assert flat(engine.adder2d_grad_weight(x, w, error, grads, **layer["geometry"]).tolist()) == (
        reference.adder2d_grad_weight(*lists, grads, **layer["geometry"]))
    assert flat(engine.adder2d_grad_input(
        x, w, error, grads, limit, **layer["geometry"]).tolist()) == (
            reference.adder2d_grad_input(*lists, grads, limit, **layer["geometry"]))


def test_gradients_may_cast_their_products():
    rng = np.random.default_rng(3)
    mac = MacSpec.parse("{a: s6, b: s8, product: s10f-2 ties_even sat, acc: s12f-2 sat, lanes: 2}")
    x, w, error = (rng.integers(-9, 9, shape) for shape in ((2, 2, 4, 4), (3, 2, 2, 2),
                                                            (2, 3, 3, 3)))
    lists = [codes.tolist() for codes in (x, w, error)]
    geometry = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    assert flat(engine.adder2d_grad_weight(x, w, error, mac).tolist()) == (
        reference.adder2d_grad_weight(*lists, mac, **geometry))
    assert flat(engine.adder2d_grad_input(x, w, error, mac, 4).tolist()) == (
        reference.adder2d_grad_input(*lists, mac, 4, **geometry))


@given(st.lists(st.integers(-2**20, 2**20), min_size=1, max_size=9), st.integers(-9, 30))
def test_the_factor_is_the_nearest_of_24_bits(grad, frac):
    code, fine = engine.adder_factor(np.array(grad), frac)
    assert (code, fine) == reference.adder_factor(grad, frac)
    if not any(grad):
        assert (code, fine) == (0, 0)
        return
    assert 2**23 <= code <= 2**24
    square = Fraction(len(grad), 25 * sum(c * c for c in grad)) * Fraction(4)**frac
    low, high = (Fraction(2 * code + side, 2) / Fraction(2)**fine for side in (-1, 1))
    assert low**2 <= square < high**2


def test_a_normalised_gradient_has_the_norm_of_the_layer():
    grad = np.array([[3, -1, 4], [1, -5, 9]])
    code, fine = engine.adder_factor(grad, 3)
    norm = math.sqrt((grad.astype(float)**2).sum()) / 8 * code / 2**fine
    assert round(norm, 5) == 0.48990 == round(math.sqrt(6) / 5, 5)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: engine.adder2d(np.ones((1, 1, 2, 2), int), np.ones((1, 1, 1, 1), int),
                            MacSpec.parse("{a: s8, b: s8, product: s4f-3, acc: s8f-3}")),
     "no products to cast"),
    (lambda: reference.adder_dot([1], [1], MacSpec.parse(
        "{a: s8, b: s8, product: s4f-3, acc: s8f-3}")), "no products to cast"),
    (lambda: engine.adder2d(np.full((1, 1, 2, 2), 300), np.ones((1, 1, 1, 1), int), SUM),
     "code 300 is outside"),
    (lambda: engine.adder2d(np.ones((1, 1, 2, 2), int), np.ones((1, 1, 1, 1), int), SUM, [1, 2]),
     "bias: shape"),
    (lambda: engine.adder2d_grad_weight(np.full((1, 1, 1, 1), 100), np.full((1, 1, 1, 1), -100),
                                        np.ones((1, 1, 1, 1), int), SUM), "a bit more"),
    (lambda: engine.adder2d_grad_input(np.ones((1, 1, 1, 1), int), np.ones((1, 1, 1, 1), int),
                                       np.ones((1, 1, 1, 1), int), SUM, 128), "limit 128"),
])
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# The layer.

HARDWARE = {
    "x": "s6f3 ties_even sat", "w": "s5f4 ties_away sat", "b": "s8f5 to_zero sat",
    "y": "s8f2 ties_pos sat", "error": "s6f4 ties_even sat", "grad_w": "s10f5 ties_odd sat",
    "grad_b": "s6f3 to_odd sat", "forward": {"acc": "s9 sat", "lanes": 2},
    "grad_input": {"acc": "s12 sat"}, "grad_weight": {"acc": "s16"},
    "grad_bias": {"acc": "s10 sat"}}
GEOMETRY = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}
X, W, B, GRAD = (some((2, 2, 5, 6), 40, 4, 1), some((3, 2, 3, 2), 40, 5, 2),
                 some((3,), 200, 6, 4), some((2, 3, 3, 4), 40, 5, 3))


def cast(name: str, codes: list[int], frac: int) -> tuple[list[int], list[bool]]:
    to = getattr(LayerSpec.parse(HARDWARE), name)
    return ([reference.cast(c, frac, to) for c in codes],
            [reference.passes(c, frac, to) for c in codes])


def by_definition(normalise: bool) -> dict[str, list[float]]:
    """The layer on Python ints: x of frac 3 and w of frac 4 meet at frac 4."""
    spec = LayerSpec.parse(HARDWARE)
    (x, mx), (w, mw) = cast("x", flat(X.codes), 4), cast("w", flat(W.codes), 5)
    b, mb = cast("b", B.codes, 6)
    preload = [reference.cast(c, 5, spec.b.with_frac(4)) for c in b]
    nested = lambda leaves, shape: np.array(leaves).reshape(shape).tolist()  # noqa: E731
    x, w = nested([2 * c for c in x], (2, 2, 5, 6)), nested(w, (3, 2, 3, 2))
    out = reference.adder2d(x, w, MacSpec.parse("{a: s7, b: s5, acc: s9 sat, lanes: 2}"), preload,
                            **GEOMETRY)
    y, my = cast("y", out, 4)
    error, _ = cast("error", [g if m else 0 for g, m in zip(flat(GRAD.codes), my, strict=True)], 5)
    error = nested(error, (2, 3, 3, 4))
    of_x = reference.adder2d_grad_input(x, w, error, MacSpec.parse(
        "{a: s6, b: s6, acc: s12 sat}"), 16, **GEOMETRY)
    of_w = reference.adder2d_grad_weight(x, w, error, MacSpec.parse("{a: s8, b: s6, acc: s16}"),
                                         **GEOMETRY)
    of_w, frac = [c if m else 0 for c, m in zip(of_w, mw, strict=True)], 8
    if normalise:
        factor, fine = reference.adder_factor(of_w, 8)
        of_w, frac = [c * factor for c in of_w], 8 + fine
    of_b = reference.bias_grad(error, MacSpec.parse("{a: s6, b: u1, acc: s10 sat}"))
    return {"y": [c / 4 for c in y],
            "x": [c / 256 if m else 0 for c, m in zip(of_x, mx, strict=True)],
            "weight": [c / 32 for c in cast("grad_w", of_w, frac)[0]],
            "bias": [c / 8 for c in cast("grad_b", [c if m else 0 for c, m in
                                                    zip(of_b, mb, strict=True)], 4)[0]]}


@pytest.mark.parametrize("normalise", [True, False])
def test_D11_a_layer_equals_the_definition(normalise):
    module = nn.fix(nn.Adder2d(2, 3, (3, 2), **GEOMETRY, bias=True, normalise=normalise),
                    {"by_type": {"Adder2d": HARDWARE}})
    with torch.no_grad():
        module.weight.copy_(tensor(W))
        module.bias.copy_(tensor(B))
    x = tensor(X).requires_grad_()
    with nn.audit():
        y = module(x)
        y.backward(tensor(GRAD))
    assert {"y": y.flatten().tolist(), "x": x.grad.flatten().tolist(),
            **{name: p.grad.flatten().tolist() for name, p in module.named_parameters()}} == (
                by_definition(normalise))


WIDE = {"x": "s16f8 ties_even sat", "w": "s16f8 ties_even sat", "error": "s16f8 ties_even sat",
        "grad_w": "s32f16 ties_even sat", "forward": {"acc": "s32"}, "grad_input": {"acc": "s48"},
        "grad_weight": {"acc": "s38"}}


@pytest.mark.parametrize("groups", [1, 2])
def test_a_wide_layer_is_the_float_one(groups):
    """By torch in float64, the normalised gradient up to its factor of 24 bits and its cast."""
    float_one = nn.Adder2d(4, 6, 3, padding=1, groups=groups).double()
    with torch.no_grad():
        float_one.weight.copy_((float_one.weight * 256).round() / 256)
    fixed = nn.fix(nn.Adder2d(4, 6, 3, padding=1, groups=groups).double(), {"default": WIDE})
    fixed.load_state_dict(float_one.state_dict())
    x = torch.randint(-500, 500, (2, 4, 5, 5)).double() / 256
    grad = torch.randint(-500, 500, (2, 6, 5, 5)).double() / 256
    found = []
    for module in (float_one, fixed):
        at = x.clone().requires_grad_()
        y = module(at)
        y.backward(grad)
        found.append((y.detach(), at.grad, module.weight.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    torch.testing.assert_close(found[0][2], found[1][2], rtol=0, atol=2**-16)
    assert round(found[0][2].norm().item(), 9) == round(math.sqrt(fixed.weight.numel()) / 5, 9)


def test_D11_a_layer_learns_its_thresholds():
    spec = HARDWARE | {"x": "s6 learned ties_even sat", "w": "s6 learned ties_even sat"}
    module = nn.fix(nn.Adder2d(2, 3, 3), {"default": spec})
    module(tensor(X)).square().sum().backward()
    assert module.x_log2_t.grad != 0 and module.w_log2_t.grad != 0


def test_D11_shift_layers_have_weights_of_powers_of_two():
    values = torch.tensor([0.7, 0.71, -1.4, 1.5, 0.01, 0.0, 3.0, -0.24])
    want = [0.5, 1.0, -1.0, 2.0, 0.0, 0.0, 4.0, -0.25]
    assert nn.adder.nearest_power(values, 0.05).tolist() == want
    module = nn.SEConv2d(2, 3, 3, threshold=0.05, bias=False)
    model = nn.fix(torch.nn.Sequential(module, nn.Adder2d(3, 2, 1)).double(), {"default": WIDE})
    x = tensor(X).double().requires_grad_()
    with nn.audit():
        y = model(x)
        y.backward(torch.ones_like(y))
    powers = nn.adder.nearest_power(module.weight.detach(), 0.05)
    inner = torch.nn.functional.conv2d(tensor(X).double(), powers)
    inner, weight = ((v * 256).round() / 256 for v in (inner, model[1].weight.detach()))
    assert torch.equal(y.detach(), nn.adder.adder2d(inner, weight))
    assert module.weight.grad is not None and model[1].weight.grad is not None


def test_D11_a_monitor_sees_every_step_of_an_adder_layer():
    """Each term is watched as one times 1: the accounts are those of the definition."""
    rng = np.random.default_rng(5)
    geometry = {"stride": (1, 1), "padding": (1, 0), "groups": 2}
    mac, shape = MacSpec.parse("{a: s9, b: s8, acc: s6 sat, lanes: 2}"), (2, 4, 4, 2)
    x, w, error = (rng.integers(-8, 8, size) for size in ((2, 4, 3, 3), (4, 2, 2, 2), shape))
    bias = np.array([3, -4, 0, 20])

    def seen(terms, shape, axis, biases=None):
        return accounted(((each, [1] * len(each)) for each in terms), mac,
                         [0] * math.prod(shape) if biases is None else biases, shape, axis)

    forward = ([-abs(p - q) for p, q in zip(a, b, strict=True)]
               for a, b in reference.conv2d_terms(x.tolist(), w.tolist(), **geometry))
    of_w = ([(p - code) * e for p, e in zip(a, b, strict=True)] for code, (a, b) in zip(
        flat(w.tolist()), reference.conv2d_grad_weight_terms(
            x.tolist(), error.tolist(), (2, 2), **geometry), strict=True))
    of_x = ([max(-5, min(5, q - code)) * e for e, q in zip(a, b, strict=True)]
            for code, (a, b) in zip(flat(x.tolist()), reference.conv2d_grad_input_terms(
                error.tolist(), w.tolist(), (3, 3), **geometry), strict=True))
    found = watched(engine.adder2d, x, w, mac, bias, **geometry)
    assert found == seen(forward, shape, 1, np.broadcast_to(
        bias[:, None, None], shape).ravel().tolist())
    assert found[1][0]["overflowing_steps"] > 0
    assert watched(engine.adder2d_grad_weight, x, w, error, mac, **geometry) == (
        seen(of_w, w.shape, 0))
    assert watched(engine.adder2d_grad_input, x, w, error, mac, 5, **geometry) == (
        seen(of_x, x.shape, 1))
