"""The fixed version of any module class: by registering it, by its torch name, by `fix`."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from fixed_layers import HARDWARE, UPDATE, hardware, passed, tensor
from integer_network import some

import emu.nn
from emu import nn

DEFAULT = {"default": HARDWARE}
X, GRAD = some((3, 4), 220, 5, 1), some((3, 4), 90, 5, 2)


class Twice(torch.nn.Module):
    """A user's module: its own parameter, a child and functions."""

    def __init__(self, width=4):
        super().__init__()
        self.fc = torch.nn.Linear(width, width)
        self.gain = torch.nn.Parameter(torch.eye(width))

    def forward(self, x):
        return F.relu(torch.matmul(self.fc(x), self.gain))


class Named(torch.nn.Module):
    """A model whose attributes have the names of ours."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
        self.region = torch.nn.Parameter(torch.eye(4))
        self.base = torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.base(torch.matmul(self.layer[0](x), self.region))


class Method(torch.nn.Linear):
    """A model with a method of one of our names."""

    def layer(self):
        return "mine"


def fixed_twice() -> torch.nn.Module:
    torch.manual_seed(0)
    return nn.fix(Twice(), DEFAULT)


def test_a_registered_class_is_the_one_that_fix_makes():
    made = nn.register_fix_module(Twice)
    assert made is nn.Twice is type(fixed_twice()) is nn.register_fix_module(Twice, "Twice")
    assert issubclass(made, Twice)
    assert repr(made) == "<class 'emu.nn.Twice'>"


def test_a_registered_class_may_be_built_with_its_hardware():
    torch.manual_seed(0)
    module = nn.register_fix_module(Twice)(4, spec=HARDWARE)
    nn.fix(module.fc, DEFAULT)
    with nn.audit():
        y = module(tensor(X))
    assert torch.equal(y, fixed_twice()(tensor(X)))


def test_a_name_is_what_a_configuration_calls_the_class():
    class Quadratic(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((1,), 0.3))

        def forward(self, x):
            return x

    assert nn.register_fix_module(Quadratic, "Square").__name__ == "Square"
    model = nn.fix(torch.nn.Sequential(Quadratic()), {"by_type": {"Square": {"update": UPDATE}}})
    assert model[0].weight.item() == 307 / 1024


@pytest.mark.parametrize("args, message", [
    ((torch.nn.ReLU(),), r"register_fix_module ReLU\(\): needs a class of torch.nn.Module; emu.nn"),
    ((int,), "register_fix_module <class 'int'>: needs a class of torch.nn.Module"),
    ((Twice, "Thrice"), "register_fix_module Twice: is emu.nn.Twice already; a class has one name"),
    ((Method, "Linear"), "register_fix_module Method: emu.nn.Linear is another class; give this"),
    ((Method, "Config"), "register_fix_module Method: emu.nn.Config is another class"),
    ((Method, "a b"), "register_fix_module name 'a b': needs a Python name"),
    ((torch.nn.GRU, "Recurrent"), "is emu.nn.GRU already; a class has one name")])
def test_what_cannot_be_registered_is_refused(args, message):
    nn.register_fix_module(Twice)
    with pytest.raises(ValueError, match=message):
        nn.register_fix_module(*args)


def test_every_module_of_torch_has_a_fixed_version_of_its_name():
    found = [name for name, cls in vars(torch.nn).items()
             if isinstance(cls, type) and issubclass(cls, torch.nn.Module)
             and not hasattr(cls, "__deprecated__")]
    assert len(found) > 100
    for name in found:
        cls = getattr(nn, name)
        assert issubclass(cls, getattr(torch.nn, name))
        assert (cls.__name__, cls.__module__) == (getattr(torch.nn, name).__name__, "emu.nn")


def test_what_torch_has_not_is_no_attribute():
    with pytest.raises(AttributeError, match=r"module 'emu\.nn' has no attribute 'Lienar'"):
        emu.nn.Lienar  # noqa: B018
    assert not hasattr(emu.nn, "functional")


@pytest.mark.parametrize("name, args", [("Linear", (4, 4)), ("LayerNorm", (4,)), ("GRU", (4, 4)),
                                        ("Sequential", ())])
def test_classes_and_instances_survive_pickle_and_deepcopy(name, args):
    cls = getattr(nn, name)
    assert pickle.loads(pickle.dumps(cls)) is cls
    for copied in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        assert type(copied(cls(*args))) is cls


class Doubled(nn.Linear):
    """A user's subclass of a fixed module."""

    def forward(self, x):
        return torch.cat([super().forward(x), F.relu(super().forward(x))], -1)


def test_a_subclass_runs_all_of_its_forward_on_the_hardware():
    module = Doubled(4, 2, spec=hardware(y=None))
    x, plain = tensor(X), nn.Linear(4, 2, spec=hardware(y=None))
    plain.load_state_dict(module.state_dict(), strict=False)
    with nn.audit():
        y, want = module(x), plain(x)
    assert torch.equal(y, torch.cat([want, want.relu()], -1))
    assert list(nn.layers(module)) == ["doubled", "doubled.1", "doubled.relu",
                                       "doubled.cat"]


def test_a_subclass_is_copied_pickled_and_fixed():
    module = Doubled(4, 2, spec=HARDWARE)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(twin) is Doubled
        assert torch.equal(twin(tensor(X)), module(tensor(X)))
    assert type(nn.fix(module, DEFAULT)) is Doubled


class Net(nn.Module):
    """A model written on fixed modules."""

    def __init__(self):
        super().__init__(spec={"x": "s6f3 sat", "w": "s6f3 sat", "forward": {"acc": "s20 sat"}})
        self.fc = nn.Linear(4, 4, spec=hardware(y=None))

    def forward(self, x):
        x = self.fc(x)
        return torch.matmul(x, x.T)


def test_a_model_may_be_written_on_the_fixed_base_class():
    net = Net()
    with nn.audit():
        y = net(tensor(X))
    assert y.shape == (3, 3)


def test_attributes_of_a_model_that_have_our_names_stay_its_own():
    torch.manual_seed(0)
    model = nn.fix(Named(), DEFAULT)
    y = passed(model, X, GRAD)
    assert type(model.layer) is nn.ModuleList
    assert isinstance(model.region, torch.nn.Parameter)
    assert list(nn.layers(model)) == ["", "matmul", "layer.0", "base"]
    twin = copy.deepcopy(model)
    twin.zero_grad()
    assert passed(twin, X, GRAD) == y
    assert nn.fix(Method(2, 2), DEFAULT).layer() == "mine"


def containers() -> torch.nn.Module:
    """A model of every container, and of a module that does nothing."""
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.steps = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Identity())
            self.list = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
            self.dict = torch.nn.ModuleDict({"layer": torch.nn.Linear(4, 4)})
            self.weights = torch.nn.ParameterList([torch.eye(4)])
            self.named = torch.nn.ParameterDict({"w": torch.eye(4)})

        def forward(self, x):
            for module in (self.steps, *self.list, self.dict["layer"]):
                x = module(x)
            return torch.matmul(torch.matmul(x, self.weights[0]), self.named["w"])
    return Model()


def test_containers_hold_fixed_modules_and_parameters():
    model = nn.fix(containers(), {"default": {**HARDWARE, "update": UPDATE}})
    assert len(passed(model, X, GRAD)) == 2 + 8
    assert [type(part) for part in (model.steps, model.list, model.dict, model.weights)] == [
        nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList]
    assert len(model.steps[:1]) == 1
    assert nn.layers(model)["weights"].spec.update is not None
    optimizer = nn.SGD(model, 0.5)
    optimizer.step()
    fresh = nn.fix(containers(), {"default": {**HARDWARE, "update": UPDATE}})
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert all(map(torch.equal, fresh.parameters(), model.parameters()))


def test_a_part_of_a_model_is_fixed_with_names_of_its_own():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Sequential(torch.nn.Linear(4, 4)))
    nn.fix(model[1], {"default": HARDWARE, "by_name": {"0": {"x": "s4f1"}}})
    assert type(model) is torch.nn.Sequential
    assert type(model[0]) is torch.nn.Linear
    assert str(nn.layers(model)["1.0"].spec.x) == "s4f1 to_neg wrap"


def test_two_parts_that_were_fixed_alone_keep_their_layers_apart():
    model = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(4, 4)) for _ in range(2)))
    for part, x in zip(model, ("s4f1", "s5f1"), strict=True):
        nn.fix(part, {"default": {**HARDWARE, "x": x}})
    assert [(path, str(layer.spec.x)[:4]) for path, layer in nn.layers(model).items()] == [
        ("0.0", "s4f1"), ("1.0", "s5f1")]


def test_a_part_of_a_fixed_model_may_be_fixed_anew():
    model = nn.fix(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)), DEFAULT)
    nn.fix(model[1], {"default": {**HARDWARE, "x": "s4f1"}})
    assert [str(layer.spec.x)[:4] for layer in nn.layers(model).values()] == ["s6f3", "s4f1"]


@pytest.mark.parametrize("module, exact", [
    (torch.nn.LogSigmoid(), False), (torch.nn.Identity(), True), (torch.nn.Flatten(), True),
    (torch.nn.ZeroPad2d(1), True), (torch.nn.Linear(2, 2), True), (torch.nn.Softsign(), False),
    (torch.nn.Sequential(), True), (Twice(), True)])
def test_a_representation_says_what_is_to_be_expected_in_float(module, exact):
    module = nn.fix(copy.deepcopy(module), {"default": {}})
    assert ("exact=False" not in repr(module)) == nn.is_exact(module) == exact


def test_what_was_expected_in_float_is_exact_once_it_has_shown_so():
    class Odd(torch.nn.Module):
        """A module of torch that is in no list, and that moves values."""

        __module__ = "torch.nn.modules.odd"

        def forward(self, x):
            return x.T

    module = nn.fix(Odd(), {"default": {}})
    before = nn.is_exact(module)
    module(torch.ones(2, 2))
    assert (before, nn.is_exact(module)) == (False, True)


@pytest.mark.parametrize("part, name", [
    ("by_type", "matmul"), ("by_type", "log_sigmoid"), ("by_name", "matmul"),
    ("by_type", "ReLU"), ("by_name", "matmul_3"), ("by_name", "log_sigmoid"), ("by_name", "fc"),
    ("by_name", "*fc")])
def test_settings_of_functions_that_a_module_may_call_are_taken(part, name):
    nn.fix(Twice(), {**DEFAULT, part: {name: {} if name == "ReLU" else {"x": "s8f4"}}})


@pytest.mark.parametrize("name", ["ReLU", "matmul"])
def test_a_container_calls_no_functions(name):
    with pytest.raises(ValueError, match=f"by_type.{name}: matches no module"):
        nn.fix(torch.nn.Sequential(torch.nn.Linear(2, 2)), {**DEFAULT, "by_type": {name: {}}})


@pytest.mark.parametrize("part, name, message", [
    ("by_type", "Lineer", "; did you mean 'Linear'?"), ("by_name", "fcc", "; did you mean 'fc'?"),
    ("by_type", "matmool", "by_type.matmool: matches no module; there are  (Twice), fc (Linear)"),
    ("by_name", "fc.matmul", "by_name.fc.matmul: matches no module"),
    ("by_name", "gc.matmul", "by_name.gc.matmul: matches no module"),
    ("by_type", "matmul", "by_type.matmul.grad_b: matches no module")])
def test_settings_of_what_there_is_not_are_refused(part, name, message):
    with pytest.raises(ValueError) as caught:
        nn.fix(Twice(), {**DEFAULT, part: {name: {"grad_b": "s8f4"}}})
    assert message in str(caught.value)


@pytest.mark.parametrize("spoil, run, message", [
    (lambda model: model.half(), lambda model: model(tensor(X)),
     "fc.w: dtype torch.float16 carries no codes; use float32 or float64"),
    (lambda model: model, lambda model: model(tensor(X).half()),
     "fc.x: dtype torch.float16 carries no codes"),
    (lambda model: model.to("meta"), lambda model: model(tensor(X)),
     "fc.w: on meta; it has no values; use .to_empty"),
    (lambda model: model, lambda model: model(tensor(X).to("meta")), "fc.x: on meta; it has no"),
    (lambda model: nn.fix(model.half(), {"default": {**HARDWARE, "update": UPDATE}}), None,
     "gain: dtype torch.float16 carries no codes"),
    (lambda model: nn.fix(model.to("meta"), {"default": {**HARDWARE, "update": UPDATE}}), None,
     "gain: on meta; it has no values"),
    (lambda model: nn.fix(model, {"default": {**HARDWARE, "y": "s30f4"}}),
     lambda model: model(tensor(X)),
     r"s30f4 has 29 magnitude bits, torch.float32 carries 24; give the layer a narrower cast y"),
    (lambda model: nn.fix("model", DEFAULT), None, "fix 'model': needs a torch.nn.Module")])
def test_what_carries_no_codes_is_refused_by_name(spoil, run, message):
    with pytest.raises(ValueError, match=message):
        run(spoil(fixed_twice()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_refused_at_the_first_fixed_operation(dtype):
    model = fixed_twice()
    with torch.autocast("cpu", dtype), pytest.raises(ValueError, match=(
            r"^layer 'fc': autocast is active.*leave torch.autocast out")):
        model(tensor(X))
    with torch.autocast("cpu", enabled=False):
        model(tensor(X))
