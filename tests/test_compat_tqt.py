"""emu.compat.tqt: the names of PannenetsF/TQT by an import swap, mended where they were broken."""

import copy
import inspect
import math

import pytest
import torch

import emu.compat.tqt as tqt
import emu.compat.tqt.function as tqtf
from emu import nn
from emu.compat.tqt import analyse, config, fold, fused_config, threshold, utils, wrapper

torch.manual_seed(4)
X = torch.randn(4, 1, 8, 8)


def layers(f):
    """A network from `tqt.function` or `torch.nn`: nothing else differs."""
    return f.Sequential(f.Conv2d(1, 4, 3, padding=1), f.BatchNorm2d(4), f.ReLU(), f.MaxPool2d(2),
                        f.Conv2d(4, 3, 3), f.ReLU6(), f.Flatten(), f.Linear(12, 5))


def networks() -> tuple[torch.nn.Module, torch.nn.Module]:
    """A float network and its twin by the import swap, calibrated, still in float."""
    torch.manual_seed(7)
    net = layers(torch.nn)
    torch.nn.init.normal_(net[1].weight)
    torch.nn.init.normal_(net[1].bias)
    net(X)  # the batch norm has statistics
    net.eval()
    qnet = layers(tqtf)
    qnet.load_state_dict(net.state_dict(), strict=False)
    handles = threshold.add_hook(net)
    net(X)
    threshold.init_network(net, qnet, "net", acti_method="max")
    threshold.remove_hook(handles)
    return net, qnet


def slope(quantise, x: list, log2_t: float, bits: int) -> tuple:
    x = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([log2_t], dtype=torch.float64, requires_grad=True)
    y = quantise(x, t, bits)
    y.sum().backward()
    return y.tolist(), x.grad.tolist(), round(t.grad.item(), 6)


def test_D01_the_quantisers_have_the_golden_numbers():
    assert slope(tqtf.qsigned, [-1.3, -1, -.7, -.125, .125, .375, .6, .9, .95, 1.2], -.3, 3) == (
        [-1, -1, -.75, 0, 0, .5, .5, .75, .75, .75], [0, 1, 1, 1, 1, 1, 1, 0, 0, 0], 0.849105)
    assert slope(tqtf.qunsigned, [-.2, 0, .1, .3, .6, .9, 1.3], 0, 2) == (
        [0, 0, 0, .25, .5, .75, .75], [0, 1, 1, 1, 1, 0, 0], 0.866434)
    with pytest.raises(ValueError, match="one finite number"):
        tqtf.qsigned(X, torch.tensor([math.nan]), 8)


def test_D02_modules_have_widths_and_thresholds_that_train_or_stay():
    conv = tqtf.Conv2d(2, 3, 3, weight_bit_width=4, bias_bit_width=10, quant=True)
    assert {name: p.shape for name, p in conv.named_parameters() if "log2" in name} == {
        "weight_log2_t": (1,), "bias_log2_t": (1,)}
    y = conv(torch.randn(2, 2, 5, 5))
    y.square().sum().backward()
    assert conv.weight_log2_t.grad != 0
    codes = conv.quant_answer()
    assert codes["weight"]["codes"].abs().max() <= 8 and codes["bias"]["format"][:3] == "s10"
    conv.weight_bit_width = 3
    assert conv.quant_answer()["weight"]["codes"].abs().max() <= 4 and conv.quant
    still = tqtf.Linear(3, 2, retrain=False, bias=False)
    assert not still.weight_log2_t.requires_grad
    assert [key for key in still.state_dict() if "extra" not in key] == ["weight"]
    still.load_state_dict(torch.nn.Linear(3, 2, bias=False).state_dict())
    conv.static()
    assert not conv.bias_log2_t.requires_grad and "weight_log2_t" not in conv.state_dict()
    with pytest.raises(ValueError, match="has no acti_bit_width"):
        conv.set_widths(acti_bit_width=8)


@pytest.mark.parametrize("signed", [True, False])
def test_D02_activations_are_the_quantisers_after_the_function(signed):
    module = tqtf.ShareQuant(4, quant=True) if signed else tqtf.ReLU(acti_bit_width=4, quant=True)
    with torch.no_grad():
        module.acti_log2_t.fill_(0.3)
    x, again = X.clone().requires_grad_(), X.clone().requires_grad_()
    t = module.acti_log2_t.detach().clone().requires_grad_()
    y = module(x)
    want = (tqtf.qsigned(again, t, 4) if signed else tqtf.qunsigned(torch.relu(again), t, 4))
    assert torch.equal(y, want)
    for each in (y, want):
        each.backward(torch.full_like(each, 0.75))
    assert torch.equal(x.grad, again.grad)
    assert torch.equal(module.acti_log2_t.grad, t.grad) and t.grad != 0


def test_D02_a_quantised_layer_is_the_float_one_of_its_quantised_operands():
    _, qnet = networks()
    conv = qnet[0].eval()
    conv.quantilize()
    weight, bias = (tqtf.qsigned(p.detach(), t.detach(), bits) for p, t, bits in (
        (conv.weight, conv.weight_log2_t, 8), (conv.bias, conv.bias_log2_t, 16)))
    got = conv((X * 64).round() / 64)
    want = torch.nn.functional.conv2d(((X * 64).round() / 64).double(), weight.double(),
                                      bias.double(), padding=1)
    # The bias enters the accumulator exactly; the sum leaves by 25 bits of its largest value.
    assert (got.double() - want).abs().max() <= want.abs().max() * 2**-23


def test_D03_thresholds_by_each_method():
    net, qnet = networks()
    assert qnet[0].weight_log2_t.item() == pytest.approx(
        math.log2(net[0].weight.abs().max().item()))
    for name in ("weight_max", "weight_3sd", "bias_max", "bias_3sd", "bias_ig", "weight_ig"):
        assert threshold.__dict__[f"threshold_{name}"](qnet[4]).shape == (1,)
    assert qnet[4].weight_log2_t.item() == 0 and qnet[4].bias_log2_t.item() == 8
    assert threshold.threshold_activation_ig(torch.ones(2), 8).item() == 7
    assert threshold.threshold_weight_max(torch.tensor([-4.0])).item() == 2
    for method in ("entro", "entropy_j", "3sd"):
        net[2].hook_out = net[5].hook_out = torch.relu(torch.randn(5000))
        threshold.init_network(net, qnet, acti_method=method)
        assert -1 < qnet[2].acti_log2_t.item() < 3
    with pytest.raises(ValueError, match="unknown method 'entr'"):
        threshold.init_network(net, qnet, acti_method="entr")
    threshold.remove_hookout(net)
    with pytest.raises(ValueError, match="kept no output"):
        threshold.init_network(net, qnet)


def test_D04_hooks_keep_outputs_until_they_are_removed():
    net = layers(torch.nn)
    handles = threshold.add_hook(net, end_list=[torch.nn.ReLU])
    net(X)
    assert net[2].hook_out.shape == (4, 4, 8, 8) and not hasattr(net[0], "hook_out")
    threshold.remove_hook(handles)
    threshold.remove_hookout(net)
    net(X)
    assert not hasattr(net[2], "hook_out") and not handles


@pytest.mark.parametrize("quant", [False, True])
def test_D05_folding_keeps_what_is_computed(quant):
    _, qnet = networks()
    before = qnet.eval()(X)
    fold.fold_the_network(qnet)
    assert [type(m).__name__ for m in qnet][:3] == ["Conv2dBNReLU", "Identity", "Identity"]
    assert fold.isfoldmodule(qnet[0])
    torch.testing.assert_close(qnet(X), before)  # float against float
    utils.make_bn_freeze(qnet)
    utils.make_net_quant_or_not(qnet, quant=quant)
    weight, bias = qnet[0].folded()
    if quant:
        threshold.threshold_weight_max(weight)
        with torch.no_grad():
            qnet[0].conv.weight_log2_t.copy_(threshold.threshold_weight_max(weight))
            qnet[0].conv.bias_log2_t.copy_(threshold.threshold_bias_max(bias))
    got = qnet(X)
    assert (got - before).norm() < 0.1 * before.norm()
    if quant:
        want = torch.nn.Conv2d(1, 4, 3, padding=1)
        codes = [tqtf.qsigned(v.detach(), t.detach(), bits) for v, t, bits in (
            (weight, qnet[0].conv.weight_log2_t, 8), (bias, qnet[0].conv.bias_log2_t, 16))]
        want = torch.nn.functional.conv2d(X.double(), *map(torch.Tensor.double, codes), padding=1)
        found = tqtf.qunsigned(torch.relu(want), qnet[0].relu.acti_log2_t.detach(), 8)
        assert (qnet[0](X) != found.float()).sum() <= 1  # a tie of what left in 25 bits
        qnet.train()(X).sum().backward()
        assert qnet[0].conv.weight_log2_t.grad is not None and qnet[0].bn.weight.grad is not None


def test_D05_an_unfrozen_norm_stays_in_float_behind_its_layer():
    net, qnet = networks()
    utils.make_bn_fold_with_previous(qnet)
    utils.make_net_quant_or_not(qnet)
    before = qnet[0].bn.running_mean.clone()
    qnet.train()(X).sum().backward()
    assert not torch.equal(qnet[0].bn.running_mean, before)
    assert qnet[0].conv.weight_log2_t.grad is not None
    adder = tqtf.Sequential(tqtf.Adder2d(1, 2, 1, quant=True), tqtf.BatchNorm2d(2))
    fold.fold_the_network(adder, "add")
    assert type(adder[0]) is fold.SA2dBN and type(adder[1]) is torch.nn.Identity
    assert adder(X).shape == (4, 2, 8, 8)
    with pytest.raises(ValueError, match="unknown kind 'ad'"):
        fold.fold_the_network(net, "ad")


def test_D06_the_operands_of_a_shortcut_share_a_threshold():
    class Block(tqtf.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = tqtf.ShareQuant(quant=True), tqtf.ShareQuant(quant=True)

        def share_path(self):
            self.a.share(self.b)

        def forward(self, x):
            return self.a(x) + self.b(4 * x)

    block = Block()
    block(X)
    largest = block.b.acti_log2_t.item()
    assert block.a.acti_log2_t.item() < largest
    utils.make_the_shortcut_share(block)
    assert block.a.acti_log2_t is block.b.acti_log2_t and block.a.acti_log2_t.item() == largest
    block(X).sum().backward()
    assert len(list(block.parameters())) == 1 and block.a.acti_log2_t.grad is not None


def test_D07_widths_by_kind_and_layer_by_layer():
    _, qnet = networks()
    for function in (config.config_network, config.network_config):
        function(qnet, "net", config.Config(conv_and_linear_weight=5, bn_bias=9, acti=6))
        assert [qnet[0].weight_bit_width, qnet[7].bias_bit_width, qnet[1].bias_bit_width,
                qnet[2].acti_bit_width, qnet[5].acti_bit_width] == [5, 8, 9, 6, 6]
    assert config.Config() == (8, 8, 8, 8, 8)
    for _ in range(2):
        fused_config.layers_config(qnet, fused_config.list_to_fconfig(
            [(4, 12, 7), (3, 11, 5), (2, 10, 8)]))
    assert [m.weight_bit_width for m in (qnet[0], qnet[1], qnet[4], qnet[7])] == [4, 4, 3, 2]
    assert [qnet[2].acti_bit_width, qnet[5].acti_bit_width] == [7, 5]
    with pytest.raises(ValueError, match="1 configurations for 3 layers"):
        fused_config.layers_config(qnet, [fused_config.Fconfig()])


def test_D08_networks_switch_and_modules_may_be_excluded():
    net, qnet = networks()
    assert torch.equal(qnet.eval()(X), net(X))
    utils.make_net_quant_or_not(qnet, "net", exclude=["7", tqtf.ReLU6, qnet[1]])
    assert [m.quant for m in qnet if hasattr(m, "quant")] == [True, False, True, True, False, False]
    quantised = qnet(X)
    assert not torch.equal(quantised, net(X))
    assert (quantised - net(X)).norm() < 0.05 * net(X).norm()
    utils.make_net_quant_or_not(qnet, quant=False)
    assert torch.equal(qnet(X), net(X))
    assert torch.equal(copy.deepcopy(qnet)(X), net(X))


def test_D08_one_network_is_built_by_either_table():
    def build(f):
        return torch.nn.Sequential(
            f["Conv2d"](1, 2, 3, weight_bit_width=8, retrain=True, quant=False),
            f["BatchNorm2d"](2, weight_bit_width=8), f["ReLU"](acti_bit_width=8),
            f["MaxPool2d"](2), f["Adder2d"](2, 2, 1, acti_bit_width=8), f["ReLU6"](quant=False),
            torch.nn.Flatten(), f["Linear"](18, 3, bias_bit_width=16)).eval()

    net, qnet = build(wrapper.OFUNCTION), build(wrapper.QFUNCTION)
    assert set(net.state_dict()) < set(qnet.state_dict())
    qnet.load_state_dict(net.state_dict(), strict=False)
    assert torch.equal(net(X), qnet(X))


def test_D09_every_parameter_is_an_integer_of_the_threshold_grid():
    _, qnet = networks()
    for index in (0, 1, 4, 7):
        module = qnet[index]
        for name, bits in (("weight", module.weight_bit_width), ("bias", module.bias_bit_width)):
            kept = module.quant_answer()[name]
            frac = int(kept["format"].split("f")[1])
            log2_t = module._parameters[f"{name}_log2_t"]
            assert frac == bits - 1 - math.ceil(log2_t.item())
            assert torch.equal(kept["codes"] / 2.0**frac, tqtf.qsigned(
                getattr(module, name).detach(), log2_t.detach(), bits))


def test_D09_the_result_of_the_sums_has_a_width():
    conv = tqtf.Conv2d(1, 2, 3, inter_bit_width=6, quant=True)
    y = conv(X)
    grid = 2.0 ** math.ceil(math.log2(y.abs().max().item())) / 32
    assert torch.equal(y, (y / grid).round() * grid) and len(y.unique()) <= 64


def test_D10_similarities_are_returned():
    net, qnet = networks()
    cosines = analyse.cosine_similarity(net, qnet, [8, 16, 8])
    assert {"0.weight", "0.bias", "2.acti", "7.weight"} <= set(cosines)
    assert all(0.99 < value <= 1 + 1e-9 for value in cosines.values())
    utils.make_net_quant_or_not(qnet)
    divergences = analyse.kl_similarity(net, qnet.eval(), X)
    assert set(divergences) == set("01234567") and all(v >= 0 for v in divergences.values())


@pytest.mark.parametrize("kind", [tqtf.Adder2d, tqtf.SEConv2d])
def test_D11_layers_without_multipliers_train_as_in_float(kind):
    found = []
    for quant in (True, False):
        torch.manual_seed(0)
        net = torch.nn.Sequential(kind(1, 3, 3, quant=quant), tqtf.Flatten(),
                                  tqtf.Linear(108, 2, quant=quant))
        optimizer, losses = torch.optim.Adam(net.parameters(), 0.01), []
        for _ in range(4):
            loss = torch.nn.functional.cross_entropy(net(X), torch.tensor([0, 1, 0, 1]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        found.append(losses)
        assert (net[0].weight_log2_t.grad is not None) == quant
    assert found[0] != found[1]
    assert found[0] == pytest.approx(found[1], rel=0.1)  # 8 bits against float


def test_every_name_of_the_package_is_there():
    assert set(tqt.__all__) == {"analyse", "config", "fold", "function", "fused_config",
                                "threshold", "utils", "wrapper"}
    assert set(inspect.signature(threshold.init_network).parameters) == {
        "net", "qnet", "name", "weight_method", "bias_method", "acti_method", "bin_number",
        "cali_number", "show"}
    assert list(inspect.signature(threshold.entropy_calibration).parameters)[:4] == [
        "model", "qmodel", "bin_number", "cali_number"]
    assert nn.thresholds(tqtf.ReLU(quant=True))  # they are the native ones
