"""Where thresholds begin: initialisers, calibration on batches, and what is compared."""

import copy
import math

import numpy as np
import pytest
import torch

from emu import nn
from emu.nn.calibrate import initial, least_divergence, three_sigma

H = {"default": {"x": "u8 learned ties_even sat", "w": "s8 learned ties_even sat",
                 "b": "s16 learned ties_even sat", "error": "s16 auto:max ties_even sat",
                 "grad_w": "s16 auto:max ties_even sat", "grad_b": "s16 auto:max ties_even sat",
                 "forward": {"acc": "s24"}, "grad_input": {"acc": "s40"},
                 "grad_weight": {"acc": "s40"}, "grad_bias": {"acc": "s40"}}}
X = torch.linspace(0, 3, 48, dtype=torch.float64).reshape(8, 6)


def model(config=H) -> torch.nn.Module:
    torch.manual_seed(2)
    return nn.fix(torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(),
                                      torch.nn.Linear(5, 3)).double(), config)


def test_D03_thresholds_by_the_largest():
    assert initial("max", "weight", np.array([.3, -1.5]), 8) == np.float32(math.log2(1.5))
    assert initial("max", "acti", np.array([0., 4.]), 8) == 2.0
    assert initial("max", "bias", np.zeros(3), 16) is None


def test_D03_thresholds_by_three_sigma():
    x = np.array([.1, .2, -.3, .4])
    assert round(three_sigma(x), 5) == .98318  # section 3SIGMA of nics_fix_pt, on the same numbers
    assert three_sigma(np.array([-2.])) == 2


def test_D03_thresholds_without_statistics():
    assert [initial("ig", role, np.ones(1), width) for role, width in (
        ("weight", 8), ("bias", 16), ("acti", 8))] == [0, 8, 7]


def by_hand(x: np.ndarray, symmetric: bool, bins: int, groups: int) -> float:
    """The definition, bin by bin."""
    x = [v for v in x if v]
    top = max(abs(v) for v in x)
    counts = [0] * bins
    for value in x:
        counts[min(int(abs(value) / top * bins), bins - 1)] += 1
    best = None
    for i in range(groups, bins):
        p = [*counts[:i - 1], counts[i - 1] + sum(counts[i:])]
        width, q = i // groups, []
        for g in range(groups):
            last = i if g == groups - 1 else (g + 1) * width
            part = counts[g * width:last]
            q += [sum(part) / len(part)] * len(part)
        p, q = ([max(v / max(sum(d), 1e-12), 1e-12) for v in d] for d in (p, q))
        kl = sum(((a - b) if symmetric else a) * math.log(a / b) for a, b in zip(p, q, strict=True))
        if best is None or kl < best[0] - 1e-12:
            best = kl, i
    return (best[1] + 0.5) * top / bins


@pytest.mark.parametrize("symmetric", [False, True])
def test_D03_thresholds_by_entropy(symmetric):
    x = np.random.default_rng(5).normal(size=3000)
    x[:4] = 9, -12, 11, 0  # what a threshold is to cut off
    got = least_divergence(x, symmetric, bins=96, groups=8)
    assert got == pytest.approx(by_hand(x, symmetric, 96, 8))  # floats on the host
    assert got < 6
    assert least_divergence(np.zeros(4)) == 0
    assert least_divergence(-np.abs(x), symmetric) > 0  # all negative


def test_D04_observed_values_are_those_before_the_casts():
    net = model()
    seen = nn.observe(net, [X[:4], X[4:]])
    assert list(seen) == ["0.x", "0.w", "0.b", "2.x", "2.w", "2.b"]
    assert seen["0.x"].tolist() == X.flatten().tolist()
    assert seen["2.w"][:15].tolist() == net[2].weight.flatten().tolist()
    assert all(p.isnan() for p in nn.thresholds(net).values()) and net.training


def test_D03_calibration_sets_every_threshold():
    net = model()
    chosen = nn.calibrate(net, [X], weight="max", bias="max", acti="max")
    assert {n: p.item() for n, p in nn.thresholds(net).items()} == chosen
    assert chosen["0.x"] == pytest.approx(math.log2(3))
    assert chosen["2.w"] == pytest.approx(math.log2(net[2].weight.abs().max().item()))
    seen = nn.observe(net, [X])
    for name in ("0.x", "2.x"):
        assert nn.thresholds(net)[name].item() == initial("max", "acti", seen[name], 8)
    with pytest.raises(ValueError, match="did you mean 'entropy'"):
        nn.calibrate(net, [X], acti="entro")
    with pytest.raises(ValueError, match="no learned cast"):
        nn.calibrate(model({"default": {"x": "s8"}}), [])


def test_D06_a_shared_threshold_is_the_largest_of_its_tensors():
    net = model()
    apart = nn.calibrate(net, [X], acti="max")
    nn.share_thresholds(net, ["0.x", "2.x"])
    nn.calibrate(net, [X], acti="max")
    assert net[0].x_log2_t.item() == max(apart["0.x"], apart["2.x"]) == net[2].x_log2_t.item()


def test_D04_functions_have_thresholds_once_they_were_observed():
    class Residual(torch.nn.Module):
        def forward(self, x):
            return x + torch.relu(x)

    net = nn.fix(Residual(), {"by_type": {"add": {"x": "s8 learned ties_even sat"}}})
    assert nn.calibrate(net, [X], acti="max") == {"add.x": nn.log2_of(3.0)}
    assert copy.deepcopy(net).add_x_log2_t.item() == nn.log2_of(3.0)


# Float twins.

def test_D08_a_model_computes_in_float_and_on_the_hardware_again():
    net = model()
    nn.calibrate(net, [X])
    fixed = net(X)
    plain = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    plain.double().load_state_dict(net.state_dict(), strict=False)
    nn.use_float(net)
    assert torch.equal(net(X), plain(X)) and not nn.is_exact(net[0])
    net(X).sum().backward()
    plain(X).sum().backward()
    assert torch.equal(net[0].weight.grad, plain[0].weight.grad)
    nn.use_float(net, False)
    with nn.audit():
        assert torch.equal(net(X), fixed)


def test_D08_what_is_excluded_stays_on_the_hardware():
    net = model()
    nn.calibrate(net, [X])
    nn.use_float(net, exclude=["2*"])
    hidden = torch.relu(torch.nn.functional.linear(X, net[0].weight, net[0].bias)).detach()
    want = net[2](hidden)
    assert torch.equal(net(X), want)
    assert not torch.equal(want, torch.nn.functional.linear(hidden, net[2].weight, net[2].bias))
    with pytest.raises(ValueError, match="unknown module to exclude '3'"):
        nn.use_float(net, exclude=["3"])


def test_D10_similarities_of_tensors():
    a = torch.tensor([3., 4.])
    assert nn.Similarity.of(a, a) == (1.0, 0.0)
    assert nn.Similarity.of(a, torch.tensor([-4., 3.])).cosine == 0
    assert nn.Similarity.of(torch.zeros(2), torch.zeros(2)).cosine == 1
    assert nn.Similarity.of(a, torch.zeros(2)).kl > 1


def test_D10_a_narrower_model_is_less_similar():
    found = []
    for width in (8, 4):
        net = model({"default": H["default"] | {"w": f"s{width} learned ties_even sat"}})
        nn.calibrate(net, [X], weight="max", acti="max")
        twin = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(),
                                   torch.nn.Linear(5, 3)).double()
        twin.load_state_dict(net.state_dict(), strict=False)
        outputs = nn.compare_outputs(twin, net, X)
        assert list(outputs) == ["0", "1", "2"]
        parameters = nn.compare_parameters(net)
        assert list(parameters) == ["0.weight", "0.bias", "2.weight", "2.bias"]
        found.append((outputs["2"].cosine, parameters["0.weight"].cosine))
        w = net[0].layer.enter("w", net[0].weight, False)
        operand, weight = w.codes * w.form.step, net[0].weight.detach().numpy()
        assert parameters["0.weight"].cosine == pytest.approx(float(  # floats on the host
            (operand * weight).sum() / np.linalg.norm(operand) / np.linalg.norm(weight)))
    assert 1 > found[0][0] > found[1][0] > 0.9 and 1 > found[0][1] > found[1][1]
