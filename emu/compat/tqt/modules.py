"""The modules: torch's, that compute in float or (`quant`) on the engine.

Weights, biases and activations have learned thresholds. Inputs are not quantised by the package:
here they enter a MAC as 25-bit codes of their largest value, which hold every 8-bit activation, and
every float32 to 2^-24 of that. What leaves has `inter_bit_width` bits, at most 25, as no float32
holds more. Gradients, which the package has in float, are 17 bits wide in products and else 25.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F

from emu import nn
from emu.compat.tqt.quantise import rule
from emu.nn.modules import FixedModule
from emu.nn.ops.casts import activation

CARRIED = 25  # bits of a signed code that a float32 holds
WIDE, ERROR = (f"s{bits} auto:max ties_even sat" for bits in (CARRIED, 17))
MACS = {"forward": {"acc": "s62"}, "grad_input": {"acc": "s62"}, "grad_weight": {"acc": "s62"},
        "grad_bias": {"acc": "s48"}}
LEAVES = {"error": WIDE}  # of what hands gradients to modules in float


class Width:
    """A bit width of a module; a new one changes its hardware."""

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, module, cls=None):
        return self if module is None else module.widths[self.name]

    def __set__(self, module, bits):
        module.set_widths(**{self.name: bits})


class Quantised(FixedModule):
    """What all modules have: widths, thresholds that train (`retrain`) or stay, and a switch."""

    threshold_names: ClassVar[dict] = {"w": "weight", "b": "bias", "output_y": "acti"}

    def _begin(self, retrain: bool, quant: bool, **widths: int) -> None:
        self.widths, self.retrain = widths, retrain
        self.set_widths()
        for name, parameter in self.named_parameters(recurse=False):
            if name.endswith("_log2_t"):
                parameter.requires_grad_(retrain)
        self._emu_region.floating = not quant

    def set_widths(self, **widths: int) -> None:
        """Change some of the bit widths; thresholds stay. Raises ValueError for another name."""
        for name in widths:
            if name not in self.widths:
                raise ValueError(f"{type(self).__name__} has no {name}; it has "
                                 f"{', '.join(self.widths)}")
        floating = self._emu_region.floating
        self.widths = {**self.widths, **widths}
        nn.configure(self, self._hardware())
        self._emu_region.floating = floating
        self._output()

    def _hardware(self) -> dict:
        """The configuration of the module's hardware."""
        raise NotImplementedError

    def _output(self):
        """The layer that casts the activations; made here, so that its threshold is there."""
        if "acti_bit_width" not in self.widths:
            return None
        return self._emu_region.layer("output", "Activation", ("y", "error"), None)

    def _left(self, y):
        """The result in the cast of activations."""
        return y if not self.quant else activation(self._output(), self.training, y)

    def _entered(self, x):
        """The input, whose gradient is cast before it leaves."""
        if not self.quant:
            return x
        layer = self._emu_region.layer("input", "Activation", ("y", "error"), None)
        return activation(layer, self.training, x)

    @property
    def quant(self) -> bool:
        """Whether the module computes on the engine."""
        return not self._emu_region.floating

    @quant.setter
    def quant(self, on: bool) -> None:
        self._emu_region.floating = not on

    def quantilize(self) -> None:
        """Compute on the engine."""
        self.quant = True

    def floatilize(self) -> None:
        """Compute in float."""
        self.quant = False

    def static(self) -> None:
        """Thresholds stay as they are, and leave the state_dict."""
        self.retrain = False
        for threshold in self._thresholds().values():
            threshold.requires_grad_(False)

    def quant_answer(self) -> dict[str, dict]:
        """The parameters as integers: `{codes, format}` by name."""
        return {name: kept for name, kept in nn.fix_state_dict(self).items()
                if not name.endswith("_log2_t")}

    def _thresholds(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self._parameters.items() if name.endswith("_log2_t")}

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self.retrain:
            for name in self._thresholds():
                del destination[prefix + name]

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, *reports):
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *reports)
        if not self.retrain:
            missing[:] = [key for key in missing
                          if key.removeprefix(prefix) not in self._thresholds()]


class _Weighted(Quantised):
    """A layer with a weight and a bias."""

    weight_bit_width, bias_bit_width, inter_bit_width = Width(), Width(), Width()

    def _hardware(self) -> dict:
        inter = min(self.inter_bit_width, CARRIED)
        layer = {"x": WIDE, "w": rule(self.weight_bit_width), "b": rule(self.bias_bit_width),
                 "y": f"s{inter} auto:max ties_even sat", "error": ERROR, "grad_w": WIDE,
                 "grad_b": WIDE, **MACS}
        return {"default": layer, "by_type": {"Activation": {**LEAVES, "y": "none"}}}


class Conv2d(_Weighted, nn.Conv2d):
    """torch.nn.Conv2d with widths."""

    def __init__(self, *args, weight_bit_width=8, bias_bit_width=16, inter_bit_width=32,
                 retrain=True, quant=False, **kwargs):
        super().__init__(*args, **kwargs)
        self._begin(retrain, quant, weight_bit_width=weight_bit_width,
                    bias_bit_width=bias_bit_width, inter_bit_width=inter_bit_width)

    def forward(self, x, weight=None, bias=None):
        weight, bias = (self.weight, self.bias) if weight is None else (weight, bias)
        return self._conv_forward(self._entered(x), weight, bias)

    def with_parameters(self, x, weight, bias):
        """The module's output if it had these parameters, its own thresholds and widths."""
        return self(x, weight, bias)


class SEConv2d(_Weighted, nn.modules.fixed(nn.SEConv2d)):
    """A convolution with weights of powers of two, with widths."""

    def __init__(self, *args, weight_bit_width=8, bias_bit_width=16, inter_bit_width=32,
                 retrain=True, quant=False, **kwargs):
        super().__init__(*args, **kwargs)
        self._begin(retrain, quant, weight_bit_width=weight_bit_width,
                    bias_bit_width=bias_bit_width, inter_bit_width=inter_bit_width)

    def forward(self, x):
        return nn.SEConv2d.forward(self, self._entered(x))


class Linear(_Weighted, nn.Linear):
    """torch.nn.Linear with widths."""

    def __init__(self, *args, weight_bit_width=8, bias_bit_width=16, inter_bit_width=32,
                 retrain=True, quant=False, **kwargs):
        super().__init__(*args, **kwargs)
        self._begin(retrain, quant, weight_bit_width=weight_bit_width,
                    bias_bit_width=bias_bit_width, inter_bit_width=inter_bit_width)

    def forward(self, x):
        return torch.nn.Linear.forward(self, self._entered(x))


class Adder2d(_Weighted, nn.modules.fixed(nn.Adder2d)):
    """A layer of AdderNet with widths; its result is an activation of `acti_bit_width` bits."""

    acti_bit_width = Width()

    def __init__(self, *args, weight_bit_width=8, bias_bit_width=16, inter_bit_width=32,
                 acti_bit_width=8, retrain=True, quant=False, **kwargs):
        super().__init__(*args, **kwargs)
        self._begin(retrain, quant, weight_bit_width=weight_bit_width,
                    bias_bit_width=bias_bit_width, inter_bit_width=inter_bit_width,
                    acti_bit_width=acti_bit_width)

    def _hardware(self) -> dict:
        config = super()._hardware()
        config["default"]["x"] = "s16 auto:max ties_even sat"  # aligned to w: 32 bits at most
        config["default"]["grad_weight"] = {"acc": "s38"}  # times its factor: 63
        return config | {"by_name": {"*.output": {"y": rule(self.acti_bit_width)}}}

    def forward(self, x):
        return self._left(nn.Adder2d.forward(self, self._entered(x)))


class BatchNorm2d(Quantised, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d at its running statistics, which it never moves: for folding, and after.

    Quantised, gamma and beta have widths and thresholds.
    """

    weight_bit_width, bias_bit_width = Width(), Width()

    def __init__(self, *args, weight_bit_width=8, bias_bit_width=16, retrain=True, quant=False,
                 **kwargs):
        super().__init__(*args, **kwargs)
        self._begin(retrain, quant, weight_bit_width=weight_bit_width,
                    bias_bit_width=bias_bit_width)

    def _hardware(self) -> dict:
        layer = {"x": ERROR, "w": rule(self.weight_bit_width), "b": rule(self.bias_bit_width),
                 "y": WIDE, "error": ERROR, "grad_w": WIDE, "grad_b": WIDE}
        return {"default": layer, "by_type": {"Activation": {**LEAVES, "y": "none"}}}

    def forward(self, x):
        return F.batch_norm(self._entered(x), self.running_mean, self.running_var, self.weight,
                            self.bias, False, 0.0, self.eps)


class _Rectifier(Quantised):
    """A rectifier and the unsigned cast of its activations."""

    acti_bit_width = Width()

    def _hardware(self) -> dict:
        return {"default": LEAVES,
                "by_name": {"*.output": {"y": rule(self.acti_bit_width, signed=False)}}}


class ReLU(_Rectifier, nn.ReLU):
    """torch.nn.ReLU with a width."""

    def __init__(self, inplace: bool = False, acti_bit_width=8, retrain=True, quant=False):
        super().__init__(inplace)
        self._begin(retrain, quant, acti_bit_width=acti_bit_width)

    def forward(self, x):
        return self._left(F.relu(x))


class ReLU6(_Rectifier, nn.ReLU6):
    """torch.nn.ReLU6 with a width."""

    def __init__(self, inplace: bool = False, acti_bit_width=8, retrain=True, quant=False):
        super().__init__(inplace)
        self._begin(retrain, quant, acti_bit_width=acti_bit_width)

    def forward(self, x):
        return self._left(F.relu6(x))


class ShareQuant(Quantised, nn.Identity):
    """The signed cast of one operand of an addition, which another shares."""

    acti_bit_width = Width()

    def __init__(self, acti_bit_width=8, retrain=True, quant=False):
        super().__init__()
        self._begin(retrain, quant, acti_bit_width=acti_bit_width)

    def _hardware(self) -> dict:
        return {"default": LEAVES, "by_name": {"*.output": {"y": rule(self.acti_bit_width)}}}

    def forward(self, x):
        return self._left(x)

    def share(self, other: Quantised) -> None:
        """Have one threshold with another module that casts activations: the larger."""
        mine, theirs = self.acti_log2_t, other.acti_log2_t
        with torch.no_grad():
            mine.copy_(torch.fmax(mine, theirs))
        other._parameters["acti_log2_t"] = mine
