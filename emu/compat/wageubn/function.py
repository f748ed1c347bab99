"""The layers of `wageubn.function`, each on the hardware of its widths, beside the quantisers.

Every tensor has two numbers: `*_dec_bit_width` k, whose last bit is 2^-(k-1), and
`*_all_bit_width` (or `*_real_bit_width`), the bits that there are, k where it is left out. With
`iostrict` all of them hold, for inputs and outputs too. Without it the original bounds nothing and
casts no input or output: here parameters and activations then have 8 bits more than k, and inputs
and outputs have 24 bits over their range, as errors and gradients always have.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.nn import functional as F

from emu import nn
from emu.compat.wageubn import number
from emu.number import Cast, Format, Overflow, Rounding
from emu.spec import LayerSpec
from emu.value import unknown

NUMBER = ("directquant", "alldirectquant", "constquant", "shiftquant", "sround", "weightquant",
          "errquant", "errorquant", "gwquant", "gradquant", "gbnquant")
SPARE = 8  # bits above k of what the original does not bound
FREE = "s24 auto:max ties_even sat"
ACC = 20  # bits of an accumulator above those of a product


def __getattr__(name: str):
    """The quantisers; pools and containers of torch, on the hardware."""
    if name in NUMBER:
        return getattr(number, name)
    if hasattr(torch.nn, name):
        return getattr(nn, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Widths:
    """What the layers share: the widths of `tensors`, and hardware that follows from them."""

    tensors: ClassVar[dict[str, tuple[int, int]]] = {}  # (dec, all) where they are left out

    def __init__(self, *args, iostrict: bool = False, **keywords):
        widths, others = split(type(self), keywords)
        super().__init__(*args, spec=self.hardware(widths, iostrict), **others)
        self.widths, self.iostrict = widths, iostrict

    def set_widths(self, iostrict: bool, **keywords) -> None:
        """Other widths, by the keywords of the constructor."""
        widths, others = split(type(self), keywords, self.widths)
        if others:
            raise unknown(f"width of a {type(self).__name__}", next(iter(others)),
                          [f"{name}_{kind}_bit_width" for name in self.tensors
                           for kind in ("dec", "all")])
        spec = self.hardware(widths, iostrict)
        self.layer.become(spec, spec)
        self.widths, self.iostrict = widths, iostrict

    def hardware(self, widths: dict, strict: bool) -> LayerSpec:
        """The specification for these widths."""
        raise NotImplementedError


def split(cls: type[_Widths], keywords: dict, before: dict | None = None) -> tuple[dict, dict]:
    """The widths among keywords, with those that there were, and the other keywords."""
    widths, others = dict(before or cls.tensors), {}
    for key, value in keywords.items():
        name, _, kind = key.removesuffix("_bit_width").rpartition("_")
        if not key.endswith("_bit_width") or name not in cls.tensors or kind not in (
                "dec", "all", "real"):
            others[key] = value
            continue
        given = f"{name}_dec_bit_width" in keywords, any(
            f"{name}_{each}_bit_width" in keywords for each in ("all", "real"))
        dec, whole = widths[name]
        if kind == "dec":
            widths[name] = (value, whole if given[1] else value)
        else:
            widths[name] = (dec if not given[0] else keywords[f"{name}_dec_bit_width"], value)
    for name, pair in widths.items():
        if any(not isinstance(bits, int) or not 2 <= bits <= 24 for bits in pair):
            raise ValueError(f"{cls.__name__} {name}: dec {pair[0]} and all {pair[1]} bits; both "
                             "are whole numbers from 2 to 24")
    return widths, others


def fixed_point(pair: tuple[int, int], strict: bool, signed: bool = True) -> Cast:
    """The cast of a tensor of (dec, all) bits."""
    dec, whole = pair
    width = whole if strict else dec + SPARE
    return Cast(Format(width, dec - 1, signed), Rounding.TIES_EVEN,
                Overflow.SAT_SYM if strict else Overflow.SAT)


class _Product(_Widths):
    """A convolution or a product of matrices."""

    tensors: ClassVar = {"weight": (8, 8), "bias": (16, 16), "input": (8, 8), "output": (12, 12)}

    def hardware(self, widths, strict):
        own = {"x": fixed_point(widths["input"], True) if strict else FREE,
               "w": fixed_point(widths["weight"], strict),
               "b": fixed_point(widths["bias"], strict),
               "y": fixed_point(widths["output"], True) if strict else FREE,
               "error": FREE, "grad_w": FREE, "grad_b": FREE, "mask": "all"}
        bits = [24 if isinstance(own[key], str) else own[key].format.width for key in ("x", "w")]
        for key, width in (("forward", sum(bits)), ("grad_input", 24 + bits[1]),
                           ("grad_weight", bits[0] + 24), ("grad_bias", 25)):
            own[key] = {"acc": f"s{min(width + ACC, 62)} sat"}
        return LayerSpec.parse(own)


class Conv2d(_Product, nn.Conv2d):
    """A convolution; its bias has 16 bits and its output 12 where nothing else is said."""


class Linear(_Product, nn.Linear):
    """A linear layer, which could not be constructed there."""


class Adder2d(_Product, nn.modules.fixed(nn.Adder2d)):
    """A layer of AdderNet: minus the sum of |w - x|, with the widths of a convolution."""

    def hardware(self, widths, strict):
        own = super().hardware(widths, strict)
        if strict:
            return own
        passes = {"forward": {"acc": "s40 sat"}, "grad_input": {"acc": "s52 sat"},
                  "grad_weight": {"acc": "s38 sat"}}  # times its factor: 63 bits
        kept = {name: str(value) for name, value in (("w", own.w), ("b", own.b), ("y", own.y))}
        return LayerSpec.parse({**kept, **passes, "x": "s16 auto:max ties_even sat", "error": FREE,
                                "grad_w": FREE, "grad_b": FREE, "grad_bias": {"acc": "s45 sat"},
                                "mask": "all"})


class BatchNorm2d(_Widths, nn.BatchNorm2d):
    """Batch norm by its running statistics, which never move, as there."""

    tensors: ClassVar = dict.fromkeys(["weight", "bias", "mean", "var", "output", "input"], (8, 8))

    def hardware(self, widths, strict):
        casts = {key: fixed_point(widths[name], strict) for key, name in (
            ("w", "weight"), ("b", "bias"))}
        norm = {"mean": fixed_point(widths["mean"], strict),
                "var": fixed_point(widths["var"], strict, signed=False),
                "xhat": "s24f15 ties_even sat", "std": "u20f15 ties_even sat",
                "running_mean": "s25f15 ties_even sat", "running_var": "u24f15 ties_even sat"}
        return LayerSpec.parse(casts | {
            "x": fixed_point(widths["input"], True) if strict else "s20 auto:max ties_even sat",
            "y": fixed_point(widths["output"], True) if strict else FREE,
            "error": "s16 auto:max ties_even sat", "grad_w": FREE, "grad_b": FREE, "norm": norm,
            "mask": "all"})

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False,
                            0.0, self.eps)


class _Rectified(_Widths):
    """A rectifier whose result is cast: y by the widths `acti`, x, if strict, by `input`."""

    tensors: ClassVar = {"input": (8, 8), "acti": (8, 8)}

    def hardware(self, widths, strict):
        return LayerSpec.parse({"y": fixed_point(widths["acti"], strict), "mask": "all"})

    def forward(self, x):
        if self.iostrict:
            x = number.alldirectquant(x, *self.widths["input"])
        return super().forward(self.rectified(x))


class ReLU(_Rectified, nn.Activation):
    """max(x, 0), then its cast."""

    def __init__(self, inplace: bool = False, **widths):
        super().__init__(**widths)

    def rectified(self, x):
        """The values before their cast."""
        return torch.relu(x)


class ReLU6(ReLU):
    """min(max(x, 0), 6), then its cast."""

    def rectified(self, x):
        return F.relu6(x)
