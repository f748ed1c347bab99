"""The ReLU family, limits and dropout, forward and backward, against Fractions."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fraction_layers import MODES, Site, called, fixed, folded, lists, seeded, tensor

from emu import LayerSpec, nn

X, Y = seeded((2, 3, 4), 90, 4, 1), seeded((2, 3, 4), 90, 4, 2)
GRAD = seeded((2, 3, 4), 90, 5, 3)
SLOPES = np.array([Fraction(1, 2), Fraction(-3, 4), 2], object)
HALF = Fraction(1, 2)

# What torch does to x, and (its value, its slope) for one value.
PIECES = {
    "relu6": (F.relu6, lambda x: (min(max(x, 0), 6), 0 < x < 6)),
    "hardtanh": (lambda x: F.hardtanh(x, -1.5, 2), lambda x: (
        min(max(x, Fraction(-3, 2)), 2), Fraction(-3, 2) < x < 2)),
    "threshold": (lambda x: F.threshold(x, 0.5, -20.0), lambda x: (
        x if x > HALF else -20, x > HALF)),
    "clamp": (lambda x: x.clamp(-1, 2.5), lambda x: (
        min(max(x, -1), Fraction(5, 2)), -1 <= x <= Fraction(5, 2))),
    "clamp below": (lambda x: torch.clamp(x, min=0.5), lambda x: (max(x, HALF), x >= HALF)),
    "clamp above": (lambda x: torch.clip(x, max=0.5), lambda x: (min(x, HALF), x <= HALF)),
    "clamp_min": (lambda x: x.clamp_min(1), lambda x: (max(x, 1), x >= 1)),
    "clamp_max": (lambda x: x.clamp_max(1), lambda x: (min(x, 1), x <= 1)),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.125), lambda x: (
        x if x > 0 else x / 8, 1 if x > 0 else Fraction(1, 8))),
    "a leak above 1": (lambda x: F.leaky_relu(x, 4), lambda x: (
        x if x > 0 else x * 4, 1 if x > 0 else 4)),
}
# What torch does to x and y, and for one pair (the value, the share of x, that of y).
PAIRS = {
    "maximum": (torch.maximum, lambda x, y: (
        max(x, y), HALF if x == y else int(x > y), HALF if x == y else int(y > x))),
    "max": (torch.max, lambda x, y: (
        max(x, y), HALF if x == y else int(x > y), HALF if x == y else int(y > x))),
    "minimum": (torch.minimum, lambda x, y: (
        min(x, y), HALF if x == y else int(x < y), HALF if x == y else int(y < x))),
    "clamp, from a tensor": (lambda x, y: x.clamp(y), lambda x, y: (
        max(x, y), int(x >= y), int(x < y))),
    "clamp, to a tensor": (lambda x, y: x.clamp(max=y), lambda x, y: (
        min(x, y), int(x <= y), int(x > y))),
    "clamp, between": (lambda x, y: x.clamp(torch.tensor(-1.0), y), lambda x, y: (
        min(max(x, -1), y), int(-1 <= x <= y), int(x > y or y < -1))),
}


def at_each(function, *operands):
    """The arrays of what a function of single values gives."""
    found = [function(*values) for values in zip(*(x.reshape(-1) for x in operands), strict=True)]
    return [np.array(part, object).reshape(operands[0].shape)
            for part in zip(*found, strict=True)]


@pytest.mark.parametrize("name", PIECES)
def test_straight_pieces_are_exact(name):
    function, piece = PIECES[name]
    x = np.concatenate([X, [[[0, 6, 2, HALF]] * 3]])  # with the corners
    grad = np.concatenate([GRAD, GRAD[:1]])
    y, slope = at_each(piece, x)
    assert called(function, {}, [x], grad) == lists(y, grad * slope)


@pytest.mark.parametrize("name", PAIRS)
def test_one_of_two_is_exact(name):
    function, pair = PAIRS[name]
    y = np.where(np.arange(24).reshape(X.shape) % 3 == 0, X, Y)  # some are equal
    out, of_x, of_y = at_each(pair, X, y)
    assert called(function, {}, [X, y], GRAD) == lists(out, GRAD * of_x, GRAD * of_y)


def test_gradients_of_a_limit_that_is_broadcast_add_up():
    y, grad = np.array([Fraction(1, 4)], object), GRAD
    _, of_x, of_y = at_each(PAIRS["maximum"][1], X, np.broadcast_to(y, X.shape))
    assert called(torch.maximum, {}, [X, y], grad)[1:] == lists(
        grad * of_x, folded(grad * of_y, y))


def slopes(site, x, w, grad):
    """prelu by its casts, with a slope for each channel of x."""
    x, pass_x = site.cast("x", x)
    w, pass_w = site.cast("w", w)
    factor = np.where(x > 0, 1, w[:, None])
    y, passes = site.cast("y", x * factor)
    error, _ = site.cast("error", np.where(passes, grad, 0))
    of_w = np.where(x > 0, 0, error * x).sum((0, 2)).reshape(-1, len(w)).sum(0)
    return lists(y, np.where(pass_x, error * factor, 0), np.where(pass_w, of_w, 0))


@pytest.mark.parametrize("modes", MODES)
def test_a_slope_for_each_channel_is_cast_in_every_mode(modes):
    spec = LayerSpec.parse({"x": f"s5f2 {modes}", "w": f"s3f1 {modes}", "y": f"s6f2 {modes}",
                            "error": f"s5f3 {modes}"})
    assert called(F.prelu, spec, [X, SLOPES], GRAD) == slopes(Site("prelu", spec), X, SLOPES, GRAD)


def test_one_slope_of_all_channels_has_all_their_gradients():
    got = called(F.prelu, {}, [X, SLOPES[:1]], GRAD)
    want = np.where(X > 0, 0, GRAD * X).sum()
    assert got[2] == [float(want)]


def test_the_slopes_of_a_module_are_its_parameters():
    module = nn.fix(torch.nn.Sequential(torch.nn.PReLU(3)), {
        "default": {"w": "s4f3 ties_even sat", "grad_w": "s8f2 ties_even sat"}})
    module(tensor(X)).backward(tensor(GRAD).detach())
    sums = np.where(X > 0, 0, GRAD * X).sum((0, 2))
    want, _ = Site("", LayerSpec.parse({"grad_w": "s8f2 ties_even sat"})).cast("grad_w", sums)
    assert [module[0].weight.grad.tolist()] == lists(want)


def test_a_slope_that_is_no_power_of_two_is_cast_by_w():
    y = fixed(F.leaky_relu, {"w": "s4f6 ties_even sat"})(torch.tensor([1.0, -4.0]))
    assert y.tolist() == [1, -4 / 64]


def test_a_slope_that_is_no_power_of_two_needs_a_cast():
    with pytest.raises(ValueError, match=r"layer 'leaky_relu': .* give the site a cast w, or a"):
        fixed(F.leaky_relu)(torch.tensor([-3.3]))


@pytest.mark.parametrize(("module", "want"), [
    (torch.nn.ReLU6(), [0, 2, 6]), (torch.nn.LeakyReLU(0.5), [-1, 2, 8]),
    (torch.nn.Hardtanh(-1, 1), [-1, 1, 1]), (torch.nn.Threshold(3, 5), [5, 5, 8]),
    (torch.nn.ReLU6(True), [0, 2, 6]), (torch.nn.LeakyReLU(0.5, True), [-1, 2, 8])], ids=str)
def test_modules_of_straight_pieces_are_exact(module, want):
    model, x = nn.fix(torch.nn.Sequential(module), {"default": {}}), torch.tensor([-2.0, 2, 8])
    assert model(x).tolist() == want
    assert x.tolist() == (want if getattr(module, "inplace", False) else [-2, 2, 8])
    assert all(layer.exact for layer in nn.layers(model).values())


def test_a_seed_gives_the_mask_that_it_gives_in_float():
    x = torch.ones(200)
    for p in (0.5, 0.75):
        torch.manual_seed(5)
        want = F.dropout(x, p)
        torch.manual_seed(5)
        assert torch.equal(fixed(lambda x, p=p: F.dropout(x, p))(x), want)


@pytest.mark.parametrize("function", [F.dropout, F.dropout1d])
def test_a_dropped_value_drops_its_error(function):
    torch.manual_seed(1)
    x = tensor(X + 20)
    with nn.audit():
        y = fixed(lambda x: function(x, 0.5))(x)
        y.backward(tensor(GRAD).detach())
    kept = (y != 0).detach()
    assert torch.equal(y, x.detach() * kept * 2)
    assert torch.equal(x.grad, tensor(GRAD).detach() * kept * 2)
    assert 0 < kept.sum() < 24
    if function is F.dropout1d:
        assert torch.equal(kept, kept[..., :1].expand(2, 3, 4))


def test_the_scale_of_what_is_kept_is_cast_by_w_and_the_result_by_y():
    torch.manual_seed(1)
    spec = {"w": "u4f2 ties_even sat", "y": "s8f1 ties_even sat"}
    y = fixed(lambda x: F.dropout(x, 0.1), spec)(torch.full((100,), 1.5))
    assert sorted(set(y.tolist())) == [0, 1.5]  # 1 / 0.9 is 1 on this grid
    torch.manual_seed(1)
    y = fixed(lambda x: F.dropout(x, 0.2), spec)(torch.full((100,), 3.0))
    assert sorted(set(y.tolist())) == [0, 4]  # 3.75, by y


def test_a_module_of_dropout_ends_with_training():
    model = nn.fix(torch.nn.Sequential(torch.nn.Dropout(0.5)), {"default": {}})
    x = torch.ones(100)
    assert torch.equal(model.eval()(x), x)
    assert set(model.train()(x).tolist()) == {0, 2}


def test_dropping_all_leaves_zeros():
    assert fixed(lambda x: F.dropout(x, 1.0))(torch.ones(3)).tolist() == [0, 0, 0]


def test_a_p_that_is_no_probability_is_refused():
    with pytest.raises(ValueError, match=r"dropout p 1.5: a probability is from 0 to 1"):
        fixed(lambda x: F.dropout(x, 1.5))(torch.ones(3))
