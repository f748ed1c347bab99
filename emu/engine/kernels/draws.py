"""Random operands from LFSRs, and the hash that loads them.

An LFSR (32-bit Galois, right shift, taps at bits 31, 21, 1 and 0) is linear, so that a draw takes
a few shifts and not one step for each bit. With the state s and the shifted-out bits o as
polynomials over GF(2), bit k standing for x^k, every step shifts out the lowest bit and feeds it
back to the four taps, one place lower than it will be needed:

    o = s + o * (x + x^2 + x^22 + x^32), one bit after the other

so o = s / (1 + x + x^2 + x^22) modulo x^32, and after b <= 32 steps the state is
(s + o * (1 + x + x^2 + x^22 + x^32)) / x^b, o being cut to its b bits.
"""

import numpy as np
from llvmlite import ir
from numba import prange, types
from numba.extending import intrinsic

from emu.engine.kernels.jit import kernel
from emu.engine.kernels.vector import Vector

STREAMS = 16
SPAN = 1024  # elements drawn from one state of the streams on
GROUP = 4  # spans drawn at once, so that their latencies overlap
POWERS = 48  # doublings of the step: enough for 2^31 spans


@kernel
def fnv1a(text):
    """FNV-1a, 32 bit, over bytes."""
    h = np.int64(0x811C9DC5)
    for i in range(text.size):
        h = ((h ^ np.int64(text[i])) * np.int64(0x01000193)) & np.int64(0xFFFFFFFF)
    return h


@kernel(inline="always")
def left(x, n):
    """x << n in 32 bits."""
    return np.left_shift(x, np.uint32(n))


@kernel(inline="always")
def right(x, n):
    """x >> n in 32 bits."""
    return np.right_shift(x, np.uint32(n))


@kernel
def shifted_out(s):
    """The next 32 bits of an LFSR in state s, the first one lowest."""
    # 1 / (1 + x + x^2) = (1 + x) / (1 + x^3) = (1 + x) (1 + x^3) (1 + x^6) (1 + x^12) (1 + x^24)
    u = np.bitwise_xor(s, left(s, 1))
    u = np.bitwise_xor(u, left(u, 3))
    u = np.bitwise_xor(u, left(u, 6))
    u = np.bitwise_xor(u, left(u, 12))
    u = np.bitwise_xor(u, left(u, 24))
    # 1 / (p + x^22) = 1 / p + x^22 / p^2 modulo x^44; of u / p ten bits matter
    v = np.bitwise_xor(u, left(u, 1))
    v = np.bitwise_xor(v, left(v, 3))
    v = np.bitwise_xor(v, left(v, 6))
    return np.bitwise_xor(u, left(v, 22))


@kernel
def shift_states(states, bits, words):
    """Step all LFSRs 1 <= bits <= 32 times; `words` receives the bits they shift out."""
    mask = np.uint32(0xFFFFFFFF >> (32 - bits))
    left2, right2 = max(2 - bits, 0), max(bits - 2, 0)
    left22, right22 = max(22 - bits, 0), max(bits - 22, 0)
    for i in range(states.size):
        out = np.bitwise_and(shifted_out(states[i]), mask)
        words[i] = out
        kept = right(right(states[i], bits - 1), 1)
        high = np.bitwise_xor(left(out, 32 - bits), right(left(out, left22), right22))
        low = np.bitwise_xor(right(left(out, left2), right2), right(out, bits - 1))
        states[i] = np.bitwise_xor(kept, np.bitwise_xor(high, low))


@intrinsic
def cut_row(context, words, first, shift, mask, out, at):
    """out[at:at + 16] = (words[first:first + 16] >> shift) & mask, on uint32."""
    def code(context, builder, signature, arguments):
        source, destination = (
            context.make_array(signature.args[k])(context, builder, arguments[k]).data
            for k in (0, 4))
        vector = Vector(builder, ir.IntType(32), STREAMS)
        shift, mask = vector.splat(arguments[2]), vector.splat(arguments[3])
        found = vector.load(source, arguments[1], vector.elem)
        found = builder.and_(builder.lshr(found, shift), mask)
        vector.store(found, destination, arguments[5])
        return context.get_dummy_value()

    return types.void(words, types.intp, types.uint32, types.uint32, out, types.intp), code


@kernel
def draw_spans(states, rand_bits, out):
    """Fill the flat `out` with one span for each 16 of the flat `states`, which go on.

    Element i of a span draws from its LFSR i mod 16. One word is several draws.
    """
    draws = 32 // rand_bits  # in a word
    mask = np.uint32(0xFFFFFFFF >> (32 - rand_bits))
    words = np.empty_like(states)
    spans = states.size // STREAMS
    span = out.size // spans
    for start in range(0, span // STREAMS, draws):
        shift_states(states, draws * rand_bits, words)
        for k in range(min(draws, span // STREAMS - start)):
            for j in range(spans):
                cut_row(words, j * STREAMS, np.uint32(k * rand_bits), mask,
                        out, j * span + (start + k) * STREAMS)


@kernel(parallel=True)
def draw_all(states, rand_bits, out):
    """Fill the flat `out`, whole spans, from the states (spans, 16), whole groups."""
    for k in prange(states.shape[0] // GROUP):
        draw_spans(states[k * GROUP:(k + 1) * GROUP].reshape(-1), rand_bits,
                   out[k * GROUP * SPAN:(k + 1) * GROUP * SPAN])


@kernel
def jump(states, columns):
    """Multiply the flat `states` by a matrix over GF(2) of the given 32 columns, in place."""
    for i in range(states.size):
        product = np.uint32(0)
        for bit in range(32):
            on = np.negative(np.bitwise_and(right(states[i], bit), np.uint32(1)))
            product = np.bitwise_xor(product, np.bitwise_and(on, columns[bit]))
        states[i] = product


@kernel
def steps_doubled():
    """The matrices (POWERS, 32) of 1, 2, 4, 8... steps, by columns: each the square of the last."""
    powers = np.empty((POWERS, 32), np.uint32)
    for bit in range(32):
        powers[0, bit] = left(np.uint32(1), bit)
    shift_states(powers[0], 1, np.empty(32, np.uint32))
    for k in range(1, POWERS):
        for bit in range(32):
            powers[k, bit] = powers[k - 1, bit]
        jump(powers[k], powers[k - 1])
    return powers


@kernel
def advance(states, bits, powers):
    """Step all LFSRs `bits` times."""
    k = 0
    while bits >> k:
        if bits >> k & 1:
            jump(states, powers[k])
        k += 1


@kernel
def span_states(loads, span_bits, powers, out):
    """Flat states, 16 for each span, from which spans are drawn, `span_bits` steps apart."""
    for i in range(STREAMS):
        out[i] = loads[i]
    have = STREAMS
    while have < out.size:
        more = min(have, out.size - have)
        for i in range(more):
            out[have + i] = out[i]
        advance(out[have:have + more], have // STREAMS * span_bits, powers)
        have += more
