"""Row C8: the names of `wageubn` (PannenetsF), translated: quantisers, layers, widths."""

import copy
import pickle
from fractions import Fraction

import pytest
import torch

from emu import nn
from emu.compat.wageubn import config, function

X = [-1.5, -.996, -.5, .00390625, .01171875, .3, .9961, 1, 2.7]


def test_C08_golden_numbers():
    x = torch.tensor(X)
    assert (function.directquant(x, 8) * 128).tolist() == [-192, -127, -64, 0, 2, 38, 128, 128, 346]
    strict = function.alldirectquant(torch.tensor([-1.5, -.996, -.5, .3, 1, 2.7]), 8, 8)
    assert (strict * 128).tolist() == [-127, -127, -64, 38, 127, 127]
    assert function.shiftquant(torch.tensor([.1, -.7, .3, 1.5]), 4).tolist() == [0, -.75, .25, 1.5]


@pytest.mark.parametrize("call", [
    lambda x: function.directquant(x, 8), lambda x: function.alldirectquant(x, 8, 4),
    lambda x: function.weightquant(x, 8), lambda x: function.shiftquant(x, 8),
    lambda x: function.errquant(x, 8), lambda x: function.constquant(x, 8, 15),
    function.sround])
def test_C08_gradients_pass_every_quantiser(call):
    x = torch.tensor([*X, 0.0], requires_grad=True)
    call(x).backward(torch.arange(10.0))
    assert x.grad.tolist() == list(range(10))
    assert call(torch.zeros(3)).tolist() == [0, 0, 0]


def test_C08_errors_have_two_last_bits():
    e = torch.tensor([1.3, -.9, .5, .01, .004, -.0039, .0001, 3e-5, -2e-6, 0], dtype=torch.float64)
    assert (function.errorquant(e, 8) * 2**14).tolist() == [
        127 * 128, -115 * 128, 64 * 128, 128, 66, -64, 2, 0, 0, 0]
    assert function.errorquant is function.errquant and function.gradquant is function.gwquant


def test_C08_gradients_are_quantised_backward():
    x = torch.ones(200, requires_grad=True)
    grad = torch.linspace(-1, 1, 200)
    torch.manual_seed(4)
    function.gwquant(x, 15, 8).backward(grad)
    codes = x.grad * 2**14
    assert torch.equal(codes, codes.round()) and codes.abs().max() == 127
    assert ((codes - 128 * grad.clamp(-127 / 128, 127 / 128)).abs() < 1).all()
    x.grad = None
    function.gbnquant(x, 4).backward(grad)
    assert torch.equal(x.grad, torch.round(grad * 8) / 8)


def test_C08_stochastic_rounding_is_that_of_the_seed_and_unbiased():
    x = torch.full((4000,), -1.25)
    torch.manual_seed(1)
    one, two = function.sround(x), function.sround(x)
    torch.manual_seed(1)
    assert torch.equal(function.sround(x), one) and not torch.equal(one, two)
    assert set(one.tolist()) == {-1.0, -2.0} and abs(one.mean() + 1.25) < 0.03


def q(x, dec, whole):
    most = 2 ** (whole - 1) - 1
    return Fraction(max(-most, min(most, round(Fraction(x) * 2 ** (dec - 1)))), 2 ** (dec - 1))


def test_C08_strict_layers_compute_with_all_their_widths():
    layer = function.Linear(3, 2, iostrict=True, weight_dec_bit_width=6, weight_all_bit_width=5,
                            input_real_bit_width=9, output_dec_bit_width=7)
    assert layer.widths == {"weight": (6, 5), "bias": (16, 16), "input": (8, 9), "output": (7, 7)}
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)) * 2
    with nn.audit():
        y = layer(x)
    for row, got in zip(x.tolist(), y.tolist(), strict=True):
        want = [q(sum(q(a, 8, 9) * q(w, 6, 5) for a, w in zip(row, ws, strict=True)) + q(b, 16, 16),
                  7, 7) for ws, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)]
        assert [Fraction(v) for v in got] == want


def test_C08_layers_that_are_not_strict_cast_parameters_only():
    layer = function.Linear(3, 2, weight_dec_bit_width=4)
    x = torch.tensor([[0.5, -3.25, 7.0]])
    want = x @ (torch.round(layer.weight * 8) / 8).T + torch.round(layer.bias * 2**15) / 2**15
    assert (layer(x) - want).abs().max() < 2**-18


def network() -> torch.nn.Sequential:
    return function.Sequential(
        function.Conv2d(2, 4, 3, padding=1), function.BatchNorm2d(4), function.ReLU(),
        function.MaxPool2d(2), function.Flatten(), function.Linear(16, 3))


@pytest.mark.parametrize("by", [lambda cls: cls, lambda cls: cls.__name__])
@pytest.mark.parametrize("set_widths", [config.config_network, config.network_config])
def test_C08_a_configuration_sets_every_layer(by, set_widths, capsys):
    net, x = network(), torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    before = net(x)
    chosen = config.Config(iostrict=True, conv_and_linear_weight=6, conv_and_linear_weight_all=7)
    set_widths(net, "net", chosen, [by(function.BatchNorm2d)], [by(function.ReLU)],
               [by(function.Conv2d), by(function.Linear)], show=True)
    assert net[0].widths == {"weight": (6, 7), "bias": (8, 8), "input": (8, 8), "output": (12, 12)}
    assert net[1].widths["input"] == (12, 12) and all(net[i].iostrict for i in (0, 1, 2, 5))
    with nn.audit():
        after = net(x)
    assert not torch.equal(before, after)
    assert torch.equal(after * 2**11, (after * 2**11).round())
    assert "net.0: {'weight': (6, 7)" in capsys.readouterr().out
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), after)
    assert torch.equal(copy.deepcopy(net)(x), after)


def test_C08_a_configuration_has_the_defaults_that_were_meant():
    assert list(config.Config())[:13] == [False, 8, 8, 8, 12, 8, 8, 8, 8, 12, 8, 8, 8]
    assert len(config.Config()) == 25


def test_C08_batch_norm_never_moves_its_statistics():
    layer, x = function.BatchNorm2d(2).train(), torch.randn(3, 2, 2, 2)
    layer(x)
    assert layer.running_mean.tolist() == [0, 0] and layer.num_batches_tracked == 0


@pytest.mark.parametrize(("call", "message"), [
    (lambda: function.Conv2d(1, 1, 1, weight_dec_bit_width=1), "weight: dec 1 and all 1 bits"),
    (lambda: network()[0].set_widths(True, wieght_dec_bit_width=4),
     "unknown width of a Conv2d 'wieght_dec_bit_width': did you mean 'weight_dec_bit_width'"),
    (lambda: config.config_network(torch.nn.Sequential(torch.nn.ReLU()), "n", config.Config(),
                                   acti_list=["ReLU"]), "unknown layer '0' with widths: 'ReLU'"),
    (lambda: function.directqaunt, "has no attribute 'directqaunt'")])
def test_C08_bad_input_is_refused(call, message):
    with pytest.raises((ValueError, AttributeError), match=message):
        call()


def test_C08_layers_learn():
    net, x = network(), torch.randn(2, 2, 4, 4)
    with nn.audit():
        net(x).backward(torch.ones(2, 3))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net[0].parameters())


@pytest.mark.parametrize("strict", [False, True])
def test_C08_adder_layers_sum_absolute_differences(strict):
    torch.manual_seed(1)
    layer = function.Adder2d(2, 3, 3, padding=1, iostrict=strict, output_all_bit_width=20).double()
    grid = lambda *shape: torch.randint(-64, 65, shape).double() / 128  # noqa: E731
    with torch.no_grad():
        layer.weight.copy_(grid(3, 2, 3, 3))
    x = grid(2, 2, 5, 5).requires_grad_()
    y = layer(x)
    windows = torch.nn.functional.unfold(x.detach(), 3, padding=1)  # (N, 18, 25)
    apart = layer.weight.detach().reshape(1, 3, 18, 1) - windows[:, None]
    assert torch.equal(y, -apart.abs().sum(2).reshape(2, 3, 5, 5))
    y.backward(torch.full_like(y, 0.75))
    slopes = torch.nn.functional.fold(apart.clamp(-1, 1).sum(1), (5, 5), 3, padding=1)
    assert torch.equal(x.grad, 0.75 * slopes)
