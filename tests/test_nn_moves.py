"""Functions that move values: forward, and gradients added one by one, against numpy and ints."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fraction_layers import MODES, Site, called, fixed, lists, seeded

from emu import LayerSpec, nn

X, Y = seeded((2, 3, 4), 90, 3, 1), seeded((2, 3, 4), 90, 5, 2)
AT = [2, 0, 2]
INDEX = torch.tensor(AT)
ODD = torch.arange(24).reshape(2, 3, 4) % 2 == 1
ODDS = ODD.numpy()


def put(x, y):
    """x with parts of y written into it, by torch or by numpy."""
    x = x.clone() if isinstance(x, torch.Tensor) else x.copy()
    x[:, 1] = y[:, 2]
    x[0, AT[:2]] = y[1, :2]
    x[ODD if isinstance(x, torch.Tensor) else ODDS] = 0
    return x


def expanded_copy(x, y):
    """y[0] copied over a tensor."""
    out = torch.zeros(2, 3, 4)
    out.copy_(y[0])
    return out


def filled_in_place(x, y):
    """x with zeros where the mask says so."""
    x = x.clone()
    return x.masked_fill_(ODD, 0.0)


# What torch does to x and y, and numpy to their positions; 0 is a constant.
CASES = {
    "cat": (lambda x, y: torch.cat([x, y, x], 1), lambda x, y: np.concatenate([x, y, x], 1)),
    "stack": (lambda x, y: torch.stack([x, y], -1), lambda x, y: np.stack([x, y], -1)),
    "hstack": (lambda x, y: torch.hstack([x, y]), lambda x, y: np.hstack([x, y])),
    "expand": (lambda x, y: x[:, :1].expand(3, -1, 5, -1)[:2],
               lambda x, y: np.broadcast_to(x[:, :1], (2, 2, 5, 4))),
    "expand_as": (lambda x, y: x[:1].expand_as(y), lambda x, y: np.broadcast_to(x[:1], y.shape)),
    "broadcast_to": (lambda x, y: torch.broadcast_to(x, (2, 2, 3, 4)),
                     lambda x, y: np.broadcast_to(x, (2, 2, 3, 4))),
    "repeat": (lambda x, y: x.repeat(2, 1, 3), lambda x, y: np.tile(x, (2, 1, 3))),
    "tile": (lambda x, y: torch.tile(x, (2,)), lambda x, y: np.tile(x, (2,))),
    "repeat_interleave": (lambda x, y: x.repeat_interleave(2, 1), lambda x, y: np.repeat(x, 2, 1)),
    "index_select": (lambda x, y: x.index_select(1, INDEX), lambda x, y: x[:, AT]),
    "gather": (lambda x, y: torch.gather(x, 1, INDEX[None, :, None].expand(2, 3, 4)),
               lambda x, y: x[:, AT]),
    "take": (lambda x, y: torch.take(x, INDEX), lambda x, y: x.reshape(-1)[AT]),
    "take_along_dim": (lambda x, y: torch.take_along_dim(x, INDEX[None, :, None], 1),
                       lambda x, y: x[:, AT]),
    "tensor index": (lambda x, y: x[:, INDEX], lambda x, y: x[:, AT]),
    "list index": (lambda x, y: x[..., [0, 0, 1]], lambda x, y: x[..., [0, 0, 1]]),
    "pair of indices": (lambda x, y: x[[0, 1, 0], AT], lambda x, y: x[[0, 1, 0], AT]),
    "mask": (lambda x, y: x[ODD], lambda x, y: x[ODDS]),
    "index of a view": (lambda x, y: x.reshape(6, 4)[:, 1:][INDEX],
                        lambda x, y: x.reshape(6, 4)[:, 1:][AT]),
    "where": (lambda x, y: torch.where(ODD, x, y), lambda x, y: np.where(ODDS, x, y)),
    "where, a method": (lambda x, y: x.where(ODD, y[:, :1]),
                        lambda x, y: np.where(ODDS, x, y[:, :1])),
    "where, a number": (lambda x, y: torch.where(ODD, 0.0, y), lambda x, y: np.where(ODDS, 0, y)),
    "masked_fill": (lambda x, y: x.masked_fill(ODD, 0.0), lambda x, y: np.where(ODDS, 0, x)),
    "masked_fill_": (filled_in_place, lambda x, y: np.where(ODDS, 0, x)),
    "pad": (lambda x, y: F.pad(x, (1, 2, 0, 1)),
            lambda x, y: np.pad(x, ((0, 0), (0, 1), (1, 2)))),
    "crop": (lambda x, y: F.pad(x, (-1, 2)), lambda x, y: np.pad(x[..., 1:], ((0, 0),) * 2 + (
        (0, 2),))),
    "reflect": (lambda x, y: F.pad(x, (3, 1), "reflect"),
                lambda x, y: np.pad(x, ((0, 0), (0, 0), (3, 1)), "reflect")),
    "replicate": (lambda x, y: F.pad(x, (3, 1), "replicate"),
                  lambda x, y: np.pad(x, ((0, 0), (0, 0), (3, 1)), "edge")),
    "circular": (lambda x, y: F.pad(x, (3, 1), "circular"),
                 lambda x, y: np.pad(x, ((0, 0), (0, 0), (3, 1)), "wrap")),
    "nearest": (lambda x, y: F.interpolate(x, scale_factor=2), lambda x, y: np.repeat(x, 2, 2)),
    "windows": (lambda x, y: x.unfold(2, 2, 1),
                lambda x, y: np.lib.stride_tricks.sliding_window_view(x, 2, 2)),
    "columns": (lambda x, y: F.unfold(x[None], (3, 2)), lambda x, y: (
        np.lib.stride_tricks.sliding_window_view(x, (3, 2), (1, 2)).reshape(2, 3, 6)
        .transpose(0, 2, 1).reshape(1, 12, 3))),
    "assignment": (put, put),
    "copy": (expanded_copy, lambda x, y: np.broadcast_to(y[0], (2, 3, 4))),
    "index_copy": (lambda x, y: x.index_copy(0, INDEX[:1] - 1, y[:1]),
                   lambda x, y: np.concatenate([x[:1], y[:1]])),
    "scatter": (lambda x, y: x.scatter(1, INDEX[None, :2, None].expand(2, 2, 4), y[:, :2]),
                lambda x, y: np.stack([y[:, 1], x[:, 1], y[:, 0]], 1)),
}


def moved(places, grad):
    """[y, the gradients of X and Y] of a function of positions, summed element by element."""
    x, y = (np.arange(first, first + 24).reshape(2, 3, 4) for first in (1, 25))
    at = places(x, y)
    values = [0, *X.reshape(-1), *Y.reshape(-1)]
    sums = Counter()
    for place, error in zip(at.reshape(-1), grad.reshape(-1), strict=True):
        sums[place] += error
    return lists(np.array([values[place] for place in at.reshape(-1)], object),
                 *(np.array([sums[place] for place in range(first, first + 24)], object)
                   for first in (1, 25)))


@pytest.mark.parametrize("name", CASES)
def test_values_move_and_their_gradients_add_up(name):
    function, places = CASES[name]
    with torch.no_grad():
        shape = tuple(function(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)).shape)
    grad = seeded(shape, 90, 5, 3)
    # Both are used once more, so that an operand whose values go nowhere has a gradient too.
    got = called(lambda x, y: torch.cat([function(x, y).reshape(-1), x.reshape(-1), y.reshape(-1)]),
                 {}, [X, Y], np.concatenate([grad.reshape(-1), [0] * 48]))
    want = moved(places, grad)
    assert [got[0][:grad.size], *got[1:]] == want


def test_what_is_padded_or_filled_in_may_be_any_number():
    x = torch.tensor([1.0, 2.0])
    for function, want in ((lambda x: F.pad(x, (1, 0), value=0.3), [0.3, 1, 2]),
                           (lambda x: x.masked_fill(x > 1, float("-inf")), [1, -np.inf])):
        assert torch.equal(fixed(function)(x), torch.tensor(want))


def test_a_number_that_is_filled_in_is_no_position():
    for function in (lambda x: F.pad(x, (2, 0), value=1.0),
                     lambda x: torch.where(torch.tensor([True, True, False, False]), 1.0, F.pad(
                         x, (2, 0)))):
        grad = np.array([2, 3, 5, 7], object)
        assert called(function, {}, [np.array([1, 1], object)], grad)[1] == [5, 7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("many", [lambda x: x.expand(3), lambda x: x[[0, 0, 0]],
                                  lambda x: torch.cat([x, x, x]), lambda x: x.repeat(3)])
def test_gradients_that_float_sums_would_lose_arrive(many, dtype):
    x = torch.zeros(1, dtype=dtype, requires_grad=True)
    with nn.audit():
        y = fixed(many)(x)
        y.backward(torch.tensor([2.0**40, 2.0**-20, -2.0**40], dtype=dtype))
    assert x.grad.tolist() == [2.0**-20]


def test_sums_beyond_the_carrier_are_refused_or_exact():
    for dtype in (torch.float32, torch.float64):
        x = torch.zeros(1, dtype=dtype, requires_grad=True)
        y, grad = fixed(lambda x: x.expand(2))(x), torch.tensor([2.0**24, 1], dtype=dtype)
        if dtype == torch.float64:
            y.backward(grad)
            assert x.grad.tolist() == [2**24 + 1]
        else:
            with pytest.raises(ValueError, match=r"25 magnitude bits, torch\.float32"):
                y.backward(grad)


def test_sums_beyond_int64_are_refused():
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    y = fixed(lambda x: x.expand(5))(x)
    with pytest.raises(nn.FloatSum, match="the sum of the 5 that one value has could leave 63"):
        y.backward(torch.tensor([1, 2.0**60, 2.0**60, 0, 0], dtype=torch.float64))


def test_nothing_is_kept_where_no_gradient_is_wanted():
    with torch.no_grad():
        assert not fixed(lambda x: x.expand(3))(torch.zeros(1, requires_grad=True)).requires_grad


def embedded(spec, table, index, grad):
    """(got, want) of an embedding."""
    module = nn.fix(torch.nn.Embedding(*table.shape), {"default": spec})
    with torch.no_grad():
        module.weight.copy_(torch.tensor(table.astype(float)))
    with nn.audit():
        y = module(torch.tensor(index))
        y.backward(torch.tensor(grad.astype(float), dtype=torch.float32))
    site = Site("", LayerSpec.parse(spec))
    w, passes = site.cast("w", table)
    error, _ = site.cast("error", grad)
    sums = np.zeros(table.shape, object)
    for row, part in zip(np.array(index).reshape(-1), error.reshape(-1, table.shape[1]),
                         strict=True):
        sums[row] += part
    grad_w, _ = site.cast("grad_w", np.where(passes, sums, 0))
    return ([y.flatten().tolist(), module.weight.grad.flatten().tolist()],
            lists(w[np.array(index)], grad_w))


@pytest.mark.parametrize("modes", MODES)
def test_an_embedding_is_cast_in_every_mode(modes):
    spec = {"w": f"s5f2 {modes}", "error": f"s5f3 {modes}", "grad_w": f"s6f2 {modes}"}
    index = [[1, 3, 1], [0, 4, 1]]
    got, want = embedded(spec, seeded((5, 3), 90, 4, 1), index, seeded((2, 3, 3), 90, 5, 2))
    assert got == want


@pytest.mark.parametrize("padding", [1, -4])
def test_the_row_of_padding_has_no_gradient(padding):
    module = nn.fix(torch.nn.Embedding(5, 2, padding_idx=padding), {"default": {}})
    module(torch.tensor([1, 1, 3, 3])).sum().backward()
    assert module.weight.grad.tolist() == [[0, 0], [0, 0], [0, 0], [2, 2], [0, 0]]


@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"scale_grad_by_freq": True},
                                    {"sparse": True}])
def test_an_option_that_an_embedding_lacks_is_refused(option):
    module = nn.fix(torch.nn.Sequential(torch.nn.Embedding(5, 2, **option)), {"default": {}})
    with pytest.raises(ValueError, match="layer '0': an embedding has no max_norm"):
        module(torch.tensor([1]))


def test_indices_beyond_the_table_are_refused():
    module = nn.fix(torch.nn.Sequential(torch.nn.Embedding(5, 2)), {"default": {}})
    with pytest.raises(ValueError, match="layer '0': indices from -1 to 5; the table has rows 0 t"):
        module(torch.tensor([5, -1]))


@pytest.mark.parametrize("module", [
    torch.nn.ZeroPad2d(1), torch.nn.ReflectionPad1d(1), torch.nn.ReplicationPad2d((1, 0, 2, 0)),
    torch.nn.Upsample(scale_factor=2)], ids=str)
def test_modules_that_move_values_are_exact(module):
    x = torch.arange(12.0).reshape(1, 1, 3, 4)
    x = x[0] if "1d" in str(module) else x
    want = module(x)
    model = nn.fix(torch.nn.Sequential(module), {"default": {"x": "s4", "y": "s4"}})
    assert torch.equal(model(x), want)
    assert nn.layers(model)["0"].exact


@pytest.mark.parametrize("module", [
    torch.nn.PixelShuffle(2), torch.nn.PixelUnshuffle(2), torch.nn.ChannelShuffle(2)], ids=str)
def test_shuffles_are_exact_both_ways(module):
    x, twin = (torch.arange(64.0).reshape(1, 4, 4, 4).requires_grad_() for _ in range(2))
    model = nn.fix(torch.nn.Sequential(module), {"default": {"x": "s4", "y": "s4"}})
    with nn.audit():
        y = model(x)
        y.backward(x.detach().reshape(y.shape))
    want = module(twin)
    want.backward(x.detach().reshape(y.shape))
    assert torch.equal(y, want)
    assert torch.equal(x.grad, twin.grad)
    assert nn.is_exact(model[0])


def test_a_fold_adds_in_float_and_says_so():
    assert not nn.is_exact(nn.fix(torch.nn.Fold((4, 4), 2), {"default": {}}))


def test_an_interpolation_that_computes_is_a_float_core():
    model = fixed(lambda x: F.interpolate(x, scale_factor=2, mode="linear"))
    model(torch.zeros(1, 1, 4))
    assert not nn.layers(model)["interpolate"].exact
