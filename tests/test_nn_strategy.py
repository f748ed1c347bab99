"""Strategies: where hooks run and in which order, what they see, and what becomes of it."""

import copy
import io
import pickle

import pytest
import torch
from fixed_layers import GRAD, HARDWARE, UPDATE, B, W, X, codes, give, passed, tensor, train_step
from integer_network import flat

from emu import nn, reference
from emu.number import Cast

SEEN = []
HOOKS = [f"{when}_{what}{grad}" for what in ("weight", "activation") for grad in ("", "_grad")
         for when in ("pre", "post")]


class Watching(nn.Strategy):
    """Notes each call of a hook under its own name."""

    __registry_name__ = "watching"

    def __init__(self, site, spec, label):
        super().__init__(site, spec)
        self.label = label


for hook in HOOKS:
    def noting(self, tensor, scale, hook=hook):
        SEEN.append((self.label, hook, self.call.place.name.split(".")[0], scale, tensor.clone()))
        return tensor
    setattr(Watching, hook, noting)


class HalfStep(nn.Strategy):
    """Adds half a step and a bit before a weight's cast, and 100 after it."""

    def pre_weight(self, tensor, scale):
        return tensor.add_(self.call.form.step * 0.75)  # in place: what it is given is its own

    def post_weight(self, tensor, scale):
        return tensor + 100


class Wrong(nn.Strategy):
    def post_activation(self, tensor, scale):
        return tensor[0]


def linear(strategies, **changes):
    """A model of one linear layer `fc` with the weights of this file."""
    model = torch.nn.Sequential()
    model.add_module("fc", give(torch.nn.Linear(6, 4), W, B))
    return nn.fix(model, {"default": {**HARDWARE, **changes}}, nn.Backend(3), strategies)


def watched(strategies, **changes):
    SEEN.clear()
    model = linear(strategies, **changes)
    return model, passed(model, X, GRAD)


def test_hooks_run_in_their_order_around_each_cast():
    entries = [{"name": "watching", "label": label} for label in "ab"]
    watched({"by_name": {"fc": entries}})
    order = [(hook, name, label) for label, hook, name, *_ in SEEN]
    expected = []
    for what, name in (("activation", "x"), ("weight", "w"), ("weight", "b"), ("activation", "y"),
                       ("activation_grad", "error"), ("weight_grad", "grad_w"),
                       ("weight_grad", "grad_b")):
        expected += [(f"pre_{what}", name, "a"), (f"pre_{what}", name, "b"),
                     (f"post_{what}", name, "b"), (f"post_{what}", name, "a")]
    assert sorted(order) == sorted(expected)
    for name in ("x", "w", "b", "y", "error", "grad_w", "grad_b"):
        assert [each for each in order if each[1] == name] == [
            each for each in expected if each[1] == name]


def test_hooks_that_change_nothing_change_no_bit():
    plain = watched(None)[1]
    assert watched({"by_type": {"Linear": {"name": "watching", "label": "a"}}})[1] == plain


def test_a_hook_sees_the_tensor_and_the_exponent_of_its_range():
    model, _ = watched({"by_name": {"fc": {"name": "watching", "label": "a"}}},
                       w="s5 auto:max ties_even sat")
    (pre, post) = [(scale, seen) for _, hook, name, scale, seen in SEEN if name == "w"]
    frac = model.fc.layer.fracs["w"]
    to = Cast.parse(f"s5f{frac} ties_even sat")
    assert pre[0] == post[0] == 4 - frac
    assert codes(pre[1], 5) == W.codes
    assert flat(codes(post[1], frac)) == [reference.cast(c, W.frac, to) for c in flat(W.codes)]
    (_, post) = [(scale, seen) for _, hook, name, scale, seen in SEEN if name == "grad_w"]
    assert post[0] == 2  # of s8f5


def test_what_a_post_hook_gives_is_cast_again():
    strategies = {"by_name": {"fc": {"name": "half_step"}}}
    model = linear(strategies)
    before = model.fc.weight.detach().clone()
    out = model(tensor(X))
    spec = nn.layers(model)["fc"].spec  # 100 is beyond the range: everything saturates
    x = [[reference.cast(c, X.frac, spec.x) for c in row] for row in X.codes]
    b = [reference.cast(spec.b.format.hi, 4, Cast.parse("s16f6 to_zero sat"))] * 4
    y = reference.matmul(x, [[spec.w.format.hi] * 4] * 6, spec.forward, b)
    assert codes(out.detach(), 3) == [[reference.cast(c, 6, spec.y) for c in row] for row in y]
    assert torch.equal(model.fc.weight, before)


def test_what_a_pre_hook_gives_is_what_is_cast():
    class PreOnly(HalfStep):
        def post_weight(self, tensor, scale):
            return tensor

    model = linear({"by_name": {"f?": {"name": "pre_only"}}})
    with torch.no_grad():
        shifted = give(torch.nn.Linear(6, 4), W, B)
        shifted.weight += 0.75 / 8
        shifted.bias += 0.75 / 16
    plain = nn.fix(torch.nn.Sequential(shifted), {"default": HARDWARE})
    assert torch.equal(model(tensor(X)), plain(tensor(X)))


def test_hooks_run_in_training_only():
    model = linear({"by_type": {"Linear": [{"name": "half_step"}]}}).eval()
    assert torch.equal(model(tensor(X)), linear(None).eval()(tensor(X)))


NOISES = {"name": "noise_strategy",
          "weight": {"data_config": {"pre": {"type": "uniform_ratio", "min": -3, "max": 3}},
                     "gradient_config": {"post": {"type": "uniform", "min": -1.0, "max": 1.0}}},
          "activation": {"data_config": {"post": {"type": "uniform", "min": -1, "max": 1}},
                         "gradient_config": {"pre": {"type": "uniform_ratio"}}}}


def test_noise_follows_from_the_seed_the_step_and_the_call():
    first, again = watched({"by_name": {"fc": NOISES}})[1], watched({"by_name": {"fc": NOISES}})[1]
    assert first == again != watched(None)[1]
    other = nn.fix(torch.nn.Sequential(give(torch.nn.Linear(6, 4), W, B)), {"default": HARDWARE},
                   nn.Backend(4), {"by_type": {"Linear": NOISES}})
    assert passed(other, X, GRAD)["y"] != first["y"]
    model = linear({"by_name": {"fc": NOISES}})
    with torch.no_grad():
        assert not torch.equal(model(tensor(X)), model(tensor(X)))


def test_noise_continues_after_a_restart():
    whole, parts = (linear({"by_name": {"fc": NOISES}}, update=UPDATE) for _ in range(2))
    results = []
    for stop in (False, True):
        model = parts if stop else whole
        optimizer = nn.SGD(model, 2.0**-4)
        for _ in range(2):
            train_step(model, optimizer, tensor(X), tensor(GRAD))
        model(tensor(X))  # draws, and no step follows
        if stop:
            buffer = io.BytesIO()
            torch.save(model.state_dict(), buffer)
            model = linear({"by_name": {"fc": NOISES}}, update=UPDATE)
            model.load_state_dict(torch.load(io.BytesIO(buffer.getvalue())))
        results.append(model(tensor(X)))
    assert torch.equal(*results)


@pytest.mark.parametrize(("kind", "low", "high", "unit"), [
    ("uniform", 0.25, 0.5, 1), ("uniform_ratio", 1, 3, 2.0**-3), ("none", 1, 2, 1)])
def test_each_noise_is_within_its_limits(kind, low, high, unit):
    entry = {"name": "noise_strategy",
             "weight": {"data_config": {"pre": {"type": kind, "min": low, "max": high}}}}
    watched({"by_name": {"fc": [{"name": "watching", "label": "a"}, entry,
                                {"name": "watching", "label": "b"}]}})
    before, after = (seen for _, hook, name, _, seen in SEEN if (hook, name) == ("pre_weight", "w"))
    noise = (after - before) / unit
    if kind == "none":
        assert not noise.any()
    else:
        assert low <= noise.min() < noise.mean() < noise.max() <= high


def test_the_saver_brings_gradients_onto_the_grid_of_its_buffer():
    entry = {"name": "weightgradsaver_strategy", "scale": -1, "bit_width": 4}
    plain, saved = watched(None)[1], watched({"by_name": {"fc": entry}})[1]
    to = Cast.parse("s4f4 ties_even sat")
    for name in ("grad of fc.weight", "grad of fc.bias"):
        frac = 5 if name == "grad of fc.weight" else 3
        own = Cast.parse(HARDWARE["grad_w" if frac == 5 else "grad_b"])
        held = [reference.cast(code, frac, to) for code in flat(codes(torch.tensor(plain[name]),
                                                                      frac))]
        assert flat(codes(torch.tensor(saved[name]), frac)) == [
            reference.cast(code, 4, own) for code in held]
    assert plain["y"] == saved["y"]


def test_the_accumulation_strategy_is_the_native_buffer():
    spec = {"weight": "s8f5 ties_even sat", "buffer": "s20f9 sat", "grad": "s8f6 ties_even sat"}
    models = [linear({"by_name": {"fc": {"name": "accumulation_strategy", "update": spec}}},
                     update=UPDATE), linear(None, update=spec)]
    for model in models:
        optimizer = nn.SGD(model, 2.0**-2)
        for _ in range(3):
            train_step(model, optimizer, tensor(X), tensor(GRAD))
    assert str(models[0].fc.layer.spec.update) == str(models[1].fc.layer.spec.update)
    for one, two in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, two)


def test_a_model_with_strategies_is_copied_and_pickled():
    model = linear({"by_name": {"fc": NOISES}})
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(tensor(X)), linear({"by_name": {"fc": NOISES}})(tensor(X)))


def test_strategies_print_what_parses_back(tmp_path):
    strategies = nn.Strategies({"fc": NOISES}, {"Linear": [{"name": "half_step"}]})
    path = tmp_path / "strategies.yaml"
    path.write_text(str(strategies))
    for text in (str(strategies), path, str(path)):
        assert str(nn.Strategies.parse(text)) == str(strategies)
    assert str(nn.Strategies.parse(None)) == str(nn.Strategies.parse({})) == "{}\n"


@pytest.mark.parametrize(("strategies", "words"), [
    ({"by_name": {"fc": {"name": "noise"}}}, ["by_name.fc", "'noise'", "known: none_s"]),
    ({"by_name": {"fd": {"name": "half_step"}}}, ["strategies by_name.fd", "fc (Linear)"]),
    ({"by_type": {"Conv2d": {"name": "half_step"}}}, ["strategies by_type.Conv2d", "no module"]),
    ({"by_names": {}}, ["strategies key", "by_names", "by_name"]),
    ({"by_name": {"fc": {"scale": 3}}}, ["by_name.fc", "name of a strategy"]),
    ({"by_name": ["fc"]}, ["by_name", "mapping"]),
    (["fc"], ["strategies ['fc']", "by_type"]),
    ({"by_name": {"fc": {"name": "half_step", "size": 1}}}, ["layer 'fc'", "half_step", "size"]),
    ({"by_name": {"fc": {"name": "noise_strategy", "weight": {"data": {}}}}},
     ["noise weight key", "'data'", "data_config"]),
    ({"by_name": {"fc": {"name": "noise_strategy", "weight": {"data_config": {
        "pre": {"type": "gauss"}}}}}}, ["type", "'gauss'", "uniform_ratio"]),
    ({"by_name": {"fc": {"name": "noise_strategy", "weight": {"data_config": {
        "pre": {"type": "uniform", "min": 1, "max": 0}}}}}}, ["min 1", "max 0"]),
    ({"by_name": {"fc": {"name": "accumulation_strategy", "update": "{weight: s8}"}}},
     ["'buffer' is missing"]),
])
def test_a_wrong_strategy_is_refused_by_name(strategies, words):
    with pytest.raises(ValueError) as error:
        linear(strategies)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_hook_must_give_a_tensor_of_the_shape():
    with pytest.raises(ValueError, match=r"'fc': post_activation of Wrong gave \(6,\)"):
        linear({"by_name": {"fc": {"name": "wrong"}}})(tensor(X))
