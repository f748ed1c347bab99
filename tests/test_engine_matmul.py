"""The MAC over whole matrices, against the definition, step by step."""

from itertools import product

import numpy as np
import pytest
from engine_cases import filled, stepped
from hypothesis import given
from hypothesis import strategies as st
from strategies import DETERMINISTIC, macs

from emu import Cast, Format, MacSpec, Overflow, bounds, engine, reference
from emu.engine import paths
from emu.engine.operands import Matrix, Rows


def order_free(a, b, bias, mac) -> bool:
    """Whether an exact sum, fitted at the end, is a path that may be taken."""
    return paths.Problem(Rows(a), Matrix(b), mac, bias[None]).facts.order_free


SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 3))
NARROW = MacSpec.parse("{a: s4, b: u3, acc: s6 sat, lanes: 2}")


def defined(a, b, mac, bias=None):
    """The results of the definition, flat."""
    biases = [0] * b.shape[1] if bias is None else [int(code) for code in bias]
    return stepped(reference.matmul_terms(a.tolist(), b.tolist()), mac, biases * len(a))


def computed(a, b, mac, bias=None):
    """The results of the engine, flat."""
    return engine.matmul(a, b, mac, bias).reshape(-1).tolist()


def every(form: str, length: int) -> np.ndarray:
    """All sequences of codes of a format, as rows."""
    codes = range(Format.parse(form).lo, Format.parse(form).hi + 1)
    return np.array(list(product(codes, repeat=length)))


@pytest.mark.parametrize(("acc", "row", "want"), [
    ("s8 sat", [100, 100, -100], 27),
    ("s8 sat", [100, -100, 100], 100),
    ("s8 sat", [-100, -100, 100], -28),
    ("s8 sat_sym", [-100, -100, 100], -27),
    ("s8 sat_zero", [100, 100, -100], -100),
    ("s8 wrap", [100, 100, 0], -56),
    ("u8 sat", [-100, 100, 100], 200),
    ("u8 wrap", [-100, 0, 0], 156),
])
def test_every_step_is_fitted(acc, row, want):
    mac = MacSpec.parse({"a": "s8", "b": "s8", "acc": acc})
    assert engine.matmul(np.array([row]), np.ones((3, 1), int), mac).tolist() == [[want]]


@pytest.mark.parametrize(("lanes", "want"), [(1, 27), (2, 27), (3, 100)])
def test_the_sum_of_a_step_is_exact(lanes, want):
    mac = MacSpec.parse(f"{{a: s8, b: s8, acc: s8 sat, lanes: {lanes}}}")
    row = np.array([[100, 100, -100]])
    assert engine.matmul(row, np.ones((3, 1), int), mac).tolist() == [[want]]


@pytest.mark.parametrize("rounding", DETERMINISTIC)
def test_every_product_cast_agrees_on_every_pair_of_3_bits(rounding):
    a, b = every("s3", 1), every("s3", 1).T
    for frac, width, signed, overflow in product(range(-4, 2), range(1, 6), (False, True),
                                                 Overflow):
        if (width, signed, overflow) == (1, True, Overflow.SAT_SYM):
            continue
        cast = Cast(Format(width, frac, signed), rounding, overflow)
        mac = MacSpec(Format(3), Format(3), Cast(Format(12, frac)), cast)
        assert computed(a, b, mac) == defined(a, b, mac), str(mac)


@pytest.mark.parametrize("overflow", Overflow)
@pytest.mark.parametrize(("a", "b", "length"), [("s3", "s3", 2), ("s2", "s2", 3), ("s2", "u1", 4)])
def test_every_sequence_of_small_operands_agrees(a, b, length, overflow):
    rows, columns = every(a, length), every(b, length).T
    for lanes in range(1, length + 1):
        mac = MacSpec(Format.parse(a), Format.parse(b), Cast(Format(3), 0, overflow), lanes=lanes)
        assert computed(rows, columns, mac) == defined(rows, columns, mac), str(mac)


@pytest.mark.parametrize("rounding", DETERMINISTIC)
def test_every_sequence_of_rounded_products_agrees(rounding):
    rows, columns = every("s2", 3), every("s2", 3).T
    for overflow, lanes in product(Overflow, (1, 2)):
        mac = MacSpec(Format(2), Format(2), Cast(Format(2, -1), 0, overflow),
                      Cast(Format(2, -1), rounding, overflow), lanes)
        assert computed(rows, columns, mac) == defined(rows, columns, mac), str(mac)


@pytest.mark.parametrize("rounding", DETERMINISTIC)
@pytest.mark.parametrize("reload", [False, True])
def test_every_rounding_between_two_accumulators_agrees(reload, rounding):
    rows, columns = every("s3", 2), every("s3", 2).T
    for overflow in Overflow:
        mac = MacSpec(Format(3), Format(3), Cast(Format(5)), tile=1, reload=reload,
                      outer=Cast(Format(4, -1), rounding, overflow))
        assert computed(rows, columns, mac) == defined(rows, columns, mac), str(mac)


NARROW_MACS = macs(operands=(1, 8), products=(1, 20), accs=(2, 12), fracs=(-8, 8), lanes=4)
WIDE_MACS = macs(operands=(12, 32), products=(16, 64), accs=(24, 62), fracs=(-8, 8), lanes=4)


def drawn(mac, shape, seed):
    """Operands and bias (a, b, bias) of a MAC."""
    M, K, N = shape
    return (filled((M, K), mac.a, seed), filled((K, N), mac.b, seed + 1),
            filled((N,), mac.result.format, seed + 2))


@given(NARROW_MACS | WIDE_MACS, SHAPES, st.integers(0, 99))
def test_every_mac_agrees(mac, shape, seed):
    a, b, bias = drawn(mac, shape, seed)
    got = engine.matmul(a, b, mac, bias)
    assert got.reshape(-1).tolist() == defined(a, b, mac, bias)


@pytest.mark.parametrize("overflow", Overflow)
@pytest.mark.parametrize("text", [
    "{a: s32, b: s32, acc: s62}", "{a: u32, b: s31, acc: s62}", "{a: u31, b: u31, acc: u62}",
    "{a: s31, b: s31, acc: s62, lanes: 2}", "{a: s32, b: s32, product: s62f-2 ties_even sat, "
    "acc: s62f-2}", "{a: s32, b: s30, product: s62f2 to_neg sat, acc: s62f2}",
    "{a: s32, b: s32, acc: s62, tile: 2, outer: s62f-1 ties_away}",
    "{a: s32, b: s30, acc: s60, tile: 2, outer: s58f-2 ties_away, reload: true}",
])
def test_the_widest_macs_agree_at_their_rails(text, overflow):
    mac = MacSpec.parse(text)
    mac = MacSpec(mac.a, mac.b, Cast(mac.acc.format, 0, overflow), mac.product, mac.lanes, 1,
                  mac.tile, mac.outer, mac.reload)
    rows, columns = every("s2", 3), np.array([[mac.b.lo, mac.b.hi]] * 3)
    a = np.select([rows == -2, rows == -1, rows == 0], [mac.a.lo, mac.a.lo + 1, 1], mac.a.hi)
    for bias in (mac.result.format.lo, 0, mac.result.format.hi):
        assert computed(a, columns, mac, [bias] * 2) == defined(a, columns, mac, [bias] * 2)


@pytest.mark.parametrize(("acc", "ones", "bias", "want"), [
    ("s8 sat", 127, 0, True),
    ("s8 sat", 128, 0, False),
    ("s8 sat_sym", 127, 0, True),
    ("s8 sat_sym", 128, 0, False),
    ("s8 sat_zero", 100, 27, True),
    ("s8 sat_zero", 100, 28, False),
    ("s8 sat", 100, -27, True),
    ("s8 sat", 100, -28, True),
    ("s8 sat", 0, 127, True),
    ("s8 sat", 0, -128, True),
    ("u8 sat", 255, 0, True),
    ("u8 sat", 256, 0, False),
    ("s8 wrap", 128, 0, True),
])
def test_the_exact_path_is_taken_up_to_its_bound(acc, ones, bias, want):
    mac = MacSpec.parse({"a": "s8", "b": "s8", "acc": acc})
    a, b = np.ones((1, ones), int), np.ones((ones, 1), int)
    assert order_free(a, b, np.array([bias]), mac) is want


@pytest.mark.parametrize("ups", [127, 128])
def test_both_sides_of_the_bound_agree(ups):
    mac = MacSpec.parse("{a: s8, b: s8, acc: s8 sat}")
    a = np.array([[1] * (ups - 1) + [last] for last in (1, -1)] + [[-1] * (ups - 1) + [1]])
    b = np.ones((ups, 1), int)
    assert computed(a, b, mac) == defined(a, b, mac)


@given(macs((1, 8), accs=(2, 16), fracs=(0, 4), lanes=4), SHAPES, st.integers(0, 99))
def test_where_the_exact_path_is_taken_the_exact_sum_is_the_result(mac, shape, seed):
    a, b, bias = drawn(mac, shape, seed)
    if mac.outer is None and mac.exact_product and order_free(a, b, bias, mac):
        sums = ((a @ b) << mac.product.format.frac) + bias
        want = [reference.fit(total, mac.acc) for total in sums.reshape(-1).tolist()]
        assert defined(a, b, mac, bias) == want


LEVELS = [str(NARROW), "{a: s4, b: u3, acc: s6}", "{a: s4, b: u3, acc: s9}",
          "{a: s4, b: u3, acc: s6 sat, tile: 2, outer: s7f-1 ties_even}",
          "{a: s4, b: u3, acc: s6 sat, tile: 2, outer: s5f-1 ties_even sat, reload: true}"]


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 3, 0), (0, 0, 0), (1, 1, 1), (9, 5, 3),
                                   (2, 3, 127), (2, 3, 128), (2, 3, 129), (2, 5, 257)])
@pytest.mark.parametrize("text", LEVELS)
def test_every_shape_agrees(text, shape):
    mac = MacSpec.parse(text)
    a, b, bias = drawn(mac, shape, 0)
    assert computed(a, b, mac, bias) == defined(a, b, mac, bias)


def test_an_empty_result_keeps_its_shape():
    got = engine.matmul(np.ones((0, 3), int), np.ones((3, 2), int), NARROW)
    assert got.shape == (0, 2)


@pytest.mark.parametrize("text", LEVELS)
def test_no_terms_give_the_bias(text):
    mac = MacSpec.parse(text)
    lo, hi = mac.result.format.lo, mac.result.format.hi
    got = computed(np.ones((2, 0), int), np.ones((0, 3), int), mac, [lo, 0, hi])
    assert got == [lo, 0, hi] * 2


@pytest.mark.parametrize("layout", [lambda x: x.T.copy().T, lambda x: np.repeat(x, 2, 1)[:, ::2],
                                    lambda x: x[::-1].copy()[::-1]])
def test_strided_operands_agree(layout):
    a, b = filled((3, 5), NARROW.a, 1), filled((5, 4), NARROW.b, 2)
    assert computed(layout(a), layout(b), NARROW) == defined(a, b, NARROW)


def test_read_only_operands_agree():
    a, b = filled((3, 5), NARROW.a, 1), filled((5, 4), NARROW.b, 2)
    a.flags.writeable = b.flags.writeable = False
    assert computed(a, b, NARROW) == defined(a, b, NARROW)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64"])
@pytest.mark.parametrize("unsigned", ["uint8", "uint16", "uint32", "int8"])
def test_operands_of_every_integer_dtype_agree(dtype, unsigned):
    a, b = filled((3, 5), NARROW.a, 1), filled((5, 4), NARROW.b, 2)
    assert computed(a.astype(dtype), b.astype(unsigned), NARROW) == defined(a, b, NARROW)


@pytest.mark.parametrize(("text", "dtype"), [
    ("{a: s4, b: s4, acc: s8}", np.int8), ("{a: s4, b: s4, acc: u8}", np.int16),
    ("{a: s4, b: s4, acc: s20}", np.int32), ("{a: s4, b: s4, acc: s40}", np.int64),
    ("{a: s4, b: s4, acc: s40, tile: 2, outer: s8}", np.int8)])
def test_the_result_is_in_the_smallest_dtype_of_the_last_stage(text, dtype):
    one = np.ones((1, 1), int)
    assert engine.matmul(one, one, MacSpec.parse(text)).dtype == dtype


ROW, COLUMN = np.ones((1, 2), int), np.ones((2, 1), int)

IMAGE = np.ones((1, 1, 1, 1), int)


@pytest.mark.parametrize(("a", "b", "bias", "message"), [
    (ROW.astype(float), COLUMN, None, "a: dtype float64 holds no codes"),
    (ROW, COLUMN.astype(np.uint64), None, "b: dtype uint64 holds no codes"),
    (ROW.astype(bool), COLUMN, None, "a: dtype bool holds no codes"),
    (ROW * 8, COLUMN, None, "a: code 8 is outside s4f0"),
    (ROW * -9, COLUMN, None, "a: code -9 is outside s4f0"),
    (ROW, -COLUMN, None, "b: code -1 is outside u3f0"),
    (ROW, np.ones((3, 1), int), None, r"a \(1, 2\) @ b \(3, 1\): the inner sizes 2 and 3 differ"),
    (ROW[0], COLUMN, None, r"a: shape \(2,\) has 1 axes, needs 2"),
    (ROW, COLUMN, [0, 0], r"bias: shape \(2,\) for 1 outputs"),
    (ROW, COLUMN, 0, r"bias: shape \(\) has 0 axes, needs 1"),
    (ROW, COLUMN, [32], "bias: code 32 is outside s6f0"),
    (ROW, COLUMN, [0.5], "bias: dtype float64 holds no codes"),
])
def test_what_the_mac_cannot_take_is_refused(a, b, bias, message):
    with pytest.raises(ValueError, match=message):
        engine.matmul(a, b, NARROW, bias)


def test_the_bias_is_a_code_of_the_outer_accumulator():
    mac = MacSpec.parse("{a: s4, b: u3, acc: s20, tile: 2, outer: s6}")
    with pytest.raises(ValueError, match="bias: code -33 is outside s6f0"):
        engine.matmul(ROW, COLUMN, mac, [-33])


def test_a_symmetric_product_saturates_at_its_lowest_code():
    spec = MacSpec.parse("{a: u1, b: s8, product: s8 sat_sym, acc: s16 sat}")
    assert engine.matmul(np.array([[1]]), np.array([[-128]]), spec).tolist() == [[-127]]


@pytest.mark.parametrize("call", [
    lambda mac: engine.matmul(ROW, COLUMN, mac),
    lambda mac: engine.conv2d(IMAGE, IMAGE, mac), lambda mac: bounds.matmul(COLUMN, mac),
    lambda mac: engine.conv2d_grad_input(IMAGE, IMAGE, mac, 1),
    lambda mac: engine.conv2d_grad_weight(IMAGE, IMAGE, mac, 1)])
@pytest.mark.parametrize("mac", ["{a: s8, b: s8, acc: s20}", None, Cast.parse("s20")])
def test_the_text_of_a_mac_is_no_mac(mac, call):
    with pytest.raises(ValueError, match=r"^mac .*: needs a MacSpec; emu\.MacSpec\.parse reads"):
        call(mac)


@pytest.mark.parametrize(("call", "name", "kind"), [
    (lambda spec: engine.norm_statistics(ROW, spec), "spec", "NormSpec"),
    (lambda spec: engine.batch_norm(ROW, [0], [0], [0], [0], spec), "spec", "NormSpec"),
    (lambda spec: engine.running_norm([0], [0], None, 0, spec), "spec", "NormSpec"),
    (lambda spec: engine.frozen_norm([0], [0], spec), "spec", "NormSpec"),
    (lambda spec: engine.batch_norm_grad(ROW, ROW, [0], [0], spec), "spec", "NormSpec"),
    (lambda spec: engine.softmax(ROW, spec), "spec", "SoftmaxSpec"),
    (lambda spec: engine.cross_entropy(ROW, [0], spec), "spec", "SoftmaxSpec"),
    (lambda spec: engine.lookup(ROW, spec), "table", "Table"),
    (lambda spec: engine.lookup_grad(ROW, 0, ROW, spec, Cast.parse("s8")), "slope", "Table"),
    (lambda spec: engine.sgd(ROW, ROW, ROW, 0, 0, spec), "spec", "UpdateSpec"),
    (lambda spec: engine.floats_plan(spec, 0, 0, np.dtype(float), 0), "spec", "UpdateSpec"),
    (lambda spec: engine.buffered_sgd(ROW, ROW, ROW, 0, spec), "spec", "BufferSpec"),
    (lambda rule: engine.cast_for(rule, ROW, None), "rule", "Rule"),
    (lambda rule: engine.cast_for_codes(rule, ROW, 0, None), "rule", "Rule")])
@pytest.mark.parametrize("spec", ["s8f4", None, Cast.parse("s20")])
def test_the_text_of_a_spec_is_no_spec(spec, call, name, kind):
    with pytest.raises(ValueError, match=rf"^{name} .*: needs a {kind}; emu\.{kind}\.parse reads"):
        call(spec)


def test_an_order_is_by_rows_or_by_columns():
    with pytest.raises(ValueError, match=r"^order 'X': needs 'C'"):
        engine.matmul(ROW, COLUMN, MacSpec.parse("{a: s8, b: s8, acc: s20}"), order="X")
