"""What nics_fix for TensorFlow offers, row by row (B1 to B13), against its formulas restated."""

import copy
import doctest
import logging
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from nics_fix_network import (
    AUTO,
    BOTH,
    STAGE1,
    configs,
    exponent,
    fix_one,
    network,
    one,
    q,
    random,
    trained,
)

from emu import nn
from emu.compat import nics_fix as nf
from emu.number import Cast

# B1


SECTIONS = """
configs:
  eight:
    weight: {data_config: {training: auto, not_training: fixed, bit_width: 8}}
    activation: {data_config: {training: auto, not_training: 3, bit_width: 6}}
by_type:
  Dense: {config_name: eight}
  Conv2D:
    config_name: eight
    weight: {gradient_config: {training: -4, bit_width: 16}}
  Mine: {activation: {data_config: {training: none, not_training: null}}}
by_name:
  fc2: {activation: {data_config: {training: 2, bit_width: 4}}}
"""


def test_B01_configurations_by_type_and_by_name(tmp_path):
    path = tmp_path / "fixed.yaml"
    path.write_text(SECTIONS)
    for cfgs in (nf.parse_cfg_from_str(SECTIONS), nf.parse_cfg_from_file(path)):
        weight, activation = cfgs.lookup("fc1", "Dense")
        assert vars(weight.data_config) == {"training": "auto", "not_training": "fixed",
                                            "bit_width": 8}
        assert vars(activation.data_config) == {"training": "auto", "not_training": 3,
                                                "bit_width": 6}
        weight, activation = cfgs.lookup("conv", "Conv2D")  # its weight replaces the named one
        assert weight.data_config == nf.FixedConfig().data_config
        assert (weight.gradient_config.training, weight.gradient_config.bit_width) == (-4, 16)
        assert activation.data_config.bit_width == 6
        weight, activation = cfgs.lookup("fc2", "Dense")  # a name replaces the type
        assert weight == nf.FixedConfig()
        assert (activation.data_config.training, activation.data_config.bit_width) == (2, 4)
        assert cfgs.lookup("x", "Mine")[1].data_config.training is None


def test_B01_defaults():
    for cfgs in (nf.FixedConfigs(), nf.parse_cfg_from_str(""), configs(STAGE1)):
        for found in cfgs.lookup("other", "NoSuchType"):
            assert vars(found.data_config) == {"training": None, "not_training": None,
                                               "bit_width": 8}
            assert vars(found.gradient_config) == {"training": None, "not_training": None,
                                                   "bit_width": 32}


@pytest.mark.parametrize(("text", "message"), [
    ("by_type: {Dense: {weight: {data_config: {training: often}}}}",
     "by_type.Dense.weight.data_config.training 'often': write auto"),
    ("by_type: {Dense: {weight: {data_config: {bit_width: 0}}}}", "bit_width 0: needs"),
    ("by_type: {Dense: {weight: {data_config: {training: true}}}}", "training True: write auto"),
    ("by_type: {Dense: {weight: {data_confg: {}}}}", "did you mean 'data_config'"),
    ("by_type: {Dense: {weight: {gradient_config: {not_training: auto}}}}", "'not_training'"),
    ("by_name: {fc: {config_name: nine}}", "config_name 'nine': is none of the configs"),
    ("by_nam: {}", "did you mean 'by_name'"),
    ("[1, 2]", "needs a mapping with keys"),
])
def test_B01_a_wrong_configuration_is_refused(text, message):
    with pytest.raises(ValueError) as error:
        nf.parse_cfg_from_str(text)
    assert message in str(error.value)
    assert isinstance(error.value, AssertionError)  # which nics_fix raises


@pytest.mark.parametrize("scale", [1.0, 2.0**-20, 300.0])
@pytest.mark.parametrize("mode", ["auto", "none", -3, 0, 5])
def test_B01_every_mode_is_its_formula(mode, scale):
    x = random(40, scale=scale)
    x[0], x[1] = 0.5 * scale, -scale
    got, _ = fix_one(x, one(mode, 6))
    want = x if mode == "none" else q(x, 6, None if mode == "auto" else mode)
    assert torch.equal(got, want)


def test_B01_an_accumulator_may_be_said_beside_the_configs():
    narrow = {**STAGE1["by_type"]["Dense"], "mac": {"acc": "s17 sat"}}
    cfgs = configs({"by_type": {"Dense": narrow, "data": {"activation": AUTO}}})
    _, scope, _ = network(cfgs, chain=lambda x: x.Flatten().Dense(3, name="fc"))
    assert str(nn.layers(scope)["fc"].spec.forward) == "{a: s8f0, b: s8f0, acc: s17f0 to_neg sat}"


# B2, B3


def test_B02_each_phase_has_its_mode():
    x, config = random(30), one("auto", 5, not_training="fixed")
    first, scope = fix_one(x, config)
    s = exponent(x.tolist())
    assert torch.equal(first, q(x, 5))
    assert torch.equal(fix_one(8 * x, config, False, scope)[0], q(8 * x, 5, s))  # the stored one
    assert torch.equal(fix_one(8 * x, config, True, scope)[0], q(8 * x, 5, s + 3))


def test_B02_nothing_trains_at_first_and_evaluation_keeps_no_scale():
    with nf.fixed_scope("net", nf.FixedConfigs()) as (scope, training, _):
        assert not training and not scope.training
    x, config = random(30), one("none", 5, not_training="auto")
    for scale in (1, 16, 1):
        assert torch.equal(fix_one(scale * x, config, False, scope)[0], q(scale * x, 5))
    assert nn.layers(scope)["x"].fracs == {}
    assert torch.equal(fix_one(x, config, True, scope)[0], x)
    config = one("auto", 5, not_training="auto")
    _, scope = fix_one(x, config)
    assert torch.equal(fix_one(8 * x, config, False, scope)[0], q(8 * x, 5))
    assert nn.layers(scope)["x"].fracs == {"y": 4 - exponent(x.tolist())}


def test_B03_a_constant_exponent_at_the_golden_numbers():
    x = torch.tensor([-1.3, -1, -0.9, -0.125, 0.125, 0.375, 0.9, 1, 2])
    want = [-1, -1, -1, 0, 0, 0.5, 0.75, 0.75, 0.75]
    assert fix_one(x, one(0, 3))[0].tolist() == want
    assert fix_one(x, one("fixed", 3))[0].tolist() == want  # a scale that nobody chose is 2^0


def test_B03_a_constant_exponent_stops_gradients_beyond_its_range():
    x = torch.tensor([-1.2, -1, 0.3, 0.85, 0.9, 1.5], requires_grad=True)
    fix_one(x, one(0, 3))[0].backward(torch.tensor([0.1] * 6))
    torch.testing.assert_close(x.grad, torch.tensor([0, 0.1, 0.1, 0.1, 0, 0]))


# the four points of a layer


def test_a_layer_is_fixed_at_its_four_points():
    x = random(4, 5, seed=2).requires_grad_()
    cfgs = configs(STAGE1)
    _, scope, _ = network(cfgs, chain=lambda x: x.Dense(3, name="fc"), x=x)
    with nn.audit():
        y, _, _ = network(cfgs, scope, chain=lambda x: x.Dense(3, name="fc"), x=x)
    w, b = scope.fc.weight.detach(), scope.fc.bias.detach()
    xq, wq = q(x, 8), q(w, 8)
    exact = xq @ wq.T + q(b, 8)  # float64 holds these sums
    assert torch.equal(y, q(exact, 8))
    grad = random(4, 3, seed=3, scale=0.01)
    y.backward(grad)
    s = exponent(exact.flatten().tolist())
    inside = (exact / 2.0 ** (s - 7)).round().abs() <= 127.5
    error = q(torch.where(inside, grad, 0.0), 8)
    passes = (w / 2.0 ** (exponent(w.flatten().tolist()) - 7)).round() <= 127
    assert torch.equal(scope.fc.weight.grad, q(torch.where(passes, error.T @ xq, 0.0), 8))
    assert torch.equal(scope.fc.bias.grad, q(error.sum(0), 8))
    assert torch.equal(x.grad, q(error @ wq, 8))


def test_a_network_is_the_chain_of_its_formulas_in_both_phases():
    cfgs = configs(STAGE1)
    x = random(3, 2, 6, 6, seed=4)
    y, scope, mapping = network(cfgs)
    scales = {name: entry["q_data_scale"].value for kind in mapping
              for name, entry in mapping[kind].items()}
    for training in (True, False):
        s = (lambda name: None) if training else scales.get
        h = q(F.conv2d(q(x, 8, s("data")), q(scope.conv.weight, 8, s("conv.weight")),
                       q(scope.conv.bias, 8, s("conv.bias"))), 8, s("conv"))
        h = F.max_pool2d(q(F.relu(h), 8, s("ReLU")), 2).flatten(1)
        h = q(F.linear(h, q(scope.fc.weight, 8, s("fc.weight")), q(scope.fc.bias, 8, s("fc.bias"))),
              8, s("fc"))
        assert torch.equal(network(cfgs, scope, training=training)[0], h)
    assert torch.equal(y, network(cfgs, scope)[0])


def test_what_is_not_fixed_is_close_to_float():
    x = random(3, 2, 6, 6, seed=4)
    y, scope, _ = network(nf.FixedConfigs())
    h = F.max_pool2d(F.relu(F.conv2d(x, scope.conv.weight, scope.conv.bias)), 2).flatten(1)
    want = F.linear(h, scope.fc.weight, scope.fc.bias)
    torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-5)  # a float model against 24 bits
    y.square().sum().backward()
    got = scope.conv.weight.grad.clone()
    scope.zero_grad()
    want.square().sum().backward()
    torch.testing.assert_close(got, scope.conv.weight.grad, rtol=1e-3, atol=1e-4)


# B10


def test_B10_a_saver_with_fixed_weights(tmp_path):
    cfgs = configs(STAGE1)
    x = random(24, 2, 6, 6, seed=11)
    _, scope, mapping = trained(cfgs, "net", 5)
    want = network(cfgs, scope, x=x, training=False)[0]
    plain = nf.fixed_model_saver(mapping).save(tmp_path / "plain.pt")
    saver = nf.fixed_model_saver(mapping, fixed_weight=True)
    path = saver.save(tmp_path / "fixed.pt")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["fixed.pt", "plain.pt"]
    floats, fixed = (torch.load(each) for each in (plain, path))
    assert list(floats) == list(fixed)
    for name in ("conv.weight", "conv.bias", "fc.weight", "fc.bias"):
        s = mapping["weight"][name]["q_data_scale"].value
        assert torch.equal(fixed[name], q(floats[name], 8, s))
        assert not torch.equal(fixed[name], floats[name])
        assert torch.equal(scope.get_parameter(name), floats[name])  # saving changed nothing
    _, fresh, fresh_mapping = network(cfgs, "fresh")
    nf.fixed_model_saver(fresh_mapping).restore(path)
    assert torch.equal(network(cfgs, fresh, x=x, training=False)[0], want)
    assert torch.equal(fresh.conv.weight, fixed["conv.weight"])


# B11


def test_B11_default_arguments():
    x = random(2, 3, 6, 6)
    defaults = {"use_bias": False, "Conv2D.padding": "same", "units": 4}
    with nf.fixed_scope("net", nf.FixedConfigs()) as (scope, _, _), nf.kwargs_scope(**defaults):
        a = nf.Conv2D(x, 5, 3, name="a")
        nf.Conv2D(x, 5, 3, padding="valid", use_bias=True, name="b")
        nf.Dense(nf.Flatten(x), name="c")
        with nf.kwargs_scope_by_type(Dense={"use_bias": True}, Conv2D={"strides": 2}):
            nf.Conv2D(x, 5, 3, 1, name="d")
            nf.Dense(nf.Flatten(x), 2, name="e")
        with nf.kwargs_scope(_override=True, units=7):
            nf.Dense(nf.Flatten(x), name="f")
        with pytest.raises(ZeroDivisionError), nf.kwargs_scope(units=9):
            raise ZeroDivisionError
        nf.Dense(nf.Flatten(x), name="g")
    assert a.shape == (2, 5, 6, 6)
    bias = {name: scope.get_submodule(name).bias is not None for name in "abcdefg"}
    assert bias == {"a": False, "b": True, "c": False, "d": False, "e": True, "f": True, "g": False}
    assert scope.b.padding == "valid" and scope.d.padding == "same"
    assert (scope.d.stride, scope.a.stride) == ((1, 1), (1, 1))  # given by place
    assert [scope.get_submodule(name).out_features for name in "cefg"] == [4, 2, 7, 4]


def test_B11_the_level_of_the_log(monkeypatch, caplog):
    try:
        monkeypatch.delenv("NICS_FIX_LOGLEVEL", raising=False)
        nf.set_log_level()
        assert logging.getLogger("nics_fix").level == logging.WARNING
        monkeypatch.setenv("NICS_FIX_LOGLEVEL", "Info")
        nf.set_log_level()
        network(nf.FixedConfigs())
        assert "net: made conv" in caplog.text
        monkeypatch.setenv("NICS_FIX_LOGLEVEL", "loud")
        with pytest.raises(ValueError, match="NICS_FIX_LOGLEVEL 'loud': write one of debug"):
            nf.set_log_level()
    finally:
        nf.set_log_level("warning")


# B12


class Scaled(torch.nn.Module):
    def __init__(self, units):
        super().__init__()
        self.linear = torch.nn.Linear(4, units).double()

    def forward(self, x):
        return torch.relu(self.linear(x))


def test_B12_chains_are_calls():
    cfgs = configs(STAGE1)
    x = random(3, 2, 6, 6, seed=4)
    chained, scope, _ = network(cfgs)
    with nf.fixed_scope(scope, cfgs):
        h = nf.quantitize(x, cfgs.lookup("data", "data")[1], name="data")
        h = nf.ReLU(nf.Conv2D(h, 4, 3, name="conv"))
        assert torch.equal(nf.Dense(nf.Flatten(nf.MaxPool(h)), 3, name="fc"), chained)


def test_B12_wrapped_tensors():
    x = random(2, 4)
    with nf.fixed_scope("net", nf.FixedConfigs()) as (scope, _, _):
        wrapped = nf.wrap(x)
        assert wrapped.shape == (2, 4) and wrapped.tensor is x
        assert torch.equal(wrapped.apply(torch.neg).tensor, -x)
        left, right = wrapped.Split(2)
        assert torch.equal(left.tensor, x[:, :2]) and torch.equal(right.tensor, x[:, 2:])
        left, right = wrapped.Split([1, 3])
        assert right.shape == (2, 3)
        assert {"Conv2D", "Dense", "ReLU", "Split"} <= set(wrapped.fixed_methods)
        assert {"MaxPool", "Dropout", "Flatten"} <= set(wrapped.no_fixed_methods)
        assert set(wrapped.methods) == {*wrapped.fixed_methods, *wrapped.no_fixed_methods}
        wrapped.Dense(3).Dense(3)
        assert {"Dense", "Dense_1"} <= set(dict(scope.named_children()))
        with pytest.raises(ValueError, match="Split: 4 are not 3 equal parts"):
            wrapped.Split(3)
        with pytest.raises(AttributeError, match="NoSuchThing"):
            wrapped.NoSuchThing  # noqa: B018


def test_B12_outputs_of_a_split_are_fixed_each():
    cfgs = configs({"by_type": {"Split": {"activation": AUTO}}})
    x = random(2, 4)
    x[:, 2:] *= 8
    with nf.fixed_scope("net", cfgs) as (_, phase, mapping):
        phase.feed(True)
        got = nf.wrap(x).Split(2)
    assert [torch.equal(each.tensor, q(part, 8)) for each, part in zip(
        got, x.split(2, 1), strict=True)] == [True, True]
    assert list(mapping["activation"]) == ["Split_0", "Split_1"]


def test_B12_users_register_operations():
    Twice = nf.fixed_register(lambda x, factor=2: x * factor, "Twice",
                              {"activation": {"data_config": {"training": 1, "bit_width": 4}}})
    nf.fixed_register(Scaled, "Scaled")
    Plain = nf.no_fixed_register(lambda x, power: x.abs() + power, "Plain")
    cfgs = configs({"by_type": {"Scaled": BOTH}})
    x = random(2, 4)
    with nf.fixed_scope("net", cfgs) as (scope, phase, mapping):
        phase.feed(True)
        assert torch.equal(Twice(x), q(2 * q(x, 25), 4, 1))
        assert torch.equal(Twice(x, 0.5), q(0.5 * q(x, 25), 4, 1))
        assert torch.equal(Plain(x, 3.0), x.abs() + 3)
        y = nf.wrap(x).Scaled(3, name="mine").tensor
        assert torch.equal(y, q(y, 8))
        y.sum().backward()
    weight = mapping["weight"]["mine.linear.weight"]
    assert torch.equal(weight["q_data"], q(scope.mine.linear.weight, 8))
    assert torch.equal(weight["ori_grad"], q(weight["ori_grad"], 8))
    with pytest.raises(RuntimeError, match="Twice is registered as fixed, and cannot be without"):
        nf.no_fixed_register(torch.neg, "Twice")
    with pytest.raises(RuntimeError, match="Plain is registered without quantisation"):
        nf.fixed_register(abs, "Plain")


# B13


def test_B13_all_scales_are_reported():
    cfgs = configs(STAGE1)
    y, scope, mapping = network(cfgs)
    y.sum().backward()
    x = random(3, 2, 6, 6, seed=4)
    weights = ["conv.weight", "conv.bias", "fc.weight", "fc.bias"]
    assert list(mapping) == ["weight", "activation", "other"]
    assert list(mapping["weight"]) == weights
    assert list(mapping["activation"]) == ["conv", "ReLU", "fc"]
    entry = mapping["weight"]["fc.weight"]
    assert entry["data"] is scope.fc.weight
    assert torch.equal(entry["q_data"], q(scope.fc.weight, 8))
    assert entry["q_data_scale"].value == exponent(scope.fc.weight.flatten().tolist())
    assert entry["data_cfg"] == cfgs.lookup("fc", "Dense")[0].data_config
    assert entry["grad_cfg"] == cfgs.lookup("fc", "Dense")[0].gradient_config
    assert entry["ori_grad"] is scope.fc.weight.grad
    assert mapping["other"]["data"]["q_data_scale"].value == exponent(x.flatten().tolist())
    for kind in ("weight", "activation"):
        for part in ("data", "grad"):
            scales = nf.get_collection(mapping, f"nf_fix_{kind}_{part}_scale")
            assert [scale.value for scale in scales] == [
                each[f"q_{part}_scale"].value for each in mapping[kind].values()]
            assert all(isinstance(scale.value, int) for scale in scales)
    assert len(nf.get_collection(mapping, "nf_fix_weight_data")) == 4
    assert f"weight fc.weight: data 2^{entry['q_data_scale'].value}, gradient 2^" in repr(mapping)
    with pytest.raises(ValueError, match="collection 'nf_fix_bias_data': there are nf_fix_weight"):
        nf.get_collection(mapping, "nf_fix_bias_data")


# scopes


def test_operations_outside_a_scope_are_refused():
    with pytest.raises(RuntimeError, match="no fixed_scope is open"):
        nf.wrap(random(2, 3)).Dense(3)


def test_scopes_do_not_nest_and_check_their_configs():
    cfgs = nf.FixedConfigs()
    with nf.fixed_scope("a", cfgs), pytest.raises(AssertionError, match="do not nest"):
        nf.fixed_scope("b", cfgs).__enter__()
    for arguments in (("a", {}), ("a", cfgs, {}), (3, cfgs)):
        with pytest.raises(TypeError, match="fixed_scope: "), nf.fixed_scope(*arguments):
            pass
    with nf.fixed_scope("a", cfgs) as (scope, _, _):
        nf.Dense(random(2, 3), 3, name="fc")
        with pytest.raises(ValueError, match="'fc': the scope has an operation of this name"):
            nf.Dense(random(2, 3), 3, name="fc")
        with pytest.raises(ValueError, match=r"operation 'a.b': a name has no dot"):
            nf.Dense(random(2, 3), 3, name="a.b")
    with pytest.raises(ValueError, match="'a': was made with another configuration"):
        nf.fixed_scope(scope, nf.FixedConfigs()).__enter__()


def test_a_cast_of_the_configuration_is_that_of_the_native_hardware():
    _, scope, _ = network(configs(STAGE1))
    layer = nn.layers(scope)["fc"]
    assert str(layer.spec.w) == "s8 auto:max+1e-05 ties_even sat"
    assert str(layer.evaluation.w) == "s8 fixed ties_even sat"
    assert layer.spec.forward.result == Cast.parse("s62 sat")


def test_a_scope_is_copied_and_pickled():
    cfgs = configs(STAGE1)
    y, scope, _ = network(cfgs)
    for other in (copy.deepcopy(scope), pickle.loads(pickle.dumps(scope))):
        assert torch.equal(network(other.fixed_config, other)[0], y)


def test_the_examples_of_the_guide_run():
    guide = Path(__file__).parents[1] / "docs/migrating.md"
    found = doctest.testfile(str(guide), module_relative=False)
    assert found.attempted and not found.failed
