"""Strategies that come with emu: noise, the range of a gradient buffer, and the buffer itself."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partialmethod

import numpy as np
import torch

from emu import engine
from emu.nn import border
from emu.nn.config import Site
from emu.nn.strategy import Strategy
from emu.number import Cast, Format, Overflow, Rounding
from emu.spec import LayerSpec
from emu.update import BufferSpec
from emu.value import check_keys, unknown

PARTS = ("data_config", "gradient_config")


class NoiseStrategy(Strategy):
    """Adds noise before or after casts: of `weight` or `activation`, their data or gradients.

        {name: noise_strategy, weight: {data_config: {pre: {type: uniform_ratio, max: 1}}}}

    `uniform` adds numbers from `min` to `max` (-0.5 and 0.5), `uniform_ratio` such numbers of
    steps of the cast, `none` nothing. What is added after a cast is cast again, so less than what
    its rounding tells apart is lost.
    """

    __registry_name__ = "noise_strategy"
    TYPES = ("none", "uniform", "uniform_ratio")

    def __init__(self, site: Site, spec: LayerSpec, weight: Mapping | None = None,
                 activation: Mapping | None = None):
        super().__init__(site, spec)
        self.noises = {f"{when}_{role}{grad}": self._parse(site, role, given, part, when)
                       for role, given in (("weight", weight), ("activation", activation))
                       for part, grad in zip(PARTS, ("", "_grad"), strict=True)
                       for when in ("pre", "post")}

    def _parse(self, site: Site, role: str, given: Mapping | None, part: str, when: str
               ) -> tuple[str, float, float]:
        """(type, min, max) of one hook."""
        where = f"layer {site.path!r}: noise {role}"
        check_keys(given or {}, PARTS, where)
        check_keys((given or {}).get(part) or {}, ("pre", "post"), f"{where}.{part}")
        noise = ((given or {}).get(part) or {}).get(when) or {}
        check_keys(noise, ("type", "min", "max"), f"{where}.{part}.{when}")
        kind, low, high = noise.get("type", "none"), noise.get("min", -0.5), noise.get("max", 0.5)
        if kind not in self.TYPES:
            raise unknown(f"noise {role}.{part}.{when} type", kind, self.TYPES)
        if not low <= high:
            raise ValueError(f"{where}.{part}.{when}: min {low} is above max {high}")
        return kind, low, high

    def _noisy(self, hook: str, tensor: torch.Tensor, scale: int) -> torch.Tensor:
        kind, low, high = self.noises[hook]
        if kind == "none":
            return tensor
        step = self.call.form.step if kind == "uniform_ratio" else 1.0
        noise = self.call.generator().uniform(low, high, tuple(tensor.shape)) * step
        return tensor + torch.from_numpy(np.asarray(noise))

    pre_weight = partialmethod(_noisy, "pre_weight")
    post_weight = partialmethod(_noisy, "post_weight")
    pre_activation = partialmethod(_noisy, "pre_activation")
    post_activation = partialmethod(_noisy, "post_activation")
    pre_weight_grad = partialmethod(_noisy, "pre_weight_grad")
    post_weight_grad = partialmethod(_noisy, "post_weight_grad")
    pre_activation_grad = partialmethod(_noisy, "pre_activation_grad")
    post_activation_grad = partialmethod(_noisy, "post_activation_grad")


class WeightGradSaver(Strategy):
    """Each gradient of a weight, on the grid of a buffer of `bit_width` and the range 2^scale.

    It rounds and limits each gradient and adds nothing up: the buffer that does is
    `AccumulationStrategy`.
    """

    __registry_name__ = "weightgradsaver_strategy"

    def __init__(self, site: Site, spec: LayerSpec, scale: int = 0, bit_width: int = 24):
        super().__init__(site, spec)
        self.to = Cast(Format(bit_width, bit_width - 1 - scale), Rounding.TIES_EVEN, Overflow.SAT)

    def post_weight_grad(self, tensor, scale):
        found = engine.quantize(tensor.numpy(), self.to)
        return border.to_tensor(found, self.to.format, tensor.dtype, "the gradient's buffer")


class AccumulationStrategy(Strategy):
    """Updates the layer through an integer buffer that adds gradients up and keeps what remains.

    `update` has the casts of an `emu.BufferSpec`: weight, buffer and grad.
    """

    __registry_name__ = "accumulation_strategy"

    def __init__(self, site: Site, spec: LayerSpec, update: Mapping | str):
        super().__init__(site, spec)
        self.buffer = BufferSpec.parse(update)

    def update(self, update):
        return self.buffer
