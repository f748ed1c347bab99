"""Linear and Conv2d, forward and backward, against the same layers on Python ints."""

import integer_network as ints
import pytest
import torch
from fixed_layers import GRAD, B, W, X, expected, give, hardware, passed, tensor
from integer_network import Grid, flat, floats, some

from emu import Overflow, Rounding, nn

IMAGES, ERRORS = some((2, 2, 4, 5), 220, 5, 4), some((2, 3, 4, 5), 90, 5, 5)
KERNELS = some((3, 2, 3, 3), 70, 5, 6)

MODES = [f"{rounding.name.lower()}{'5' if rounding == Rounding.STOCHASTIC else ''} "
         f"{overflow.name.lower()}" for rounding in Rounding for overflow in Overflow]
MACS = [
    "{acc: s9 sat}", "{acc: s9 wrap}", "{acc: s9 sat_sym}", "{acc: s9 sat_zero}",
    "{acc: s9 sat, lanes: 4}", "{acc: s9 wrap, lanes: 4}", "{product: s7f-2 ties_even sat, "
    "acc: s8f-2 sat}", "{acc: s9 sat, tile: 2, outer: s8f-2 ties_even sat}",
    "{acc: s10 wrap, tile: 4, lanes: 2, outer: s9f-1 to_zero sat, reload: true}",
    "{acc: s12f1 sat, product: s12f1}",
]
PASSES = ["forward", "grad_input", "grad_weight"]


def linear(spec, x=X, w=W, b=B, grad=GRAD):
    """(got, want) of one pass through a Linear."""
    rows, columns = ints.shape_of(w.codes)
    module = give(nn.Linear(columns, rows, bias=b is not None, spec=spec), w, b)
    parameters = (w,) if b is None else (w, b)
    return passed(module, x, grad), expected(ints.Linear("linear", spec), x, grad, *parameters)


def conv2d(spec, x=IMAGES, w=KERNELS, b=None, grad=None, padding=(0, 0), torch_padding=None,
           groups=1, **geometry):
    """(got, want) of one pass through a Conv2d; without `grad`, for a seeded one."""
    outputs, channels, *kernel = ints.shape_of(w.codes)
    module = nn.Conv2d(channels * groups, outputs, tuple(kernel), bias=b is not None, spec=spec,
                       padding=torch_padding or padding, groups=groups, **geometry)
    parameters = (w,) if b is None else (w, b)
    twin = ints.Conv2d("conv2d", spec, padding=padding, groups=groups, **geometry)
    if grad is None:
        with torch.no_grad():
            grad = some(tuple(give(module, *parameters).eval()(tensor(x)).shape), 90, 5, 7)
    return (passed(give(module, *parameters).train(), x, grad),
            expected(twin, x, grad, *parameters))


def test_a_linear_layer_agrees_in_every_pass():
    got, want = linear(hardware())
    assert got == want


@pytest.mark.parametrize("modes", MODES)
@pytest.mark.parametrize("name, form", [
    ("x", "s5f2"), ("w", "s4f2"), ("y", "s6f2"), ("error", "s5f3"), ("grad_w", "s6f4"),
    ("grad_b", "s5f2"), ("b", "s5f3")])
def test_every_cast_works_in_every_mode(name, form, modes):
    got, want = linear(hardware(**{name: f"{form} {modes}"}))
    assert got == want


@pytest.mark.parametrize("name, form", [("x", "u4f2"), ("w", "u3f2"), ("error", "u4f3")])
def test_operands_may_be_unsigned(name, form):
    got, want = linear(hardware(**{name: f"{form} ties_even sat"}))
    assert got == want


@pytest.mark.parametrize("mac", MACS)
@pytest.mark.parametrize("name", PASSES)
def test_every_pass_of_a_linear_layer_has_its_own_mac(name, mac):
    got, want = linear(hardware(**{name: mac}))
    assert got == want


@pytest.mark.parametrize("mac", ["{acc: s6 sat}", "{acc: s6 wrap, lanes: 4}",
                                 "{product: s5f-1 ties_even sat, acc: s7f-1 sat}"])
def test_the_bias_gradient_has_its_own_mac(mac):
    got, want = linear(hardware(grad_bias=mac))
    assert got == want


def test_the_bias_gradient_of_a_convolution_adds_image_after_image():
    got, want = conv2d(hardware(grad_bias="{acc: s6 sat}", grad_b="s6f4 sat"), padding=(1, 1),
                       b=Grid([9, -20, 7], 6), grad=ERRORS)
    assert got == want


@pytest.mark.parametrize("overflow, want", [("wrap", 1), ("sat", 0), ("sat_sym", 0),
                                            ("sat_zero", 0)])
@pytest.mark.parametrize("name, of", [("x", "x"), ("w", "weight"), ("b", "bias"), ("y", "x")])
def test_gradients_stop_where_saturation_changed_the_value(name, of, overflow, want):
    # x, w or b is 2, or else y = 1 * 1 + 1 is: two bits do not hold it.
    casts = {"x": "s8", "w": "s8", "b": "s8", "y": "s8", "error": "s8", "grad_w": "s8",
             "grad_b": "s8"} | {name: f"s2 {overflow}"}
    x, w, b = (2 if name == operand else 1 for operand in "xwb")
    got, _ = linear(hardware(**casts), Grid([[x]]), Grid([[w]]), Grid([b]), Grid([[1]]))
    assert flat(got[f"grad of {of}"]) == [want]


def test_without_y_the_accumulator_leaves_as_it_is():
    got, want = linear(hardware(y=None))
    assert got == want


def test_the_bias_is_loaded_into_the_accumulator_before_the_first_product():
    spec = hardware(x="s8", w="s8", b="s8", y=None, forward="{acc: s8 sat}")
    got, _ = linear(spec, Grid([[1, 1]]), Grid([[100, -100]]), Grid([100]), Grid([[1]]))
    assert got["y"] == [[27]]  # 100 + 100 saturates at 127, then -100


def test_a_bias_beyond_the_accumulator_is_cast_by_its_own_modes():
    spec = hardware(b="s8f0 ties_even sat", forward="{acc: s9 sat}")  # acc frac 6
    got, want = linear(spec, b=Grid([100, -100, 3, 0], 0))
    assert got == want


def test_a_stochastic_bias_draws_for_its_cast_and_for_its_preload():
    spec = hardware(b="s7f5 stochastic4 sat", forward="{acc: s9f-3 sat, product: s9f-3}")
    got, want = linear(spec)
    assert got == want


def test_a_layer_without_bias_needs_no_bias_hardware():
    got, want = linear(hardware(b=None, grad_b=None, grad_bias=None), b=None)
    assert got == want


def test_leading_dimensions_of_a_linear_layer_are_rows():
    module = give(nn.Linear(6, 4, spec=hardware()), W, B)
    x = some((2, 3, 6), 220, 5, 8)
    rows = Grid([row for part in x.codes for row in part], x.frac)
    assert torch.equal(module(tensor(x)).reshape(6, 4), module(tensor(rows)))


def test_a_vector_is_one_row_of_a_linear_layer():
    module = give(nn.Linear(6, 4, spec=hardware()), W, B)
    assert torch.equal(module(tensor(X)[0]), module(tensor(X)[:1])[0])


def test_an_empty_batch_gives_zero_gradients():
    module = give(nn.Linear(6, 4, spec=hardware()), W, B)
    module(torch.empty(0, 6)).backward(torch.empty(0, 4))
    assert module.weight.grad.count_nonzero() == 0


def test_a_layer_agrees_in_float64():
    spec = hardware(forward="{acc: s40 sat}", grad_input="{acc: s40 sat}", y=None)
    module = give(nn.Linear(6, 4, spec=spec).double(), W, B)
    assert passed(module, X, GRAD) == expected(ints.Linear("linear", spec), X, GRAD, W, B)


def test_an_accumulator_that_leaves_a_float64_layer_may_have_53_bits():
    spec = hardware(x="s26", w="s27", b="s8", y=None, forward="{acc: s54 sat}")
    x, w = Grid([[-(1 << 25), 1]]), Grid([[(1 << 26) - 1, 1]])
    module = give(nn.Linear(2, 1, spec=spec).double(), w, Grid([0]))
    with torch.no_grad():
        module.weight.copy_(tensor(w, torch.float64))
    assert int(module(tensor(x, torch.float64))) == -(1 << 25) * ((1 << 26) - 1) + 1


def test_inputs_that_need_no_gradient_get_none():
    spec = hardware(grad_input=None)
    module = give(nn.Linear(6, 4, spec=spec), W, B)
    module(tensor(X)).backward(tensor(GRAD))
    want = expected(ints.Linear("linear", hardware()), X, GRAD, W, B)
    assert module.weight.grad.tolist() == want["grad of weight"]


def test_a_second_backward_adds_to_the_gradient_exactly():
    module = give(nn.Linear(6, 4, spec=hardware()), W, B)
    for _ in range(2):
        module(tensor(X)).backward(tensor(GRAD))
    want = expected(ints.Linear("linear", hardware()), X, GRAD, W, B)
    assert (module.weight.grad / 2).tolist() == want["grad of weight"]


@pytest.mark.parametrize("geometry", [
    {}, {"stride": (2, 1)}, {"padding": (1, 2)}, {"dilation": (1, 2)},
    {"stride": (2, 2), "padding": (1, 1)}, {"stride": (1, 3), "padding": (2, 0),
                                            "dilation": (2, 1)},
], ids=str)
def test_a_convolution_agrees_in_every_pass(geometry):
    got, want = conv2d(hardware(), b=Grid([9, -200, 77], 6), **geometry)
    assert got == want


@pytest.mark.parametrize("mac", MACS)
@pytest.mark.parametrize("name", PASSES)
def test_every_pass_of_a_convolution_has_its_own_mac(name, mac):
    got, want = conv2d(hardware(**{name: mac}), padding=(1, 1), grad=ERRORS)
    assert got == want


@pytest.mark.parametrize("block", [2, 3, 4])
@pytest.mark.parametrize("name", ["forward", "grad_input"])
def test_the_channel_block_sets_the_order_of_accumulation(name, block):
    spec = hardware(**{name: f"{{acc: s9 sat, block: {block}, lanes: 2}}"})
    got, want = conv2d(spec, x=some((1, 3, 3, 3), 220, 5, 8), w=some((3, 3, 2, 2), 70, 5, 9))
    assert got == want


@pytest.mark.parametrize("groups", [2, 4])
def test_groups_are_convolutions_side_by_side(groups):
    got, want = conv2d(hardware(forward="{acc: s9 sat, block: 2}"), groups=groups,
                       x=some((2, 4, 3, 3), 220, 5, 10), w=some((4, 4 // groups, 2, 2), 70, 5, 11),
                       b=Grid([9, -200, 77, 3], 6))
    assert got == want


def test_padding_same_keeps_the_size():
    got, want = conv2d(hardware(), padding=(1, 2), torch_padding="same", dilation=(1, 2),
                       grad=ERRORS)
    assert got == want


def test_padding_valid_is_none():
    got, want = conv2d(hardware(), torch_padding="valid")
    assert got == want


def test_one_sided_padding_is_refused():
    module = nn.Conv2d(2, 3, 2, padding="same", spec=hardware())
    with pytest.raises(ValueError, match=r"'conv2d': padding 'same' with kernel \(2, 2\)"):
        module(tensor(IMAGES))


def test_an_image_without_a_batch_is_refused():
    module = nn.Conv2d(2, 3, 3, spec=hardware())
    with pytest.raises(ValueError, match=r"needs \(N, C, H, W\)"):
        module(tensor(IMAGES)[0])


@pytest.mark.parametrize("name, form", [("x", "s5f2"), ("y", "s6f2"), ("error", "s5f3"),
                                        ("grad_w", "s6f4")])
def test_stochastic_casts_of_a_convolution_draw_in_torchs_layout(name, form):
    spec = hardware(**{name: f"{form} stochastic7 sat"})
    got, want = conv2d(spec, b=Grid([9, -200, 77], 6), stride=(2, 1))
    assert got == want


def test_each_call_of_a_layer_draws_anew():
    spec = hardware(x="s5f2 stochastic7 sat", error="s5f3 stochastic3 sat")
    module, twin = give(nn.Linear(6, 4, spec=spec), W, B), ints.Linear("linear", spec)
    got = [passed(module, X, GRAD)["y"] for _ in range(3)]
    want = [expected(twin, X, GRAD, W, B)["y"] for _ in range(3)]
    assert got == want
    assert got[0] != got[1] != got[2]


@pytest.mark.parametrize("seed, step", [(0, 1), (7, 0), (123456789, 1000)])
def test_the_seed_and_the_step_name_the_random_operands(seed, step):
    spec = hardware(x="s5f2 stochastic7 sat")
    backend = nn.Backend(seed)
    backend.step = step
    module = give(nn.Linear(6, 4, spec=spec, backend=backend), W, B)
    twin = ints.Linear("linear", spec, seed)
    twin.step = step
    assert module(tensor(X)).tolist() == floats(twin.forward(X, W, B))


def test_a_layer_keeps_its_operands_for_backward():
    module = give(nn.Linear(6, 4, spec=hardware()), W, B)
    x = tensor(X).requires_grad_()
    y = module(x)
    with torch.no_grad():
        x.zero_()
        module.weight.zero_()
    y.backward(tensor(GRAD))
    want = expected(ints.Linear("linear", hardware()), X, GRAD, W, B)
    assert (x.grad.tolist(), module.weight.grad.tolist()) == (
        want["grad of x"], want["grad of weight"])
