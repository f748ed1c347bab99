"""How far a fixed model is from its float twin: similarities of outputs and of parameters.

Floats on the host; nothing here is hardware.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from emu.nn.audit import host
from emu.nn.border import rounded
from emu.nn.modules import FixedModule, layers

BINS, TINY = 256, 1e-12  # of the histograms whose divergence is taken, and the least probability


class Similarity(NamedTuple):
    """Of two tensors: the cosine of their angle (1: the same direction), and KL(a || b).

    The divergence is that of the histograms of their values over their common range.
    """

    cosine: float
    kl: float

    @classmethod
    def of(cls, a: torch.Tensor, b: torch.Tensor) -> Similarity:
        """The similarity of two tensors of one shape; two zeros are the same direction."""
        with host():
            a, b = (x.detach().double().flatten() for x in (a, b))
            lengths = a.norm() * b.norm()
            cosine = float(a @ b / lengths) if lengths else float(torch.equal(a, b))
            low, high = (float(f([f(a), f(b)])) for f in (min, max))
            p, q = (np.histogram(x.numpy(), BINS, (low, max(high, low + TINY)))[0] for x in (a, b))
            p, q = (np.maximum(x / max(x.sum(), 1), TINY) for x in (p, q))
            return cls(cosine, float((p * np.log(p / q)).sum()))


def compare_outputs(model: torch.nn.Module, fixed: torch.nn.Module, *inputs
                    ) -> dict[str, Similarity]:
    """The outputs of each module without children, by path, of a float model and its fixed twin.

    Both run the inputs as they are (in the mode they are in). Modules that give no tensor, or that
    only one of them has, are left out.
    """
    seen = [_outputs(each, inputs) for each in (model, fixed)]
    return {path: Similarity.of(x, seen[1][path]) for path, x in seen[0].items()
            if path in seen[1] and x.shape == seen[1][path].shape}


def _outputs(model: torch.nn.Module, inputs) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}

    def keep(path):
        def hook(module, args, output):
            if isinstance(output, torch.Tensor):
                found[path] = output.detach()
        return hook

    handles = [module.register_forward_hook(keep(path)) for path, module in model.named_modules()
               if not any(True for _ in module.children())]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def compare_parameters(fixed: torch.nn.Module) -> dict[str, Similarity]:
    """Each weight and bias of a fixed model and the operand that its layer casts it to, by name."""
    found, modules = {}, dict(fixed.named_modules())
    for path, layer in layers(fixed).items():
        module = modules.get(path)
        for name, operand in (("weight", "w"), ("bias", "b")):
            parameter = getattr(module, name, None)
            if (isinstance(module, FixedModule) and parameter is not None
                    and layer.cast_of(operand, False) is not None):
                entered = layer.enter(operand, parameter, False)
                found[f"{path}.{name}"] = Similarity.of(parameter, rounded(
                    entered.codes, entered.form, torch.float64))
    return found
