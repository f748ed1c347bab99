"""Functions by table, forward and backward, against `emu.reference` on Python ints."""

import integer_network as ints
import pytest
import torch
import torch.nn.functional as F
from fixed_layers import expected, passed, tensor
from integer_network import Grid, flat, like, some
from strategies import DETERMINISTIC

from emu import Cast, LayerSpec, Overflow, Rounding, Rule, nn, reference
from emu.number import Format
from emu.table import Table, entries_cast

X, GRAD = some((3, 7), 220, 5, 1), some((3, 7), 90, 6, 2)
SPEC = {"x": "s6f3 ties_even sat", "y": "s7f4 ties_away sat", "w": "s7f5 ties_pos sat",
        "error": "s5f4 to_odd sat"}
MODULES = {"sigmoid": torch.nn.Sigmoid(), "tanh": torch.nn.Tanh(), "gelu": torch.nn.GELU(),
           "gelu_tanh": torch.nn.GELU("tanh"), "silu": torch.nn.SiLU(), "elu": torch.nn.ELU(),
           "softplus": torch.nn.Softplus(), "mish": torch.nn.Mish(),
           "hardsigmoid": torch.nn.Hardsigmoid(), "hardswish": torch.nn.Hardswish()}
MODES = [f"{rounding.name.lower()} {overflow.name.lower()}"
         for rounding in DETERMINISTIC for overflow in Overflow]


class Called(torch.nn.Module):
    """A module that calls one torch function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Function(ints.Layer):
    """A function of one number by table: entries, and slopes times errors."""

    def __init__(self, site, spec, function, entries=None, slopes=None, seed=0):
        super().__init__(site, spec, seed)
        self.function, self.entries, self.slopes = function, entries, slopes

    def forward(self, x: Grid) -> Grid:
        self.x, self.x_passes = self.cast("x", x)
        self.form = Format(self.spec.x.width, self.x.frac, self.spec.x.signed) if isinstance(
            self.spec.x, Rule) else self.spec.x.format
        table = Table(self.form, self.entries or self.spec.y, self.function)
        y = Grid(like([reference.lookup(code, table) for code in flat(self.x.codes)],
                      self.x.codes), table.y.format.frac)
        self.y_passes = [True] * len(flat(y.codes))
        if self.spec.y is not None and self.entries is not None:
            y, self.y_passes = self.cast("y", y)
        return y

    def backward(self, grad: Grid) -> Grid:
        grad = Grid(ints.masked(grad.codes, self.y_passes), grad.frac)
        error, _ = self.cast("error", grad) if self.spec.error else (grad, None)
        slope = Table(self.form, self.slopes or self.spec.w, f"grad_{self.function}")
        pairs = zip(flat(error.codes), flat(self.x.codes), strict=True)
        codes = [e * reference.lookup(x, slope) for e, x in pairs]
        return Grid(ints.masked(like(codes, grad.codes), self.x_passes),
                    error.frac + slope.y.format.frac)


def both(function, module=None, entries=None, slopes=None, **spec):
    """(got, want) of one pass through a function."""
    spec = LayerSpec.parse(spec)
    module = nn.fix(module or MODULES[function], {"default": {
        name: getattr(spec, name) for name in ("x", "w", "y", "error") if getattr(spec, name)}})
    twin = Function(next(iter(module.region.layers()), ""), spec, function, entries, slopes)
    return passed(module, X, GRAD), expected(twin, X, GRAD)


@pytest.mark.parametrize("function", MODULES)
def test_every_function_agrees(function):
    got, want = both(function, **SPEC)
    assert got == want


@pytest.mark.parametrize("modes", MODES)
def test_every_cast_of_a_table_agrees_in_every_mode(modes):
    casts = {"x": "s5f2", "y": "s6f3", "w": "s6f4", "error": "s5f4"}
    got, want = both("silu", **{name: f"{form} {modes}" for name, form in casts.items()})
    assert got == want


@pytest.mark.parametrize("overflow", Overflow)
def test_what_enters_a_table_may_be_drawn(overflow):
    modes = f"stochastic6 {overflow.name.lower()}"
    got, want = both("tanh", **{**SPEC, "x": f"s5f2 {modes}", "error": f"s5f4 {modes}"})
    assert got == want


@pytest.mark.parametrize("call", [torch.exp, torch.Tensor.exp, lambda x: x.clone().exp_()])
def test_the_exponential_agrees(call):
    got, want = both("exp", Called(call), **{**SPEC, "x": "s6f4 ties_even sat",
                                             "y": "u7f4 ties_even sat", "w": "u7f4 to_pos sat"})
    assert got == want


@pytest.mark.parametrize("call", [
    torch.sigmoid, torch.Tensor.sigmoid, F.sigmoid, lambda x: x.clone().sigmoid_(),
    lambda x: torch.sigmoid_(x.clone())])
def test_every_way_to_call_a_function_agrees(call):
    got, want = both("sigmoid", Called(call), **SPEC)
    assert got == want


@pytest.mark.parametrize(("function", "entries", "slopes"), [
    ("sigmoid", "u6f6 ties_even sat", "u6f7 ties_even sat"),
    ("tanh", "s6f5 ties_even sat", "u6f5 ties_even sat"),
    ("gelu", "s6f3 ties_even sat", "s6f4 ties_even sat"),
    ("softplus", "u6f4 ties_even sat", "u6f6 ties_even sat")])
def test_casts_that_are_left_out_have_the_width_of_x_and_hold_the_function(function, entries,
                                                                            slopes):
    got, want = both(function, None, Cast.parse(entries), Cast.parse(slopes),
                     x="s6f3 ties_even sat")
    assert got == want


def test_entries_that_no_format_holds_saturate():
    assert str(entries_cast("exp", Format.parse("s8f0"))) == "u8f-56 ties_even sat"


def test_an_input_may_choose_its_binary_point():
    """Each has its own table; rules are kept for evaluation."""
    spec = {**SPEC, "x": "s6 auto:max ties_even sat"}
    module = nn.fix(torch.nn.Tanh(), {"default": spec})
    twin = Function("", LayerSpec.parse(spec), "tanh")
    for x in (X, Grid(X.codes, 8), Grid(X.codes, 6)):
        assert passed(module, x, GRAD) == expected(twin, x, GRAD)


@pytest.mark.parametrize("y", ["s6 auto:max ties_even sat", "s6 auto:max to_neg sat",
                               "s5 auto:3sigma to_zero sat"])
def test_an_output_that_chooses_its_binary_point_is_rounded_once(y):
    module = nn.fix(torch.nn.GELU(), {"default": {**SPEC, "y": y}})
    got = passed(module, X, GRAD)["y"]
    frac = module.layer.fracs["y"]
    twin = Function("", LayerSpec.parse({**SPEC, "y": str(Rule.parse(y).with_frac(frac))}), "gelu")
    assert got == expected(twin, X, GRAD)["y"]


def test_an_output_that_is_drawn_follows_a_wide_table():
    wide = entries_cast("gelu", Format.parse("s6f3"), 31, Rounding.TO_ODD)
    got, want = both("gelu", None, wide, **{**SPEC, "y": "s5f3 stochastic7 sat"})
    assert got == want


def test_slopes_that_choose_their_binary_point_hold_the_greatest():
    got, want = both("silu", None, None, Cast.parse("s6f4 to_zero sat"),
                     **{**SPEC, "w": "s6 auto:max to_zero sat"})
    assert got == want


def test_slopes_may_have_the_binary_point_that_is_stored():
    module = nn.fix(torch.nn.SiLU(), {"default": {**SPEC, "w": "s6 fixed to_zero sat"}})
    y = module(tensor(X).requires_grad_())
    with pytest.raises(ValueError, match="no binary point is stored"):
        y.sum().backward()
    module.layer.fracs = {"w": 3}
    twin = Function("", LayerSpec.parse({**SPEC, "w": "s6f3 to_zero sat"}), "silu")
    assert passed(module, X, GRAD) == expected(twin, X, GRAD)


def test_evaluation_is_a_table_too_and_keeps_nothing():
    spec = {**SPEC, "x": "s6 auto:max ties_even sat"}
    module = nn.fix(torch.nn.Tanh(), {"default": spec})
    want = expected(Function("", LayerSpec.parse(spec), "tanh"), X, GRAD)["y"]
    assert module.eval()(tensor(X)).tolist() == want
    assert module.layer.fracs == {}


@pytest.mark.parametrize(("module", "spec", "message"), [
    (torch.nn.Tanh(), {"x": "s17f4"}, "layer '': table x s17f4: at most 16 bits"),
    (torch.nn.Tanh(), {}, "layer '': has no x; the configuration must give it a cast"),
    (torch.nn.Tanh(), {"y": "s3f4", "x": "s6f3"}, "tanh at code -32 is outside s3f4; write sat"),
    (torch.nn.Softplus(beta=2), SPEC, "softplus with beta 2.*; the table is that of beta 1"),
    (torch.nn.ELU(0.5), SPEC, "elu with alpha 0.5; the table is that of alpha 1"),
    (torch.nn.GELU("fast"), SPEC, "gelu approximate 'fast'; write none or tanh"),
])
def test_what_no_table_holds_is_refused(module, spec, message):
    with pytest.raises(ValueError, match=message):
        nn.fix(module, {"default": spec})(tensor(X))


def test_a_slope_that_would_be_drawn_is_refused():
    module = nn.fix(torch.nn.Tanh(), {"default": {**SPEC, "w": "s6f4 stochastic4 sat"}})
    y = module(tensor(X).requires_grad_())
    with pytest.raises(ValueError, match=r"layer '': table y .* use a deterministic rounding"):
        y.sum().backward()


def test_products_beyond_int64_are_refused():
    module = nn.fix(torch.nn.Tanh(), {"default": {"x": "s6f3", "w": "s32f30 to_neg sat"}})
    y = module(tensor(X, torch.float64).requires_grad_())
    with pytest.raises(ValueError, match="the product needs 73 bits, the limit is 63"):
        y.backward(torch.full(y.shape, 2.0**40 + 1, dtype=y.dtype))
