"""Load words and random operands, against the definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu import Cast, engine, reference

SITES = st.text(max_size=12) | st.sampled_from(["", "conv1", "bloß.ключ", "层.0", "a:b:c", "🙂"])
COUNTS = st.integers(0, 2**64)
WORDS = st.lists(st.integers(1, 2**32 - 1), min_size=16, max_size=16)


@given(COUNTS, COUNTS, SITES, st.sampled_from(["forward", "grad_input", "réseau"]), COUNTS)
def test_load_words_agree_for_every_name(seed, step, site, pass_, call):
    want = reference.load_words(seed, step, site, pass_, call)
    assert engine.load_words(seed, step, site, pass_, call).tolist() == want


@given(st.integers(0, 70), st.integers(1, 32), WORDS)
def test_random_operands_agree(count, rand_bits, loads):
    want = reference.random_operands(count, rand_bits, loads)
    assert engine.random_operands(count, rand_bits, loads).tolist() == want


@pytest.mark.parametrize("rand_bits", range(1, 33))
def test_draws_agree_across_spans_and_wherever_they_are_resumed(rand_bits):
    loads = [2**32 - 1 - stream * 0x0DEADBEE for stream in range(16)]
    want = reference.random_operands(9000, rand_bits, loads)
    assert engine.random_operands(9000, rand_bits, loads).tolist() == want
    for first in (1, 15, 16, 1000, 4096, 8191):
        words = engine.resumed(loads, rand_bits, first)
        assert engine.random_operands(9000 - first, rand_bits, words).tolist() == want[first:]


def test_a_stream_comes_back_after_its_period():
    loads = engine.load_words(0, 0, "site", "forward", 0)
    assert (engine.resumed(loads, 1, 16 * (2**32 - 1)) == loads).all()


@pytest.mark.parametrize("shape", [(), (0,), (5, 0), (3, 4, 5)])
def test_elements_draw_in_row_major_order(shape):
    loads = engine.load_words(1, 2, "site", "forward", 0)
    want = reference.random_operands(int(np.prod(shape)), 7, loads.tolist())
    got = engine.random_operands(shape, 7, loads)
    assert (got.shape, got.reshape(-1).tolist()) == (shape, want)


def test_drawing_leaves_the_load_words_as_they_were():
    loads = engine.load_words(0, 0, "site", "forward", 0)
    want = loads.tolist()
    engine.random_operands(40, 8, loads)
    assert loads.tolist() == want


def test_a_draw_is_repeated_exactly():
    want, got = (engine.random_operands((9, 9), 32, engine.load_words(7, 1, "fc", "update", 3))
                 for _ in range(2))
    assert want.tobytes() == got.tobytes()


def test_operands_drive_the_stochastic_cast_as_defined():
    to = Cast.parse("s6 stochastic5 sat")
    loads = reference.load_words(3, 0, "act", "forward", 0)
    codes = list(range(-100, 100))
    want = [reference.cast(x, 3, to, rand) for x, rand in
            zip(codes, reference.random_operands(len(codes), 5, loads), strict=True)]
    assert engine.cast(codes, 3, to, engine.random_operands(200, 5, loads)).tolist() == want


@pytest.mark.parametrize(("rand_bits", "loads"), [(0, 16), (33, 16), (8, 15)])
def test_a_draw_that_no_lfsr_makes_is_refused(rand_bits, loads):
    with pytest.raises(ValueError, match="a draw has 1 to 32 bits, and there are 16 LFSRs"):
        engine.random_operands(4, rand_bits, np.ones(loads, np.int64))


@pytest.mark.parametrize(("draw", "message"), [
    (lambda: engine.random_operands(4, 8, [2**32] * 16), "loads: code 4294967296 is outside u32"),
    (lambda: engine.random_operands(4, 8, [-1] * 16), "loads: code -1 is outside u32"),
    (lambda: engine.resumed([1] * 16, 8, -1), "first -1: elements are counted from 0"),
    (lambda: engine.cast([1], 1, Cast.parse("s4 stochastic8"), loads=[1] * 15),
     "8 bits from 15 load words"),
])
def test_what_no_lfsr_holds_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
