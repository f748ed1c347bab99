"""The fix modules that are no torch module with a suffix: activations, folded batch norm."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F

from emu.compat.nics_fix_pt.hardware import mac_of
from emu.compat.nics_fix_pt.modules import FixModule
from emu.compat.nics_fix_pt.shadow import called


class Activation_fix(FixModule):
    """Quantises what passes, and in backward its gradient, by the configuration `activation`.

    `activation` is the last output.
    """

    results = ("activation",)

    def forward(self, inputs):
        """The input, a tensor or a dict with "inputs" and overrides, quantised."""
        inputs, overrides = called(inputs)
        mac = mac_of(self.nf_fix_params)
        out = self.quantized("activation", inputs, overrides, mac is not None)
        self.__dict__["activation"] = out
        return out


class ConvBN_fix(FixModule):
    """A convolution and the batch norm after it, trained as the one layer they fold into.

        weight' = Q(weight * gamma / sqrt(var + eps));  bias' = Q(beta - mean * gamma / sqrt(...))

    by the configurations `weight` and `bias`, whose gradients stay float. mean and var are those of
    the batch in training, var without Bessel's correction as a batch norm has it, and the running
    ones in evaluation. After a forward `weight` and `bias` are the folded tensors.
    """

    results = ("weight", "bias")

    def __init__(self, in_channels: int, out_channels: int, kernel_size=3, stride=1, padding=0,
                 dilation=1, groups: int = 1, eps: float = 1e-5, momentum: float | None = 0.1,
                 affine: bool = True, track_running_stats: bool = True, **kwargs):
        super().__init__(**kwargs)
        if self.nf_fix_params_grad:
            warnings.warn("ConvBN_fix: nf_fix_params_grad is not used; the gradients of the folded "
                          "weight and bias stay float", stacklevel=2)
        self.conv = torch.nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding,
                                    dilation, groups, bias=False)
        self.bn = torch.nn.BatchNorm2d(out_channels, eps, momentum, affine, track_running_stats)
        self.weight, self.bias = self.conv.weight, self.bn.bias

    def folded(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight and the bias before they are quantised; training moves the running ones."""
        bn = self.bn
        if self.training or bn.running_mean is None:
            out = self.conv(inputs)
            with torch.no_grad():
                bn(out)
            var, mean = torch.var_mean(out, (0, 2, 3), correction=0)
        else:
            mean, var = bn.running_mean, bn.running_var
        factor = (var + bn.eps).rsqrt()
        if bn.affine:
            factor = factor * bn.weight
        shift = -mean * factor
        return (self.conv.weight * factor.reshape(-1, 1, 1, 1),
                shift if bn.bias is None else bn.bias + shift)

    def forward(self, inputs):
        """The convolution by the folded weight and bias."""
        inputs, overrides = called(inputs)
        mac, data = self.mac(overrides), {}
        for name, tensor in zip(self.results, self.folded(inputs), strict=True):
            self.__dict__[name] = data[name] = self.quantized(name, tensor, overrides,
                                                              mac is not None)
        geometry = self.conv.stride, self.conv.padding, self.conv.dilation, self.conv.groups
        if mac is None:
            return F.conv2d(inputs, *data.values(), *geometry)
        binding = self.binding(torch.nn.Conv2d)
        binding.ready(mac, inputs, data, self.nf_clipped)
        return binding.run(self, F.conv2d, inputs, *data.values(), *geometry)
