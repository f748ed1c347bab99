"""Pooling, ReLU, Flatten and Activation, forward and backward, against Python ints."""

import integer_network as ints
import pytest
import torch
from fixed_layers import expected, passed, tensor
from integer_network import Grid, some

from emu import LayerSpec, Overflow, Rounding, nn

DETERMINISTIC = [rounding for rounding in Rounding if rounding != Rounding.STOCHASTIC]
PLANES = some((2, 3, 5, 6), 200, 5, 1)
# kernel, stride, padding
WINDOWS = [((2, 2), (2, 2), (0, 0)), ((3, 3), (1, 1), (0, 0)), ((3, 2), (2, 1), (1, 1)),
           ((2, 3), (3, 2), (1, 0)), ((1, 1), (2, 2), (0, 0))]

STEPS = [(stride, padding) for stride in (1, 2, 3) for padding in (0, 1)]


def error_of(windows, seed=2) -> Grid:
    """A gradient of the output of pooling PLANES."""
    return some(ints.pooled_shape(PLANES.codes, *windows), 100, 6, seed)


def averaged(windows, include=True, **casts):
    """(got, want) of one pass through an AvgPool2d."""
    spec = LayerSpec.parse(casts)
    module = nn.AvgPool2d(*windows, count_include_pad=include, spec=spec)
    twin = ints.AvgPool2d("", spec, *windows, include)
    grad = error_of(windows)
    return passed(module, PLANES, grad), expected(twin, PLANES, grad)


@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_max_pooling_agrees(windows):
    grad = error_of(windows)
    got = passed(nn.MaxPool2d(*windows), PLANES, grad)
    assert got == expected(ints.MaxPool2d(*windows), PLANES, grad)


def test_errors_of_overlapping_windows_add_up_at_their_maximum():
    got = passed(nn.MaxPool2d(2, 1), Grid([[[[1, 2, 1], [0, 2, 0]]]]), Grid([[[[3, 5]]]]))
    assert got["grad of x"] == [[[[0, 8, 0], [0, 0, 0]]]]


def test_padding_never_is_the_maximum():
    got = passed(nn.MaxPool2d(2, 2, 1), Grid([[[[-5, -4], [-3, -2]]]]), Grid([[[[1] * 2] * 2]]))
    assert got["y"] == [[[[-5, -4], [-3, -2]]]]


def test_max_pooling_takes_images_without_a_batch():
    pool = nn.MaxPool2d(2)
    assert torch.equal(pool(tensor(PLANES)[0]), pool(tensor(PLANES))[0])


def test_max_pooling_has_no_indices():
    with pytest.raises(ValueError, match="'maxpool2d': max pooling has no return_indices here"):
        nn.MaxPool2d(2, return_indices=True)(tensor(PLANES))


# Maxima, and sums over powers of two, are exact in float64: so torch says what they are.
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride, padding", STEPS)
@pytest.mark.parametrize("size", [(4, 7), (5, 6), (6, 9)], ids=str)
def test_max_pooling_has_the_windows_of_torch(size, stride, padding, dilation):
    x = tensor(some((2, 3, *size), 20, 5, 3))
    line = x[:, :, 0]
    options = {"kernel_size": 2, "stride": stride, "padding": padding, "dilation": dilation,
               "ceil_mode": True}
    for fixed, floats, given in ((nn.MaxPool2d, torch.nn.MaxPool2d, x),
                                 (nn.MaxPool1d, torch.nn.MaxPool1d, line)):
        mine, theirs = given.clone().requires_grad_(), given.clone().requires_grad_()
        got, want = fixed(**options)(mine), floats(**options)(theirs)
        assert torch.equal(got, want)
        error = torch.arange(got.numel(), dtype=got.dtype).reshape(got.shape)
        got.backward(error)
        want.backward(error)
        assert torch.equal(mine.grad, theirs.grad)


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("size", [(4, 7), (5, 6), (3, 9)], ids=str)
@pytest.mark.parametrize("stride, padding", STEPS)
def test_average_pooling_has_the_windows_of_torch(stride, padding, size, include):
    x = tensor(some((2, 3, *size), 20, 5, 3))
    options = {"kernel_size": 2, "stride": stride, "padding": padding, "ceil_mode": True,
               "count_include_pad": include}  # so every divisor is 1, 2 or 4
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    got, want = nn.AvgPool2d(**options)(mine), torch.nn.AvgPool2d(**options)(theirs)
    assert torch.equal(got, want)
    error = torch.arange(got.numel(), dtype=got.dtype).reshape(got.shape)
    got.backward(error)
    want.backward(error)
    assert torch.equal(mine.grad, theirs.grad)


def test_a_divisor_may_be_given():
    x = tensor(PLANES)
    got = nn.AvgPool2d(2, divisor_override=8)(x)
    assert torch.equal(got, torch.nn.functional.avg_pool2d(x, 2, divisor_override=8))
    with pytest.raises(ValueError, match="divisor_override 0: needs a whole number of at least 1"):
        nn.AvgPool2d(2, divisor_override=0)(x)


@pytest.mark.parametrize("area, y, grad", [
    ((1, 1), [[[[1, 2], [3, 5]]]], [[[[1, 1], [1, 1]]]]),
    ((1, 2), [[[[1.5], [4]]]], [[[[0.5, 0.5], [0.5, 0.5]]]]),
    ((2, 2), [[[[2.75]]]], [[[[0.25, 0.25], [0.25, 0.25]]]]),
])
def test_an_average_over_a_power_of_two_is_exact(area, y, grad):
    ones = Grid(ints.like([1] * len(ints.flat(y)), y))
    got = passed(nn.AvgPool2d(area), Grid([[[[1, 2], [3, 5]]]]), ones)
    assert got == {"y": y, "grad of x": grad}


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("windows", WINDOWS, ids=str)
def test_average_pooling_agrees(windows, include):
    got, want = averaged(windows, include, y="s6f3 ties_even sat", error="s5f4 ties_away sat")
    assert got == want


@pytest.mark.parametrize("overflow", Overflow)
@pytest.mark.parametrize("rounding", DETERMINISTIC)
@pytest.mark.parametrize("windows", WINDOWS[:2], ids=str)
def test_an_average_is_rounded_once_in_every_mode(windows, rounding, overflow):
    modes = f"{rounding.name.lower()} {overflow.name.lower()}"
    got, want = averaged(windows, y=f"s5f2 {modes}", error=f"s3f3 {modes}")
    assert got == want


def test_an_average_may_choose_its_binary_point_where_the_area_is_a_power_of_two():
    pool = nn.AvgPool2d(2, spec={"y": "s4 auto:max ties_even sat"})
    assert pool(torch.full((1, 1, 2, 2), 6.0)).tolist() == [[[[6]]]]  # s4f0: range 8


def test_an_average_over_another_area_needs_a_binary_point():
    pool = nn.AvgPool2d(3, spec={"y": "s4 auto:max ties_even sat"})
    with pytest.raises(ValueError, match="needs a fixed binary point; give it a Cast"):
        pool(tensor(PLANES))


def test_an_average_over_another_area_needs_a_cast():
    with pytest.raises(ValueError, match="layer 'avgpool2d': has no y; the configuration must"):
        nn.AvgPool2d(3)(tensor(PLANES))


def test_an_average_over_another_area_needs_a_cast_of_the_error():
    y = nn.AvgPool2d(3, spec={"y": "s8f4"})(tensor(PLANES).requires_grad_())
    with pytest.raises(ValueError, match="layer 'avgpool2d': has no error; the configuration"):
        y.backward(torch.ones_like(y))


def test_dividing_stochastically_is_refused():
    pool = nn.AvgPool2d(3, spec={"y": "s8f4 stochastic8 sat"})
    with pytest.raises(ValueError, match="stochastic rounding needs a power of two"):
        pool(tensor(PLANES))


def test_relu_passes_the_error_where_x_is_positive():
    got = passed(nn.ReLU(), Grid([[-3, -1, 0, 1, 3]], 2), Grid([[5, 6, 7, 8, 9]], 3))
    assert got == {"y": [[0, 0, 0, 0.25, 0.75]], "grad of x": [[0, 0, 0, 1, 1.125]]}


def test_an_inplace_relu_changes_its_input():
    x = torch.tensor([-1.0, 1.0])
    nn.ReLU(inplace=True)(x)
    assert x.tolist() == [0, 1]


def test_flatten_moves_codes_and_errors():
    grad = some((2, 90), 100, 6, 2)
    got = passed(nn.Flatten(), PLANES, grad)
    assert got == expected(ints.Flatten(), PLANES, grad)


@pytest.mark.parametrize("modes", [
    f"{rounding.name.lower()}{'4' if rounding == Rounding.STOCHASTIC else ''} "
    f"{overflow.name.lower()}" for rounding in Rounding for overflow in Overflow])
def test_an_activation_casts_both_ways(modes):
    spec = LayerSpec.parse({"y": f"s5f3 {modes}", "error": f"u5f4 {modes}"})
    x, grad = some((4, 7), 90, 5, 3), some((4, 7), 90, 5, 4)
    got = passed(nn.Activation(spec=spec), x, grad)
    assert got == expected(ints.Activation("activation", spec), x, grad)


@pytest.mark.parametrize("name, y, grad", [("y", 1.5, 0.25), ("error", 1.25, 0.5)])
def test_an_activation_may_cast_one_way(name, y, grad):
    spec = {name: "s4f1 ties_pos sat"}
    got = passed(nn.Activation(spec=spec), Grid([[5]], 2), Grid([[1]], 2))
    assert got == {"y": [[y]], "grad of x": [[grad]]}


def test_an_activation_without_casts_is_a_wire():
    x, grad = some((4, 7), 90, 5, 3), some((4, 7), 90, 5, 4)
    got = passed(nn.Activation(), x, grad)
    assert got == {"y": ints.floats(x), "grad of x": ints.floats(grad)}
