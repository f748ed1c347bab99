"""Configurations of data as tensors, which modules hold, and as plain values, which files hold."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from emu.compat.nics_fix_pt.quant import KEYS
from emu.value import unknown

KNOWN = (*KEYS, "mac")


def check(configs, what: str) -> None:
    """Raise unless these are the configurations of a module by name: dicts with known keys."""
    assert isinstance(configs, dict), (
        f"{what} {configs!r}: needs a dict of a configuration for each parameter or buffer; "
        "_generate_default_fix_cfg makes one")
    for name, cfg in configs.items():
        if not isinstance(cfg, Mapping):
            raise ValueError(f"{what}: {name!r} has {cfg!r}; a configuration is a dict with "
                             "method, scale and bitwidth")
        for key in cfg:
            if key not in KNOWN:
                raise unknown(f"{what} key of {name!r}", key, KNOWN)


def scale_tensor(scale) -> torch.Tensor:
    """A scale as a float tensor of rank 1 at least; a tensor is changed in place and kept."""
    if not isinstance(scale, torch.Tensor):
        return torch.as_tensor(scale, dtype=torch.float32).reshape(-1 if not isinstance(
            scale, list | tuple) else torch.as_tensor(scale).shape)
    if scale.dim() == 0 or not scale.is_floating_point():
        value = scale.data if scale.is_floating_point() else scale.data.float()
        scale.data = value.reshape(1) if value.dim() == 0 else value
    return scale


def plain(value):
    """A configuration as what YAML and JSON keep, without loss: numbers, lists, texts.

    A scale of one element is a float, every other tensor of one element an int.
    """
    if isinstance(value, Mapping):
        return {str(key): _plain_item(key, item) for key, item in value.items()}
    return _plain_item("", value)


def _plain_item(key, value):
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return value.item() if value.numel() == 1 and value.dim() < 2 else value.tolist()
    if isinstance(value, Mapping) and key != "mac":
        return plain(value)
    if value is None or isinstance(value, bool | int | float | str | list):
        return value
    return value.item() if hasattr(value, "item") else str(value)


def write(cfg: dict, values: Mapping) -> None:
    """Bring a datum's configuration to plain values, in the tensors that it has.

    Those of a kind keep their dtype; `scale` takes any shape, and a tensor where it has none.
    """
    for key, value in values.items():
        old = cfg.get(key)
        if key == "scale":
            new = scale_tensor(value if not isinstance(value, torch.Tensor) else value.clone())
            if isinstance(old, torch.Tensor):
                old = scale_tensor(old)
                old.data = new.to(old.device, old.dtype)
            else:
                cfg[key] = new
        elif isinstance(old, torch.Tensor) and value is not None:
            old.data.fill_(value.item() if isinstance(value, torch.Tensor) else value)
        else:
            cfg[key] = value.item() if isinstance(value, torch.Tensor) else value
