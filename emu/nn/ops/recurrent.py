"""Recurrent networks step by step, written in functions of the table.

Sites begin with `l0.`, `l0_reverse.`, `l1.` ... in a network, with nothing in a cell. `ih` is one
product for all steps, `hh` one for each; the gradients of its parameters are added exactly over the
steps before they are cast.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from emu.nn import border
from emu.nn.frames import named, site
from emu.nn.layer import Codes, Layer
from emu.nn.operation import Operation, run
from emu.nn.ops.contract import Linear


class _Step(Linear):
    """One of several uses of a weight and a bias, whose gradients leave exactly."""

    def leave_weight(self, layer, training, codes, form, name="grad_w"):
        return Codes(codes, border.holding(codes, form.frac), None)


class _Shared(Operation):
    """A parameter for all its uses: the sum of their gradients has the cast `name`."""

    def __init__(self, name: str):
        self.name = name

    def forward(self, layer, training, x):
        return x.detach()

    def backward(self, layer, training, gradient, needs):
        found = gradient.exact(f"{layer.site}.{self.name}")
        return [layer.requantise(self.name, found.codes, found.form, training)]


def step(layer: Layer, training: bool, input, weight, bias):
    """`linear` for one of several steps."""
    return run(_Step(), layer, training, input, weight, bias)


def shared(layer: Layer, training: bool, parameter, name: str):
    """A weight (its gradient's cast is `grad_w`) or bias (`grad_b`) for all steps."""
    return run(_Shared(name), layer, training, parameter)


def _lstm_cell(at: str, inputs, hidden, state):
    """sigmoid of i, f, o and tanh of g; c = f c + i g; h = o tanh(c)."""
    h, c = state
    hidden = hidden(h)
    with named(f"{at}gates"):
        gates = torch.add(inputs, hidden)
    i, f, g, o = gates.chunk(4, -1)
    i, f, g, o = (_function(f"{at}{name}", function, x) for name, function, x in (
        ("i", torch.sigmoid, i), ("f", torch.sigmoid, f), ("g", torch.tanh, g),
        ("o", torch.sigmoid, o)))
    with named(f"{at}keep"):
        kept = torch.mul(f, c)
    with named(f"{at}write"):
        written = torch.mul(i, g)
    with named(f"{at}c"):
        c = torch.add(kept, written)
    out = _function(f"{at}tanh", torch.tanh, c)
    with named(f"{at}h"):
        return torch.mul(o, out), c


def _gru_cell(at: str, inputs, hidden, state):
    """sigmoid of r, z; n = tanh(W x + r (U h)); h = n + z (h - n)."""
    h, = state
    size = 2 * h.shape[-1]
    hidden = hidden(h)
    with named(f"{at}gates"):
        gates = torch.add(inputs[..., :size], hidden[..., :size])
    r, z = (_function(f"{at}{name}", torch.sigmoid, x)
            for name, x in zip("rz", gates.chunk(2, -1), strict=True))
    with named(f"{at}reset"):
        new = torch.mul(r, hidden[..., size:])
    with named(f"{at}new"):
        new = torch.add(inputs[..., size:], new)
    new = _function(f"{at}n", torch.tanh, new)
    with named(f"{at}difference"):
        old = torch.sub(h, new)
    with named(f"{at}keep"):
        old = torch.mul(z, old)
    with named(f"{at}h"):
        return torch.add(new, old),


def _plain_cell(name: str, function: Callable):
    """h = function(W x + U h)."""
    def cell(at, inputs, hidden, state):
        hidden = hidden(*state)
        with named(f"{at}sum"):
            out = torch.add(inputs, hidden)
        return _function(f"{at}{name}", function, out),
    return cell


def _function(at: str, function: Callable, x):
    with named(at):
        return function(x)


def _hidden(at: str, weight, bias) -> Callable:
    """The product of the hidden state of each step."""
    def use(name, *args):
        with named(f"{at}hh") as frame:
            return frame.step(name, *args)

    weight = use("shared", weight, "grad_w")
    bias = None if bias is None else use("shared", bias, "grad_b")
    return lambda h: use("step", h, weight, bias)


def _input(at: str, x, weight, bias):
    with named(f"{at}ih"):
        return F.linear(x, weight, bias)


def one_cell(cell: Callable) -> Callable:
    """torch.lstm_cell and the like: input (N, I), the state, and the parameters."""
    def call(input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
        inputs = _input("", input, w_ih, b_ih)
        state = cell("", inputs, _hidden("", w_hh, b_hh),
                     hx if isinstance(hx, tuple | list) else (hx,))
        return state if isinstance(hx, tuple | list) else state[0]
    return call


def network(cell: Callable) -> Callable:
    """torch.lstm and the like: input (T, N, I), the states (layers, N, H), and the parameters."""
    def call(input, hx, params, has_biases, num_layers, dropout, train, bidirectional,
             batch_first=None):
        if not isinstance(has_biases, bool):
            raise ValueError(f"{site()}: packed sequences are not on the hardware; pad "
                             "them, and mask what comes of the padding")
        single = isinstance(hx, torch.Tensor)
        directions, each = 1 + bidirectional, 2 + 2 * has_biases
        if len(params) != num_layers * directions * each:
            raise ValueError(f"{site()}: proj_size is not on the hardware; follow the "
                             "network by a Linear")
        x = input.transpose(0, 1) if batch_first else input
        starts = [part.unbind(0) for part in ([hx] if single else hx)]
        ends = []
        for level in range(num_layers):
            outs = []
            for back in range(directions):
                i = level * directions + back
                at = f"l{level}{'_reverse' if back else ''}."
                w_ih, w_hh, *biases = params[i * each:(i + 1) * each]
                b_ih, b_hh = biases or (None, None)
                steps = _input(at, x, w_ih, b_ih).unbind(0)
                hidden, state = _hidden(at, w_hh, b_hh), [part[i] for part in starts]
                out = []
                for inputs in reversed(steps) if back else steps:
                    state = cell(at, inputs, hidden, state)
                    out.append(state[0])
                outs.append(torch.stack(out[::-1] if back else out))
                ends.append(state)
            x = torch.cat(outs, -1) if bidirectional else outs[0]
            if dropout and train and level + 1 < num_layers:
                with named(f"l{level}.dropout"):
                    x = F.dropout(x, dropout)
        x = x.transpose(0, 1) if batch_first else x
        return x, *(torch.stack(part) for part in zip(*ends, strict=True))
    return call


lstm, lstm_cell = network(_lstm_cell), one_cell(_lstm_cell)
gru, gru_cell = network(_gru_cell), one_cell(_gru_cell)
rnn_tanh, rnn_tanh_cell = (of(_plain_cell("tanh", torch.tanh)) for of in (network, one_cell))
rnn_relu, rnn_relu_cell = (of(_plain_cell("relu", torch.relu)) for of in (network, one_cell))
