"""Binary points that rules choose, and what evaluation leaves alone."""

import integer_network as ints
import numpy as np
import pytest
import torch
from fixed_layers import GRAD, HARDWARE, B, W, X, expected, give, hardware, passed, tensor
from integer_network import Grid, some

from emu import Cast, Rule, engine, nn, reference

SIGNED = dict.fromkeys(["x", "w", "b", "y", "error", "grad_w", "grad_b"],
                       "s6 auto:max ties_even sat")
STOCHASTIC = hardware(x="s5f2 stochastic7 sat", y="s6 auto:max stochastic3 sat")


def fixed_linear(spec, backend=None) -> nn.Linear:
    """A Linear with the weights of this file."""
    return give(nn.Linear(6, 4, spec=spec, backend=backend), W, B)


def state(module) -> dict:
    """All that evaluation could change."""
    backend = module.layer.backend
    return {"fracs": dict(module.layer.fracs), "step": backend.step,
            "calls": dict(+backend.calls)}


@pytest.mark.parametrize("largest, frac, code", [
    (3.0, 5, 96), (3.984375, 5, 127), (4.0, 5, 127), (-4.0, 5, -128), (4.03125, 4, 64),
    (1.0, 7, 127), (2.0**-96, 96, 1), (2.0**96, -89, 127), (2.0**-120, 96, 0)])
def test_auto_max_takes_the_power_of_two_at_or_above_the_largest(largest, frac, code):
    module = nn.Activation(spec={"y": "s8 auto:max ties_even sat"})
    got = module(torch.tensor([largest, 0.0]))[0].item() * 2.0**frac
    assert (module.layer.fracs, got) == ({"y": frac}, code)


@pytest.mark.parametrize("name", SIGNED)
def test_every_tensor_may_have_a_rule(name):
    spec = hardware(**{name: SIGNED[name]})
    module, twin = fixed_linear(spec), ints.Linear("linear", spec)
    assert passed(module, X, GRAD) == expected(twin, X, GRAD, W, B)


def test_all_tensors_may_have_rules_at_once():
    spec = hardware(**SIGNED)
    module, twin = fixed_linear(spec), ints.Linear("linear", spec)
    assert passed(module, X, GRAD) == expected(twin, X, GRAD, W, B)
    assert module.layer.fracs == twin.fracs


@pytest.mark.parametrize("scale", ["auto:shift", "auto:shift=f9", "f2=f4", "auto:3sigma",
                                   "auto:percentile80", "auto:sweep",
                                   "auto:max@previous", "auto:sweep@previous"])
def test_every_scale_agrees_from_step_to_step(scale):
    spec = hardware(**{name: text.replace("auto:max", scale) for name, text in SIGNED.items()})
    module, twin = fixed_linear(spec), ints.Linear("linear", spec)
    for shift in (0, 3, -2):  # the tensors grow, then shrink
        x, grad = X._replace(frac=X.frac - shift), GRAD._replace(frac=GRAD.frac + shift)
        module.zero_grad()
        assert passed(module, x, grad) == expected(twin, x, grad, W, B)
        assert module.layer.fracs == twin.fracs


def test_hardware_that_cannot_look_ahead_casts_by_the_tensor_before():
    module = nn.Activation(spec={"y": "s8 auto:max@previous ties_even sat"})
    got = [module(torch.tensor([x])).item() for x in (3.0, 100.0, 100.0, 0.5)]
    assert got == [3.0, 127 / 32, 100.0, 0.0]  # ranges 4, 4, 128, 128; 0.5 is half a step
    assert module.layer.fracs == {"y": 8}  # for the next one, and for evaluation
    assert module.eval()(torch.tensor([100.0])).item() == 127 / 256
    assert module.layer.fracs == {"y": 8}


@pytest.mark.parametrize(("name", "text"), [
    ("error", "flag s5f3 ties_even sat_sym"), ("error", "flag s5 auto:shift stochastic7 sat_sym"),
    ("error", "closed s5 auto:shift ties_even sat"), ("x", "closed u4f2 ties_even sat"),
    ("w", "flag s4 auto:max=f9 ties_even wrap"), ("y", "closed s5f2 ties_even sat"),
    ("grad_w", "flag s6 auto:shift@previous=f3 to_zero sat"), ("b", "closed s5f3 ties_even sat")])
@pytest.mark.parametrize("mask", ["none", "all"])
def test_casts_of_other_kinds_agree_in_every_pass(name, text, mask):
    spec = hardware(**{name: text, "mask": mask})
    module, twin = fixed_linear(spec), ints.Linear("linear", spec)
    for _ in range(2):
        module.zero_grad()
        assert passed(module, X, GRAD) == expected(twin, X, GRAD, W, B)
    assert module.layer.fracs == twin.fracs or "auto" not in text


def test_a_mask_for_all_lets_gradients_pass_what_saturates():
    specs = [hardware(x="s3f2 ties_even sat", mask=mask) for mask in ("none", "all")]
    assert passed(fixed_linear(specs[0]), X, GRAD) != passed(fixed_linear(specs[1]), X, GRAD)
    with pytest.raises(ValueError, match="layer mask 'some': write all, or leave it out"):
        hardware(mask="some")


@pytest.mark.parametrize("modes", ["to_neg wrap", "stochastic6 sat", "ties_even sat_zero"])
def test_a_rule_keeps_its_modes(modes):
    spec = hardware(x=f"u5 auto:max {modes}", error=f"s5 auto:max {modes}")
    module, twin = fixed_linear(spec), ints.Linear("linear", spec)
    assert passed(module, X, GRAD) == expected(twin, X, GRAD, W, B)


def test_backward_uses_the_binary_point_of_its_own_forward():
    spec = hardware(**SIGNED)
    module, twin = fixed_linear(spec), ints.Linear("linear", spec)
    x = tensor(X).requires_grad_()
    y = module(x)
    module(64 * tensor(X))  # a later call moves the state
    y.backward(tensor(GRAD))
    assert x.grad.tolist() == expected(twin, X, GRAD, W, B)["grad of x"]


def test_a_zero_tensor_keeps_the_last_binary_point():
    module = nn.Activation(spec={"y": "s8 auto:max"})
    module(torch.tensor([3.0]))
    module(torch.zeros(2))
    assert module.layer.fracs == {"y": 5}


def test_a_first_zero_tensor_takes_binary_point_0():
    module = nn.Activation(spec={"y": "s8 auto:max"})
    module(torch.zeros(2))
    assert module.layer.fracs == {"y": 0}


def test_a_zero_error_keeps_the_last_binary_point_of_every_gradient():
    spec = hardware(**SIGNED)
    module = fixed_linear(spec)
    passed(module, X, GRAD)
    before = dict(module.layer.fracs)
    passed(module, X, Grid([[0] * 4] * 5))
    assert module.layer.fracs == before


def test_evaluation_keeps_the_binary_point_of_training():
    module = nn.Activation(spec={"y": "s8 auto:max ties_even sat"})
    module(torch.tensor([3.0]))
    assert module.eval()(torch.tensor([100.0])).item() == 127 / 32


def test_evaluation_keeps_the_binary_point_of_a_result_too():
    module = nn.AvgPool2d(2, spec={"y": "s8 auto:max ties_even sat"})
    module(torch.full((1, 1, 2, 2), 3.0))
    assert module.eval()(torch.full((1, 1, 2, 2), 100.0)).item() == 127 / 32


FIXED = {"training": "s8 auto:max ties_even sat", "evaluation": "s8 fixed ties_even sat"}


def only(settings) -> nn.Activation:
    """An activation whose y has these settings."""
    return nn.fix(nn.Activation(), {"default": {"y": settings}})


def test_a_fixed_rule_takes_the_binary_point_that_training_left():
    module = only(FIXED)
    assert module(torch.tensor([3.0])).item() == 3
    assert module.eval()(torch.tensor([100.0])).item() == 127 / 32
    assert module.layer.fracs == {"y": 5}


@pytest.mark.parametrize("training", [True, False])
def test_a_fixed_rule_without_a_binary_point_is_refused(training):
    module = only("s8 fixed sat").train(training)
    with pytest.raises(ValueError, match=r"^layer '': y s8 fixed to_neg sat: no binary point is "
                                         r"stored; train with an auto rule first, load a state"):
        module(torch.tensor([3.0]))


def test_a_fixed_rule_of_training_never_moves_the_binary_point():
    module = only("s8 fixed ties_even sat")
    module.layer.fracs["y"] = 5
    assert [module(torch.tensor([x])).item() for x in (3.0, 100.0)] == [3, 127 / 32]
    assert module.layer.fracs == {"y": 5}


@pytest.mark.parametrize("cast_for", [
    lambda rule, last: reference.cast_for(rule, [1, -700], 3, last),
    lambda rule, last: engine.cast_for(rule, np.array([0.125, -87.5]), last),
    lambda rule, last: engine.cast_for_codes(rule, np.array([1, -700]), 3, last)],
    ids=["reference", "floats", "codes"])
def test_a_fixed_rule_looks_at_no_tensor(cast_for):
    rule = Rule.parse("s8 fixed ties_even sat")
    assert cast_for(rule, -4) == Cast.parse("s8f-4 ties_even sat")
    with pytest.raises(ValueError, match="no binary point is stored"):
        cast_for(rule, None)


def test_each_phase_may_have_hardware_of_its_own():
    phases = {"x": {"training": "s5f2 ties_even sat", "evaluation": "s4f1 ties_even sat"},
              "forward": {"training": {"acc": "s16 sat"}, "evaluation": {"acc": "s6 wrap"}},
              "y": {"training": "s6f1 ties_even sat", "evaluation": "none"}}
    both = give(nn.fix(torch.nn.Linear(6, 4), {"default": {**HARDWARE, **phases}}), W, B)
    for i, phase in enumerate(("training", "evaluation")):
        spec = hardware(**{key: value[phase] for key, value in phases.items()})
        alone = fixed_linear(spec).train(i == 0)
        assert passed(both.train(i == 0), X, GRAD) == passed(alone, X, GRAD)
        both.zero_grad()


def test_evaluation_before_training_chooses_without_keeping():
    module = nn.Activation(spec={"y": "s8 auto:max ties_even sat"}).eval()
    assert module(torch.tensor([3.0])).item() == 3
    assert module.layer.fracs == {}


@pytest.mark.parametrize("spec", [hardware(**SIGNED), STOCHASTIC], ids=["rules", "stochastic"])
def test_evaluation_changes_no_state(spec):
    module = fixed_linear(spec)
    passed(module, X, GRAD)
    before = state(module)
    passed(module.eval(), Grid([[500] * 6]), Grid([[70] * 4]))
    assert state(module) == before


def test_evaluation_moves_no_random_operand_of_training():
    module, twin = fixed_linear(STOCHASTIC), ints.Linear("linear", STOCHASTIC)
    got, want = [], []
    for _ in range(2):
        got.append(passed(module.train(), X, GRAD)["y"])
        want.append(expected(twin, X, GRAD, W, B)["y"])
        module.eval()(tensor(X))
    assert got == want


def test_evaluation_draws_under_a_name_of_its_own():
    module = nn.Activation(spec={"y": "s4f0 stochastic5 sat"}).eval()
    x = [k / 32 for k in range(32)]
    loads = reference.load_words(0, 0, "activation", "evaluation.y", 0)
    want = [reference.quantize(value, Cast.parse("s4 stochastic5 sat"), rand) for value, rand in
            zip(x, reference.random_operands(32, 5, loads), strict=True)]
    assert module(torch.tensor(x)).tolist() == want


def test_an_average_with_a_rule_agrees_with_one_that_was_told():
    chosen = nn.AvgPool2d(2, spec={"y": "s4 auto:max ties_even sat"})
    told = nn.AvgPool2d(2, spec={"y": "s4f-1 ties_even sat"})
    x = tensor(some((1, 2, 4, 4), 400, 5, 4))
    x[0, 0, :2, :2] = 12.5  # the largest average, within 2^4
    assert torch.equal(chosen(x), told(x))


def test_hardware_of_rules_prints_as_it_was_written():
    rule = SIGNED["x"]
    assert f"x: {rule}\n" in repr(nn.Linear(6, 4, spec={**HARDWARE, "x": rule}))
