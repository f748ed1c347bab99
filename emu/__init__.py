"""Bit-exact emulation of fixed-point MAC hardware: formats, casts, MACs and what they compute.

`emu.nn` trains networks on that hardware and needs torch; nothing else here does.
"""

import importlib

from emu.affine import Rescale, multiplier_and_shift
from emu.kind import ClosedCast, FlagCast
from emu.norm import NormGradSpec, NormSpec, RunningSpec
from emu.number import Cast, Format, Overflow, Rounding
from emu.rule import Rule
from emu.spec import LayerSpec, MacSpec
from emu.table import SoftmaxSpec, Table
from emu.update import BufferSpec, UpdateSpec

__version__ = "0.1.0"

# Imported on first use, as numba takes longer to load than everything else together.
_ENGINE = ("batch_norm", "batch_norm_grad", "cast", "conv2d", "conv2d_grad_input",
           "conv2d_grad_weight", "cross_entropy", "dequantize", "frozen_norm", "load_words",
           "lookup", "matmul", "monitor", "norm_statistics", "passes", "quantize",
           "random_operands", "rescale", "running_norm", "softmax")
_MODULES = ("bounds", "cosim", "engine", "golden", "lab", "nn", "reference")

__all__ = [  # noqa: PLE0604 (the lazy names are strings too)
    "BufferSpec", "Cast", "ClosedCast", "FlagCast", "Format", "LayerSpec", "MacSpec",
    "NormGradSpec", "NormSpec", "Overflow", "Rescale", "Rounding", "Rule", "RunningSpec",
    "SoftmaxSpec", "Table", "UpdateSpec", "multiplier_and_shift", *_ENGINE, *_MODULES,
    "fixed_scope", "presets"]


def __getattr__(name: str):
    if name in _ENGINE:
        found = globals()[name] = getattr(importlib.import_module("emu.engine"), name)
        return found
    if name == "fixed_scope":
        return importlib.import_module("emu.nn").fixed_scope
    if name == "presets":
        return importlib.import_module("emu.preset").presets
    if name in _MODULES:
        return importlib.import_module(f"emu.{name}")
    raise AttributeError(f"module 'emu' has no attribute {name!r}")
