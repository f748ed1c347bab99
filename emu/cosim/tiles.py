"""Matrix products through mac_array: what it is given at each clock, where the sums come out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emu.cosim.engines import run
from emu.golden.units import array_parameters
from emu.number import Cast
from emu.spec import MacSpec

CLOCKS = 1 << 16  # sent in one call, about: what that many records take in memory


class Sums(NamedTuple):
    """What left the array, (tiles, rows, cols) each."""

    acc: np.ndarray  # codes of `mac.result`
    overflowed: np.ndarray  # whether some step of the sum did
    codes: np.ndarray  # the sums requantised
    clipped: np.ndarray  # whether the requantised value was outside


def array(a, b, mac: MacSpec, bias, to: Cast | None = None, rand=None, pipeline: int = 0,
          backend: str | None = None, rtl: Sequence[Path] = ()) -> Sums:
    """a (tiles, rows, K) times b (tiles, cols, K) from bias (tiles, rows, cols), tile by tile.

    The array has as many rows and columns as a tile. `to` is the cast of its requantisers, whose
    random operands are `rand` (tiles, rows, cols).
    """
    tiles, rows, terms = a.shape
    cols = b.shape[1]
    to = to or Cast(mac.result.format)
    parameters = array_parameters(mac, rows, cols, to, pipeline)
    shift = {"shift_i": parameters["MAX_SHIFT"]}
    steps = -(-terms // mac.lanes)
    levels = 1 if mac.outer is None else 2
    wait = rows + cols + levels + pipeline  # until the corner's sum is in its chain
    period = cols + steps + wait
    parts = []
    for first in range(0, tiles, each := max(1, CLOCKS // period)):
        part = slice(first, first + each)
        count = len(a[part])
        clocks = count * period + cols
        given = {name: np.zeros((clocks, size) if size > 1 else clocks, np.int64)
                 for name, size in (("valid_i", 1), ("load_i", 1), ("last_i", 1),
                                    ("a_i", rows * mac.lanes), ("b_i", cols * mac.lanes),
                                    ("move_i", 1), ("bias_i", rows), ("rand_i", rows))}
        view = {name: codes[:count * period].reshape(count, period, -1)
                for name, codes in given.items()}
        view["move_i"][:, :cols] = 1
        given["move_i"][-cols:] = 1
        view["bias_i"][:, :cols] = bias[part].transpose(0, 2, 1)[:, ::-1]  # last column first
        view["valid_i"][:, cols:cols + steps] = 1
        view["load_i"][:, cols] = 1
        view["last_i"][:, cols + steps - 1] = 1
        view["a_i"][:, cols:cols + steps] = _steps(a[part], mac.lanes)
        view["b_i"][:, cols:cols + steps] = _steps(b[part], mac.lanes)
        # The sums of a tile leave while the biases of the next one enter.
        leaving = np.arange(1, count + 1)[:, None] * period + np.arange(cols)[::-1]
        if rand is not None:
            given["rand_i"].reshape(clocks, -1)[leaving] = rand[part].transpose(0, 2, 1)
        given |= {name: np.full(clocks, value) for name, value in shift.items()}
        out = run("mac_array", parameters, given, backend, rtl)
        done = np.flatnonzero(out["done_o"])
        if not np.array_equal(done // period, np.arange(count)) or (
                done % period + 1 >= period).any() or not (out["valid_o"] == given["move_i"]).all():
            raise RuntimeError(f"mac_array: told of {len(done)} of {count} sums, or of none in "
                               "time")
        parts.append([out[name].reshape(clocks, -1)[leaving].transpose(0, 2, 1)
                      for name in ("acc_o", "ovf_o", "code_o", "clip_o")])
    return Sums(*map(np.concatenate, zip(*parts, strict=True)))


def _steps(codes: np.ndarray, lanes: int) -> np.ndarray:
    """(tiles, lines, K) as (tiles, steps, lines * lanes): zeros after the last product."""
    tiles, lines, terms = codes.shape
    steps = -(-terms // lanes)
    padded = np.zeros((tiles, lines, steps * lanes), np.int64)
    padded[:, :, :terms] = codes
    return padded.reshape(tiles, lines, steps, lanes).transpose(0, 2, 1, 3).reshape(
        tiles, steps, lines * lanes)
