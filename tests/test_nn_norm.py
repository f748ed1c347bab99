"""Batch, layer, group and instance norm, forward and backward, against `emu.reference`."""

import copy
import math
from dataclasses import replace

import integer_network as ints
import pytest
import torch
from fixed_layers import codes, passed, tensor
from integer_network import Grid, flat, floats, like, shape_of, some
from strategies import DETERMINISTIC

from emu import Cast, Format, LayerSpec, NormSpec, Overflow, nn, reference
from emu.norm_casts import NormCasts

NORM = {"mean": "s9f5 ties_even sat", "var": "u16f9 to_odd sat", "std": "u9f5 ties_away sat",
        "xhat": "s5f4 ties_even sat", "eps_var": 3, "running_mean": "s10f6 ties_even sat",
        "running_var": "u12f6 ties_even sat", "momentum": "u6f5 ties_even sat",
        "mean_error": "s8f6 to_zero sat", "mean_product": "s8f6 ties_pos sat",
        "scale": "s9f5 ties_odd sat", "grad_x": "s12f8 ties_even sat"}
SPEC = {"x": "s6f3 ties_even sat", "w": "s5f3 ties_away sat", "b": "s6f4 to_zero sat",
        "y": "s7f3 ties_pos sat", "error": "s6f4 ties_even sat", "grad_w": "s8f3 ties_odd sat",
        "grad_b": "s7f3 to_odd sat", "norm": NORM}
MODES = [f"{rounding.name.lower()} {overflow.name.lower()}"
         for rounding in DETERMINISTIC for overflow in Overflow]
SHAPES = [(5, 3), (2, 3, 4), (2, 3, 2, 2)]
GAMMA, BETA = some((3,), 60, 5, 7), some((3,), 90, 5, 8)


def by_channel(x: list) -> list:
    """(N, C, ...) as one flat list for each channel."""
    return [[code for sample in x for code in flat([sample[c]])] for c in range(len(x[0]))]


def from_channels(channels: list, x: list) -> list:
    """The reverse, in the shape of x."""
    parts = [iter(channel) for channel in channels]
    size = math.prod(shape_of(x)[2:])
    return like([next(parts[c]) for _ in x for c in range(len(channels)) for _ in range(size)], x)


def whole(spec, w: str = "", b: str = "", error: str = "") -> NormSpec:
    """The NormSpec of a layer: its settings by name, with exact y and parameter gradients."""
    norm, form = spec["norm"], lambda text: Cast.parse(text).format
    w, b, error = (form(given or spec[name]) for name, given in
                   (("w", w), ("b", b), ("error", error)))
    xhat = form(norm["xhat"])
    return NormSpec.parse({
        "x": form(spec["x"]), "gamma": Cast(w), "beta": Cast(b),
        "y": f"s60f{max(w.frac + xhat.frac, b.frac)}",
        **{key: norm[key] for key in ("mean", "var", "std", "xhat", "eps_var", "eps_std",
                                      "reciprocal") if key in norm},
        "running": {"mean": norm["running_mean"], "var": norm["running_var"],
                    "momentum": norm["momentum"], "unbiased": norm.get("unbiased", "true")},
        "backward": {"error": error, **{key: norm[key] for key in ("mean_error", "mean_product",
                                                                   "scale", "grad_x")},
                     "grad_gamma": f"s62f{error.frac + xhat.frac}",
                     "grad_beta": f"s62f{error.frac}"}})


class Norm(ints.Layer):
    """What batch norm and the norms of rows have in common."""

    def __init__(self, spec, hardware=None):
        super().__init__("", LayerSpec.parse(spec))
        self.hardware = hardware or whole(spec)

    def enter(self, x: Grid, gamma: Grid | None, beta: Grid | None, channels: int) -> None:
        self.x, self.x_passes = self.cast("x", x)
        self.gamma, self.w_passes = (Grid([1] * channels), []) if gamma is None else self.cast(
            "w", gamma)
        self.beta, self.b_passes = (Grid([0] * channels), []) if beta is None else self.cast(
            "b", beta)

    def normalised(self, x: list, mean: int, var: int, gamma: int, beta: int) -> tuple:
        """(y, xhat, where gradients pass the cast xhat) of a channel."""
        hard, to = self.hardware, self.hardware.xhat
        y, xhat = reference.batch_norm(x, mean, var, gamma, beta, hard)
        wide = replace(hard, xhat=Cast(Format(32, to.format.frac), to.rounding, Overflow.SAT),
                       gamma=Cast(Format(1)), backward=None)
        divisor = reference.norm_divisor(var, hard)
        rounded = [reference.norm_xhat(code, mean, divisor, wide) for code in x]
        return y, xhat, [to.overflow == Overflow.WRAP or not reference.overflows(code, to)
                         for code in rounded]

    def left(self, y: list, frac: int) -> Grid:
        y = Grid(y, frac)
        self.y_passes = [True] * len(flat(y.codes))
        if self.spec.y:
            y, self.y_passes = self.cast("y", y)
        return y

    def received(self, grad: Grid) -> Grid:
        return self.cast("error", Grid(ints.masked(grad.codes, self.y_passes), grad.frac))[0]

    def parameter(self, name: str, values: list, frac: int, passes: list) -> Grid:
        return self.cast(f"grad_{name}", Grid(ints.masked(values, passes), frac))[0]


class BatchNorm(Norm):
    """Channels over a batch; `running` holds the codes of the running mean and variance."""

    def __init__(self, spec, channels=3, hardware=None, momentum=0.1, frozen=False):
        super().__init__(spec, hardware)
        self.frozen, running = frozen, self.hardware.running
        self.running = [(0, reference.quantize(1.0, running.var, 0))] * channels
        self.momentum = reference.quantize(momentum, running.momentum)

    def forward(self, x: Grid, gamma: Grid | None = None, beta: Grid | None = None) -> Grid:
        self.enter(x, gamma, beta, len(x.codes[0]))
        hard, found, batches = self.hardware, [], []
        for c, channel in enumerate(by_channel(self.x.codes)):
            if self.frozen:
                mean, var = reference.frozen_norm(*self.running[c], hard)
            else:
                batches.append(reference.norm_statistics(channel, hard))
                mean, var, _ = batches[-1]
            found.append((var, *self.normalised(channel, mean, var, self.gamma.codes[c],
                                                self.beta.codes[c])))
        rands = [self.random(f"running.{name}", getattr(hard.running, name), len(batches))
                 for name in ("mean", "var") if batches]
        for c, batch in enumerate(batches):
            self.running[c] = reference.running_norm(*self.running[c], batch, self.momentum, hard,
                                                     *(rand[c] for rand in rands))
        self.var, y, self.xhat, self.inside = zip(*found, strict=True)
        return self.left(from_channels(y, x.codes), self.hardware.y.format.frac)

    def backward(self, grad: Grid) -> list[Grid]:
        error, back = self.received(grad), self.hardware.backward
        h_frac = self.hardware.xhat.format.frac
        drawn = like(self.random("grad_input.grad_x", back.grad_x, len(flat(grad.codes))),
                     grad.codes)
        found = [reference.batch_norm_grad(
            e, h, var, g, self.hardware, self.frozen, inside,
            {"grad_x": rand} if back.grad_x.rand_bits else None)
            for e, h, var, g, inside, rand in zip(
                by_channel(error.codes), self.xhat, self.var, self.gamma.codes, self.inside,
                by_channel(drawn), strict=True)]
        of_x, of_gamma, of_beta = zip(*found, strict=True)
        grads = [Grid(ints.masked(from_channels(of_x, grad.codes), self.x_passes),
                      back.grad_x.format.frac)]
        if self.w_passes:
            grads += [self.parameter("w", list(of_gamma), error.frac + h_frac, self.w_passes),
                      self.parameter("b", list(of_beta), error.frac, self.b_passes)]
        return grads


class RowNorm(Norm):
    """Rows of `size` codes; gamma and beta of element i are those of index `of(i)`."""

    def __init__(self, spec, size, of, scaled: str | None, hardware=None):
        one = {"w": "u1f0", "b": "u1f0", "error": scaled or spec["error"]}
        super().__init__(spec, hardware or whole(spec, **one))
        self.size, self.of, self.scaled = size, of, scaled and Cast.parse(scaled)

    def rows(self, leaves: list) -> list:
        return [leaves[i:i + self.size] for i in range(0, len(leaves), self.size)]

    def forward(self, x: Grid, gamma: Grid | None = None, beta: Grid | None = None) -> Grid:
        self.enter(x, gamma, beta, len(flat(x.codes)))
        hard, found = replace(self.hardware, running=None), []
        for row in self.rows(flat(self.x.codes)):
            mean, var, _ = reference.norm_statistics(row, hard)
            found.append((var, *self.normalised(row, mean, var, 0, 0)[1:]))
        self.var, self.xhat, self.inside = zip(*found, strict=True)
        in_product = hard.xhat.format.frac + self.gamma.frac
        frac = max(in_product, self.beta.frac)
        gammas, betas = flat(self.gamma.codes), flat(self.beta.codes)
        y = [(gammas[self.of(i)] * h << frac - in_product)
             + (betas[self.of(i)] << frac - self.beta.frac)
             for i, h in enumerate(flat(list(self.xhat)))]
        return self.left(like(y, x.codes), frac)

    def backward(self, grad: Grid) -> list[Grid]:
        error, back = self.received(grad), self.hardware.backward
        leaves, gammas = flat(error.codes), flat(self.gamma.codes)
        scaled = leaves if self.scaled is None else [
            reference.cast(e * gammas[self.of(i)], error.frac + self.gamma.frac, self.scaled)
            for i, e in enumerate(leaves)]
        found = [reference.batch_norm_grad(e, h, var, 1, self.hardware, False, inside)[0]
                 for e, h, var, inside in zip(self.rows(scaled), self.xhat, self.var, self.inside,
                                              strict=True)]
        grads = [Grid(ints.masked(like(flat(found), grad.codes), self.x_passes),
                      back.grad_x.format.frac)]
        if not self.w_passes:
            return grads
        of_gamma, of_beta = ([0] * len(gammas) for _ in range(2))
        for i, (e, h) in enumerate(zip(leaves, flat(list(self.xhat)), strict=True)):
            of_gamma[self.of(i)] += e * h
            of_beta[self.of(i)] += e
        return [*grads, self.parameter("w", like(of_gamma, self.gamma.codes),
                                       error.frac + self.hardware.xhat.format.frac, self.w_passes),
                self.parameter("b", like(of_beta, self.beta.codes), error.frac, self.b_passes)]


def built(module: torch.nn.Module, spec, gamma: Grid | None = GAMMA, beta: Grid | None = BETA
          ) -> torch.nn.Module:
    """The module on its hardware, with these parameters."""
    if module.weight is not None:
        with torch.no_grad():
            module.weight.copy_(tensor(gamma))
            module.bias.copy_(tensor(beta))
    return nn.fix(module, {"default": spec})


def expected(twin, x: Grid, grad: Grid, *parameters: Grid) -> dict[str, list]:
    """What `passed` is to return."""
    names = ["y", "grad of x", "grad of weight", "grad of bias"]
    y = twin.forward(x, *parameters)
    return dict(zip(names, map(floats, [y, *twin.backward(grad)]), strict=False))


def data(shape: tuple, seed: int = 0) -> tuple[Grid, Grid]:
    """(x, the gradient of y)."""
    return some(shape, 220, 5, seed + 1), some(shape, 90, 6, seed + 2)


def running(module, spec=NORM) -> list[tuple]:
    """The codes of the running statistics of each channel."""
    sides = [codes(buffer, Cast.parse(spec[name]).format.frac) for name, buffer in
             (("running_mean", module.running_mean), ("running_var", module.running_var))]
    return list(zip(*sides, strict=True))


def cast_with(spec: dict, modes: str) -> dict:
    """The same formats, all with these modes."""
    return {key: cast_with(value, modes) if isinstance(value, dict) else
            f"{value.split()[0]} {modes}" if isinstance(value, str) else value
            for key, value in spec.items()}


@pytest.mark.parametrize("modes", MODES)
def test_batch_norm_agrees_in_every_mode(modes):
    """Two training steps and an evaluation, forward and backward."""
    spec = cast_with(SPEC, modes)
    module, twin = built(torch.nn.BatchNorm1d(3), spec), BatchNorm(spec)
    for step in (0, 1, 2):
        if step == 2:
            module.eval()
            twin.frozen = True
        x, grad = data(SHAPES[1], step)
        module.zero_grad()
        assert passed(module, x, grad) == expected(twin, x, grad, GAMMA, BETA)
        assert running(module) == twin.running


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("changed", [
    {}, {"reciprocal": "u10f6 ties_even sat"}, {"eps_std": 2, "eps_var": 0},
    {"unbiased": "false"}], ids=str)
def test_batch_norm_of_any_shape_agrees(shape, changed):
    spec = {**SPEC, "norm": {**NORM, **changed}}
    kind = torch.nn.BatchNorm2d if len(shape) == 4 else torch.nn.BatchNorm1d
    module, twin, (x, grad) = built(kind(3), spec), BatchNorm(spec), data(shape)
    assert passed(module, x, grad) == expected(twin, x, grad, GAMMA, BETA)
    assert running(module) == twin.running


@pytest.mark.parametrize("overflow", ["sat", "wrap"])
def test_what_is_drawn_in_a_batch_norm_agrees(overflow):
    drawn = {name: f"{text.split()[0]} stochastic5 {overflow}" for name, text in SPEC.items()
             if name != "norm"}
    norm = NORM | {name: f"{NORM[name].split()[0]} stochastic7 {overflow}"
                   for name in ("running_mean", "running_var", "grad_x")}
    spec = {**drawn, "norm": norm}
    module, twin = built(torch.nn.BatchNorm2d(3), spec), BatchNorm(spec)
    x, grad = data(SHAPES[2])
    for _ in range(2):
        module.zero_grad()
        assert passed(module, x, grad) == expected(twin, x, grad, GAMMA, BETA)
        assert running(module) == twin.running


def test_batch_norm_may_choose_its_binary_points():
    rules = {"x": "s6 auto:max ties_even sat", "w": "s5 auto:max ties_away sat",
             "b": "s6 auto:max to_zero sat", "y": "s7 auto:max ties_pos sat",
             "error": "s6 auto:max ties_even sat", "grad_w": "s8 auto:max ties_even sat",
             "grad_b": "s8 auto:max ties_even sat"}
    x, grad = data(SHAPES[1])
    module = built(torch.nn.BatchNorm1d(3), {**SPEC, **rules})
    got = passed(module, x, grad)
    fracs = module.layer.fracs
    assert set(fracs) == set(rules)
    spec = {**SPEC, **{name: f"{text.split()[0]}f{fracs[name]} {text.split(maxsplit=2)[2]}"
                       for name, text in rules.items()}}
    assert got == expected(BatchNorm(spec), x, grad, GAMMA, BETA)


def test_without_gamma_and_beta_they_are_one_and_zero():
    x, grad = data(SHAPES[1])
    module = built(torch.nn.BatchNorm1d(3, affine=False), SPEC)
    twin = BatchNorm(SPEC, hardware=whole(SPEC, "u1f0", "u1f0"))
    assert passed(module, x, grad) == expected(twin, x, grad)


def test_without_running_statistics_evaluation_takes_those_of_the_batch():
    x, grad = data(SHAPES[1])
    module = built(torch.nn.BatchNorm1d(3, track_running_stats=False), SPEC)
    want = expected(BatchNorm(SPEC), x, grad, GAMMA, BETA)
    assert passed(module, x, grad) == want
    module.zero_grad()
    assert passed(module.eval(), x, grad) == want


def test_a_momentum_of_none_averages_all_batches():
    """Its factor is 1 over the number of batches, in the cast `momentum`."""
    module, twin = built(torch.nn.BatchNorm1d(3, momentum=None), SPEC), BatchNorm(SPEC)
    for step in range(3):
        x, _ = data(SHAPES[1], step)
        twin.momentum = reference.quantize(1 / (step + 1), twin.hardware.running.momentum)
        module(tensor(x))
        twin.forward(x, GAMMA, BETA)
        assert running(module) == twin.running
    assert module.num_batches_tracked == 3


def test_evaluation_changes_no_state():
    spec = {**SPEC, "x": "s6 auto:max ties_even sat", "y": "s7 auto:max sat"}
    module = built(torch.nn.BatchNorm1d(3), spec)
    module(tensor(data(SHAPES[1])[0]))
    state = copy.deepcopy(module.state_dict())
    fracs = dict(module.layer.fracs)
    module.eval()
    first, again = (module(4 * tensor(data(SHAPES[1])[0])) for _ in range(2))
    assert torch.equal(first, again)
    assert module.layer.fracs == fracs
    assert all(torch.equal(value, state[name]) if isinstance(value, torch.Tensor)
               else value == state[name] for name, value in module.state_dict().items())


def test_running_statistics_off_their_grid_enter_by_their_casts():
    module, x = built(torch.nn.BatchNorm1d(3), SPEC).eval(), tensor(data(SHAPES[1])[0])
    module.running_mean.copy_(torch.tensor([0.1, -1.7, 3.3]))
    got = module(x)
    module.running_mean.copy_(torch.tensor([6 / 64, -109 / 64, 211 / 64]))
    assert torch.equal(module(x), got)


def test_a_config_with_operands_only_has_a_whole_datapath():
    """The casts that `NormCasts` documents, here by hand for x of 8 bits and an error of 6."""
    spec = {"x": "s8f4 ties_even sat", "w": "s6f4 ties_even sat", "b": "s6f3 ties_even sat",
            "error": "s6f5 ties_even sat"}
    norm = {"mean": "s16f12", "var": "u33f27 to_odd", "std": "u16f12", "xhat": "s12f8",
            "eps_var": 1342, "running_mean": "s24f20", "running_var": "u24f17",
            "momentum": "u16f15", "mean_error": "s14f13", "mean_product": "s14f13",
            "scale": "s24f19", "grad_x": "s22f17"}
    norm = {key: text if isinstance(text, int) else
            f"{text} sat" if "odd" in text else f"{text} ties_even sat"
            for key, text in norm.items()}
    want = {**spec, "norm": norm, "grad_w": "s24f11 ties_even sat",
            "grad_b": "s24f11 ties_even sat"}
    x, grad = data(SHAPES[2])
    module, twin = built(torch.nn.BatchNorm2d(3), spec), BatchNorm(want)
    assert passed(module, x, grad) == expected(twin, x, grad, GAMMA, BETA)
    assert running(module, norm) == twin.running


@pytest.mark.parametrize(("given", "scale", "grad_x"), [
    ({}, "s24f24", "s24f28"), ({"scale": "s24f18 ties_even sat"}, "s24f18", "s24f22")])
def test_the_gradient_of_x_has_room_for_its_scale(given, scale, grad_x):
    """16 bits more than the error: its range times that of the scale, +-1/2 or +-32."""
    given = {"xhat": "s19f15 ties_even sat", "std": "u20f15 sat", "mean": "s20f15 sat"} | given
    back = NormCasts.parse(given).spec(*map(Format.parse, ("s24f14", "s10f7", "s10f7", "s8f11"))
                                       ).backward
    assert (str(back.scale.format), str(back.grad_x.format)) == (scale, grad_x)


def test_every_usual_width_leaves_room_for_what_is_derived():
    for x in (1, 2, 4, 8, 12, 16, 20, 24):
        for w, error in ((2, 2), (8, 8), (8, 16), (16, 16), (16, 24), (8, 30)):
            for frac in (-3, 5, x):
                NormCasts().spec(Format(x, frac), Format(w, w - 2), Format(w, w - 4),
                                 Format(error, frac), 1e-5)


@pytest.mark.parametrize("modes", MODES)
def test_layer_norm_agrees_in_every_mode(modes):
    scaled, (x, grad) = f"s8f5 {modes}", data((2, 5, 3))
    spec = cast_with(SPEC, modes)
    spec["norm"]["scaled_error"] = scaled
    module = built(torch.nn.LayerNorm(3), spec)
    twin = RowNorm(spec, 3, lambda i: i % 3, scaled)
    assert passed(module, x, grad) == expected(twin, x, grad, GAMMA, BETA)


def test_layer_norm_over_two_axes_agrees():
    scaled, (x, grad) = "s8f5 ties_even sat", data((3, 2, 4))
    gamma, beta = some((2, 4), 60, 5, 7), some((2, 4), 90, 5, 8)
    spec = {**SPEC, "norm": {**NORM, "scaled_error": scaled}}
    module = built(torch.nn.LayerNorm((2, 4)), spec, gamma, beta)
    twin = RowNorm(spec, 8, lambda i: i % 8, scaled)
    assert passed(module, x, grad) == expected(twin, x, grad, gamma, beta)


def test_layer_norm_without_gamma_takes_the_error_as_it_is():
    x, grad = data((5, 6))
    module = built(torch.nn.LayerNorm(6, elementwise_affine=False), SPEC)
    assert passed(module, x, grad) == expected(RowNorm(SPEC, 6, lambda i: i, None), x, grad)


@pytest.mark.parametrize(("module", "size"), [
    (torch.nn.GroupNorm(2, 4), 10), (torch.nn.InstanceNorm1d(4, affine=True), 5),
    (torch.nn.GroupNorm(1, 4), 20)], ids=str)
def test_group_and_instance_norm_agree(module, size):
    scaled, (x, grad) = "s8f5 ties_even sat", data((3, 4, 5))
    gamma, beta = some((4,), 60, 5, 7), some((4,), 90, 5, 8)
    spec = {**SPEC, "norm": {**NORM, "scaled_error": scaled}}
    twin = RowNorm(spec, size, lambda i: i // 5 % 4, scaled)
    assert passed(built(module, spec, gamma, beta), x, grad) == expected(twin, x, grad, gamma, beta)


@pytest.mark.parametrize(("changed", "module", "message"), [
    ({"norm": {"mean": "s9f5 stochastic4 sat"}}, torch.nn.BatchNorm1d(3),
     "layer '': norm mean s9f5 stochastic4 sat: has no random operand"),
    ({"x": "s24f3", "norm": {"xhat": "s32f31"}}, torch.nn.BatchNorm1d(3),
     r"layer '': norm x - mean, aligned for the quotient: its exact value can reach"),
    ({"norm": {"xhta": "s8"}}, torch.nn.BatchNorm1d(3), r"norm.xhta: unknown key 'xhta': did"),
    ({"norm": {"unbiased": "maybe"}}, torch.nn.BatchNorm1d(3),
     r"norm.unbiased: 'maybe': write true or false"),
    ({"w": None}, torch.nn.BatchNorm1d(3), "layer '': has no w; the configuration must"),
    ({"x": "s40f3"}, torch.nn.BatchNorm1d(3), "layer '': norm: a derived cast would have 81 bits"),
    ({}, torch.nn.InstanceNorm1d(3, track_running_stats=True), "has no running statistics here"),
])
def test_a_bad_norm_is_refused(changed, module, message):
    base = {**SPEC, "norm": {}} if "x" in changed else SPEC
    with pytest.raises(ValueError, match=message):
        nn.fix(module, {"default": {**base, **changed}})(tensor(data(SHAPES[1])[0]))


def test_one_element_in_a_channel_has_no_unbiased_variance():
    with pytest.raises(ValueError, match="1 element in a channel: an unbiased variance needs 2"):
        built(torch.nn.BatchNorm1d(3), SPEC)(torch.ones(1, 3))


@pytest.mark.parametrize("module", [torch.nn.BatchNorm1d(3), torch.nn.LayerNorm(3)], ids=str)
def test_errors_that_are_too_wide_for_a_product_are_refused(module):
    y = nn.fix(module.double(), {"default": {**SPEC, "y": None, "error": None}})(
        tensor(some((4, 3), 90, 5, 1), torch.float64).requires_grad_())
    with pytest.raises(ValueError, match=r"layer '': errors of s42f0, the limit is 32 bits; give"):
        y.backward(torch.full(y.shape, 2.0**40 + 1, dtype=y.dtype))


class Frozen(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.batch_norm(x, None, None)


def test_evaluation_without_statistics_is_refused():
    with pytest.raises(ValueError, match="evaluation without running statistics"):
        nn.fix(Frozen(), {"default": SPEC})(torch.ones(2, 3))


def test_the_text_of_a_layer_with_a_norm_parses_back():
    spec = LayerSpec.parse(SPEC)
    assert LayerSpec.parse(str(spec)) == spec
    assert str(spec.norm.xhat) == NORM["xhat"]
