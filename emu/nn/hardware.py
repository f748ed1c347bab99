"""What all layers of a model share: who resolves their sites, and who computes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import ClassVar
from weakref import WeakValueDictionary

from emu.nn.backend import Backend
from emu.nn.config import Site
from emu.nn.strategy import Strategies
from emu.spec import LayerSpec

STATEFUL = "auto:", "stochastic", "fixed", "learned"  # words of settings with state
_numbers = itertools.count()


class Hardware:
    """What all layers of a model share: the resolver of their sites, and the backend.

    `key` finds it in `known`: a compiled graph holds texts alone. `eager` says what of it is not
    compiled: settings with state (rules choose binary points, casts draw), strategies, and modules
    that `fix` names.
    """

    known: ClassVar[WeakValueDictionary[str, Hardware]] = WeakValueDictionary()

    def __init__(self, config, backend: Backend, strategies: Strategies | None = None,
                 float_backward: bool = False):
        self.config, self.backend, self.float_backward = config, backend, float_backward
        self.strategies = strategies or Strategies()
        self.eager = _eager(config, strategies, float_backward)
        self.others: dict[str, tuple[LayerSpec, LayerSpec]] = {}  # sites that became others since
        self.key = ""
        self._enrol()

    def _enrol(self):
        """Be found under a new key: graphs with the one before are compiled anew."""
        self.known.pop(self.key, None)
        self.key = f"hardware {next(_numbers)}"
        self.known[self.key] = self

    def __setstate__(self, state: dict):
        self.__dict__.update(state)
        self.key = ""  # which is that of another
        self._enrol()

    def become(self, site: str, spec: LayerSpec, evaluation: LayerSpec) -> None:
        """Let a site be this in training, and that in evaluation."""
        self.others[site] = spec, evaluation
        self.eager = self.eager or _eager(f"{spec} {evaluation}", None, False)
        self._enrol()

    def resolve(self, site: Site) -> LayerSpec:
        """The hardware of one site."""
        if site.path in self.others:
            return self.others[site.path][not site.training]
        spec = self.config.resolve(site)
        for strategy in self.strategies.of(site, spec).strategies if "update" in site.uses else ():
            spec = replace(spec, update=strategy.update(spec.update))
        return spec


def _eager(config, strategies: Strategies | None, float_backward: bool) -> str:
    """What of the hardware is not compiled, "" where all of it is."""
    if strategies or float_backward:
        return "a model with strategies" if strategies else "training in software"
    word = next((word for word in STATEFUL if word in str(config)), "")
    return word and f"hardware with state ({word.rstrip(':')})"
