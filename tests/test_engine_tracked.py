"""The tracked path: exact sums whose prefixes are looked at once in a block, and their replay.

What is at risk is compared with the definition of risk, written out on every prefix.
"""

import numpy as np
import pytest

from emu import MacSpec, engine
from emu.engine import run
from emu.engine.kernels import gemm
from emu.engine.kernels.tiles import GROUP, REPLAY
from emu.engine.kernels.vector import has_vnni
from emu.engine.operands import Matrix, Rows
from emu.engine.paths import BLOCK, Problem, candidates

pytestmark = pytest.mark.skipif(not has_vnni(), reason="needs AVX-512 VNNI")

CALM = 8  # rows that tell how the others will fare: one tile of them, without risk
N = 3 * GROUP


@pytest.fixture
def tracked(monkeypatch):
    """mac, a, b, bias -> (codes, vectors found at risk, vectors stepped again), all paths equal."""
    seen = {}

    def launch(kernel, additions, *arguments):
        if kernel is gemm.replay:
            seen["again"] = arguments[5].size
        result = kernel(*arguments)
        if kernel is gemm.tracked:
            seen["risk"] = arguments[7]
        return result

    def call(mac, a, b, bias=0):
        seen.clear()
        start = np.broadcast_to(np.asarray(bias, np.int64), (1, b.shape[1]))
        problem = Problem(Rows(a), Matrix(b), mac, start)
        assert "tracked" in candidates(problem.facts)
        monkeypatch.setattr(run, "launch", launch)
        codes, up = run.compute(problem, "tracked")
        monkeypatch.undo()
        got = codes[:len(a), :b.shape[1]]
        assert up == 0 and np.array_equal(
            got, engine.matmul(a, b, mac, np.array(start[0]), path="plain")), mac
        groups = -(-b.shape[1] // GROUP)
        return got, seen["risk"][:len(a), :groups].astype(bool), seen.get("again", 0)

    return call


def reaches(a, b, bias, mac) -> np.ndarray:
    """(rows, vectors): whether a prefix of any of the vector's outputs leaves the rails."""
    prefixes = bias + np.cumsum(a[:, :, None].astype(int) * b[None], axis=1)
    outside = ((prefixes < mac.acc.range[0]) | (prefixes > mac.acc.range[1])).any(1)
    filled = np.pad(outside, ((0, 0), (0, -outside.shape[1] % GROUP)))
    return filled.reshape(len(a), -1, GROUP).any(2)


def drifting(rows: list[int], k: int, count: int, low: int = -3) -> np.ndarray:
    """Small codes, and in `rows` codes that all are 100."""
    a = np.random.default_rng(0).integers(low, 4, (count, k))
    a[rows] = 100
    return a


@pytest.mark.parametrize("risky", range(2 * REPLAY + 2))
@pytest.mark.parametrize("form", ["s8", "u8"])
def test_any_number_of_vectors_is_stepped_again(form, risky, tracked):
    mac = MacSpec.parse(f"{{a: s8, b: {form}, acc: s17 sat}}")
    rows = list(range(CALM, CALM + risky))
    b = np.random.default_rng(1).integers(60, mac.b.hi + 1, (40, GROUP))
    a = drifting(rows, 40, 16 * 5)
    got, risk, again = tracked(mac, a, b)
    assert risk[:, 0].nonzero()[0].tolist() == rows
    assert again == -(-risky // REPLAY) * REPLAY
    assert (got[rows] == mac.acc.format.hi).all()


@pytest.mark.parametrize(("rows", "fraction"), [([], 0), (range(0, 9), 0), (range(8, 64), 56 / 64)])
def test_rows_are_stepped_at_once_where_the_first_ones_are_at_risk(rows, fraction, tracked):
    mac = MacSpec.parse("{a: s8, b: s8, acc: s17 sat}")
    a = drifting(list(rows), 40, 64)
    _, risk, again = tracked(mac, a, np.full((40, N), 90))
    assert again == fraction * risk.size  # risky first rows: no replay, all is stepped


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("lanes", [1, 2, 3, 7, 16, 17, 40])
@pytest.mark.parametrize("k", [17, 31, 32, 37, 48, 64, 100])
def test_what_leaves_the_rails_is_found_and_replayed(k, lanes, seed, tracked, monkeypatch):
    monkeypatch.setattr(run, "RISKY", dict.fromkeys(run.RISKY, 1))  # never step all instead
    rng = np.random.default_rng([k, lanes, seed])
    overflow, form = [("sat", "s8"), ("sat_sym", "u8"), ("sat", "u7"), ("sat_sym", "s8")][seed]
    mac = MacSpec.parse(f"{{a: s8, b: {form}, acc: s15 {overflow}, lanes: {lanes}}}")
    a = rng.integers(-20, 21, (61, k))
    a[CALM:][rng.random(61 - CALM) < 0.3] *= 3
    a[:CALM] //= 8
    b, bias = rng.integers(mac.b.lo // 3, mac.b.hi // 3, (k, 77)), np.zeros(77, int)
    bias[70] = rng.choice([mac.acc.format.lo, 0, mac.acc.format.hi // 2, mac.acc.format.hi])
    _, risk, again = tracked(mac, a, b, bias)
    assert not (reaches(a, b, bias, mac) & ~risk).any()
    assert again >= np.count_nonzero(risk)


# An excursion inside one block, which its ends do not show

def excursion(height: int, sign: int, k: int, first: int) -> np.ndarray:
    """Up by `height` in eight steps from `first` on, and down again in eight."""
    row = np.zeros(k, int)
    steps = np.diff(np.linspace(0, height, 9).astype(int))
    row[first:first + 8], row[first + 8:first + 16] = steps * sign, -steps * sign
    return row


@pytest.mark.parametrize("first", [0, 16, 32, 5, 20])
@pytest.mark.parametrize(("sign", "bias", "height", "at_risk"), [
    # s10: -512 to 511. A block's ends see the start; half its norm is the height.
    (1, 0, 511, False), (1, 0, 512, True), (1, 211, 300, False), (1, 211, 301, True),
    (-1, -212, 300, False), (-1, -212, 301, True), (-1, 511, 1, True), (1, -512, 1, True),
    (1, 511, 0, False), (1, -512, 0, False), (1, 510, 1, False),
])
def test_an_excursion_inside_a_block_is_found(sign, bias, height, at_risk, first, tracked):
    mac = MacSpec.parse("{a: s8, b: s8, acc: s10 sat}")
    a = np.zeros((80, 48), int)
    a[40] = excursion(height, sign, 48, first)
    got, risk, _ = tracked(mac, a, np.ones((48, GROUP), int), bias)
    if first % BLOCK == 0:
        assert risk[40].all() == at_risk
    assert risk[40].all() or -512 <= bias + sign * height <= 511
    assert not risk[np.arange(80) != 40].any()
    want = np.clip(bias + sign * height, -512, 511) - sign * height
    assert (got[40] == want).all() and (got[np.arange(80) != 40] == bias).all()


def test_half_a_norm_is_a_whole_number(tracked):
    """Up by 511 and down by 512: no prefix exceeds 511, although half the norm is 511.5."""
    a = np.zeros((80, 48), int)
    a[40] = excursion(511, 1, 48, 16)
    a[40, 31] -= 1
    got, risk, _ = tracked(MacSpec.parse("{a: s8, b: s8, acc: s10 sat}"), a,
                           np.ones((48, GROUP), int))
    assert not risk.any() and (got[40] == -1).all()


@pytest.mark.parametrize("column", range(0, GROUP + 3))
@pytest.mark.parametrize("row", [8, 15, 16, 47])
def test_one_output_alone_is_found(row, column, tracked):
    mac = MacSpec.parse("{a: s8, b: s8, acc: s19 sat}")
    a, b = np.zeros((48, 32), int), np.zeros((32, GROUP + 3), int)
    a[row], b[:, column] = 127, 127
    got, risk, again = tracked(mac, a, b)
    assert np.argwhere(risk).tolist() == [[row, column // GROUP]] and again == REPLAY
    assert got[row, column] == mac.acc.format.hi and np.count_nonzero(got) == 1


def test_a_sum_that_wraps_an_int32_after_it_left_the_rails_is_found(tracked):
    mac = MacSpec.parse("{a: s8, b: u8, acc: s31 sat}")
    k = 2**17 + 5
    a = np.zeros((80, k), np.int8)
    a[30:33] = [[127], [-128], [1]]
    got, risk, _ = tracked(mac, a, np.full((k, 1), 255, np.uint8).astype(np.int16))
    assert risk[:, 0].nonzero()[0].tolist() == [30, 31]
    assert got[30:33, 0].tolist() == [2**30 - 1, -(2**30), 255 * k]
