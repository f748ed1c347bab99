"""Functions of one number as memories of codes: an entry for every code of x, forward and back."""

from __future__ import annotations

from emu import engine
from emu.nn import border
from emu.nn.grads import Gradient
from emu.nn.layer import Codes, Layer
from emu.nn.operation import Operation, run
from emu.nn.ops.contract import masked
from emu.number import Cast, Format, Rounding
from emu.rule import Rule
from emu.table import WIDEST, Table, entries_cast


class _Function(Operation):
    """The table of a named function; its slope is a table too.

    The entries of the one have the cast `y`, those of the other `w`, or else `entries_cast` of x's
    format. A `y` that is a rule or stochastic follows a table of 31 bits as a cast of its own.
    """

    def __init__(self, function: str):
        self.function = function

    def forward(self, layer, training, x):
        self.x = layer.enter("x", x, training)
        to = entry_cast(layer, "y", training)
        table = table_of(layer, self.x.form, self.function, to or (
            entries_cast(self.function, self.x.form) if layer.cast_of("y", training) is None
            else _wide(self.function, self.x.form)))
        codes = layer.backend.lookup(layer.place("forward", training), self.x.codes, table)
        self.passes = None
        if to is not None:
            return Codes(codes, table.y.format, None)
        out = layer.leave("y", codes, table.y.format, training)
        self.passes = out.passes
        return out

    def backward(self, layer, training, gradient, needs):
        error = received(gradient.masked(self.passes), layer, training)
        slope = table_of(layer, self.x.form, f"grad_{self.function}", self._slope(layer, training))
        frac = error.form.frac + slope.y.format.frac
        codes = layer.backend.lookup_grad(layer.place("grad_input", training), error.codes,
                                          error.form.frac, self.x.codes, slope,
                                          Cast(Format(64, frac))).codes
        return [Codes(masked(codes, self.x.passes), border.holding(codes, frac), None)]

    def _slope(self, layer: Layer, training: bool) -> Cast:
        to, name = layer.cast_of("w", training), f"grad_{self.function}"
        if isinstance(to, Rule):
            entries = engine.table_entries(Table(self.x.form, _wide(name, self.x.form), name))
            return engine.cast_for_codes(to, entries, _wide(name, self.x.form).format.frac,
                                         layer.fracs.get("w"))
        return to or entries_cast(name, self.x.form)


def entry_cast(layer: Layer, name: str, training: bool) -> Cast | None:
    """The spec's cast `name`, where it is one that entries of a table can have."""
    to = layer.cast_of(name, training)
    return to if isinstance(to, Cast) and to.rounding != Rounding.STOCHASTIC else None


def _wide(function: str, x: Format) -> Cast:
    """A cast of entries from which a coarser one gives what it would have given for the value."""
    return entries_cast(function, x, WIDEST, Rounding.TO_ODD)


def table_of(layer: Layer, x: Format, function: str, y: Cast) -> Table:
    """The table of a function; raises ValueError, naming the site, where there is none."""
    try:
        return Table(x, y, function)
    except ValueError as error:
        raise ValueError(f"layer {layer.site!r}: {error}") from None


def received(gradient: Gradient, layer: Layer, training: bool) -> Codes:
    """The gradient in the cast `error`, or as it is where there is none."""
    if layer.cast_of("error", training) is None:
        return gradient.exact(f"{layer.site}.error")
    return gradient.enter(layer, training)


def function(name: str):
    """A torch function of one tensor as the table of `name`."""
    def call(layer: Layer, training: bool, input):
        return run(_Function(name), layer, training, input)
    return call


def gelu(layer: Layer, training: bool, input, approximate="none"):
    """torch.nn.functional.gelu."""
    names = {"none": "gelu", "tanh": "gelu_tanh"}
    if approximate not in names:
        raise ValueError(f"layer {layer.site!r}: gelu approximate {approximate!r}; write none or "
                         "tanh")
    return run(_Function(names[approximate]), layer, training, input)


def softplus(layer: Layer, training: bool, input, beta=1, threshold=20):
    """torch.nn.functional.softplus without its shortcut for large x, which a table needs not."""
    return _plain(layer, training, "softplus", input, beta=(beta, 1))


def elu(layer: Layer, training: bool, input, alpha=1.0):
    """torch.nn.functional.elu."""
    return _plain(layer, training, "elu", input, alpha=(alpha, 1))


def _plain(layer: Layer, training: bool, name: str, input, **parameters):
    for key, (value, only) in parameters.items():
        if value != only:
            raise ValueError(f"layer {layer.site!r}: {name} with {key} {value}; the table is that "
                             f"of {key} {only}, scale its input and output around it")
    return run(_Function(name), layer, training, input)
