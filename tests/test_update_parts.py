"""Weight decay, Nesterov momentum and limited gradients: spec, definition and engine."""

from fractions import Fraction
from itertools import product
from math import isqrt

import numpy as np
import oracle
import pytest
from engine_cases import filled, operands
from hypothesis import given
from hypothesis import strategies as st
from strategies import casts, codes, examples, formats, or_reject, updates

from emu import BufferSpec, Cast, Format, Overflow, Rounding, UpdateSpec, engine, reference

TEXTS = {"weight": "s12f8 ties_even sat", "momentum": "s10f6 to_neg sat", "grad": "s9f7",
         "lr": "u6f10", "mu": "u4f4"}
PARTS = ["decay", "shrink", "nesterov"]


def spec_of(**texts) -> UpdateSpec:
    """An update with these fields changed or added."""
    return UpdateSpec.parse(TEXTS | texts)


@st.composite
def extended(draw, bits):
    """An UpdateSpec with some of the parts, that is not refused."""
    spec = draw(updates(bits))
    parts = draw(st.sets(st.sampled_from(PARTS), min_size=1).filter(
        lambda parts: {"decay", "shrink"} - parts))
    fields = dict(vars(spec))
    finest = {"decay": spec.sum_frac("momentum"), "shrink": spec.sum_frac("weight")}
    for name in parts - {"nesterov"}:
        frac = finest[name] - spec.weight.format.frac + draw(st.integers(-6, 2))
        fields[name] = draw(casts((1, 9), (frac, frac), stochastic=False))
    if "nesterov" in parts:
        frac = spec.momentum.format.frac + draw(st.integers(-2, 2))
        fields["nesterov"] = draw(casts((1, max(2, bits // 3)), (frac, frac)))
    names = [*TEXTS, *PARTS]
    return or_reject(UpdateSpec, **{name: fields.get(name) for name in names})


@st.composite
def cases(draw, bits):
    """The arguments of one update of some weights: spec, constants, codes and operands."""
    spec = draw(extended(bits))
    lr, mu = (draw(codes(to.format)) for to in (spec.lr, spec.mu))
    decay = spec.decay or spec.shrink
    decay = draw(codes(decay.format)) if decay else 0
    state = [draw(st.lists(codes(getattr(spec, name).format), min_size=4, max_size=4))
             for name in ("weight", "momentum", "grad")]
    rands = [draw(operands(to, 4)) if to else [None] * 4
             for to in (spec.momentum, spec.weight, spec.nesterov)]
    return spec, lr, mu, decay, state, rands


@pytest.mark.parametrize("bits", [14, 30, 61])
def test_any_update_is_that_of_its_fractions_in_the_engine_too(bits):
    @given(cases(bits))
    @examples(50)
    def check(case):
        spec, lr, mu, decay, state, rands = case
        every = list(zip(*state, *rands, strict=True))
        want = [oracle.sgd(w, m, g, lr, mu, spec, rm, rw, decay, rn)
                for w, m, g, rm, rw, rn in every]
        assert [reference.sgd(w, m, g, lr, mu, spec, rm, rw, decay, rn)
                for w, m, g, rm, rw, rn in every] == want
        given_rands = [None if None in rand else np.array(rand) for rand in rands]
        narrow = all(getattr(spec, name).format.hi < 2**31
                     for name in ("weight", "momentum", "grad"))
        for dtype in (np.int64, np.int32) if narrow else (np.int64,):
            arrays = [np.array(x, dtype) for x in state]
            got = engine.sgd(*arrays, lr, mu, spec, *given_rands[:2], decay=decay,
                             rand_nesterov=given_rands[2])
            assert list(zip(got.weight.tolist(), got.momentum.tolist(), strict=True)) == want
            with engine.monitor():
                watched = engine.sgd(*arrays, lr, mu, spec, *given_rands[:2], decay=decay,
                                     rand_nesterov=given_rands[2])
            assert [np.asarray(x).tolist() for x in watched] == [np.asarray(x).tolist()
                                                                 for x in got]

    check()


@pytest.mark.parametrize(("rounding", "overflow"), list(product(Rounding, Overflow)),
                         ids=lambda mode: mode.name)
@pytest.mark.parametrize("part", PARTS)
def test_every_mode_of_every_cast_agrees(part, rounding, overflow):
    bits = "5" if rounding == Rounding.STOCHASTIC else ""
    modes = f"{rounding.name.lower()}{bits} {overflow.name.lower()}"
    added = f"s9f5 {modes}" if part == "nesterov" else "u6f9"
    spec = spec_of(**{part: added}, weight=f"s9f7 {modes}", momentum=f"s8f5 {modes}")
    state = [filled((70,), getattr(spec, name).format, i)
             for i, name in enumerate(("weight", "momentum", "grad"))]
    rands = [engine.random_operands((70,), 5, [i + 1] * 16) if bits else None for i in range(3)]
    decay = 0 if part == "nesterov" else 45
    want = [oracle.sgd(*(int(x) for x in row[:3]), 59, 13, spec, *row[3:5], decay, row[5])
            for row in zip(*state, *(rand.tolist() if bits else [None] * 70 for rand in rands),
                           strict=True)]
    got = engine.sgd(*state, 59, 13, spec, *rands[:2], decay=decay, rand_nesterov=rands[2])
    assert list(zip(got.weight.tolist(), got.momentum.tolist(), strict=True)) == want


# weight 1.5, momentum 0.5, gradient 0.25, lr 1/4, mu 1/2, decay 1/8
@pytest.mark.parametrize(("parts", "decay", "want"), [
    ({}, 0, (Fraction(11, 8), Fraction(1, 2))),
    ({"decay": "u4f4"}, 2, (Fraction(85, 64), Fraction(11, 16))),
    ({"shrink": "u4f4"}, 2, (Fraction(19, 16), Fraction(1, 2))),
    ({"nesterov": "s16f12"}, 0, (Fraction(11, 8), Fraction(1, 2))),
    ({"nesterov": "s16f12", "decay": "u4f4"}, 2, (Fraction(167, 128), Fraction(11, 16))),
])
def test_an_update_gives_what_one_finds_by_hand(parts, decay, want):
    spec = UpdateSpec.parse({"weight": "s20f12", "momentum": "s16f12", "grad": "s16f12",
                             "lr": "u4f4", "mu": "u4f4"} | parts)
    one = 1 << 12
    got = reference.sgd(3 * one // 2, one // 2, one // 4, 4, 8, spec, decay=decay)
    assert tuple(Fraction(code, one) for code in got) == want


@given(extended(61))
@examples(60)
def test_an_update_survives_its_text_and_its_sums_fit(spec):
    assert UpdateSpec.parse(str(spec)) == spec
    ends = lambda name: [getattr(spec, name).format.lo, getattr(spec, name).format.hi]  # noqa: E731
    for name, terms in spec.sums.items():
        frac = max(spec.sum_frac(name), getattr(spec, name).format.frac)
        total = [Fraction(0), Fraction(0)]
        for sign, *factors in terms:
            values = [sign * x * y for x in ends(factors[0])
                      for y in (ends(factors[1]) if len(factors) > 1 else [1])]
            scale = 2 ** Fraction(frac - sum(getattr(spec, f).format.frac for f in factors))
            total = [total[0] + min(values) * scale, total[1] + max(values) * scale]
        bits = spec.sum_bits[name]
        assert -(2 ** (bits - 1)) <= total[0] <= total[1] < 2 ** (bits - 1) <= 2**61


@pytest.mark.parametrize(("texts", "message"), [
    ({"decay": "u8f8 stochastic4"}, "update decay u8f8 stochastic4 wrap: a constant operand"),
    ({"shrink": "u32"}, "update shrink u32f0 to_neg wrap: a constant operand .* at most 31 bits"),
    ({"decay": "u4f4", "shrink": "u4f4"}, "decay u4f4 .* and shrink u4f4 .*: .* leave one out"),
    ({"decay": "u20f30", "weight": "s33f8"}, "update weight s33f8 .* at most 32 bits"),
    ({"nesterov": "s33f8"}, "update nesterov s33f8 .* at most 32 bits"),
    ({"decay": "u4f60"}, r"update mu \* momentum \+ gradient \+ decay \* weight: .* limit is 62"),
    ({"shrink": "u4f60"}, r"weight - lr \* momentum - shrink \* weight: .* the limit is 62"),
    ({"nesterov": "s10f55"}, r"update weight - lr \* nesterov: .* the limit is 62"),
    ({"clip": "s8f4"}, "update clip s8f4 .*: a limit is not negative; write u8f4"),
    ({"norm": "s8f4"}, "update norm s8f4 .*: a limit is not negative; write u8f4"),
    ({"clip": "u8f8"}, "clip u8f8: .* gradients s9f7; use a frac from -46 to 7"),
    ({"clip": "u8f-47"}, "clip u8f-47: .* use a frac from -46 to 7"),
])
def test_what_hardware_cannot_be_is_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        spec_of(**texts)


def test_a_decay_without_a_cast_is_refused():
    with pytest.raises(ValueError, match=r"decay 3: the update .* has no weight decay; give it"):
        engine.sgd([1], [1], [1], 1, 1, spec_of(), decay=3)


def test_overflows_are_those_of_weight_and_momentum():
    spec = UpdateSpec.parse("{weight: s4 sat, momentum: s4 sat, grad: s4, lr: u2, mu: u2, "
                            "nesterov: s3 sat}")
    # Momentum 14 and 1; direction 7 + 7 and 1 + 1 in s3; weight 7 - 3 and -8 - 2.
    got = engine.sgd([7, -8], [7, 0], [7, 1], 1, 1, spec)
    assert (got.weight.tolist(), got.momentum.tolist()) == ([4, -8], [7, 1])
    assert (got.outside_weight, got.outside_momentum) == (1, 1)


@pytest.mark.parametrize("clip", ["u4f1", "u3f-1", "u8f1"])
def test_every_gradient_is_clipped_at_every_limit(clip):
    spec = spec_of(grad="s6f1", clip=clip)
    grads = np.arange(-32, 32)
    for limit in range(2 ** spec.clip.format.width):
        bound = Fraction(limit) / Fraction(2) ** spec.clip.format.frac
        want = [min(max(Fraction(int(g), 2), -bound), bound) * 2 for g in grads]
        assert [reference.clip(int(g), limit, spec) for g in grads] == want
        assert engine.clip(grads, limit, spec).tolist() == want


def test_gradients_through_a_buffer_are_clipped_too():
    spec = BufferSpec.parse("{weight: s8f7, buffer: s16f12, grad: s8f12, clip: u4f10}")
    assert BufferSpec.parse(str(spec)) == spec
    assert engine.clip([100, -100, 3], 5, spec).tolist() == [20, -20, 3]
    assert [reference.clip(x, 5, spec) for x in (100, -100, 3)] == [20, -20, 3]


@given(st.lists(st.tuples(st.integers(0, 2**40) | st.integers(0, 9), st.integers(-20, 40)),
                max_size=3), st.integers(1, 2**31 - 1) | st.integers(1, 4), st.integers(-9, 40))
@examples(150)
def test_the_norm_is_scaled_by_the_first_power_of_two_that_reaches_the_limit(squares, limit, frac):
    s = reference.norm_shift(squares, limit, frac)
    assert engine.norm_shift(squares, limit, frac) == s
    norm = sum(Fraction(square) / Fraction(4) ** of_codes for square, of_codes in squares)
    bound = (Fraction(limit) / Fraction(2) ** frac) ** 2
    assert norm / 4**s <= bound
    assert s == 0 or norm / 4 ** (s - 1) > bound


@pytest.mark.parametrize("side", [reference, engine])
def test_a_limit_of_0_is_reached_by_zeros_only(side):
    assert side.norm_shift([(0, 4)], 0, 4) == 0
    with pytest.raises(ValueError, match="norm limit 0: no power of two brings a norm to it"):
        side.norm_shift([(1, 4)], 0, 4)


@given(formats((1, 12), (0, 0)), st.integers(0, 200), st.integers(0, 99))
@examples(40)
def test_a_sum_of_squares_is_exact(form, count, seed):
    grad = filled((count,), form, seed)
    assert engine.square_sum(grad, form) == sum(int(x) ** 2 for x in grad)


def test_a_sum_of_squares_that_no_accumulator_holds_is_refused():
    form = Format(31)
    assert engine.square_sum([form.lo, form.lo, form.hi], form) == 2 * form.lo**2 + form.hi**2
    with pytest.raises(ValueError, match="the squares of 4 codes of s31f0: acc u63f0"):
        engine.square_sum([0] * 4, form)
    assert isqrt(form.lo**2 * 3) < 2**31
    assert engine.squares_mac(Format(8, 3), 10).acc == Cast(Format(18, 0, signed=False))
