"""Pooling, division and ReLU, against the definition."""

from fractions import Fraction

import numpy as np
import oracle
import pytest
from engine_cases import U64, filled
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import DETERMINISTIC, casts, codes, formats

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


@st.composite
def wider_windows(draw) -> tuple:
    """(size, (kernel, stride, padding), dilation), some of whose last windows leave the plane."""
    kernel, stride, dilation = draw(pairs(1, 3)), draw(pairs(1, 4)), draw(pairs(1, 3))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    size = tuple(draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), d * (k - 1) + 7))
                 for k, p, d in zip(kernel, padding, dilation, strict=True))
    return size, (kernel, stride, padding), dilation


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


@given(wider_windows(), SEEDS, st.booleans())
def test_windows_that_are_dilated_or_leave_the_plane_agree(shape, seed, ceil):
    size, window, dilation = shape
    x = filled((2, *size), Format(3), seed)
    if not all(reference.pool.sliding_windows(size, *window, dilation, ceil)):
        with pytest.raises(ValueError, match="one meets only padding and has no maximum"):
            engine.max_pool2d(x, *window, dilation, ceil)
        return
    found = [reference.max_pool2d(plane, *window, dilation, ceil) for plane in planes(x)]
    codes, index = engine.max_pool2d(x, *window, dilation, ceil)
    assert rows(codes) == [[code for code, _ in plane] for plane in found]
    assert rows(index) == [[y * size[1] + z for _, (y, z) in plane] for plane in found]


@given(wider_windows(), SEEDS, INCLUDE)
def test_averages_of_windows_that_leave_the_plane_agree(shape, seed, include):
    size, window, _ = shape
    size = tuple(max(n, k - 2 * p) for n, k, p in zip(size, window[0], window[2], strict=True))
    x = filled((2, *size), S8, seed)
    want = [reference.avg_pool2d(plane, 3, TO, *window, include, ceil=True) for plane in planes(x)]
    found = engine.avg_pool2d(x, 3, TO, *window, include, ceil=True)
    assert rows(found) == want
    error = filled(found.shape, S8, seed + 1)
    want = [reference.avg_pool2d_grad(errors, 3, TO, size, *window, include, ceil=True)
            for errors in rows(error)]
    assert planes(engine.avg_pool2d_grad(error, 3, TO, size, *window, include, ceil=True)) == want


# Adaptive windows, restated on fractions: pixel y lies under output i where the intervals
# [y, y + 1) and [i n / m, (i + 1) n / m) meet.


def meets(i, y, n, m):
    return y + 1 > Fraction(i * n, m) and y < Fraction((i + 1) * n, m)


def under(plane, i, j, out):
    """[(code, flat pixel)] of output (i, j)."""
    height, width = len(plane), len(plane[0])
    return [(plane[y][x], y * width + x) for y in range(height) for x in range(width)
            if meets(i, y, height, out[0]) and meets(j, x, width, out[1])]


def outputs(out):
    return [(i, j) for i in range(out[0]) for j in range(out[1])]


@given(pairs(1, 7), pairs(1, 9), LEADS, SEEDS)
def test_adaptive_maxima_are_those_of_the_fractions(size, out, lead, seed):
    x = filled((*lead, *size), Format(3), seed)
    want = [[max(under(plane, i, j, out), key=lambda found: (found[0], -found[1]))
             for i, j in outputs(out)] for plane in planes(x)]
    found = [reference.adaptive_max_pool2d(plane, out) for plane in planes(x)]
    assert [[(code, y * size[1] + z) for code, (y, z) in row] for row in found] == want
    got = [rows(part) for part in engine.adaptive_max_pool2d(x, out)]
    assert [list(zip(*row, strict=True)) for row in zip(*got, strict=True)] == want


@given(pairs(1, 7), pairs(1, 9), LEADS, SEEDS, casts((1, 12), (-4, 4), stochastic=False),
       st.integers(-4, 8))
def test_adaptive_averages_are_rounded_fractions(size, out, lead, seed, to, frac):
    x = filled((*lead, *size), S8, seed)
    want = []
    for plane in planes(x):
        windows_of = [[code for code, _ in under(plane, i, j, out)] for i, j in outputs(out)]
        want.append([oracle.cast(Fraction(sum(found), len(found)) / Fraction(2) ** frac, to)
                     for found in windows_of])
    assert [reference.adaptive_avg_pool2d(plane, frac, to, out) for plane in planes(x)] == want
    assert rows(engine.adaptive_avg_pool2d(x, frac, to, out)) == want


@given(pairs(1, 7), pairs(1, 9), LEADS, SEEDS, casts((1, 12), (-4, 4), stochastic=False),
       st.integers(-4, 8))
def test_adaptive_gradients_are_shares_added_exactly(size, out, lead, seed, to, frac):
    error = filled((*lead, *out), S8, seed)
    blank, want = [[0] * size[1]] * size[0], []
    for errors in rows(error):
        plane = [0] * (size[0] * size[1])
        for code, (i, j) in zip(errors, outputs(out), strict=True):
            pixels = [pixel for _, pixel in under(blank, i, j, out)]
            for pixel in pixels:
                plane[pixel] += oracle.cast(Fraction(code, len(pixels)) / Fraction(2) ** frac, to)
        want.append(np.reshape(plane, size).tolist())
    assert [reference.adaptive_avg_pool2d_grad(errors, frac, to, size, out)
            for errors in rows(error)] == want
    assert planes(engine.adaptive_avg_pool2d_grad(error, frac, to, size)) == want


def test_one_adaptive_output_is_the_global_average():
    x = filled((2, 3, 5, 7), S8, 0)
    want = engine.avg_pool2d(x, 4, TO, (5, 7)).tolist()
    assert engine.adaptive_avg_pool2d(x, 4, TO, 1).tolist() == want


def test_shares_and_sums_of_adaptive_windows_are_each_others_transpose():
    x, shares = filled((5, 7), S8, 0), filled((3, 9), S8, 1)
    sums, count = engine.adaptive_sums(x, (3, 9))
    assert int((sums * shares).sum()) == int((engine.adaptive_spread(shares, (5, 7)) * x).sum())
    assert count.sum() == engine.adaptive_spread(np.ones((3, 9), int), (5, 7)).sum()


@given(windows(), LEADS, SEEDS, formats((2, 20), (0, 20)), st.sampled_from(DETERMINISTIC),
       casts((1, 12), (-4, 4)), st.integers(-4, 8), INCLUDE)
def test_multiply_shift_averages_are_a_product_and_a_cast(shape, lead, seed, form, rounding, to,
                                                          frac, include):
    size, (kernel, stride, padding) = shape
    reciprocal = Cast(form, rounding, 1)
    x = filled((*lead, *size), S8, seed)
    sums, divisors = engine.window_sums(x, kernel, stride, padding, include)
    rand = np.random.default_rng(seed).integers(0, 1 << to.rand_bits, sums.shape)
    factors = [oracle.value_of(oracle.cast(Fraction(1, d), reciprocal), form)
               for d in divisors.ravel().tolist()]
    want = [[oracle.cast(total * factor / Fraction(2) ** frac, to, r)
             for total, factor, r in zip(*row, strict=True)]
            for row in zip(rows(sums), [factors] * len(rows(sums)), rows(rand), strict=True)]
    options = {"count_include_pad": include, "reciprocal": reciprocal}
    assert [reference.avg_pool2d(plane, frac, to, kernel, stride, padding, **options, rand=r)
            for plane, r in zip(planes(x), rows(rand), strict=True)] == want
    assert rows(engine.avg_pool2d(x, frac, to, kernel, stride, padding, **options,
                                  rand=rand)) == want


@given(windows(), LEADS, SEEDS, formats((2, 20), (0, 20)), casts((1, 12), (-4, 4)), INCLUDE)
def test_multiply_shift_gradients_agree(shape, lead, seed, form, to, include):
    size, window = shape
    error = filled((*lead, *engine.max_pool2d(np.zeros(size, int), *window)[0].shape), S8, seed)
    rand = np.random.default_rng(seed).integers(0, 1 << to.rand_bits, error.shape)
    options = {"count_include_pad": include, "reciprocal": Cast(form)}
    want = [reference.avg_pool2d_grad(errors, 3, to, size, *window, **options, rand=r)
            for errors, r in zip(rows(error), rows(rand), strict=True)]
    assert planes(engine.avg_pool2d_grad(error, 3, to, size, *window, **options,
                                         rand=rand)) == want


def test_multiply_shift_adapts_too():
    x, to, reciprocal = filled((2, 5, 7), S8, 0), Cast.parse("s8f2 sat"), Cast.parse("u8f9 to_pos")
    want = [reference.adaptive_avg_pool2d(plane, 4, to, (2, 3), reciprocal) for plane in planes(x)]
    assert rows(engine.adaptive_avg_pool2d(x, 4, to, (2, 3), reciprocal)) == want
    error = filled((2, 2, 3), S8, 1)
    want = [reference.adaptive_avg_pool2d_grad(errors, 4, to, (5, 7), (2, 3), reciprocal)
            for errors in rows(error)]
    assert planes(engine.adaptive_avg_pool2d_grad(error, 4, to, (5, 7), reciprocal)) == want


def test_a_reciprocal_of_a_power_of_two_is_a_shift():
    x = filled((3, 8, 8), S8, 0)
    want = engine.avg_pool2d(x, 4, TO, 4).tolist()
    assert engine.avg_pool2d(x, 4, TO, 4, reciprocal=Cast.parse("u1f4")).tolist() == want


def test_one_dimension_is_a_unit_axis():
    x = filled((2, 3, 9), S8, 0)
    codes, index = engine.max_pool2d(x[..., None, :], (1, 3), (1, 2))
    want = np.lib.stride_tricks.sliding_window_view(x, 3, 2)[..., ::2, :]
    assert codes[..., 0, :].tolist() == want.max(-1).tolist()
    assert index[..., 0, :].tolist() == (want.argmax(-1) + 2 * np.arange(4)).tolist()
    sums, divisor = engine.window_sums(x[..., None, :], (1, 3), (1, 2))
    assert (sums[..., 0, :].tolist(), divisor.tolist()) == (want.sum(-1).tolist(), [[3] * 4])


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


def test_relu_takes_codes_only():
    with pytest.raises(ValueError, match="x: dtype float64 holds no codes"):
        engine.relu([0.5])
    with pytest.raises(ValueError, match="error: dtype float64 holds no codes"):
        engine.relu_grad([0.5], [1])
    with pytest.raises(ValueError, match=r"error \(2,\) and x \(1,\): shapes differ"):
        engine.relu_grad([1, 2], [1])


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
    (np.ones((3, 3), int), (4,), r"the output would be \(0, 0\); both need at least 1 x 1"),
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


@pytest.mark.parametrize(("call", "message"), [
    (lambda: engine.adaptive_sums(np.ones((3, 3), int), 0), "output size 0: needs a whole number"),
    (lambda: engine.adaptive_max_pool2d(np.ones((3, 3), int), (1, 2, 3)), "output size"),
    (lambda: engine.adaptive_avg_pool2d(np.full((2, 2), 2**61), 0, TO, 1), "the sum of 4 of them"),
    (lambda: engine.adaptive_spread(np.full((4, 4), 2**61), (2, 2)), "the sum of 4 of them"),
    (lambda: engine.avg_pool2d(np.full((2, 2), 2**50), 0, TO, 2, reciprocal=Cast.parse("u14f15")),
     "the product needs 67 bits, the limit is 63"),
    (lambda: engine.avg_pool2d(np.ones((2, 2), int), 0, TO, 2,
                               reciprocal=Cast.parse("u8f8 stochastic4")), "deterministic"),
    (lambda: engine.avg_pool2d(np.ones((2, 2), int), 0, Cast.parse("s8 stochastic4"), 2,
                               reciprocal=Cast.parse("u8f8")), "needs a random operand of 4 bits"),
])
def test_what_no_window_or_product_holds_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


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
