"""AdderNet: sums of absolute differences in the accumulator of a MAC, instead of products.

    y = bias - sum |x_k - w_k|

Both operands are codes of one grid. Where a MAC multiplies, this unit subtracts, takes the
magnitude and subtracts that from the accumulator; lanes, order, tiles and overflow are those of the
`MacSpec`, whose product cast is exact. The gradients are those of Chen et al., AdderNet (arXiv
1912.13200, equations 6 and 8): products of a difference and an error, under MACs of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt

from emu.reference.mac import accumulate, dot
from emu.reference.sums import conv2d_grad_input_terms, conv2d_grad_weight_terms, conv2d_terms
from emu.spec import MacSpec

FACTOR = 24  # bits of the factor that normalises a gradient


def adder_steps(x: list[int], w: list[int], mac: MacSpec, bias: int = 0
                ) -> Iterator[tuple[int, bool]]:
    """As `dot_steps`, of bias - sum |x_k - w_k|; raises ValueError for a product that is cast."""
    if not mac.exact_product:
        raise ValueError(f"{mac}: a sum of absolute differences has no products to cast; leave "
                         "product out")
    for name, codes, form in (("x", x, mac.a), ("w", w, mac.b)):
        for code in codes:
            if not form.lo <= code <= form.hi:
                raise ValueError(f"{name} {code}: outside {form}, whose codes go from {form.lo} "
                                 f"to {form.hi}; cast it first")
    terms = [-abs(a - b) << mac.product.format.frac for a, b in zip(x, w, strict=True)]
    return accumulate(terms, mac, bias, [False] * len(terms))


def adder_dot(x: list[int], w: list[int], mac: MacSpec, bias: int = 0) -> int:
    """bias - sum |x_k - w_k| as the hardware computes it.

    >>> adder_dot([1, 5, -3], [2, 2, -3], MacSpec.parse("{a: s8, b: s8, acc: s8 sat}"), 10)
    6
    """
    result = bias
    for result, _ in adder_steps(x, w, mac, bias):  # noqa: B007
        pass
    return result


def adder2d(x, w, mac: MacSpec, bias=None, **geometry) -> list[int]:
    """Codes of (N, O, OH, OW), flat; x (N, C, H, W), w (O, C/groups, KH, KW), bias (O,).

    Padding is zeros, which differ from weights too.
    """
    terms = list(conv2d_terms(x, w, block=mac.block, **geometry))
    pixels = len(terms) // (len(x) * len(w))
    bias = bias or [0] * len(w)
    return [adder_dot(a, b, mac, bias[i // pixels % len(w)]) for i, (a, b) in enumerate(terms)]


def adder2d_grad_weight(x, w, error, mac: MacSpec, **geometry) -> list[int]:
    """sum (x - w) e for each weight, flat: the full difference instead of its sign.

    The MAC's a is the difference, its b the error; k runs over (n, oy, ox).
    """
    kernel = len(w[0][0]), len(w[0][0][0])
    weights = [code for o in w for c in o for row in c for code in row]
    terms = conv2d_grad_weight_terms(x, error, kernel, **geometry)
    return [dot([a - code for a in xs], errors, mac)
            for code, (xs, errors) in zip(weights, terms, strict=True)]


def adder2d_grad_input(x, w, error, mac: MacSpec, limit: int, **geometry) -> list[int]:
    """sum clip(w - x, -limit, limit) e for each input, flat; `limit` is the code of 1.

    The MAC's a is the clipped difference, its b the error; k runs as in a convolution's.
    """
    size = len(x[0][0]), len(x[0][0][0])
    pixels = [code for image in x for plane in image for row in plane for code in row]
    terms = conv2d_grad_input_terms(error, w, size, block=mac.block, **geometry)
    return [dot([max(-limit, min(limit, b - code)) if e else 0
                 for e, b in zip(errors, ws, strict=True)], errors, mac)
            for code, (errors, ws) in zip(pixels, terms, strict=True)]


def adder_factor(grad: list[int], frac: int) -> tuple[int, int]:
    """(code, its frac) of sqrt(n) / (5 |grad|), which normalises a layer's n weight gradients.

    |grad| is the Euclidean norm; the factor has 24 bits, its square is compared exactly and ties go
    up; (0, 0) for zeros. AdderNet's adaptive learning rate, equation 12, with eta = 1 / 5.

    >>> adder_factor([3, -4], 0)  # sqrt(2) / 25
    (15185002, 28)
    """
    squares = sum(code * code for code in grad)
    if not squares:
        return 0, 0
    # the square of the factor is top / below * 4^frac
    top, below = len(grad), 25 * squares
    exponent = (top.bit_length() - below.bit_length() + 2 * frac) // 2 + 1
    for fine in (FACTOR - exponent - 1, FACTOR - exponent, FACTOR - exponent + 1):
        up = 2 * (frac + fine)
        a, b = top << max(up, 0), below << max(-up, 0)
        code = isqrt(a // b)
        code += 4 * a >= (2 * code + 1) ** 2 * b
        if code >> FACTOR - 1:
            return code, fine
    raise AssertionError("a factor of 24 bits lies between these")
