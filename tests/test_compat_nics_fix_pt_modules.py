"""nics_fix_pt: modules, their configurations and their state, row by row."""

import copy
import io
import json
import pickle

import pytest
import torch
import yaml

import emu.compat.nics_fix_pt as nfp
import emu.compat.nics_fix_pt.nn_fix as nnf
from emu import nn as native

default = nfp.utils._generate_default_fix_cfg


def settings(*names, method=1, bitwidth=4, **more):
    """A configuration for each name."""
    found = default(names, method=method, bitwidth=bitwidth)
    for cfg in found.values():
        cfg.update(more)
    return found


def linear(inputs=3, outputs=2, method=1, grad=None, **more):
    return nnf.Linear_fix(inputs, outputs, nf_fix_params=settings(
        "weight", "bias", method=method, **more), nf_fix_params_grad=grad)


def activation(method=1, **more):
    return nnf.Activation_fix(nf_fix_params=settings("activation", method=method, **more))


def quantised(x, bits=4):
    """The tensor as AUTO puts it."""
    return nfp.quantize_cfg(x.detach(), torch.zeros(1), bits, 1)[0]


class Scale(torch.nn.Module):
    """A user's module with a parameter and a buffer."""

    def __init__(self, n=3):
        super().__init__()
        self.param = torch.nn.Parameter(torch.linspace(.1, 1.3, n))
        self.register_buffer("offset", torch.full((n,), .3))

    def forward(self, x, factor=1):
        return (x * self.param * factor + self.offset).sum(-1)


nfp.register_fix_module(Scale)


def net(method=1):
    """A model with nested containers, of every kind of fix module."""
    model = nfp.FixTopModule()
    model.act = activation(method)
    model.block = torch.nn.Sequential(
        nnf.Conv2d_fix(1, 2, 3, nf_fix_params=settings("weight", "bias", method=method)),
        nnf.BatchNorm2d_fix(2, nf_fix_params=settings(
            "weight", "bias", "running_mean", "running_var", method=method)),
        torch.nn.MaxPool2d(2),
        nnf.ConvBN_fix(2, 2, 1, nf_fix_params=settings("weight", "bias", method=method)))
    model.fc = linear(18, 4, method, settings("weight", "bias", method=method))
    return model


def run(model, x):
    return model.fc(model.block(model.act(x)).flatten(1))


X = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_A16_overrides_of_one_call():
    torch.manual_seed(0)
    layer, x = linear(grad=settings("weight")), torch.randn(4, 3)
    plain = layer(x)
    assert torch.equal(layer({"inputs": x}), plain)
    wide = layer({"inputs": x, "weight_fix": {"bitwidth": torch.tensor([8])}})
    assert torch.equal(layer.weight, quantised(layer._parameters["weight"], 8))
    assert not torch.equal(wide, plain) and layer.nf_fix_params["weight"]["bitwidth"] == 4
    layer({"inputs": x, "weight_grad_fix": {"method": 0}}).sum().backward()
    exact = layer._parameters["weight"].grad.clone()
    layer.zero_grad()
    layer(x).sum().backward()
    assert torch.equal(layer._parameters["weight"].grad, quantised(exact))
    act = activation(method=0)
    assert torch.equal(act({"inputs": x, "activation_fix": {"method": 1}}), quantised(x))
    assert act.nf_fix_params["activation"]["scale"] > 0  # a call's AUTO writes the kept scale


@pytest.mark.parametrize("inputs", [{"weight_fix": {}}, {"inputs": torch.ones(1, 3), "weight": {}}])
def test_A16_wrong_dicts(inputs):
    with pytest.raises((KeyError, ValueError), match=r"inputs|weight"):
        linear()(inputs)


def test_A17_register_fix_module():
    module = nnf.Scale_fix(3, nf_fix_params=settings("param", "offset"))
    assert type(module).__name__ == "Scale_fix" and isinstance(module, Scale)
    assert isinstance(type(module), nfp.fix_modules.FixMeta)
    out = module(torch.ones(3), factor=2)
    want = (2 * quantised(torch.linspace(.1, 1.3, 3)) + quantised(torch.full((3,), .3))).sum()
    assert torch.equal(out, want)
    kept = nnf.Scale_fix
    assert nfp.fix_modules.register_fix_module(Scale) is None and nnf.Scale_fix is kept
    nfp.register_fix_module(Scale, "Other_fix")
    assert nnf.Other_fix(2, nf_fix_params={}).__class__.__name__ == "Other_fix"
    with pytest.raises(ValueError, match="needs a class of"):
        nfp.register_fix_module(torch.relu)


def test_A18_registered_from_the_start():
    for name in ("Linear", "Conv2d", "BatchNorm1d", "BatchNorm2d"):
        cls = getattr(nnf, f"{name}_fix")
        assert issubclass(cls, getattr(torch.nn, name)) and cls is getattr(
            nfp.nn_fix_inner, f"{name}_fix")
    assert "Linear_fix" in dir(nnf)


def test_A19_auto_register():
    with pytest.raises(AttributeError, match="Bilinear_fix"):
        nnf.Bilinear_fix  # noqa: B018
    cls = nfp.NAR.Bilinear
    assert cls is nnf.Bilinear_fix is nfp.NAR.Bilinear_fix is nfp.nn_auto_register.Bilinear_fix
    assert nfp.NAR.Linear is nnf.Linear_fix and nfp.NAR.Activation_fix is nnf.Activation_fix
    for name in ("Nothing", "Nothing_fix", "functional"):
        with pytest.raises(AttributeError):
            getattr(nfp.NAR, name)


@pytest.mark.parametrize(("name", "arguments", "shape"), [
    ("Conv1d", (2, 3, 2), (1, 2, 5)), ("Conv3d", (1, 2, 2), (1, 1, 3, 3, 3)),
    ("ConvTranspose2d", (2, 3, 2), (1, 2, 4, 4)), ("LayerNorm", (4,), (2, 4)),
    ("GroupNorm", (2, 4), (2, 4, 3)), ("InstanceNorm2d", (2, 1e-5, .1, True, True), (2, 2, 3, 3)),
    ("BatchNorm3d", (2,), (2, 2, 2, 2, 2)), ("PReLU", (), (2, 3)), ("LSTM", (3, 4), (5, 2, 3)),
    ("GRU", (3, 4), (5, 2, 3)), ("LSTMCell", (3, 4), (2, 3)), ("GRUCell", (3, 4), (2, 3))])
def test_A19_any_torch_module(name, arguments, shape):
    """The quantised module is the float one with quantised parameters, before and after a copy."""
    torch.manual_seed(0)
    base = getattr(torch.nn, name)(*arguments)
    params = [key for key, _ in base.named_parameters()]
    module = getattr(nfp.NAR, name)(*arguments, nf_fix_params=settings(*params))
    module.load_state_dict(base.state_dict(), strict=False)
    x = torch.randn(shape)
    out = module(x)
    with torch.no_grad():
        for value in base.parameters():
            value.copy_(quantised(value))
    want = base(x)
    moves = getattr(base, "track_running_stats", False)  # the second call sees other statistics
    for each in (out, copy.deepcopy(module)(x))[:1 if moves else 2]:
        first, second = (y[0] if isinstance(y, tuple) else y for y in (each, want))
        assert torch.equal(first, second)


def test_A19_more_arguments_and_embedding():
    module = nfp.NAR.Bilinear(2, 3, 4, nf_fix_params=settings("weight"))
    x, y = torch.randn(5, 2), torch.randn(5, 3)
    assert torch.equal(module(x, y), module(x, input2=y))
    table = nfp.NAR.Embedding(5, 3, nf_fix_params=settings("weight"))
    assert torch.equal(table(torch.tensor([1, 4])), quantised(table._parameters["weight"])[[1, 4]])


def test_A19_dotted_names():
    """A module within a module: attention, whose output projection has its own parameters."""
    torch.manual_seed(0)
    names = "in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"
    module = nfp.NAR.MultiheadAttention(4, 2, nf_fix_params=settings(*names))
    base = torch.nn.MultiheadAttention(4, 2)
    base.load_state_dict(module.state_dict(), strict=False)
    with torch.no_grad():
        for value in base.parameters():
            value.copy_(quantised(value))
    x = torch.randn(3, 2, 4)
    assert torch.equal(module(x, x, x)[0], base(x, x, x)[0])
    assert {"out_proj.weight_fp_scale", "in_proj_bias_fp_scale"} <= module.state_dict().keys()
    copy.deepcopy(module).load_state_dict(module.state_dict())


def test_A20_subclasses_keep_their_names():
    class Mine(nnf.Linear_fix):
        def __init__(self, *args, **kwargs):
            self.cfg = settings("weight", "bias")
            super().__init__(*args, nf_fix_params=self.cfg, **kwargs)

        def forward(self, x):
            return super().forward({"inputs": x, "weight_fix": {"bitwidth": 2}}) + 1

    module = Mine(3, 2)
    x = torch.randn(2, 3)
    want = torch.nn.functional.linear(x, quantised(module.weight, 2), quantised(module.bias)) + 1
    assert torch.equal(module(x), want) and type(module).__name__ == "Mine"
    model = torch.nn.ModuleDict({"layer": module})
    nfp.FixTopModule.set_fix_method(model, method_by_type={"Linear_fix": {"bias": 0}})
    assert module.cfg["bias"]["method"] == 0 and module.cfg["weight"]["method"] == 1


def saved(model):
    kept = io.BytesIO()
    torch.save(model, kept)
    kept.seek(0)
    return torch.load(kept, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, saved,
                                    lambda model: pickle.loads(pickle.dumps(model))])
def test_A20_copies_after_a_forward(copied):
    torch.manual_seed(0)
    model = net()
    run(model, X).sum().backward()
    other = copied(model).eval()
    assert torch.equal(run(other, X), run(model.eval(), X))
    fc = other.fc
    assert fc.nf_fix_params["weight"]["scale"] is fc._buffers["weight_fp_scale"]
    if copied is not copy.copy:
        assert fc._parameters["weight"] is not model.fc._parameters["weight"]
        assert type(fc) is type(model.fc) and "weight" not in copied(model.fc).__dict__
    lstm = nfp.NAR.LSTM(2, 3, nf_fix_params=settings("weight_ih_l0"))
    x = torch.randn(4, 1, 2)
    out = lstm(x)[0]
    assert torch.equal(copied(lstm)(x)[0], out)


def test_A21_master_and_quantised():
    layer = linear(grad=settings("weight"))
    master = layer.weight
    assert isinstance(master, torch.nn.Parameter)
    layer(torch.randn(2, 3)).sum().backward()
    assert layer._parameters["weight"] is master is dict(layer.named_parameters())["weight"]
    assert torch.equal(layer.weight, quantised(master)) and layer.weight.nfp_actual_data is master
    assert layer.weight.grad_fn is not None and master.grad is not None
    assert torch.equal(layer.state_dict()["weight"], master)
    before = master.clone()
    layer.weight.data.fill_(9)
    assert torch.equal(master, before)
    layer.nf_fix_params["weight"]["method"].fill_(0)
    layer.nf_fix_params_grad["weight"]["method"].fill_(0)
    layer(torch.randn(2, 3))
    assert layer.weight is master


def test_A22_scales_are_buffers():
    grad = settings("weight")
    layer = linear(grad=grad)
    assert [*layer.state_dict()] == ["weight", "bias", "weight_fp_scale", "bias_fp_scale",
                                     "weight_grad_fp_scale"]
    assert layer.weight_grad_fp_scale is grad["weight"]["scale"]
    layer(torch.randn(2, 3)).sum().backward()
    assert layer.weight_grad_fp_scale is grad["weight"]["scale"] and grad["weight"]["scale"] > 0
    layer.nf_fix_params["weight"]["method"].fill_(2)
    layer.weight_fp_scale = torch.tensor([.0625])  # the buffer is what counts
    layer(torch.randn(2, 3))
    assert layer.nf_fix_params["weight"]["scale"] is layer.weight_fp_scale
    assert layer.weight.abs().max() == .0625


@pytest.mark.parametrize("more", [{}, {"range_method": 1}, {"float_scale": True},
                                  {"group": "batch"}, {"zero_point": True},
                                  {"zero_point": True, "group": "batch", "float_scale": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.int64])
def test_A22_state_round_trip(more, dtype):
    def conv():
        cfg = settings("weight", "bias")
        cfg["weight"].update(more, scale=torch.zeros(1, dtype=dtype))
        return nnf.Conv2d_fix(2, 3, 2, nf_fix_params=cfg)

    torch.manual_seed(0)
    first, second = conv(), conv()
    x = torch.randn(1, 2, 4, 4)
    with torch.no_grad():
        first._parameters["weight"] *= .1
    out = first(x)
    second.load_state_dict(first.state_dict())
    for module in (first, second):
        nfp.FixTopModule.set_fix_method(torch.nn.Sequential(module), nfp.FIX_FIXED)
        assert torch.equal(module(x), out)
    assert second.nf_fix_params["weight"]["scale"] is second.weight_fp_scale
    assert second.weight_fp_scale.dtype == torch.float32


def test_A22_legacy_state():
    layer, state = linear(method=2), linear().state_dict()
    state["weight_fp_scale"], state["bias_fp_scale"] = torch.tensor(.25), torch.tensor([2])
    layer.load_state_dict(state)
    assert layer.weight_fp_scale.tolist() == [.25] and layer.bias_fp_scale.tolist() == [2.]
    base = torch.nn.Linear(3, 2)
    with pytest.raises(RuntimeError, match="weight_fp_scale"):
        layer.load_state_dict(base.state_dict())
    layer.load_state_dict(base.state_dict(), strict=False)
    assert torch.equal(layer.weight, base.weight) and layer.weight_fp_scale.tolist() == [.25]


def batch_norm(bits=4, momentum=.1, method=1):
    return nnf.BatchNorm1d_fix(2, momentum=momentum, affine=False, nf_fix_params=settings(
        "running_mean", "running_var", bitwidth=bits, method=method))


def test_A23_statistics_are_accumulated_on_quantised_values():
    norm, x = batch_norm(), torch.randn(6, 2)
    stored = norm.running_mean.clone().fill_(.3), norm.running_var.clone().fill_(1.37)
    norm._buffers["running_mean"].copy_(stored[0])
    norm._buffers["running_var"].copy_(stored[1])
    norm(x)
    want = [.9 * quantised(old) + .1 * new
            for old, new in zip(stored, (x.mean(0), x.var(0)), strict=True)]
    assert torch.allclose(norm._buffers["running_mean"], want[0])
    assert torch.allclose(norm._buffers["running_var"], want[1])
    stuck = batch_norm(momentum=.01)
    for _ in range(200):
        stuck(torch.ones(4, 2) + torch.tensor([[1.], [-1.], [1.], [-1.]]))
    assert stuck._buffers["running_mean"][0] < .2  # where float accumulation is at 0.87
    assert batch_norm(method=0)(x) is not None


def test_A23_evaluation_changes_no_statistics():
    for norm in (batch_norm(), nfp.NAR.InstanceNorm1d(2, track_running_stats=True, nf_fix_params=(
            settings("running_mean", "running_var")))):
        norm(torch.randn(6, 2, 3) if "Instance" in type(norm).__name__ else torch.randn(6, 2))
        before = {key: norm._buffers[key].clone() for key in ("running_mean", "running_var")}
        norm.eval()
        x = torch.randn(6, 2, 3) if "Instance" in type(norm).__name__ else torch.randn(6, 2)
        out = norm(x)
        assert all(torch.equal(norm._buffers[key], value) for key, value in before.items())
        assert torch.equal(norm.running_mean, quantised(before["running_mean"]))
        assert torch.equal(norm(x), out)


def test_A24_activation():
    grad = settings("activation")
    act = nnf.Activation_fix(nf_fix_params=settings("activation"), nf_fix_params_grad=grad)
    x = torch.randn(4, 3, requires_grad=True)
    out = act(x)
    assert torch.equal(out, quantised(x)) and act.activation is out
    g = torch.randn(4, 3)
    out.backward(g)
    assert torch.equal(x.grad, quantised(g)) and grad["activation"]["scale"] > 0
    assert [*act.state_dict()] == ["activation_fp_scale", "activation_grad_fp_scale"]
    nothing = nnf.Activation_fix(nf_fix_params={})
    assert nothing(x) is x
    act.double()  # the buffer and the configuration stay one
    assert act.activation_fp_scale is act.nf_fix_params["activation"]["scale"]
    act.load_state_dict({"activation_fp_scale": torch.tensor([32.]),
                         "activation_grad_fp_scale": torch.tensor([2.])})
    act.nf_fix_params["activation"]["method"].fill_(2)
    assert act(torch.tensor([100.])) == 32


@pytest.mark.parametrize("affine", [True, False])
def test_A25_conv_bn(affine):
    torch.manual_seed(0)
    cfg = settings("weight", "bias", bitwidth=16)
    module = nnf.ConvBN_fix(3, 4, 3, padding=1, affine=affine, nf_fix_params=cfg)
    plain = torch.nn.Sequential(copy.deepcopy(module.conv), copy.deepcopy(module.bn))
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.randn(8, 3, 6, 6)
        assert torch.allclose(module(x), plain(x), atol=2e-3)  # float against quantised
    assert torch.allclose(module.bn.running_var, plain[1].running_var)
    assert int(module.bn.num_batches_tracked) == 3
    module.eval(), plain.eval()
    out = module(x)
    assert torch.allclose(out, plain(x), atol=2e-3)
    want = plain[0].weight * (plain[1].running_var + 1e-5).rsqrt()[:, None, None, None]
    assert torch.allclose(module.weight, want, atol=1e-3) and module.weight.data_cfg
    model = torch.nn.Sequential(module)
    state = nfp.FixTopModule.fix_state_dict(model)
    assert torch.equal(state["0.weight"], module.weight)
    assert torch.equal(torch.nn.functional.conv2d(x, state["0.weight"], module.bias, padding=1),
                       out)
    assert nfp.FixTopModule.get_fix_configs(model)["0"] is cfg
    low = module({"inputs": x, "weight_fix": {"bitwidth": 2}})
    assert not torch.equal(low, out)
    module.train()(x).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    nfp.FixTopModule.set_fix_method(model, nfp.FIX_NONE)
    assert torch.allclose(module(x), plain.train()(x), atol=1e-5)


def test_A25_conv_bn_without_configurations():
    module = nnf.ConvBN_fix(1, 2, nf_fix_params={})
    assert module(X).shape == (5, 2, 6, 6)
    assert {"weight", "bias", "conv.weight", "bn.bias"} <= module.state_dict().keys()
    with pytest.warns(UserWarning, match="not used"):
        nnf.ConvBN_fix(1, 2, nf_fix_params={}, nf_fix_params_grad=settings("weight"))


@pytest.mark.parametrize("kept", [
    lambda cfg: yaml.safe_load(yaml.safe_dump(cfg)), lambda cfg: json.loads(json.dumps(cfg))])
@pytest.mark.parametrize("grad", [False, True])
def test_A26_configurations_round_trip(kept, grad):
    torch.manual_seed(0)
    model, other = net(), net()
    model.block[0].nf_fix_params["weight"].update(group="batch", range_method=3)
    other.block[0].nf_fix_params["weight"].update(group="batch", range_method=3)
    run(model, X).sum().backward()
    plain = model.get_fix_configs(grad, data_only=True)
    loaded = kept(plain)
    assert loaded == plain
    if not grad:
        assert loaded["act"]["activation"] == {"method": 1, "scale": 4.0, "bitwidth": 4}
        assert len(loaded["block"]["0"]["weight"]["scale"]) == 2
        assert loaded["block"]["2"] == {} and loaded["block"]["0"]["weight"]["group"] == "batch"
    scales = [module.nf_fix_params for module in (other.act, other.fc)]
    other.load_fix_configs(loaded, grad=grad)
    assert [module.nf_fix_params for module in (other.act, other.fc)] == scales
    assert other.get_fix_configs(grad, data_only=True) == plain
    assert other.fc.weight_fp_scale is other.fc.nf_fix_params["weight"]["scale"]


def test_A26_auto_then_fixed_from_a_file():
    """What the dump used to lose: ranges below 1."""
    torch.manual_seed(0)
    model = net()
    with torch.no_grad():
        run(model, X * .01)
    file = yaml.safe_dump(model.get_fix_configs(data_only=True))
    fresh = copy.deepcopy(model)
    nfp.FixTopModule.set_fix_method(model, nfp.FIX_FIXED)
    want = run(model.eval(), X * .01)
    for module in (fresh.act, fresh.fc):
        for cfg in module.nf_fix_params.values():
            cfg["scale"].fill_(7)
    fresh.load_fix_configs(yaml.safe_load(file))
    fresh.set_fix_method(nfp.FIX_FIXED)
    assert torch.equal(run(fresh.eval(), X * .01), want)


def test_A26_load_says_what_is_missing():
    model = net()
    with pytest.warns(UserWarning, match="'fc' is not in the configurations"):
        model.load_fix_configs({"act": {}, "block": {}, "gone": {}} | {
            "block": {name: {} for name in "0123"}})
    with pytest.raises(ValueError, match="'act' has 3"):
        model.load_fix_configs({"act": 3})
    model.load_fix_configs({"act": {"extra": {"method": 1, "scale": .5, "bitwidth": 8}}, "block": {
        name: {} for name in "013"}, "fc": {}})
    assert model.act.nf_fix_params["extra"]["scale"].tolist() == [.5]


def test_A26_live_configurations_and_static_use():
    plain = torch.nn.Sequential(linear(), torch.nn.ReLU())
    found = nfp.FixTopModule.get_fix_configs(plain)
    assert found["0"] is plain[0].nf_fix_params and found["1"] == {}
    assert nfp.FixTopModule.get_fix_configs(plain, grad=True) == {"0": {}, "1": {}}


def test_A26_print(capsys):
    model = net()
    model.fc.nf_fix_params["weight"]["scale"].fill_(.25)
    model.fc.nf_fix_params_grad["weight"]["scale"].fill_(.5)
    model.print_fix_configs()
    lines = capsys.readouterr().out.splitlines()
    line = lines[lines.index("fc") + 1]
    assert "weight" in line and "d: bitwidth: 4; scale: 0.25; method: 1" in line
    assert "g: bitwidth: 4; scale: 0.5; method: 1" in line
    assert "block" in lines and "  0" in lines and any(line.endswith("g: f") for line in lines)
    nfp.FixTopModule.print_fix_configs(torch.nn.Sequential(linear()), prefix_spaces=4)
    assert capsys.readouterr().out.startswith("    0\n      weight")


def test_A26_fix_state_dict():
    torch.manual_seed(0)
    model = net()
    before = model.fix_state_dict(prefix="net.")
    assert all(torch.equal(value, model.state_dict()[key.removeprefix("net.")])
               for key, value in before.items())
    run(model, X)
    found, plain = model.fix_state_dict(), model.state_dict()
    assert found.keys() == plain.keys()
    assert torch.equal(found["fc.weight"], quantised(plain["fc.weight"]))
    assert torch.equal(found["block.1.running_mean"], plain["block.1.running_mean"])
    kept = model.fix_state_dict(keep_vars=True)["fc.weight"]
    assert kept is model.fc.weight and kept.nfp_actual_data is model.fc._parameters["weight"]
    model.fc.register_buffer("scratch", torch.ones(1), persistent=False)
    assert "fc.scratch" not in model.fix_state_dict()


def methods(model):
    return {path: {name: nfp.utils.get_int(cfg["method"]) for name, cfg in
                   module.nf_fix_params.items()}
            for path, module in model.named_modules() if hasattr(module, "nf_fix_params")}


def test_A27_set_fix_method():
    model = net()
    model.fc.nf_fix_params["bias"]["method"] = 1  # a plain int
    model.set_fix_method(nfp.FIX_FIXED, method_by_name={"fc": {"weight": 0}},
                         method_by_type={"BatchNorm2d_fix": {"running_mean": 0}})
    found = methods(model)
    assert found["fc"] == {"weight": 0, "bias": 1}
    assert found["block.1"] == {"weight": 1, "bias": 1, "running_mean": 0, "running_var": 1}
    assert found["block.0"] == {"weight": 2, "bias": 2} == found["block.3"]
    assert found["act"] == {"activation": 2}
    model.set_fix_method(method_by_type={nnf.Conv2d_fix: {"bias": 0}},
                         method_by_name={"block.3": {"weight": 0}, "block": {"1": {"weight": 0}},
                                         "gone": {"x": 1}})
    found = methods(model)
    assert found["block.0"] == {"weight": 2, "bias": 0}
    assert found["block.3"] == {"weight": 0, "bias": 2} and found["block.1"]["weight"] == 0
    model.set_fix_method(nfp.FIX_NONE, grad=True)
    assert methods(model) == found
    assert nfp.utils.get_int(model.fc.nf_fix_params_grad["weight"]["method"]) == 0
    model.set_fix_method(nfp.FIX_FIXED)
    assert methods(model)["fc"] == {"weight": 2, "bias": 2}
    with pytest.raises(AssertionError, match="no configuration of 'gamma'"):
        model.set_fix_method(method_by_name={"fc": {"gamma": 1}})
    rank0 = linear()
    rank0.nf_fix_params["weight"]["method"] = torch.tensor(1)
    nfp.FixTopModule.set_fix_method(torch.nn.Sequential(rank0), nfp.FIX_FIXED)
    assert rank0.nf_fix_params["weight"]["method"] == 2


def test_A28_shared_configurations():
    cfg = settings("weight", "bias")
    model = torch.nn.Sequential(*(nnf.Linear_fix(3, 3, nf_fix_params=cfg) for _ in range(2)))
    scale = cfg["weight"]["scale"]
    with torch.no_grad():
        model[1]._parameters["weight"] *= 100
    for moved in (model, model.double(), model.to(torch.float32), copy.deepcopy(model)):
        x = torch.randn(2, 3, dtype=moved[0]._parameters["weight"].dtype)
        moved(x)
        mine = moved[0].nf_fix_params["weight"]
        assert mine["scale"] is moved[0].weight_fp_scale is moved[1].weight_fp_scale
        assert mine["scale"] > 8  # the last that ran
    assert cfg["weight"]["scale"] is scale is model[0].weight_fp_scale
    cfg["weight"]["method"].fill_(2)
    cfg["weight"]["scale"].fill_(.5)
    model(torch.randn(2, 3))
    assert model[0].weight.abs().max() <= .5 and model[1].weight.abs().max() == .5
    cfg["weight"]["bitwidth"].fill_(2)
    model(torch.randn(2, 3))
    assert len(model[1].weight.unique()) <= 5


def test_A29_kwargs_scope():
    cfg, other = settings("weight", "bias"), settings("weight")
    with nfp.utils.fix_kwargs_scope(Linear_fix={"nf_fix_params": cfg, "bias": False},
                                    Activation_fix={"nf_fix_params": settings("activation")}):
        layer = nnf.Linear_fix(3, 2, bias=True)
        assert layer.nf_fix_params is cfg and layer.bias is not None
        assert nnf.Activation_fix().nf_fix_params["activation"]
        with nfp.utils.fix_kwargs_scope(Linear_fix={"nf_fix_params": other}):
            assert nnf.Linear_fix(3, 2).bias is not None  # the class's dict is replaced
            assert nnf.Activation_fix() is not None
        with nfp.utils.fix_kwargs_scope(True, Linear_fix={"nf_fix_params": other}), (
                pytest.raises(AssertionError)):
            nnf.Activation_fix()
        assert nnf.Linear_fix(3, 2, nf_fix_params=other).nf_fix_params is other
    with pytest.raises(RuntimeError), nfp.utils.fix_kwargs_scope(
            ConvBN_fix={"nf_fix_params": {}}):
        assert nnf.ConvBN_fix(1, 2) is not None
        raise RuntimeError
    with pytest.raises(AssertionError):
        nnf.ConvBN_fix(1, 2)


def test_A30_helpers():
    assert nfp.utils.get_int(torch.tensor([3])) == nfp.utils.get_int(torch.tensor(3)) == 3
    cfg = nfp.utils._generate_default_fix_cfg(["a"], scale=1, bitwidth=5, method=2)["a"]
    assert {key: (value.dtype, value.tolist()) for key, value in cfg.items()} == {
        "method": (torch.int32, [2]), "scale": (torch.float32, [1.]),
        "bitwidth": (torch.int32, [5])}
    nested = {"x": {"scale": .25, "bitwidth": 8, "group": "batch", "flag": False, "none": None}}
    made = nfp.utils.try_parse_variable(nested)
    assert made["x"]["bitwidth"].dtype == torch.int32 and made["x"]["group"] == "batch"
    assert nfp.utils.try_parse_int(made) == nested


@pytest.mark.parametrize(("bad", "says"), [
    ({"weight": {"bitwith": 8}}, "did you mean 'bitwidth'"), ({"weight": 3}, "'weight' has 3")])
def test_A33_bad_configurations(bad, says):
    with pytest.raises(ValueError, match=says):
        nnf.Linear_fix(3, 2, nf_fix_params=bad)
    for missing in ({}, {"nf_fix_params": 3}):
        with pytest.raises(AssertionError, match="needs a dict"):
            nnf.Linear_fix(3, 2, **missing)


def test_A33_warnings_and_numbers():
    with pytest.warns(UserWarning, match="'wieght' is configured and is no parameter"):
        layer = nnf.Linear_fix(3, 2, nf_fix_params=settings("wieght"))
    assert "wieght_fp_scale" in layer.state_dict() and layer(torch.ones(1, 3)).shape == (1, 2)
    with pytest.warns(UserWarning, match="running_mean"):
        nnf.BatchNorm1d_fix(2, nf_fix_params={}, nf_fix_params_grad=settings("running_mean"))
    plain = {"weight": {"method": 1, "scale": 0, "bitwidth": 8}}
    layer = nnf.Linear_fix(3, 2, nf_fix_params=plain)
    layer(torch.ones(1, 3))
    assert plain["weight"]["scale"] is layer.weight_fp_scale and layer.weight_fp_scale > 0
    rank0 = {"weight": {key: torch.tensor(value) for key, value in
                        {"method": 2, "scale": 1., "bitwidth": 8}.items()}}
    assert nnf.Linear_fix(3, 2, nf_fix_params=rank0)(torch.ones(1, 3)) is not None
    with pytest.raises(ValueError, match=r"weight: FIX_FIXED with scale \[0.0\]"):
        linear(method=2)(torch.ones(1, 3))


def test_A34_moves_keep_configurations_in_sync():
    torch.manual_seed(0)
    model = net()
    want = run(model, X)
    kept = {path: module.nf_fix_params for path, module in model.named_modules()
            if hasattr(module, "nf_fix_params")}
    scale = model.fc.weight_fp_scale
    for move in (torch.nn.Module.double, torch.nn.Module.half, torch.nn.Module.float,
                 lambda m: m.to("cpu"), lambda m: m.share_memory(), torch.nn.Module.cpu):
        move(model)
        assert model.fc.weight_fp_scale is scale and scale.dtype == torch.float32
        assert model.fc.weight is model.fc._parameters["weight"]  # no stale quantised tensor
        for module in model.modules():
            for name, cfg in getattr(module, "nf_fix_params", {}).items():
                assert cfg["scale"] is module._buffers[f"{name}_fp_scale"]
    assert run(model, X).dtype == want.dtype
    model.to("meta")
    assert model.fc.weight_fp_scale.is_meta and kept["fc"]["weight"][
        "scale"] is model.fc.weight_fp_scale
    model.to_empty(device="cpu")
    assert kept["fc"]["weight"]["scale"] is model.fc.weight_fp_scale
    model.load_state_dict(net().state_dict(), assign=True)
    assert kept["fc"]["weight"]["scale"] is model.fc.weight_fp_scale
    assert run(model, X).shape == want.shape


def test_A34_replicas_quantise_their_own_gradients():
    """As torch's DataParallel makes replicas: each quantises its part, torch adds them up."""
    cfg, grad = settings("weight", bitwidth=8), settings("weight", bitwidth=2)
    layer = nnf.Linear_fix(1, 2, bias=False, nf_fix_params=cfg, nf_fix_params_grad=grad)
    master = layer.weight
    upstream = torch.tensor([[.5, .26]]), torch.tensor([[.1, .06]])
    for x, g in zip((torch.ones(1, 1), torch.ones(1, 1)), upstream, strict=True):
        replica = layer._replicate_for_data_parallel()
        replica._parameters["bias"] = None
        replica._former_parameters = {"weight": master.view_as(master)}
        replica.__dict__["weight"] = replica._former_parameters["weight"]
        replica._buffers = {key: value.clone() for key, value in layer._buffers.items()}
        replica(x).backward(g)
        assert layer.nf_fix_params["weight"]["scale"] is layer.weight_fp_scale
    assert master.grad.flatten().tolist() == [.5 + .125, .25 + .0625]


def test_mixed_with_native_modules():
    torch.manual_seed(1)
    spec = {"x": "s8f4 ties_even sat", "w": "s8f6 ties_even sat", "b": "s8f6 ties_even sat",
            "error": "s8f8 ties_even sat", "grad_w": "s16f12 ties_even sat",
            "grad_b": "s16f12 ties_even sat", **{name: {"acc": "s24 sat"} for name in (
                "forward", "grad_input", "grad_weight", "grad_bias")}}
    model = torch.nn.Sequential(linear(3, 4), native.Linear(4, 4, spec=spec), activation(),
                                native.ReLU(), linear(4, 2))
    model(torch.randn(5, 3)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    kept = copy.deepcopy(model)
    x = torch.randn(2, 3)
    assert torch.equal(kept.eval()(x), model.eval()(x))
    # A whole mixed model on native hardware: parameters are quantised, then they are its operands.
    whole = torch.nn.Sequential(linear(3, 4, bitwidth=4), torch.nn.ReLU())
    native.fix(whole, {"by_name": {"0": spec}})
    out = whole(x)
    plain = native.Linear(3, 4, spec=spec)
    with torch.no_grad():
        plain.weight.copy_(quantised(whole[0]._parameters["weight"]))
        plain.bias.copy_(quantised(whole[0]._parameters["bias"]))
    assert torch.equal(out, plain(x).relu())
    out.sum().backward()
    assert whole[0]._parameters["weight"].grad is not None
