"""Labelled images: scikit-learn's digits, or a folder of MNIST IDX files."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

TEST_DIGITS = Path(__file__).with_name("digits_test.txt")


class Images(NamedTuple):
    """float64 images (N, 1, H, W) on a power-of-two grid in [0, 1], int64 labels (N,)."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def load(source: str) -> Images:
    """`digits`, or `mnist:DIR` with the four IDX files of MNIST, gzipped or not.

    Raises ValueError for an unknown source and for files that are missing or malformed.
    """
    kind, _, folder = str(source).partition(":")
    if kind == "digits" and not folder:
        return _digits()
    if kind == "mnist" and folder:
        return _mnist(Path(folder))
    raise ValueError(f"data {source!r}: write digits, or mnist:DIR with a folder of IDX files")


def _digits() -> Images:
    """1797 images 8 x 8 of 17 grey levels; the 360 of the committed, shuffled list are the test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = digits.images[:, None] / 16, digits.target.astype(np.int64)
    test = np.array(TEST_DIGITS.read_text().split(), int)
    train = np.setdiff1d(np.arange(len(x)), test)
    return Images(x[train], y[train], x[test], y[test])


def _mnist(folder: Path) -> Images:
    """Pixels 0..255 over 256, so that the grid is 2^-8."""
    parts = []
    for part in ("train", "t10k"):
        images = _idx(folder, f"{part}-images", 3)
        labels = _idx(folder, f"{part}-labels", 1)
        if len(images) != len(labels):
            raise ValueError(f"data {folder}: {len(images)} {part} images but {len(labels)} labels")
        parts += [images[:, None] / 256, labels.astype(np.int64)]
    return Images(*parts)


def _idx(folder: Path, stem: str, ndim: int) -> np.ndarray:
    """One IDX file: two zero bytes, the type (8: uint8), the axes, their big-endian sizes."""
    if not folder.is_dir():
        raise ValueError(f"data folder {folder}: does not exist; give mnist:DIR the folder of the "
                         "four IDX files")
    names = [f"{stem}{dot}idx{ndim}-ubyte{end}" for dot in "-." for end in (".gz", "")]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"data folder {folder}: has no {names[0]}, gzipped or not")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: {error}") from None
    if raw[:4] != bytes([0, 0, 8, ndim]):
        raise ValueError(f"{path}: starts with {raw[:4].hex()}, not 000008{ndim:02x}, so it is no "
                         f"IDX file of bytes with {ndim} axes")
    if len(raw) < 4 + 4 * ndim:
        raise ValueError(f"{path}: {len(raw)} bytes end in its header; it is truncated")
    shape = struct.unpack(f">{ndim}I", raw[4:4 + 4 * ndim])
    body = raw[4 + 4 * ndim:]
    if len(body) != math.prod(shape):
        raise ValueError(f"{path}: {len(body)} bytes of data for shape {shape}; it is truncated")
    return np.frombuffer(body, np.uint8).reshape(shape)
