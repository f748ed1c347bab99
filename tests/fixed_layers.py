"""What the tests of `emu.nn` share: hardware to vary, a layer to run, and codes to compare."""

import torch
from integer_network import Grid, flat, floats, like, some

from emu import LayerSpec, nn

# Each cast rounds most of the values below, and saturates some of them.
HARDWARE = {
    "x": "s6f3 ties_even sat", "w": "s5f3 ties_away sat", "b": "s6f4 to_zero sat",
    "y": "s8f3 ties_pos sat", "error": "s6f4 ties_even sat", "grad_w": "s8f5 ties_odd sat",
    "grad_b": "s6f3 to_odd sat", "forward": {"acc": "s16 sat"}, "grad_input": {"acc": "s16 sat"},
    "grad_weight": {"acc": "s16 sat"}, "grad_bias": {"acc": "s12 sat"},
}
UPDATE = {"weight": "s16f10 ties_even sat", "momentum": "s18f10 ties_even sat",
          "grad": "s16f10 ties_even sat", "lr": "u8f8 ties_even sat", "mu": "u8f8 ties_even sat"}
X, W, GRAD = some((5, 6), 220, 5, 1), some((4, 6), 70, 5, 2), some((5, 4), 90, 5, 3)
B = Grid([9, -200, 77, 160], 6)


def hardware(**changes) -> LayerSpec:
    """HARDWARE with some of its settings changed."""
    return LayerSpec.parse({**HARDWARE, **changes})


def tensor(x: Grid, dtype=torch.float32) -> torch.Tensor:
    """A grid as a tensor."""
    return torch.tensor(floats(x), dtype=dtype)


def give(module: torch.nn.Module, weight: Grid, bias: Grid | None = None) -> torch.nn.Module:
    """The module with these parameters."""
    with torch.no_grad():
        module.weight.copy_(tensor(weight))
        if bias is not None:
            module.bias.copy_(tensor(bias))
    return module


def passed(module: torch.nn.Module, x: Grid, grad: Grid) -> dict[str, list]:
    """The output, and the gradients of x and of the parameters, for a gradient of the output.

    Runs under the auditor.
    """
    x = tensor(x, next(module.parameters(), torch.empty(0)).dtype).requires_grad_()
    with nn.audit():
        y = module(x)
        y.backward(tensor(grad, y.dtype))
    grads = {f"grad of {name}": parameter.grad.tolist()
             for name, parameter in module.named_parameters()}
    return {"y": y.tolist(), "grad of x": x.grad.tolist(), **grads}


def expected(twin, x: Grid, grad: Grid, *parameters: Grid) -> dict[str, list]:
    """What `passed` is to return, by the layer of `integer_network`."""
    names = ["y", "grad of x", "grad of weight", "grad of bias"]
    y, grads = twin.forward(x, *parameters), twin.backward(grad)
    grads = grads if isinstance(grads, list) else [grads]
    return dict(zip(names, map(floats, [y, *grads]), strict=False))


def codes(x: torch.Tensor, frac: int) -> list:
    """The codes of a tensor that is on the grid of 2^-frac."""
    scaled = [value * 2.0**frac for value in flat(x.tolist())]
    assert all(value.is_integer() for value in scaled)
    return like([int(value) for value in scaled], x.tolist())


def masters(model: torch.nn.Module) -> dict[str, list]:
    """The codes of every parameter."""
    return {name: codes(parameter.detach(),
                        nn.layers(model)[name.rpartition(".")[0]].spec.update.weight.format.frac)
            for name, parameter in model.named_parameters()}


def momenta(model: torch.nn.Module, optimizer: nn.SGD) -> dict[str, list]:
    """The codes of every momentum."""
    return {name: optimizer.state[parameter]["momentum"].tolist()
            for name, parameter in model.named_parameters()}


def train_step(model, optimizer, x: torch.Tensor, target: torch.Tensor) -> None:
    """One step on half the squared error, whose gradient is the difference, under the auditor."""
    with nn.audit():
        optimizer.zero_grad()
        y = model(x)
        y.backward(y.detach() - target)
        optimizer.step()
