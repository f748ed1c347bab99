"""Accumulator bounds of every layer of a trained run, or of a recipe as it is initialised."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import yaml

from emu import bounds, nn
from emu.lab.data import load
from emu.lab.recipe import Recipe
from emu.lab.run import CHECKPOINT, CONFIG, Run
from emu.lab.train import Machine
from emu.nn.backend import Backend
from emu.spec import MacSpec


class LayerBounds(NamedTuple):
    """One pass of one layer: `by_types` from formats and K, `by_weights` where b are weights.

    `a2q` is the A2Q width, where products are exact integers of weights, as that bound supposes.
    """

    layer: str
    name: str
    mac: MacSpec
    by_types: bounds.Bounds
    by_weights: bounds.Bounds | None = None
    a2q: int | None = None


class _Prober(Backend):
    """Computes as `Backend` does, and notes the bounds of each operation that passes by.

    `batch` is the batch of training: one image passes, so gradients of weights sum that much more.
    """

    def __init__(self, backend: Backend, batch: int):
        super().__init__(backend.seed)
        self.batch, self.found = batch, []

    def matmul(self, place, a, b, mac, bias=None):
        weights = l1 = None
        if place.name in ("forward", "grad_input"):
            weights, l1 = bounds.matmul(b, mac, bias), abs(b).sum(0)
        self._note(place, mac, len(b) * (1 if weights else self.batch), weights, l1)
        return super().matmul(place, a, b, mac, bias)

    def conv2d(self, place, x, w, mac, bias=None, **geometry):
        sizes = {key: value for key, value in geometry.items() if key != "groups"}
        weights = bounds.conv2d(w, mac, bias, size=x.shape[2:], **sizes)
        self._note(place, mac, weights.k, weights, abs(w).sum((1, 2, 3)))
        return super().conv2d(place, x, w, mac, bias, **geometry)

    def conv2d_grad_input(self, place, error, w, mac, size, **geometry):
        weights = bounds.conv2d_grad_input(w, mac, size=size, **geometry)
        split = w.reshape(geometry["groups"], -1, *w.shape[1:])
        self._note(place, mac, weights.k, weights, abs(split).sum((1, 3, 4)))
        return super().conv2d_grad_input(place, error, w, mac, size, **geometry)

    def conv2d_grad_weight(self, place, x, error, mac, kernel, **geometry):
        self._note(place, mac, error[:, 0].size * self.batch)
        return super().conv2d_grad_weight(place, x, error, mac, kernel, **geometry)

    def _note(self, place, mac, k, weights=None, l1=None):
        integers = mac.exact_product and mac.product.format.frac == 0
        a2q = None if l1 is None or not integers else bounds.a2q_width(int(l1.max()), mac.a)
        self.found.append(LayerBounds(place.site, place.name, mac, bounds.data_types(k, mac),
                                      weights, a2q))


def layer_bounds(model: str) -> list[LayerBounds]:
    """Bounds of every MAC of a training step, in its order; `model` is a run folder or a recipe.

    Operands are those of the hardware: the weights as codes, the bias as it preloads the
    accumulator, the sizes of each plane. Raises ValueError for a folder that is no finished run.
    """
    path = Path(model)
    recipe = _recipe(path) if path.is_dir() else Recipe.load(model)
    images = load(recipe.data)
    machine = Machine.build(recipe, images)
    if path.is_dir():
        machine.load(Run(path, []).state())
    prober = _Prober(machine.backend, recipe.training.batch)
    nn.use_backend(machine.model, prober)
    machine.model.eval()  # the state of rules stays as training left it
    x, y = torch.from_numpy(images.train_x[:1]), torch.from_numpy(images.train_y[:1])
    nn.cross_entropy(machine.model(x), y).backward()
    return prober.found


def _recipe(path: Path) -> Recipe:
    for name in (CONFIG, CHECKPOINT):
        if not (path / name).is_file():
            raise ValueError(f"run folder {path}: has no {name}; give the folder of a run that "
                             "emu train has finished, or a recipe")
    return Recipe.parse(yaml.safe_load((path / CONFIG).read_text())["recipe"])


def table(rows: list[LayerBounds]) -> list[str]:
    """Aligned lines: the accumulator's bits by data types, by weights and by A2Q, and a verdict.

    Of a MAC with two levels, `acc/outer`.
    """
    cells = [("layer", "pass", "K", "accumulator", "data types", "any order", "in order", "A2Q",
              "verdict")]
    for row in rows:
        accumulators = [cast for cast in (row.mac.acc, row.mac.outer) if cast is not None]
        weights = row.by_weights
        cells.append((
            row.layer, row.name, str(row.by_types.k),
            " / ".join(f"{cast.format} {cast.overflow.name.lower()}" for cast in accumulators),
            _widths(row.by_types), _width(weights and weights.any_order), _widths(weights),
            str(row.a2q or "-"), _verdict(weights or row.by_types)))
    spans = [max(map(len, column)) for column in zip(*cells, strict=True)]
    texts = (0, 1, 3, 8)  # the other columns are numbers
    return ["  ".join(cell.ljust(span) if i in texts else cell.rjust(span)
                      for i, (cell, span) in enumerate(zip(line, spans, strict=True))).rstrip()
            for line in cells]


def _widths(found: bounds.Bounds | None) -> str:
    return "-" if found is None else "/".join(
        _width(stage) for name, stage in found.stages.items() if name != "product")


def _width(stage: bounds.Stage | None) -> str:
    return str((stage and stage.width) or "-")


def _verdict(found: bounds.Bounds) -> str:
    """`safe`, or the stages that may overflow, and how many bits they lack."""
    lacking = {name: stage.width and stage.width - stage.cast.format.width
               for name, stage in found.stages.items() if not stage.safe}
    return ", ".join(f"{name} " + (f"lacks {bits} bit{'s' * (bits > 1)}" if bits else
                                   "lacks a sign")
                     for name, bits in lacking.items()) or "safe"
