"""Small helpers of nics_fix_pt 0.4.0: default configurations, conversions, scopes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping

import torch

from emu.compat.nics_fix_pt import configs
from emu.compat.nics_fix_pt.quant import get_int
from emu.compat.nics_fix_pt.scopes import fix_kwargs_scope

__all__ = ["_generate_default_fix_cfg", "cache", "fix_kwargs_scope", "get_int", "try_parse_int",
           "try_parse_variable"]


def _generate_default_fix_cfg(names: Iterable[str], scale=0, bitwidth: int = 8, method: int = 0
                              ) -> dict[str, dict[str, torch.Tensor]]:
    """A configuration for each name, of tensors of one element: float32 scale, int32 others.

    >>> _generate_default_fix_cfg(["weight"], bitwidth=4)["weight"]["bitwidth"]
    tensor([4], dtype=torch.int32)
    """
    return {name: {"method": torch.tensor([method], dtype=torch.int32),
                   "scale": torch.tensor([scale], dtype=torch.float32),
                   "bitwidth": torch.tensor([bitwidth], dtype=torch.int32)} for name in names}


def try_parse_variable(value):
    """Numbers as tensors of one element, in nested dicts too: int32, or float32 for a float."""
    if isinstance(value, Mapping):
        return type(value)({key: try_parse_variable(item) for key, item in value.items()})
    if isinstance(value, int | float) and not isinstance(value, bool):
        return torch.tensor([value], dtype=torch.float32 if isinstance(value, float)
                            else torch.int32)
    return value


def try_parse_int(value):
    """Tensors of one element as numbers, in nested dicts too; a scale of 0.25 stays 0.25."""
    return configs.plain(value)


def cache(format_str: str) -> Callable:
    """A decorator that keeps results by `format_str`, filled with the call's arguments by name.

    >>> @cache("{a}")
    ... def double(a, b=None):
    ...     return [a, a]
    >>> double(1) is double(1, b=2)
    True
    """
    def decorate(function):
        kept, signature = {}, inspect.signature(function)

        @functools.wraps(function)
        def cached(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            key = format_str.format(**bound.arguments)
            if key not in kept:
                kept[key] = function(*args, **kwargs)
            return kept[key]
        return cached
    return decorate
