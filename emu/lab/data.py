"""Labelled examples: scikit-learn's digits, files of MNIST or CIFAR-10, or generated ones."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from emu.lab import files

TEST_DIGITS = Path(__file__).with_name("digits_test.txt")


class Images(NamedTuple):
    """float64 images (N, C, H, W) on a power-of-two grid in [0, 1], or int64 tokens (N, length),
    and int64 labels (N,)."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def load(source: str) -> Images:
    """`digits`, `mnist:DIR`, `cifar10:DIR`, or what is generated: `patches`, `lookup`.

    Raises ValueError for an unknown source and for files that are missing or malformed.
    """
    kind, _, folder = str(source).partition(":")
    if kind in OWN and not folder:
        return OWN[kind]()
    if kind in FILES and folder:
        train_x, train_y, test_x, test_y = FILES[kind](Path(folder))
        return Images(*(_grid(part) for part in (train_x, train_y, test_x, test_y)))
    raise ValueError(f"data {source!r}: write {', '.join(OWN)}, or "
                     + " or ".join(f"{name}:DIR" for name in FILES) + " with a folder of its files")


def _grid(part: np.ndarray) -> np.ndarray:
    """Labels as int64; pixels 0..255 over 256, so that the grid is 2^-8, with channels."""
    if part.ndim == 1:
        return part.astype(np.int64)
    return (part[:, None] if part.ndim == 3 else part) / 256


def _digits() -> Images:
    """1797 images 8 x 8 of 17 grey levels; the 360 of the committed, shuffled list are the test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = digits.images[:, None] / 16, digits.target.astype(np.int64)
    test = np.array(TEST_DIGITS.read_text().split(), int)
    train = np.setdiff1d(np.arange(len(x)), test)
    return Images(x[train], y[train], x[test], y[test])


def _patches() -> Images:
    """3 x 32 x 32 images whose class is which of ten small patterns lies in them, somewhere.

    2048 to train and 512 to test, with noise; the same each time.
    """
    rng = np.random.default_rng(10)
    patterns = rng.integers(64, 192, (10, 3, 8, 8))
    labels = rng.integers(0, 10, 2560)
    images = rng.integers(0, 48, (2560, 3, 32, 32))
    for image, label, (y, x) in zip(images, labels, rng.integers(0, 25, (2560, 2)), strict=True):
        image[:, y:y + 8, x:x + 8] += patterns[label]
    x, y = images / 256, labels.astype(np.int64)
    return Images(x[:2048], y[:2048], x[2048:], y[2048:])


def _lookup() -> Images:
    """Nine tokens of 0 to 7; the class is the token that the first one points at: x[1 + x[0]].

    4096 to train and 1024 to test; the same each time.
    """
    x = np.random.default_rng(11).integers(0, 8, (5120, 9))
    y = x[np.arange(len(x)), 1 + x[:, 0]]
    return Images(x[:4096], y[:4096], x[4096:], y[4096:])


OWN = {"digits": _digits, "patches": _patches, "lookup": _lookup}
FILES = {"mnist": files.mnist, "cifar10": files.cifar10}
