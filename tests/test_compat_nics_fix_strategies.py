"""Strategies of nics_fix for TensorFlow and its two stages: rows B4 to B9."""

import pytest
import torch
import yaml
from nics_fix_network import STAGE1, configs, network, one, q, random, trained

from emu import nn, reference
from emu.compat import nics_fix as nf
from emu.update import BufferSpec

# B4 to B8: strategies


CALLS = []


class Logged(nf.Strategy):
    __registry_name__ = "logged"

    def __init__(self, name, fixed_weight_cfg, fixed_activation_cfg, tag):
        super().__init__(name, fixed_weight_cfg, fixed_activation_cfg)
        self.tag = tag


for hook in [f"{when}_{what}{grad}" for what in ("weight", "activation") for grad in ("", "_grad")
             for when in ("pre", "post")]:
    def logged(self, tensor, scale, hook=hook):
        CALLS.append((self.name, self.tag, hook, scale, tensor.shape))
        return tensor
    setattr(Logged, hook, logged)


def test_B04_strategies_nest_by_type_and_name(tmp_path):
    text = """
by_type:
  Dense: [{name: logged, tag: a}, {name: logged, tag: b}]
  ReLU: {name: logged, tag: r}
by_name:
  conv: {name: logged, tag: c}
"""
    path = tmp_path / "strategies.yaml"
    path.write_text(text)
    cfgs = configs(STAGE1)
    for scfgs in (nf.parse_strategy_cfg_from_str(text), nf.parse_strategy_cfg_from_file(path)):
        CALLS.clear()
        y, scope, _ = network(cfgs, strategies=scfgs)
        y.sum().backward()
        of = [(tag, hook) for name, tag, hook, *_ in CALLS if name == "fc"]
        for what, times in (("weight", 2), ("activation", 2), ("weight_grad", 2),
                            ("activation_grad", 1)):  # kernel and bias, x and y
            assert [each for each in of if each[1][each[1].index("_") + 1:] == what] == [
                ("a", f"pre_{what}"), ("b", f"pre_{what}"), ("b", f"post_{what}"),
                ("a", f"post_{what}")] * times
        assert {(name, tag) for name, tag, *_ in CALLS} == {
            ("fc", "a"), ("fc", "b"), ("ReLU", "r"), ("conv", "c")}
        seen = {scale for name, _, hook, scale, _ in CALLS if (name, hook) == ("ReLU",
                                                                               "post_activation")}
        assert seen == {nn.layers(scope)["ReLU_out"].fracs["y"] * -1 + 7}
        CALLS.clear()
        network(cfgs, scope, scfgs, training=False)
        assert not CALLS


def test_B04_a_strategy_has_its_name_and_configs():
    made = []

    class Kept(nf.Strategy):
        def __init__(self, name, fixed_weight_cfg, fixed_activation_cfg, size=1):
            super().__init__(name, fixed_weight_cfg, fixed_activation_cfg)
            made.append((name, fixed_weight_cfg, fixed_activation_cfg, size))

    cfgs = configs(STAGE1)
    network(cfgs, strategies=nf.parse_strategy_cfg_from_str("by_name: {fc: {name: kept, size: 3}}"))
    assert made[0] == ("fc", *cfgs.lookup("fc", "Dense"), 3)


def test_B04_the_strategies_of_one_tensor():
    class Doubled(nf.Strategy):
        def pre_activation(self, tensor, scale):
            return 2 * tensor

    x, config = random(20), one("auto", 6)
    strategy = Doubled("x", config, config)
    with nf.fixed_scope("net", nf.FixedConfigs()) as (_, phase, mapping):
        phase.feed(True)
        got = nf.quantitize(x, config, "mine", strategies=[strategy], data_type="activation")
    assert torch.equal(got, q(2 * x, 6))
    assert list(mapping["activation"]) == ["mine"]


@pytest.mark.parametrize(("kind", "unit"), [("uniform", 1.0), ("uniform_ratio", 2.0**-6)])
def test_B05_noise(kind, unit):
    noise = {"name": "noise_strategy", "activation": {"data_config": {
        "pre": {"type": kind, "min": -2.0, "max": 2.0}}}}
    x = torch.zeros(1000, dtype=torch.float64)
    cfgs = configs({"by_name": {"data": {"activation": {"data_config": {
        "training": 1, "bit_width": 8}}}}})

    def noisy(seed, training=True):
        scfgs = nf.parse_strategy_cfg_from_str(yaml.safe_dump({"by_type": {"data": noise}}))
        with nf.fixed_scope("net", cfgs, scfgs, seed) as (_, phase, _):
            phase.feed(training)
            return nf.quantitize(x, cfgs.lookup("data", "data")[1], name="data")

    got = noisy(1)
    assert torch.equal(got, noisy(1)) and not torch.equal(got, noisy(2))
    assert not noisy(1, training=False).any()
    bound = min(2 * unit, 2.0)
    assert -bound <= got.min() < -0.8 * bound and 0.8 * bound < got.max() <= bound


def test_B06_the_saver_of_weight_gradients():
    cfgs = configs({"by_type": {"Dense": {"weight": {"gradient_config": {
        "training": 0, "bit_width": 16}}}}})
    scfgs = nf.parse_strategy_cfg_from_str(
        "by_name: {fc: {name: weightgradsaver_strategy, scale: -2, bit_width: 6}}")
    grads = []
    for strategies in (None, scfgs):
        y, scope, _ = network(cfgs, strategies=strategies,
                              chain=lambda x: x.Flatten().Dense(3, name="fc"))
        y.backward(random(3, 3, seed=6, scale=0.2))
        grads.append(scope.fc.weight.grad)
    assert torch.equal(grads[1], q(grads[0], 6, -2))
    assert not torch.equal(*grads)


def test_B07_exponents_of_gradient_buffers():
    arguments = [-7, -9], [-3, -2], [0, 1], [-3, -2], [8, 8], [8, 8]
    # nics_fix has 10 and 8 for the buffers of from_min: an octave above the gradient's last bit.
    assert nf.amend_weight_grad_scales(2.0**-5, *arguments, grad_buffer_width=24) == (
        [-7, -9], [9, 7])
    assert nf.amend_weight_grad_scales(2.0**-5, *arguments, from_min=False) == ([-3, -2], [-2, -1])
    with pytest.warns(UserWarning, match=r"0.05 is no power of two; .* a rate of 0.03125"):
        assert nf.amend_weight_grad_scales(0.05, *arguments)[1] == [9, 7]
    with pytest.raises(ValueError, match="learning_rate 0: needs to be above 0"):
        nf.amend_weight_grad_scales(0, *arguments)


def test_B07_scales_are_assigned():
    fixed = {"data_config": {"training": "auto"},
             "gradient_config": {"training": "fixed", "bit_width": 8}}
    cfgs = configs({"by_type": {"Dense": {"weight": fixed}}})
    _, scope, mapping = network(cfgs, chain=lambda x: x.Flatten().Dense(3, name="fc"))
    data, grads = (nf.get_collection(mapping, f"nf_fix_weight_{part}_scale")
                   for part in ("data", "grad"))
    assert [scale.value for scale in grads] == [0, 0]
    nf.amend_weight_grad_scales(2.0**-4, [-5, -4], [-1, -1], data, grads, [8, 8], [8, 8])
    assert nn.layers(scope)["fc"].fracs["grad_w"] == 7 + 5
    assert [scale.value for scale in grads] == [-5, -4]
    with pytest.raises(ValueError, match=r"scale fc.y: is None by the configuration; write fixed"):
        nf.get_collection(mapping, "nf_fix_activation_data_scale")[0].assign(1)


BUFFER = {"weight": "s8f7 ties_even sat", "buffer": "s24f18 sat", "grad": "s8f10 ties_even sat"}


def test_B08_the_accumulation_buffer():
    cfgs = configs(STAGE1)
    scfgs = nf.parse_strategy_cfg_from_str(yaml.safe_dump({"by_type": {"Dense": {
        "name": "accumulation_strategy", "update": BUFFER}}}))
    _, scope, _ = network(cfgs, strategies=scfgs,
                          chain=lambda x: x.Flatten().Dense(3, name="fc"))
    optimizer, spec = nn.SGD(scope, 2.0**-4), BufferSpec.parse(BUFFER)
    weights = [round(v * 128) for v in scope.fc.weight.flatten().tolist()]
    buffers = [0] * len(weights)
    for step in range(4):
        y = network(cfgs, scope, scfgs, chain=lambda x: x.Flatten().Dense(3, name="fc"))[0]
        scope.zero_grad()
        y.backward(random(3, 3, seed=step, scale=0.05))
        grads = [reference.quantize(v, spec.grad) for v in scope.fc.weight.grad.flatten().tolist()]
        optimizer.step()
        pairs = [reference.buffered_sgd(w, b, g, 4, spec)
                 for w, b, g in zip(weights, buffers, grads, strict=True)]
        weights, buffers = (list(each) for each in zip(*pairs, strict=True))
        assert [v * 128 for v in scope.fc.weight.flatten().tolist()] == weights
    assert any(buffers)


# B9


def test_B09_two_stages():
    stage1, seen = configs(STAGE1), {}
    software, scope, mapping = trained(stage1, "software", 40, seen=seen)
    names = list(mapping["weight"])
    last = [seen[name][-20:] for name in names]
    grads, buffers = nf.amend_weight_grad_scales(
        2.0**-4, [min(each) for each in last], [max(each) for each in last],
        nf.get_collection(mapping, "nf_fix_weight_data_scale"),
        nf.get_collection(mapping, "nf_fix_weight_grad_scale"), [8] * 4, [8] * 4, from_min=False)
    entries = {}
    for name, grad, buffer in zip(names, grads, buffers, strict=True):
        if name.endswith(".weight"):
            data = mapping["weight"][name]["q_data_scale"].value
            entries[name.partition(".")[0]] = {"name": "accumulation_strategy", "update": {
                "weight": f"s8f{7 - data} ties_even sat", "buffer": f"s24f{23 - buffer} sat",
                "grad": f"s8f{min(7 - grad, 23 - buffer)} ties_even sat"}}
    scfgs = nf.parse_strategy_cfg_from_str(yaml.safe_dump({"by_name": entries}))
    fixed = yaml.safe_load(yaml.safe_dump(STAGE1).replace("auto", "fixed"))
    stage2 = configs(fixed)
    state = scope.state_dict()
    _, hardware, _ = network(stage2, "hardware", scfgs, x=random(24, 2, 6, 6, seed=11))
    nf.load_from(hardware, state)
    points = {site: dict(layer.fracs) for site, layer in nn.layers(hardware).items()}
    assert points["fc"]["grad_w"] == 7 - grads[names.index("fc.weight")]
    losses, hardware, _ = trained(stage2, hardware, 40, nn.SGD(hardware, 2.0**-4), scfgs)
    assert {site: dict(layer.fracs) for site, layer in nn.layers(hardware).items()} == points
    assert losses[0] < software[0] / 2 and losses[-1] < losses[0]
