"""Switches of whole networks."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch

from emu.compat.tqt.fold import Folded, fold_the_network
from emu.compat.tqt.modules import Quantised


def make_net_quant_or_not(net: torch.nn.Module, name: str = "", quant: bool = True,
                          exclude: Iterable = (), show: bool = False) -> None:
    """Let the modules of a network compute on the engine, or in float.

    `exclude` holds classes, modules and patterns of paths: those stay as they are, with what is in
    them.
    """
    exclude = list(exclude)
    kept: list[str] = []
    for path, module in net.named_modules():
        if any(path.startswith(f"{other}.") for other in kept) or any(
                fnmatchcase(path, each) if isinstance(each, str)
                else isinstance(module, each) if isinstance(each, type) else module is each
                for each in exclude):
            kept.append(path)
        elif isinstance(module, Quantised):
            module.quant = quant
            if show:
                print(name, path, "quantised" if quant else "float")


def make_bn_freeze(net: torch.nn.Module, name: str = "", mode: bool = True) -> None:
    """Freeze the batch norms of folded layers: quantised, their weights are the folded ones."""
    for module in net.modules():
        if isinstance(module, Folded):
            module.bn_freeze(mode)


def make_bn_fold_with_previous(net: torch.nn.Module) -> torch.nn.Module:
    """Fold each batch norm into the convolution before it, in place."""
    return fold_the_network(net, "conv")


def make_the_shortcut_share(net: torch.nn.Module) -> None:
    """Call `share_path` of the modules that have one: it shares the thresholds of a shortcut."""
    for module in net.modules():
        if callable(getattr(module, "share_path", None)):
            module.share_path()
