"""Attention, recurrent networks and products of several tensors, made of functions of the table."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fixed_layers import tensor
from fraction_layers import Site, lists, seeded
from integer_network import some
from torch.utils.checkpoint import checkpoint

import emu
from emu import LayerSpec, nn, reference
from emu.table import SoftmaxSpec, Table, entries_cast

RULE = "s8 auto:max ties_even sat"
TENSORS = "x", "w", "b", "error", "grad_w", "grad_b"
PASSES = "forward", "grad_input", "grad_weight", "grad_bias"
# What a newcomer writes.
CONFIG = {"default": {**dict.fromkeys(TENSORS, RULE), **dict.fromkeys(PASSES, "{acc: s24 sat}")}}
FINE = {"default": {**dict.fromkeys(TENSORS, "s11 auto:max ties_even sat"),
                    **dict.fromkeys(PASSES, "{acc: s40 sat}")}}
COARSE = 0.05  # a tolerance, of a float model: 11 bits and tables of 11 bits


def give(model: torch.nn.Module) -> torch.nn.Module:
    """The model with parameters that every test draws again."""
    for i, parameter in enumerate(model.parameters()):
        with torch.no_grad():
            parameter.copy_(tensor(some(tuple(parameter.shape), 30, 5, i)))
    return model


def inputs(*shape: int, seed: int = 1) -> torch.Tensor:
    """Values that want a gradient."""
    return tensor(some(shape, 40, 5, seed)).requires_grad_()


def flat(value) -> list[torch.Tensor]:
    """The tensors of nested tuples."""
    if isinstance(value, tuple):
        return [x for part in value for x in flat(part)]
    return [] if value is None else [value]


def results(function, *args, model=None, config=CONFIG, scope=None) -> list[list]:
    """All outputs, and the gradients of the arguments and parameters, under the auditor."""
    tensors = [x for x in args if isinstance(x, torch.Tensor) and x.requires_grad]
    parameters = list(model.parameters()) if model else []
    for x in tensors + parameters:
        x.grad = None
    torch.manual_seed(0)  # of dropout
    with nn.audit():
        with scope or emu.fixed_scope(config):
            outs = flat(function(*args))
        torch.autograd.backward(outs, [tensor(some(tuple(y.shape), 50, 6, 9)).to(y.dtype)
                                       for y in outs])
    return [x.tolist() for x in outs] + [x.grad.tolist() for x in tensors + parameters]


def floats(function, *args, model=None) -> list[torch.Tensor]:
    """The same in torch."""
    tensors = [x for x in args if isinstance(x, torch.Tensor) and x.requires_grad]
    parameters = list(model.parameters()) if model else []
    for x in tensors + parameters:
        x.grad = None
    outs = flat(function(*args))
    torch.autograd.backward(outs, [tensor(some(tuple(y.shape), 50, 6, 9)).to(y.dtype)
                                   for y in outs])
    return [x.detach() for x in outs] + [x.grad for x in tensors + parameters]


def assert_near(function, *args, model=None) -> None:
    """What is computed in 11 bits is what torch computes, nearly: the one tolerance here."""
    if model:
        model.double()
    args = [x.detach().double().requires_grad_() if isinstance(x, torch.Tensor) and x.requires_grad
            else x for x in args]
    got = results(function, *args, model=model, config=FINE)
    for x, y in zip(got, floats(function, *args, model=model), strict=True):
        assert (torch.tensor(x) - y).abs().max() <= COARSE * max(1, y.abs().max())


def heads(model, x, y=None, z=None, **options):
    """nn.MultiheadAttention by hand, for (N, L, E): three layers, a softmax, a layer."""
    y, z = x if y is None else y, x if z is None else z
    weights = (model.in_proj_weight.chunk(3) if model.in_proj_weight is not None else
               (model.q_proj_weight, model.k_proj_weight, model.v_proj_weight))
    size = model.head_dim
    q, k, v = (F.linear(x, w, b).unflatten(-1, (model.num_heads, size)).transpose(1, 2)
               for x, w, b in zip((x, y, z), weights, model.in_proj_bias.chunk(3), strict=True))
    scores = torch.matmul(q * (1 / math.sqrt(size)), k.mT)
    absent = options.get("absent")
    if absent is not None:
        scores = scores.masked_fill(absent, -math.inf)
    mixed = torch.matmul(scores.softmax(-1), v).transpose(1, 2).flatten(-2)
    return F.linear(mixed, model.out_proj.weight, model.out_proj.bias)


def multihead(**options) -> torch.nn.MultiheadAttention:
    return give(torch.nn.MultiheadAttention(6, 2, batch_first=True, **options))


def test_self_attention_is_three_layers_a_softmax_and_a_layer():
    model, x = multihead(), inputs(2, 3, 6)
    want = results(lambda x: heads(model, x), x, model=model)
    assert results(lambda x: model(x, x, x, need_weights=False)[0], x, model=model) == want


def test_attention_across_with_sizes_of_its_own():
    model = multihead(kdim=4, vdim=5)
    args = inputs(2, 3, 6), inputs(2, 4, 4, seed=2), inputs(2, 4, 5, seed=3)
    want = results(lambda *args: heads(model, *args), *args, model=model)
    assert results(lambda *args: model(*args, need_weights=False)[0], *args, model=model) == want


def test_absent_keys_take_no_part():
    model, x = multihead(), inputs(2, 4, 6)
    padding = torch.tensor([[False, False, True, True], [False, False, False, True]])
    later = torch.ones(4, 4, dtype=torch.bool).triu(1)
    want = results(lambda x: heads(model, x, absent=padding[:, None, None] | later), x, model=model)
    assert results(lambda x: model(x, x, x, key_padding_mask=padding, attn_mask=later,
                                   need_weights=False)[0], x, model=model) == want


FORMS = {
    "weights": {}, "weights of each head": {"average_attn_weights": False},
    "added mask": {"attn_mask": torch.linspace(-1, 1, 16).reshape(4, 4)},
    "mask of each head": {"attn_mask": torch.arange(64).reshape(4, 4, 4) % 5 == 1},
    "added padding": {"key_padding_mask": torch.tensor([[0.0, 0, 0.5, -math.inf]] * 2)},
    "causal": {"attn_mask": torch.nn.Transformer.generate_square_subsequent_mask(4),
               "is_causal": True},
    "causal without weights": {
        "attn_mask": torch.nn.Transformer.generate_square_subsequent_mask(4), "is_causal": True,
        "need_weights": False},
}


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_every_form_of_attention_is_torchs(options):
    options = {name: value.double() if isinstance(value, torch.Tensor)
               and value.is_floating_point() else value for name, value in options.items()}
    model, x = multihead(), inputs(2, 4, 6)
    assert_near(lambda x: model(x, x, x, **options), x, model=model)


def test_one_sequence_needs_no_batch():
    model, x = multihead(bias=False), inputs(4, 6)
    assert_near(lambda x: model(x, x, x), x, model=model)


def test_the_sites_of_attention():
    model, scope = torch.nn.ModuleDict({"attention": multihead()}), emu.fixed_scope(CONFIG)
    model.forward = lambda x: model["attention"](x, x, x)[0]
    results(model, inputs(2, 3, 6), model=model, scope=scope)
    assert sorted(scope.layers) == [f"attention.{name}" for name in (
        "average", "k_proj", "out_proj", "q_proj", "scale", "scores", "softmax", "v_proj",
        "values")]
    assert all(layer.exact for layer in scope.layers.values())


def test_two_calls_of_one_attention_are_the_same_sites():
    model, scope = multihead(), emu.fixed_scope(CONFIG)
    with scope:
        model(*[inputs(2, 3, 6)] * 3)
        count = len(scope.layers)
        model(*[inputs(2, 3, 6)] * 3)
    assert len(scope.layers) == count


@pytest.mark.parametrize("options, message", [
    ({"add_bias_kv": True}, "no add_bias_kv here; append to key and value"),
    ({"add_zero_attn": True}, "no add_zero_attn here")])
def test_rows_that_attention_would_append_are_refused(options, message):
    model = multihead(**options)
    with emu.fixed_scope(CONFIG), pytest.raises(ValueError, match=message):
        model(*[inputs(2, 3, 6)] * 3)


ATTENTIONS = {"plain": {}, "scaled": {"scale": 0.3}, "causal": {"is_causal": True},
              "masked": {"attn_mask": torch.arange(12).reshape(3, 4) % 3 > 0},
              "added": {"attn_mask": torch.linspace(-1, 1, 12).double().reshape(3, 4)}}


@pytest.mark.parametrize("options", ATTENTIONS.values(), ids=ATTENTIONS)
def test_scaled_dot_product_attention_is_torchs(options):
    args = inputs(2, 2, 3, 4), inputs(2, 2, 4, 4, seed=2), inputs(2, 2, 4, 5, seed=3)
    assert_near(lambda *args: F.scaled_dot_product_attention(*args, **options), *args)


def test_a_learned_mask_gets_its_gradient():
    args = inputs(3, 4), inputs(5, 4, seed=2), inputs(5, 4, seed=3), inputs(3, 5, seed=4)
    assert_near(F.scaled_dot_product_attention, *args)


def test_grouped_heads_are_refused():
    with emu.fixed_scope(CONFIG), pytest.raises(ValueError, match="attention has no enable_gqa"):
        F.scaled_dot_product_attention(*[inputs(1, 2, 3, 4)] * 3, enable_gqa=True)


# One cast for each tensor, none of which is a rule; what is summed stays inside.
CASTS = {"x": "s6f3 ties_even sat", "w": "s7f5 ties_away sat", "b": "s8f6 to_zero sat",
         "error": "s7f5 ties_odd sat", "grad_w": "s8f4 ties_even sat", "grad_b": "s7f3 to_odd sat",
         **dict.fromkeys(PASSES, "{acc: s24 sat}")}
SITE = Site("", LayerSpec.parse(CASTS))


class Product:
    """x times w: `mul` is matmul of (M, K) and (K, N), or elementwise."""

    def forward(self, x, w, mul=np.matmul):
        (self.x, self.x_passes), (self.w, self.w_passes) = SITE.cast("x", x), SITE.cast("w", w)
        self.elementwise = mul is not np.matmul
        return mul(self.x, self.w)

    def backward(self, grad):
        """The gradients of x and w, each of which passes where its cast let it."""
        self.error, _ = SITE.cast("error", grad)
        x, w = ((self.error * self.w, self.error * self.x) if self.elementwise else
                (self.error @ self.w.T, self.x.T @ self.error))
        return x * self.x_passes, w * self.w_passes


class Sum:
    """x + y."""

    def forward(self, x, y):
        (x, self.x_passes), (y, self.y_passes) = SITE.cast("x", x), SITE.cast("x.1", y)
        return x + y

    def backward(self, grad):
        error, _ = SITE.cast("error", grad)
        return error * self.x_passes, error * self.y_passes


class Lookup:
    """A function by table, with derived entries."""

    def __init__(self, name):
        form = SITE.spec.x.format
        self.table = Table(form, entries_cast(name, form), name)
        self.slope = Table(form, SITE.spec.w, f"grad_{name}")

    def entries(self, x, table):
        codes = [reference.lookup(int(value * 2**table.x.frac), table) for value in x.reshape(-1)]
        return np.array(codes, object).reshape(x.shape) * Fraction(2)**-table.y.format.frac

    def forward(self, x):
        self.x, self.passes = SITE.cast("x", x)
        return self.entries(self.x, self.table)

    def backward(self, grad):
        error, _ = SITE.cast("error", grad)
        return error * self.entries(self.x, self.slope) * self.passes


class Layer(Product):
    """x (N, I) times w (O, I), and a bias."""

    def forward(self, x, w, b):
        b, self.b_passes = SITE.cast("b", b)
        return super().forward(x, w.T) + b

    def backward(self, grad):
        x, w = super().backward(grad)
        return (x, SITE.cast("grad_w", w.T)[0],
                SITE.cast("grad_b", self.error.sum(0) * self.b_passes)[0])


def test_a_head_of_attention_restated_on_integers():
    q, k, v = (seeded(shape, 30, 4, i) for i, shape in enumerate([(3, 2), (4, 2), (4, 3)]))
    grad = seeded((3, 3), 40, 5, 9)
    scale, scores, values = Product(), Product(), Product()
    scaled = scale.forward(q, np.array(Fraction(1 / math.sqrt(2))), np.multiply)
    x, x_passes = SITE.cast("x", scores.forward(scaled, k.T))
    hardware = SoftmaxSpec.derived(SITE.spec.x.format, SITE.spec.w)
    one = Fraction(1, 2**hardware.prob.format.frac)
    p = np.array([reference.softmax([int(value * 8) for value in row], hardware) for row in x],
                 object) * one
    out = values.forward(p, v)
    grad_p, grad_v = values.backward(grad)
    e, _ = SITE.cast("error", grad_p)
    grad_scores = p * (e - (p * e).sum(1, keepdims=True)) * x_passes
    grad_scaled, grad_k = scores.backward(grad_scores)
    want = lists(out, scale.backward(grad_scaled)[0], grad_k.T, grad_v)

    tensors = [torch.tensor(np.array(x, float), dtype=torch.float32).requires_grad_()
               for x in (q, k, v)]
    with nn.audit():
        with emu.fixed_scope({"default": CASTS}):
            y = F.scaled_dot_product_attention(*tensors)
        y.backward(torch.tensor(np.array(grad, float), dtype=torch.float32))
    assert [y.flatten().tolist(), *(x.grad.flatten().tolist() for x in tensors)] == want
    assert len(set(map(str, want))) == 4 and any(want[1]) and any(want[2])


def test_a_cell_of_an_lstm_restated_on_integers():
    sizes = {"x": (2, 3), "h": (2, 2), "c": (2, 2), "weight_ih": (8, 3), "weight_hh": (8, 2),
             "bias_ih": (8,), "bias_hh": (8,)}
    given = {name: seeded(shape, 40, 5, i) for i, (name, shape) in enumerate(sizes.items())}
    grad_h, grad_c = seeded((2, 2), 60, 5, 8), seeded((2, 2), 60, 5, 9)
    ih, hh, gates, keep, write, cell, hidden = (
        Layer(), Layer(), Sum(), Product(), Product(), Sum(), Product())
    tables = {name: Lookup("tanh" if name == "g" else "sigmoid") for name in "ifgo"}
    end = Lookup("tanh")
    total = gates.forward(ih.forward(given["x"], given["weight_ih"], given["bias_ih"]),
                          hh.forward(given["h"], given["weight_hh"], given["bias_hh"]))
    i, f, g, o = (table.forward(total[:, 2 * n:2 * n + 2])
                  for n, table in enumerate(tables.values()))
    c = cell.forward(keep.forward(f, given["c"], np.multiply), write.forward(i, g, np.multiply))
    h = hidden.forward(o, end.forward(c), np.multiply)
    grads = {}
    grads["o"], grad_end = hidden.backward(grad_h)
    kept, written = cell.backward(grad_c + end.backward(grad_end))
    grads["f"], grad_c0 = keep.backward(kept)
    grads["i"], grads["g"] = write.backward(written)
    back = gates.backward(np.concatenate([tables[name].backward(grads[name]) for name in "ifgo"],
                                         1))
    of_x, w_ih, b_ih = ih.backward(back[0])
    of_h, w_hh, b_hh = hh.backward(back[1])
    want = lists(h, c, of_x, of_h, grad_c0, w_ih, w_hh, b_ih, b_hh)

    model = torch.nn.LSTMCell(3, 2)
    tensors = {name: torch.tensor(np.array(x, float), dtype=torch.float32)
               for name, x in given.items()}
    model.load_state_dict({name: x for name, x in tensors.items() if "_" in name})
    x, h0, c0 = (tensors[name].requires_grad_() for name in "xhc")
    with nn.audit():
        with emu.fixed_scope({"default": CASTS}):
            outs = model(x, (h0, c0))
        torch.autograd.backward(outs, [torch.tensor(np.array(grad, float), dtype=torch.float32)
                                       for grad in (grad_h, grad_c)])
    got = [*outs, x.grad, h0.grad, c0.grad, *(p.grad for p in model.parameters())]
    assert [x.flatten().tolist() for x in got] == want
    assert all(any(part) for part in want)


RECURRENT = {
    "LSTM": lambda **options: torch.nn.LSTM(3, 4, **options),
    "GRU": lambda **options: torch.nn.GRU(3, 4, **options),
    "RNN": lambda **options: torch.nn.RNN(3, 4, **options),
    "RNN of ReLU": lambda **options: torch.nn.RNN(3, 4, nonlinearity="relu", **options),
}
OPTIONS = {"one": {}, "two, both ways": {"num_layers": 2, "bidirectional": True},
           "batch first, no bias": {"batch_first": True, "bias": False}}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("make", RECURRENT.values(), ids=RECURRENT)
def test_every_recurrent_network_is_torchs(make, options):
    model = give(make(**options))
    assert_near(model, inputs(3, 2, 3), model=model)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_a_recurrent_network_is_its_cell_step_by_step(name):
    model = give(RECURRENT[name]())
    cell = getattr(torch.nn, f"{name}Cell")(3, 4)
    cell.load_state_dict({key.removesuffix("_l0"): value
                          for key, value in model.state_dict().items()})
    state = inputs(2, 4, seed=5), inputs(2, 4, seed=6)

    def by_hand(x, *state):
        state, outs = state if name == "LSTM" else state[0], []
        for step in x.unbind(0):
            state = cell(step, state)
            outs.append(state[0] if name == "LSTM" else state)
        return torch.stack(outs)

    def whole(x, *state):
        state = tuple(part[None] for part in state)
        return model(x, state if name == "LSTM" else state[0])[0]

    static = {"default": CASTS}  # one product for all steps has one binary point
    state = state if name == "LSTM" else state[:1]
    args = inputs(3, 2, 3), *state
    assert results(whole, *args, config=static) == results(by_hand, *args, config=static)


def test_the_gradients_of_all_steps_are_added_before_they_are_cast():
    config = {"default": {**CASTS, "grad_w": "s20f2 to_neg sat", "grad_b": "s20f2 to_neg sat"}}
    fine = {"default": {**CASTS, "grad_w": "s24f14 to_neg sat", "grad_b": "s24f14 to_neg sat"}}
    model, x = give(torch.nn.RNN(3, 4)), inputs(4, 2, 3)
    *_, coarse = results(lambda x: model(x)[0], x, model=model, config=config)
    coarse = model.weight_hh_l0.grad.clone(), model.bias_hh_l0.grad.clone()
    results(lambda x: model(x)[0], x, model=model, config=fine)
    for got, exact in zip(coarse, (model.weight_hh_l0.grad, model.bias_hh_l0.grad), strict=True):
        assert torch.equal(got, torch.floor(exact * 4) / 4)
        assert not torch.equal(got, exact)


def test_the_sites_of_an_lstm():
    model, scope = give(torch.nn.LSTM(3, 4, bidirectional=True)), emu.fixed_scope(CONFIG)
    results(lambda x: model(x)[0], inputs(3, 2, 3), model=model, scope=scope)
    names = ("c", "f", "g", "gates", "h", "hh", "i", "ih", "keep", "o", "tanh", "write")
    assert {site for site, layer in scope.layers.items() if layer.uses} == {
        f"l0{way}.{name}" for name in names for way in ("", "_reverse")}
    assert all(layer.exact for layer in scope.layers.values())


@pytest.mark.parametrize("make", [torch.nn.LSTM, torch.nn.GRU])
def test_packed_sequences_are_refused(make):
    packed = torch.nn.utils.rnn.pack_padded_sequence(inputs(3, 2, 3), torch.tensor([3, 2]))
    with emu.fixed_scope(CONFIG), pytest.raises(ValueError, match="packed sequences are not on"):
        make(3, 4)(packed)


def test_projections_are_refused():
    with emu.fixed_scope(CONFIG), pytest.raises(ValueError, match="proj_size is not on"):
        torch.nn.LSTM(3, 4, proj_size=2)(inputs(3, 2, 3))


def test_bilinear_is_torchs():
    model = give(torch.nn.Bilinear(3, 4, 2))
    assert_near(model, inputs(2, 5, 3), inputs(2, 5, 4, seed=2), model=model)


def test_bilinear_is_a_layer_and_a_product():
    model, x, y = give(torch.nn.Bilinear(3, 4, 2)), inputs(5, 3), inputs(5, 4, seed=2)

    def by_hand(x, y):
        first = F.linear(x, model.weight.transpose(1, 2).reshape(8, 3)).reshape(5, 2, 4)
        return torch.matmul(first, y.reshape(5, 4, 1)).reshape(5, 2) + model.bias

    assert results(model, x, y, model=model) == results(by_hand, x, y, model=model)


@pytest.mark.parametrize("batched", [False, True])
def test_an_added_product_is_a_product_and_a_sum(batched):
    a, b = (inputs(2, 3, 4), inputs(2, 4, 2)) if batched else (inputs(3, 4), inputs(4, 2))
    c = inputs(2, seed=3) if not batched else inputs(2, 3, 2, seed=3)
    function = torch.baddbmm if batched else torch.addmm
    assert results(function, c, a, b) == results(lambda c, a, b: c + a @ b, c, a, b)
    with emu.fixed_scope(CONFIG), pytest.raises(ValueError, match="beta 2 and alpha 1; both are 1"):
        function(c, a, b, beta=2)


def test_a_newcomers_configuration_trains_each_network():
    x = inputs(2, 4, 8).detach()
    for model, call in (
            (torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), lambda m, x: m(x)),
            (torch.nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", norm_first=True),
             lambda m, x: m(x)),
            (torch.nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), lambda m, x: m(x, x)),
            (torch.nn.MultiheadAttention(8, 2), lambda m, x: m(x, x, x)[0]),
            (torch.nn.LSTM(8, 4, 2, dropout=0.5, bidirectional=True), lambda m, x: m(x)[0]),
            (torch.nn.GRU(8, 4, 2, dropout=0.5, batch_first=True), lambda m, x: m(x)[0])):
        scope = emu.fixed_scope(CONFIG)
        with nn.audit():
            with scope:
                y = call(model, x)
            y.backward(tensor(some(tuple(y.shape), 50, 6, 9)))
        assert all(parameter.grad is not None for parameter in model.parameters())
        assert all(layer.exact for layer in scope.layers.values())


@pytest.mark.parametrize("nested", [False, True])
def test_the_fused_transformer_does_not_slip_by(nested):
    layer = give(torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval()
    model = torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=nested)
    padding = torch.tensor([[False, False, True], [False, False, False]])
    scope = emu.fixed_scope(CONFIG)
    with torch.no_grad(), nn.audit(), scope:
        y = model.eval()(inputs(2, 3, 8), src_key_padding_mask=padding)
    assert {site.partition(".")[2].partition(".")[2] for site in scope.layers} >= {
        "self_attn.q_proj", "self_attn.softmax", "linear1", "relu", "linear2", "norm1", "norm2"}
    assert all(layer.exact for layer in scope.layers.values())
    assert torch.isfinite(y).all()


LARGE = {
    "transformer": (lambda: torch.nn.TransformerEncoderLayer(6, 2, 8, batch_first=True),
                    lambda model, x: model(x)),
    "attention": (lambda: torch.nn.MultiheadAttention(6, 2), lambda model, x: model(x, x, x)[0]),
    "lstm": (lambda: torch.nn.LSTM(6, 4, 2, dropout=0.5), lambda model, x: model(x)[0]),
    "gru": (lambda: torch.nn.GRU(6, 4, bidirectional=True), lambda model, x: model(x)[0]),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LARGE)
def test_a_scope_computes_what_fixed_modules_compute(name, training):
    make, call = LARGE[name]
    model, fixed = give(make()).train(training), nn.fix(give(make()), CONFIG).train(training)
    x = inputs(2, 3, 6).detach()
    assert results(lambda x: call(model, x), x, model=model) == results(
        lambda x: call(fixed, x), x, model=fixed, scope=torch.enable_grad())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", LARGE)
def test_a_checkpoint_repeats_every_choice(name, reentrant):
    make, call = LARGE[name]
    config = {"default": {**CONFIG["default"], "x": "s8 auto:max@previous stochastic8 sat"}}
    found = []
    for again in (False, True):
        model, x, scope = give(make()).double(), inputs(2, 3, 6).detach(), emu.fixed_scope(config)
        x = x.double().requires_grad_()
        block = lambda x, model=model: call(model, x) * 0.5  # noqa: E731
        function = block if not again else lambda x, block=block: checkpoint(
            block, x, use_reentrant=reentrant)
        found.append((results(function, x, model=model, scope=scope), {
            site: dict(layer.fracs) for site, layer in scope.layers.items()}))
    assert found[0] == found[1]
