"""Sums, means and extremes over axes, and pooling along lines, against Fractions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fraction_layers import MODES, Site, called, fixed, lists, seeded
from test_nn_elementwise import divided

from emu import LayerSpec, nn, reference

X = seeded((2, 3, 4), 90, 4, 1)
AXES = [None, 0, -1, (0, 2), (1, -1), (0, 1, 2)]
DETERMINISTIC = [mode for mode in MODES if "stochastic" not in mode]


def numpys(dim):
    """The axes as numpy takes them."""
    return tuple(range(3)) if dim is None else dim


def kept(x, dim):
    """An array whose axes were added up, with those as 1."""
    shape = np.zeros((2, 3, 4)).sum(numpys(dim), keepdims=True).shape
    return np.asarray(x, object).reshape(shape)


def gradient(dim):
    """A gradient of what is left of X."""
    return np.asarray(seeded((2, 3, 4), 90, 5, 3).sum(numpys(dim)), object)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("dim", AXES, ids=str)
def test_a_sum_over_axes_is_exact(dim, keep):
    grad = gradient(dim)
    got = called(lambda x: torch.sum(x, dim, keepdim=keep) if dim is not None or keep else x.sum(),
                 {}, [X], kept(grad, dim) if keep else grad)
    assert got == lists(X.sum(numpys(dim)), np.broadcast_to(kept(grad, dim), X.shape))


@pytest.mark.parametrize("modes", MODES)
def test_a_sum_is_cast_in_every_mode(modes):
    spec = LayerSpec.parse({"y": f"s6f2 {modes}", "error": f"s5f3 {modes}"})
    site, grad = Site("sum", spec), gradient(1)
    y, passes = site.cast("y", X.sum(1))
    error, _ = site.cast("error", np.where(passes, grad, 0))
    assert called(lambda x: x.sum(1), spec, [X], grad) == lists(
        y, np.broadcast_to(kept(error, 1), X.shape))


@pytest.mark.parametrize("dim", [(0, 2), 2])
def test_a_mean_over_a_power_of_two_is_exact(dim):
    grad, terms = gradient(dim), 8 if dim == (0, 2) else 4
    assert called(lambda x: x.mean(dim), {}, [X], grad) == lists(
        X.sum(dim) / terms, np.broadcast_to(kept(grad, dim) / terms, X.shape))


@pytest.mark.parametrize("modes", DETERMINISTIC)
def test_a_mean_is_rounded_once_in_every_mode(modes):
    spec = LayerSpec.parse({"y": f"s4f2 {modes}", "error": f"s3f3 {modes}"})
    site, grad, terms = Site("mean", spec), gradient(1), np.array(3, object)
    y, passes = divided(site, "y", X.sum(1), terms)
    error, _ = divided(site, "error", np.where(passes, grad, 0), terms)
    assert called(lambda x: torch.mean(x, 1), spec, [X], grad) == lists(
        y, np.broadcast_to(kept(error, 1), X.shape))


def test_a_mean_over_another_number_needs_a_cast():
    with pytest.raises(ValueError, match="layer 'mean': has no y; the configuration must give it"):
        fixed(lambda x: x.mean(1))(torch.ones(2, 3))


def test_a_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="layer 'mean': the mean of nothing"):
        fixed(lambda x: x.mean(1))(torch.ones(2, 0))


def test_a_sum_beyond_int64_is_refused():
    with pytest.raises(nn.FloatSum, match=r"layer 'sum': codes up to .*: the sum of 8 of them"):
        fixed(torch.sum)(torch.tensor([2.0**60] * 7 + [1], dtype=torch.float64))


def test_a_sum_that_float32_would_lose_arrives():
    x = torch.tensor([2.0**30, 2.0**-10, -2.0**30])
    with nn.audit():
        assert fixed(torch.sum)(x).item() == 2.0**-10


@pytest.mark.parametrize("name", ["amax", "amin", "max", "min"])
@pytest.mark.parametrize("dim", AXES, ids=str)
def test_the_first_extreme_has_the_error(dim, name):
    if name in ("max", "min") and dim is not None:
        dim = 1
    x = np.where(np.arange(24).reshape(X.shape) % 4 == 1, 5 if "max" in name else -5, X // 2)
    best, grad = (np.max if "max" in name else np.min), gradient(dim)

    def function(x):
        if dim is None: return getattr(torch, name)(x)
        out = getattr(x, name)(dim)
        return out if name.startswith("a") else out.values

    want, taken = np.zeros(X.shape, object), set()
    for at in np.ndindex(X.shape):
        axes = [i % 3 for i in ([dim] if isinstance(dim, int) else numpys(dim))]
        group = tuple(0 if i in axes else n for i, n in enumerate(at))
        if x[at] == kept(best(x, numpys(dim)), dim)[group] and group not in taken:
            taken.add(group)
            want[at] = kept(grad, dim)[group]
    assert called(function, {}, [x], grad) == lists(best(x, numpys(dim)), want)


def test_an_extreme_may_keep_its_axes():
    assert fixed(lambda x: x.amax((0, 2), keepdim=True))(torch.ones(2, 3, 4)).shape == (1, 3, 1)


def lines(codes, call):
    """A pooling of planes one pixel high, for each line of X."""
    return [call([[int(value * 16) for value in line]]) for line in codes.reshape(-1, 4)]


@pytest.mark.parametrize("windows", [(2, 2, 0), (3, 1, 1), (2, 3, 0)], ids=str)
def test_max_pooling_along_a_line_agrees(windows):
    kernel, stride, padding = windows
    found = lines(X, lambda line: reference.max_pool2d(line, (1, kernel), (1, stride),
                                                       (0, padding)))
    grad = seeded((2, 3, len(found[0])), 90, 5, 3)
    errors = [[int(value * 32) for value in line] for line in grad.reshape(6, -1)]
    want = [reference.max_pool2d_grad(error, [at for _, at in line], (1, 4))
            for error, line in zip(errors, found, strict=True)]
    got = called(lambda x: F.max_pool1d(x, *windows), {}, [X], grad)
    assert got == [[code / 16 for line in found for code, _ in line],
                   [code / 32 for plane in want for code in plane[0]]]


@pytest.mark.parametrize("name, out", [("1d", 1), ("1d", 3), ("2d", (2, 3)), ("2d", (None, 1)),
                                       ("2d", 1)])
def test_adaptive_max_pooling_agrees(name, out):
    size = {1: (1, 1), 3: (1, 3)}[out] if name == "1d" else {1: (1, 1), (None, 1): (3, 1)}.get(
        out, out)
    planes = X.reshape(6, 1, 4) if name == "1d" else X
    found = [reference.adaptive_max_pool2d([[int(v * 16) for v in row] for row in plane], size)
             for plane in planes]
    shape = (2, 3, size[1]) if name == "1d" else (2, *size)
    grad = seeded(shape, 90, 5, 3)
    errors = [[int(v * 32) for v in plane.reshape(-1)]
              for plane in grad.reshape(len(planes), -1)]
    want = [reference.max_pool2d_grad(error, [at for _, at in plane], planes.shape[1:])
            for error, plane in zip(errors, found, strict=True)]
    got = called(lambda x: getattr(F, f"adaptive_max_pool{name}")(x, out), {}, [X], grad)
    assert got == [[code / 16 for plane in found for code, _ in plane],
                   [code / 32 for plane in want for row in plane for code in row]]


SPEC = LayerSpec.parse({"y": "s12f3 ties_away sat", "error": "s12f5 ties_odd sat"})


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("windows", [(2, 2, 0), (3, 1, 1), (4, 2, 2)], ids=str)
def test_average_pooling_along_a_line_agrees(windows, include):
    kernel, stride, padding = ((unit, size) for unit, size in zip((1, 1, 0), windows, strict=True))
    found = lines(X, lambda line: reference.avg_pool2d(line, 4, SPEC.y, kernel, stride, padding,
                                                       include))
    grad = seeded((2, 3, len(found[0])), 90, 5, 3)
    want = [reference.avg_pool2d_grad([int(v * 32) for v in line], 5, SPEC.error, (1, 4), kernel,
                                      stride, padding, include) for line in grad.reshape(6, -1)]
    got = called(lambda x: F.avg_pool1d(x, *windows, count_include_pad=include), SPEC, [X], grad)
    assert got == [[code / 8 for line in found for code in line],
                   [code / 32 for plane in want for code in plane[0]]]


@pytest.mark.parametrize("name, out", [("1d", 3), ("2d", (2, 3)), ("2d", (None, 1)), ("2d", 1)])
def test_adaptive_average_pooling_agrees(name, out):
    size = (1, 3) if name == "1d" else {1: (1, 1), (None, 1): (3, 1)}.get(out, out)
    planes = X.reshape(6, 1, 4) if name == "1d" else X
    found = [reference.adaptive_avg_pool2d([[int(v * 16) for v in row] for row in plane], 4,
                                           SPEC.y, size) for plane in planes]
    grad = seeded((2, 3, size[1]) if name == "1d" else (2, *size), 90, 5, 3)
    want = [reference.adaptive_avg_pool2d_grad([int(v * 32) for v in plane.reshape(-1)], 5,
                                               SPEC.error, planes.shape[1:], size)
            for plane in grad.reshape(len(planes), -1)]
    got = called(lambda x: getattr(F, f"adaptive_avg_pool{name}")(x, out), SPEC, [X], grad)
    assert got == [[code / 8 for plane in found for code in plane],
                   [code / 32 for plane in want for row in plane for code in row]]


@pytest.mark.parametrize("module", [
    torch.nn.AdaptiveAvgPool1d(2), torch.nn.AdaptiveAvgPool2d((1, 2)), torch.nn.AvgPool1d(2),
    torch.nn.AdaptiveMaxPool1d(3), torch.nn.AdaptiveMaxPool2d(2), torch.nn.MaxPool1d(2)], ids=str)
def test_modules_of_pooling_are_exact(module):
    x = torch.tensor(np.array(X, float), dtype=torch.float32)
    x = x.reshape(2, 3, 2, 2) if "2d" in str(module) else x
    want = module(x)
    model = nn.fix(torch.nn.Sequential(module), {"default": {}})
    assert torch.equal(model(x), want)
    assert nn.layers(model)["0"].exact


def test_positions_of_adaptive_maxima_are_refused():
    with pytest.raises(ValueError, match="adaptive max pooling has no return_indices here"):
        fixed(lambda x: F.adaptive_max_pool2d(x, 1, True))(torch.ones(1, 2, 2))
