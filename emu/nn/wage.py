"""WAGE: what depends on a layer's size. Initial weights, and the shift that replaces batch norm.

Wu et al., "Training and Inference with Integers in Deep Neural Networks" (arXiv 1802.04680, section
3.2); boluoweifenda/WAGE, `myInitializer.py` and `Quantize.py`. Here L = sqrt(3 / fan_in), as there;
the paper has sqrt(6 / fan_in).
"""

from __future__ import annotations

import math

import torch

from emu.nn.config import Config, Site
from emu.rule import Rule
from emu.value import unknown


def fan_in(weight: torch.Tensor) -> int:
    """The inputs of one output of a weight (out, in, ...)."""
    return math.prod(weight.shape[1:])


def alpha_shift(inputs: int, width: int) -> int:
    """log2 of WAGE's alpha = max(2^round(log2(Wm / L)), 1), Wm = 1.5 * 2^(1 - width).

    By squares: (Wm / L)^2 = 3/4 * inputs * 4^(1 - width) against 2^(2k + 1), which 3 does not
    divide, so nothing is a tie.

    >>> alpha_shift(25, 2), alpha_shift(1, 2), alpha_shift(3200, 2)
    (1, 0, 5)
    """
    k = 0
    while 3 * inputs > 1 << 2 * (k + width) + 1:
        k += 1
    return k


def with_alpha(config: Config, model: torch.nn.Module) -> Config:
    """The configuration whose weights with a constant binary point are read at each layer's shift.

    The codes of a layer's weights stay as they are; the layer's results are shifted.
    """
    by_name = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        kind = next((base.__name__ for base in type(module).__mro__
                     if base.__module__.startswith("torch.nn.modules")), "")
        rule = config.resolve(Site(name, kind, ("w",))).w
        if (isinstance(weight, torch.Tensor) and isinstance(rule, Rule)
                and rule.constant is not None):
            frac = rule.constant + alpha_shift(fan_in(weight), rule.width)
            words = str(rule).split()
            words[1] = f"f{rule.constant}=f{frac}"
            by_name[name] = {"w": " ".join(words)}
    dumped = config.dump()
    for name, settings in dumped.get("by_name", {}).items():
        by_name[name] = by_name.get(name, {}) | settings
    return Config.parse(dumped | {"by_name": by_name})


def _wage(weight: torch.Tensor) -> None:
    """U(-m, m) for m = max(sqrt(3 / fan_in), 0.75): half the codes of two bits are not 0."""
    most = max(math.sqrt(3 / fan_in(weight)), 0.75)
    weight.uniform_(-most, most).clamp_(-1, 1)


def _wageubn(weight: torch.Tensor) -> None:
    """A normal distribution of deviation 1 / sqrt(fan_in), cut at two deviations, on 2^-15."""
    deviation = 1 / math.sqrt(fan_in(weight))
    torch.nn.init.trunc_normal_(weight, 0, deviation, -2 * deviation, 2 * deviation)
    weight.mul_(2.0**15).round_().mul_(2.0**-15)


INITS = {"wage": _wage, "wageubn": _wageubn}


@torch.no_grad()
def initialise(model: torch.nn.Module, how: str) -> None:
    """Give the weights of a float model that are matrices or kernels their initial values."""
    if how not in INITS:
        raise unknown("initialisation", how, INITS)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            INITS[how](parameter)
