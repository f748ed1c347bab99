"""How closely a choice of path looks at the codes; whatever it sees, the result is the plain one.

A closer look costs time and may find a faster path. What is proven from the dtypes alone must not
depend on the codes, and a sample of them must never prove anything.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from emu import MacSpec, engine
from emu.engine import paths
from emu.engine.matmul import _near
from emu.engine.operands import Matrix, Rows

BYTE = (-128, 127)
BIG = paths.SAMPLE * 3


class Unseen(Matrix):
    """Columns of which nobody may ask the bounds."""

    @property
    def bounds(self):
        raise AssertionError("looked at")


def mac(text: str) -> MacSpec:
    return MacSpec.parse(f"{{a: s8, b: s8, {text}}}")


def columns(first: int, last: int, depth: int = 3) -> np.ndarray:
    """int8 codes (depth, BIG) which lie as BIG rows: `first` is all that a sample sees."""
    codes = np.full((BIG, depth), last, np.int8)
    codes[:paths.SAMPLE] = first
    return codes.T


@pytest.mark.parametrize("text", ["acc: s20", "acc: s20 sat", "acc: u32", "acc: s20 sat_zero"])
def test_dtypes_that_prove_the_fastest_path_need_no_look(text):
    problem = paths.Problem(Rows(np.ones((2, 3), np.int8)), Unseen(columns(1, 1)), mac(text), None)
    assert paths.choose(problem, None) in {"int_mm", "quads", "sum32"}
    assert problem.facts.b_bounds == BYTE


@pytest.mark.parametrize(("first", "last", "seen", "path"), [
    (127, 0, BYTE, "step16"),  # as fast as what the sample promises
    (1, 127, (0, 127), "step16"),  # the sample promises more than is true
    (1, 2, (0, 2), "exact")])  # and here it is true
def test_a_sample_only_says_whether_to_look_closer(first, last, seen, path):
    hardware, rows = mac("acc: s16 sat"), np.full((2, 3), 127, np.int8)
    x = columns(first, last)
    problem = paths.Problem(Rows(rows), Matrix(x), hardware, None)
    chosen = paths.choose(problem, None)
    assert chosen == path or (path == "exact" and chosen in {"quads", "sum32", "int_mm"})
    assert problem.facts.b_bounds == seen
    want = engine.matmul(rows, x, hardware, path="plain")
    assert np.array_equal(engine.matmul(rows, x, hardware), want)
    assert want.max() == min(2**15 - 1, 3 * 127 * max(first, last))


@pytest.mark.parametrize(("text", "path", "seen"), [
    ("acc: s16 sat", "step16", BYTE), ("acc: s20", "sum64", BYTE),
    ("acc: s16 sat", "sum64", (0, 1))])  # only the codes prove that nothing saturates
def test_a_forced_path_is_proven_by_the_dtypes_or_by_the_codes(text, path, seen):
    problem = paths.Problem(Rows(np.ones((2, 3), np.int8)), Matrix(columns(1, 0)), mac(text), None)
    assert paths.choose(problem, path) == path
    assert problem.facts.b_bounds == seen


def test_bounds_that_are_powers_of_two_hold_those_they_stand_for():
    for low, high in product([0, -1, -2, -3, -128, -129, -(2**62)], [0, 1, 2, 127, 128, 2**62]):
        least, most = _near(low, high)
        assert (low and 2 * low) <= least <= low and high <= most <= 2 * high
    assert (_near(-128, 127), _near(0, 1), _near(-1, 0)) == (BYTE, (0, 1), (-1, 0))


@pytest.mark.parametrize("start", [0, 1000, 2**23 - 1, -(2**23)])
def test_bounds_of_the_codes_prove_what_their_dtypes_do_not(start):
    """No prefix leaves the accumulator, which dtypes alone do not say, or some do."""
    hardware, rng = mac("acc: s24 sat"), np.random.default_rng(0)
    for width in (8, 16, 128):
        a, b = (rng.integers(-width, width, shape).astype(np.int8)
                for shape in ((5, 600), (600, 7)))
        for bias in (None, np.full(7, start)):
            want = engine.matmul(a, b, hardware, bias, path="plain")
            assert np.array_equal(engine.matmul(a, b, hardware, bias), want)


def test_start_values_count_before_the_dtypes_decide():
    hardware, a = mac("acc: s24 sat"), np.full((2, 3), 100, np.int8)
    top = hardware.acc.format.hi
    assert engine.matmul(a, a.T, hardware, bias=[0, top]).tolist() == [[30000, top]] * 2


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64])
@pytest.mark.parametrize(("text", "path"), [
    ("acc: s9 sat", "thin32"), ("acc: s12 sat_sym, lanes: 3", "thin32"), ("acc: s12", "thin32"),
    ("acc: u30", "thin32"), ("acc: s60", "thin32"), ("acc: s40 sat", "thin64")])
def test_one_column_meets_rows_that_lie_side_by_side(text, path, dtype):
    """As the errors of a batch do whose sums are the gradient of a bias."""
    hardware, depth = mac(text), 3 * paths.LONG
    rows = np.random.default_rng(0).integers(-128, 128, (depth, 1100)).astype(dtype).T
    ones = np.ones((depth, 1), np.int8)
    problem = paths.Problem(Rows(rows), Matrix(ones), hardware, None)
    assert next(paths.candidates(problem.facts)) == path
    bias = np.array([hardware.acc.format.hi])
    for start in (None, bias):
        want = engine.matmul(rows, ones, hardware, start, path="plain")
        assert np.array_equal(engine.matmul(rows, ones, hardware, start), want)
        assert np.array_equal(engine.matmul(rows[:3], ones, hardware, start), want[:3])
        by_rows = np.ascontiguousarray(rows)
        assert np.array_equal(engine.matmul(by_rows, ones, hardware, start), want)
    want = engine.matmul(rows, ones, hardware, path="plain")
    turned = engine.matmul(ones.T, rows.T, replace(hardware, a=hardware.b, b=hardware.a))
    assert np.array_equal(turned, want.T)


@pytest.mark.parametrize("bias", [None, np.arange(-3, 30)])
@pytest.mark.parametrize("text", ["acc: s20", "acc: s20 sat", "acc: s16 sat", "acc: s40 sat",
                                  "acc: s9 sat", "acc: s20 sat, tile: 3, outer: s24 sat"])
def test_products_turned_over_or_not_agree(text, bias):
    rng = np.random.default_rng(0)
    for m, n in ((33, 33), (3, 33), (100, 33)):
        a, b = (rng.integers(-128, 128, shape).astype(np.int8) for shape in ((7, m), (n, 7)))
        want = engine.matmul(a.T, b.T, mac(text), bias, path="plain")
        assert np.array_equal(engine.matmul(a.T, b.T, mac(text), bias), want)
        turned = engine.matmul(b, a, mac(text)).T
        assert np.array_equal(turned, engine.matmul(a.T, b.T, mac(text)))
