"""Operations of a scope, chained by `wrap`: `wrap(x).Conv2D(16, 3).ReLU().Flatten().Dense(10)`.

Tensors are torch's, channels first: images are (N, C, H, W).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_flatten, tree_unflatten

from emu import nn
from emu.compat.nics_fix.config import FixedConfig, Section
from emu.compat.nics_fix.kwargs import defaults_of
from emu.compat.nics_fix.scope import Scope, current

LAYERS = (torch.nn.Conv2d, torch.nn.Linear)  # which cast their own result
MOVES = ("ReLU", "Split", "MaxPool", "Flatten")  # whose results are values of what entered


class _Operation(NamedTuple):
    """A registered type: `make(x, *args, **kwargs)` gives its module, `names` are its arguments."""

    make: Callable[..., torch.nn.Module]
    names: list[str]
    fixed: bool
    section: Section | None


_registered: dict[str, _Operation] = {}


class _Function(torch.nn.Module):
    """A function of a tensor as a module."""

    def __init__(self, function: Callable):
        super().__init__()
        self.function = function

    def forward(self, x, *args, **kwargs):
        return self.function(x, *args, **kwargs)


def fixed_register(fn: Callable, type_name: str,
                   default_config: Mapping | Section | None = None) -> Callable:
    """Make an operation of a function `fn(tensor, ...)`, or of a class of torch.nn.Module.

    Its results are fixed as activations and its parameters as weights; `default_config` (weight,
    activation) holds where the configuration has neither its name nor its type. Gives the
    operation. Raises RuntimeError for a type that is registered without quantisation.
    """
    if isinstance(default_config, Mapping):
        default_config = Section.parse(default_config, f"default_config of {type_name}")
    return _register(fn, type_name, True, default_config)


def no_fixed_register(fn: Callable, type_name: str) -> Callable:
    """As `fixed_register`, but nothing of the operation is fixed: it runs in torch as it is."""
    return _register(fn, type_name, False, None)


def _register(fn: Callable, kind: str, fixed: bool, section: Section | None, make: bool = False
              ) -> Callable:
    known = _registered.get(kind)
    if known is not None and known.fixed != fixed:
        kinds = ("without quantisation", "as fixed")
        raise RuntimeError(f"{kind} is registered {kinds[known.fixed]}, and cannot be "
                           f"{kinds[fixed]} too; give the operation another name")
    names = list(inspect.signature(fn).parameters)
    if isinstance(fn, type) and issubclass(fn, torch.nn.Module):
        made = _Operation(lambda x, *args, **kwargs: fn(*args, **kwargs), names, fixed, section)
    else:
        maker = fn if make else lambda x, *args, **kwargs: _Function(fn)
        made = _Operation(maker, names[1:], fixed, section)
    _registered[kind] = made
    operation = partial(_apply, kind)
    operation.__doc__ = fn.__doc__
    return operation


def _apply(kind: str, x: torch.Tensor, *args: Any, name: str | None = None, **kwargs: Any):
    """One operation of the scope that is open."""
    scope, operation = current(), _registered[kind]
    free = operation.names[len(args):]
    kwargs = {**defaults_of(kind, free), **kwargs}
    name = scope.name_of(kind, name)
    section = scope.fixed_config.section(name, kind, operation.section)
    make = partial(operation.make, x, *args, **kwargs)
    if operation.fixed:
        module = scope.module(name, (name, kind, section), make, x)
    else:
        module = scope.plain(name, make)
    if isinstance(module, LAYERS) and operation.fixed:
        return scope.run(module, x)
    out = module(x, *args, **kwargs) if isinstance(module, _Function) else module(x)
    leaves, tree = tree_flatten(out)
    for i, leaf in enumerate(leaves):
        if kind in MOVES:
            scope.moved(x, leaf)
        if operation.fixed and _fixes(section.activation):
            end = f"_{i}" if len(leaves) > 1 else ""
            cast = scope.module(f"{name}_out{end}", (name, kind, section), nn.Activation,
                                label=("activation", name + end))
            leaves[i] = scope.run(cast, leaf)
    return tree_unflatten(leaves, tree)


def _fixes(config: FixedConfig) -> bool:
    """Whether anything of a tensor is fixed."""
    data, grad = config.data_config, config.gradient_config
    return any(mode is not None for mode in (data.training, data.not_training, grad.training))


def quantitize(data: torch.Tensor, cfg: FixedConfig, name: str | None = None,
               scope: Scope | None = None, strategies: list[nn.Strategy] | None = None,
               data_type: str = "other", col_key_prefix: str | None = None) -> torch.Tensor:
    """Fix any tensor by a configuration of its own: the input of a network, say.

    `cfgs.lookup("data", "data")[1]` is what a configuration says of `data`. The tensor is listed
    in the fixed mapping under `data_type`, or under what follows nf_fix_ in `col_key_prefix`.
    """
    if not isinstance(cfg, FixedConfig):
        raise TypeError(f"quantitize: {cfg!r} is no FixedConfig; FixedConfigs.lookup gives two")
    scope = scope or current()
    role = data_type if col_key_prefix is None else col_key_prefix.removeprefix("nf_fix_")
    if role not in ("weight", "activation", "other"):
        raise ValueError(f"quantitize data_type {role!r}: write weight, activation or other")
    name = scope.name_of("quantitize" if name is None else "data", name)
    module = scope.module(name, (name, "data", Section(cfg, cfg)), nn.Activation,
                          label=(role, name), strategies=strategies)
    return scope.run(module, data)


class Wrapped:
    """A tensor with the operations as methods; anything else is the tensor's own."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    @property
    def methods(self) -> list[str]:
        """The names of all operations."""
        return sorted(_registered)

    @property
    def fixed_methods(self) -> list[str]:
        """Those that are fixed."""
        return [name for name in self.methods if _registered[name].fixed]

    @property
    def no_fixed_methods(self) -> list[str]:
        """Those that are not."""
        return [name for name in self.methods if not _registered[name].fixed]

    def apply(self, fn: Callable, *args: Any, **kwargs: Any):
        """`fn(tensor, ...)`, wrapped."""
        return _wrapped(fn(self.tensor, *args, **kwargs))

    def __getattr__(self, name: str):
        if name in _registered:
            return partial(self.apply, partial(_apply, name))
        return getattr(self.__dict__["tensor"], name)

    def __repr__(self) -> str:
        return f"wrap({self.tensor!r})"


def _wrapped(value):
    if isinstance(value, tuple | list):
        return type(value)(_wrapped(each) for each in value)
    return Wrapped(value) if isinstance(value, torch.Tensor) else value


def wrap(tensor: torch.Tensor) -> Wrapped:
    """The tensor, to be followed by operations: `wrap(x).Dense(10).tensor`."""
    return Wrapped(tensor)


def _conv2d(x, filters, kernel_size, strides=1, padding="valid", dilation_rate=1, use_bias=True):
    """A convolution of images (N, C, H, W); weight (filters, C, ...) and bias are fixed."""
    return torch.nn.Conv2d(x.shape[1], filters, kernel_size, strides, padding, dilation_rate,
                           bias=use_bias).to(x.dtype)


def _dense(x, units, use_bias=True):
    """A linear layer; weight (units, inputs) and bias are fixed."""
    return torch.nn.Linear(x.shape[-1], units, use_bias).to(x.dtype)


def _relu(x):
    """max(x, 0)."""
    return torch.relu(x)


def _split(x, num_or_size_splits, axis=1):
    """Parts of a tensor along an axis: so many equal ones, or of these sizes."""
    if isinstance(num_or_size_splits, int):
        if x.shape[axis] % num_or_size_splits:
            raise ValueError(f"Split: {x.shape[axis]} are not {num_or_size_splits} equal parts")
        return torch.split(x, x.shape[axis] // num_or_size_splits, axis)
    return torch.split(x, list(num_or_size_splits), axis)


def _max_pool(x, pool_size=2, strides=None, padding=0):
    """The maximum under each window of images (N, C, H, W)."""
    return F.max_pool2d(x, pool_size, strides, padding)


def _flatten(x):
    """(N, ...) as (N, features)."""
    return torch.flatten(x, 1)


def _dropout(x, rate=0.5):
    """Some values 0 in training, the others scaled by 1 / (1 - rate)."""
    return torch.nn.Dropout(rate)


Conv2D = _register(_conv2d, "Conv2D", True, None, make=True)
Dense = _register(_dense, "Dense", True, None, make=True)
ReLU = fixed_register(_relu, "ReLU")
Split = fixed_register(_split, "Split")
MaxPool = no_fixed_register(_max_pool, "MaxPool")
Flatten = no_fixed_register(_flatten, "Flatten")
Dropout = _register(_dropout, "Dropout", False, None, make=True)
