"""How alike a network and its quantised twin are."""

from __future__ import annotations

import torch

from emu import nn
from emu.compat.tqt.modules import Quantised
from emu.compat.tqt.quantise import qsigned
from emu.nn.calibrate import initial


def cosine_similarity(net: torch.nn.Module, qnet: torch.nn.Module, wba=(8, 16, 8)
                      ) -> dict[str, float]:
    """The cosine between each parameter of `net` and its quantised value, by name.

    By the thresholds of `qnet` where they are set and by the largest value elsewhere, at `wba`
    bits for weights, biases and (where modules kept a `hook_out`) activations.
    """
    found = {}
    twins = dict(qnet.named_modules())
    for path, module in net.named_modules():
        kept = [("weight", getattr(module, "weight", None), wba[0]),
                ("bias", getattr(module, "bias", None), wba[1]),
                ("acti", getattr(module, "hook_out", None), wba[2])]
        for key, values, bits in kept:
            twin = twins.get(path)
            if isinstance(values, torch.Tensor) and isinstance(twin, Quantised):
                found[f"{path}.{key}"] = _cosine(values.detach(), twin, key, bits)
    return found


def _cosine(values: torch.Tensor, twin: Quantised, key: str, bits: int) -> float:
    log2_t = twin._parameters.get(f"{key}_log2_t", torch.tensor([float("nan")])).detach()
    if torch.isnan(log2_t).any():
        chosen = initial("max", key, values.double().numpy(), bits)
        log2_t = torch.tensor([0.0 if chosen is None else chosen])
    return nn.Similarity.of(values, qsigned(values, log2_t, bits)).cosine


def kl_similarity(net: torch.nn.Module, qnet: torch.nn.Module, batch: torch.Tensor
                  ) -> dict[str, float]:
    """KL of the outputs of each module of `net` against those of `qnet`, for a batch."""
    return {path: each.kl for path, each in nn.compare_outputs(net, qnet, batch).items()}
