"""Training in software: exact forward passes, gradients that float straight through the casts."""

import pytest
import torch
import torch.nn.functional as F
from fixed_layers import HARDWARE, tensor
from integer_network import some

from emu import nn

FORWARD = {key: HARDWARE[key] for key in ("x", "w", "b", "y", "forward")}


class Through(torch.autograd.Function):
    """The nearest grid point within the range, with the gradient where that is no limit."""

    @staticmethod
    def forward(ctx, x, step, low, high):
        code = torch.round(x / step)
        ctx.save_for_backward((code >= low) & (code <= high))
        return code.clamp(low, high) * step

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0], None, None, None


def cast(x, width, frac):
    return Through.apply(x, 2.0**-frac, -(1 << width - 1), (1 << width - 1) - 1)


class Twin(torch.nn.Module):
    """What `models` make of the same parameters, in plain float64 torch."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        conv, fc = self.model.conv, self.model.fc
        y = F.conv2d(cast(x, 6, 3), cast(conv.weight, 5, 3), cast(conv.bias, 6, 4), padding=1)
        y = F.max_pool2d(F.relu(cast(y, 8, 3)), 2)
        y = F.linear(cast(y.flatten(1), 6, 3), cast(fc.weight, 5, 3), cast(fc.bias, 6, 4))
        return cast(y, 8, 3)


def model():
    torch.manual_seed(1)
    made = torch.nn.Sequential()
    for name, module in (("conv", torch.nn.Conv2d(2, 3, 3, padding=1)), ("relu", torch.nn.ReLU()),
                         ("pool", torch.nn.MaxPool2d(2)), ("flat", torch.nn.Flatten()),
                         ("fc", torch.nn.Linear(12, 4))):
        made.add_module(name, module)
    return made.double()


ROUND = {"w": "s5f3 ties_even sat", "b": "s6f4 ties_even sat", "y": "s8f3 ties_even sat"}
INPUT, ERROR = tensor(some((3, 2, 4, 4), 200, 5, 4), torch.float64), torch.randn(
    3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def gradients(module, x):
    x = x.clone().requires_grad_()
    out = module(x)
    with nn.host():
        out.backward(ERROR)
    parameters = dict(getattr(module, "model", module).named_parameters())
    grads = {name: p.grad.clone() for name, p in parameters.items()}
    for p in parameters.values():
        p.grad = None
    return out.detach(), grads | {"x": x.grad}


def test_a_software_backward_is_torchs_straight_through():
    fixed = model()
    want, twin_grads = gradients(Twin(fixed), INPUT)
    nn.fix(fixed, {"default": {**FORWARD, **ROUND}}, float_backward=True)
    with nn.audit():
        got, grads = gradients(fixed, INPUT)
    assert torch.equal(got, want)  # float64 holds every sum of these codes
    for name, grad in twin_grads.items():
        # The one tolerance: gradients of both sides are float sums, in orders of their own.
        torch.testing.assert_close(grads[name], grad, rtol=1e-9, atol=1e-12)
    assert 0.1 < (grads["x"] == 0).double().mean() < 0.9  # x saturates in places


def test_forward_is_that_of_the_hardware():
    fixed, hardware = model(), model()
    nn.fix(fixed, {"default": FORWARD}, float_backward=True)
    nn.fix(hardware, {"default": HARDWARE})
    assert torch.equal(fixed(INPUT), hardware(INPUT))
    assert nn.is_exact(hardware.fc) and not nn.is_exact(fixed.fc)


def test_gradients_are_cast_where_the_layer_says_so():
    casts = {key: HARDWARE[key] for key in ("error", "grad_w", "grad_b")}
    wide = {key: {"acc": "s40 sat"} for key in ("grad_input", "grad_weight", "grad_bias")}
    fixed, hardware = model(), model()
    nn.fix(fixed, {"default": {**FORWARD, **casts}}, float_backward=True)
    nn.fix(hardware, {"default": {**FORWARD, **casts, **wide}})
    for got, want in zip(*(gradients(each, INPUT)[1].values() for each in (fixed, hardware)),
                         strict=True):
        assert torch.equal(got, want)  # sums of such codes are exact in float64


def test_a_residual_adds_its_gradients_in_float():
    class Residual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(4, 4).double()

        def forward(self, x):
            y = self.fc(x)
            return y + torch.relu(y)

    torch.manual_seed(2)
    fixed = nn.fix(Residual(), {"by_name": {"fc": FORWARD}}, float_backward=True)
    x = torch.randn(2, 4, dtype=torch.float64)
    y = fixed.fc(x).detach()
    fixed(x).backward(torch.full((2, 4), 0.1, dtype=torch.float64))
    want = (0.1 + 0.1 * (y > 0).double()).sum(0)
    assert want.unique().numel() > 1
    torch.testing.assert_close(fixed.fc.bias.grad, want, rtol=1e-12, atol=0)


def test_without_float_backward_a_missing_error_is_still_refused():
    fixed = nn.fix(model(), {"default": FORWARD})
    with pytest.raises(ValueError, match="has no error"):
        fixed(INPUT).sum().backward()


def test_masters_of_many_bits_train_in_software():
    update = {"weight": "s32f28 ties_even sat", "momentum": "s32f26 ties_even sat",
              "grad": "s32f26 ties_even sat", "lr": "u8f8 ties_even sat",
              "mu": "u8f8 ties_even sat"}
    fixed = nn.fix(model(), {"default": {**FORWARD, "update": update}}, float_backward=True)
    optimizer, losses = nn.SGD(fixed, 2.0**-8, 0.5), []
    for _ in range(30):
        optimizer.zero_grad()
        out = fixed(INPUT)
        losses.append(out.detach().square().sum().item())
        with nn.host():
            out.backward(out.detach())
        optimizer.step()
    assert losses[-1] < losses[0] / 4
