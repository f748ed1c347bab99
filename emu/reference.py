"""The definition of every operation, on Python ints: slow, exact, and meant to be read.

Tensors are nested lists of codes. Nothing here knows of numpy, of speed, or of any other
implementation; the engine, the Verilog and the vectors are all checked against this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from emu.number import Cast, Overflow, Rounding
from emu.spec import MacSpec, UpdateSpec

# Casts


def _round_up(rest: int, whole: int, floor: int, negative: bool, rounding: Rounding) -> bool:
    """Whether the floor plus `rest/whole` is rounded to floor + 1; 0 <= rest < whole."""
    odd, lost, above, tie = floor % 2 == 1, rest > 0, 2 * rest > whole, 2 * rest == whole
    match rounding:
        case Rounding.TO_NEG: return False
        case Rounding.TO_POS: return lost
        case Rounding.TO_ZERO: return lost and negative
        case Rounding.TO_AWAY: return lost and not negative
        case Rounding.TO_ODD: return lost and not odd
        case Rounding.TIES_NEG: return above
        case Rounding.TIES_POS: return above or tie
        case Rounding.TIES_ZERO: return above or (tie and negative)
        case Rounding.TIES_AWAY: return above or (tie and not negative)
        case Rounding.TIES_EVEN: return above or (tie and odd)
        case Rounding.TIES_ODD: return above or (tie and not odd)
    raise ValueError(f"{rounding.name}: needs a random operand, so only a shift can use it; "
                     "divide with a deterministic rounding")


def round_divide(x: int, divisor: int, rounding: Rounding) -> int:
    """x / divisor to a whole number, divisor > 0. Raises ValueError for STOCHASTIC."""
    floor, rest = divmod(x, divisor)
    return floor + _round_up(rest, divisor, floor, x < 0, rounding)


def round_shift(x: int, n: int, to: Cast, rand: int | None = None) -> int:
    """x / 2^n to a whole number, in the rounding of `to`; an exact left shift where n <= 0.

    `rand` is the random operand of STOCHASTIC: R = `to.rand_bits` bits, read as a fraction of 1.
    """
    if to.rounding == Rounding.STOCHASTIC and (rand is None or not 0 <= rand < 1 << to.rand_bits):
        raise ValueError(f"rand {rand}: {to} needs a random operand of {to.rand_bits} bits")
    if n <= 0:
        return x << -n
    if to.rounding != Rounding.STOCHASTIC:
        return round_divide(x, 1 << n, to.rounding)
    floor, rest = divmod(x, 1 << n)
    return floor + (rest + (rand << n >> to.rand_bits) >= 1 << n)


def overflows(x: int, to: Cast) -> bool:
    """Whether the rounded x is outside the range of `to`'s overflow mode."""
    lo, hi = to.range
    return not lo <= x <= hi


def fit(x: int, to: Cast) -> int:
    """The rounded x as a code of `to`."""
    lo, hi = to.range
    match to.overflow:
        case Overflow.WRAP: return (x - lo) % (1 << to.format.width) + lo
        case Overflow.SAT | Overflow.SAT_SYM: return max(lo, min(hi, x))
        case Overflow.SAT_ZERO: return x if lo <= x <= hi else 0


def cast(x: int, frac: int, to: Cast, rand: int | None = None) -> int:
    """A code with `frac` fraction bits as a code of `to`.

    >>> [cast(x, 4, Cast.parse("s4 ties_even sat")) for x in (24, 40, -24, 900)]
    [2, 2, -2, 7]
    """
    return fit(round_shift(x, frac - to.format.frac, to, rand), to)


def passes(x: int, frac: int, to: Cast, rand: int | None = None) -> bool:
    """The straight-through gradient of the cast: False where saturation changed the value."""
    rounded = round_shift(x, frac - to.format.frac, to, rand)
    return to.overflow == Overflow.WRAP or not overflows(rounded, to)


def quantize(x: float, to: Cast, rand: int | None = None) -> int:
    """The float border: a finite float is a fraction over a power of two, cast exactly."""
    if not isfinite(x):
        raise ValueError(f"{x} is not finite; codes hold numbers only")
    numerator, denominator = x.as_integer_ratio()
    return cast(numerator, denominator.bit_length() - 1, to, rand)


# The MAC


def dot_steps(a: list[int], b: list[int], mac: MacSpec, bias: int = 0
              ) -> Iterator[tuple[int, bool]]:
    """Accumulate sum(a_k * b_k), yielding (result register, overflowed) after every step.

    The result register is acc, or outer where the MAC has two levels. A step overflows when any
    value fitted in it was out of range. Raises ValueError for codes outside their formats.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} operands a and {len(b)} operands b: a MAC takes pairs")
    _check("a", a, mac.a)
    _check("b", b, mac.b)
    _check("bias", [bias], mac.result.format)
    acc = outer = bias
    for start in range(0, len(a), mac.lanes):
        overflowed = False
        if mac.outer is not None and start % mac.tile == 0:
            zeros = mac.acc.format.frac - mac.outer.format.frac
            acc = outer << zeros if mac.reload else 0
            overflowed, acc = overflows(acc, mac.acc), fit(acc, mac.acc)
        stop = min(start + mac.lanes, len(a))
        rounded = [round_shift(a[k] * b[k], -mac.product.format.frac, mac.product)
                   for k in range(start, stop)]
        total = acc + sum(fit(p, mac.product) for p in rounded)
        overflowed |= any(overflows(p, mac.product) for p in rounded) or overflows(total, mac.acc)
        acc = fit(total, mac.acc)
        if mac.outer is not None and (stop % mac.tile == 0 or stop == len(a)):
            spilled = round_shift(acc, mac.acc.format.frac - mac.outer.format.frac, mac.outer)
            total = spilled if mac.reload else outer + fit(spilled, mac.outer)
            overflowed |= overflows(spilled, mac.outer) or overflows(total, mac.outer)
            outer = fit(total, mac.outer)
        yield (acc if mac.outer is None else outer), overflowed


def dot(a: list[int], b: list[int], mac: MacSpec, bias: int = 0) -> int:
    """sum(a_k * b_k) + bias as the MAC computes it; `bias` is a code of `mac.result.format`.

    >>> mac = MacSpec.parse("{a: s8, b: s8, acc: s8 sat}")
    >>> dot([100, 100, -100], [1, 1, 1], mac), dot([100, -100, 100], [1, 1, 1], mac)
    (27, 100)
    """
    result = bias
    for result, _ in dot_steps(a, b, mac, bias):  # noqa: B007
        pass
    _check("bias", [bias], mac.result.format)
    return result


def _check(name: str, codes: list[int], form) -> None:
    for code in codes:
        if not form.lo <= code <= form.hi:
            raise ValueError(f"{name} {code}: outside {form}, whose codes go from {form.lo} to "
                             f"{form.hi}; cast it first")


# Sums of products: every operation is a list of (a, b) operand lists, one for each output


def matmul_terms(a, b) -> Iterator[tuple[list[int], list[int]]]:
    """(M, K) @ (K, N), row-major; k is the order of accumulation."""
    columns = [list(column) for column in zip(*b, strict=True)]
    return ((row, column) for row in a for column in columns)


def _taps(channels: int, kernel: tuple[int, int], block: int) -> Iterator[tuple[int, int, int]]:
    """The order of k in a convolution: (channel block, ky, kx, channel in the block).

    Channels beyond the last are zeros that keep their place.
    """
    for first in range(0, channels, block):
        for ky in range(kernel[0]):
            for kx in range(kernel[1]):
                for c in range(first, first + block):
                    yield c, ky, kx


def _at(plane, y: int, x: int) -> int:
    """A pixel, or the zero of padding."""
    return plane[y][x] if 0 <= y < len(plane) and 0 <= x < len(plane[0]) else 0


def _out_size(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def conv2d_terms(x, w, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, block=1):
    """x (N, C, H, W), w (O, C/groups, KH, KW): operands for each output (N, O, OH, OW)."""
    channels, kernel = len(w[0]), (len(w[0][0]), len(w[0][0][0]))
    size = [_out_size(s, *p) for s, *p in zip((len(x[0][0]), len(x[0][0][0])), kernel, stride,
                                              padding, dilation, strict=True)]
    for image in x:
        for o, weights in enumerate(w):
            base = o // (len(w) // groups) * channels
            for oy in range(size[0]):
                for ox in range(size[1]):
                    a, b = [], []
                    for c, ky, kx in _taps(channels, kernel, block):
                        y = oy * stride[0] - padding[0] + ky * dilation[0]
                        column = ox * stride[1] - padding[1] + kx * dilation[1]
                        a.append(_at(image[base + c], y, column) if c < channels else 0)
                        b.append(weights[c][ky][kx] if c < channels else 0)
                    yield a, b


def conv2d_grad_input_terms(error, w, size, stride=(1, 1), padding=(0, 0), dilation=(1, 1),
                            groups=1, block=1):
    """error (N, O, OH, OW), w (O, C/groups, KH, KW): operands for each input (N, C, *size).

    k runs over (output channel block, ky, kx, channel in the block) with the weight's own,
    unflipped indices; holes of the stride are zeros that keep their place.
    """
    channels, kernel, outputs = len(w[0]), (len(w[0][0]), len(w[0][0][0])), len(w) // groups
    for image in error:
        for channel in range(channels * groups):
            base = channel // channels * outputs
            for y in range(size[0]):
                for x in range(size[1]):
                    a, b = [], []
                    for o, ky, kx in _taps(outputs, kernel, block):
                        oy, hole_y = divmod(y + padding[0] - ky * dilation[0], stride[0])
                        ox, hole_x = divmod(x + padding[1] - kx * dilation[1], stride[1])
                        real = o < outputs and not hole_y and not hole_x
                        a.append(_at(image[base + o], oy, ox) if real else 0)
                        b.append(w[base + o][channel % channels][ky][kx] if o < outputs else 0)
                    yield a, b


def conv2d_grad_weight_terms(x, error, kernel, stride=(1, 1), padding=(0, 0), dilation=(1, 1),
                             groups=1):
    """x (N, C, H, W), error (N, O, OH, OW): operands for each weight (O, C/groups, *kernel).

    k runs over (n, oy, ox) of the given batch.
    """
    channels, outputs = len(x[0]) // groups, len(error[0])
    size = range(len(error[0][0])), range(len(error[0][0][0]))
    for o in range(outputs):
        base = o // (outputs // groups) * channels
        for c in range(channels):
            for ky in range(kernel[0]):
                for kx in range(kernel[1]):
                    yield ([_at(image[base + c], oy * stride[0] - padding[0] + ky * dilation[0],
                                ox * stride[1] - padding[1] + kx * dilation[1])
                            for image in x for oy in size[0] for ox in size[1]],
                           [image[o][oy][ox]
                            for image in error for oy in size[0] for ox in size[1]])


def bias_grad_terms(error) -> Iterator[tuple[list[int], list[int]]]:
    """error (N, O) or (N, O, OH, OW) against the constant 1: operands for each bias (O,)."""
    for o in range(len(error[0])):
        codes = [code for image in error for code in _flat(image[o])]
        yield codes, [1] * len(codes)


def _flat(x) -> list[int]:
    return [code for part in x for code in _flat(part)] if isinstance(x, list) else [x]


def matmul(a, b, mac: MacSpec, bias=None) -> list[list[int]]:
    """(M, K) @ (K, N) -> accumulator codes (M, N); bias (N,)."""
    n = len(b[0])
    bias = bias or [0] * n
    results = [dot(*terms, mac, bias[i % n]) for i, terms in enumerate(matmul_terms(a, b))]
    return [results[i:i + n] for i in range(0, len(results), n)]


def conv2d(x, w, mac: MacSpec, bias=None, **geometry) -> list[int]:
    """Accumulator codes of (N, O, OH, OW), flat in row-major order; bias (O,)."""
    terms = list(conv2d_terms(x, w, block=mac.block, **geometry))
    pixels = len(terms) // (len(x) * len(w))
    bias = bias or [0] * len(w)
    return [dot(a, b, mac, bias[i // pixels % len(w)]) for i, (a, b) in enumerate(terms)]


def conv2d_grad_input(error, w, mac: MacSpec, size, **geometry) -> list[int]:
    """Accumulator codes of (N, C, *size), flat in row-major order."""
    return [dot(a, b, mac)
            for a, b in conv2d_grad_input_terms(error, w, size, block=mac.block, **geometry)]


def conv2d_grad_weight(x, error, mac: MacSpec, kernel, **geometry) -> list[int]:
    """Accumulator codes of (O, C/groups, *kernel), flat in row-major order."""
    return [dot(a, b, mac) for a, b in conv2d_grad_weight_terms(x, error, kernel, **geometry)]


def bias_grad(error, mac: MacSpec) -> list[int]:
    """Accumulator codes of (O,)."""
    return [dot(a, b, mac) for a, b in bias_grad_terms(error)]


# Pooling and ReLU


def _windows(plane, kernel, stride, padding) -> Iterator[list[tuple[int, int]]]:
    """The pixels (y, x) under each window of a plane, row-major, without the padding."""
    height, width = len(plane), len(plane[0])
    for oy in range(_out_size(height, kernel[0], stride[0], padding[0])):
        for ox in range(_out_size(width, kernel[1], stride[1], padding[1])):
            ys = range(oy * stride[0] - padding[0], oy * stride[0] - padding[0] + kernel[0])
            xs = range(ox * stride[1] - padding[1], ox * stride[1] - padding[1] + kernel[1])
            yield [(y, x) for y in ys for x in xs if 0 <= y < height and 0 <= x < width]


def max_pool2d(plane, kernel, stride, padding=(0, 0)) -> list[tuple[int, tuple[int, int]]]:
    """(code, pixel) of the first maximum under each window of one plane (H, W)."""
    return [max(((plane[y][x], (y, x)) for y, x in pixels), key=lambda found: found[0])
            for pixels in _windows(plane, kernel, stride, padding)]


def max_pool2d_grad(error, pixels, size) -> list[list[int]]:
    """Route each window's error to its maximum; overlapping windows add up exactly."""
    plane = [[0] * size[1] for _ in range(size[0])]
    for code, (y, x) in zip(error, pixels, strict=True):
        plane[y][x] += code
    return plane


def divide(x: int, divisor: int, frac: int, to: Cast) -> int:
    """x * 2^-frac / divisor as a code of `to`: one rounding, then fit."""
    n = frac - to.format.frac
    return fit(round_divide(x << max(-n, 0), divisor << max(n, 0), to.rounding), to)


def avg_pool2d(plane, frac: int, to: Cast, kernel, stride, padding=(0, 0),
               count_include_pad=True) -> list[int]:
    """The sum under each window, divided by its area (or valid count) in the cast `to`."""
    area = kernel[0] * kernel[1]
    return [divide(sum(plane[y][x] for y, x in pixels),
                   area if count_include_pad else len(pixels), frac, to)
            for pixels in _windows(plane, kernel, stride, padding)]


def avg_pool2d_grad(error, frac: int, to: Cast, size, kernel, stride, padding=(0, 0),
                    count_include_pad=True) -> list[list[int]]:
    """Each window's error divided in the cast `to`, then added exactly to all its pixels."""
    area = kernel[0] * kernel[1]
    plane = [[0] * size[1] for _ in range(size[0])]
    windows = list(_windows(plane, kernel, stride, padding))
    for code, pixels in zip(error, windows, strict=True):
        share = divide(code, area if count_include_pad else len(pixels), frac, to)
        for y, x in pixels:
            plane[y][x] += share
    return plane


def relu(x: int) -> int:
    """max(x, 0)."""
    return max(x, 0)


def relu_grad(error: int, x: int) -> int:
    """The error where x > 0, else 0."""
    return error if x > 0 else 0


# Random operands

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


# The weight update


def sgd(weight: int, momentum: int, grad: int, lr: int, mu: int, spec: UpdateSpec,
        rand_momentum: int | None = None, rand_weight: int | None = None) -> tuple[int, int]:
    """(weight', momentum') of one weight; every argument is a code of its cast in `spec`.

        momentum' = cast(mu * momentum + grad), weight' = cast(weight - lr * momentum')
    """
    momentum = cast(*_add(grad, spec.grad, mu * momentum, spec.mu, spec.momentum),
                    spec.momentum, rand_momentum)
    weight = cast(*_add(weight, spec.weight, -lr * momentum, spec.lr, spec.momentum),
                  spec.weight, rand_weight)
    return weight, momentum


def _add(addend: int, addend_cast: Cast, product: int, *factors: Cast) -> tuple[int, int]:
    """(code, frac) of addend + product, exactly, at the finer frac of the two."""
    frac = sum(factor.format.frac for factor in factors)
    finer = max(frac, addend_cast.format.frac)
    return (addend << finer - addend_cast.format.frac) + (product << finer - frac), finer
