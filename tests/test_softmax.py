"""Softmax and cross-entropy on codes: real exponentials, and a whole step without floats."""

from fractions import Fraction
from itertools import product

import numpy as np
import oracle
import pytest
import real_oracle
from engine_cases import filled
from hypothesis import given
from hypothesis import strategies as st
from strategies import DETERMINISTIC, examples, or_reject

import emu
from emu import Cast, Format, MacSpec, Overflow, SoftmaxSpec, UpdateSpec, engine, reference

SPEC = SoftmaxSpec.parse("{x: s8f4, exp: u16f15 ties_even sat, prob: u9f8 ties_even sat, "
                         "loss: u8f5 ties_even sat}")


def rounded(name, q, to):
    """The code of a real value, both ends of whose enclosure agree (only exp(0) = 1 is exact)."""
    low, high = (1, 1) if q == 0 else real_oracle.value(name, q)
    codes = {oracle.cast(end, to) for end in (low, high)}
    assert len(codes) == 1
    return codes.pop()


def row_of(x, target, spec):
    """(probabilities, errors, loss) on fractions."""
    step = Fraction(2) ** -spec.x.frac
    powers = [rounded("exp", (code - max(x)) * step, spec.exp) for code in x]
    prob = [oracle.cast(Fraction(power, sum(powers)), spec.prob) for power in powers]
    real = [oracle.value_of(p, spec.prob.format) for p in prob]
    error = [(p - (i == target)) * 2**spec.prob.format.frac for i, p in enumerate(real)]
    if real[target] == 1:
        return prob, error, 0
    loss = rounded("neg_log", real[target], spec.loss) if real[target] else spec.loss.range[1]
    return prob, error, loss


@pytest.mark.parametrize("modes", [rounding.name.lower() for rounding in DETERMINISTIC])
def test_every_small_row_is_the_definition_on_fractions(modes):
    spec = SoftmaxSpec.parse({"x": "s3f1", "exp": f"u5f4 {modes} sat", "prob": f"u4f4 {modes} sat",
                              "loss": f"u5f3 {modes} sat"})
    rows = list(product(range(-4, 4), repeat=3))
    want = [row_of(x, 1, spec) for x in rows]
    assert [reference.cross_entropy(x, 1, spec) for x in map(list, rows)] == want
    got = engine.cross_entropy(np.array(rows), np.ones(len(rows), int), spec)
    assert list(zip(got.prob.tolist(), got.error.tolist(), got.loss.tolist(), strict=True)) == want


@st.composite
def specs(draw):
    rounding = st.sampled_from(DETERMINISTIC)

    def cast(least, most):
        width, overflow = draw(st.integers(least, most)), draw(st.integers(1, 3))
        frac = draw(st.integers(0, width))
        return Cast(Format(width, frac, False), draw(rounding), overflow)

    x = Format(draw(st.integers(1, 7)), draw(st.integers(-1, 6)), draw(st.booleans()))
    return or_reject(SoftmaxSpec, x=x, exp=cast(1, 31), prob=cast(1, 9),
                     loss=draw(st.none() | st.just(cast(1, 12))))


@given(specs(), st.integers(0, 5), st.integers(1, 12), st.integers(0, 99))
@examples(60)
def test_the_engine_is_the_definition(spec, rows, classes, seed):
    x = filled((rows, classes), spec.x, seed)
    target = np.random.default_rng(seed).integers(0, classes, rows)
    want = [reference.cross_entropy(row, t, spec)
            for row, t in zip(x.tolist(), target.tolist(), strict=True)]
    got = engine.cross_entropy(x, target, spec)
    assert got.prob.tolist() == engine.softmax(x, spec).tolist() == [row[0] for row in want]
    assert got.error.tolist() == [row[1] for row in want]
    assert (got.loss is None and spec.loss is None) or got.loss.tolist() == [r[2] for r in want]
    assert all(spec.error.lo <= e <= spec.error.hi for row in want for e in row[1])


@given(specs(), st.integers(0, 5), st.integers(1, 6), st.integers(0, 99))
@examples(30)
def test_masked_logits_take_no_part(spec, rows, classes, seed):
    x = filled((rows, classes), spec.x, seed)
    masked = np.random.default_rng(seed).random((rows, classes)) < 0.5
    got = engine.softmax(x, spec, masked)
    for row, out, found in zip(x.tolist(), masked.tolist(), got.tolist(), strict=True):
        kept = iter(reference.softmax([c for c, m in zip(row, out, strict=True) if not m], spec))
        assert found == [0 if m else next(kept) for m in out]
        assert reference.softmax(row, spec, out) == found


def test_wide_logits_and_probabilities_are_exact():
    spec = SoftmaxSpec.parse("{x: s12f4, exp: u30f30 to_neg sat, prob: u31f30 ties_odd sat}")
    x = filled((3, 400), spec.x, 0)
    x[1] = 7  # 400 equal ones: their sum has 40 bits
    assert engine.softmax(x, spec).tolist() == [reference.softmax(row, spec) for row in x.tolist()]


def test_the_order_of_classes_and_a_shared_shift_do_not_matter():
    x = filled((1, 9), Format(7, 4), 0)
    want = emu.softmax(x, SPEC)
    assert emu.softmax(x + 30, SPEC).tolist() == want.tolist()
    assert emu.softmax(x[:, ::-1], SPEC).tolist() == want[:, ::-1].tolist()


def test_a_probability_that_rounds_to_zero_has_the_greatest_loss():
    x = np.array([[127, -128]])
    assert engine.cross_entropy(x, [1], SPEC).loss.tolist() == [255]
    assert engine.cross_entropy(x, [0], SPEC).loss.tolist() == [0]


def test_a_training_step_needs_no_float():
    """Logits, loss, both errors, weight gradient and update: integers from end to end."""
    generator = np.random.default_rng(0)
    x = generator.integers(-128, 128, (64, 12))
    target = (x[:, 0] > 0) + 2 * (x[:, 1] > 0)
    mac = MacSpec.parse("{a: s8, b: s8, acc: s24 sat}")
    back = MacSpec.parse("{a: s8, b: s10, acc: s24 sat}")
    update = UpdateSpec.parse("{weight: s16f14 ties_even sat, momentum: s16f10 ties_even sat, "
                              "grad: s16f10 ties_even sat, lr: u8f10, mu: u8f8}")
    weight, momentum = np.zeros((12, 4), np.int64), np.zeros((12, 4), np.int64)
    losses = []
    for _ in range(30):
        used = emu.cast(weight, 14, Cast.parse("s8f6 ties_even sat"))
        logits = emu.cast(emu.matmul(x, used, mac), 7 + 6, Cast(SPEC.x, overflow=Overflow.SAT))
        step = emu.cross_entropy(logits, target, SPEC)
        grad = emu.matmul(x.T.copy(), step.error, back)  # frac 7 + 8, the mean over 64: 6 more
        grad = emu.cast(grad, 7 + 8 + 6, update.grad)
        weight, momentum, *_ = engine.sgd(weight, momentum, grad, 255, 200, update)
        assert {a.dtype.kind for a in (used, logits, *step, grad, weight, momentum)} == {"i"}
        losses.append(int(step.loss.sum()))
    assert losses[-1] < losses[0] // 2


def test_probabilities_are_torchs_within_a_float_tolerance():
    torch = pytest.importorskip("torch")
    x = filled((20, 10), SPEC.x, 1)
    want = torch.softmax(torch.tensor(x) / 16.0, 1).numpy()
    tolerance = 0.6 / 256
    assert np.abs(engine.softmax(x, SPEC) / 256 - want).max() < tolerance


@pytest.mark.parametrize("text", [
    str(SPEC), "{x: u4f1, exp: u8f8 ties_even sat, prob: u16f15 to_odd wrap}"])
def test_the_text_of_a_softmax_parses_back(text):
    spec = SoftmaxSpec.parse(text)
    assert str(spec) == text
    assert SoftmaxSpec.parse(str(spec)) == spec
    assert eval(repr(spec), {"SoftmaxSpec": SoftmaxSpec}) == spec


@pytest.mark.parametrize(("changed", "message"), [
    ({"x": "s17f4"}, "at most 16 bits"),
    ({"exp": "s8f4 sat"}, "softmax exp s8f4 .*: needs an unsigned format of at most 31 bits"),
    ({"prob": "u32f8 sat"}, "softmax prob u32f8 .*: needs an unsigned format of at most 31 bits"),
    ({"prob": "u8f-1 sat"}, "its frac goes from 0 to 31"),
    ({"prob": "u8f8 stochastic8 sat"}, "use a deterministic rounding"),
    ({"exp": "u30f8 sat", "prob": "u31f31 sat"}, "their quotient needs 61 bits, the limit is 60"),
    ({"exp": "u8f8"}, r"exp\(0\) = 1 is outside; use sat, or a frac of at most 7"),
    ({"exp": "u8f8 sat_zero"}, r"exp\(0\) = 1 is outside"),
    ({"loss": "u8f4 ties_even"}, r"-ln\(0\) is outside every format; use sat"),
    ({"prob": "u17f17 sat"}, "table x u17f17: at most 16 bits"),
    ({"sum": "u8"}, "unknown softmax key 'sum'"),
])
def test_a_bad_softmax_is_refused(changed, message):
    items = {"x": "s8f4", "exp": "u16f15 sat", "prob": "u9f8 sat", "loss": "u8f5 sat"}
    with pytest.raises(ValueError, match=message):
        SoftmaxSpec.parse(items | changed)


@pytest.mark.parametrize(("x", "target", "message"), [
    ([[1, 2]], [2], "the classes are 0 to 1"), ([[1, 2]], [-1], "target from -1 to -1"),
    ([[1, 2]], [0, 1], r"target \(2,\) for logits \(1, 2\)"), ([1, 2], [0], "1 axes, needs 2"),
    ([[128, 0]], [0], "x: code 128 is outside s8f4"), ([[0.5]], [0], "holds no codes"),
    (np.zeros((1, 0), int), [0], "has no classes"),
])
def test_bad_logits_and_targets_are_refused(x, target, message):
    with pytest.raises(ValueError, match=message):
        engine.cross_entropy(x, target, SPEC)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"masked \(2,\) for logits \(1, 2\): shapes differ"):
        engine.softmax([[1, 2]], SPEC, [True, False])
