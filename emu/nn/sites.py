"""Which sites a model has, or may have once it runs: settings that can match none are refused."""

from __future__ import annotations

import difflib
import re
from fnmatch import fnmatchcase

import torch

from emu.nn.config import Config, Site
from emu.nn.functions import KINDS, TABLE, Entry
from emu.nn.ops.casts import activation
from emu.nn.strategy import Strategies

# Modules that are one operation: what a configuration may name by type.
OWN = KINDS | {"Activation": Entry("activation", activation, ("Activation",), ("y", "error"))}
# Where torch keeps the modules that only move values, or hold others.
MOVES = tuple(f"torch.nn.modules.{name}" for name in (
    "channelshuffle", "container", "flatten", "padding", "pixelshuffle"))


def site_of(path: str, module: torch.nn.Module, cls: type) -> Site:
    """The site of a module itself, whose fixed class is `cls`."""
    kind = next((base.__name__ for base in cls.__mro__ if base.__name__ in OWN), None)
    uses = OWN[kind].uses if kind else ()
    if "update" not in uses and any(True for _ in module.parameters(recurse=False)):
        uses = (*uses, "update")
    return Site(path, kind or cls.__name__, uses)


def computes_in_float(module: torch.nn.Module, kinds: tuple[str, ...]) -> bool:
    """Whether a torch module without children has a forward that the table does not know."""
    cls = next(base for base in type(module).__mro__ if base.__module__.startswith("torch.nn."))
    return (not any(kind in OWN for kind in kinds) and not any(True for _ in module.children())
            and cls not in (torch.nn.Identity, torch.nn.Module)
            and not cls.__module__.startswith(MOVES))


def _calls(module: torch.nn.Module) -> bool:
    """Whether a module's forward may call functions itself: torch's containers call modules."""
    owner = next(base for base in type(module).__mro__
                 if "forward" in vars(base) and base.__module__ != "emu.nn.modules")
    return owner.__module__ not in ("torch.nn.modules.container", "torch.nn.modules.module")


def check(config: Config | Strategies, modules: list[tuple[Site, torch.nn.Module]]) -> None:
    """Raise ValueError for the first setting or strategy that no site of a model can take.

    `modules` are those of the model, each with its site. Its functions have sites below it, which
    are known for certain only when it runs: any function of torch may be one.
    """
    sites = [site for site, _ in modules]
    callers = [site.path for site, module in modules if site.kind not in OWN and _calls(module)]
    composed = [site.path for site in sites if site.kind in OWN and OWN[site.kind].composite]
    functions = [Site(f"{path}.{entry.name}".lstrip("."), entry.kinds[0], entry.uses)
                 for path in callers for entry in set(TABLE.values())]
    for wrong in config.unused([*sites, *functions]):
        part, name = wrong.split(".", 1)
        if part == "by_type" and callers and _is_function(name):
            continue
        if part == "by_name" and name in config.by_name and _below(name, callers, composed + [
                site.path for site in functions if OWN[site.kind].composite]):
            continue
        there = [f"{site.path} ({site.kind})" for site in sites if site.uses or site.kind in OWN]
        known = {site.kind if part == "by_type" else site.path for site in sites}
        near = difflib.get_close_matches(name, sorted(known), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        what = type(config).__name__.lower()
        raise ValueError(f"{what} {wrong}: matches no module; there are {', '.join(there)}{hint}")


def _is_function(name: str) -> bool:
    """Whether torch has a function of this name, which a module may call."""
    return name.islower() and any(callable(getattr(place, name, None)) for place in (
        torch.nn.functional, torch, torch.Tensor, torch._C._nn))


def _below(pattern: str, callers: list[str], composed: list[str]) -> bool:
    """Whether a pattern may match functions that modules call, or parts of composed ones."""
    head, _, tail = pattern.rpartition(".")
    if _is_function(re.sub(r"_\d+$", "", tail)) and any(fnmatchcase(path, head)
                                                        for path in callers):
        return True
    names = pattern.split(".")
    return any(fnmatchcase(path, ".".join(names[:i]))
               for path in composed for i in range(1, len(names)))
