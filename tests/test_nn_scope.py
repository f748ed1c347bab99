"""`fixed_scope`: unmodified models on the hardware, and what is computed again in backward."""

import threading
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from fixed_layers import HARDWARE, tensor
from integer_network import some
from torch.utils.checkpoint import checkpoint

import emu
from emu import nn

CONFIG = {"default": HARDWARE}
# Everything that a second run of a forward could move: rules, the last binary point, operands.
MOVING = {"default": {
    **HARDWARE, "x": "s6 auto:max stochastic8 sat", "w": "s5 auto:max ties_even sat",
    "y": "s8 auto:max@previous stochastic8 sat", "error": "s6 auto:max stochastic8 sat",
    "grad_w": "s8 auto:max ties_even sat", "grad_b": "s8 auto:max ties_even sat"}}


def give(model: torch.nn.Module) -> torch.nn.Module:
    """The model with parameters that every test draws again."""
    for i, parameter in enumerate(model.parameters()):
        with torch.no_grad():
            parameter.copy_(tensor(some(tuple(parameter.shape), 70, 5, i)))
    return model


def mlp() -> torch.nn.Sequential:
    """A float model."""
    return give(torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.ReLU(), torch.nn.Sequential(
        torch.nn.Linear(6, 6)), torch.nn.Linear(6, 4)))


def inputs(seed: int = 1) -> torch.Tensor:
    """Five rows that want a gradient."""
    return tensor(some((5, 6), 220, 5, seed)).requires_grad_()


def results(model, x: torch.Tensor, context, steps: int = 1) -> list:
    """Outputs and all gradients, with the forward in the context and the backward outside."""
    found = []
    with nn.audit():
        for step in range(steps):
            x.grad = None
            with context:
                y = model(x)
            y.backward(tensor(some(tuple(y.shape), 90, 5, 7 + step)))
            found += [y.tolist(), x.grad.tolist()]
    return found + [parameter.grad.tolist() for parameter in model.parameters()]


def states(scope) -> tuple:
    """What rules and counters hold."""
    return ({site: dict(layer.fracs) for site, layer in scope.layers.items()},
            dict(+scope.hardware.backend.calls))


def test_an_unmodified_model_computes_as_its_fixed_twin():
    scope = emu.fixed_scope(MOVING)
    assert results(mlp(), inputs(), scope, 2) == results(
        nn.fix(mlp(), MOVING), inputs(), torch.enable_grad(), 2)


def test_the_model_stays_as_it_is():
    model = mlp()
    before, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    want = model(inputs()).tolist()
    results(model, inputs(), emu.fixed_scope(CONFIG))
    assert [type(module) for module in model.modules()] == classes
    assert (list(model.state_dict()), model(inputs()).tolist()) == (before, want)


def test_no_hooks_are_left():
    hooks = torch.nn.modules.module._global_forward_hooks
    before = len(hooks)
    with emu.fixed_scope(CONFIG) as scope, scope:
        assert len(hooks) == before + 1
    assert len(hooks) == before


def test_sites_are_paths_in_the_outermost_module():
    scope, model = emu.fixed_scope(CONFIG), mlp()
    with scope:
        model(inputs())
    assert sorted(scope.layers) == ["0", "1", "2.0", "3"]


def test_settings_find_sites_by_name_and_type():
    config = {**CONFIG, "by_name": {"2.0": {"x": "s3f1 ties_even sat"}},
              "by_type": {"matmul": {"x": "s4f1 ties_even sat"}}}
    scope, model = emu.fixed_scope(config), mlp()
    with scope:
        torch.matmul(model(inputs()), torch.ones(4, 2))
    assert {site: str(layer.spec.x) for site, layer in scope.layers.items() if layer.spec.x} == {
        "0": HARDWARE["x"], "2.0": "s3f1 ties_even sat", "3": HARDWARE["x"],
        "matmul": "s4f1 ties_even sat"}


def test_functions_outside_modules_have_their_own_names():
    with emu.fixed_scope(CONFIG) as scope:
        y = torch.matmul(inputs(), torch.ones(6, 2))
        F.relu(y @ torch.ones(2, 2))
    assert list(scope.layers) == ["matmul", "matmul_1", "relu"]


def test_functions_within_modules_are_named_after_both():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(6, 6)

        def forward(self, x):
            return F.relu(F.relu(self.fc(x)))

    model = torch.nn.Sequential(Block())
    with emu.fixed_scope(CONFIG) as scope:
        model(inputs())
    assert sorted(scope.layers) == ["0.fc", "0.relu", "0.relu_1"]


def test_a_second_root_has_a_prefix():
    models = [torch.nn.Linear(6, 6), mlp()[:2], mlp()]
    with emu.fixed_scope(CONFIG) as scope:
        x = inputs()
        for model in models:
            x = model(x)
        models[2][0](inputs())
    assert sorted(scope.layers) == ["", "root_1.0", "root_1.1", "root_2.0", "root_2.1",
                                    "root_2.2.0", "root_2.3"]


def test_a_module_that_came_later_has_its_path():
    model = mlp()
    with emu.fixed_scope(CONFIG) as scope:
        model(inputs())
        model.append(torch.nn.Sequential(torch.nn.Linear(4, 2)))
        model(inputs())
    assert "4.0" in scope.layers


def test_a_module_in_no_list_is_named_after_its_class():
    hidden = [give(torch.nn.Linear(6, 4))]

    class Hiding(torch.nn.Module):
        def forward(self, x):
            return hidden[0](torch.nn.ReLU()(x))

    model = torch.nn.Sequential(Hiding())
    with emu.fixed_scope(CONFIG) as scope:
        model(inputs())
        model(inputs())
    assert sorted(scope.layers) == ["0.linear", "0.relu"]


def test_the_phase_is_that_of_the_module_that_runs():
    class Phases(nn.Config):
        def resolve(self, site):
            cast = "s6f3 sat" if site.training else "s4f1 sat"
            return nn.Config.parse({"default": {**HARDWARE, "x": cast}}).resolve(site)

    model = mlp()
    model[2].eval()
    with emu.fixed_scope(Phases()) as scope:
        got = model(inputs())
    fixed = nn.fix(mlp(), {**CONFIG, "by_name": {"*": {"x": "s6f3 sat"}, "2.0": {"x": "s4f1 sat"}}})
    assert scope.layers["2.0"].evaluation != scope.layers["2.0"].spec
    assert torch.equal(got, fixed(inputs()))


def test_evaluation_moves_nothing():
    model, scope = mlp(), emu.fixed_scope(MOVING)
    results(model, inputs(), scope)
    before = states(scope)
    with scope:
        model.eval()(inputs(9))
    assert states(scope) == before


def test_a_scope_keeps_the_state_of_its_rules():
    whole, parts = emu.fixed_scope(MOVING), emu.fixed_scope(MOVING)
    model = mlp()
    with whole:
        want = [model(inputs(seed)).tolist() for seed in (1, 2)]
    got = []
    for seed in (1, 2):
        with parts:
            got.append(model(inputs(seed)).tolist())
    assert got == want
    assert states(parts) == states(whole)


class Hidden(torch.nn.Module):
    """A model with a module that is in no list, and functions."""

    def __init__(self):
        super().__init__()
        self.fc, self.hidden = torch.nn.Linear(6, 6), [torch.nn.Linear(6, 6)]

    def forward(self, x):
        return F.relu(self.fc(self.hidden[0](x))) + x


@pytest.mark.parametrize("made", [mlp, Hidden])
def test_a_fresh_scope_continues_from_a_state(made, tmp_path):
    torch.manual_seed(0)
    model, scope = made(), emu.fixed_scope(MOVING)

    def run(x):
        y = model(x)
        return torch.matmul(y, y.transpose(0, 1)).tolist()

    with scope:
        run(inputs(1))
    scope.hardware.backend.step = 3
    torch.save(scope.state_dict(), tmp_path / "scope.pt")
    after = states(scope)
    with scope:
        want, end = run(inputs(2)), states(scope)
    for other in (emu.fixed_scope(MOVING), scope):  # one that has not run, one that has
        other.load_state_dict(torch.load(tmp_path / "scope.pt"))
        kept = other.state_dict()
        assert kept == torch.load(tmp_path / "scope.pt")
        with other:
            assert run(inputs(2)) == want
        assert states(other) == end != after


@pytest.mark.parametrize("spoil, message", [
    (lambda state: {"fc.weight": torch.ones(1)}, "fc.weight: is no state of a scope's hardware"),
    (lambda state: {**state, "_extra_state": {**state["_extra_state"], "schema": 9}},
     "schema 9, this emu reads 1"),
    (lambda state: {"fc._extra_state": {**state["fc._extra_state"], "hardware": {
        "layers": {"": 3}}}}, "the state is damaged"),
], ids=["parameters", "schema", "damage"])
def test_a_scope_refuses_what_is_no_state_of_its(spoil, message):
    scope, model = emu.fixed_scope(MOVING), Hidden()
    with scope:
        model(inputs(1))
    before = scope.state_dict()
    with pytest.raises(ValueError, match=message):
        scope.load_state_dict(spoil(before))
    assert scope.state_dict() == before


def test_a_scope_refuses_other_formats():
    scope, model = emu.fixed_scope(MOVING), Hidden()
    with scope:
        model(inputs(1))
    other = emu.fixed_scope({"default": {**HARDWARE, "x": "s7f3 sat"}})
    with pytest.raises(ValueError, match="x is s6 in the state and s7f3 in this model"):
        other.load_state_dict(scope.state_dict())


def test_strategies_act_in_a_scope():
    noise = {"by_type": {"Linear": {"name": "noise_strategy", "weight": {"data_config": {
        "pre": {"type": "uniform", "min": -1, "max": 1}}}}}}
    scope = emu.fixed_scope(CONFIG, strategies=noise)
    got = results(mlp(), inputs(), scope)
    fixed = nn.fix(mlp(), CONFIG, strategies=noise)
    assert got == results(fixed, inputs(), nullcontext())
    assert got != results(mlp(), inputs(), emu.fixed_scope(CONFIG))


def test_a_module_called_twice_is_one_layer():
    layer = give(torch.nn.Linear(6, 6))

    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one = self.other = layer

        def forward(self, x):
            return self.other(F.relu(self.one(x)))

    model, scope = Twice(), emu.fixed_scope(CONFIG)
    got = results(model, inputs(), scope)
    assert sorted(scope.layers) == ["one", "relu"]
    fixed = nn.fix(torch.nn.Sequential(layer, torch.nn.ReLU()), CONFIG)
    layer.zero_grad()
    assert got == results(torch.nn.Sequential(fixed, fixed[0]), inputs(), torch.enable_grad())


def test_tied_weights_get_the_exact_sum_of_their_gradients():
    one, other = torch.nn.Linear(6, 6, bias=False), torch.nn.Linear(6, 6, bias=False)
    give(one), give(other)
    apart = torch.nn.Sequential(one, other)
    with torch.no_grad():
        other.weight.copy_(one.weight)
    *before, first, second = results(apart, inputs(), emu.fixed_scope(CONFIG))
    other.weight, one.weight.grad = one.weight, None
    got = results(apart, inputs(), emu.fixed_scope(CONFIG))
    assert got == [*before, (torch.tensor(first) + torch.tensor(second)).tolist()]


def test_an_error_in_forward_ends_its_frames():
    class Failing(torch.nn.Module):
        def forward(self, x):
            raise KeyError

    failing = torch.nn.Sequential(torch.nn.Sequential(Failing()))
    model, scope = mlp(), emu.fixed_scope(CONFIG)
    with scope:
        model(inputs())
        with pytest.raises(KeyError):
            failing(inputs())
        torch.matmul(inputs(), torch.ones(6, 2))
        model(inputs())
    assert sorted(scope.layers) == ["0", "1", "2.0", "3", "matmul"]


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_an_error_ends_the_scope(error):
    class Failing(torch.nn.Module):
        def forward(self, x):
            raise error

    scope = emu.fixed_scope(CONFIG)
    with pytest.raises(error), scope:
        torch.nn.Sequential(Failing())(inputs())
    assert (torch.full((2, 2), 0.3) @ torch.ones(2, 2)).tolist() == (
        torch.full((2, 2), 0.3).double() @ torch.ones(2, 2).double()).float().tolist()
    assert list(scope.layers) == []


def test_the_inner_of_two_scopes_computes():
    outer, inner = emu.fixed_scope(CONFIG), emu.fixed_scope(MOVING)
    model = mlp()
    with outer:
        model[0](inputs())
        with inner:
            model(inputs())
        model[0](inputs())
    assert (sorted(outer.layers), sorted(inner.layers)) == ([""], ["0", "1", "2.0", "3"])
    assert str(inner.layers["0"].spec.x) == MOVING["default"]["x"]


def test_a_fixed_module_keeps_its_own_hardware():
    fixed = nn.fix(mlp(), {"default": {**HARDWARE, "x": "s4f1 ties_even sat"}})
    want = results(fixed, inputs(), torch.enable_grad())
    fixed.zero_grad()
    scope = emu.fixed_scope(CONFIG)
    assert results(fixed, inputs(), scope) == want
    assert scope.layers == {}


def test_a_fixed_module_within_a_float_one_keeps_its_own_hardware():
    model = mlp()
    model[2] = nn.fix(model[2], {"default": {**HARDWARE, "x": "s4f1 ties_even sat"}})
    scope = emu.fixed_scope(CONFIG)
    got = results(model, inputs(), scope)
    assert sorted(scope.layers) == ["0", "1", "3"]
    assert got == results(nn.fix(mlp(), {**CONFIG, "by_name": {
        "2.0": {"x": "s4f1 ties_even sat"}}}), inputs(), torch.enable_grad())


def test_threads_open_one_scope_at_once():
    scope, model, start = emu.fixed_scope(CONFIG), mlp(), threading.Barrier(4)
    want = {seed: results(mlp(), inputs(seed), emu.fixed_scope(CONFIG))[:2] for seed in range(4)}
    got = {}

    def work(seed):
        start.wait()
        for _ in range(3):
            with nn.audit(), scope:
                x = inputs(seed)
                y = model(x)
                grad, = torch.autograd.grad(y, x, tensor(some((5, 4), 90, 5, 7)))
        got[seed] = [y.tolist(), grad.tolist()]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == want
    assert len(scope.layers) == 4


def test_a_scope_is_open_in_its_own_thread_only():
    got, model, x = [], mlp(), inputs()
    with emu.fixed_scope(CONFIG) as scope:
        thread = threading.Thread(target=lambda: got.append(model(x)))
        thread.start()
        thread.join()
    assert torch.equal(got[0], model(x))
    assert scope.layers == {}


def test_backward_and_loss_may_run_inside():
    target = torch.tensor([0, 1, 2, 3, 0])
    grads = []
    for inside in (False, True):
        model, scope = mlp(), emu.fixed_scope(MOVING)
        with nn.audit(), scope:
            y = model(inputs())
            if inside:
                nn.cross_entropy(y, target).backward()
        if not inside:
            nn.cross_entropy(y, target).backward()
        grads.append([parameter.grad.tolist() for parameter in model.parameters()])
        assert sorted(scope.layers) == ["0", "1", "2.0", "3"]
    assert grads[0] == grads[1]


def test_the_host_is_no_hardware():
    with emu.fixed_scope(CONFIG) as scope, nn.host():
        x = torch.full((2, 2), 0.3)
        assert (x @ x).tolist() == [[pytest.approx(0.18)] * 2] * 2
        torch.nn.ReLU()(x)
    assert scope.layers == {}


def test_tensors_are_asked_and_watched_as_ever():
    seen, model = [], mlp()
    with nn.audit(), emu.fixed_scope(CONFIG) as scope:
        y = model(inputs())
        assert "tensor(" in repr(y)
        assert (y.shape, len(y), y.is_leaf) == ((5, 4), 5, False)
        y.retain_grad()
        y.register_hook(lambda grad: seen.append(tuple(grad.shape)))
        y.backward(torch.ones_like(y))
    assert (y.grad.tolist(), seen) == ([[1.0] * 4] * 5, [(5, 4)])
    assert len(scope.layers) == 4


def test_a_function_that_moved_once_may_round_the_next_time():
    config = {"default": {"x": "s8f2 ties_even sat", "y": "s8f1 ties_even sat"}}
    with emu.fixed_scope(config) as scope:
        torch.tensor([0.125], dtype=torch.float64).type(torch.float32)
        assert scope.layers == {}
        got = torch.tensor([0.3], dtype=torch.float64).type(torch.float32)
    assert got.item() == 0  # 0.25 in y
    assert not scope.layers["type"].exact


def test_weights_are_drawn_as_ever():
    torch.manual_seed(3)
    want = torch.nn.Linear(6, 4).weight
    torch.manual_seed(3)
    with emu.fixed_scope(CONFIG):
        assert torch.equal(torch.nn.Linear(6, 4).weight, want)


def test_what_the_hardware_does_not_have_is_a_float_core():
    assert emu.fixed_scope is nn.fixed_scope
    with emu.fixed_scope("{default: {x: s6f3 ties_even sat}}") as scope:
        F.logsigmoid(inputs())
    assert list(scope.layers) == ["log_sigmoid"]
    assert not scope.layers["log_sigmoid"].exact


class Checkpointed(torch.nn.Module):
    """A layer, a block that may be computed again, and a layer."""

    def __init__(self, reentrant: bool | None, what: str):
        super().__init__()
        self.first, self.last = torch.nn.Linear(6, 6), torch.nn.Linear(6, 4)
        self.inner, self.act = torch.nn.Linear(6, 6), torch.nn.ReLU()
        self.chain = torch.nn.Sequential(self.inner, self.act, self.inner)
        self.reentrant, self.what = reentrant, what
        self.runs = 0

    def block(self, x):
        """A plain function of modules, functions and moves."""
        self.runs += 1
        x = F.relu(torch.matmul(self.inner(x), torch.eye(6)))
        return self.inner(x.reshape(-1, 6).flip(1))

    def nested(self, x):
        """A block within a checkpointed function."""
        return self.inner(checkpoint(self.block, self.inner(x), use_reentrant=self.reentrant))

    def forward(self, x):
        block = {"module": self.chain, "function": self.block, "nested": self.nested}[self.what]
        x = F.relu(torch.matmul(self.first(x), torch.eye(6)))
        if self.reentrant is None:
            self.nested = lambda x: self.inner(self.block(self.inner(x)))
            block = self.nested if self.what == "nested" else block
        return self.last(block(x) if self.reentrant is None else checkpoint(
            block, x, use_reentrant=self.reentrant))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of the inner one
@pytest.mark.parametrize("what", ["module", "function", "nested"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_block_computes_the_same_bits(reentrant, what):
    plain, again = (give(Checkpointed(how, what)) for how in (None, reentrant))
    scopes = emu.fixed_scope(MOVING), emu.fixed_scope(MOVING)
    want, got = (results(model, inputs(), scope, 2)
                 for model, scope in zip((plain, again), scopes, strict=True))
    assert got == want
    assert states(scopes[1]) == states(scopes[0])
    if what != "module":
        assert again.runs > plain.runs == 2


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_fixed_model_computes_the_same_bits(reentrant):
    want = results(nn.fix(give(Checkpointed(None, "function")), MOVING), inputs(),
                   torch.enable_grad(), 2)
    model = nn.fix(give(Checkpointed(reentrant, "function")), MOVING)
    assert results(model, inputs(), torch.enable_grad(), 2) == want


@pytest.mark.parametrize("reentrant", [False, True])
def test_fixed_modules_are_checkpointed_outside_any_scope(reentrant):
    grads = []
    for again in (False, True):
        model, x = nn.fix(mlp(), MOVING), inputs()
        with nn.audit():
            y = checkpoint(model, x, use_reentrant=reentrant) if again else model(x)
            y.backward(tensor(some((5, 4), 90, 5, 7)))
        grads.append([y.tolist(), x.grad.tolist(), [p.grad.tolist() for p in model.parameters()],
                      {site: dict(layer.fracs) for site, layer in nn.layers(model).items()}])
    assert grads[0] == grads[1]


def test_checkpointing_holds_no_arrays():
    kept = []

    def pack(x):
        kept.append(x)
        return x

    model = give(Checkpointed(False, "function"))
    x = inputs()
    with emu.fixed_scope(CONFIG), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model.last(model.block(model.first(x)))
        whole, kept[:] = len(kept), []
        model.last(checkpoint(model.block, model.first(x), use_reentrant=False))
    assert 0 < len(kept) < whole - 6


def test_an_error_within_a_checkpointed_function_leaves_the_scope_in_order():
    def failing(x):
        raise KeyError

    model, scope = mlp(), emu.fixed_scope(MOVING)
    for reentrant in (False, True):
        with scope, pytest.raises(KeyError):
            checkpoint(failing, inputs(), use_reentrant=reentrant)
    assert results(model, inputs(), scope) == results(mlp(), inputs(), emu.fixed_scope(MOVING))


def test_float_models_are_checkpointed_as_ever():
    for reentrant in (False, True):
        model, x = mlp(), inputs()
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
        got, x = x.grad, inputs()
        model(x).sum().backward()
        assert torch.equal(got, x.grad)


VIEWS = {
    "reshape": lambda x: x.reshape(3, 10), "view": lambda x: x.view(-1), "t": lambda x: x.t(),
    "T": lambda x: x.T, "mT": lambda x: x.mT, "transpose": lambda x: torch.transpose(x, 0, 1),
    "permute": lambda x: x.permute(1, 0), "slice": lambda x: x[1:, ::2], "item": lambda x: x[2],
    "new axis": lambda x: x[:, None, 1], "chunk": lambda x: x.chunk(2, 1)[1],
    "split": lambda x: torch.split(x, [1, 3, 2], 1)[1], "unbind": lambda x: x.unbind(0)[3],
    "iteration": lambda x: list(x)[3], "narrow": lambda x: x.narrow(0, 1, 3),
    "diagonal": lambda x: x.diagonal(), "flatten": torch.flatten, "unflatten": lambda x:
    x.unflatten(1, (2, 3)), "squeeze": lambda x: x.unsqueeze(1).squeeze(1),
    "of a view": lambda x: x.mT.reshape(2, 15).mT,
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_view_carries_gradients_that_a_float_does_not_hold(view):
    """The cast of 1 + 2^-30 is 2, that of their float sum would be 1."""
    x, seen = inputs(), torch.zeros(5, 6)
    config = {"by_name": {"add": {"error": "s8f0 to_pos sat"}}}
    with nn.audit():
        with emu.fixed_scope(config):
            y = view(torch.add(x, 0.0))
            users = y * 1.0, y * 2.0**-30
        torch.autograd.backward(users, [torch.ones_like(y)] * 2)
    seen.view(-1)[view(torch.arange(30).reshape(5, 6)).flatten()] = 2.0
    assert torch.equal(x.grad, seen)


def test_the_dtype_of_a_view_is_no_move():
    with emu.fixed_scope(CONFIG):
        y = torch.add(inputs(), 0.0)
        assert torch.equal(y.view(torch.int32), y.detach().view(torch.int32))


@pytest.mark.parametrize("scoped", [False, True])
def test_a_result_may_be_used_within_and_outside(scoped):
    """Its gradients from within (a layer's) and from outside are added exactly."""
    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)

        def forward(self, x):
            y = self.one(x)
            return {"within": y, "last": (self.other(y), None)}

    model, x = give(Both()), inputs()
    context = emu.fixed_scope(CONFIG) if scoped else torch.enable_grad()
    model = model if scoped else nn.fix(model, CONFIG)
    grad = tensor(some((5, 6), 90, 5, 7))
    with nn.audit():
        with context:
            out = model(x)
        torch.autograd.backward([out["within"], out["last"][0]], [grad, grad])
    got, x.grad = x.grad, None
    with nn.audit():
        with context:
            y = model.one(x)
        z = y.detach().requires_grad_()
        with context:
            model.other(z).backward(grad)
        y.backward(z.grad + grad)
    assert torch.equal(got, x.grad)


def assigned(x):
    x[1] = x[1] + 2.0
    return x


def clamped(x):
    x.clamp_(min=0.0)
    return x


@pytest.mark.parametrize(("inplace", "by_hand"), [
    (assigned, lambda x: torch.cat([x[:1], x[1:2] + 2.0, x[2:]])),
    (clamped, lambda x: x.clamp(min=0.0))], ids=["assignment", "not of the table"])
@pytest.mark.parametrize("made", [torch.clone, lambda x: torch.add(x, 0.0)], ids=["torch", "fixed"])
def test_what_changes_in_place_has_its_gradient(inplace, by_hand, made):
    found = []
    for change in (inplace, by_hand):
        x = inputs()
        with nn.audit():
            with emu.fixed_scope({}):
                y = made(x)
                before = y * 1.0
                y = torch.add(change(y) * 4.0, before)
            y.backward(tensor(some((5, 6), 90, 5, 7)))
        found.append((y.tolist(), x.grad.tolist()))
    assert found[0] == found[1]


@pytest.mark.parametrize("change", [lambda x: x[1].add_(2.0), lambda x: x.mT.mul_(2.0),
                                    lambda x: x.view(3, 10).clamp_(min=0.0)])
def test_a_view_is_not_changed_in_place(change):
    with emu.fixed_scope({}):
        y = torch.add(inputs(), 0.0)
        with pytest.raises(RuntimeError, match="is changed in place, which what it is a view of"):
            change(y)
