"""The random operands of stochastic rounding: 16 LFSRs, loaded by name for every operation."""

import functools

import numpy as np

from emu.engine.arrays import as_codes
from emu.engine.kernels.draws import (
    GROUP,
    SPAN,
    STREAMS,
    advance,
    draw_all,
    fnv1a,
    span_states,
    steps_doubled,
)
from emu.engine.kernels.jit import CAST, launch
from emu.number import MAX_RAND_BITS, Format


def load_words(seed: int, step: int, site: str, pass_: str, call: int) -> np.ndarray:
    """The 16 words (int64, 1 <= word < 2^32) with which one operation loads its LFSRs.

    FNV-1a over `seed:step:site:pass:call:stream`, then MurmurHash3's fmix32; 0 becomes 1.
    """
    words = np.array([fnv1a(np.frombuffer(
        f"{seed}:{step}:{site}:{pass_}:{call}:{stream}".encode(), np.uint8))
        for stream in range(STREAMS)], np.uint32)
    words = (words ^ (words >> 16)) * np.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * np.uint32(0xC2B2AE35)
    words ^= words >> 16
    return np.where(words == 0, 1, words.astype(np.int64))


def random_operands(shape, rand_bits: int, loads) -> np.ndarray:
    """One operand of `rand_bits` bits for each element; element i (row-major) uses LFSR i mod 16.

    `loads` are the 16 words of `load_words`. Returns uint32 of `shape`.
    """
    size = int(np.prod(shape))
    states = states_of_spans(size, rand_bits, loads)
    out = np.empty(len(states) * SPAN, np.uint32)
    launch(draw_all, CAST * size, states, rand_bits, out)
    return out[:size].reshape(shape)


def resumed(loads, rand_bits: int, first: int) -> np.ndarray:
    """The load words from which a tensor's operands go on at its element `first`.

    So any part of a tensor is drawn alone: the operands of elements `first`, `first + 1`, ... are
    `random_operands(count, rand_bits, resumed(loads, rand_bits, first))`.
    """
    if first < 0:
        raise ValueError(f"first {first}: elements are counted from 0")
    states = _checked(rand_bits, loads)
    rows, column = divmod(first, STREAMS)
    advance(states, rows * rand_bits, _powers())
    advance(states[:column], rand_bits, _powers())  # these have drawn once more
    return np.roll(states, -column).astype(np.int64)


def states_of_spans(size: int, rand_bits: int, loads) -> np.ndarray:
    """The states (spans, 16), whole groups, that draw the operands of `size` elements."""
    groups = -(-size // (GROUP * SPAN))
    out = np.empty((groups * GROUP, STREAMS), np.uint32)
    loads = _checked(rand_bits, loads)
    if groups:
        span_states(loads, SPAN // STREAMS * rand_bits, _powers(), out.reshape(-1))
    return out


def _checked(rand_bits: int, loads) -> np.ndarray:
    if not 1 <= rand_bits <= MAX_RAND_BITS or np.shape(loads) != (STREAMS,):
        raise ValueError(f"{rand_bits} bits from {np.size(loads)} load words: a draw has 1 to "
                         f"{MAX_RAND_BITS} bits, and there are {STREAMS} LFSRs")
    return as_codes(loads, "loads", Format(32, signed=False), dtype=np.uint32).copy()


@functools.cache
def _powers() -> np.ndarray:
    return steps_doubled()
