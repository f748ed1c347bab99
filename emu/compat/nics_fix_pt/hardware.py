"""A fix module whose sums run on the integer engine: what a key "mac" in its configuration does.

The configurations put parameters, and in backward their gradients, on grids of powers of two, in
two's complement; from there the layer is one of `emu.nn`, which this module gives its `LayerSpec`.

"mac" is a MacSpec, or its mapping or text, without operands or with them: the MAC of all passes.
Or it is a mapping of a LayerSpec's settings (x, y, error, forward, grad_input, norm, ...). What it
leaves open:

- x has the bits of the MAC's `a`, else of the `Activation_fix` that the input comes from, else of
  the weight; its binary point is that of this `Activation_fix`, else that of its largest value;
- error has the bits of the MAC's `a`, else of the weight's gradient, else of x, and the binary
  point of its largest value;
- without a configuration of their own, b and the parameter gradients have 24 bits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields

import torch
from torch.autograd import Function

from emu.compat.nics_fix_pt import ranges
from emu.compat.nics_fix_pt.quant import active, get_int
from emu.nn.backend import Backend
from emu.nn.config import Site
from emu.nn.hardware import Hardware
from emu.nn.moved import outgoing
from emu.nn.scope import Frame, Region, running, top
from emu.nn.sites import OWN
from emu.number import Format
from emu.spec import PASS_OPERANDS, LayerSpec, MacSpec
from emu.value import check_keys, parse_mapping

BITS = 24  # what a float32 holds, of tensors that no configuration names
PARAMETERS = {"weight": ("w", "grad_w"), "bias": ("b", "grad_b")}


def mac_of(configs: Mapping):
    """The "mac" of a module's configurations, None where there is none."""
    for cfg in configs.values():
        if cfg.get("mac") is not None:
            return cfg["mac"]
    return None


def in_hardware(cfg: Mapping, name: str) -> Mapping:
    """A datum's configuration in a layer that has a MAC: in two's complement.

    Raises ValueError for what is no grid of a power of two.
    """
    if not cfg:
        return cfg
    for key in ("float_scale", "zero_point", "group"):
        if cfg.get(key):
            raise ValueError(f"{name}: {key} {cfg[key]!r} beside a mac; its operands have one "
                             "binary point a tensor, so leave it out")
    limits = cfg.get("range", "closed")
    return {**cfg, "mac": True, "range": "twos_complement" if limits == "closed" else limits}


class Border(Function):
    """The same values, where the hardware begins: sums of gradients behind it are torch's."""

    @staticmethod
    def forward(ctx, x):
        return x.detach()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Binding:
    """One module's place on the engine: the resolver of its site, and the binary points there."""

    def __init__(self, base: type, path: str, backend: Backend | None = None):
        kinds = tuple(each.__name__ for each in base.__mro__)
        self.kind = next((kind for kind in kinds if kind in OWN and not OWN[kind].composite), None)
        if self.kind is None:
            raise ValueError(f"mac: {base.__name__} is no single operation of the hardware; give "
                             "its parts a mac, or turn the model into one by emu.nn.fix")
        self.items: dict[str, str] = {}
        self.asked = None
        self.region = Region(path, kinds, Hardware(self, backend or Backend()))
        self.layer = None

    def __str__(self) -> str:
        return "fixed"  # has state: it is not compiled

    def resolve(self, site: Site) -> LayerSpec:
        """The hardware of the module's own operation."""
        return LayerSpec.parse({key: self.items[key] for key in site.uses if key in self.items})

    def ready(self, mac, x: torch.Tensor, data: Mapping[str, torch.Tensor], counts: Counter
              ) -> None:
        """Take the formats that hold for this call; `data` are the quantised weight and bias.

        `counts["x"]` grows by the codes of x that only the closed range would hold.
        """
        source = getattr(x, "data_cfg", None)
        source = source if source is not None and active(source) and _is_power(source) else None
        bits = {name: get_int(tensor.data_cfg["bitwidth"]) for name, tensor in data.items()
                if hasattr(tensor, "data_cfg") and active(tensor.data_cfg)}
        grad = getattr(data.get("weight"), "grad_cfg", {})
        wide = (get_int(source["bitwidth"]) if source is not None else None,
                get_int(grad["bitwidth"]) if active(grad) else None)
        asked = (mac if isinstance(mac, str) else str(mac), tuple(bits.items()), wide)
        if asked != self.asked:
            self.items = settings(mac, bits, *wide)
            if self.layer is None:
                entry = OWN[self.kind]
                self.layer = self.region.layer("", self.kind, entry.uses, entry.channels)
            site = Site(self.layer.site, self.kind, self.layer.uses)
            self.layer.become(*2 * [self.resolve(site)])
            self.asked = asked
        bound = float(source["scale"]) if source is not None else _bound(x)
        self._point("x", bound)
        counts.update(_clipped(x, bound, self.layer.cast_of("x", True)))
        for name, tensor in data.items():
            if name in PARAMETERS:
                self._point(PARAMETERS[name][0], float(tensor.data_cfg["scale"]) if name in bits
                            else _bound(tensor))

    def _point(self, name: str, bound: float) -> None:
        """Set the binary point of a tensor whose values are in [-bound, bound]."""
        to = self.layer.cast_of(name, True)
        if getattr(to, "fixed", False):
            mantissa, exponent = math.frexp(bound)
            if mantissa != 0.5:
                raise ValueError(f"layer {self.layer.site!r}: {name} has scale {bound}; the "
                                 "hardware takes a power of two")
            self.layer.fracs[name] = to.width - to.signed - exponent + 1

    def run(self, module: torch.nn.Module, function, x: torch.Tensor, *args, **kwargs):
        """function(x, ...) on the hardware."""
        inner = top() is not None
        with running(Frame(self.region, module.training)):
            out = function(x if inner or not x.requires_grad else Border.apply(x), *args, **kwargs)
        return out if inner else outgoing(out)


def _is_power(cfg: Mapping) -> bool:
    scale = cfg["scale"]
    return (not any(cfg.get(key) for key in ("float_scale", "zero_point", "group"))
            and math.frexp(float(scale))[0] == 0.5)


def _bound(x: torch.Tensor) -> float:
    with torch._C.DisableTorchFunction():
        return ranges.chosen(x.detach(), 1, 0, False, "x") if x.numel() else 1.0


def _clipped(x: torch.Tensor, bound: float, to) -> dict[str, int]:
    """How many values round to the code that two's complement lacks, or beyond."""
    if not getattr(to, "fixed", False) or not to.signed:
        return {}
    with torch._C.DisableTorchFunction():
        found = int((x.detach() >= bound - math.ldexp(bound, -to.width)).sum())
    return {"x": found} if found else {}


def settings(mac, bits: Mapping[str, int], wide: int | None, grad: int | None) -> dict:
    """The LayerSpec's settings, as texts, that "mac" and the bits of the data say.

    `bits` are those of the configured parameters, `wide` those of the activation that x comes
    from, `grad` those of the weight's gradient. Raises ValueError for a "mac" that says twice what
    the configurations say.
    """
    given, a = _parsed(mac), None
    if given.keys() <= {field.name for field in fields(MacSpec)}:
        a = given.get("a")
        given = {name: {key: value for key, value in given.items()
                        if key not in ("a", "b") or name == "forward"} for name in PASS_OPERANDS}
        given |= {} if a is None else {"x": f"{_bits(a)} fixed ties_even sat"}
    check_keys(given, [field.name for field in fields(LayerSpec)], "mac")
    for name, (key, _) in PARAMETERS.items():
        if name in bits and key in given:
            raise ValueError(f"mac: has {key}, which is the configuration {name!r} of the module; "
                             "leave one of them out")
    x = f"s{wide or bits.get('weight', BITS)} fixed ties_even sat"
    found = {"x": x, "error": None, "w": f"s{bits.get('weight', BITS)} fixed ties_even sat",
             "b": f"s{bits.get('bias', BITS)} fixed ties_even sat",
             **dict.fromkeys(("grad_w", "grad_b"), f"s{BITS} auto:max ties_even sat")}
    found |= given
    width = grad if grad and a is None else _width(found["x"])
    found["error"] = given.get("error") or f"s{width} auto:max ties_even sat"
    return found


def _parsed(mac) -> dict:
    if isinstance(mac, str):
        mac = parse_mapping(mac)
    if isinstance(mac, MacSpec | LayerSpec):
        found = {field.name: getattr(mac, field.name) for field in fields(mac)
                 if getattr(mac, field.name) is not None}
        if getattr(mac, "exact_product", False) and not mac.product.format.frac:
            del found["product"]  # which is as wide as the operands of each pass make it
        return found
    if not isinstance(mac, Mapping):
        raise ValueError(f"mac {mac!r}: needs a MacSpec, its text such as '{{acc: s24 sat}}', or a "
                         "mapping of a LayerSpec's settings")
    return dict(mac)


def _bits(form) -> str:
    form = form if isinstance(form, Format) else Format.parse(form)
    return f"{'s' if form.signed else 'u'}{form.width}"


def _width(cast) -> int:
    return Format.parse(str(cast).split()[0]).width


def use_backend(model: torch.nn.Module, backend: Backend) -> None:
    """Let a backend compute for all fix modules of a model that have a MAC, at their paths in it.

    Without it each has a `Backend` of its own, and the name of its class as its site.
    """
    for path, module in model.named_modules():
        if mac_of(getattr(module, "nf_fix_params", {})) is not None:
            module.nf_place = path, backend
            module.__dict__.pop("_nf_binding", None)
