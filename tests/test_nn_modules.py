"""`fix`: what changes about a model, and all that stays as it was."""

import copy
import io
import pickle
import re

import pytest
import torch
from fixed_layers import HARDWARE, UPDATE, give, hardware, passed, tensor
from integer_network import Grid, flat, floats, some

from emu import Cast, LayerSpec, nn, reference

DEFAULT = {"default": {**HARDWARE, "update": UPDATE}}
X = some((2, 2, 4, 4), 220, 5, 1)


def cnn() -> torch.nn.Sequential:
    """A float model of every module that has a fixed version."""
    block = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3, padding=1), torch.nn.ReLU(),
                                torch.nn.MaxPool2d(2))
    model = torch.nn.Sequential(block, torch.nn.AvgPool2d(2), torch.nn.Flatten(),
                                torch.nn.Linear(3, 2))
    for i, parameter in enumerate(model.parameters()):
        with torch.no_grad():
            parameter.copy_(tensor(some(tuple(parameter.shape), 1000, 11, i)))
    return model


def values(model: torch.nn.Module) -> dict:
    """The state of a fixed model without that of its hardware."""
    return {key: value for key, value in model.state_dict().items()
            if not key.endswith("_extra_state")}


def through_a_file(model: torch.nn.Module) -> torch.nn.Module:
    """What comes back from torch.save and torch.load of the whole model."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model)),
          "torch.save": through_a_file}


def test_fix_returns_the_very_model():
    model = cnn()
    assert nn.fix(model, DEFAULT) is model


def test_parameters_keep_their_identity():
    model = cnn()
    before = dict(model.named_parameters())
    nn.fix(model, DEFAULT)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


def test_the_keys_of_the_state_stay():
    assert list(values(nn.fix(cnn(), DEFAULT))) == list(cnn().state_dict())


def test_a_float_twin_loads_the_state_strictly():
    twin, model = cnn(), nn.fix(cnn(), DEFAULT)
    twin.load_state_dict(values(model), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), model.parameters(),
                                                 strict=True))


def test_a_fixed_model_loads_the_state_of_its_float_twin():
    model = nn.fix(cnn(), DEFAULT)
    want = model(tensor(X))
    other = nn.fix(cnn(), DEFAULT)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other(tensor(X)), want)


def test_fixed_modules_are_still_their_torch_types():
    model = nn.fix(cnn(), DEFAULT)
    assert [type(module).__mro__[2] for module in model[0]] == [
        torch.nn.Conv2d, torch.nn.ReLU, torch.nn.MaxPool2d]


def test_weights_are_rounded_onto_the_grid_of_their_master_format():
    model, to = cnn(), Cast.parse(UPDATE["weight"])
    want = [reference.quantize(value, to) / 2**10 for value in flat(model[3].weight.tolist())]
    assert flat(nn.fix(model, DEFAULT)[3].weight.tolist()) == want


def test_weights_without_an_update_stay_as_they_are():
    model = cnn()
    want = model[3].weight.tolist()
    assert nn.fix(model, {"default": HARDWARE})[3].weight.tolist() == want


def test_stochastic_masters_draw_under_a_name_of_their_own():
    update = {**UPDATE, "weight": "s16f5 stochastic9 sat"}
    model = cnn()
    values = flat(model[3].weight.tolist())
    loads = reference.load_words(7, 0, "3", "evaluation.master.weight", 0)
    rands = reference.random_operands(len(values), 9, loads)
    want = [reference.quantize(value, Cast.parse(update["weight"]), rand) / 2**5
            for value, rand in zip(values, rands, strict=True)]
    nn.fix(model, {"default": {**HARDWARE, "update": update}}, nn.Backend(7))
    assert flat(model[3].weight.tolist()) == want


def test_a_representation_shows_the_hardware():
    spec = hardware(update=UPDATE)
    text = repr(nn.Linear(4, 2, spec=spec))
    lines = ["in_features=4, out_features=2, bias=True", f"x: {spec.x}", f"forward: {spec.forward}",
             f"update: {spec.update}"]
    assert [line for line in lines if line not in text] == []


def test_a_representation_leaves_out_what_there_is_not():
    assert "y:" not in repr(nn.Linear(4, 2, spec={"x": "s8"}))


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_computes_the_same(copied):
    model = nn.fix(cnn(), DEFAULT)
    assert passed(copied(model), X, some((2, 2), 90, 5, 2)) == passed(
        model, X, some((2, 2), 90, 5, 2))


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_has_one_backend_of_its_own(copied):
    model = nn.fix(cnn(), DEFAULT)
    backends = {id(layer.backend) for layer in nn.layers(copied(model)).values()}
    assert len(backends) == 1
    assert id(model[3].layer.backend) not in backends


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_keeps_the_chosen_binary_points(copied):
    model = nn.fix(cnn(), {"default": {**HARDWARE, "x": "s6 auto:max sat"}})
    model(tensor(X))
    assert copied(model)[3].layer.fracs == model[3].layer.fracs != {}


def test_layers_are_found_by_their_paths():
    model = nn.fix(cnn(), DEFAULT)
    assert list(nn.layers(model)) == ["0.0", "0.1", "0.2", "1", "3"]


def test_one_backend_serves_all_layers():
    backend = nn.Backend(5)
    model = nn.fix(cnn(), DEFAULT, backend)
    assert all(layer.backend is backend for layer in nn.layers(model).values())


def test_a_model_may_be_one_layer():
    model = nn.fix(torch.nn.Linear(4, 2), {"default": HARDWARE})
    assert isinstance(model, nn.Linear)


def test_a_fixed_model_may_be_fixed_anew():
    model = nn.fix(nn.fix(cnn(), DEFAULT), {"default": {**HARDWARE, "x": "s4f1 ties_even sat"}})
    assert str(model[3].layer.spec.x) == "s4f1 ties_even sat"


def test_layers_written_into_a_model_are_configured_by_fix():
    model = torch.nn.Sequential(torch.nn.Linear(4, 2), nn.Activation())
    nn.fix(model, {"default": HARDWARE, "by_type": {"Activation": {"y": "s4f2 ties_even sat"}}})
    assert str(model[1].layer.spec.y) == "s4f2 ties_even sat"


def test_a_layer_may_be_built_with_its_hardware():
    module = give(nn.Linear(4, 2, spec=HARDWARE), some((2, 4), 70, 5, 1), Grid([9, -8], 6))
    fixed = nn.fix(torch.nn.Linear(4, 2), {"default": HARDWARE})
    fixed.load_state_dict(module.state_dict())
    x = tensor(some((3, 4), 220, 5, 2))
    assert torch.equal(module(x), fixed(x))


@pytest.mark.parametrize("spec", [HARDWARE, LayerSpec.parse(HARDWARE), str(hardware())],
                         ids=["mapping", "value", "text"])
def test_hardware_may_be_given_in_every_form(spec):
    assert nn.Linear(4, 2, spec=spec).layer.spec == hardware()


def test_a_module_that_the_hardware_does_not_have_is_a_float_core_between_casts():
    model = nn.fix(torch.nn.Sequential(torch.nn.LogSigmoid()), {
        "default": {"x": "s4f1 ties_even sat", "y": "s6f2 ties_even sat"}})
    x = torch.tensor([0.3, -1.8, 9.0])
    want = torch.round(torch.nn.functional.logsigmoid(torch.tensor([0.5, -2.0, 3.5])) * 4) / 4
    assert torch.equal(model(x), want)
    assert "exact=False" in repr(model[0])


def test_a_refused_model_is_left_as_it_was():
    model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="matches no module"):
        nn.fix(model, {**DEFAULT, "by_name": {"2": {"y": "s8"}}})
    assert type(model[0]) is torch.nn.ReLU


@pytest.mark.parametrize("part, key", [("by_type", "BatchNorm2d"), ("by_name", "0.3"),
                                       ("by_name", "conv*")])
def test_settings_that_match_no_module_are_refused(part, key):
    message = rf"config {part}.{key.replace('*', '.')}: matches no module; there are 0.0 \(Conv2d\)"
    with pytest.raises(ValueError, match=message):
        nn.fix(cnn(), {**DEFAULT, part: {key: {"y": "s8"}}})


@pytest.mark.parametrize("part, name, key", [
    ("by_type", "ReLU", "y"), ("by_type", "AvgPool2d", "x"), ("by_name", "0.[12]", "w")])
def test_settings_that_no_matching_module_has_are_refused(part, name, key):
    message = rf"config {part}.{re.escape(name)}.{key}: matches no module; there are"
    with pytest.raises(ValueError, match=message):
        nn.fix(cnn(), {**DEFAULT, part: {name: {key: "s8"}}})


@pytest.mark.parametrize("name, want", [
    ("x", "has no x; the configuration must give it a cast such as 's8f4 ties_even sat'"),
    ("w", "has no w; the configuration must give it a cast"),
    ("b", "has no b; the configuration must give it a cast"),
    ("forward", r"has no forward; the configuration must give it a MAC such as {acc: s24 sat}")])
def test_what_a_forward_lacks_is_named(name, want):
    passes = ("forward", "grad_input", "grad_weight", "grad_bias")
    spec = {key: None if key in passes else value for key, value in HARDWARE.items()}
    spec |= {"forward": {"a": "s6", "b": "s5", "acc": "s16"}, name: None}
    model = nn.fix(torch.nn.Sequential(torch.nn.Linear(4, 2)), {"default": spec})
    with pytest.raises(ValueError, match=f"layer '0': {want}"):
        model(torch.ones(1, 4))


@pytest.mark.parametrize("name, what", [
    ("error", "a cast"), ("grad_w", "a cast"), ("grad_b", "a cast"), ("grad_input", "a MAC"),
    ("grad_weight", "a MAC"), ("grad_bias", "a MAC")])
def test_what_a_backward_lacks_is_named(name, what):
    spec = {**HARDWARE, name: None}
    if name == "error":
        spec |= dict.fromkeys(("grad_input", "grad_weight", "grad_bias"))
    model = nn.fix(torch.nn.Sequential(torch.nn.Linear(4, 2)), {"default": spec})
    with pytest.raises(ValueError, match=rf"layer '0': has no {name}; .* must give it {what}"):
        model(torch.ones(1, 4, requires_grad=True)).backward(torch.ones(1, 2))


WIDE = {"forward": "{acc: s26 sat}", "y": None}


def test_a_float32_model_refuses_a_wider_accumulator_and_says_what_helps():
    model = nn.fix(torch.nn.Sequential(torch.nn.Linear(4, 2)), {"default": {**HARDWARE, **WIDE}})
    message = (r"0.y: s26f6 has 25 magnitude bits, torch.float32 carries 24; give the layer a "
               r"narrower cast y, or use model.double\(\)")
    with pytest.raises(ValueError, match=message):
        model(torch.ones(1, 4))


def test_a_float64_model_takes_a_wider_accumulator():
    x, grad = some((3, 4), 220, 5, 1), some((3, 2), 90, 5, 2)
    narrow, wide = (nn.Linear(4, 2, spec=hardware(y=None, forward=f"{{acc: s{bits}}}")).double()
                    for bits in (20, 26))
    wide.load_state_dict(narrow.state_dict())
    assert passed(wide, x, grad) == passed(narrow, x, grad)


def test_an_accumulator_that_is_cast_may_be_wide_in_float32():
    module = nn.Linear(4, 2, spec=hardware(forward="{acc: s40 sat}"))
    assert module(torch.ones(1, 4)).dtype == torch.float32


def test_a_float32_model_refuses_wider_master_weights():
    update = {**UPDATE, "weight": "s26f20 sat"}
    with pytest.raises(ValueError, match=r"0.weight: s26f20 has 25 magnitude bits, torch.float32"):
        nn.fix(torch.nn.Sequential(torch.nn.Linear(4, 2)), {"default": {"update": update}})


def test_weights_that_are_not_finite_are_refused_by_name():
    model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"0.weight: nan is not finite"):
        nn.fix(model, DEFAULT)


def test_outputs_are_on_the_grid_of_y():
    module = nn.Linear(4, 2, spec=HARDWARE)
    y = module(tensor(some((3, 4), 220, 5, 1)))
    assert all((8 * value).is_integer() for value in flat(floats(Grid([0])) + y.tolist()))


@pytest.mark.parametrize("lazy", [lambda: torch.nn.LazyConv2d(3, 3), torch.nn.LazyBatchNorm2d])
def test_a_module_without_a_shape_is_refused_until_it_has_one(lazy):
    model, x = torch.nn.Sequential(torch.nn.ReLU(), lazy()), torch.ones(2, 2, 4, 4)
    with pytest.raises(ValueError, match=r"layer '1': a Lazy\w+ has no shape yet; run the float"):
        nn.fix(model, {"default": HARDWARE})
    assert type(model[0]) is torch.nn.ReLU
    model(x)
    nn.fix(model, {"default": HARDWARE})(x).sum().backward()


def test_a_container_has_no_layer_of_its_own():
    model = nn.fix(torch.nn.Sequential(torch.nn.Linear(2, 2)), {"default": HARDWARE})
    assert hasattr(model[0], "layer")
    assert not hasattr(model, "layer")


def test_an_input_of_another_shape_is_refused_by_name():
    model = nn.fix(torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.Flatten(),
                                       torch.nn.Linear(12, 2)), {"default": HARDWARE})
    with pytest.raises(ValueError, match="layer '0': forward: 3 input channels and w"):
        model(torch.ones(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"layer '2': forward: .* inner sizes 27 and 12"):
        model(torch.ones(1, 2, 5, 5))


def test_a_batch_norm_that_float32_does_not_hold_says_which_cast_helps():
    wide = {**HARDWARE, "w": "s16f12 sat", "b": "s16f12 sat", "y": None}
    model = nn.fix(torch.nn.BatchNorm1d(3), {"default": wide})
    with pytest.raises(ValueError, match=r"give the layer a narrower cast y, or use model\.double"):
        model(torch.rand(4, 3))


def test_a_model_that_fix_refuses_is_as_it_was():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    with torch.no_grad():
        model[1].bias[0] = float("nan")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"1\.bias: nan is not finite"):
        nn.fix(model, {"default": {**HARDWARE, "update": UPDATE}})
    assert [type(module) for module in model] == [torch.nn.Linear] * 2
    assert all(torch.equal(value, before[name])
               for name, value in model.state_dict().items() if name != "1.bias")
