"""Sums, differences, products and quotients, forward and backward, against Fractions."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from fraction_layers import MODES, Site, called, fixed, folded, lists, seeded, tensor

from emu import LayerSpec, nn, reference
from emu.number import Cast, Format

SHAPES = [((3, 4), (3, 4)), ((2, 3, 4), (4,)), ((3, 1), (1, 4)), ((), (2, 3)), ((3, 4), ())]
CASTS = {"x": "s5f2", "w": "s4f1", "y": "s6f2", "error": "s5f3"}
ADDS = {"add": (lambda x, y: x + y, 1, 1), "sub": (lambda x, y: x - y, 1, -1),
        "rsub": (torch.rsub, -1, 1),
        "quarter": (lambda x, y: torch.add(x, y, alpha=0.25), 1, Fraction(1, 4)),
        "minus 2": (lambda x, y: torch.sub(x, y, alpha=2), 1, -2)}


def operands(shapes=SHAPES[0]):
    """Two operands and a gradient of what they are broadcast to."""
    a, b = (seeded(shape, 90, 4, i) if shape else seeded((1,), 90, 4, i)[0:1].reshape(())
            for i, shape in enumerate(shapes))
    return a, b, seeded(np.broadcast_shapes(*shapes), 90, 5, 3)


def sums(site, a, b, grad, one, two):
    """A sum of two multiples, by its casts."""
    a, pass_a = site.cast("x", a)
    b, pass_b = site.cast("x.1", b)
    y, passes = site.cast("y", a * one + b * two)
    error, _ = site.cast("error", np.where(passes, grad, 0))
    return lists(y, np.where(pass_a, folded(error * one, a), 0),
                 np.where(pass_b, folded(error * two, b), 0))


def products(site, a, b, grad):
    """A product, by its casts."""
    a, pass_a = site.cast("x", a)
    b, pass_b = site.cast("w", b)
    y, passes = site.cast("y", a * b)
    error, _ = site.cast("error", np.where(passes, grad, 0))
    return lists(y, np.where(pass_a, folded(error * b, a), 0),
                 np.where(pass_b, folded(error * a, b), 0))


def squares(site, a, grad):
    """A square, by its casts."""
    a, pass_a = site.cast("x", a)
    y, passes = site.cast("y", a * a)
    error, _ = site.cast("error", np.where(passes, grad, 0))
    return lists(y, np.where(pass_a, 2 * a * error, 0))


def divided(site, name, values, over):
    """(quotients rounded once in the cast `name`, where gradients pass)."""
    to = getattr(site.spec, name)
    # The quotients, rounded but not yet fitted.
    unfitted = Cast(Format(64, to.format.frac), to.rounding)
    values, over = np.broadcast_arrays(values, over)
    rounded = [reference.divide(int(x * 2**20) * (1 if d > 0 else -1), int(abs(d) * 2**10), 10,
                                unfitted)
               for x, d in zip(values.reshape(-1), over.reshape(-1), strict=True)]
    step = Fraction(2)**-to.format.frac
    return (np.array([reference.fit(x, to) * step for x in rounded], object).reshape(values.shape),
            np.array([reference.passes(x, 0, to.with_frac(0)) for x in rounded]
                     ).reshape(values.shape))


def quotients(site, a, b, grad):
    """A quotient, by its casts."""
    a, pass_a = site.cast("x", a)
    b, pass_b = site.cast("w", b)
    y, passes = divided(site, "y", a, b)
    error, _ = divided(site, "error", np.where(passes, grad, 0), b)
    return lists(y, np.where(pass_a, folded(error, a), 0),
                 np.where(pass_b, folded(-error * y, b), 0))


def spec_of(modes, names=tuple(CASTS)) -> LayerSpec:
    """CASTS in these modes."""
    return LayerSpec.parse({name: f"{CASTS[name]} {modes}" for name in names})


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("name", ADDS)
def test_a_sum_is_exact(name, shapes):
    function, *factors = ADDS[name]
    a, b, grad = operands(shapes)
    assert called(function, {}, [a, b], grad) == sums(Site(name, LayerSpec()), a, b, grad, *factors)


@pytest.mark.parametrize("modes", MODES)
def test_a_sum_is_cast_in_every_mode(modes):
    a, b, grad = operands(((3, 4), (3, 1)))
    spec = spec_of(modes, ("x", "y", "error"))
    got = called(lambda x, y: x + y, spec, [a, b], grad)
    assert got == sums(Site("add", spec), a, b, grad, 1, 1)


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_a_product_is_exact(shapes):
    a, b, grad = operands(shapes)
    got = called(lambda x, y: x * y, {}, [a, b], grad)
    assert got == products(Site("mul", LayerSpec()), a, b, grad)


@pytest.mark.parametrize("modes", MODES)
def test_a_product_is_cast_in_every_mode(modes):
    a, b, grad = operands(((3, 4), (3, 1)))
    got = called(lambda x, y: x * y, spec_of(modes), [a, b], grad)
    assert got == products(Site("mul", spec_of(modes)), a, b, grad)


@pytest.mark.parametrize(("name", "function"), [
    ("square", torch.square), ("pow", lambda x: x**2), ("pow", lambda x: x.pow(2.0))])
@pytest.mark.parametrize("modes", ["to_odd sat", "ties_even wrap", "stochastic4 sat_zero"])
def test_a_square_is_cast_once_on_entry(name, function, modes):
    a, _, grad = operands()
    spec = spec_of(modes, ("x", "y", "error"))
    assert called(function, spec, [a], grad) == squares(Site(name, spec), a, grad)


@pytest.mark.parametrize("modes", [mode for mode in MODES if "stochastic" not in mode])
def test_a_quotient_is_rounded_once_in_every_mode(modes):
    a, _, grad = operands()
    b = np.array([[Fraction(-13, 4)], [Fraction(9, 4)], [Fraction(15, 8)]], object)
    got = called(lambda x, y: x / y, spec_of(modes), [a, b], grad)
    assert got == quotients(Site("div", spec_of(modes)), a, b, grad)


def test_a_quotient_of_powers_of_two_is_exact():
    a, _, grad = operands()
    b = np.array([Fraction(1, 2), -2, 8, Fraction(-1, 4)], object)
    want = lists(a / b, grad / b, -(grad * a / b / b).sum(0))
    assert called(lambda x, y: x / y, {}, [a, b], grad) == want


@pytest.mark.parametrize(("function", "factor"), [
    (lambda x: x * 0.125, Fraction(1, 8)), (lambda x: 3 * x, 3), (lambda x: x / 4, Fraction(1, 4)),
    (lambda x: x / -0.5, -2), (lambda x: -x, -1), (torch.neg, -1)], ids=range(6))
def test_numbers_scale_exactly(function, factor):
    a, _, grad = operands()
    assert called(function, {}, [a], grad) == lists(a * factor, grad * factor)


@pytest.mark.parametrize(("function", "want"), [
    (lambda x: x + 1.5, lambda a: a + Fraction(3, 2)), (lambda x: 2 - x, lambda a: 2 - a),
    (lambda x: sum([x, x]), lambda a: a * 2), (lambda x: x - 1, lambda a: a - 1)], ids=range(4))
def test_numbers_add_exactly(function, want):
    a, _, _ = operands()
    with nn.audit():
        assert lists(want(a)) == [fixed(function)(tensor(a)).flatten().tolist()]


def test_a_factor_that_is_a_number_is_cast_by_w():
    y = fixed(lambda x: x * 0.3, {"w": "s4f3 ties_even sat"})(torch.tensor([1.0, 8.0]))
    assert y.tolist() == [0.25, 2]


def test_a_divisor_that_is_a_number_is_cast_by_w():
    y = fixed(lambda x: x / 0.3, {"w": "s4f3 ties_even sat"})(torch.tensor([1.0, 8.0]))
    assert y.tolist() == [4, 32]


def test_a_number_of_a_sum_is_cast_by_x():
    y = fixed(lambda x: x + 0.3, {"x": "s8f2 ties_even sat"})(torch.tensor([1.1]))
    assert y.tolist() == [1.25]


def test_integer_tensors_are_numbers():
    y = fixed(lambda x: torch.tensor([1, 2]) * x)(torch.tensor([0.5, 0.25]))
    assert y.tolist() == [0.5, 0.5]
    assert y.dtype == torch.float32


def test_an_absolute_value_passes_the_error_with_its_sign():
    a, grad = np.array([-3, 0, 2], object), np.array([5, 6, 7], object)
    for function in (abs, torch.abs):
        assert called(function, {}, [a], grad) == [[3, 0, 2], [-5, 0, 7]]


@pytest.mark.parametrize("function", [
    lambda x, y: (x + 0).add_(y), lambda x, y: torch.add(x, y, out=torch.empty(2))],
    ids=["add_", "out"])
def test_a_sum_may_be_written_in_place(function):
    with torch.no_grad():
        y = fixed(function)(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5]))
    assert y.tolist() == [1.5, 2.5]


@pytest.mark.parametrize("name", ["+=", "-=", "*=", "/="])
def test_operations_in_place_have_the_gradients_of_those_that_are_not(name):
    plain = {"+=": lambda x, y: x + y, "-=": lambda x, y: x - y, "*=": lambda x, y: x * y,
             "/=": lambda x, y: x / y}[name]

    def inplace(x, y):
        out = x.clone()
        if name == "+=": out += y
        if name == "-=": out -= y
        if name == "*=": out *= y
        if name == "/=": out /= y
        return out

    a, b, grad = operands(((3, 4), (4,)))
    spec = spec_of("ties_even sat", ("y", "error"))
    b = np.where(b == 0, 1, b)
    assert called(inplace, spec, [a, b], grad) == called(plain, spec, [a, b], grad)


def test_each_operand_of_a_sum_chooses_its_own_binary_point():
    model = fixed(lambda x, y: x + y, {"x": "s4 auto:max ties_even sat"})
    y = model(torch.tensor([5.0, 1.5]), torch.tensor([0.75, 0.25]))
    assert y.tolist() == [5.75, 2.25]  # 1.5 rounds to 2 beside 5, 0.75 and 0.25 do not
    assert nn.layers(model)["add"].fracs == {"x": 0, "x.1": 3}


def test_the_gradient_of_a_parameter_is_cast_by_grad_w():
    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gamma = torch.nn.Parameter(torch.tensor([0.5, 3.0]))

        def forward(self, x):
            return self.gamma * x

    model = nn.fix(Scale(), {"default": {"grad_w": "s4f0 ties_even sat", "w": "s4f1 sat"}})
    x = torch.tensor([[1.5, 4.0], [1.0, 8.0]], requires_grad=True)
    model(x).sum().backward()
    assert model.gamma.grad.tolist() == [2, 7]  # 2.5 and 12
    assert x.grad.tolist() == [[0.5, 3], [0.5, 3]]


@pytest.mark.parametrize(("function", "spec", "message"), [
    (lambda x: torch.add(x, x, alpha=3), {}, r"layer 'add': alpha 3 is no power of two"),
    (lambda x: x / 3, {}, "layer 'div': has no y; the configuration must give it a cast"),
    (lambda x: x / 0, {}, "layer 'div': division by zero"),
    (lambda x: x / 3, {"y": "s8 auto:max"}, "needs a fixed binary point; give it a Cast"),
    (lambda x: x * 2.0**-30 * x + x * 2.0**60, {}, "layer 'add': a up to .* leaves int64"),
    (lambda x: x * x, {"x": "s33", "w": "s33"}, "layer 'mul': s33f0 times s33f0 needs 66 bits"),
    (lambda x: x * 0.1, {}, "mul.y: .* magnitude bits, torch.float32 carries 24"),
    (lambda x: x + 0.1, {}, "add.y: .* magnitude bits, torch.float32 carries 24"),
])
def test_refusals(function, spec, message):
    with pytest.raises(ValueError, match=message):
        fixed(function, spec)(torch.tensor([3.0, -2.0]))


def test_the_error_over_a_divisor_needs_a_cast():
    y = fixed(lambda x: x / 3, {"y": "s8f4"})(torch.ones(2, requires_grad=True))
    with pytest.raises(ValueError, match="layer 'div': has no error; the configuration"):
        y.backward(torch.ones(2))


def test_other_powers_are_float_cores():
    model = fixed(lambda x: x**3)
    assert model(torch.tensor([2.0])).tolist() == [8]
    assert not nn.layers(model)["pow"].exact


def test_sums_of_what_was_broadcast_may_need_more_than_a_float32():
    a = np.array([Fraction(1)], object)
    grad = np.array([2**24 - 1, 2], object)
    spec = {"error": "s30"}
    assert called(lambda x: x + torch.zeros(2), spec, [a], grad, torch.float64)[1] == [2**24 + 1]
    with pytest.raises(ValueError, match="magnitude bits"):
        called(lambda x: x + torch.zeros(2), spec, [a], grad)
