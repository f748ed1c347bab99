"""nics_fix_pt on the integer engine: one key, against Python ints and native layers."""

import copy
import math
import pickle

import pytest
import torch

import emu
import emu.compat.nics_fix_pt as nfp
import emu.compat.nics_fix_pt.nn_fix as nnf
from emu import nn, reference
from emu.compat.nics_fix_pt import hardware
from emu.number import Cast, Format

default = nfp.utils._generate_default_fix_cfg
MACS = ["{acc: s10 sat}", "{acc: s10}", "{acc: s16 sat, lanes: 2}",
        "{a: s4, b: s4, product: s7f-1 ties_even sat, acc: s9f-1 sat}"]


def configs(*names, bits=4, method=1, mac=None, **more):
    found = default(names, method=method, bitwidth=bits)
    for cfg in found.values():
        cfg.update(more)
    if mac is not None:
        found[names[0]]["mac"] = mac
    return found


def codes(tensor, bound, bits):
    """Codes of grid values in [-bound, bound)."""
    scaled = tensor.detach().double() * 2.0**(bits - 1) / bound
    assert torch.equal(scaled, scaled.round()) and scaled.max() < 2**(bits - 1)
    return scaled.long().tolist()


def rounded(x, bound, bits):
    """Codes of any floats in two's complement; no torch."""
    top = 2**(bits - 1)
    return max(-top, min(top - 1, round(x * top / bound)))


@pytest.mark.parametrize("mac", MACS)
def test_a_linear_layer_on_python_ints(mac):
    """Forward and all gradients of one layer between two activations, with tiny accumulators."""
    torch.manual_seed(3)
    cfg, grad = configs("weight", "bias", mac=mac), configs("weight", "bias")
    front = nnf.Activation_fix(nf_fix_params=configs("activation", mac=mac))
    layer = nnf.Linear_fix(6, 3, nf_fix_params=cfg, nf_fix_params_grad=grad)
    x = torch.randn(5, 6, requires_grad=True)
    with nn.audit():
        out = layer(front(x))
    g = torch.randn(5, 3)
    with nn.audit():
        out.backward(g)
    master = layer._parameters

    scales = {name: float(value) for name, value in [*layer.named_buffers()]}
    rx = float(front.activation_fp_scale)
    rw, rb = scales["weight_fp_scale"], scales["bias_fp_scale"]
    xc, wc, bc = ([[rounded(v, r, 4) for v in row] for row in tensor.tolist()] for tensor, r in (
        (x, rx), (master["weight"], rw), (master["bias"][None], rb)))
    assert codes(layer.weight, rw, 4) == wc and codes(front.activation, rx, 4) == xc
    spec = emu.MacSpec.parse(layer.binding(type(layer)).layer.spec.forward)
    frac = {"x": 3 - math.log2(rx), "w": 3 - math.log2(rw), "b": 3 - math.log2(rb)}
    acc_frac = int(frac["x"] + frac["w"] + spec.acc.format.frac)
    own = Cast.parse(f"s{spec.acc.format.width}f{acc_frac} ties_even sat")
    bias = [reference.cast(b, int(frac["b"]), own) for b in bc[0]]
    want = [[reference.dot(row, wrow, spec, b) for wrow, b in zip(wc, bias, strict=True)]
            for row in xc]
    assert out.tolist() == [[v * 2.0**-acc_frac for v in row] for row in want]

    largest = max(abs(v) for row in g.tolist() for v in row)
    re = 2.0**math.ceil(math.log2(largest))
    ec = [[rounded(v, re, 4) for v in row] for row in g.tolist()]
    ef = 3 - math.log2(re)
    passes = layer.binding(type(layer)).layer.spec
    into = [[reference.dot([e[o] for o in range(3)], [wc[o][i] for o in range(3)],
                           passes.grad_input) for i in range(6)] for e in ec]
    step = 2.0**-(ef + frac["w"] + spec.acc.format.frac)
    assert x.grad.tolist() == [[v * step for v in row] for row in into]

    step = 2.0**-(ef + frac["x"] + spec.acc.format.frac)
    weight = [[step * reference.dot([row[i] for row in xc], [row[o] for row in ec],
                                    passes.grad_weight) for i in range(6)] for o in range(3)]
    rg = scales["weight_grad_fp_scale"]
    biggest = max(abs(v) for row in weight for v in row)
    assert rg == 2.0**math.ceil(math.log2(biggest))
    inside = [[round(v * 8 / rw) < 8 for v in row] for row in master["weight"].tolist()]
    assert codes(master["weight"].grad, rg, 4) == [
        [rounded(v, rg, 4) * fits for v, fits in zip(row, fit, strict=True)]
        for row, fit in zip(weight, inside, strict=True)]


def test_it_is_the_native_layer():
    """A convolution and its gradients, as `emu.nn.Conv2d` with the same formats gives them."""
    torch.manual_seed(0)
    mac = {"forward": "{acc: s24 sat, lanes: 4}", "grad_input": "{acc: s22 sat}",
           "grad_weight": "{acc: s24}", "grad_bias": "{acc: s20}", "x": "s6f3 ties_pos sat",
           "y": "s10f4 to_zero sat", "error": "s7f6 ties_even sat"}
    layer = nnf.Conv2d_fix(2, 3, 3, padding=1, stride=2, nf_fix_params=configs(
        "weight", "bias", bits=6, mac=mac))
    x = torch.randn(2, 2, 5, 5, requires_grad=True)
    out = layer(x)
    fracs = {name: 5 - int(math.log2(layer._buffers[f"{name}_fp_scale"]))
             for name in ("weight", "bias")}
    plain = nn.Conv2d(2, 3, 3, padding=1, stride=2, spec={
        **mac, "w": f"s6f{fracs['weight']} ties_even sat", "b": f"s6f{fracs['bias']} ties_even sat",
        "grad_w": "s24 auto:max ties_even sat", "grad_b": "s24 auto:max ties_even sat"})
    plain.load_state_dict({name: p.detach() for name, p in layer.named_parameters()})
    z = x.detach().clone().requires_grad_()
    other = plain(z)
    assert torch.equal(out, other)
    g = torch.randn(out.shape) / 16
    out.backward(g), other.backward(g)
    assert torch.equal(x.grad, z.grad)
    for name in ("weight", "bias"):
        assert torch.equal(layer._parameters[name].grad, plain._parameters[name].grad)


def test_A03_closed_codes_are_clipped_and_counted():
    cfg = configs("weight", "bias", mac="{acc: s20 sat}")
    layer = nnf.Linear_fix(3, 2, nf_fix_params=cfg)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1., -1., .99], [.5, .97, .93]]))
        layer.bias.copy_(torch.tensor([.5, -.5]))
    model = nfp.FixTopModule()
    model.fc = layer
    layer(torch.tensor([[2., 1.9, 1.87]]))  # 1.875 is half a step below 2
    assert layer.weight.tolist() == [[.875, -1, .875], [.5, .875, .875]]
    assert model.clipped_counts() == {"fc.weight": 3, "fc.bias": 1, "fc.x": 2}
    float_layer = nnf.Linear_fix(3, 2, nf_fix_params=configs(
        "weight", "bias", range="twos_complement"))
    float_layer.load_state_dict(layer.state_dict())
    float_layer(torch.ones(1, 3))
    assert torch.equal(float_layer.weight, layer.weight)
    assert dict(float_layer.nf_clipped) == {"weight": 3, "bias": 1}
    closed = nnf.Linear_fix(3, 2, nf_fix_params=configs("weight", "bias"))
    closed.load_state_dict(layer.state_dict())
    closed(torch.ones(1, 3))
    assert closed.weight[0, 0] == 1 and not closed.nf_clipped


@pytest.mark.parametrize("mac", [
    "{acc: s20 sat}", {"acc": "s20 sat"}, emu.MacSpec.parse("{a: s4, b: s4, acc: s20 sat}"),
    "{forward: {acc: s20 sat}}", {"forward": {"acc": "s20 sat"}, "x": "s4 fixed ties_even sat"},
    emu.LayerSpec.parse({"forward": "{a: s4, b: s4, acc: s20 sat}"})])
def test_every_form_of_the_key(mac):
    torch.manual_seed(0)
    layer = nnf.Linear_fix(3, 2, nf_fix_params=configs("weight", "bias", mac=mac))
    x = nnf.Activation_fix(nf_fix_params=configs("activation"))(torch.randn(4, 3) * .9)
    out = layer(x)
    want = torch.nn.functional.linear(x.clamp(max=float(x.data_cfg["scale"]) * .875).double(),
                                      layer.weight.double(), layer.bias.double())
    assert torch.equal(out.double(), want)  # so wide an accumulator loses nothing


@pytest.mark.parametrize(("mac", "x", "error"), [
    ("{acc: s20 sat}", 4, 7), ("{a: s6, acc: s20 sat}", 6, 6),
    ({"forward": "{acc: s20}", "error": "s9 auto:max"}, 4, 9)])
def test_widths_that_the_key_leaves_open(mac, x, error):
    layer = nnf.Linear_fix(3, 2, nf_fix_params=configs("weight", "bias", mac=mac),
                           nf_fix_params_grad=configs("weight", bits=7))
    layer(torch.randn(2, 3))
    spec = layer.binding(type(layer)).layer.spec
    assert (spec.x.width, spec.w.width, spec.error.width, spec.grad_b.width) == (x, 4, error, 24)
    act = nnf.Activation_fix(nf_fix_params=configs("activation", bits=5))
    if x == 4:
        layer(act(torch.randn(2, 3)))
        assert layer.binding(type(layer)).layer.spec.x.width == 5


def test_training_evaluation_and_float_follow_the_methods():
    torch.manual_seed(0)
    model = nfp.FixTopModule()
    model.act = nnf.Activation_fix(nf_fix_params=configs("activation", bits=8))
    model.fc = nnf.Linear_fix(4, 3, nf_fix_params=configs("weight", "bias", bits=8,
                                                          mac="{acc: s24 sat}"))
    x = torch.randn(6, 4)
    auto = model.fc(model.act(x))
    kept = model.fc.weight_fp_scale.clone()
    model.set_fix_method(nfp.FIX_FIXED)
    model.eval()
    assert torch.equal(model.fc(model.act(x)), auto)
    low = model.fc(model.act(x / 100))  # the binary point of x is that of its activation
    assert torch.equal(model.fc.weight_fp_scale, kept)
    layer = model.fc.binding(type(model.fc)).layer
    assert layer.fracs["x"] == 7 - math.log2(model.act.activation_fp_scale)
    # act(x / 100) has few codes, which a float layer of the same weights sees too
    want = torch.nn.functional.linear(model.act.activation.double(), model.fc.weight.double(),
                                      model.fc.bias.double())
    assert torch.equal(low.double(), want)
    model.set_fix_method(nfp.FIX_NONE)
    want = torch.nn.functional.linear(x, model.fc._parameters["weight"],
                                      model.fc._parameters["bias"])
    assert torch.equal(model.fc(model.act(x)), want)
    model.set_fix_method(nfp.FIX_AUTO)
    assert torch.equal(model.fc(model.act(x)), auto)
    wide = model.fc({"inputs": model.act(x), "weight_fix": {"bitwidth": 4}})
    assert layer.spec.w.width == 4 and not torch.equal(wide, auto)


def test_copies_compute_the_same():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        nnf.Activation_fix(nf_fix_params=configs("activation", mac="{acc: s18 sat}")),
        nnf.Linear_fix(4, 3, nf_fix_params=configs("weight", "bias", mac="{acc: s18 sat}")))
    x = torch.randn(5, 4)
    out = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), out)
    model.double()
    assert torch.equal(model(x.double()), out.double())
    assert nfp.FixTopModule.get_fix_configs(model, data_only=True)["1"]["weight"][
        "mac"] == "{acc: s18 sat}"


def test_folded_batch_norm_and_transposed_convolution():
    torch.manual_seed(0)
    x = torch.randn(3, 2, 5, 5, requires_grad=True)
    module = nnf.ConvBN_fix(2, 4, 3, nf_fix_params=configs("weight", "bias", bits=8,
                                                           mac="{acc: s24 sat}"))
    out = module(x)
    grid = nfp.quantize_cfg(x.detach(), torch.zeros(1), 8, 1, range="twos_complement")[0].double()
    want = torch.nn.functional.conv2d(grid, module.weight.double(), module.bias.double())
    assert torch.equal(out.double(), want)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())
    spread = nfp.NAR.ConvTranspose2d(2, 3, 2, nf_fix_params=configs(
        "weight", "bias", bits=8, mac="{acc: s24 sat}"))
    assert torch.equal(spread(x).double(), torch.nn.functional.conv_transpose2d(
        grid, spread.weight.double(), spread.bias.double()))


def test_batch_norm_in_integers():
    torch.manual_seed(0)
    mac = {"x": "s8f4 ties_even sat", "y": "s8f4 ties_even sat", "error": "s8f4 ties_even sat"}
    norm = nnf.BatchNorm1d_fix(3, nf_fix_params=configs("weight", "bias", bits=8, mac=mac))
    plain = nn.BatchNorm1d(3, spec={**mac, "w": "s8f7 ties_even sat", "b": "s8f23 ties_even sat"})
    x = torch.randn(8, 3)
    with nn.audit():
        out = norm(x)
        assert torch.equal(out, plain(x))
    assert torch.equal(norm.running_mean, plain.running_mean)


def test_uses_in_float_beside_the_hardware():
    """A residual, a weight decay in the loss, and gradients accumulated: torch's sums."""
    torch.manual_seed(0)
    layer = nnf.Linear_fix(4, 4, nf_fix_params=configs("weight", mac="{acc: s24 sat}", bits=8))
    x = torch.randn(3, 4, requires_grad=True)
    seen = []
    for _ in range(2):
        h = x * 1.0
        out = layer(h) + h
        (out.sum() + sum(.1 * p.square().sum() for p in layer._parameters.values())).backward()
        seen.append(x.grad.clone())
    assert torch.equal(seen[1], 2 * seen[0])


def test_A12_stochastic_casts_draw_by_site():
    def model():
        torch.manual_seed(0)
        mac = {"forward": "{acc: s20 sat}", "y": "s4f1 stochastic16 sat"}
        return torch.nn.Sequential(*(nnf.Linear_fix(4, 4, nf_fix_params=configs(
            "weight", "bias", mac=mac)) for _ in range(2)))

    x = torch.randn(8, 4)
    outs = []
    for seed in (0, 0, 1):
        made = model()
        hardware.use_backend(made, nn.Backend(seed))
        outs.append(made(x))
        assert made[1].binding(type(made[1])).layer.site == "1"
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])
    layer = model()[0]
    cfg = configs("weight", "bias", mac="{acc: s20 sat}", stochastic=True, seed=5)
    layer = nnf.Linear_fix(4, 4, nf_fix_params=cfg)
    layer(x)
    first = layer.weight.clone()
    rand = reference.random_operands(16, 16, reference.load_words(5, 0, "nics_fix_pt", "", 0))
    frac = 3 - int(math.log2(layer.weight_fp_scale))
    to = Cast(Format(4, frac), emu.Rounding.STOCHASTIC, emu.Overflow.SAT, 16)
    want = [reference.quantize(float(v), to, r) for v, r in
            zip(layer._parameters["weight"].flatten().tolist(), rand, strict=True)]
    assert codes(first, float(layer.weight_fp_scale), 4) == [want[i:i + 4] for i in range(0, 16, 4)]


@pytest.mark.parametrize(("cfg", "says"), [
    (configs("weight", mac="{acc: s20 sat}", float_scale=True), "weight: float_scale True beside"),
    (configs("weight", mac="{acc: s20 sat}", group="batch"), "group 'batch' beside a mac"),
    (configs("weight", mac="{b: s8, acc: s20 sat}"), r"forward\.b s8f0: the layer's w is s4f0"),
    (configs("weight", mac={"w": "s8f4", "forward": "{acc: s20}"}), "has w, which is the config"),
    (configs("weight", mac={"forward": "{acc: s20}", "z": 1}), "unknown mac key 'z'"),
    (configs("weight", mac=3), "mac 3: needs a MacSpec"),
])
def test_A33_what_a_mac_cannot_be(cfg, says):
    with pytest.raises(ValueError, match=says):
        nnf.Linear_fix(3, 2, nf_fix_params=cfg)(torch.randn(1, 3))


def test_A33_ranges_and_modules_that_no_mac_has():
    cfg = configs("weight", mac="{acc: s20 sat}", method=2)
    cfg["weight"]["scale"].fill_(.7)
    with pytest.raises(ValueError, match=r"w has scale 0\.6.*power of two"):
        nnf.Linear_fix(3, 2, nf_fix_params=cfg)(torch.randn(1, 3))
    cfg = configs("weight_ih_l0", mac="{acc: s20 sat}")
    cfg["weight"] = cfg["weight_ih_l0"]
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="LSTM"):
        nfp.NAR.LSTM(2, 3, nf_fix_params=cfg)(torch.randn(1, 1, 2))
    wide = nnf.Linear_fix(3, 2, nf_fix_params=configs("weight", "bias", mac="{acc: s32 sat}"))
    with pytest.raises(ValueError, match=r"31 magnitude bits.*model\.double"):
        wide(torch.randn(1, 3))
    assert wide.double()(torch.randn(1, 3).double()).shape == (1, 2)
