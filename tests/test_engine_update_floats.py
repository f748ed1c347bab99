"""SGD from floats to floats in one pass, against casts and updates of their codes one by one."""

from itertools import product

import numpy as np
import pytest
from engine_cases import filled
from hypothesis import given
from hypothesis import strategies as st
from strategies import casts, codes, examples, or_reject

from emu import UpdateSpec, engine, reference
from emu.engine.kernels import jit
from emu.engine.kernels.update import CHUNK
from emu.number import Overflow, Rounding

FLOATS = [np.dtype(np.float32), np.dtype(np.float64)]
SPEC = UpdateSpec.parse({"weight": "s12f8 ties_even sat", "momentum": "s10f6 to_neg sat",
                         "grad": "s9f7 ties_away sat", "lr": "u6f10", "mu": "u4f4"})
WIDE = UpdateSpec.parse({"weight": "s23f12 ties_even sat", "momentum": "s31f12 ties_odd sat",
                         "grad": "s30f12 ties_even sat", "lr": "s20f12", "mu": "s20f12"})


@st.composite
def plain(draw):
    """Any UpdateSpec of casts that do not draw, mostly of codes that int32 and float32 hold."""
    widths = {"weight": 26, "momentum": 32, "grad": 34, "lr": 16, "mu": 16}
    fracs = {name: draw(st.integers(0, 14)) for name in widths}
    return or_reject(UpdateSpec, **{
        name: draw(casts((1, width), (fracs[name],) * 2, stochastic=False))
        for name, width in widths.items()})


def arrays(spec, dtype, count, seed=0, scale=1.5):
    """Values of weights, codes of momenta, and gradients that mostly fit and lie on no grid.

    No gradient takes more than 27 bits, so that those of float32 are quantized in int32.
    """
    generator = np.random.default_rng(seed)
    form = spec.grad.format
    weight = filled((count,), spec.weight.format, seed).astype(dtype) * dtype.type(
        spec.weight.format.step)
    grad = generator.uniform(max(form.lo, -(2**26)), min(form.hi, 2**26), count) * form.step
    return weight, filled((count,), spec.momentum.format, seed + 1).astype(
        engine.arrays.dtype_of(spec.momentum.format)), (grad * scale).astype(dtype)


def one_by_one(weight, momentum, grad, lr, mu, spec):
    """(weight, momentum) by a pass for each operation."""
    form = spec.weight.format
    new = engine.sgd(engine.codes_on(weight, form), momentum, engine.quantize(grad, spec.grad),
                     lr, mu, spec)
    return engine.floats_of(new.weight, form.frac, weight.dtype), new.momentum


def same(got, want):
    """Assert that both are the same bytes of the same types."""
    for one, other in zip(got, want, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()


@examples(400)
@given(st.data(), plain(), st.sampled_from(FLOATS), st.integers(0, 99))
def test_every_update_is_that_of_the_definition(data, spec, dtype, seed):
    lr, mu = (data.draw(codes(to.format)) for to in (spec.lr, spec.mu))
    plan = engine.floats_plan(spec, lr, mu, dtype, None)
    held = spec.weight.format.width - spec.weight.format.signed <= np.finfo(dtype).nmant + 1
    fits = all(to.format.width + (not to.format.signed) <= 32
               for to in (spec.weight, spec.momentum, spec.grad))
    assert (plan is not None) >= (held and fits and max(spec.sum_bits.values()) < 60)
    if plan is None:
        return
    state = arrays(spec, dtype, 9, seed)
    got = engine.sgd_of_floats(*state, plan)
    same(got, one_by_one(*state, lr, mu, spec))
    weights = [int(w * 2**spec.weight.format.frac) for w in state[0].tolist()]
    grads = [reference.quantize(g, spec.grad) for g in state[2].tolist()]
    want = [reference.sgd(*three, lr, mu, spec)
            for three in zip(weights, state[1].tolist(), grads, strict=True)]
    step = spec.weight.format.step
    assert list(zip(*(x.tolist() for x in got), strict=True)) == [(w * step, m) for w, m in want]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("rounding", "overflow"), list(product(
    [mode.name.lower() for mode in Rounding if mode != Rounding.STOCHASTIC],
    [mode.name.lower() for mode in Overflow])))
def test_every_mode_of_every_cast(rounding, overflow, dtype):
    modes = f"{rounding} {overflow}"
    spec = UpdateSpec.parse({"weight": f"s12f8 {modes}", "momentum": f"s16f9 {modes}",
                             "grad": f"s10f7 {modes}", "lr": "s8f8", "mu": "u8f8"})
    state = arrays(spec, dtype, 500)
    plan = engine.floats_plan(spec, -77, 201, dtype, None)
    same(engine.sgd_of_floats(*state, plan), one_by_one(*state, -77, 201, spec))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("overflow", [mode.name.lower() for mode in Overflow])
@pytest.mark.parametrize("frac", [1, 3, 4], ids="grid 2^-{}".format)
def test_gradients_of_every_code_on_a_grid(frac, overflow, dtype):
    """Coarser than the cast's, the same, and finer; in its range and beyond, a chunk of each."""
    spec = UpdateSpec.parse({"weight": "s12f8 sat", "momentum": "s16f9 sat", "lr": "s8f8",
                             "grad": f"s6f3 ties_even {overflow}", "mu": "u8f8"})
    inside = np.arange(-32, 32)  # of which sat_sym has not the first
    every = np.concatenate([np.resize(inside, CHUNK), np.resize(np.arange(-70, 71), CHUNK)])
    weight, momentum, _ = arrays(spec, dtype, every.size)
    state = weight, momentum, (every * 2.0**-frac).astype(dtype)
    plan = engine.floats_plan(spec, -77, 201, dtype, frac)
    same(engine.sgd_of_floats(*state, plan), one_by_one(*state, -77, 201, spec))


@pytest.mark.parametrize("team", [0, 1 << 62], ids=["by a team", "alone"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("spec", [SPEC, WIDE], ids=["narrow lanes", "wide lanes"])
@pytest.mark.parametrize("count", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 3])
def test_every_size(monkeypatch, count, spec, dtype, team):
    monkeypatch.setattr(jit, "TEAM", team)
    state = arrays(spec, dtype, count)
    plan = engine.floats_plan(spec, 37, 14, dtype, None)
    same(engine.sgd_of_floats(*state, plan), one_by_one(*state, 37, 14, spec))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_chunks_choose_their_lanes(dtype):
    generator = np.random.default_rng(0)
    momentum = np.concatenate([generator.integers(-(2**top), 2**top, CHUNK)
                               for top in (4, 30, 9)]).astype(np.int32)
    state = arrays(WIDE, dtype, momentum.size, scale=2.0**-20)
    plan = engine.floats_plan(WIDE, 3, 5, dtype, None)
    state = state[0], momentum, state[2]
    same(engine.sgd_of_floats(*state, plan), one_by_one(*state, 3, 5, WIDE))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_zeros_of_both_signs_and_subnormal_gradients(dtype):
    least = np.finfo(dtype).smallest_subnormal
    grad = np.array([0.0, -0.0, least, -least, 3 * least, -2.0**-126, 2.0**-9], dtype)
    weight, momentum = np.array([-0.0] * 7, dtype), np.zeros(7, np.int16)
    for rounding in ("to_pos", "to_neg", "ties_even"):
        spec = UpdateSpec.parse({"weight": "s12f8", "momentum": "s10f6", "lr": "u6f10", "mu": "u4",
                                 "grad": f"s9f7 {rounding} sat"})
        plan = engine.floats_plan(spec, 63, 1, dtype, None)
        same(engine.sgd_of_floats(weight, momentum, grad, plan),
             one_by_one(weight, momentum, grad, 63, 1, spec))


def test_arrays_of_any_layout():
    weight, momentum, grad = (x.reshape(20, 30) for x in arrays(SPEC, FLOATS[0], 600))
    plan = engine.floats_plan(SPEC, 37, 14, FLOATS[0], None)
    want = engine.sgd_of_floats(weight, momentum, grad, plan)
    assert want[0].shape == want[1].shape == (20, 30)
    turned = [np.asfortranarray(weight), np.repeat(momentum, 2, 1)[:, ::2], grad[::-1].copy()[::-1]]
    same(engine.sgd_of_floats(*turned, plan), want)


def test_the_arguments_are_left_as_they_were():
    state = arrays(SPEC, FLOATS[0], 50)
    before = [x.tobytes() for x in state]
    engine.sgd_of_floats(*state, engine.floats_plan(SPEC, 37, 14, FLOATS[0], None))
    assert [x.tobytes() for x in state] == before


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("frac", [-3, 0, 7, 12, 100])
def test_gradients_must_be_on_their_own_grid(frac, dtype):
    weight, momentum, _ = arrays(SPEC, dtype, 40)
    grad = (np.arange(-20, 20) * 2.0**-frac).astype(dtype)
    plan = engine.floats_plan(SPEC, 37, 14, dtype, frac)
    found = engine.sgd_of_floats(weight, momentum, grad, plan)
    same(found, one_by_one(weight, momentum, grad, 37, 14, SPEC))
    grad[33] *= dtype.type(2.0**-4)  # 13 of them, which is odd
    assert engine.sgd_of_floats(weight, momentum, grad, plan) is None


STRAYS = {  # which array, and its stray by the format of its codes
    "a weight off its grid": (0, lambda form: form.step / 2),
    "a weight too large": (0, lambda form: (form.hi + 1) * form.step),
    "a weight too small": (0, lambda form: (form.lo - 1) * form.step),
    "a weight that is no number": (0, lambda form: np.nan),
    "an infinite weight": (0, lambda form: -np.inf),
    "a tiny weight": (0, lambda form: 1e-40),
    "a momentum too large": (1, lambda form: form.hi + 1),
    "a momentum too small": (1, lambda form: form.lo - 1),
    "a gradient that is no number": (2, lambda form: np.nan),
    "an infinite gradient": (2, lambda form: np.inf),
    "a huge gradient": (2, lambda form: 1e38)}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("where", [0, CHUNK - 1, CHUNK, 3 * CHUNK])
@pytest.mark.parametrize("spec", [SPEC, WIDE], ids=["narrow lanes", "wide lanes"])
@pytest.mark.parametrize("stray", STRAYS)
def test_one_stray_is_enough(stray, spec, where, dtype):
    state, plan = arrays(spec, dtype, 3 * CHUNK + 1), engine.floats_plan(spec, 37, 14, dtype, None)
    assert engine.sgd_of_floats(*state, plan) is not None
    which, value = STRAYS[stray]
    state[which][where] = value((spec.weight, spec.momentum, spec.grad)[which].format)
    assert engine.sgd_of_floats(*state, plan) is None


@pytest.mark.parametrize("changed", [
    {"weight": "s12f8 stochastic8"}, {"momentum": "s10f6 stochastic4"},
    {"grad": "s9f7 stochastic4"}, {"weight": "s26f8"}, {"grad": "s33f7"}, {"grad": "u32f7"},
    {"momentum": "u32f6"}, {"decay": "u4f4"}, {"shrink": "u4f4"}, {"nesterov": "s10f6"},
    {"weight": "s12f200", "momentum": "s10f198", "grad": "s9f198"}], ids=str)
def test_what_it_does_not_compute_has_no_plan(changed):
    texts = {name: str(to) for name, to in vars(SPEC).items() if name in UpdateSpec.__match_args__
             and to is not None}
    spec = UpdateSpec.parse(texts | changed)
    assert engine.floats_plan(spec, 1, 1, FLOATS[0], None) is None


@pytest.mark.parametrize(("dtype", "frac"), [(FLOATS[0], 121), (FLOATS[0], -121),
                                             (FLOATS[1], 1001), (np.dtype(np.float16), 4)])
def test_grids_beyond_a_dtype_have_no_plan(dtype, frac):
    assert engine.floats_plan(SPEC, 1, 1, dtype, frac) is None


def test_a_rate_beyond_its_cast_is_refused():
    with pytest.raises(ValueError, match="lr: code 64 is outside u6f10"):
        engine.floats_plan(SPEC, 64, 1, FLOATS[0], None)


def test_arrays_that_differ_are_not_taken():
    weight, momentum, grad = arrays(SPEC, FLOATS[0], 6)
    plan = engine.floats_plan(SPEC, 1, 1, FLOATS[0], None)
    for state in ((weight[:5], momentum, grad), (weight, momentum[:5], grad),
                  (weight, momentum, grad.reshape(2, 3)),
                  (weight.astype(FLOATS[1]), momentum, grad),
                  (weight, momentum.astype(np.int64), grad),
                  (weight, momentum, grad.astype(FLOATS[1]))):
        assert engine.sgd_of_floats(*state, plan) is None
