"""Casts, exact products and stepped sums against APyTypes, in every rounding it has."""

from itertools import product

import apytypes
import numpy as np
import pytest
from engine_cases import filled
from strategies import DETERMINISTIC

from emu import Cast, Format, MacSpec, Overflow, Rounding, engine, reference

CODES = range(-32, 64)  # every code of every format of 1 to 6 bits
SHIFTS = range(-3, 10)  # left shifts, and right shifts beyond the width
EDGES = [sign * 2**bit + near for sign in (1, -1) for bit in (0, 7, 31, 32, 62, 80)
         for near in (-1, 0, 1)]
APY_ROUNDINGS = {rounding: "JAM_UNBIASED" if rounding == Rounding.TO_ODD else rounding.name
                 for rounding in DETERMINISTIC}
every_mode = pytest.mark.parametrize(
    ("rounding", "overflow"), list(product(DETERMINISTIC, (Overflow.WRAP, Overflow.SAT))),
    ids=lambda mode: mode.name)


def apy(codes, bits, frac=0):
    """Signed codes as an array of APyTypes."""
    return apytypes.APyFixedArray(np.asarray(codes, object).tolist(), bits=bits, frac_bits=frac)


def apy_cast(array, to):
    """An array of APyTypes in the format of a cast."""
    return array.cast(bits=to.format.width, frac_bits=to.format.frac,
                      quantization=apytypes.QuantizationMode[APY_ROUNDINGS[to.rounding]],
                      overflow=apytypes.OverflowMode[to.overflow.name])


def codes_of(array):
    """The signed codes of an array of APyTypes, as a list of Python ints."""
    half = 2 ** (array.bits - 1)
    patterns = np.array(array.to_bits(), object)
    return ((patterns + half) % (2 * half) - half).tolist()


@every_mode
def test_every_small_cast_is_that_of_apytypes(rounding, overflow):
    for width, n in product(range(1, 7), SHIFTS):
        to = Cast(Format(width), rounding, overflow)
        want = codes_of(apy_cast(apy(CODES, 7, n), to))
        assert [reference.cast(x, n, to) for x in CODES] == want, (to, n)
        assert engine.cast(list(CODES), n, to).tolist() == want, (to, n)


@every_mode
def test_wide_casts_are_those_of_apytypes(rounding, overflow):
    held = [i for i, x in enumerate(EDGES) if -(2**63) <= x < 2**63]  # by the engine's int64
    for width, n in product((1, 31, 32, 33, 63, 64), (-3, 0, 1, 31, 32, 33, 63, 64, 70)):
        to = Cast(Format(width), rounding, overflow)
        want = codes_of(apy_cast(apy(EDGES, 128, n), to))  # of 64 bits it overflows a limb
        assert [reference.cast(x, n, to) for x in EDGES] == want, (to, n)
        got = engine.cast([EDGES[i] for i in held], n, to)
        assert got.tolist() == [want[i] for i in held], (to, n)


@pytest.mark.parametrize("widths", [(1, 1), (2, 9), (8, 8), (16, 32), (31, 31), (32, 30)])
def test_exact_products_are_those_of_apytypes(widths):
    a, b = (filled(shape, Format(width), width) for shape, width in
            zip(((40, 1), (1, 40)), widths, strict=True))
    mac = MacSpec(*map(Format, widths), Cast(Format(62), overflow=Overflow.SAT))
    want = codes_of(apy(a, widths[0]) * apy(b, widths[1]))
    assert engine.matmul(a, b, mac).tolist() == want
    assert reference.matmul(a.tolist(), b.tolist(), mac) == want


@pytest.mark.parametrize("widths", [(1, 1), (8, 8), (5, 16), (28, 28)])
def test_exact_matrix_products_are_those_of_apytypes(widths):
    a, b = (filled(shape, Format(width), width) for shape, width in
            zip(((4, 33), (33, 5)), widths, strict=True))
    exact = apy(a, widths[0]) @ apy(b, widths[1])
    for overflow in (Overflow.WRAP, Overflow.SAT):
        for width in (62, 17, 6):
            mac = MacSpec(*map(Format, widths), Cast(Format(width), overflow=overflow), lanes=33)
            want = codes_of(apy_cast(exact, mac.acc))
            assert engine.matmul(a, b, mac).tolist() == want, mac
            assert reference.matmul(a.tolist(), b.tolist(), mac) == want, mac


@every_mode
@pytest.mark.parametrize("lanes", [1, 3])
def test_every_step_of_a_mac_is_that_of_apytypes(rounding, overflow, lanes):
    a, b = filled((4, 20), Format(6), 1), filled((20, 5), Format(5), 2)
    for acc in ("s9f-2 wrap", "s8f-2 sat"):
        mac = MacSpec(Format(6), Format(5), Cast.parse(acc),
                      Cast(Format(7, -2), rounding, overflow), lanes)
        total = apy(np.zeros((4, 5), int), mac.acc.format.width, -2)
        for start in range(0, 20, lanes):
            for k in range(start, min(start + lanes, 20)):
                exact = apy(a[:, k:k + 1], 6) * apy(b[k:k + 1], 5)
                total = total + apy_cast(exact, mac.product)
            total = apy_cast(total, mac.acc)
        assert engine.matmul(a, b, mac).tolist() == codes_of(total), mac
        assert reference.matmul(a.tolist(), b.tolist(), mac) == codes_of(total), mac
