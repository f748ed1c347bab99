"""Pooling, division and ReLU, against the definition."""

import numpy as np
import pytest
from engine_cases import U64, filled
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import DETERMINISTIC, casts, codes

from emu import Cast, Format, engine, reference

S8 = Format(8)
SEEDS = st.integers(0, 99)
LEADS = st.sampled_from([(), (1,), (2,), (2, 3)])
INCLUDE = st.booleans()


def pairs(low: int, high: int):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def windows(draw) -> tuple:
    """(size, (kernel, stride, padding)) where at least one window fits; most overlap."""
    kernel, stride = draw(pairs(1, 4)), draw(pairs(1, 4))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    size = tuple(draw(st.integers(max(1, k - 2 * p), k - 2 * p + 5))
                 for k, p in zip(kernel, padding, strict=True))
    return size, (kernel, stride, padding)


def planes(x: np.ndarray) -> list:
    """The planes (H, W) of an array, as nested lists."""
    return x.reshape(-1, *x.shape[-2:]).tolist()


def rows(x: np.ndarray) -> list[list[int]]:
    """The pixels of each plane, flat."""
    return [[code for row in plane for code in row] for plane in planes(x)]


@given(windows(), LEADS, SEEDS)
def test_every_maximum_agrees(shape, lead, seed):
    size, window = shape
    x = filled((*lead, *size), Format(3), seed)  # few codes, so that maxima tie
    want = [[code for code, _ in reference.max_pool2d(plane, *window)] for plane in planes(x)]
    assert rows(engine.max_pool2d(x, *window)[0]) == want


@given(windows(), LEADS, SEEDS)
def test_the_first_maximum_gives_the_pixel(shape, lead, seed):
    size, window = shape
    x = filled((*lead, *size), Format(3), seed)
    want = [[y * size[1] + z for _, (y, z) in reference.max_pool2d(plane, *window)]
            for plane in planes(x)]
    assert rows(engine.max_pool2d(x, *window)[1]) == want


@given(windows(), LEADS, SEEDS)
def test_every_gradient_of_a_maximum_agrees(shape, lead, seed):
    size, window = shape
    x = filled((*lead, *size), Format(3), seed)
    index = engine.max_pool2d(x, *window)[1]
    error = filled(index.shape, Format(32), seed + 1)
    want = []
    for plane, errors in zip(planes(x), rows(error), strict=True):
        pixels = [pixel for _, pixel in reference.max_pool2d(plane, *window)]
        want.append(reference.max_pool2d_grad(errors, pixels, size))
    assert planes(engine.max_pool2d_grad(error, index, size)) == want


@given(windows(), LEADS, SEEDS, casts((1, 12), (-4, 4), stochastic=False), st.integers(-4, 8),
       INCLUDE)
def test_every_average_agrees(shape, lead, seed, to, frac, include):
    size, window = shape
    x = filled((*lead, *size), S8, seed)
    want = [reference.avg_pool2d(plane, frac, to, *window, count_include_pad=include)
            for plane in planes(x)]
    assert rows(engine.avg_pool2d(x, frac, to, *window, count_include_pad=include)) == want


@given(windows(), LEADS, SEEDS, casts((1, 12), (-4, 4), stochastic=False), st.integers(-4, 8),
       INCLUDE)
def test_every_gradient_of_an_average_agrees(shape, lead, seed, to, frac, include):
    size, window = shape
    outputs = engine.max_pool2d(np.zeros((*lead, *size), int), *window)[0].shape
    error = filled(outputs, S8, seed)
    want = [reference.avg_pool2d_grad(errors, frac, to, size, *window, count_include_pad=include)
            for errors in rows(error)]
    got = engine.avg_pool2d_grad(error, frac, to, size, *window, count_include_pad=include)
    assert planes(got) == want


def test_padding_is_never_the_maximum():
    x = np.full((1, 2, 2), -5)
    assert engine.max_pool2d(x, 2, 1, 1)[0].tolist() == np.full((1, 3, 3), -5).tolist()


def test_the_stride_is_the_kernel_unless_given():
    x = filled((4, 6), S8, 0)
    want = engine.max_pool2d(x, (2, 3), (2, 3))[0].tolist()
    assert engine.max_pool2d(x, (2, 3))[0].tolist() == want


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8"])
def test_maxima_keep_the_dtype(dtype):
    assert engine.max_pool2d(np.ones((2, 2), dtype), 2)[0].dtype == dtype


def test_a_pooled_empty_batch_is_empty():
    assert engine.max_pool2d(np.ones((0, 3, 4, 4), int), 2)[0].shape == (0, 3, 2, 2)


def test_window_sums_are_exact_at_the_last_bit():
    x = np.full((2, 2), -(2**61))
    with pytest.raises(ValueError, match="the sum of 4 of them could leave int64"):
        engine.window_sums(x, 2)
    assert engine.window_sums(x + 1, 2)[0].tolist() == [[-4 * (2**61 - 1)]]


@given(windows(), SEEDS)
def test_spread_shares_add_up_exactly(shape, seed):
    size, window = shape
    sums, _ = engine.window_sums(np.zeros(size, int), *window)
    shares = filled(sums.shape, Format(40), seed)
    kernel = window[0]
    errors = (shares * kernel[0] * kernel[1]).reshape(-1).tolist()  # their averages are the shares
    want = reference.avg_pool2d_grad(errors, 0, Cast(Format(40)), size, *window)
    assert engine.window_spread(shares, size, *window).tolist() == want


@given(st.data(), casts((1, 64), (0, 0), stochastic=False), st.integers(-50, 130))
def test_every_division_agrees(data, to, frac):
    assume(to.format != U64)
    room = 60 + min(frac, 0)  # bits that a numerator may have before zeros are appended
    x = data.draw(st.lists(codes(Format(room + 1)).filter(lambda c: abs(c) < 1 << room),
                           min_size=1, max_size=6))
    few = st.integers(1, 30) | st.sampled_from([2**k + d for k in (2, 8, 31) for d in (-1, 0, 1)])
    divisors = data.draw(st.lists(few | codes(Format(62)).filter(lambda c: c > 0),
                                  min_size=len(x), max_size=len(x)))
    rounded = [reference.divide(code, d, frac, Cast(Format(64), to.rounding))
               for code, d in zip(x, divisors, strict=True)]
    want = [reference.divide(code, d, frac, to) for code, d in zip(x, divisors, strict=True)]
    inside = [not reference.overflows(code, to) for code in rounded]
    got = engine.divide(np.array([x]), np.array([divisors]), frac, to)
    assert (got.codes[0].tolist(), got.inside[0].tolist(), got.outside) == (
        want, inside, inside.count(False))


@pytest.mark.parametrize("rounding", DETERMINISTIC)
def test_every_small_quotient_is_rounded_as_defined(rounding):
    x, divisor = np.mgrid[-40:41, 1:9]
    for frac in (-2, -1, 0, 1, 2):
        for to in (Cast(Format(4), rounding, overflow) for overflow in range(4)):
            want = [[reference.divide(a, b, frac, to) for a, b in zip(*pair, strict=True)]
                    for pair in zip(x.tolist(), divisor.tolist(), strict=True)]
            assert engine.divide(x, divisor, frac, to).codes.tolist() == want, (str(to), frac)


@pytest.mark.parametrize("frac", [0, 1, 57, 58, 59, 60, 61, 62, 63, 64, 100, 500])
@pytest.mark.parametrize("rounding", DETERMINISTIC)
def test_quotients_are_exact_however_small(rounding, frac):
    x = [sign * (2**k - d) for sign in (1, -1) for k in (1, 58, 59, 60) for d in (0, 1)
         if 2**k - d < 2**60]
    divisors = [1, 2, 3, 4, 9]
    to = Cast(Format(64), rounding)
    want = [[reference.divide(code, d, frac, to) for d in divisors] for code in x]
    got = engine.divide(np.repeat(np.array(x)[:, None], 5, 1), np.array(divisors), frac, to)
    assert got.codes.tolist() == want


@given(st.lists(codes(S8), min_size=1, max_size=9))
def test_relu_agrees(x):
    want = [reference.relu(code) for code in x]
    assert engine.relu(np.array(x, np.int8)).tolist() == want


@given(st.lists(st.tuples(codes(S8), codes(S8)), min_size=1, max_size=9))
def test_the_gradient_of_relu_agrees(pairs):
    error, x = np.array(pairs, np.int8).T
    want = [reference.relu_grad(*pair) for pair in pairs]
    assert engine.relu_grad(error, x).tolist() == want


def test_relu_and_its_gradient_keep_the_dtype():
    x = np.array([-1, 0, 1], np.int8)
    assert (engine.relu(x).dtype, engine.relu_grad(x, x).dtype) == (np.int8, np.int8)


TO = Cast.parse("s8 ties_even sat")


@pytest.mark.parametrize(("x", "divisor", "frac", "to", "message"), [
    ([4], [2], 0, "s8 stochastic4", "stochastic rounding needs a power of two to divide by"),
    ([2**60], [1], 0, "s8", "division of 61-bit codes with frac 0"),
    ([2**59], [1], -1, "s8", "division of 60-bit codes with frac -1"),
    ([1], [1], 0, "u64", "format u64f0: its codes do not fit int64"),
    ([1], [0], 0, "s8", "divisor 0: needs whole numbers of at least 1"),
    ([1], [-3], 0, "s8", "divisor -3: needs whole numbers of at least 1"),
    ([1.5], [1], 0, "s8", "codes: dtype float64 holds no codes"),
])
def test_what_cannot_be_divided_exactly_is_refused(x, divisor, frac, to, message):
    with pytest.raises(ValueError, match=message):
        engine.divide(np.array([x]), np.array([divisor]), frac, Cast.parse(to))


@pytest.mark.parametrize(("x", "window", "message"), [
    (np.ones((3, 3), int), (2, 1, 2), r"padding \(2, 2\): at most half the kernel \(2, 2\)"),
    (np.ones((3, 3), int), (4,), r"the output would be \(0, 0\); needs at least 1 x 1"),
    (np.ones((3, 3), int), (0,), "kernel 0: needs a whole number, or two, of at least 1"),
    (np.ones((3, 3), int), (2, 0), "stride 0: needs a whole number, or two, of at least 1"),
    (np.ones(3, int), (2,), r"x: shape \(3,\) has no planes"),
    (np.ones((2, 0, 3), int), (2, 1, 1), r"x: shape \(2, 0, 3\) has no planes"),
    (np.ones((3, 3)), (2,), "x: dtype float64 holds no codes"),
])
def test_what_cannot_be_pooled_is_refused(x, window, message):
    for pool in (engine.max_pool2d, engine.window_sums):
        with pytest.raises(ValueError, match=message):
            pool(x, *window)


def test_stochastic_averages_are_refused():
    with pytest.raises(ValueError, match="use a deterministic rounding"):
        engine.avg_pool2d(np.ones((2, 2), int), 0, Cast.parse("s8 stochastic4"), 2)


@pytest.mark.parametrize("index", [-1, 4])
def test_an_index_outside_the_plane_is_refused(index):
    with pytest.raises(ValueError, match=r"a plane of \(2, 2\) has pixels 0 to 3"):
        engine.max_pool2d_grad(np.ones((1, 1), int), np.array([[index]]), (2, 2))


def test_an_error_of_other_windows_is_refused():
    with pytest.raises(ValueError, match=r"error \(2, 1\): windows on \(4, 4\) give \(2, 2\)"):
        engine.avg_pool2d_grad(np.ones((2, 1), int), 0, TO, (4, 4), 2)


def test_shares_of_other_windows_are_refused():
    with pytest.raises(ValueError, match=r"shares \(2, 1\): windows on \(4, 4\) give \(2, 2\)"):
        engine.window_spread(np.ones((2, 1), int), (4, 4), 2)
