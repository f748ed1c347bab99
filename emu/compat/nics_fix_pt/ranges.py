"""How large the values of a tensor are taken to be: chosen from it, or read from its scale.

A range is the bound R of [-R, R], or the ends [min, max] of an affine one; with groups there is one
for each. A power of two is found from the exponent of a float, never by a logarithm, so it is exact
on every device.
"""

from __future__ import annotations

import math

import torch

from emu.compat.nics_fix_pt.consts import RangeMethod

EPS = float(torch.tensor(1e-5))  # the least magnitude that counts: a zero tensor has R = 2^-16
GROUPS = {"batch": 0, "channel": 1}  # the axis that each group of four-dimensional data has


def group_axis(group, data: torch.Tensor) -> int | None:
    """The axis of the groups, None for one range; raises ValueError for an unknown word."""
    if not group or group == "none":
        return None
    if group not in GROUPS:
        raise ValueError(f"group {group!r}: write False, 'batch' or 'channel'")
    return GROUPS[group] if data.dim() == 4 else None


def power_of_two(bound: float) -> float:
    """The least power of two that is no less than `bound` > 0."""
    mantissa, exponent = math.frexp(bound)
    return math.ldexp(1.0, exponent - (mantissa == 0.5))


def powers_of_two(bounds: torch.Tensor) -> torch.Tensor:
    """`power_of_two` of each; a quotient by the mantissa is that power itself, so it is exact."""
    mantissa, _ = torch.frexp(bounds)
    return torch.where(mantissa == 0.5, bounds, bounds / mantissa)


def largest(data: torch.Tensor, name: str) -> float:
    """max |x|; raises ValueError where that is not finite."""
    low, high = torch.aminmax(data)
    found = max(-float(low), float(high))
    if not math.isfinite(found):
        raise ValueError(f"{name}: has values that are not finite, from which no range can be "
                         "chosen; a lower learning rate, or FIX_FIXED, which saturates them")
    return found


def chosen(data: torch.Tensor, bits: int, range_method: int, float_scale: bool, name: str,
           axis: int | None = None) -> float | torch.Tensor:
    """The bound R (float) of a tensor, or those (G,) of its groups along `axis`.

    Source: the statistics of nics_fix_pt 0.4.0 (`quant.py`), with RANGE_MAX_TENPERCENT and
    RANGE_SWEEP as they were meant. Raises ValueError for values that are not finite, and
    NotImplementedError for a method that there is not.
    """
    if not data.numel():
        return EPS if float_scale else power_of_two(EPS)
    if range_method not in STATISTICS:
        raise NotImplementedError(f"{name}: range_method {range_method!r}; write one of "
                                  "RangeMethod")
    if float_scale and range_method != RangeMethod.RANGE_MAX:
        raise NotImplementedError(f"{name}: float_scale takes RANGE_MAX alone; leave float_scale "
                                  "out, or choose by RANGE_MAX")
    most = largest(data, name)
    if axis is None and range_method == RangeMethod.RANGE_MAX:
        bound = max(most, EPS)
        return bound if float_scale else power_of_two(bound)
    rows = data.reshape(1, -1) if axis is None else data.transpose(0, axis).flatten(1)
    bounds = STATISTICS[range_method](rows.double(), bits)
    if not float_scale:
        bounds = powers_of_two(bounds)
    return float(bounds) if axis is None else bounds


def _max(rows: torch.Tensor, bits: int) -> torch.Tensor:
    return rows.abs().amax(1).clamp(min=EPS)


def _three_sigma(rows: torch.Tensor, bits: int) -> torch.Tensor:
    """|mean| and three deviations of a sample; one value has none."""
    deviation = rows.std(1) if rows.shape[1] > 1 else torch.zeros_like(rows[:, 0])
    return (3 * deviation + rows.mean(1).abs()).clamp(min=EPS)


def _ten_percent(rows: torch.Tensor, bits: int) -> torch.Tensor:
    """The k-th largest magnitude, k a tenth of them all and at least the first."""
    n = rows.shape[1]
    return rows.abs().kthvalue(n + 1 - max(1, n // 10), 1).values.clamp(min=EPS)


def _sweep(rows: torch.Tensor, bits: int) -> torch.Tensor:
    """Of the range that holds all, its half and its quarter, the one with the least sum of errors.

    Of equal sums the widest wins.
    """
    widest = powers_of_two(_max(rows, bits))[:, None]
    errors = []
    for i in range(3):
        bound = widest / 2**i
        step = bound / 2**(bits - 1)
        errors.append(((rows / step).round() * step).clamp(-bound, bound).sub(rows).abs().sum(1))
    return widest[:, 0] / 2.0**torch.stack(errors).argmin(0)


STATISTICS = {RangeMethod.RANGE_MAX: _max, RangeMethod.RANGE_3SIGMA: _three_sigma,
              RangeMethod.RANGE_MAX_TENPERCENT: _ten_percent, RangeMethod.RANGE_SWEEP: _sweep}


def ends(data: torch.Tensor, name: str, axis: int | None) -> torch.Tensor:
    """[min, max] of a tensor (2,) or of its groups (2, G); equal ends are moved to hold zero."""
    if not data.numel():
        return torch.tensor([0.0, EPS], device=data.device)
    largest(data, name)
    rows = data.reshape(1, -1) if axis is None else data.transpose(0, axis).flatten(1)
    low, high = torch.aminmax(rows, dim=1)
    same = low == high
    low = torch.where(same, low.clamp(max=0), low)
    high = torch.where(same, high.clamp(min=0), high)
    high = torch.where(low == high, torch.full_like(high, EPS), high)
    found = torch.stack([low, high]).float()
    return found[:, 0] if axis is None else found


def is_set(scale, affine: bool) -> bool:
    """Whether a scale holds a range: a bound above 0, or ends of which the second is above."""
    scale = torch.as_tensor(scale)
    if not affine:
        return bool((scale > 0).all()) and bool(scale.isfinite().all())
    return scale.dim() > 0 and scale.shape[0] == 2 and bool((scale[1] > scale[0]).all())


def stored(scale, groups: int | None, affine: bool, name: str) -> float | torch.Tensor:
    """The range that a scale holds: R (float), (G,), or the ends (2,) or (2, G).

    Raises ValueError where it holds none yet, or one of another shape.
    """
    tensor = torch.as_tensor(scale)
    shape = tuple(tensor.shape)
    wanted = [(2,) if groups is None else (2, groups)] if affine else (
        [(), (1,)] if groups is None else [(groups,), (1,), ()])
    if not is_set(tensor, affine and shape in wanted) and (tensor.numel() == 1 or shape in wanted):
        raise ValueError(f"{name}: FIX_FIXED with scale {tensor.tolist()}, which was never set; "
                         "run it with FIX_AUTO first, load a configuration or checkpoint that has "
                         "it, or write the bound of its values")
    if shape not in wanted:
        raise ValueError(f"{name}: scale of shape {list(shape)}, needs {list(wanted[0])} for this "
                         "tensor and its zero_point and group; FIX_AUTO writes one that fits")
    if affine:
        return tensor.float()
    return float(tensor) if groups is None else tensor.float().expand(groups)


def store(scale, value: float | torch.Tensor) -> None:
    """Write a range into its scale tensor, in place; one of integers becomes float32."""
    if not isinstance(scale, torch.Tensor):
        return
    if scale.is_floating_point() and isinstance(value, float) and scale.numel() == 1:
        scale.data.fill_(value)
        return
    value = torch.as_tensor(value, device=scale.device)
    value = value.reshape(-1) if value.dim() == 0 else value
    if scale.is_floating_point() and scale.shape == value.shape:
        scale.data.copy_(value)
    else:
        scale.data = value.to(scale.dtype if scale.is_floating_point() else torch.float32)
