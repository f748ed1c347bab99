"""All 4-bit operands against the definition: every rounding, overflow and number of lanes, K <= 4.

The product of all sequences of a with all sequences of b is one matmul whose every output is
another sequence of pairs: for K = 2 its 256 x 256 outputs are all there are. All 2^32 sequences of
K = 4 are too many, and more than it takes: the hardware is a state machine, in which what a step
leaves depends on the register and on the codes of the step's products alone. So, for every
rounding, overflow and number of lanes:

- one step of one product: every register, as the start value, meets every pair of operands;
- one step of 2 to 4 products: both rails and 0 meet sequences of few codes,
  whose products reach the extremes and both sides of 0 (an adder tree knows nothing else);
- K of 2: every sequence of operands, from 0; K of 3 too in `make regression`;
- K of 3 and 4: every sequence of the few codes: one step follows another, the last may be short.

The results are those of an oracle on tables of products, which is itself compared with the
definition. Every path is compared with it; products that their cast changes have only the plain
one.
"""

import functools
from itertools import product

import numpy as np
import pytest
from path_cases import MODES

from emu import Cast, Format, MacSpec, Overflow, engine, reference
from emu.engine import paths
from emu.engine.operands import Matrix, Rows

S4 = Format(4)
CODES = np.arange(-8, 8)
FEW_A, FEW_B = [-8, -5, 3, 7], [-8, 1, 7]


def sequences(codes, length: int) -> np.ndarray:
    """All sequences of codes, as rows."""
    return np.stack(np.meshgrid(*[codes] * length, indexing="ij"), -1).reshape(-1, length)


def wrap_or_clip(x: np.ndarray, to: Cast) -> np.ndarray:
    """The range of an accumulator or product, on integers in numpy."""
    (lo, hi), form = to.range, to.format
    if to.overflow == Overflow.WRAP:
        return (x - form.lo) % (1 << form.width) + form.lo
    if to.overflow == Overflow.SAT_ZERO:
        return np.where((x < lo) | (x > hi), 0, x)
    return np.clip(x, lo, hi)


@functools.cache
def table(mac: MacSpec) -> np.ndarray:
    """The product's code of each of the 256 pairs, by the definition."""
    return np.array([[reference.fit(reference.round_shift(a * b, -mac.product.format.frac,
                                                          mac.product), mac.product)
                      for b in CODES.tolist()] for a in CODES.tolist()], np.int16)


def oracle(rows: np.ndarray, columns: np.ndarray, mac: MacSpec, start) -> np.ndarray:
    """(M, K) @ (K, N) on tables, step by step."""
    codes = table(mac)
    acc = np.zeros((len(rows), columns.shape[1]), np.int16) + np.asarray(start, np.int16)
    for k in range(0, rows.shape[1], mac.lanes):
        step = sum(codes[rows[:, i] + 8][:, columns[i] + 8]
                   for i in range(k, min(k + mac.lanes, rows.shape[1])))
        acc = wrap_or_clip(acc + step, mac.acc)
    return acc


def check(rows, columns, mac, start) -> None:
    """All paths give what the oracle gives; start (N,)."""
    want = oracle(rows, columns, mac, start)
    problem = paths.Problem(Rows(rows), Matrix(columns), mac, start[None])
    for path in {None, "plain", *paths.candidates(problem.facts)}:
        assert np.array_equal(engine.matmul(rows, columns, mac, start, path=path), want), (
            str(mac), path)


def macs(rounding, lanes: int) -> list[MacSpec]:
    """Products that overflow, fitted in each way, and products that never do; with the first
    rounding also products of all bits, for 16-bit lanes. Accumulators of each overflow."""
    products = [(Cast(Format(4, -2), rounding, overflow), "s5f-2") for overflow in Overflow]
    products.append((Cast(Format(6, -2), rounding), "s5f-2"))
    if rounding == 0:
        products += [(None, "s7"), (Cast(Format(6), 0, Overflow.SAT_SYM), "s7")]
    return [MacSpec(S4, S4, Cast(Format.parse(acc), 0, overflow), cast, lanes)
            for cast, acc in products for overflow in Overflow]


def every_sequence(rounding, lanes: int, length: int) -> None:
    """All sequences of pairs of this length, from 0."""
    every = sequences(CODES, length)
    for mac, first in product(macs(rounding, lanes), range(0, len(every), 512)):
        columns = every[first:first + 512].T
        check(every, columns, mac, np.zeros(columns.shape[1], np.int64))


@pytest.mark.parametrize("rounding", MODES)
def test_one_step_from_every_register_agrees(rounding):
    for mac in macs(rounding, 1):
        form = mac.acc.format
        registers = np.arange(form.lo, form.hi + 1)
        check(CODES[:, None], np.repeat(CODES, registers.size)[None], mac, np.tile(registers, 16))


@pytest.mark.parametrize("lanes", [2, 3, 4])
@pytest.mark.parametrize("rounding", MODES)
def test_one_step_of_many_products_agrees(rounding, lanes):
    rows, columns = sequences(FEW_A, lanes), sequences(FEW_B, lanes)
    for mac in macs(rounding, lanes):
        lo, hi = mac.acc.format.lo, mac.acc.format.hi
        registers = np.array([lo, 0, hi])
        check(rows, np.repeat(columns.T, 3, axis=1), mac, np.tile(registers, len(columns)))


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("rounding", MODES)
def test_every_sequence_of_two_agrees(rounding, lanes):
    every_sequence(rounding, lanes, 2)


@pytest.mark.parametrize(("lanes", "length"), [(2, 3), (1, 4), (2, 4), (3, 4)])
@pytest.mark.parametrize("rounding", MODES)
def test_sequences_of_three_and_four_agree(rounding, lanes, length):
    rows, columns = sequences(FEW_A, length), sequences(FEW_B, length).T
    for mac in macs(rounding, lanes):
        check(rows, columns, mac, np.zeros(columns.shape[1], np.int64))


@pytest.mark.parametrize("lanes", [1, 2, 3, 4])
@pytest.mark.parametrize("rounding", MODES)
def test_the_oracle_is_the_definition(rounding, lanes):
    rng = np.random.default_rng(rounding)
    for mac in macs(rounding, lanes):
        rows, columns = rng.choice(CODES, (3, 4)), rng.choice(CODES, (4, 3))
        start = rng.integers(mac.acc.format.lo, mac.acc.format.hi, 3, endpoint=True)
        assert oracle(rows, columns, mac, start).tolist() == reference.matmul(
            rows.tolist(), columns.tolist(), mac, start.tolist())
