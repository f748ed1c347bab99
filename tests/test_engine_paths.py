"""Every path of the MAC against the plain one: everywhere, and on both sides of each bound."""

import os
import platform
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import path_bounds
import pytest
from path_cases import MODES, VNNI, compare, drawn_comparison, expected

import emu.nn  # noqa: F401  hands in torch's product
from emu import Cast, Format, MacSpec, Overflow, engine, reference
from emu.engine import paths
from emu.engine.kernels.vector import has_vnni
from emu.engine.operands import Matrix, Rows
from emu.value import parse_mapping

TESTS = Path(__file__).parent
CASES = 2000


def problem(mac: MacSpec, a: np.ndarray, b: np.ndarray, bias: np.ndarray) -> paths.Problem:
    return paths.Problem(Rows(a), Matrix(b), mac, bias[None])


def offered(mac: MacSpec, a, b, bias) -> list[str]:
    """The paths that this MAC may take, "plain" not among them."""
    return list(paths.candidates(problem(mac, a, b, bias).facts))


def between(bounds: tuple[int, int], shape: tuple[int, int], seed: int) -> np.ndarray:
    """Rows that stay at either bound, change between them, and lie at random: for every K > 1 rails
    are met from both sides."""
    rng = np.random.default_rng(seed)
    rows = np.empty(shape, np.int64)
    rows[0], rows[1], rows[2, ::2], rows[2, 1::2] = bounds[1], bounds[0], *bounds
    rows[3:] = rng.choice([*bounds, 0], rows[3:].shape)
    return rows


def test_the_fuzz_reaches_every_path_with_its_rails_active():
    taken, active = Counter(), Counter()
    for case in range(CASES):
        drawn_comparison(np.random.default_rng([1, case]), taken, active)
    assert {*taken} == expected() | {"two levels"}
    assert min(taken.values()) > 40 and min(active.values()) > 10, (taken, active)


def check(path: str, hardware: str, operands: tuple, start: int | None, exact: bool) -> None:
    """The path is offered or not, and every path that is gives the plain one's codes."""
    (a, b), items = operands, parse_mapping(f"{{{hardware}}}")
    k = int(items.pop("K", 5))
    mac = MacSpec.parse({"a": Format.holding(*a), "b": Format.holding(*b), **items})
    rows, columns = between(a, (9, max(k, 1)), 0)[:, :k], between(b, (17, max(k, 1)), 1).T[:k]
    form = mac.acc.format
    bias = np.resize([form.hi, form.lo, 0] if start is None else start, 17)
    if path in expected():
        assert (path in offered(mac, rows, columns, bias)) is exact
    compare(mac, rows, columns, bias, Counter())


def ids(row) -> str:
    return f"{row[0]} {row[1]}"


@pytest.mark.parametrize("row", path_bounds.OPERANDS, ids=ids)
def test_a_path_is_offered_up_to_its_bound(row):
    path, hardware, inside, beyond = row
    for operands in inside:
        check(path, hardware, operands, None, True)
    for operands in beyond:
        check(path, hardware, operands, None, False)


@pytest.mark.parametrize("row", path_bounds.STARTS, ids=ids)
def test_a_path_is_offered_up_to_a_start_value(row):
    path, hardware, operands, inside, beyond = row
    for start in inside:
        check(path, hardware, operands, start, True)
    for start in beyond:
        check(path, hardware, operands, start, False)


@pytest.mark.skipif(not has_vnni(), reason="needs AVX-512 VNNI")
@pytest.mark.parametrize("path", [None, "plain", "step64", "thin64"])
def test_a_step_that_int32_cannot_hold_saturates(path):
    mac = MacSpec.parse("{a: s8, b: s8, acc: s31 sat, lanes: 131072}")
    row = np.full((1, 131072), -128, np.int8)
    assert engine.matmul(row, row.T, mac, path=path).tolist() == [[2**30 - 1]]


# Rounding by constants

PRODUCTS = np.unique(np.outer(range(-128, 128), range(-128, 128)))


@pytest.mark.parametrize("n", range(7))
@pytest.mark.parametrize("rounding", MODES)
def test_three_constants_round_every_product_of_8_bits(rounding, n):
    c0, c1, c2 = paths.rounding_constants(rounding, n)
    got = (PRODUCTS + c0 + c1 * (PRODUCTS < 0) + c2 * (PRODUCTS >> n & 1)) >> n
    cast = Cast(Format(20), rounding)
    assert got.tolist() == [reference.round_shift(x, n, cast) for x in PRODUCTS.tolist()]


@pytest.mark.parametrize("rounding", MODES)
def test_every_kernel_rounds_every_product_of_8_bits(rounding):
    codes = np.arange(-128, 128)
    a, b = np.pad(codes[:, None], ((0, 0), (0, 1))), np.pad(codes[None], ((0, 1), (0, 0)))
    where = np.searchsorted(PRODUCTS, np.outer(codes, codes))
    for n in range(1, 7):
        taken = set()
        cast = Cast(Format(17 - n, -n), rounding)
        want = np.array([reference.round_shift(x, n, cast) for x in PRODUCTS.tolist()])[where]
        for acc in (f"s16f{-n} sat", f"s20f{-n} sat", f"s20f{-n}"):
            mac = MacSpec(Format(8), Format(8), Cast.parse(acc), cast)
            for path in offered(mac, a, b, np.zeros(256, np.int64)):
                assert np.array_equal(engine.matmul(a, b, mac, path=path), want), (mac, path)
                taken.add(path)
        assert {"step32_round", "step64_round", "sum32_round", "sum64_round"} <= taken


@pytest.mark.parametrize("dropped", [61, 62, 63, 64])
@pytest.mark.parametrize("rounding", MODES)
def test_an_outer_register_may_drop_every_bit(rounding, dropped):
    for form, overflow in product(("s62", "u62"), (Overflow.WRAP, Overflow.SAT)):
        acc = Cast(Format.parse(form), 0, Overflow.SAT)
        mac = MacSpec(Format(31), Format(31), acc, tile=2, outer=Cast(
            Format(3, -dropped), rounding, overflow))
        a = np.array([[mac.a.lo] * 4, [mac.a.hi] * 4, [mac.a.lo, -1, 1, mac.a.hi], [1, 0, -1, 0]])
        b = a.T.copy()
        want = reference.matmul(a.tolist(), b.tolist(), mac)
        assert engine.matmul(a, b, mac).tolist() == want, mac
        assert engine.matmul(a, b, mac, path="plain").tolist() == want, mac


# Torch's product, or whatever is handed in

def exact(a, b):
    return (a.astype(np.int64) @ b).astype(np.int32)


def saturating(unsigned, signed):
    """unsigned (M, K) @ signed (K, N), pairs of products added in 16 bits as vpmaddubsw does."""
    K = unsigned.shape[1] + unsigned.shape[1] % 2
    u = np.zeros((unsigned.shape[0], K), np.int64)
    s = np.zeros((K, signed.shape[1]), np.int64)
    u[:, :unsigned.shape[1]], s[:signed.shape[0]] = unsigned, signed
    total = np.zeros((u.shape[0], s.shape[1]), np.int64)
    for k in range(0, K, 2):
        pair = np.outer(u[:, k], s[k]) + np.outer(u[:, k + 1], s[k + 1])
        total += np.clip(pair, -(2**15), 2**15 - 1)
    return total


def first_raised(a, b):
    return (saturating(a.astype(np.int64) + 128, b)
            - 128 * b.sum(0, dtype=np.int64)).astype(np.int32)


def second_raised(a, b):
    return (saturating(b.T.astype(np.int64) + 128, a.T).T
            - 128 * a.sum(1, dtype=np.int64)[:, None]).astype(np.int32)


def seven_bits(a, b):
    return exact(np.maximum(a, -127), b)


def test_an_exact_product_is_taken(monkeypatch):
    monkeypatch.setattr(paths, "external", {})
    assert engine.offer_int_mm(exact) and paths.external == {"int_mm": exact}


def in_22_bits(a, b):
    return np.clip(exact(a, b), -(2**21), 2**21 - 1)


def in_float32(a, b):
    return (a.astype(np.float32) @ b.astype(np.float32)).astype(np.int32)


def as_if_by_rows(a, b):
    return exact(*(x.ravel("K").reshape(x.shape) for x in (a, b)))


@pytest.mark.parametrize("wrong", [first_raised, second_raised, seven_bits, in_22_bits,
                                   in_float32, as_if_by_rows])
def test_a_wrong_product_is_refused(wrong, monkeypatch):
    small = np.arange(-8, 8, dtype=np.int8).reshape(4, 4)
    assert np.array_equal(wrong(small, small), exact(small, small))  # most operands do not show it
    monkeypatch.setattr(paths, "external", {})
    assert not engine.offer_int_mm(wrong) and not paths.external


# A CPU without AVX-512

PORTABLE = """
from collections import Counter
import numpy as np
from path_cases import drawn_comparison
from emu.engine.kernels.vector import has_vnni, vector_bits
taken = Counter()
for case in range(200):
    drawn_comparison(np.random.default_rng([2, case]), taken)
print(vector_bits(), has_vnni(), *sorted(taken), sep=",")
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="compiles for haswell")
def test_the_portable_kernels_agree_on_a_cpu_without_vnni():
    found = subprocess.run(
        [sys.executable, "-c", PORTABLE], capture_output=True, text=True, check=False,
        env={**os.environ, "NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma",
             "NUMBA_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS.parent),
                                                                      str(TESTS)])})
    assert found.returncode == 0, found.stderr
    names = sorted({*expected(), "two levels"} - VNNI)
    assert found.stdout.strip().split(",") == ["256", "False", *names]


# Operands of any kind, size and layout

CLASSES = {  # one piece of hardware for each kind of lane
    "int16": "acc: s15 sat", "int32": "acc: s20 sat", "float64": "acc: s40 sat",
    "dropped": "product: s14f-3 ties_pos, acc: s16f-3 sat",
    "rounded": "product: s14f-3 ties_even, acc: s20f-3 sat", "wraps": "acc: s17",
    "fitted": "product: s9 sat, acc: s12 sat_zero",
    "lanes": "acc: s15 sat, lanes: 3", "two levels": "acc: s15 sat, tile: 8, outer: s14f-2 sat",
}
classes = pytest.mark.parametrize("text", CLASSES.values(), ids=CLASSES.keys())


def operands(text: str, shape=(9, 37, 33), a="s8", b="s8") -> tuple:
    """(mac, a, b, the plain path's result)."""
    mac = MacSpec.parse(f"{{a: {a}, b: {b}, {text}}}")
    rng = np.random.default_rng(0)
    m, k, n = shape
    a, b = (rng.integers(form.lo, form.hi, shape, endpoint=True)
            for form, shape in ((mac.a, (m, k)), (mac.b, (k, n))))
    return mac, a, b, engine.matmul(a, b, mac, path="plain").tolist()


LAYOUTS = {
    "transposed": lambda x: x.T.copy().T, "every second": lambda x: np.repeat(x, 2, 1)[:, ::2],
    "backwards": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "big-endian": lambda x: x.astype(">i4"), "long long": lambda x: x.astype("q"),
    "int8": lambda x: x.astype(np.int8),
    "int16": lambda x: x.astype(np.int16), "int32": lambda x: x.astype(np.int32),
    "lists": lambda x: x.tolist(),
}


@classes
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_layout_gives_the_same_codes(layout, text):
    mac, a, b, want = operands(text)
    assert engine.matmul(layout(a), layout(b), mac).tolist() == want


@classes
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_unsigned_dtypes_give_the_same_codes(dtype, text):
    mac, a, b, want = operands(text, a="u8", b="u8")
    assert engine.matmul(a.astype(dtype), b.astype(dtype), mac).tolist() == want


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_an_unsigned_dtype_does_not_wrap_into_a_signed_format(dtype):
    mac, a, b, _ = operands("acc: s20 sat")
    b = np.full(b.shape, 255, dtype)
    with pytest.raises(ValueError, match="b: code 255 is outside s8f0"):
        engine.matmul(a, b, mac)


@classes
@pytest.mark.parametrize("shape", [(0, 5, 3), (3, 5, 0), (0, 0, 0), (0, 0, 4), (4, 0, 0)])
def test_no_outputs_give_none(shape, text):
    mac, a, b, _ = operands(text, shape)
    got = engine.matmul(a, b, mac)
    assert got.shape == (shape[0], shape[2]) and got.dtype == engine.matmul(
        a, b, mac, path="plain").dtype


@classes
def test_no_terms_give_the_start_value(text):
    mac, a, b, _ = operands(text, (3, 0, 4))
    lo, hi = mac.result.format.lo, mac.result.format.hi
    for path in [None, "plain", *(offered(mac, a, b, np.array([lo, hi])) if not mac.tile else [])]:
        assert engine.matmul(a, b, mac, [lo, hi, 0, 1], path=path).tolist() == [[lo, hi, 0, 1]] * 3


def test_no_terms_do_not_fit_the_start_value():
    mac = MacSpec.parse("{a: s8, b: s8, acc: s8 sat_sym}")
    a, b = np.zeros((1, 0), int), np.zeros((0, 1), int)
    assert engine.matmul(a, b, mac, [-128]).tolist() == [[-128]]
    assert engine.matmul(a, b, mac, [-128], path="plain").tolist() == [[-128]]


@pytest.mark.parametrize(("text", "path"), [
    ("acc: s20 sat", "step32"), ("acc: s20 sat", "tracked"), ("acc: s20 sat", "step32_vnni"),
    ("acc: s20 sat", "step32_native"),
    ("acc: s32", "quads"), ("acc: s32", "pairs"), ("acc: s32", "sum32"), ("acc: s32", "int_mm"),
    ("acc: s20 sat", "thin32"), ("acc: s45 sat", "thin64"), ("acc: s32", "thin32"),
    ("acc: s45", "sum64f"), ("acc: s45", "sum64"), ("acc: s45 sat", "step64f"),
    ("acc: s45 sat", "step64f_range"),
    ("acc: s16 sat", "step16"), ("acc: s33 sat_zero", "plain"),
    ("product: s14f-3 ties_even, acc: s16f-3", "sum32_round")])
def test_a_million_terms_agree(text, path):
    if path not in expected() | {"plain"}:
        pytest.skip("needs AVX-512 VNNI")
    mac = MacSpec.parse(f"{{a: s8, b: s8, {text}}}")
    rng = np.random.default_rng(0)
    k = 2**20
    a = rng.integers(-128, 128, (2, k)).astype(np.int8)
    a[1] = 127  # drifts
    b = rng.integers(-128, 128, (k, 1)).astype(np.int8)
    b[k // 2:] = 127
    a[0, k // 2:] = -128  # 2^33 below zero
    terms = a.astype(np.int64) * b.T
    if mac.product.format.frac:
        rounded = [reference.round_shift(x, 3, mac.product) for x in range(-(2**15), 2**15)]
        terms = np.array(rounded)[terms + 2**15]
    if mac.acc.overflow == Overflow.WRAP:
        want = [reference.fit(x, mac.acc) for x in terms.sum(1).tolist()]
    else:
        want = [stepped(row, mac.acc) for row in terms.tolist()]
    assert engine.matmul(a, b, mac, path=path).reshape(-1).tolist() == want


def stepped(terms: list[int], acc: Cast) -> int:
    """The register after one term a step, written out."""
    register, (lo, hi) = 0, acc.range
    for term in terms:
        register += term
        if not lo <= register <= hi:
            register = 0 if acc.overflow == Overflow.SAT_ZERO else hi if register > hi else lo
    return register


@classes
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.complex64, bool, object,
                                   np.uint64, ">u8", "U3", "M8[s]"])
def test_a_dtype_that_holds_no_codes_is_refused(dtype, text):
    mac, a, b, _ = operands(text, (2, 3, 2))
    with pytest.raises(ValueError, match=r"b: dtype .* holds no codes"):
        engine.matmul(a, np.zeros(b.shape, dtype), mac)


@classes
@pytest.mark.parametrize(("which", "code"), list(product("ab", (-129, 128))))
def test_a_code_outside_its_format_is_named(which, code, text):
    mac, a, b, _ = operands(text)
    {"a": a, "b": b}[which][-1, -1] = code
    with pytest.raises(ValueError, match=f"{which}: code {code} is outside s8f0"):
        engine.matmul(a, b, mac)


@pytest.mark.parametrize("path", ["step16", "step17", ""])
def test_a_path_that_is_not_exact_here_is_refused(path):
    mac, a, b, _ = operands("acc: s20 sat, lanes: 2")
    with pytest.raises(ValueError, match=rf"path '{path}': not exact, or unknown, for .* here"):
        engine.matmul(a, b, mac, path=path)


def test_operands_may_lie_in_any_layout():
    """Also where an axis has one code, and so any stride."""
    rng, mac = np.random.default_rng(0), MacSpec.parse("{a: s8, b: s8, acc: s24 sat}")
    layouts = [np.ascontiguousarray, np.asfortranarray, lambda x: np.repeat(x, 2, 1)[:, ::2],
               lambda x: np.stack([x.T, x.T])[1].T, lambda x: np.flip(np.flip(x).copy())]
    for m, k, n in product((1, 2, 33), (1, 2, 16), (1, 4, 65)):
        a, b = (rng.integers(-128, 128, shape).astype(np.int8) for shape in ((m, k), (k, n)))
        want = a.astype(np.int64) @ b  # too few products to saturate
        for lay_a, lay_b in product(layouts, layouts):
            assert np.array_equal(engine.matmul(lay_a(a), lay_b(b), mac), want), (m, k, n)
