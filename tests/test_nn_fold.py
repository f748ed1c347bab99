"""Folding batch norm into the layer before it: after training, and trained folded."""

import copy
from fractions import Fraction

import integer_network as ints
import pytest
import torch
from fixed_layers import HARDWARE, UPDATE, codes, tensor
from integer_network import Grid, flat, some
from strategies import DETERMINISTIC

from emu import Cast, LayerSpec, NormSpec, Overflow, nn, reference

NORM = {"mean": "s9f5 ties_even sat", "var": "u16f9 to_odd sat", "std": "u9f5 ties_away sat",
        "xhat": "s7f4 ties_even sat", "eps_var": 3, "running_mean": "s10f6 ties_even sat",
        "running_var": "u12f6 ties_even sat", "momentum": "u6f5 ties_even sat"}
GRADS = {"grad_w": "s16f8 ties_even sat", "grad_b": "s16f8 ties_even sat"}
AFTER = {"x": "s7f3 ties_even sat", "w": "s6f4 ties_even sat", "b": "s6f4 ties_pos sat",
         "y": "s8f4 ties_even sat", "error": "s8f6 ties_even sat", "norm": NORM}
X = some((4, 2, 4, 4), 150, 5, 1)
MODES = [f"{rounding.name.lower()} {overflow.name.lower()}"
         for rounding in DETERMINISTIC for overflow in Overflow]


def config(kind="BatchNorm2d", after=AFTER, **changed) -> dict:
    """The hardware of the layers, and of the batch norms behind them."""
    return {"default": {**HARDWARE, **GRADS, **changed}, "by_type": {kind: after} if kind else {}}


def filled(model: torch.nn.Module) -> torch.nn.Module:
    """Grid values in every parameter and running statistic."""
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.copy_(tensor(some(tuple(parameter.shape), 60, 5, i)))
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(tensor(some((module.num_features,), 99, 6, 50)))
                module.running_var.copy_(tensor(some((module.num_features,), 99, 6, 51)).abs())
    return model


def cnn() -> torch.nn.Sequential:
    return filled(torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3),
                                      torch.nn.ReLU()))


def mlp() -> torch.nn.Sequential:
    return filled(torch.nn.Sequential(torch.nn.Linear(6, 4, bias=False), torch.nn.BatchNorm1d(4)))


def hardware() -> NormSpec:
    """The batch norm's, as the definition has it."""
    return NormSpec.parse({
        "x": "s7f3", "gamma": AFTER["w"], "beta": AFTER["b"], "y": "s30f8",
        **{key: NORM[key] for key in ("mean", "var", "std", "xhat", "eps_var")},
        "running": {"mean": NORM["running_mean"], "var": NORM["running_var"],
                    "momentum": NORM["momentum"], "unbiased": "true"}})


def scales(module) -> tuple[list, list]:
    """(gamma / std, beta - mean * gamma / std) of each channel, as fractions."""
    spec, found = hardware(), []
    value = lambda x, to: Fraction(reference.quantize(x, to)) / 2**to.format.frac  # noqa: E731
    for m, v, g, b in zip(module.running_mean.tolist(), module.running_var.tolist(),
                          module.weight.tolist(), module.bias.tolist(), strict=True):
        mean, var = reference.frozen_norm(reference.quantize(m, spec.running.mean),
                                          reference.quantize(v, spec.running.var), spec)
        scale = value(g, spec.gamma) / Fraction(reference.norm_divisor(var, spec), 2**5)
        found.append((scale, value(b, spec.beta) - Fraction(mean, 2**5) * scale))
    return tuple(zip(*found, strict=True))


def settled(value: Fraction, to: str) -> int:
    return reference.divide(value.numerator, value.denominator, 0, Cast.parse(to))


def by_hand(layer, module, w: str, b: str) -> tuple[list, list]:
    """The codes of the folded weight and bias."""
    of_weight, of_bias = scales(module)
    bias = [0.0] * len(of_bias) if layer.bias is None else layer.bias.tolist()
    return ([[settled(Fraction(x) * scale, w) for x in flat([row])]
             for row, scale in zip(layer.weight.tolist(), of_weight, strict=True)],
            [settled(Fraction(x) * scale + shift, b) for x, scale, shift in
             zip(bias, of_weight, of_bias, strict=True)])


def parameters(layer, w: str, b: str) -> tuple[list, list]:
    """The codes of the weight, a row for each output, and of the bias."""
    rows = codes(layer.weight.detach(), Cast.parse(w).format.frac)
    return [flat([row]) for row in rows], codes(layer.bias.detach(), Cast.parse(b).format.frac)


@pytest.mark.parametrize("build", [cnn, mlp])
@pytest.mark.parametrize("modes", MODES)
def test_folded_parameters_are_rounded_once(build, modes):
    w, b = f"s5f3 {modes}", f"s6f4 {modes}"
    model = build()
    want = by_hand(model[0], model[1], w, b)
    nn.fold(nn.fix(model, config(type(model[1]).__name__, w=w, b=b)))
    assert parameters(model[0], w, b) == want


def test_a_folded_layer_computes_with_its_integers_and_the_casts_of_the_norm():
    model = nn.fix(cnn(), config()).eval()
    w, b = HARDWARE["w"], HARDWARE["b"]
    weight, bias = by_hand(model[0], model[1], w, b)
    twin = ints.Conv2d("0", LayerSpec.parse({**HARDWARE, "y": AFTER["y"]}))
    with nn.audit():
        got = nn.fold(model)(tensor(X))
    want = twin.forward(X, Grid(ints.shaped(flat(weight), (3, 2, 3, 3)), 3), Grid(bias, 4))
    assert got.tolist() == [[[[max(x, 0) for x in row] for row in plane] for plane in image]
                            for image in ints.floats(want)]
    assert type(model[1]) is torch.nn.Identity


def test_other_models_are_folded_by_name():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.conv = torch.nn.BatchNorm2d(3), torch.nn.Conv2d(2, 3, 3)

        def forward(self, x):
            return torch.relu(self.bn(self.conv(x)))

    block, want = filled(Block()), cnn()
    want[0].load_state_dict(block.conv.state_dict())
    want[1].load_state_dict(block.bn.state_dict())
    want = nn.fold(nn.fix(want, config())).eval()(tensor(X))
    assert torch.equal(nn.fold(nn.fix(block, config()), [("conv", "bn")]).eval()(tensor(X)), want)


def test_a_binary_point_is_chosen_anew_for_folded_weights():
    rule = "s5 auto:max ties_even sat"
    model = nn.fix(cnn(), config(w=rule, b=rule))
    model(tensor(X))  # the rules have seen the weights before they are folded
    before = copy.deepcopy(model[0])
    scale, _ = scales(model[1])
    exact = [Fraction(x) * s for row, s in zip(before.weight.tolist(), scale, strict=True)
             for x in flat([row])]
    nn.fold(model)
    frac = 4 - next(e for e in range(-20, 20) if max(map(abs, exact)) <= Fraction(2)**e)
    to = model[0].layer.spec.w
    assert str(to) == f"s5f{frac} ties_even sat"
    assert flat(codes(model[0].weight.detach(), frac)) == [settled(x, str(to)) for x in exact]
    again = model(tensor(X))
    assert torch.equal(model.eval()(tensor(X)), again)


def test_a_folded_model_trains_on():
    model = nn.fix(cnn(), config(update=UPDATE))
    nn.fold(model)
    optimizer = nn.SGD(model, 0.25, 0.5)
    before = model[0].weight.clone()
    with nn.audit():
        y = model(tensor(X))
        y.backward(y.detach())
        optimizer.step()
    assert not torch.equal(model[0].weight, before)


# Trained folded.

TRAINED = config(b="s8f4 ties_even sat")


def conv_bn() -> torch.nn.Sequential:
    return filled(torch.nn.Sequential(nn.ConvBN(2, 3, 3, stride=2), torch.nn.ReLU()))


def observed(model, x: Grid) -> list[tuple]:
    """The running statistics after one more batch: of the unfolded convolution."""
    layer, spec, bn = LayerSpec.parse({**HARDWARE, "y": None}), hardware(), model[0].bn
    out = ints.Conv2d("", layer, stride=(2, 2)).forward(x, Grid(codes(
        model[0].weight.detach(), 5), 5))
    momentum = reference.quantize(bn.momentum, spec.running.momentum)
    found = []
    for c, (m, v) in enumerate(zip(codes(bn.running_mean, 6), codes(bn.running_var, 6),
                                   strict=True)):
        channel = [reference.cast(code, out.frac, Cast.parse(AFTER["x"]))
                   for image in out.codes for code in flat([image[c]])]
        batch = reference.norm_statistics(channel, spec)
        found.append(reference.running_norm(m, v, batch, momentum, spec))
    return found


def test_each_training_forward_folds_what_its_statistics_are_then():
    model = nn.fix(conv_bn(), TRAINED)
    for step in range(2):
        x = some((4, 2, 4, 4), 150, 5, step)
        statistics = observed(model, x)
        with nn.audit():
            y = model[0](tensor(x))
        bn = model[0].bn
        assert list(zip(codes(bn.running_mean, 6), codes(bn.running_var, 6),
                        strict=True)) == statistics
        weight, bias = by_hand(model[0], bn, HARDWARE["w"], TRAINED["default"]["b"])
        twin = ints.Conv2d("", LayerSpec.parse(TRAINED["default"]), stride=(2, 2))
        want = twin.forward(x, Grid(ints.shaped(flat(weight), (3, 2, 3, 3)), 3), Grid(bias, 4))
        assert y.tolist() == ints.floats(want)
    assert bn.num_batches_tracked == 2


def test_evaluation_is_the_folded_layer_bit_for_bit():
    model = nn.fix(conv_bn(), TRAINED)
    for step in range(3):
        model(tensor(some((4, 2, 4, 4), 150, 5, step)))
    state = copy.deepcopy(model.state_dict())
    with nn.audit():
        want = model.eval()(tensor(X))
    assert str(model.state_dict()) == str(state)
    assert torch.equal(nn.fold(model)(tensor(X)), want)
    assert [type(module).__mro__[2] for module in model] == [torch.nn.Conv2d, torch.nn.ReLU]
    assert sorted(dict(model.named_parameters()) | dict(model.named_buffers())) == ["0.bias",
                                                                                    "0.weight"]


def test_the_masters_have_the_gradient_of_the_fold():
    """By torch's autograd in float64, up to float32: the part that says exact=False."""
    casts = Cast.parse("s4f4 ties_even sat"), Cast.parse("s8f4 ties_even sat")
    model = nn.fix(conv_bn(), config(w=str(casts[0]), b=str(casts[1])))
    bn, kept, forward = model[0].bn, {}, model[0]._conv_forward
    model[0]._conv_forward = lambda x, w, b: forward(x, *map(kept.setdefault, "wb", (w, b)))
    with nn.audit():
        y = model[0](tensor(X))
        for folded in kept.values():
            folded.retain_grad()
        y.backward(tensor(some(tuple(y.shape), 9, 6, 3)))
    spec, found = hardware(), []
    for m, v in zip(codes(bn.running_mean, 6), codes(bn.running_var, 6), strict=True):
        mean, var = reference.frozen_norm(m, v, spec)
        found.append((mean / 2**5, reference.norm_divisor(var, spec) / 2**5))
    mean, deviation = torch.tensor(found, dtype=torch.float64).T
    masters = [p.detach().double().requires_grad_() for p in (model[0].weight, bn.weight, bn.bias)]
    scale = masters[1] / deviation
    exact = masters[0] * scale.reshape(-1, 1, 1, 1), masters[2] - mean * scale
    grads = []
    for name, value, to in zip("wb", exact, casts, strict=True):
        inside = (value * 2.0**to.format.frac).round()
        inside = (to.format.lo <= inside) & (inside <= to.format.hi)
        grads.append(kept[name].grad.double() * inside)
    assert not torch.equal(grads[0], kept["w"].grad.double())  # what saturates has no gradient
    torch.autograd.backward(exact, grads)
    for got, want in zip((model[0].weight, bn.weight, bn.bias), masters, strict=True):
        torch.testing.assert_close(got.grad, want.grad.float())


def test_what_is_not_exact_says_so():
    model = nn.fix(conv_bn(), TRAINED)
    model(tensor(X))
    inexact = {name for name, layer in nn.layers(model).items() if not layer.exact}
    assert inexact == {"0.fold"}
    assert "exact=False" in repr(model)
    assert not nn.is_exact(model[0])
    nn.fold(model)
    assert all(layer.exact for layer in nn.layers(model).values())
    assert "exact=False" not in repr(model)


def test_as_a_float_module_it_is_both_layers():
    module, x = nn.ConvBN(2, 3, 3), torch.randn(2, 2, 5, 5)
    twin = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3, bias=False), torch.nn.BatchNorm2d(3))
    with torch.no_grad():
        twin[0].weight.copy_(module.weight)
    assert torch.equal(module(x), twin(x))


def test_its_state_loads_into_a_fresh_model():
    model = nn.fix(conv_bn(), TRAINED)
    model(tensor(X))
    fresh = nn.fix(conv_bn(), TRAINED)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(tensor(X)), model.eval()(tensor(X)))


def test_it_is_copied_and_learns_with_a_float_optimizer():
    model = copy.deepcopy(nn.fix(conv_bn(), TRAINED))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    before = [p.clone() for p in model.parameters()]
    with nn.audit():
        y = model(tensor(X))
        y.backward(y.detach())
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(("model", "settings", "pairs", "message"), [
    (torch.nn.Sequential(torch.nn.Linear(2, 2)), config(None), None, "no convolution or linear"),
    (cnn(), config(), [("0", "2")], "'2': ReLU is no fixed BatchNorm1d or BatchNorm2d"),
    (cnn(), config(), [("nought", "1")], "'nought': NoneType is no fixed Linear or"),
    (cnn(), config(b=None), None, "layer '0': has no b for what is folded"),
    (cnn(), config(w="s5f60"), None, "layer '0': w s5f60 .* is finer than a quotient"),
    (torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(
        2, track_running_stats=False)), config("BatchNorm1d"), None,
     "layer '1': has no running statistics"),
    (cnn(), config(after={**AFTER, "x": "s7 auto:max"}), None,
     "layer '1': its x s7 auto:max .* has chosen no binary point yet"),
])
def test_what_cannot_be_folded_is_refused(model, settings, pairs, message):
    with pytest.raises(ValueError, match=message):
        nn.fold(nn.fix(copy.deepcopy(model), settings), pairs)


def test_a_float_model_is_refused():
    with pytest.raises(ValueError, match=r"'0': Conv2d is no fixed Linear or .*; fold a model of"):
        nn.fold(cnn())


def test_nothing_changes_where_one_pair_is_refused():
    model = nn.fix(cnn(), config())
    before = model[0].weight.clone()
    with pytest.raises(ValueError, match="'2': ReLU"):
        nn.fold(model, [("0", "1"), ("0", "2")])
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("rule", ["auto:max", "learned"])
def test_casts_that_would_be_chosen_twice_are_refused(rule):
    model = nn.fix(conv_bn(), config(w=f"s5 {rule} ties_even sat"))
    with pytest.raises(ValueError, match=rf"layer '0': w s5 {rule} .* would choose a binary point "
                                         r".* give it a Cast, or use a Conv2d and a BatchNorm2d$"):
        model(tensor(X))
