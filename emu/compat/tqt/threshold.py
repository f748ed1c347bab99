"""First thresholds, and the hooks that record what activations are like."""

from __future__ import annotations

import numpy as np
import torch

from emu import nn
from emu.compat.tqt.modules import (
    BatchNorm2d,
    Conv2d,
    Linear,
    Quantised,
    ReLU,
    ReLU6,
)
from emu.nn.calibrate import initial, least_divergence
from emu.value import unknown

ENDS = [Conv2d, Linear, ReLU, BatchNorm2d, ReLU6, torch.nn.Conv2d, torch.nn.Linear, torch.nn.ReLU,
        torch.nn.BatchNorm2d, torch.nn.ReLU6]
ROLES = {"weight": "weight", "bias": "bias", "activation": "acti"}
METHODS = {"max": "max", "3sd": "3sd", "ig": "ig", "entro": "entropy", "entropy": "entropy",
           "entropy_j": "entropy_j"}


def _threshold(role: str, method: str):
    key = ROLES[role]

    def threshold(x, bit_width: int = 8):
        values, module = x, None
        if isinstance(x, torch.nn.Module):
            module, bit_width = x, x.widths[f"{key}_bit_width"]
            values = x.hook_out if key == "acti" else getattr(x, key)
        found = _found(method, key, values, bit_width)
        if module is not None and found is not None:
            _put(module, f"{key}_log2_t", found)
        return torch.tensor([float("nan") if found is None else found])

    threshold.__name__ = threshold.__qualname__ = f"threshold_{role}_{method}"
    threshold.__doc__ = (f"log2_t (1,) of a {role} by `{method}`; of a module's, which then has "
                         "it. NaN for zeros.")
    return threshold


def _found(method: str, role: str, values: torch.Tensor, bits: int) -> float | None:
    return initial(method, role, values.detach().double().numpy().reshape(-1), bits)


def _put(module: torch.nn.Module, name: str, log2_t: float) -> None:
    with torch.no_grad():
        module._parameters[name].fill_(log2_t)


threshold_weight_max, threshold_weight_3sd, threshold_weight_ig = (
    _threshold("weight", method) for method in ("max", "3sd", "ig"))
threshold_bias_max, threshold_bias_3sd, threshold_bias_ig = (
    _threshold("bias", method) for method in ("max", "3sd", "ig"))
threshold_activation_max, threshold_activation_3sd, threshold_activation_ig = (
    _threshold("activation", method) for method in ("max", "3sd", "ig"))


def get_hook(module: torch.nn.Module, args, output) -> None:
    """A forward hook: keep the last output as `hook_out`."""
    module.hook_out = output.detach()


def add_hook(net: torch.nn.Module, name: str = "", hook_handler: list | None = None,
             end_list=tuple(ENDS)) -> list:
    """Let the modules of these types keep their outputs; the handles are added to the list."""
    handles = [] if hook_handler is None else hook_handler
    for module in net.modules():
        if isinstance(module, tuple(end_list)):
            handles.append(module.register_forward_hook(get_hook))
    return handles


def remove_hook(hook_handler: list) -> None:
    """Take the hooks away."""
    for handle in hook_handler:
        handle.remove()
    hook_handler.clear()


def remove_hookout(net: torch.nn.Module) -> None:
    """Forget the outputs that were kept."""
    for module in net.modules():
        vars(module).pop("hook_out", None)


def entropy_calibration(model: torch.nn.Module, qmodel: Quantised, bin_number: int = 2048,
                        cali_number: int = 128, symmetric: bool = False) -> torch.Tensor:
    """The threshold of a quantised module by the least divergence of its float twin's `hook_out`.

    One-sided, or the paper's J if `symmetric`.
    """
    values = model.hook_out.double().numpy().reshape(-1)
    found = least_divergence(values, symmetric, bin_number, cali_number)
    if found:
        _put(qmodel, "acti_log2_t", nn.log2_of(found))
    return torch.tensor([nn.log2_of(found) if found else float("nan")])


def init_network(net: torch.nn.Module, qnet: torch.nn.Module, name: str = "",
                 weight_method: str = "max", bias_method: str = "max", acti_method: str = "entro",
                 bin_number: int = 2048, cali_number: int = 128, show: bool = False) -> None:
    """Set every threshold of a quantised network from its parameters and its float twin's outputs.

    Activations need what `add_hook` made the twin keep. Raises ValueError for an unknown method
    and for a module whose twin kept nothing.
    """
    for method in (weight_method, bias_method, acti_method):
        if method not in METHODS:
            raise unknown("method", method, METHODS)
    twins = dict(net.named_modules())
    for path, module in qnet.named_modules():
        if not isinstance(module, Quantised):
            continue
        for key, method in (("weight", weight_method), ("bias", bias_method)):
            values = getattr(module, key, None)
            if values is not None and f"{key}_log2_t" in module._parameters:
                found = _found(METHODS[method], key, values, module.widths[f"{key}_bit_width"])
                if found is not None:
                    _put(module, f"{key}_log2_t", found)
        if "acti_log2_t" in module._parameters:
            _activation(path, module, twins.get(path), METHODS[acti_method], bin_number,
                        cali_number)
        if show:
            print(name, path, {key: p.tolist() for key, p in module._parameters.items()
                               if key.endswith("_log2_t")})


def _activation(path: str, module: Quantised, twin, method: str, bins: int, groups: int) -> None:
    values = getattr(twin, "hook_out", None)
    if values is None:
        raise ValueError(f"{path}: the float network kept no output of it; call add_hook on that "
                         "network, run a batch, then init_network")
    if method.startswith("entropy"):
        entropy_calibration(twin, module, bins, groups, method == "entropy_j")
        return
    found = _found(method, "acti", values, module.acti_bit_width)
    if found is not None and np.isfinite(found):
        _put(module, "acti_log2_t", found)
