"""Gradients are sums too: exact, or refused with a message that says what helps."""

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from fraction_layers import fixed
from torch.utils.checkpoint import checkpoint

from emu import nn

BIG, SMALL = 2.0**20, 2.0**-6  # their sum has 27 bits, and two of BIG cancel
SPEC = {"x": "s12", "w": "s8", "error": "s12", "grad_w": "s20",
        **dict.fromkeys(("forward", "grad_input", "grad_weight"), "{acc: s24}")}
DTYPES = [torch.float32, torch.float64]
AUDITS = {"audited": nn.audit, "not audited": contextlib.nullcontext}
every = pytest.mark.parametrize("audit", AUDITS.values(), ids=AUDITS)
both = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def used(x, *factors):
    """x times each factor, as a vector: the gradient of x is their sum."""
    return torch.cat([(x * factor).reshape(-1) for factor in factors])


def viewed(x, *factors):
    """As `used`, each time of a view of its own."""
    views = [x.reshape(1, -1), x[None].transpose(0, 1), x.view(-1, 1)[:, 0]]
    return torch.cat([(view * factor).reshape(-1)
                      for view, factor in zip(views, factors, strict=False)])


def written(x, *factors):
    """As `used`, of a tensor that was added to in place."""
    out = x.clone()
    out += 1
    return used(out, *factors)


def doubled(x, *factors):
    """As `used`, each time of a copy in float64."""
    return torch.cat([x.double() * factor for factor in factors])


def partly(x, *factors):
    """As `used`, of one value that stands among others."""
    x = F.pad(x, (1, 1))
    return torch.cat([x[1:2] * factors[0], x[1:] * factors[1], x[:2] * factors[-1]])


USES = {"a leaf": used, "an inner tensor": lambda x, *f: used(x * 1, *f),
        "views of a leaf": viewed, "views of an inner tensor": lambda x, *f: viewed(x * 1, *f),
        "a view": lambda x, *f: used((x * 1).view(1, 1), *f),
        "a tensor changed in place": written, "copies in float64": doubled, "parts": partly,
        "a residual": lambda x, *f: torch.cat([x * f[0], used(x * 1 + x * 0, *f[1:])])}


def gradient(function, dtype, audit, *shape):
    """The gradient of ones (or of `shape`) for ones from every output of the function."""
    x = torch.ones(shape or (1,), dtype=dtype, requires_grad=True)
    with audit():
        y = fixed(function)(x)
        y.backward(torch.ones_like(y))
    return x.grad.tolist()


@every
@both
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_what_cancels_leaves_what_is_small(use, dtype, audit):
    assert gradient(lambda x: use(x, BIG, SMALL, -BIG), dtype, audit) == [SMALL]


@every
@both
@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("big, small", [(BIG, SMALL), (2.0**24, 1.0)])
def test_a_sum_is_exact_or_refused(use, big, small, dtype, audit):
    if dtype == torch.float64:
        assert gradient(lambda x: use(x, big, small, 0), dtype, audit) == [big + small]
    else:
        with pytest.raises((ValueError, nn.FloatSum), match=r"torch.float32 carries 24; use model."
                                                            r"double\(\)"):
            gradient(lambda x: use(x, big, small, 0), dtype, audit)


@every
@both
@pytest.mark.parametrize("function, want", [
    (lambda x: x + x, 2), (lambda x: x * x, 2), (lambda x: x - x, 0), (lambda x: x[0] @ x[0], 2),
    (lambda x: x @ x.T, 2), (lambda x: x @ x.mT, 2), (lambda x: F.linear(x, x), 2),
    (lambda x: torch.cat([x, x]), 2), (lambda x: torch.where(x > 0, x, x), 1),
    (lambda x: torch.maximum(x, x), 1), (lambda x: x * x.detach(), 1)])
def test_one_operation_may_use_a_tensor_twice(function, want, dtype, audit):
    x = torch.ones(1, 2, dtype=dtype, requires_grad=True)
    with audit():
        y = fixed(function, SPEC)(x)
        y.backward(torch.ones_like(y))
    assert x.grad.tolist() == [[want, want]]


class Tied(torch.nn.Module):
    """One weight: an embedding's table, a layer, and another layer transposed."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(3, 2)
        self.out = torch.nn.Linear(2, 3, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, index):
        y = self.out(self.embed(index))
        return y @ self.embed.weight.view(3, 2) + torch.matmul(y, self.out.weight)


@every
@both
def test_a_tied_weight_has_the_sum_of_all_its_gradients(dtype, audit):
    model, index = Tied().to(dtype), torch.tensor([2, 0, 2])
    with torch.no_grad():
        model.embed.weight.copy_(torch.tensor([[1, -2], [3, 1], [-1, 2]]))
    plain = copy.deepcopy(model)
    nn.fix(model, {"default": SPEC})
    with audit():
        model(index).backward(torch.ones(3, 2, dtype=dtype))
    plain(index).backward(torch.ones(3, 2, dtype=dtype))  # of small integers: exact in float too
    assert model.embed.weight.grad.tolist() == plain.embed.weight.grad.tolist()


@every
def test_a_shared_module_called_twice_has_the_sum_of_both(audit):
    layer = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1, -2], [3, 1]]))
    plain = copy.deepcopy(layer)
    model = nn.fix(torch.nn.Sequential(layer, layer, layer), {"default": SPEC})
    x = torch.tensor([[2.0, -1.0]])
    with audit():
        model(x).backward(torch.ones(1, 2))
    plain(plain(plain(x))).backward(torch.ones(1, 2))
    assert layer.weight.grad.tolist() == plain.weight.grad.tolist()


@every
@both
@pytest.mark.parametrize("first, second", [(2.0**24, 1.0), (BIG, SMALL)])
def test_micro_batches_add_up_or_are_refused(first, second, dtype, audit):
    wide = {**SPEC, "error": "s32f6 sat", "grad_w": "s40f6 sat", "grad_weight": "{acc: s48}"}
    model = nn.fix(torch.nn.Linear(1, 1, bias=False).to(dtype), {"default": wide})
    x, grads = torch.ones(1, 1, dtype=dtype), [torch.full((1, 1), value, dtype=dtype)
                                               for value in (first, second)]
    with audit():
        model(x).backward(grads[0])
        if dtype == torch.float64:
            model(x).backward(grads[1])
            assert model.weight.grad.item() == first + second
        else:
            y = model(x)
            with pytest.raises(nn.FloatSum, match="adding it to the one that is there rounds"):
                y.backward(grads[1])


@every
@both
def test_a_graph_may_be_kept_for_a_second_pass(dtype, audit):
    x = torch.ones(1, dtype=dtype, requires_grad=True)
    with audit():
        y = fixed(lambda x: used(x * 1, BIG, SMALL, -BIG))(x)
        y.backward(torch.ones_like(y), retain_graph=True)
        y.backward(torch.ones_like(y))
    assert x.grad.tolist() == [2 * SMALL]


@every
@both
@pytest.mark.parametrize("inner", [False, True])
def test_autograd_grad_of_a_sum_is_exact_or_refused(inner, dtype, audit):
    x = torch.ones(1, dtype=dtype, requires_grad=True)
    first, second = fixed(lambda x: x * 1), fixed(lambda x: used(x, BIG, SMALL, -BIG))
    with audit():
        middle = first(x) if inner else x
        y = second(middle)
        if inner and dtype == torch.float32:
            with pytest.raises(nn.FloatSum, match=r"inside the model: its sum may need 28 bits"):
                torch.autograd.grad(y, middle, torch.ones_like(y))
        else:
            assert torch.autograd.grad(y, middle, torch.ones_like(y))[0].tolist() == [SMALL]


@both
def test_a_gradient_that_is_retained_is_exact_or_refused(dtype):
    x = torch.ones(1, dtype=dtype, requires_grad=True)
    middle = fixed(lambda x: x * 1)(x)
    middle.retain_grad()
    y = fixed(lambda x: used(x, BIG, SMALL, -BIG))(middle)
    if dtype == torch.float32:
        with pytest.raises(nn.FloatSum, match="inside the model: its sum may need 28 bits"):
            y.backward(torch.ones_like(y))
    else:
        y.backward(torch.ones_like(y))
        assert middle.grad.tolist() == [SMALL]


def test_a_gradient_that_is_one_users_alone_may_be_taken():
    x = torch.ones(1, requires_grad=True)
    middle = fixed(lambda x: x * 1)(x)
    y = fixed(lambda x: x * 3)(middle)
    assert torch.autograd.grad(y, [middle, x], torch.ones_like(y))[0].tolist() == [3]


@every
def test_a_user_outside_alone_is_no_sum(audit):
    x = torch.ones(1, requires_grad=True)
    with audit():
        y = fixed(lambda x: x * 2)(x)
        with nn.host():
            (y * 0.5).backward()
    assert x.grad.tolist() == [1]


@every
@pytest.mark.parametrize("factor", [0.5, 2.0**-30])
def test_a_user_outside_beside_one_inside_is_refused(audit, factor):
    x = torch.ones(1, requires_grad=True)
    with audit():
        middle = fixed(lambda x: x * 1)(x)
        inside = fixed(lambda x: x * BIG)(middle)
        with nn.host(), pytest.raises(nn.FloatSum, match="something outside the hardware adds"):
            torch.cat([inside, middle * factor]).backward(torch.ones(2))


def test_gradients_from_outside_and_within_are_added_exactly():
    """Of a tensor that the model returns, and uses: 2^20 from within, 2^-6 from outside."""
    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    y, z = fixed(lambda x: (middle := x * 1, middle * BIG))(x)
    torch.autograd.backward([y, z], [torch.full((1,), SMALL, dtype=torch.float64),
                                     torch.ones(1, dtype=torch.float64)])
    assert x.grad.tolist() == [BIG + SMALL]


def test_a_gradient_from_outside_that_is_on_no_grid_is_in_no_sum():
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    y, z = fixed(lambda x: (middle := x * 1, middle * BIG))(x)
    wide = torch.tensor([2.0**40, 2.0**-40], dtype=torch.float64)
    with pytest.raises(nn.FloatSum, match="something outside the hardware adds to it or changes"):
        torch.autograd.backward([y, z], [wide, torch.ones_like(wide)])


def test_the_kept_gradient_of_a_result_is_no_sum():
    """It needs 42 bits, where one of several parts would be refused above 24."""
    x = torch.ones(2, requires_grad=True)
    y = fixed(lambda x: x * 1)(x)
    y.retain_grad()
    (y * torch.tensor([3.0, 2.0**-40])).sum().backward()
    assert y.grad.tolist() == x.grad.tolist() == [3, 2.0**-40]


def test_a_hook_that_changes_a_gradient_is_refused():
    x = torch.ones(1, requires_grad=True)
    middle = fixed(lambda x: x * 1)(x)
    middle.register_hook(lambda grad: grad / 3)
    with pytest.raises(nn.FloatSum, match="something outside the hardware adds to it or changes"):
        fixed(lambda x: x * 2)(middle).backward()


@every
def test_a_checkpoint_runs_again_and_adds_the_same(audit):
    x = torch.ones(1, requires_grad=True)
    model = fixed(lambda x: used(x * 1, BIG, SMALL, -BIG))
    with audit():
        y = checkpoint(model, x, use_reentrant=False)
        y.backward(torch.ones_like(y))
    assert x.grad.tolist() == [SMALL]


def through_a_view(x):
    """A tensor that is read after a view of it was changed."""
    x = x.clone()
    x.view(1, 1).mul_(2)
    return x * 3


def through_an_old_view(x):
    """A view that is read after its tensor was changed."""
    x = x * 1
    view = x.view(1, 1)
    x.mul_(2)
    return view * 3


@pytest.mark.parametrize(("function", "message"), [
    (through_a_view, r"a view \(1, 1\) is changed in place, which what it is a view of does not"),
    (through_an_old_view, "its base or another view of its base has been modified inplace")])
def test_changes_that_autograd_would_not_know_of_are_refused(function, message):
    x = torch.ones(1, requires_grad=True)
    with pytest.raises(RuntimeError, match=message):
        fixed(function)(x)


@pytest.mark.parametrize("convert", [torch.Tensor.float, lambda x: x.to(torch.float32),
                                     lambda x: x.type_as(torch.zeros(1))])
def test_a_conversion_that_rounds_is_a_float_core(convert):
    for value, exact in ((2.0**24, True), (2.0**24 + 1, False)):
        model = fixed(convert)
        y = model(torch.tensor([value], dtype=torch.float64, requires_grad=True))
        assert y.dtype == torch.float32
        assert all(layer.exact for layer in nn.layers(model).values()) == exact


def test_a_gradient_that_its_dtype_does_not_hold_is_refused():
    x = torch.ones(1, requires_grad=True)
    y = fixed(lambda x: x.double() * (2.0**24 + 1))(x)
    with pytest.raises(ValueError, match=r"25 magnitude bits, torch.float32 carries"):
        y.backward()


def test_a_view_whose_gradients_torch_would_add_is_a_float_core():
    model = fixed(lambda x: torch.meshgrid(x, x, indexing="ij")[0] * 1)
    model(torch.ones(2, requires_grad=True))
    assert not nn.layers(model)["meshgrid"].exact


def test_an_aborted_pass_leaves_nothing_behind():
    x = torch.ones(1, requires_grad=True)
    model = fixed(lambda x: used(x * 1, BIG, SMALL))
    for _ in range(2):
        with pytest.raises(ValueError, match="27 magnitude bits"):
            y = model(x)
            y.backward(torch.ones_like(y))
    y = fixed(lambda x: used(x * 1, BIG, SMALL, -BIG))(x)
    y.backward(torch.ones_like(y))
    assert x.grad.tolist() == [SMALL]
