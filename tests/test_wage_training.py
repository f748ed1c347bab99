"""Training by WAGE and WAGEUBN: presets, schedules, batch norm, strict integers, and resuming."""

import signal
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from math import isqrt
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from emu import Format, Rule, UpdateSpec, nn, reference
from emu.engine.kernels import jit
from emu.kind import FlagCast
from emu.lab import hardware as presets
from emu.lab import train as lab
from emu.lab.data import Images, load
from emu.lab.recipe import Recipe
from emu.lab.run import WEIGHTS
from emu.nn import wage
from emu.norm_casts import NormCasts

WAGEUBN = ["wageubn-full8", "wageubn-e16", "wageubn-official"]
RECIPES = ["digits-cnn-wageubn-full8", "digits-cnn-wage-2888", "lenet5-wageubn-full8",
           "lenet5-wage-2888", "resnet20-wageubn-full8", "resnet20-wage-2888"]


def recipe(name="digits-cnn-wageubn-full8", **changes) -> Recipe:
    """A shipped recipe with some of its entries changed."""
    return Recipe.parse(presets.merged(Recipe.load(name).as_dict(), changes))


def under(preset) -> Recipe:
    """The digits recipe on another preset."""
    return Recipe.parse(Recipe.load("digits-cnn-wageubn-full8").as_dict() | {"hardware": preset})


def few(recipe: Recipe, count=64) -> Images:
    """Some of a recipe's images."""
    whole = load(recipe.data)
    return Images(*(part[:count] for part in whole))


def machine_of(recipe: Recipe) -> lab.Machine:
    machine = lab.Machine.build(recipe, few(recipe))
    machine.model.train()
    return machine


def one_step(machine: lab.Machine, recipe: Recipe, count=4) -> float:
    """A step under the auditor, on the first images."""
    x, y, *_ = few(recipe)
    return lab._step(machine, torch.from_numpy(x[:count]), torch.from_numpy(y[:count]))


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_take_a_step_under_the_auditor(name):
    chosen = recipe(name)
    machine = machine_of(chosen)
    before = {key: x.clone() for key, x in machine.model.state_dict().items()
              if isinstance(x, torch.Tensor)}
    assert np.isfinite(one_step(machine, chosen))
    machine.enter(chosen, 1 + max(chosen.training.phases or [0]))
    assert np.isfinite(one_step(machine, chosen))
    weights = [key for key, x in before.items() if x.dim() > 1]
    after = machine.model.state_dict()
    assert weights and all(not torch.equal(before[key], after[key]) for key in weights)


# ----- C2 and C5: widths and presets

@pytest.mark.parametrize("name", WAGEUBN)
def test_C02_presets_have_the_widths_of_paper_and_code(name):
    machine = machine_of(under(name))
    spec, norm = machine.model.conv2.layer.spec, machine.model.norm1.layer.spec
    assert spec.w.format == Format.parse("s8f7") and spec.w.range == (-127, 127)
    assert spec.x.format == Format.parse("u12f7" if "official" in name else "u8f7")
    assert str(spec.error) == {"wageubn-e16": "s16 auto:shift ties_even sat_sym"}.get(
        name, "flag s8 auto:shift ties_even sat_sym")
    first = machine.model.act1.layer.spec.error
    assert str(first) == ("closed s8 auto:shift ties_even sat" if "official" in name
                          else "s8 auto:shift ties_even sat_sym")
    bits = {cast: getattr(norm.norm, cast).format.frac + 1 for cast in ("mean", "std", "xhat")}
    assert bits == {"mean": 16, "std": 16, "xhat": 8 if "official" in name else 16}
    assert [getattr(norm, key).format.frac + 1 for key in ("w", "b", "grad_w", "grad_b")] == [
        8, 8, 15, 15]
    assert norm.norm.eps_std == 1 and norm.mask == spec.mask == "all"


@pytest.mark.parametrize("name", WAGEUBN)
def test_C05_presets_keep_the_width_algebra(name):
    machine = machine_of(under(name))
    for layer in nn.layers(machine.model).values():
        update = layer.spec.update
        if update is None:
            continue
        bits = {key: getattr(update, key).format.frac + 1
                for key in ("weight", "momentum", "grad", "lr", "mu")}
        assert bits == {"weight": 24, "momentum": 13, "grad": 15, "lr": 10, "mu": 3}
        assert isinstance(update, UpdateSpec) and update.direction is not None


@pytest.mark.parametrize(("hardware", "message"), [
    ({"preset": "wageubn-ful8"}, "unknown preset 'wageubn-ful8': did you mean 'wageubn-full8'"),
    ("wage2888", "did you mean 'wage-2888'"),
    ({"preset": "wage-2888", "alfa": True}, "unknown recipe hardware key 'alfa': did you mean "
                                            "'alpha'"),
    ({"preset": "wage-2888", "exempt": "fc"}, "exempt 'fc': needs a list of layers")])
def test_unknown_presets_are_refused(hardware, message):
    items = Recipe.load("digits-cnn-wageubn-full8").as_dict() | {"hardware": hardware}
    with pytest.raises(ValueError, match=message):
        Recipe.parse(items)


def test_widths_of_a_recipe_that_break_the_algebra_are_refused():
    wrong = {"by_type": {"Conv2d": {"update": {"momentum": "s14f13 ties_even sat"}}}}
    with pytest.raises(ValueError, match=r"layer 'conv1' .*kGC = kMom \+ kAcc - 1"):
        machine_of(recipe(hardware=wrong))


def test_recipes_say_what_they_were_and_read_themselves_again():
    for name in RECIPES:
        chosen = Recipe.load(name)
        again = Recipe.parse(yaml.safe_load(yaml.safe_dump(chosen.as_dict())))
        assert again == chosen


def test_C07_exempted_layers_have_sixteen_bits():
    chosen = recipe(hardware={"exempt": ["conv1", "fc"]})
    machine = machine_of(chosen)
    for name, layer in (("conv1", 16), ("conv2", 8), ("fc", 16)):
        spec = nn.layers(machine.model)[name].spec
        assert (spec.x.format.width, spec.w.format.width) == (layer, layer)
        assert ("flag" in str(spec.error)) == (layer == 8)
    assert np.isfinite(one_step(machine, chosen))
    assert Recipe.parse(chosen.as_dict()) == chosen


# ----- C4: batch norm

def test_C04_batch_norm_is_its_formula():
    """Forward, on fractions: mu, sigma, x-hat by Q of their bits; the root by its square."""
    settings = recipe().hardware["by_type"]["BatchNorm2d"]
    module = nn.fix(torch.nn.BatchNorm2d(2).double(), {"default": settings}).train()
    with torch.no_grad():
        module.weight.copy_(torch.tensor([0.8125, -1.5]))
        module.bias.copy_(torch.tensor([0.25, -0.0078125]))
    x = torch.randint(-3000, 9000, (3, 2, 2, 3), generator=torch.Generator().manual_seed(1)
                      ).double() / 2**14
    y = module(x)

    def q(value, bits):
        return Fraction(round(value * 2**bits), 2**bits)

    for channel in range(2):
        values = [Fraction(v) for v in x[:, channel].reshape(-1).tolist()]
        mean = sum(values) / len(values)
        var = sum((v - mean) ** 2 for v in values) / len(values)
        low = int((var * 4**15).__floor__() ** 0.5) - 2  # sigma in steps of 2^-15
        std = next(k for k in range(max(low, 0), low + 5)
                   if (2 * k - 1) ** 2 <= 4 * var * 4**15 <= (2 * k + 1) ** 2)
        sigma = Fraction(std + 1, 2**15)
        gamma, beta = (Fraction(p[channel].item()) for p in (module.weight, module.bias))
        want = [gamma * q((v - q(mean, 15)) / sigma, 15) + beta for v in values]
        assert [Fraction(v) for v in y[:, channel].reshape(-1).tolist()] == want


def graph_grad(x, e, gamma, mean, std, eps, quantised):
    """dL/dx of y = gamma Q(xhat) + beta, node by node, each Q straight through.

    xhat = (x - Q(mean)) / (Q(std) + eps), std = sqrt(var), var = mean((x - mean)^2); `quantised`
    are (Q(mean), Q(std)), and `std` the root itself.
    """
    n, (of_mean, of_std) = len(x), quantised
    below = of_std + eps
    of_xhat = [gamma * each for each in e]
    to_mean = -sum(g / below for g in of_xhat)
    to_std = -sum(g * (v - of_mean) / below**2 for g, v in zip(of_xhat, x, strict=True))
    to_var = to_std / (2 * std)
    return [g / below + to_mean / n + to_var * 2 * (v - mean) / n
            for g, v in zip(of_xhat, x, strict=True)]


def normed(x, e, gamma, eps_std):
    """(gradient of x, of gamma, of beta, the backward spec) of a WAGEUBN norm of one channel."""
    settings = recipe().hardware["by_type"]["BatchNorm2d"]
    settings = settings | {"norm": settings["norm"] | {"eps_std": eps_std}}
    module = nn.fix(torch.nn.BatchNorm2d(1).double(), {"default": settings}).train()
    with torch.no_grad():
        module.weight.fill_(float(gamma))
    given = torch.tensor([float(v) for v in x]).double().reshape(-1, 1, 1, 1).requires_grad_()
    module(given).backward(torch.tensor([float(v) for v in e]).double().reshape(-1, 1, 1, 1))
    error = Format.holding(-128, 127, 11)
    spec = NormCasts.parse(settings["norm"]).spec(
        Format.parse("s24f14"), Format.parse("s10f7"), Format.parse("s10f7"), error)
    return (*([Fraction(v) for v in tensor.reshape(-1).tolist()] for tensor in (
        given.grad, module.weight.grad, module.bias.grad)), spec.backward)


def test_C04_gradients_of_batch_norm_are_the_graphs_where_nothing_rounds():
    """x of mean 1/2 and deviation 2, errors whose means have few bits, no eps: equality."""
    x = [Fraction(1, 2) + 2 * sign for sign in (1, -1, 1, -1, -1, -1, 1, 1)]
    e = [Fraction(code, 2**11) for code in (-128, 127, 3, -45, 64, 0, 9, 90)]
    gamma, half = Fraction(-3, 4), Fraction(1, 2)
    found, of_gamma, of_beta, _ = normed(x, e, gamma, 0)
    assert found == graph_grad(x, e, gamma, half, Fraction(2), 0, (half, Fraction(2)))
    assert any(found) and of_gamma == [sum(v * (a - half) / 2 for v, a in zip(e, x, strict=True))]
    assert of_beta == [sum(e)]


@pytest.mark.parametrize("seed", range(4))
def test_C04_gradients_of_batch_norm_are_the_graphs_but_for_named_roundings(seed):
    """The hardware keeps Q(xhat), and has it where the graph has (x - mean) / std and xhat.

    Beyond that only the casts mean_error, mean_product, scale and grad_x round, half a last bit
    each; the gradients of gamma and beta round once. All that holds up to gamma / std = 1/2, where
    the derived cast `scale` saturates, as x has a range of 512.
    """
    rng = np.random.default_rng(seed)
    x = [Fraction(code, 2**14) for code in rng.integers(-400000, 600000, 12).tolist()]
    e = [Fraction(code, 2**11) for code in [-128, 127, *rng.integers(-128, 128, 10).tolist()]]
    gamma, n, eps = Fraction(int(rng.integers(20, 200)), 2**7), len(x), Fraction(1, 2**15)
    mean = sum(x) / n
    var = sum((v - mean) ** 2 for v in x) / n
    std = Fraction(isqrt(int(var * 4**200)), 2**200)  # to 2^-200
    of_mean, of_std = (Fraction(round(v * 2**15), 2**15) for v in (mean, std))
    xhat = [(v - of_mean) / (of_std + eps) for v in x]
    kept = [Fraction(round(v * 2**15), 2**15) for v in xhat]
    found, of_gamma, of_beta, back = normed(x, e, gamma, 1)

    def dot(a, b):
        return sum(p * q for p, q in zip(a, b, strict=True))

    def once(value):
        return max(Fraction(-1), min(1 - Fraction(1, 2**14), Fraction(round(value * 2**14), 2**14)))

    assert (of_gamma, of_beta) == ([once(dot(e, kept))], [once(sum(e))])
    half = {name: Fraction(getattr(back, name).format.step) / 2
            for name in ("mean_error", "mean_product", "scale", "grad_x")}
    exact = graph_grad(x, e, gamma, mean, std, eps, (of_mean, of_std))
    scale = gamma / (of_std + eps)
    assert scale < Fraction(1, 2)
    product, most = dot(e, kept) / n, max(map(abs, e))
    for i in range(n):
        # x-hat for h = (x - mean) / std: roundings of mean and std, eps, and Q of x-hat
        h = (x[i] - mean) / std
        of_h = (eps / 2 + abs(h) * 3 * eps / 2) / (of_std + eps) + eps / 2
        assert abs(kept[i] - h) <= of_h
        kept_for_graph = scale * (of_h * abs(product) + abs(h) * most * eps / 2)
        inner = abs(e[i] - sum(e) / n - kept[i] * product)
        casts = (half["scale"] * (inner + 1) + scale * (
            half["mean_error"] + abs(kept[i]) * half["mean_product"]) + half["grad_x"])
        assert abs(found[i] - exact[i]) <= casts + kept_for_graph
        assert casts + kept_for_graph < Fraction(1, 2**11)  # and that is little


# ----- C6: schedules

@pytest.mark.parametrize(("rate", "code"), [(.05, 26), (.006, 3), (.003, 2), (.0015, 1)])
def test_C06_learning_rates_are_those_of_the_code(rate, code):
    lr = machine_of(recipe()).model.conv1.layer.spec.update.lr
    assert reference.quantize(rate, lr) == code


def test_C06_a_schedule_narrows_the_dynamic_range_and_the_rate():
    widths = {30: 6, 60: 4, 80: 2}  # dr of 128, then 32, 8 and 2
    phases = {epoch: {"lr": rate, "hardware": {"by_type": {"Conv2d": {
        "grad_w": f"s{width} auto:shift=f14 stochastic16 sat_sym"}}}}
        for (epoch, width), rate in zip(widths.items(), (.006, .003, .0015), strict=True)}
    chosen = recipe(training={"lr": 0.05, "phases": phases})
    machine = machine_of(chosen)
    for epoch, width, rate in ((0, 8, .05), (29, 8, .05), (30, 6, .006), (60, 4, .003),
                               (95, 2, .0015)):
        machine.enter(chosen, epoch)
        one_step(machine, chosen)
        rule = machine.model.conv2.layer.spec.grad_w
        assert (rule.width, rule.read(rule.with_frac(0)).frac) == (width, 14)
        assert machine.optimizer.param_groups[0]["lr"] == rate
        codes = machine.model.conv2.weight.grad * 2**14
        assert codes.abs().max() <= 2 ** (width - 1) - 1 and torch.equal(codes, codes.round())


@pytest.mark.parametrize(("phases", "message"), [
    ([1], "needs a mapping of epochs"), ({0: {"lr": 1}}, "from 1 on"),
    ({3: {"rate": 1}}, "unknown recipe training.phases.3 key 'rate'")])
def test_C06_bad_schedules_are_refused(phases, message):
    with pytest.raises(ValueError, match=message):
        Recipe.parse(Recipe.load("digits-cnn-wageubn-full8").as_dict() | {
            "training": {"epochs": 1, "batch": 1, "lr": 1, "phases": phases}})


def test_a_schedule_changes_no_update():
    chosen = recipe(training={"phases": {2: {"hardware": {"by_type": {"Conv2d": {
        "update": {"weight": "s25f23 sat"}}}}}}})
    with pytest.raises(ValueError, match=r"another update .* in the middle of a training"):
        machine_of(chosen).enter(chosen, 2)


# ----- C9: WAGE

@pytest.mark.parametrize("width", [1, 2, 3, 8])
def test_C09_alpha_is_its_formula(width):
    """2^round(log2(Wm / L)), Wm = 1.5 * 2^(1 - width), L = sqrt(3 / fan_in), at least 1."""
    for inputs in [*range(1, 400), 4095, 4096, 4097]:
        square = Fraction(9, 4) * Fraction(1, 4 ** (width - 1)) * Fraction(inputs, 3)
        k = next(k for k in range(-30, 40)
                 if Fraction(2) ** (2 * k - 1) < square < Fraction(2) ** (2 * k + 1))
        assert wage.alpha_shift(inputs, width) == max(k, 0)


def test_C09_weights_are_shifted_by_alpha_and_scales_dropped():
    chosen = recipe("digits-cnn-wage-2888")
    machine = machine_of(chosen)
    spec = machine.model.conv2.layer.spec
    assert str(spec.w) == "s2 f1=f4 ties_even sat_sym" and wage.alpha_shift(32 * 9, 2) == 3
    assert machine.model.fc.layer.spec.w.read(spec.w.with_frac(1)).frac == 1 + wage.alpha_shift(
        64 * 4, 2)
    weight = machine.model.conv2.weight.detach()
    assert weight.abs().max() <= 0.75 and torch.equal(weight * 128, (weight * 128).round())
    one_step(machine, chosen)
    for layer in (machine.model.conv1, machine.model.conv2, machine.model.fc):
        codes = layer.weight.grad * 128
        assert torch.equal(codes, codes.round()) and 0 < codes.abs().max() <= 12  # 8 sqrt(2)


@pytest.mark.parametrize(("inputs", "most"), [(4, 3 / 4), (300, 1 / 100), (2, 3 / 2)])
def test_C09_weights_start_uniform_within_the_larger_bound(inputs, most):
    """max(sqrt(3 / fan_in), 0.75), cut at 1; `most` is sqrt(3 / fan_in) squared."""
    module = torch.nn.Linear(inputs, 4000 // inputs)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wage.initialise(module, "wage")
    bound = min(max(most, 9 / 16) ** 0.5, 1.0)
    weight = module.weight.detach()
    assert 0.98 * bound < weight.abs().max() <= bound and abs(weight.mean()) < 0.05
    share = (weight.abs() < bound / 2).double().mean()  # half of a uniform one, but for the cut
    assert abs(share - bound / 2 / max(most, 9 / 16) ** 0.5) < 0.05


def test_C09_gradients_are_the_formula_of_wage():
    """8 g / R rounded by its draw, in steps of 2^-7; the size of g does not matter."""
    spec = machine_of(recipe("digits-cnn-wage-2888")).model.conv2.layer.spec
    generator = torch.Generator().manual_seed(7)
    x, e = (torch.randint(-127, 128, shape, generator=generator).double() / 2**7
            for shape in ((5, 4), (5, 3)))
    g = [sum(Fraction(a) * Fraction(b) for a, b in zip(error, column, strict=True))
         for error in e.T.tolist() for column in x.T.tolist()]
    scale = power(max(map(abs, g)))
    rands = reference.random_operands(12, 16, reference.load_words(0, 0, "linear", "grad_w", 0))
    want = [max(-16, min(15, (8 * v / scale + Fraction(r, 2**16)).__floor__())) / Fraction(2**7)
            for v, r in zip(g, rands, strict=True)]
    module = nn.Linear(4, 3, bias=False, spec=spec).double()
    module(x).backward(e)
    assert [Fraction(v) for v in module.weight.grad.reshape(-1).tolist()] == want
    assert max(map(abs, want)) >= Fraction(5, 2**7)


def test_C09_other_initialisations_are_refused():
    with pytest.raises(ValueError, match="unknown initialisation 'wag': did you mean 'wage'"):
        wage.initialise(torch.nn.Linear(2, 2), "wag")


@pytest.mark.parametrize(("name", "least"), [("digits-cnn-wageubn-full8", 0.93),
                                             ("digits-cnn-wage-2888", 0.80)])
def test_a_few_epochs_of_integers_learn_digits(name, least, tmp_path):
    run = lab.train(recipe(name, training={"epochs": 3}, monitor=0), tmp_path / "run")
    assert run.metrics[-1]["test_accuracy"] > least


NEAREST = """{default: {error: s16f10 ties_even sat, grad_w: s16f10 ties_even sat,
  grad_b: s16f10 ties_even sat, update: {weight: s16f10 ties_even sat}}}"""


def test_sixteen_bits_learn_with_stochastic_rounding_and_not_with_nearest():
    """The contrast of Gupta et al. (arXiv 1502.02551)."""
    found = []
    for changes in ("{}", NEAREST):
        chosen = recipe("digits-mlp-gupta", monitor=0).with_hardware(changes)
        images = load("digits")
        machine = lab.Machine.build(chosen, images)
        for epoch in range(4):
            metrics, _ = lab._epoch(chosen, images, machine, epoch, None)
        found.append(metrics["test_accuracy"])
    assert found[0] > found[1] + 0.15 and found[0] > 0.6


@pytest.mark.parametrize(("text", "message"), [
    ("{default: ", "no YAML"), ("3", "needs a mapping such as"),
    ("wageubn-e61", "unknown preset 'wageubn-e61': did you mean 'wageubn-e16'")])
def test_bad_changes_of_hardware_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        recipe().with_hardware(text)


# ----- no float anywhere

MOVES = {"detach", "lift_fresh", "copy_", "view", "clone", "zeros_like", "ones_like", "index_put_",
         "gt", "clamp"}  # what torch itself may do with grid values: move, compare, limit


class FloatOperations(TorchDispatchMode):
    """Counts what ATen does with float tensors."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        flat = [x for part in (*args, *(kwargs or {}).values())
                for x in (part if isinstance(part, list | tuple) else [part])]
        if any(isinstance(x, torch.Tensor) and x.is_floating_point() for x in flat):
            self.seen[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["digits-cnn-wageubn-full8", "digits-cnn-wage-2888"])
def test_a_whole_step_is_made_of_integers(name, monkeypatch):
    """From input codes to updated weight codes ATen moves and compares grid values, no more."""
    chosen = recipe(name)
    machine = machine_of(chosen)

    def no_host():
        raise AssertionError("a part of the step ran on the host")

    monkeypatch.setattr("emu.nn.ops.loss.host", no_host)
    x, y, *_ = (torch.from_numpy(part[:6]) for part in few(chosen))
    with nn.audit(), FloatOperations() as watched:
        loss = machine.loss(machine.model(x), y)
        machine.optimizer.zero_grad()
        loss.backward()
        machine.optimizer.step()
    assert set(watched.seen) <= MOVES and watched.seen["detach"] > 20
    with pytest.raises(AssertionError, match="on the host"):
        nn.cross_entropy(machine.model(x), y)
    weights = machine.model.conv2.weight.detach() * 2.0 ** (
        machine.model.conv2.layer.spec.update.weight.format.frac)
    assert torch.equal(weights, weights.round())


def test_the_step_of_a_layer_is_its_formula():
    """A linear layer of WAGEUBN on fractions: forward, E2 with flags, CQ with its draws, update."""
    chosen = recipe()
    spec = machine_of(chosen).model.conv2.layer.spec
    module = nn.Linear(4, 3, bias=False, spec=spec).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        module.weight.copy_(torch.randint(-2**23, 2**23, (3, 4), generator=generator) / 2**23)
    x = torch.randint(0, 300, (5, 4), generator=generator).double() / 2**7
    e0 = torch.randint(-9000, 9000, (5, 3), generator=generator).double() / 2**18
    e0[0, 0] = 1 / 2**18
    optimizer = nn.SGD(module, lr=26 / 512, momentum=0.75)
    held = [[Fraction(0)] * 4 for _ in range(3)]
    for step in range(2):
        w = [[Fraction(v) for v in row] for row in module.weight.tolist()]
        xs = x.clone().requires_grad_()
        optimizer.zero_grad()
        y = module(xs)
        y.backward(e0)
        xq = [[min(Fraction(255, 128), Fraction(round(Fraction(v) * 128), 128)) for v in row]
              for row in x.tolist()]
        wq = [[max(-Fraction(127, 128), min(Fraction(127, 128), Fraction(round(v * 128), 128)))
               for v in row] for row in w]
        assert [[Fraction(v) for v in row] for row in y.tolist()] == [
            [sum(a * b for a, b in zip(row, out, strict=True)) for out in wq] for row in xq]
        flat = [Fraction(v) for v in e0.reshape(-1).tolist()]
        scale = power(max(map(abs, flat)))
        e = [flagged(v, scale) for v in flat]
        e = [e[i:i + 3] for i in range(0, 15, 3)]
        assert [[Fraction(v) for v in row] for row in xs.grad.tolist()] == [
            [sum(row[o] * wq[o][i] for o in range(3)) for i in range(4)] for row in e]
        grads = [[sum(e[n][o] * xq[n][i] for n in range(5)) for i in range(4)] for o in range(3)]
        top = power(max(abs(v) for row in grads for v in row))
        rands = reference.random_operands(12, 16, reference.load_words(
            0, step, "linear", "grad_w", 0))
        g = [max(-127, min(127, (128 * v / top + Fraction(r, 2**16)).__floor__())) * Fraction(
            1, 2**14) for v, r in zip([v for row in grads for v in row], rands, strict=True)]
        assert [Fraction(v) for v in module.weight.grad.reshape(-1).tolist()] == g
        optimizer.step()
        for i in range(12):
            acc = Fraction(3, 4) * held[i // 4][i % 4] + g[i]
            moved = w[i // 4][i % 4] - Fraction(26, 512) * acc
            moved = max(-Fraction(1), min(1 - Fraction(1, 2**23), moved))
            assert Fraction(module.weight[i // 4, i % 4].item()) == moved
            held[i // 4][i % 4] = Fraction(round(acc * 2**12), 2**12)


def power(most: Fraction) -> Fraction:
    """The power of two nearest to a number by their logarithms."""
    return next(Fraction(2) ** e for e in range(-60, 30)
                if Fraction(2) ** (2 * e - 1) < most**2 < Fraction(2) ** (2 * e + 1))


def flagged(value: Fraction, scale: Fraction) -> Fraction:
    n = abs(value) * 128 / scale
    code = min(round(n), 127) * 128 if n >= 1 else round(n * 128)
    return code * scale / 2**14 * (1 if value > 0 else -1)


def test_weights_beyond_their_range_warn_with_counts():
    machine = machine_of(recipe())
    state = {key: value for key, value in machine.model.state_dict().items()
             if not key.endswith("_extra_state")}
    state["conv1.weight"][0, 0, 0, :2] = torch.tensor([1.5, -3.0])
    with pytest.warns(UserWarning, match=r"conv1.weight: 2 of 144 values are outside s24f23, "
                                         r"-1.0 to 0.99.*: they saturate"):
        machine.model.load_state_dict(state)
    assert machine.model.conv1.weight[0, 0, 0, 1] == -1


# ----- resuming

@pytest.fixture
def small(monkeypatch):
    """Digits, few of them."""
    images = Images(*(part[:n] for part, n in zip(load("digits"), (48, 48, 40, 40), strict=True)))
    monkeypatch.setattr(lab, "load", lambda source: images)


def short() -> Recipe:
    """Three epochs of three steps; the second is of another width."""
    return recipe(training={"epochs": 3, "batch": 16, "phases": {1: {"lr": 0.125, "hardware": {
        "by_type": {"Conv2d": {"grad_w": "s6 auto:shift=f14 stochastic16 sat_sym"}}}}}})


def test_a_run_stopped_after_any_step_resumes_to_the_same_bytes(small, tmp_path, monkeypatch):
    whole = (lab.train(short(), tmp_path / "whole").path / WEIGHTS).read_bytes()
    step = lab._step
    for stop in range(1, 9):
        taken = iter(range(100))

        def stopping(*args, stop=stop, taken=taken):
            if next(taken) == stop + 1:  # the first one is the rehearsal
                raise KeyboardInterrupt
            return step(*args)

        monkeypatch.setattr(lab, "_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            lab.train(short(), tmp_path / f"{stop}")
        monkeypatch.setattr(lab, "_step", step)
        run = lab.train(short(), tmp_path / f"{stop}", resume=True)
        assert (run.path / WEIGHTS).read_bytes() == whole, stop


KILLED = """
import os, signal, sys
from pathlib import Path
import emu.lab.train as lab, emu.lab.run as run
import test_wage_training as here
from emu.lab.data import Images, load
images = Images(*(part[:n] for part, n in zip(load("digits"), (48, 48, 40, 40))))
lab.load = lambda source: images
replace = os.replace
def kill(temporary, path):
    if str(path).endswith("checkpoint.pt") and os.path.exists(path):
        with open(temporary, "r+b") as file:  # as if only a part had been written
            file.truncate(1000)
        os.kill(os.getpid(), signal.SIGKILL)
    replace(temporary, path)
run.os.replace = kill
lab.train(here.short(), Path(sys.argv[1]))
"""


def test_a_run_killed_while_it_writes_a_checkpoint_resumes_to_the_same_bytes(small, tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "killed")], check=False,
                          cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    resumed = lab.train(short(), tmp_path / "killed", resume=True)
    whole = lab.train(short(), tmp_path / "whole")
    assert (resumed.path / WEIGHTS).read_bytes() == (whole.path / WEIGHTS).read_bytes()
    assert not list(resumed.path.glob("*.tmp"))


def test_one_and_two_threads_write_the_same_bytes(small, tmp_path, monkeypatch):
    monkeypatch.setattr(jit, "TEAM", 0)  # else most of these arrays run on one thread anyway
    before, found = numba.get_num_threads(), []
    try:
        for threads in (1, 2):
            numba.set_num_threads(threads)
            run = lab.train(short(), tmp_path / str(threads))
            found.append((run.path / WEIGHTS).read_bytes())
    finally:
        numba.set_num_threads(before)
    assert found[0] == found[1]


def test_closed_casts_are_not_recorded(tmp_path):
    with pytest.raises(ValueError, match=r"act2.error: closed s8f.* no RTL unit does; use sat_sym"):
        lab.train(under("wageubn-official"), tmp_path / "run", record=tmp_path / "step")
    assert not list(tmp_path.iterdir())


def test_rules_and_flags_are_texts_of_a_configuration():
    spec = machine_of(recipe()).model.conv2.layer.spec
    assert isinstance(spec.error, Rule) and isinstance(spec.error.with_frac(14), FlagCast)
    assert nn.Config.parse(str(nn.Config(default={"error": str(spec.error)}))).resolve(
        nn.Site("a", "Linear")).error == spec.error
