"""What both examples share: data, epochs, files that are whole, the table at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import emu.compat.nics_fix_pt as nfp
from emu.lab import data

out = Console(highlight=False)


class Split:
    """Images (N, C, H, W) float32 and labels (N,), and their batches."""

    def __init__(self, images, labels, limit: int | None):
        self.images = torch.from_numpy(images[:limit]).float()
        self.labels = torch.from_numpy(labels[:limit])

    def batches(self, size: int, generator: torch.Generator | None = None):
        """(images, labels) of each batch, in a random order where a generator gives one."""
        n = len(self.labels)
        order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
        for part in order.split(size):
            yield self.images[part], self.labels[part]


def load(source: str, limit: int | None) -> tuple[Split, Split]:
    """The training and the test images of a source of `emu.lab.data`; exits where it is none."""
    try:
        found = data.load(source)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    return Split(found.train_x, found.train_y, limit), Split(found.test_x, found.test_y, limit)


def configs(names, bits: int, method: int = nfp.FIX_AUTO, **more) -> dict:
    """A configuration for each name."""
    found = nfp.utils._generate_default_fix_cfg(names, method=method, bitwidth=bits)
    for cfg in found.values():
        cfg.update(more)
    return found


def train(model, optimizer, split: Split, size: int, generator: torch.Generator, every: int,
          name: str) -> float:
    """One epoch; prints the loss every so many batches and gives the mean one."""
    model.train()
    total, seen, begin = 0.0, 0, time.perf_counter()
    for i, (images, labels) in enumerate(split.batches(size, generator), 1):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        total, seen = total + float(loss.detach()) * len(labels), seen + len(labels)
        if i % every == 0 or seen == len(split.labels):
            out.print(f"{name}: {seen}/{len(split.labels)} images, loss {total / seen:.4f}, "
                      f"{time.perf_counter() - begin:.1f} s")
    return total / seen


@torch.no_grad()
def accuracy(model, split: Split, size: int) -> float:
    """The share of the images that the model knows, in percent."""
    model.eval()
    right = sum(int((model(images).argmax(1) == labels).sum())
                for images, labels in split.batches(size))
    return 100 * right / len(split.labels)


def write(path: Path, save: Callable[[Path], object]) -> None:
    """A file that is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save(part)
    os.replace(part, path)


def show(title: str, rows: Mapping[str, float], counts: Mapping[str, int]) -> None:
    """The accuracies, and what two's complement clipped where anything was."""
    table = Table("", "test accuracy", title=title, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, f"{value:.2f} %")
    out.print(table)
    if counts:
        out.print("codes that two's complement clipped, and the closed range would not: "
                  + ", ".join(f"{name} {count}" for name, count in counts.items()))
