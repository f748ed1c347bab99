"""Quantisation of one tensor: `quantize_cfg` and `quantize` of nics_fix_pt 0.4.0, mended.

A datum's configuration is a dict: `method` (FIX_NONE, FIX_AUTO or FIX_FIXED), `scale` (a tensor:
the bound R of [-R, R], or [min, max]), `bitwidth` (1 to 32), and optionally `range_method`,
`stochastic`, `float_scale`, `zero_point` (True, or "integer"), `group` ("batch", "channel"). New
here: `range` ("closed" as there, "twos_complement", "narrow"), `seed` of stochastic rounding, and
`reestimate`, which brings back that FIX_FIXED with float_scale chooses its range again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext

import torch

from emu.compat.nics_fix_pt import grids, ranges
from emu.compat.nics_fix_pt.consts import QuantizeMethod, RangeMethod
from emu.compat.nics_fix_pt.grids import Grid
from emu.nn.audit import host

__all__ = ["quantize"]

KEYS = ("method", "scale", "bitwidth", "range_method", "stochastic", "float_scale", "zero_point",
        "group", "range", "seed", "reestimate")
BITS = range(1, 33)
NOTHING = nullcontext()


def get_int(value) -> int:
    """The int of a number, or of a tensor of one element, of any rank."""
    return value if type(value) is int else int(value.item() if hasattr(value, "item") else value)


def active(cfg: Mapping) -> bool:
    """Whether a configuration quantises anything."""
    return bool(cfg) and get_int(cfg.get("method", 0)) != QuantizeMethod.FIX_NONE


def grid_of(data: torch.Tensor, scale, bitwidth, method, range_method=RangeMethod.RANGE_MAX,
            stochastic=False, float_scale=False, zero_point=False, group=False, *, range="closed",
            seed=None, reestimate=False, name="data") -> Grid:
    """The grid of a tensor; FIX_AUTO writes the range that it chooses into `scale`.

    Raises ValueError naming `name` for a method that there is not, bits outside 1 to 32, and a
    FIX_FIXED scale that is unset or of another shape.
    """
    method, bits, range_method = get_int(method), get_int(bitwidth), get_int(range_method)
    if method not in (QuantizeMethod.FIX_AUTO, QuantizeMethod.FIX_FIXED):
        raise ValueError(f"{name}: method {method} is not legal; write FIX_NONE (0), FIX_AUTO (1) "
                         "or FIX_FIXED (2)")
    if bits not in BITS:
        raise ValueError(f"{name}: bitwidth {bits}; a datum has 1 to 32 bits")
    axis = ranges.group_axis(group, data)
    auto = method == QuantizeMethod.FIX_AUTO or (float_scale and (
        reestimate or not ranges.is_set(scale, bool(zero_point))))
    if zero_point:
        grid = _affine_grid(data, scale, bits, range_method, float_scale, zero_point, axis, auto,
                            name)
    else:
        if auto:
            bound = ranges.chosen(data, bits, range_method, bool(float_scale), name, axis)
            ranges.store(scale, bound)
        else:
            bound = ranges.stored(scale, None if axis is None else data.shape[axis], False, name)
        if axis is not None:
            bound = bound.to(data.device, torch.float32).reshape(_beside(axis))
        elif math.frexp(bound)[0] != 0.5:  # a tensor: devices divide by a number in other ways
            bound = torch.tensor(bound, device=data.device)
        grid = grids.symmetric(bound, bits, range)
        if auto and range == "closed" and range_method == RangeMethod.RANGE_MAX:
            grid = grid._replace(clips=False)
    if stochastic:
        grid = grid._replace(rand=grids.dither(
            data.shape, grids.new_seed() if seed is None else get_int(seed)))
    return grid


def step_of(grid: Grid, data: torch.Tensor) -> torch.Tensor:
    """The step of a grid as a tensor (1,), or one a group beside the data."""
    step = torch.as_tensor(grid.step, device=data.device).to(data.dtype)
    return step.reshape(1) if step.dim() == 0 else step


def _affine_grid(data, scale, bits, range_method, float_scale, zero_point, axis, auto, name
                 ) -> Grid:
    """That of a range [min, max]: as there, or with an integer zero point."""
    if auto and range_method != RangeMethod.RANGE_MAX:
        raise NotImplementedError(f"{name}: zero_point takes RANGE_MAX alone; its range is "
                                  "[min, max]")
    whole = zero_point == "integer" or not float_scale
    if zero_point not in (True, "integer"):
        raise ValueError(f"{name}: zero_point {zero_point!r}; write False, True or 'integer'")
    if auto:
        ends = ranges.ends(data, name, axis)
        if whole:
            ends = grids.integer_ends(ends, bits, pow2=not float_scale)
        ranges.store(scale, ends)
    else:
        ends = ranges.stored(scale, None if axis is None else data.shape[axis], True, name)
    ends = ends.to(data.device)
    if axis is not None:
        ends = ends.reshape(2, *_beside(axis))
    return grids.integer(ends, bits) if whole else grids.affine(ends, bits)


def _beside(axis: int) -> list[int]:
    """The shape in which a value a group stands beside data (N, C, H, W)."""
    return [-1 if i == axis else 1 for i in range(4)]


def quantize_cfg(data: torch.Tensor, scale, bitwidth, method, range_method=RangeMethod.RANGE_MAX,
                 stochastic=False, float_scale=False, zero_point=False, group=False, **more
                 ) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(the tensor quantised, its step); (data itself, None) for FIX_NONE.

    The step has shape (1,), or one a group beside the data. Gradients go straight through where the
    rounded value is inside the range. For `more` see the module and `grid_of`.
    """
    if get_int(method) == QuantizeMethod.FIX_NONE:
        return data, None
    with torch._C.DisableTorchFunction():
        grid = grid_of(data.detach(), scale, bitwidth, method, range_method, stochastic,
                       float_scale, zero_point, group, **more)
    return _through(data, grid, None)[0], step_of(grid, data)


def _do_quantize(data: torch.Tensor, scale, bit_width, symmetric: bool = True,
                 stochastic: bool = False, group=False) -> tuple[torch.Tensor, torch.Tensor]:
    """(the tensor quantised, its step) for a range that is given: R, or the ends where not
    `symmetric`.
    """
    return quantize_cfg(data, scale, bit_width, QuantizeMethod.FIX_FIXED, stochastic=stochastic,
                        float_scale=not symmetric, zero_point=not symmetric, group=group)


def _through(data: torch.Tensor, grid: Grid | None, change) -> tuple[torch.Tensor, int]:
    """The tensor on a grid, with the gradient of it; and how many codes clipped above."""
    if grid is None and change is None:
        return data, 0
    wanted = data.requires_grad and torch.is_grad_enabled()
    # In a scope of emu.nn these operations are no call of the hardware's table.
    with torch._C.DisableTorchFunction():
        out, passes, clipped = (None, None, 0) if grid is None else grids.put(
            data.detach(), grid, wanted)
        if not wanted:
            return data if out is None else out, clipped
        return grids.Fixed.apply(data, out, passes, change), clipped


def quantize(param: torch.Tensor, fix_cfg: Mapping = {}, fix_grad_cfg: Mapping = {},
             kwarg_cfg: Mapping = {}, name: str = "", counts: Counter | None = None
             ) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(a tensor with its data, and in backward its gradient, quantised; the step of the data).

    `kwarg_cfg[name + "_fix"]` and `kwarg_cfg[name + "_grad_fix"]` override the configurations for
    this call. The result has `data_cfg` and `grad_cfg`, what held for it, and, where it is another
    tensor, `nfp_actual_data`, which is `param`. `counts[name]` (and `name + "_grad"`) grow by the
    codes that two's complement clips where the closed range would not. The step is None where the
    data are left as they are.
    """
    out, grid = fixed(param, {**fix_cfg, **kwarg_cfg.get(f"{name}_fix", {})},
                      {**fix_grad_cfg, **kwarg_cfg.get(f"{name}_grad_fix", {})}, name, counts)
    return out, None if grid is None else step_of(grid, param)


def fixed(param: torch.Tensor, data_cfg: dict, grad_cfg: dict, name: str, counts: Counter | None
          ) -> tuple[torch.Tensor, Grid | None]:
    """`quantize` by two configurations, with the grid instead of the step."""
    grid = change = None
    exact = "mac" in data_cfg or "mac" in grad_cfg  # by powers of two: no sum that may round
    with host() if exact else NOTHING:
        if active(data_cfg):
            with torch._C.DisableTorchFunction():
                grid = grid_of(param.detach(), **_settings(data_cfg, name))
        if active(grad_cfg):
            change = _Change(_settings(grad_cfg, f"{name}_grad"), counts, exact)
        out, clipped = _through(param, grid, change)
    if clipped and counts is not None:
        counts[name] += clipped
    out.data_cfg, out.grad_cfg = data_cfg, grad_cfg
    if out is not param:
        out.nfp_actual_data = param
    return out, grid


def _settings(cfg: Mapping, name: str) -> dict:
    """A configuration as arguments of `grid_of`; raises ValueError where one is missing."""
    for key in ("scale", "bitwidth"):
        if key not in cfg:
            raise ValueError(f"{name}: its configuration has a method and no {key}; "
                             "_generate_default_fix_cfg makes whole ones")
    found = {key: value for key, value in cfg.items() if key != "mac"}
    found["name"] = name or "data"
    return found


class _Change:
    """What quantises a gradient; it reads its settings when the gradient comes."""

    def __init__(self, settings: dict, counts: Counter | None = None, exact: bool = False):
        self.settings, self.counts, self.exact = settings, counts, exact

    def __call__(self, grad: torch.Tensor) -> torch.Tensor:
        if get_int(self.settings["method"]) == QuantizeMethod.FIX_NONE:
            return grad
        with host() if self.exact else NOTHING:
            grid = grid_of(grad, **self.settings)
            out, _, clipped = grids.put(grad, grid, False)
        if clipped and self.counts is not None:
            self.counts[self.settings["name"]] += clipped
        return out


class StraightThroughRound:
    """Rounding to the nearest integer, ties to even, whose gradient is the identity."""

    @staticmethod
    def apply(x: torch.Tensor) -> torch.Tensor:
        """The rounded tensor."""
        return _rounded(x, x.detach().round())


class StraightThroughStochasticRound:
    """Rounding up as often as the fraction says, whose gradient is the identity."""

    @staticmethod
    def apply(x: torch.Tensor, seed: int | None = None) -> torch.Tensor:
        """The rounded tensor; `seed` loads the LFSRs, None takes one from torch's generator."""
        rand = grids.dither(x.shape, grids.new_seed() if seed is None else seed)
        return _rounded(x, grids.codes_of(x.detach(), grids.symmetric(
            2.0**31, 32)._replace(rand=rand)))


def _rounded(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    return grids.Fixed.apply(x, out, None, None)


class QuantitizeGradient:
    """The identity, whose gradient is quantised."""

    @staticmethod
    def apply(x: torch.Tensor, scale, bitwidth, method, range_method=RangeMethod.RANGE_MAX,
              stochastic=False, float_scale=False, zero_point=False, group=False, **more
              ) -> torch.Tensor:
        """The tensor; the arguments are those of `quantize_cfg`, for its gradient."""
        settings = {"scale": scale, "bitwidth": bitwidth, "method": method,
                    "range_method": range_method, "stochastic": stochastic,
                    "float_scale": float_scale, "zero_point": zero_point, "group": group, **more}
        return _through(x, None, _Change(settings))[0]


def zero_point_codes(data: torch.Tensor, scale, bitwidth) -> tuple[torch.Tensor, float, int]:
    """(int64 codes, step, zero point) of a tensor by its integer zero point.

    value = (code - zero) * step. `scale` is the range that FIX_AUTO with `zero_point: "integer"`
    (or True without float_scale) has written. The codes are signed; a MAC takes code - zero.
    """
    bits = get_int(bitwidth)
    grid = grids.integer(ranges.stored(scale, None, True, "scale").to(data.device), bits)
    codes = grids.codes_of(data.detach(), grid).clamp(grid.low, grid.high).long()
    return codes, float(grid.step), int(grid.zero)


# The spellings of nics_fix_pt before 0.4.0, which its README still has.
quantitize, quantitize_cfg, _do_quantitize = quantize, quantize_cfg, _do_quantize
