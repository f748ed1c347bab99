"""What a fixed model is in hardware, as a table: sites, formats, MACs, exactness."""

from __future__ import annotations

import copy
from collections import Counter
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from emu.nn.modules import FixedModule, is_exact, layers
from emu.spec import MacSpec


class Row(NamedTuple):
    """One operation of a model.

    `formats` has the text of each of its settings; a rule that has chosen shows its binary point,
    and what differs in evaluation follows after a bar. `macs` are the multiply-accumulates of the
    forward pass of the traced input, None where none was traced.
    """

    path: str
    kind: str
    formats: dict[str, str]
    macs: int | None
    exact: bool


def table(model: torch.nn.Module, input=None) -> list[Row]:
    """Print every site of a fixed model, and return the rows.

    With `input` (a tensor, or a tuple of arguments) a copy of the model runs it once, in the mode
    it is in: then the MACs are counted, and the sites of functions and of float cores are known.
    Raises ValueError for a model that has no fixed module.
    """
    macs = None
    if not any(isinstance(module, FixedModule) for module in model.modules()):
        raise ValueError(f"table of {type(model).__name__}: has no fixed module; run emu.nn.fix on "
                         "the model first")
    if input is not None:
        model, macs = _traced(model, input)
    rows = _rows(model, macs)
    Console().print(_table(type(model).__name__, rows))
    return rows


def _traced(model: torch.nn.Module, input) -> tuple[torch.nn.Module, Counter]:
    """A copy of the model that has run the input, and the MACs of each site of its hardware."""
    model, macs = copy.deepcopy(model), Counter()
    for hardware in {layer.hardware for layer in layers(model).values()}:
        hardware.backend = _Counting(hardware.backend, macs, hardware.key)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        model(*(input if isinstance(input, tuple) else (input,)))
    return model, macs


class _Counting:
    """A backend that counts the products of each forward pass; everything else is the other's."""

    def __init__(self, backend, macs: Counter, key: str):
        self.backend, self.macs, self.key = backend, macs, key

    def __getattr__(self, name: str):
        found = getattr(self.backend, name)
        if not callable(found):
            return found

        def computed(place, *args, **kwargs):
            out = found(place, *args, **kwargs)
            if place.name == "forward" and any(isinstance(x, MacSpec) for x in args):
                # All outputs of one column or channel share operand b, which has K for each.
                self.macs[self.key, place.site] += out.size * np.size(args[1]) // max(
                    out.shape[1], 1)
            return out
        return computed


def _rows(model: torch.nn.Module, macs: Counter | None) -> list[Row]:
    found = {path: Row(path, layer.kind, layer.texts(),
                       None if macs is None else macs[layer.hardware.key, layer.site], layer.exact)
             for path, layer in layers(model).items()}
    for path, module in model.named_modules():
        if isinstance(module, FixedModule) and not is_exact(module):
            if path in found:
                found[path] = found[path]._replace(exact=False)
            elif not any(key.startswith(f"{path}.") or not path for key in found):
                found[path] = Row(path, type(module).__name__, {}, None, False)
    return list(found.values())


def _table(name: str, rows: list[Row]) -> Table:
    total = sum(row.macs or 0 for row in rows)
    inexact = sum(not row.exact for row in rows)
    shown = Table(title=f"{name}: {len(rows)} sites", show_lines=True, show_footer=True)
    shown.add_column("site", "all", overflow="fold")
    shown.add_column("kind", overflow="fold")
    shown.add_column("formats", overflow="fold")
    shown.add_column("MACs", f"{total:,}" if total else "", justify="right")
    shown.add_column("exact", f"{inexact} not" if inexact else "yes")
    for row in rows:
        shown.add_row(row.path or "(model)", row.kind,
                      "\n".join(f"{key}: {text}" for key, text in row.formats.items()),
                      f"{row.macs:,}" if row.macs else "", "yes" if row.exact else "no")
    return shown
