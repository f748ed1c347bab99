"""Thresholds that are learned: the casts, their gradients, and what trains them."""

import copy
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from fixed_layers import tensor
from hypothesis import given
from hypothesis import strategies as st
from integer_network import flat, some
from strategies import DETERMINISTIC

from emu import Cast, Format, LayerSpec, Rule, engine, nn, reference

LN2 = math.log(2)
SIGNED = [-1.3, -1, -.7, -.125, .125, .375, .6, .9, .95, 1.2]
UNSIGNED = [-.2, 0, .1, .3, .6, .9, 1.3]


def activation(cast: str, log2_t: float) -> torch.nn.Module:
    """One cast of activations with this threshold, in float64."""
    module = nn.Activation(spec=LayerSpec.parse({"y": cast}))
    module._parameters["y_log2_t"] = torch.nn.Parameter(torch.tensor([log2_t]).double())
    return module


def passed(cast: str, log2_t: float, values: list[float]):
    """(results, gradients of x, gradient of log2_t) for gradients of 1."""
    module = activation(cast, log2_t)
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    with nn.audit():
        y = module(x)
        y.backward(torch.ones_like(y))
    return y.tolist(), x.grad.tolist(), module.y_log2_t.grad.item()


def test_D01_signed_thresholds_have_the_gradients_of_the_paper():
    y, dx, slope = passed("s3 learned ties_even sat", -.3, SIGNED)
    assert y == [-1, -1, -.75, 0, 0, .5, .5, .75, .75, .75]
    assert dx == [0, 1, 1, 1, 1, 1, 1, 0, 0, 0]
    assert round(slope, 6) == 0.849105


def test_D01_unsigned_thresholds_have_the_gradients_of_the_paper():
    y, dx, slope = passed("u2 learned ties_even sat", 0, UNSIGNED)
    assert y == [0, 0, 0, .25, .5, .75, .75]
    assert dx == [0, 1, 1, 1, 1, 0, 0]
    assert round(slope, 6) == 0.866434


def by_fractions(value: Fraction, log2_t: float, width: int, signed: bool) -> tuple:
    """(q, dq/dx, dq/dlog2_t / ln 2) as the paper writes them, ties to even."""
    s = Fraction(2) ** (math.ceil(log2_t) - (width - signed))
    n, p = (-2**(width - 1), 2**(width - 1) - 1) if signed else (0, 2**width - 1)
    ratio = value / s
    rounded = round(ratio)  # Python rounds ties to even
    if n <= rounded <= p:
        return rounded * s, 1, s * (rounded - ratio)
    return (n if rounded < n else p) * s, 0, s * (n if rounded < n else p)


@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=9), st.floats(-3, 3, width=32),
       st.integers(2, 8), st.booleans())
def test_D01_equals_the_formulas_in_fractions(values, log2_t, width, signed):
    values = [round(value * 2**20) / 2**20 for value in values]  # within 34 bits below s
    got = passed(f"{'s' if signed else 'u'}{width} learned ties_even sat", log2_t, values)
    q, dx, slopes = zip(*(by_fractions(Fraction(value), log2_t, width, signed)
                          for value in values), strict=True)
    assert got == (list(map(float, q)), list(dx), float(sum(slopes)) * LN2)


@pytest.mark.parametrize("overflow", ["sat", "sat_sym"])
@pytest.mark.parametrize("rounding", [r.name.lower() for r in DETERMINISTIC])
def test_the_engine_equals_the_definition(rounding, overflow):
    for form in (Format(3, 1), Format(2, -1), Format(3, 0, signed=False), Format(4, 6)):
        to = Cast(form, *(getattr(Cast.parse(f"s4 {rounding} {overflow}"), name)
                          for name in ("rounding", "overflow")))
        codes = list(range(-64, 64))
        grads = [(37 * c) % 101 - 50 for c in codes]
        for frac in (-2, 0, 3, 5):
            found = engine.cast_full(np.array(codes), frac, to)
            steps, fine = engine.threshold_steps(np.array(codes), frac, found, to)
            assert fine == max(frac, form.frac)
            assert steps.tolist() == [reference.threshold_step(c, frac, to) for c in codes]
            assert engine.dot_exactly(np.array(grads), steps) == reference.threshold_grad(
                codes, frac, grads, to)


def test_the_definition_is_the_paper_in_fractions():
    for code in range(-40, 40):
        step = reference.threshold_step(code, 4, Cast.parse("s3f2 ties_even sat"))
        assert Fraction(step, 2**4) == by_fractions(Fraction(code, 16), 0.0, 3, True)[2]


@given(st.lists(st.tuples(st.integers(-2**62, 2**62), st.integers(-2**62, 2**62)), max_size=9))
def test_sums_of_products_are_exact_whatever_their_width(pairs):
    a, b = (np.array([pair[i] for pair in pairs], np.int64) for i in range(2))
    assert engine.dot_exactly(a, b) == sum(x * y for x, y in pairs)


def test_long_sums_of_products_are_exact():
    a = np.full((1 << 20) + 3, (1 << 40) - 1)
    assert engine.dot_exactly(a, -a) == -a.size * ((1 << 40) - 1)**2


# Inside a layer: the gradient of each operand, before the mask of what saturated.

LEARNED = {"x": "s4 learned ties_even sat", "w": "s3 learned ties_away sat",
           "b": "s4 learned to_zero sat", "y": "s6 learned ties_pos sat",
           "error": "s30f12 ties_even sat", "grad_w": "s40f20 ties_even sat",
           "grad_b": "s40f20 ties_even sat", "forward": {"acc": "s16 sat"},
           "grad_input": {"acc": "s60 sat"}, "grad_weight": {"acc": "s60 sat"},
           "grad_bias": {"acc": "s60 sat"}}
LOG2_T = {"x": 0.3, "w": 0.5, "b": -0.2, "y": 1.4}
X, W, B, GRAD = (some((5, 6), 220, 6, 1), some((4, 6), 70, 5, 2), some((4,), 60, 6, 4),
                 some((5, 4), 90, 5, 3))


def linear(spec=LEARNED) -> torch.nn.Module:
    module = nn.Linear(6, 4, spec=LayerSpec.parse(spec)).double()
    with torch.no_grad():
        module.weight.copy_(tensor(W))
        module.bias.copy_(tensor(B))
        for name, threshold in module.layer.thresholds.items():
            threshold.fill_(LOG2_T[name])
    return module


def fractions_of(grid) -> list[Fraction]:
    return [Fraction(code, 2**grid.frac) for code in flat(grid.codes)]


def rows(values: list, count: int) -> list[list]:
    return [values[i:i + count] for i in range(0, len(values), count)]


def in_cast(name: str, values: list[Fraction]) -> tuple[list, list, list]:
    """(results, masks, slopes) of a learned cast of LEARNED, in fractions."""
    to = Rule.parse(LEARNED[name]).with_range(math.ceil(LOG2_T[name]))
    frac = 20
    codes = [int(value * 2**frac) for value in values]
    step = Fraction(1, 2**to.format.frac)
    return ([reference.cast(c, frac, to) * step for c in codes],
            [reference.passes(c, frac, to) for c in codes],
            [Fraction(reference.threshold_step(c, frac, to), 2**frac) for c in codes])


def test_D01_every_operand_of_a_layer_learns_its_threshold():
    module = linear()
    x = tensor(X).double().requires_grad_()
    with nn.audit():
        y = module(x)
        y.backward(tensor(GRAD).double())
    (qx, mx, sx), (qw, mw, sw), (qb, mb, sb) = (in_cast(name, fractions_of(grid))
                                                for name, grid in (("x", X), ("w", W), ("b", B)))
    qx, qw, grad = rows(qx, 6), rows(qw, 6), rows(fractions_of(GRAD), 4)
    sums = [sum(a * b for a, b in zip(p, q, strict=True)) + qb[i]
            for p in qx for i, q in enumerate(qw)]
    qy, my, sy = in_cast("y", sums)
    assert y.flatten().tolist() == list(map(float, qy))
    slope = {"y": sum(g * s for g, s in zip(fractions_of(GRAD), sy, strict=True))}
    grad = rows([g if m else 0 for g, m in zip(fractions_of(GRAD), my, strict=True)], 4)
    of_x = [sum(g * qw[o][i] for o, g in enumerate(row)) for row in grad for i in range(6)]
    of_w = [sum(row[o] * qx[n][i] for n, row in enumerate(grad)) for o in range(4)
            for i in range(6)]
    of_b = [sum(row[o] for row in grad) for o in range(4)]
    for name, of, mask, steps, tensor_ in (("x", of_x, mx, sx, x), ("w", of_w, mw, sw,
                                            module.weight), ("b", of_b, mb, sb, module.bias)):
        slope[name] = sum(g * s for g, s in zip(of, steps, strict=True))
        assert tensor_.grad.flatten().tolist() == [float(g * m)
                                                   for g, m in zip(of, mask, strict=True)]
    assert {name: float(p.grad) for name, p in module.layer.thresholds.items()} == {
        name: float(value) * LN2 for name, value in slope.items()}
    assert all(slope.values())


def test_a_threshold_is_learned_where_its_tensor_wants_no_gradient():
    module, other = linear(), linear()
    other.weight.requires_grad_(False)
    for each in (module, other):
        each(tensor(X).double()).backward(tensor(GRAD).double())
    assert other.weight.grad is None
    assert other.w_log2_t.grad == module.w_log2_t.grad != 0
    assert other.x_log2_t.grad == module.x_log2_t.grad != 0


def test_frozen_thresholds_leave_the_layer_as_it_is_with_fixed_points():
    module = linear()
    nn.freeze_thresholds(module)
    casts = {name: str(Rule.parse(LEARNED[name]).with_range(math.ceil(LOG2_T[name])))
             for name in LOG2_T}
    other = nn.Linear(6, 4, spec=LayerSpec.parse({**LEARNED, **casts})).double()
    other.load_state_dict(module.state_dict(), strict=False)
    got = []
    for each in (module, other, linear()):
        x = tensor(X).double().requires_grad_()
        each(x).backward(tensor(GRAD).double())
        got.append([x.grad.tolist(), each.weight.grad.tolist(), each.bias.grad.tolist()])
    assert got[0] == got[1] == got[2]
    assert all(p.grad is None for p in nn.thresholds(module).values())


def test_both_operands_of_a_sum_share_one_threshold():
    class Sum(torch.nn.Module):
        def forward(self, x, y):
            return x + y

    model = nn.fix(Sum(), {"by_type": {"add": {"x": "s4 learned ties_even sat"}}})
    a, b = (torch.tensor(v, dtype=torch.float32) for v in ([.3, 2.], [.45, -.9]))
    model(a, b)
    assert list(dict(model.named_parameters())) == ["add_x_log2_t"]
    with torch.no_grad():
        model.double().add_x_log2_t.fill_(0)
    y = model(a, b)
    y.backward(torch.tensor([1., 2.]))
    want = [by_fractions(Fraction(float(v)), 0.0, 4, True) for v in (*a, *b)]
    assert y.tolist() == [float(want[0][0] + want[2][0]), float(want[1][0] + want[3][0])]
    assert model.add_x_log2_t.grad.item() == LN2 * float(
        want[0][2] + 2 * want[1][2] + want[2][2] + 2 * want[3][2])


def test_the_first_nonzero_batch_of_training_chooses_a_threshold():
    module = nn.Activation(spec=LayerSpec.parse({"y": "s4 learned ties_even sat"}))
    module(torch.zeros(3))
    module.eval()(torch.ones(3))
    assert module.y_log2_t.isnan()
    assert module.train()(torch.tensor([2.5, 0.])).tolist() == [2.5, 0]
    assert module.y_log2_t.item() == 1.5  # the range is 4, as auto:max has it
    assert module(torch.tensor([8.])).tolist() == [3.5]


def test_thresholds_are_in_the_state_and_survive_copies():
    module = linear()
    state = module.state_dict()
    assert {"x_log2_t", "w_log2_t", "b_log2_t", "y_log2_t"} < set(state)
    fresh = nn.Linear(6, 4, spec=LayerSpec.parse(LEARNED)).double()
    fresh.load_state_dict(state, assign=True)
    want = module(tensor(X).double())
    for other in (fresh, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(tensor(X).double()), want)
        with torch.no_grad():
            other.x_log2_t.fill_(-9)  # the parameter is what the layer uses
        assert not torch.equal(other(tensor(X).double()), want)


def test_a_fresh_model_has_the_thresholds_of_functions_that_a_state_names():
    class Sum(torch.nn.Module):
        def forward(self, x):
            return x + x

    config = {"by_type": {"add": {"y": "s4 learned ties_even sat"}}}
    model = nn.fix(Sum(), config)
    model(torch.tensor([.7]))
    fresh = nn.fix(Sum(), config)
    fresh.load_state_dict(model.state_dict())
    assert fresh.add_y_log2_t.item() == 0.5 == model.add_y_log2_t.item()


@pytest.mark.parametrize(("spec", "message"), [
    ({"error": "s8 learned ties_even sat"}, "error: s8 learned"),
    ({"x": "s8 learned ties_even"}, "use sat or sat_sym"),
    ({"x": "s8 lerned sat"}, "did you mean 'learned'"),
])
def test_refused_settings(spec, message):
    with pytest.raises(ValueError, match=message):
        LayerSpec.parse(spec)


def test_a_scope_has_no_parameters_for_thresholds():
    with pytest.raises(ValueError, match=r"use emu\.nn\.fix"), nn.fixed_scope(
            {"by_type": {"add": {"y": "s4 learned ties_even sat"}}}):
        torch.ones(2) + torch.ones(2)


def test_optimizers_on_codes_leave_thresholds_to_another():
    torch.manual_seed(1)  # weights whose rounding moves every threshold
    model = nn.fix(torch.nn.Sequential(torch.nn.Linear(6, 4)).double(), {"default": {
        **LEARNED, "update": {"weight": "s24f16 ties_even sat", "momentum": "s24f16 ties_even sat",
                              "grad": "s24f16 ties_even sat", "lr": "u8f8", "mu": "u8f8"}}})
    model(tensor(X).double()).backward(tensor(GRAD).double())
    thresholds = nn.thresholds(model)
    assert list(thresholds) == ["0.x", "0.w", "0.b", "0.y"]
    before = [p.item() for p in thresholds.values()]
    sgd, adam = nn.SGD(model, 0.25), torch.optim.Adam(thresholds.values(), 0.125)
    sgd.step()
    assert [p.item() for p in thresholds.values()] == before
    adam.step()
    assert all(p.item() != b for p, b in zip(thresholds.values(), before, strict=True))
    assert len(sgd.param_groups[0]["params"]) == 2
    masters = nn.FloatMasters(torch.optim.Adam, model, lr=0.125)
    now = [p.item() for p in thresholds.values()]
    masters.step()
    assert all(p.item() != b for p, b in zip(thresholds.values(), now, strict=True))
    state = masters.state_dict()
    masters.load_state_dict(state)


# What is shared and frozen.

def two() -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 4)).double()
    nn.fix(model, {"default": LEARNED})
    model(tensor(X).double()).backward(tensor(GRAD).double())
    return model


def test_D06_shared_thresholds_are_one_parameter():
    model = two()
    largest = max(model[0].y_log2_t.item(), model[1].y_log2_t.item())
    nn.share_thresholds(model, ["0.y", "1.y"])
    assert model[0].y_log2_t is model[1].y_log2_t
    assert model[0].y_log2_t.item() == largest
    assert len(list(model.parameters())) == 4 + 7
    other = copy.deepcopy(model)
    assert other[0].y_log2_t is other[1].y_log2_t is not model[0].y_log2_t
    model.zero_grad()
    with nn.audit():
        model(tensor(X).double()).backward(tensor(GRAD).double())
    assert model[0].y_log2_t.grad != 0
    with pytest.raises(ValueError, match=r"did you mean '0\.y'"):
        nn.share_thresholds(model, ["0.z"])


class Joined(torch.nn.Module):
    """Two layers of one input, side by side."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(6, 6), torch.nn.Linear(6, 4)

    def forward(self, x):
        return torch.cat([self.a(x), self.b(x)], 1)


def test_D06_the_parts_of_a_concatenation_may_share_one_scale():
    model = nn.fix(Joined().double(), {"default": LEARNED})
    model(tensor(X).double())
    with torch.no_grad():
        model.b.y_log2_t.copy_(model.a.y_log2_t + 3)
    alone = model(tensor(X).double())
    shared = nn.share_thresholds(model, ["a.y", "b.y"])
    assert model.a.y_log2_t is model.b.y_log2_t is shared
    together = model(tensor(X).double())
    assert not torch.equal(alone[:, :6], together[:, :6])  # in the coarser steps of the other
    assert torch.equal(alone[:, 6:], together[:, 6:])
    apart = 0
    for layer in (model.a, model.b):
        shared.grad = None
        layer(tensor(X).double()).sum().backward()
        apart += shared.grad
    shared.grad = None
    model(tensor(X).double()).sum().backward()
    assert torch.equal(shared.grad, apart)  # both move it


def test_thresholds_freeze_one_by_one_the_steadiest_first():
    model = two()
    freezer = nn.Freezer(model, start=2, every=3)
    order = sorted(nn.thresholds(model), key=lambda name: abs(float(
        nn.thresholds(model)[name].grad)))
    frozen = [freezer.step() for _ in range(8)]
    assert frozen == [None] * 4 + [order[0]] + [None] * 2 + [order[1]]
    assert [name for name, p in nn.thresholds(model).items() if not p.requires_grad] == sorted(
        order[:2], key=list(nn.thresholds(model)).index)


def test_integer_export_has_the_exponent_of_each_range():
    model = two()
    codes = nn.fix_state_dict(model)
    for name, p in nn.thresholds(model).items():
        path, setting = name.split(".")
        assert codes[f"{path}.{setting}_log2_t"]["codes"].tolist() == [math.ceil(p.item())]
    twin = nn.fix(torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 4)).double(),
                  {"default": LEARNED})
    nn.load_fix_state_dict(twin, codes)
    assert torch.equal(twin.eval()(tensor(X).double()), model.eval()(tensor(X).double()))


@pytest.mark.parametrize("t", [1.0, 1 + 2**-52, 128 * (1 + 2**-50), 128.0, 0.75, 2.0**-30])
def test_the_logarithm_of_a_threshold_keeps_its_range(t):
    exact = next(e for e in range(-60, 60) if Fraction(2)**e >= Fraction(t))
    assert math.ceil(np.float32(nn.log2_of(t))) == exact == math.ceil(nn.log2_of(t))

