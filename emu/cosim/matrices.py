"""The sums of a recorded pass as tiles of mac_array: equal operand rows share one of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emu.cosim.tiles import Sums, array
from emu.golden.vectors import VectorFile
from emu.spec import MacSpec

ROWS = COLS = 8


class Tiles(NamedTuple):
    """Operands (tiles, rows or cols, K) and what belongs to each sum (tiles, rows, cols)."""

    a: np.ndarray
    b: np.ndarray
    bias: np.ndarray
    line: np.ndarray  # at which the sum stands, from 0; -1 where the recording has none

    def __getitem__(self, chosen) -> Tiles:
        return Tiles(*(part[chosen] for part in self))


def tiles_of(codes: Mapping[str, np.ndarray]) -> Tiles | None:
    """The columns of a recorded pass as tiles; None where its sums are single products.

    A tile has whatever sums of its rows and columns were recorded: all of a matrix product's.
    """
    first = np.flatnonzero(codes["load_i"])
    records = len(codes["load_i"])
    steps = np.diff(first, append=records)
    if not first.size or first[0] or (steps != steps[0]).any() or steps[0] < 2:
        return None
    a, row = _distinct(codes["a_i"].reshape(first.size, -1))
    b, col = _distinct(codes["b_i"].reshape(first.size, -1))
    again = _occurrence(row * len(b) + col)
    key = np.stack([again, row // ROWS, col // COLS], 1)
    tiles, tile = _distinct(key)
    at = tile, row % ROWS, col % COLS
    found = Tiles(np.zeros((len(tiles), ROWS, a.shape[1]), np.int64),
                  np.zeros((len(tiles), COLS, b.shape[1]), np.int64),
                  np.zeros((len(tiles), ROWS, COLS), np.int64),
                  np.full((len(tiles), ROWS, COLS), -1))
    found.a[at[0], at[1]] = a[row]
    found.b[at[0], at[2]] = b[col]
    found.bias[at] = codes["bias_i"][first]
    found.line[at] = first + steps - 1
    return found


def through_array(file: VectorFile, tiles: Tiles, backend: str, rtl: Sequence[Path]) -> Sums:
    """The sums of these tiles of a file."""
    return array(tiles.a, tiles.b, MacSpec.parse(file.spec), tiles.bias,
                 pipeline=file.parameters["PIPELINE"], backend=backend, rtl=rtl)


def _distinct(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the distinct rows, which of them each row is)."""
    found, which = np.unique(rows, axis=0, return_inverse=True)
    return found, which.reshape(-1)


def _occurrence(keys: np.ndarray) -> np.ndarray:
    """How many equal keys stand before each."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    start = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    counts = np.diff(start, append=len(keys))
    found = np.empty(len(keys), np.int64)
    found[order] = np.arange(len(keys)) - np.repeat(start, counts)
    return found
