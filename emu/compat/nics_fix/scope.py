"""`fixed_scope`: a network that is written as a chain of operations, each on its own hardware."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.weak import WeakTensorKeyDictionary

from emu import nn
from emu.compat.nics_fix.config import FixedConfigs, Section
from emu.compat.nics_fix.hardware import WIDE, Resolver, prepare
from emu.compat.nics_fix.report import FixedMapping
from emu.compat.nics_fix.strategy import StrategyConfigs
from emu.nn import border
from emu.number import Cast
from emu.rule import Rule

logger = logging.getLogger("nics_fix")
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING,
          "error": logging.ERROR, "fatal": logging.CRITICAL}
_state = threading.local()  # `scope`: the one that is open


def set_log_level(name: str | None = None) -> None:
    """Log from this level on; by default what NICS_FIX_LOGLEVEL says, or warnings."""
    level = (name or os.environ.get("NICS_FIX_LOGLEVEL") or "warning").lower()
    if level not in LEVELS:
        raise ValueError(f"NICS_FIX_LOGLEVEL {level!r}: write one of {', '.join(LEVELS)}")
    logger.setLevel(LEVELS[level])


class Placeholder:
    """Whether a scope trains: `training.feed(True)`. False at first, as in nics_fix."""

    def __init__(self, scope: Scope):
        self.scope = scope

    def __bool__(self) -> bool:
        return self.scope.training

    def feed(self, value: bool) -> None:
        """Train from here on, or no longer."""
        self.scope.train(bool(value))


class Scope(torch.nn.Module):
    """The operations of a network: torch modules on the hardware of `emu.nn`, by their names.

    `state_dict` has the parameters (`conv1.weight`) and the scales; any torch optimizer moves the
    float parameters, which are cast where they are used, or `emu.nn.SGD` where every layer with
    parameters has an `accumulation_strategy`.
    """

    def __init__(self, name: str, fixed_config: FixedConfigs, strategy_config: StrategyConfigs,
                 seed: int):
        super().__init__()
        self.name, self.fixed_config, self.strategy_config = name, fixed_config, strategy_config
        self.resolver, self.backend = Resolver(), nn.Backend(seed)
        self.operations: dict[str, tuple[str, str, Section]] = {}  # of each module
        self.labels: dict[str, tuple[str, str]] = {}  # of what is listed: its kind and name
        self.strategies = strategy_config.bound(self.operations)
        self.calls: Counter[str] = Counter()
        self.made = WeakTensorKeyDictionary()  # tensor -> (the layer that cast it, its format)
        self.eval()

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "made"}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.made = WeakTensorKeyDictionary()

    def name_of(self, kind: str, name: str | None) -> str:
        """The name of one more operation of a type; raises ValueError for one that is taken."""
        if name is None:
            name = f"{kind}_{self.calls[kind]}" if self.calls[kind] else kind
            self.calls[kind] += 1
        elif self.calls[f"name {name}"]:
            raise ValueError(f"{kind} {name!r}: the scope has an operation of this name already; "
                             "give each its own")
        self.calls[f"name {name}"] += 1
        return name

    def plain(self, name: str, make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
        """The torch module of this name, made when it is first used."""
        if name not in self._modules:
            if "." in name or hasattr(self, name):
                raise ValueError(f"operation {name!r}: a name has no dot, and is no attribute of "
                                 "torch.nn.Module; give another")
            self.add_module(name, make().train(self.training))
            logger.info("%s: made %s", self.name, name)
        return self._modules[name]

    def module(self, name: str, operation: tuple[str, str, Section],
               make: Callable[[], torch.nn.Module], entering: torch.Tensor | None = None,
               label: tuple[str, str] | None = None,
               strategies: list[nn.Strategy] | None = None) -> torch.nn.Module:
        """The module of this name on its hardware, for such a tensor."""
        if name in self._modules:
            return self._modules[name]
        made = self.plain(name, make)
        self.operations[name], self.resolver.sections[name] = operation, operation[2]
        self.labels[name] = label or ("activation", name)
        if strategies is not None:
            self.strategies.given[name] = strategies
        producer = None if entering is None else self.made.get(entering)
        if producer is not None:
            self.resolver.inputs[name] = tuple(
                cast.format.width if isinstance(cast, Cast) else cast.width
                for cast in (producer[0].spec.y or WIDE, producer[0].evaluation.y or WIDE))
        holder = torch.nn.Module()
        holder.add_module(name, made)
        nn.fix(holder, self.resolver, self.backend, self.strategies, float_backward=True)
        for layer in nn.layers(made).values():
            prepare(layer)
        return made

    def run(self, module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        """What a module that is one layer makes of x; its y has a format from here on."""
        layer = module.layer
        if layer.cast_of("x", self.training) not in (None, WIDE):
            layer.fracs["x"] = self._frac(x, layer.cast_of("x", self.training).width)
        kept = dict(layer.fracs)
        if not self.training:  # `auto` looks at each tensor, and what it chooses is not kept
            layer.fracs = {name: frac for name, frac in kept.items() if not _is_auto(
                layer.cast_of(name, False))}
        y = module(x)
        to = layer.cast_of("y", self.training)
        form = to.format if isinstance(to, Cast) else to and "y" in layer.fracs and to.with_frac(
            layer.fracs["y"]).format
        if not self.training:
            layer.fracs = kept
        if to is not None:
            self.made[y] = layer, form or None
        elif x in self.made:
            self.made[y] = self.made[x]
        return y

    def moved(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y, whose values are values of x."""
        if x in self.made:
            self.made[y] = self.made[x]
        return y

    def _frac(self, x: torch.Tensor, width: int) -> int:
        """The binary point of a tensor that a cast of `width` has made."""
        form = self.made[x][1] if x in self.made else None
        if form is not None:
            return form.frac
        codes, frac = border.to_codes(x, "x")  # the finest grid of that width that it fits
        return frac + width - border.holding(codes, frac).width if np.any(codes) else width - 1


def _is_auto(cast: Cast | Rule | None) -> bool:
    return isinstance(cast, Rule) and not cast.fixed


def current() -> Scope:
    """The scope that is open; raises RuntimeError where none is."""
    scope = getattr(_state, "scope", None)
    if scope is None:
        raise RuntimeError("no fixed_scope is open: operations run within one only")
    return scope


@contextmanager
def fixed_scope(name_or_scope: str | Scope, fixed_config: FixedConfigs,
                strategy_config: StrategyConfigs | None = None, seed: int = 0
                ) -> Iterator[tuple[Scope, Placeholder, FixedMapping]]:
    """A context in which operations run fixed; gives (scope, training, fixed_mapping).

    A name begins a new scope; with a scope its operations run again, with the same parameters and
    scales, whatever has the same name being the same. `seed` is that of random numbers.
    """
    strategy_config = StrategyConfigs() if strategy_config is None else strategy_config
    for value, kind in ((name_or_scope, str | Scope), (fixed_config, FixedConfigs),
                        (strategy_config, StrategyConfigs)):
        if not isinstance(value, kind):
            raise TypeError(f"fixed_scope: {value!r} is no {getattr(kind, '__name__', kind)}")
    if getattr(_state, "scope", None) is not None:
        raise AssertionError("fixed_scope: another one is open; they do not nest")
    scope = name_or_scope
    if isinstance(scope, str):
        scope = Scope(scope, fixed_config, strategy_config, seed)
    elif scope.fixed_config is not fixed_config or (strategy_config and
                                                    scope.strategy_config is not strategy_config):
        raise ValueError(f"fixed_scope {scope.name!r}: was made with another configuration; begin "
                         "a new scope and load this one's state_dict into it")
    scope.calls.clear()
    _state.scope = scope
    try:
        yield scope, Placeholder(scope), FixedMapping(scope)
    finally:
        _state.scope = None


set_log_level()
