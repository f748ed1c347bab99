"""Random operands from LFSRs, and the hash that loads them."""

import numpy as np

from emu.engine.kernels.jit import kernel


@kernel
def lfsr_draws(states, rand_bits, out):
    """Element i draws from LFSR i mod 16: 32-bit Galois, right shift, first bit lowest."""
    for i in range(out.size):
        state = states[i % states.size]
        rand = np.int64(0)
        for k in range(rand_bits):
            bit = state & 1
            rand |= bit << k
            state = (state >> 1) ^ (bit * np.int64(0x80200003))
        states[i % states.size] = state
        out[i] = rand


@kernel
def fnv1a(text):
    """FNV-1a, 32 bit, over bytes."""
    h = np.int64(0x811C9DC5)
    for i in range(text.size):
        h = ((h ^ np.int64(text[i])) * np.int64(0x01000193)) & np.int64(0xFFFFFFFF)
    return h
