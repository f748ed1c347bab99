"""Section 1 of the design restated on fractions, to judge `emu.reference` by.

Shares no code with `emu`: of a spec it reads the plain fields and the names of the modes, and it
works on real values where the reference works on codes.
"""

from fractions import Fraction
from functools import cache
from itertools import accumulate, repeat
from math import ceil, floor

import numpy as np

# A rounding of what is not whole chooses: `around` are the whole numbers below and above it,
# `nearest` those of them at the least distance (both at a tie).
CHOOSE = {
    "TO_NEG": lambda around, nearest: min(around),
    "TO_POS": lambda around, nearest: max(around),
    "TO_ZERO": lambda around, nearest: min(around, key=abs),
    "TO_AWAY": lambda around, nearest: max(around, key=abs),
    "TO_ODD": lambda around, nearest: max(around, key=is_odd),
    "TIES_NEG": lambda around, nearest: min(nearest),
    "TIES_POS": lambda around, nearest: max(nearest),
    "TIES_ZERO": lambda around, nearest: min(nearest, key=abs),
    "TIES_AWAY": lambda around, nearest: max(nearest, key=abs),
    "TIES_EVEN": lambda around, nearest: min(nearest, key=is_odd),
    "TIES_ODD": lambda around, nearest: max(nearest, key=is_odd),
}


def is_odd(code):
    """Whether the last bit is set."""
    return code & 1


def rounded(value, mode):
    """A fraction as a whole number, by the name of a rounding that needs no random operand."""
    around = {floor(value), ceil(value)}
    if len(around) == 1:
        return around.pop()
    distance = {code: abs(code - value) for code in around}
    nearest = {code for code in around if distance[code] == min(distance.values())}
    return CHOOSE[mode](around, nearest)


def dithered(value, rand, rand_bits):
    """Stochastic rounding: up when the fraction plus rand * 2^-R reaches 1."""
    return floor(value + Fraction(rand, 2**rand_bits))


def limits(to):
    """The least and the greatest code that the overflow mode of a cast leaves alone."""
    if not to.format.signed:
        return 0, 2**to.format.width - 1
    hi = 2 ** (to.format.width - 1) - 1
    return (-hi if to.overflow.name == "SAT_SYM" else -hi - 1), hi


def fitted(code, to):
    """A whole number as a code of the cast."""
    lo, hi = limits(to)
    match to.overflow.name:
        case "WRAP":
            kept = code & 2**to.format.width - 1
            return kept - 2**to.format.width if kept > hi else kept
        case "SAT" | "SAT_SYM":
            return sorted([lo, code, hi])[1]
        case "SAT_ZERO":
            return 0 if code < lo or hi < code else code


def whole(value, to, rand=None):
    """A real value in units of the cast's last bit, rounded but not yet fitted."""
    value = value * power_of_two(to.format.frac)
    if to.rounding.name == "STOCHASTIC":
        return dithered(value, rand, to.rand_bits)
    return rounded(value, to.rounding.name)


def cast(value, to, rand=None):
    """A real value as a code of the cast."""
    return fitted(whole(value, to, rand), to)


def passes(value, to, rand=None):
    """The straight-through gradient: blocked exactly where a saturation changed the code."""
    code = whole(value, to, rand)
    return to.overflow.name == "WRAP" or fitted(code, to) == code


def value_of(code, form):
    """The real value of a code."""
    return code * power_of_two(-form.frac)


@cache
def power_of_two(exponent):
    """2^exponent, exactly."""
    return Fraction(2) ** exponent


# The MAC, on real values: every register holds a value that its cast has settled.


class Register:
    """A value held in the format of a cast; `events` counts what did not fit."""

    def __init__(self, to):
        self.to, self.value, self.events = to, Fraction(0), 0

    def load(self, value):
        """Settle a value into the register and return it."""
        code = whole(value, self.to)
        self.events += not limits(self.to)[0] <= code <= limits(self.to)[1]
        self.value = value_of(fitted(code, self.to), self.to.format)
        return self.value


def chunks(items, size):
    """Consecutive parts of `size` items; the last may be short."""
    return [items[i:i + size] for i in range(0, len(items), size)]


def mac_run(a, b, mac, bias=0):
    """(result code, number of overflows) of sum(a_k * b_k) + bias."""
    product, acc = Register(mac.product), Register(mac.acc)
    outer = acc if mac.outer is None else Register(mac.outer)
    spill = Register(outer.to)
    outer.value = value_of(bias, outer.to.format)
    tiles = chunks(list(zip(a, b, strict=True)), mac.tile or max(len(a), 1))
    for tile in tiles:
        if mac.outer is not None:
            acc.load(outer.value if mac.reload else 0)
        for step in chunks(tile, mac.lanes):
            acc.load(acc.value + sum(product.load(Fraction(x) * y) for x, y in step))
        if mac.reload:
            outer.load(acc.value)
        elif mac.outer is not None:
            outer.load(outer.value + spill.load(acc.value))
    overflows = sum(register.events for register in {product, acc, outer, spill})
    return int(outer.value * power_of_two(outer.to.format.frac)), overflows


def dot(a, b, mac, bias=0):
    """The code of sum(a_k * b_k) + bias."""
    return mac_run(a, b, mac, bias)[0]


# The order of k, on arrays: pad with real zeros, cut the windows out, transpose.


def in_blocks(taps, block):
    """(C, KH, KW) flat in the order (channel block, ky, kx, channel), padded with zero channels."""
    padded = np.pad(taps, ((0, -len(taps) % block), (0, 0), (0, 0)))
    by_block = padded.reshape(-1, block, *taps.shape[1:])
    return by_block.transpose(0, 2, 3, 1).ravel().tolist()


def conv2d_operands(x, w, stride, padding, dilation, groups, block):
    """(a, b) of each output (N, O, OH, OW), row-major; x (N, C, H, W), w (O, C/groups, KH, KW)."""
    x = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, w.shape[2:], strict=True)]
    ys, xs = (range(0, x.shape[axis] - reach[axis - 2] + 1, stride[axis - 2]) for axis in (2, 3))
    for image in x:
        of_group = np.repeat(np.split(image, groups), len(w) // groups, axis=0)
        for planes, weights in zip(of_group, w, strict=True):
            for y in ys:
                for left in xs:
                    window = planes[:, y:y + reach[0]:dilation[0], left:left + reach[1]:dilation[1]]
                    yield in_blocks(window, block), in_blocks(weights, block)


def conv2d_grad_input_operands(error, w, size, stride, padding, dilation, groups, block):
    """(a, b) of each input (N, C, *size); error (N, O, OH, OW) is spread to the stride's grid."""
    n, outputs, *out = error.shape
    margin = [d * (k - 1) for d, k in zip(dilation, w.shape[2:], strict=True)]
    spread = np.zeros((n, outputs, *(m + max(s * o, i + p) for m, s, o, i, p in zip(
        margin, stride, out, size, padding, strict=True))), dtype=int)
    spread[:, :, margin[0]:margin[0] + stride[0] * out[0]:stride[0],
           margin[1]:margin[1] + stride[1] * out[1]:stride[1]] = error
    for image in spread:
        for planes, weights in zip(np.split(image, groups), np.split(w, groups), strict=True):
            for channel in range(w.shape[1]):
                for y in range(size[0]):
                    for x in range(size[1]):
                        rows = margin[0] + y + padding[0] - dilation[0] * np.arange(w.shape[2])
                        columns = margin[1] + x + padding[1] - dilation[1] * np.arange(w.shape[3])
                        taps = planes[:, rows[:, None], columns]
                        yield in_blocks(taps, block), in_blocks(weights[:, channel], block)


def conv2d_grad_weight_operands(x, error, kernel, stride, padding, dilation, groups):
    """(a, b) of each weight (O, C/groups, *kernel), k = (n, oy, ox)."""
    x = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    span = [s * (o - 1) + 1 for s, o in zip(stride, error.shape[2:], strict=True)]
    for x_group, e_group in zip(np.split(x, groups, axis=1), np.split(error, groups, axis=1),
                                strict=True):
        for o in range(e_group.shape[1]):
            for c in range(x_group.shape[1]):
                for top in range(0, kernel[0] * dilation[0], dilation[0]):
                    for left in range(0, kernel[1] * dilation[1], dilation[1]):
                        window = x_group[:, c, top:top + span[0]:stride[0],
                                         left:left + span[1]:stride[1]]
                        yield window.ravel().tolist(), e_group[:, o].ravel().tolist()


# The LFSR as a field: a state is a polynomial over GF(2), a step multiplies it by x.

FIELD = 1 << 32 | 1 << 31 | 1 << 30 | 1 << 10 | 1


def mirrored(state):
    """State bit i is the coefficient of x^(31-i), and back."""
    return int(f"{state:032b}"[::-1], 2)


def times(p, q):
    """The product of two polynomials modulo FIELD."""
    result = 0
    for bit in f"{q:b}":
        result <<= 1
        if result >> 32:
            result ^= FIELD
        if bit == "1":
            result ^= p
    return result


def power(p, exponent):
    """p^exponent modulo FIELD, by squaring."""
    result = 1
    for bit in f"{exponent:b}":
        result = times(result, result)
        if bit == "1":
            result = times(result, p)
    return result


def shifted_out(load, count):
    """The first `count` bits an LFSR shifts out: the coefficients of x^31."""
    states = accumulate(repeat(0, count - 1), lambda p, _: times(p, 2), initial=mirrored(load))
    return [state >> 31 for state in states]


def operands(load, count, rand_bits):
    """The first `count` random operands of one stream, the first bit of each lowest."""
    bits = shifted_out(load, count * rand_bits)
    return [int("".join(str(bit) for bit in reversed(part)), 2) for part in chunks(bits, rand_bits)]


def fnv1a(data):
    """FNV-1a, 32 bits."""
    h = 2166136261
    for byte in data:
        h = ((h ^ byte) * 16777619) & 0xFFFFFFFF
    return h


def fmix32(h):
    """The finaliser of MurmurHash3."""
    h = ((h ^ h >> 16) * 0x85EBCA6B) & 0xFFFFFFFF
    h = ((h ^ h >> 13) * 0xC2B2AE35) & 0xFFFFFFFF
    return h ^ h >> 16


def sgd(weight, momentum, grad, lr, mu, spec, rand_momentum=None, rand_weight=None, decay=0,
        rand_nesterov=None):
    """(weight', momentum') of SGD with momentum, on real values between the casts."""
    real = {name: value_of(code, getattr(spec, name).format) for name, code in
            {"weight": weight, "momentum": momentum, "grad": grad, "lr": lr, "mu": mu}.items()}
    gradient, moved = real["grad"], real["weight"]
    if spec.decay is not None:
        gradient += value_of(decay, spec.decay.format) * real["weight"]
    if spec.shrink is not None:
        moved *= 1 - value_of(decay, spec.shrink.format)
    momentum = cast(real["mu"] * real["momentum"] + gradient, spec.momentum, rand_momentum)
    direction = value_of(momentum, spec.momentum.format)
    if spec.nesterov is not None:
        ahead = cast(gradient + real["mu"] * direction, spec.nesterov, rand_nesterov)
        direction = value_of(ahead, spec.nesterov.format)
    return cast(moved - real["lr"] * direction, spec.weight, rand_weight), momentum


def rescale(x, spec, channel=0):
    """The code of an accumulator, on real values: scale, round once or twice, shift, clamp."""
    product = Fraction((x - spec.input_zp) * spec.multiplier[channel])
    shift, mode = spec.shift[channel], spec.to.rounding.name
    if spec.double and shift > 31:
        product, shift = rounded(product / 2**31, "TIES_POS"), shift - 31
    elif spec.double:
        mode = "TIES_POS"
    code = fitted(rounded(Fraction(product) / 2**shift, mode) + spec.output_zp, spec.to)
    return sorted([spec.clamp[0], code, spec.clamp[1]])[1]


def buffered_sgd(weight, buffer, grad, shift, spec, rand=None):
    """(weight', buffer') of SGD through a gradient buffer, on real values."""
    total = value_of(buffer, spec.buffer.format) + value_of(grad, spec.grad.format)
    held = value_of(cast(total, spec.buffer), spec.buffer.format)
    step = whole(held * power_of_two(-shift), spec.weight, rand)
    rest = held - value_of(step, spec.weight.format) * power_of_two(shift)
    code = rest * power_of_two(spec.buffer.format.frac)
    assert code.denominator == 1
    return fitted(weight - step, spec.weight), int(code)
