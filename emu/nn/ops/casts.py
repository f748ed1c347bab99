"""A cast alone: of an activation in forward, of its error in backward."""

from __future__ import annotations

from emu.nn.layer import Layer
from emu.nn.operation import Operation, run


class Cast(Operation):
    """x cast by the spec's `name`, the error by the spec's `error`, each where it is given."""

    def __init__(self, name: str):
        self.name = name

    def forward(self, layer, training, x):
        self.passes = None
        if layer.cast_of(self.name, training) is None:
            return x.detach()
        out = layer.enter(self.name, x, training)
        self.passes = out.passes
        return out

    def backward(self, layer, training, gradient, needs):
        gradient = gradient.masked(self.passes)
        if layer.cast_of("error", training) is not None:
            return [gradient.enter(layer, training)._replace(passes=None)]
        return [gradient.exact(f"{layer.site}.error")]


def activation(layer: Layer, training: bool, x):
    """Cast x by the spec's y, and in backward the error by the spec's error, where given."""
    return run(Cast("y"), layer, training, x)
