"""Softmax, its logarithm and cross-entropy, forward and backward, against Python ints."""

import math
from fractions import Fraction

import integer_network as ints
import pytest
import torch
import torch.nn.functional as F
from fixed_layers import tensor
from integer_network import Grid, flat, floats, like, some, transposed
from strategies import DETERMINISTIC

from emu import Cast, LayerSpec, Overflow, SoftmaxSpec, nn, reference
from emu.table import Table

X, GRAD = some((5, 4), 120, 5, 1), some((5, 4), 90, 6, 2)
ABSENT = [[False] * 4, [True, False, True, False], [False, False, False, True], [True] * 4,
          [True] * 3 + [False]]
SPEC = {"x": "s7f4 ties_even sat", "w": "u9f8 ties_even sat", "y": "u6f6 ties_away sat",
        "error": "s6f5 to_odd sat"}
MODES = [f"{rounding.name.lower()} {overflow.name.lower()}"
         for rounding in DETERMINISTIC for overflow in Overflow]


class Softmax(ints.Layer):
    """Rows of probabilities; `hardware` is the SoftmaxSpec, `y` whether y follows it."""

    def __init__(self, spec, hardware, absent=None, follows=False):
        super().__init__("", LayerSpec.parse(spec))
        self.hardware, self.absent, self.follows = hardware, absent, follows

    def probabilities(self, x: Grid) -> list:
        self.absent = self.absent or like([False] * len(flat(x.codes)), x.codes)
        self.x, self.x_passes = self.cast("x", Grid(ints.masked(x.codes, [
            not out for out in flat(self.absent)]), x.frac))
        return [reference.softmax(row, self.hardware, out)
                for row, out in zip(self.x.codes, self.absent, strict=True)]

    def forward(self, x: Grid) -> Grid:
        self.p = self.probabilities(x)
        y = Grid(self.p, self.hardware.prob.format.frac)
        self.y_passes = [True] * len(flat(y.codes))
        if self.follows:
            y, self.y_passes = self.cast("y", y)
        return y

    def backward(self, grad: Grid) -> Grid:
        error, _ = self.cast("error", Grid(ints.masked(grad.codes, self.y_passes), grad.frac))
        frac = self.hardware.prob.format.frac
        codes = [[p * ((e << frac) - sum(map(math.prod, zip(row, errors, strict=True))))
                  for p, e in zip(row, errors, strict=True)]
                 for row, errors in zip(self.p, error.codes, strict=True)]
        return Grid(self.let_through(codes), error.frac + 2 * frac)

    def let_through(self, codes: list) -> list:
        """The gradients that reach x."""
        return ints.masked(codes, [p and not out for p, out in zip(
            self.x_passes, flat(self.absent), strict=True)])


class LogSoftmax(Softmax):
    """Logarithms of the probabilities, rounded once."""

    def forward(self, x: Grid) -> Grid:
        self.p = self.probabilities(x)
        to = self.spec.y
        # The one rounding of y, of the negated entries of a table with 20 bits more.
        wide = Table(self.hardware.prob.format, Cast.parse(f"u31f{31 - 3} to_odd sat"), "neg_log")
        logs = Grid([[-reference.lookup(p, wide) for p in row] for row in self.p], 28)
        y, self.y_passes = self.cast("y", logs, to)
        return y

    def backward(self, grad: Grid) -> Grid:
        error, _ = self.cast("error", Grid(ints.masked(grad.codes, self.y_passes), grad.frac))
        frac = self.hardware.prob.format.frac
        codes = [[(e << frac) - p * sum(errors) for p, e in zip(row, errors, strict=True)]
                 for row, errors in zip(self.p, error.codes, strict=True)]
        return Grid(self.let_through(codes), error.frac + frac)


def hardware(spec) -> SoftmaxSpec:
    return SoftmaxSpec.parse({"x": spec["x"].split()[0], "exp": spec["w"], "prob": spec["y"]})


def passed(module, x: torch.Tensor, grad: torch.Tensor) -> tuple[list, list]:
    """(y, the gradient of x) under the auditor."""
    x.requires_grad_()
    with nn.audit():
        y = module(x)
        y.backward(grad)
    return y.tolist(), x.grad.tolist()


def expected(twin, x: Grid, grad: Grid) -> tuple[list, list]:
    return floats(twin.forward(x)), floats(twin.backward(grad))


def fixed(module, spec):
    return nn.fix(module, {"default": spec})


@pytest.mark.parametrize("modes", MODES)
def test_softmax_agrees_in_every_mode(modes):
    spec = {"x": f"s6f3 {modes}", "w": f"u9f8 {modes}", "y": f"u6f5 {modes}",
            "error": f"s5f4 {modes}"}
    got = passed(fixed(torch.nn.Softmax(1), spec), tensor(X), tensor(GRAD))
    assert got == expected(Softmax(spec, hardware(spec)), X, GRAD)


def test_softmax_along_another_axis_agrees():
    x, grad = (Grid(transposed(g.codes), g.frac) for g in (X, GRAD))
    for axis in (0, -2):
        y, of_x = passed(fixed(torch.nn.Softmax(axis), SPEC), tensor(x), tensor(grad))
        assert (transposed(y), transposed(of_x)) == expected(Softmax(SPEC, hardware(SPEC)), X,
                                                             GRAD)


def test_softmax_of_many_axes_is_one_of_rows():
    module = fixed(torch.nn.Softmax2d(), SPEC)
    x = tensor(some((2, 4, 3, 5), 120, 5, 3))
    rows = fixed(torch.nn.Softmax(1), SPEC)(x.permute(0, 2, 3, 1).reshape(-1, 4))
    assert torch.equal(module(x).permute(0, 2, 3, 1).reshape(-1, 4), rows)


class Called(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("call", [
    lambda x: F.softmax(x, dim=-1), lambda x: torch.softmax(x, -1), lambda x: x.softmax(-1)])
def test_every_way_to_call_softmax_agrees(call):
    got = passed(fixed(Called(call), SPEC), tensor(X), tensor(GRAD))
    assert got == expected(Softmax(SPEC, hardware(SPEC)), X, GRAD)


@pytest.mark.parametrize("x", ["s7f4 ties_even sat", "s7 auto:max ties_even sat"])
def test_masked_logits_have_no_share_and_no_gradient(x):
    spec = {**SPEC, "x": x}
    module = fixed(torch.nn.Softmax(1), spec)
    logits = tensor(X).masked_fill(torch.tensor(ABSENT), -torch.inf)
    y, grad = passed(module, logits, tensor(GRAD))
    kept = ints.masked(X.codes, [not out for out in flat(ABSENT)])
    frac = 4 if "auto" not in x else 6 - (max(map(abs, flat(kept))) - 1).bit_length() + 5
    twin = Softmax({**SPEC, "x": f"s7f{frac} ties_even sat"},
                   hardware({**SPEC, "x": f"s7f{frac}"}), ABSENT)
    assert (y, grad) == expected(twin, X, GRAD)
    assert all(p == 0 for p, out in zip(flat(y), flat(ABSENT), strict=True) if out)


def test_casts_that_are_left_out_follow_from_x():
    spec = {"x": "s7f4 ties_even sat", "error": "s6f5 to_odd sat"}
    twin = Softmax(spec, SoftmaxSpec.parse("{x: s7f4, exp: u14f13 ties_even sat, "
                                           "prob: u7f7 ties_even sat}"))
    got = passed(fixed(torch.nn.Softmax(1), spec), tensor(X), tensor(GRAD))
    assert got == expected(twin, X, GRAD)


@pytest.mark.parametrize("w", ["s9f7 ties_pos sat", "u8f7 ties_pos sat"])
def test_a_signed_cast_of_the_entries_never_uses_its_sign(w):
    spec = {**SPEC, "w": w, "y": "s7f6 ties_away sat"}
    twin = Softmax(spec, hardware({**SPEC, "w": "u8f7 ties_pos sat"}))
    got = passed(fixed(torch.nn.Softmax(1), spec), tensor(X), tensor(GRAD))
    assert got == expected(twin, X, GRAD)


@pytest.mark.parametrize(("w", "frac"), [("u8 auto:max ties_pos sat", 8),
                                         ("u8 fixed ties_pos sat", 6)])
def test_entries_may_have_a_binary_point_that_is_chosen_or_stored(w, frac):
    module = fixed(torch.nn.Softmax(1), {**SPEC, "w": w})
    module.layer.fracs = {"w": 6}
    twin = Softmax(SPEC, hardware({**SPEC, "w": f"u8f{frac} ties_pos sat"}))
    assert passed(module, tensor(X), tensor(GRAD)) == expected(twin, X, GRAD)


def test_a_binary_point_that_is_not_stored_is_refused():
    with pytest.raises(ValueError, match=r"layer '': u8 fixed .*: no binary point is stored"):
        fixed(torch.nn.Softmax(1), {**SPEC, "w": "u8 fixed"})(tensor(X))


@pytest.mark.parametrize("y", ["u5f4 stochastic6 sat", "s5 auto:max ties_even sat"])
def test_an_output_that_is_drawn_or_chosen_follows(y):
    spec = {**SPEC, "y": y}
    module = fixed(torch.nn.Softmax(1), spec)
    twin = Softmax(spec, hardware({**SPEC, "y": "u7f7 ties_even sat"}), follows=True)
    assert passed(module, tensor(X), tensor(GRAD)) == expected(twin, X, GRAD)


@pytest.mark.parametrize("modes", MODES[::5])
def test_log_softmax_agrees(modes):
    spec = {**SPEC, "x": "s6f3 ties_even sat", "y": f"s7f4 {modes}"}
    twin = LogSoftmax(spec, SoftmaxSpec.parse({"x": "s6f3", "exp": SPEC["w"],
                                               "prob": "u6f6 ties_even sat"}))
    got = passed(fixed(torch.nn.LogSoftmax(1), spec), tensor(X), tensor(GRAD))
    assert got == expected(twin, X, GRAD)


def test_masked_logits_have_no_gradient_of_a_logarithm():
    logits = tensor(X).masked_fill(torch.tensor(ABSENT), -torch.inf)
    twin = LogSoftmax({**SPEC, "y": "s9f4 sat"}, SoftmaxSpec.parse({
        "x": "s7f4", "exp": SPEC["w"], "prob": "u7f7 ties_even sat"}), ABSENT)
    module = fixed(torch.nn.LogSoftmax(1), {**SPEC, "y": "s9f4 sat"})
    assert passed(module, logits, tensor(GRAD)) == expected(twin, X, GRAD)


def loss_of(spec, x: Grid, target: list, reduction: str, grad: int) -> tuple:
    """(the exact sum of the losses or each, the gradients before their cast) as Fractions."""
    prob = SoftmaxSpec.parse({"x": spec["x"].split()[0], "exp": spec["w"],
                              "prob": "u7f7 ties_even sat", "loss": "u14f11 ties_even sat"})
    twin = Softmax(spec, prob)
    codes = twin.cast("x", x)[0].codes
    rows = [reference.cross_entropy(row, t, prob) for row, t in zip(codes, target, strict=True)]
    losses, scale = [Fraction(loss, 2**11) for _, _, loss in rows], Fraction(grad, 2**7)
    if reduction == "mean":
        scale /= len(rows)
    return losses, [[e * scale for e in error] for _, error, _ in rows], twin


def settled(value: Fraction, to: str) -> float:
    """A value rounded once by a cast."""
    to = Cast.parse(to)
    return reference.divide(value.numerator, value.denominator, 0, to) / 2**to.format.frac


@pytest.mark.parametrize("rows", [4, 5])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("modes", MODES[::7])
def test_cross_entropy_agrees(modes, reduction, rows):
    spec = {**SPEC, "y": f"u7f4 {modes}", "error": f"s7f7 {modes}"}
    x, target = Grid(X.codes[:rows], X.frac), [0, 3, 1, 1, 2][:rows]
    losses, errors, _ = loss_of(spec, x, target, reduction, 3)
    module = fixed(torch.nn.CrossEntropyLoss(reduction=reduction), spec)
    logits = tensor(x).requires_grad_()
    with nn.audit():
        loss = module(logits, torch.tensor(target))
        loss.backward(torch.tensor(3.0))
    total = sum(losses) / (rows if reduction == "mean" else 1)
    assert loss.item() == settled(total, spec["y"])
    assert logits.grad.tolist() == [[settled(e, spec["error"]) for e in row] for row in errors]


def test_cross_entropy_of_pixels_agrees_without_reduction():
    module = fixed(torch.nn.CrossEntropyLoss(reduction="none"), SPEC)
    x, target = tensor(some((2, 4, 3), 120, 5, 3)), torch.tensor([[0, 3, 1], [1, 2, 2]])
    grad = tensor(some((2, 3), 9, 2, 4))
    y, of_x = passed(lambda z: module(z, target), x, grad)
    rows = x.detach().transpose(1, 2).reshape(-1, 4)
    y_rows, of_rows = passed(lambda z: module(z, target.reshape(-1)), rows, grad.reshape(-1))
    assert flat(y) == y_rows
    assert torch.tensor(of_x).transpose(1, 2).reshape(-1, 4).tolist() == of_rows


def test_a_loss_without_casts_keeps_what_its_table_has():
    spec = {"x": "s7f4 ties_even sat", "w": SPEC["w"]}
    x, target = Grid(X.codes[:3], X.frac), [0, 3, 1]
    losses, errors, _ = loss_of(spec, x, target, "mean", 1)
    logits = tensor(x).requires_grad_()
    with nn.audit():
        loss = fixed(torch.nn.CrossEntropyLoss(), spec)(logits, torch.tensor(target))
        loss.backward()
    assert loss.item() == settled(sum(losses) / 3, "u14f11 ties_even sat")
    assert logits.grad.tolist() == [[settled(e, "s17f17 ties_even sat") for e in row]
                                    for row in errors]


def test_a_whole_training_step_holds_no_float():
    """Forward, loss, backward and update under the auditor, without `host`."""
    cast = "s8f4 ties_even sat"
    mac = {"acc": "s24 sat"}
    model = fixed(torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.GELU(),
                                      torch.nn.Linear(5, 3), torch.nn.CrossEntropyLoss()), {
        "x": cast, "w": "s8f6 ties_even sat", "b": cast, "error": "s8f7 ties_even sat",
        "grad_w": "s16f10 ties_even sat", "grad_b": "s16f10 ties_even sat", "forward": mac,
        "grad_input": mac, "grad_weight": mac, "grad_bias": mac,
        "update": {"weight": "s16f12 ties_even sat", "momentum": "s16f10 ties_even sat",
                   "grad": "s16f10 ties_even sat", "lr": "u8f8", "mu": "u8f8"}})
    optimizer = nn.SGD(model, 0.5, 0.5)
    x, target = tensor(some((8, 6), 30, 4, 5)), torch.arange(8) % 3
    losses = []
    with nn.audit():
        for _ in range(25):
            optimizer.zero_grad()
            loss = model[3](model[:3](x), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize(("module", "spec", "message"), [
    (torch.nn.Softmax(1), {**SPEC, "y": "s6f6"},
     "layer '': softmax prob s6f6 .*: 1 is outside and would wrap below 0; write sat"),
    (torch.nn.Softmax(1), {**SPEC, "w": "u8f8 wrap"}, r"layer '': softmax exp .*exp\(0\) = 1 is"),
    (torch.nn.Softmax(), SPEC, "layer '': softmax with dim None and dtype None; give dim"),
    (Called(lambda x: x.softmax(1, torch.float64)), SPEC, "torch.float64; .* leave dtype"),
    (Called(lambda x: x[:, :0].softmax(1)), SPEC, r"x \(5, 0\) has no classes along axis 1"),
])
def test_bad_hardware_and_calls_are_refused(module, spec, message):
    with pytest.raises(ValueError, match=message):
        fixed(module, spec)(tensor(X))


@pytest.mark.parametrize(("target", "options", "message"), [
    ([0, 1, 2, 3, 4], {}, "layer '': target from 0 to 4; the logits have classes 0 to 3"),
    ([0, 1, -100, 3, 3], {}, "target from -100 to 3"),
    ([0, 1], {}, r"logits \(5, 4\) and target torch.int64 \(2,\); needs \(N, classes, ...\)"),
    ([0.5] * 5, {}, r"target torch.float32 \(5,\); needs"),
    ([0] * 5, {"label_smoothing": 0.1}, "cross entropy has no weight, label_smoothing"),
])
def test_bad_targets_are_refused(target, options, message):
    with pytest.raises(ValueError, match=message):
        fixed(torch.nn.CrossEntropyLoss(**options), SPEC)(tensor(X), torch.tensor(target))


def test_gradients_beyond_int64_are_refused():
    spec = {**SPEC, "y": "u24f24 sat", "w": "u30f29", "error": "s32f20 sat"}
    y = fixed(torch.nn.Softmax(1), spec)(tensor(X, torch.float64).requires_grad_())
    with pytest.raises(ValueError, match=r"layer '': errors of s32f20 .*; give it a narrower"):
        y.backward(torch.full(y.shape, 2.0**10, dtype=y.dtype))


def test_evaluation_keeps_no_binary_point():
    module = fixed(torch.nn.Softmax(1), {**SPEC, "x": "s7 auto:max", "y": "u6 auto:max"}).eval()
    module(tensor(X))
    assert module.layer.fracs == {}
