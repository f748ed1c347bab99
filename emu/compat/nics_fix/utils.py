"""Checkpoints with fixed weights, and the exponents of gradient buffers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from emu import nn
from emu.compat.nics_fix.hardware import Scale
from emu.compat.nics_fix.report import FixedMapping
from emu.compat.nics_fix.scope import Scope
from emu.nn.state import KEY
from emu.number import Format
from emu.update import Exponents, buffer_exponents


class Saver:
    """Saves the state of a scope and restores it; see `fixed_model_saver`."""

    def __init__(self, fixed_mapping: FixedMapping, fixed_weight: bool):
        self.mapping, self.fixed_weight = fixed_mapping, fixed_weight

    def save(self, path: str | Path) -> Path:
        """Write the state into a file, which is whole or not there."""
        state, path = self.mapping.scope.state_dict(), Path(path)
        if self.fixed_weight:
            state |= {name: entry["q_data"] for name, entry in self.mapping["weight"].items()}
        temporary = path.with_name(path.name + ".tmp")
        try:
            torch.save(state, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def restore(self, path: str | Path) -> None:
        """Load such a file; the operations must have run once, so that they are there."""
        self.mapping.scope.load_state_dict(torch.load(path, weights_only=True))


def load_from(scope: Scope, state: Mapping) -> None:
    """Give a scope the parameters and scales of another one's `state_dict`: of stage one, say.

    Parameters come onto the grids of this scope's masters, where it has any. The operations must
    have run once. Raises ValueError where they are others.
    """
    try:
        scope.load_state_dict({name: value for name, value in state.items()
                               if isinstance(value, torch.Tensor)})
    except RuntimeError as error:
        raise ValueError(f"scope {scope.name!r}: {str(error).splitlines()[-1].strip()}; load the "
                         "state of the same operations, after they have run once") from None
    for path, layer in nn.layers(scope).items():
        saved = state.get(f"{path}.{KEY}")
        layer.fracs |= saved["hardware"]["layers"][""]["binary_points"] if saved else {}


def fixed_model_saver(fixed_mapping: FixedMapping, fixed_weight: bool = False) -> Saver:
    """A saver of a scope's parameters and scales.

    With `fixed_weight` a weight is stored as the hardware sees it, under its own name.
    """
    return Saver(fixed_mapping, fixed_weight)


def amend_weight_grad_scales(
        learning_rate: float, wg_scales_values_min: Sequence[int],
        wg_scales_values_max: Sequence[int], weight_data_scales: Sequence[int | Scale],
        weight_grad_scales: Sequence[int | Scale], weight_data_bit_widths: Sequence[int],
        weight_grad_bit_widths: Sequence[int], from_min: bool = True, grad_buffer_width: int = 24
        ) -> tuple[list[int], list[int]]:
    """The exponents of gradients and of their buffers, for weights in one order.

    The least and largest exponents of gradients are those seen over some iterations; scales may be
    numbers or those of a fixed mapping, and those of gradients are then assigned. The formula, and
    what of nics_fix is mended in it, is `emu.update.buffer_exponents`. Warns where the learning
    rate is no power of two and is taken as the next one below.
    """
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate {learning_rate}: needs to be above 0")
    mantissa, exponent = math.frexp(learning_rate)
    if mantissa != 0.5:
        warnings.warn(f"learning_rate {learning_rate} is no power of two; the buffers shift by "
                      f"{1 - exponent}, a rate of {2.0 ** (exponent - 1)}", stacklevel=2)
    found: list[Exponents] = []
    for least, largest, data, grad, data_width, grad_width in zip(
            wg_scales_values_min, wg_scales_values_max, weight_data_scales, weight_grad_scales,
            weight_data_bit_widths, weight_grad_bit_widths, strict=True):
        value = data.value if isinstance(data, Scale) else data
        ranges = buffer_exponents((least, largest), Format(data_width, data_width - 1 - value),
                                  grad_width, grad_buffer_width, exponent - 1, from_min)
        if isinstance(grad, Scale):
            grad.assign(ranges.grad)
        found.append(ranges)
    return [each.grad for each in found], [each.buffer for each in found]
