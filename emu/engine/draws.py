"""The random operands of stochastic rounding: 16 LFSRs, loaded by name for every operation."""

import numpy as np

from emu.engine.kernels.draws import fnv1a, lfsr_draws
from emu.number import MAX_RAND_BITS

STREAMS = 16


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

    `loads` are the 16 words of `load_words`. Returns int64 of `shape`.
    """
    if not 1 <= rand_bits <= MAX_RAND_BITS or np.shape(loads) != (STREAMS,):
        raise ValueError(f"{rand_bits} bits from {np.size(loads)} load words: a draw has 1 to "
                         f"{MAX_RAND_BITS} bits, and there are {STREAMS} LFSRs")
    out = np.empty(shape, np.int64)
    lfsr_draws(np.array(loads, np.int64), rand_bits, out.reshape(-1))
    return out
