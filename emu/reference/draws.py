"""Random operands: LFSRs, and the hash that loads them."""

from __future__ import annotations

LFSR_MASK = 0x80200003  # a primitive polynomial: period 2^32 - 1
STREAMS = 16


def lfsr_draw(state: int, rand_bits: int) -> tuple[int, int]:
    """(next state, operand): the operand is the next bits shifted out, the first one lowest."""
    rand = 0
    for i in range(rand_bits):
        rand |= (state & 1) << i
        state = (state >> 1) ^ (LFSR_MASK if state & 1 else 0)
    return state, rand


def load_words(seed: int, step: int, site: str, pass_: str, call: int) -> list[int]:
    """What each of the 16 LFSRs is loaded with before one tensor operation.

    FNV-1a (32 bit) over the UTF-8 text `seed:step:site:pass:call:stream`, then the finaliser of
    MurmurHash3 (fmix32); 0, the state an LFSR cannot leave, becomes 1.
    """
    words = []
    for stream in range(STREAMS):
        h = 0x811C9DC5
        for byte in f"{seed}:{step}:{site}:{pass_}:{call}:{stream}".encode():
            h = (h ^ byte) * 0x01000193 % 2**32
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
            h = (h ^ (h >> shift)) * factor % 2**32
        words.append(h or 1)
    return words


def random_operands(count: int, rand_bits: int, loads: list[int]) -> list[int]:
    """One operand for each element of a tensor, row-major: element i draws from LFSR i mod 16."""
    states, operands = list(loads), []
    for i in range(count):
        states[i % STREAMS], rand = lfsr_draw(states[i % STREAMS], rand_bits)
        operands.append(rand)
    return operands
