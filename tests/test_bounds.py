"""`emu.bounds` against every input of small operands, the engine at the witness, and the papers."""

import dataclasses
import math
import random
import re
from fractions import Fraction
from functools import partial
from itertools import product

import numpy as np
import pytest
import safetensors.numpy
import yaml
from oracle import cast as cast_value
from oracle import chunks, fitted, value_of, whole
from strategies import DETERMINISTIC

from emu import Cast, Format, MacSpec, Overflow, bounds, engine, reference
from emu.lab.bounds import layer_bounds, table
from emu.lab.recipe import RECIPES, Recipe
from emu.lab.train import train

U8 = Format(8, 0, signed=False)
MAC = MacSpec.parse("{a: u8, b: s8, acc: s20 sat}")


def column(*weights):
    return np.array(weights)[:, None]


# Every input, through registers that hold anything.


def given_values(a, w, mac, bias, stage):
    """What the cast of one `stage` is given in a MAC where that cast (with reload: acc and outer,
    which hold the same sum) keeps every value."""
    kept = {stage} if stage == "product" or not mac.reload else {"acc", "outer"}
    seen = []

    def put(name, value, to):
        code = whole(value, to)
        if name == stage:
            seen.append(code)
        return value_of(code if name in kept else fitted(code, to), to.format)

    acc = total = value_of(bias, mac.result.format)
    for tile in chunks(list(zip(a, w, strict=True)), mac.tile or max(len(a), 1)):
        if mac.outer is not None:
            acc = put("acc", total, mac.acc) if mac.reload else Fraction(0)
        for step in chunks(tile, mac.lanes):
            products = [put("product", Fraction(x) * y, mac.product) for x, y in step]
            acc = put("acc", acc + sum(products), mac.acc)
        if mac.reload:
            total = put("outer", acc, mac.outer)
        elif mac.outer is not None:
            total = put("outer", total + put("outer", acc, mac.outer), mac.outer)
    return seen


def small_mac(draw):
    """A MAC so narrow that every cast overflows often, of two levels half the time."""
    frac, lanes = draw.choice([0, 0, -1, -2]), draw.randint(1, 2)

    def cast_of(widths, frac):
        form = Format(draw.randint(*widths), frac, draw.random() < 0.8)
        return Cast(form, draw.choice(DETERMINISTIC), draw.choice(list(Overflow)))

    levels = {}
    if draw.random() < 0.5:
        levels = {"tile": lanes * draw.randint(1, 2), "reload": draw.random() < 0.5}
        outer = frac - draw.randint(-1 if not levels["reload"] else 0, 2)
        levels["outer"] = cast_of((2, 7), outer)
    return MacSpec(a=Format(draw.randint(1, 3), 0, draw.random() < 0.5),
                   b=Format(draw.randint(1, 3), 0, draw.random() < 0.7),
                   product=draw.choice([None, cast_of((2, 5), 0)]) if frac == 0 else cast_of(
                       (2, 5), frac), acc=cast_of((2, 6), frac), lanes=lanes, **levels)


def cases(count, seed):
    """Seeded MACs with the weights and the bias of one output, and the range of its inputs."""
    draw = random.Random(seed)
    for _ in range(count):
        mac = small_mac(draw)
        w = [draw.randint(mac.b.lo, mac.b.hi)
             for _ in range(draw.randint(2, 4 if mac.a.width < 3 else 3))]
        inputs = draw.choice([(mac.a.lo, mac.a.hi),
                              (draw.randint(mac.a.lo, 0), draw.randint(0, mac.a.hi))])
        form = mac.result.format
        yield mac, w, draw.randint(form.lo, form.hi), inputs


def agrees(stage, low, high):
    """Whether `low` and `high` are the stage's limits, or inside them where it is not exact."""
    lo, hi = stage.limits
    return (lo, hi) == (low, high) if stage.exact else lo <= low and high <= hi


def test_every_input_stays_inside_and_one_reaches_the_bound():
    for mac, w, bias, (first, last) in cases(200, seed=1):
        found = bounds.matmul(column(*w), mac, [bias], (first, last))
        assert found.k == len(w)
        for name, stage in found.stages.items():
            seen = [code for a in product(range(first, last + 1), repeat=len(w))
                    for code in given_values(a, w, mac, bias, name)]
            assert agrees(stage, min(seen), max(seen)), (mac, w, bias, first, last, name)


def test_the_witness_reaches_every_bound_at_once():
    for mac, w, bias, inputs in cases(500, seed=2):
        found = bounds.matmul(column(*w), mac, [bias], inputs)
        for end, a in zip((min, max), bounds.witness(column(*w), mac, inputs), strict=True):
            for name, stage in found.stages.items():
                seen = given_values(a[:, 0].tolist(), w, mac, bias, name)
                assert not stage.exact or end(stage.limits) == end(seen), (mac, w, bias, inputs)


def test_any_order_holds_for_every_subset_of_the_products():
    for mac, w, bias, (first, last) in cases(300, seed=3):
        start = 0 if mac.outer else bias
        ends = [[cast_value(Fraction(x) * y, mac.product) for x in range(first, last + 1)]
                for y in w]
        low, high = (start + sum(map(end, ends)) for end in (min, max))
        found = bounds.matmul(column(*w), mac, [bias], (first, last)).any_order
        assert agrees(found, low, high), (mac, w, bias, first, last)


def test_data_types_hold_for_every_weight():
    draw = random.Random(4)
    for _ in range(100):
        mac, k = small_mac(draw), draw.randint(1, 2)
        every = [bounds.matmul(column(*w), mac)
                 for w in product(range(mac.b.lo, mac.b.hi + 1), repeat=k)]
        for name, stage in bounds.data_types(k, mac).stages.items():
            low, high = zip(*(one.stages[name].limits for one in every), strict=True)
            assert agrees(stage, min(low), max(high)), (mac, k, name)


# In the engine: wide enough never overflows, one bit less does, at the witness.


@pytest.mark.parametrize("overflow", ["WRAP", "SAT", "SAT_SYM", "SAT_ZERO"])
@pytest.mark.parametrize(("text", "stage"), [
    ("{a: u8, b: s8, acc: s40}", "acc"),
    ("{a: s8, b: s8, acc: s40, lanes: 4}", "acc"),
    ("{a: u8, b: u8, acc: s40, lanes: 3}", "acc"),
    ("{a: s8, b: s8, product: s15f-2 ties_even, acc: s40f-2}", "acc"),
    ("{a: s8, b: s8, product: s11f-2 to_pos sat, acc: s40f-2}", "acc"),
    ("{a: u8, b: s8, acc: s40, lanes: 2, tile: 8, outer: s40 wrap}", "acc"),
    ("{a: u8, b: s8, acc: s40, lanes: 2, tile: 8, outer: s40 wrap}", "outer"),
    ("{a: s8, b: s8, acc: s40, tile: 5, outer: s40f-3 ties_away wrap}", "outer"),
    ("{a: s8, b: s8, acc: s40, tile: 4, outer: s40f-3 ties_odd wrap, reload: true}", "acc"),
    ("{a: s8, b: s8, acc: s40, tile: 4, outer: s40f-3 ties_odd wrap, reload: true}", "outer"),
])
def test_one_bit_less_overflows_at_the_witness(text, stage, overflow):
    wide = MacSpec.parse(text)
    to = dataclasses.replace(getattr(wide, stage), overflow=Overflow[overflow])
    generator = np.random.default_rng(3)
    w = generator.integers(wide.b.lo, wide.b.hi, (37, 6), endpoint=True)
    bias = generator.integers(-50, 50, 6)
    enough = bounds.matmul(w, dataclasses.replace(wide, **{stage: to}), bias).stages[stage].width
    inputs = np.concatenate([x.T for x in bounds.witness(w, wide)]
                            + [generator.integers(wide.a.lo, wide.a.hi, (200, 37), endpoint=True)])
    for bits in (enough, enough - 1):
        mac = dataclasses.replace(wide, **{stage: dataclasses.replace(
            to, format=Format(bits, to.format.frac))})
        with engine.monitor() as seen:
            engine.matmul(inputs, w, mac, bias)
        stages = (getattr(seen[0].total, name) for name in
                  ({"acc"} if stage == "acc" else {"spill", "outer"}))
        assert any(found.overflows for found in stages if found) == (bits < enough)
        assert bounds.matmul(w, mac, bias).stages[stage].safe == (bits == enough)


def test_safe_means_no_overflow_in_any_channel_alone():
    w = np.array([[127, 1], [127, -1]])
    found = bounds.matmul(w, MacSpec.parse("{a: u8, b: s8, acc: s16 sat}"))
    assert found.acc.widths == [17, 9]
    assert (found.acc.width, found.acc.safe, found.safe) == (17, False, False)
    assert bounds.matmul(w, MacSpec.parse("{a: u8, b: s8, acc: s17 sat}")).safe


def test_tiles_cut_the_sum_where_the_order_puts_them():
    mac = MacSpec.parse("{a: u8, b: s8, acc: s20 sat, tile: 2, outer: s32 wrap}")
    together, apart = (bounds.matmul(column(*w), mac)
                       for w in ((100, 100, -100, -100), (100, -100, 100, -100)))
    assert (together.acc.limits, apart.acc.limits) == ((-51000, 51000), (-25500, 25500))
    assert together.outer.limits == apart.outer.limits == (-51000, 51000)
    assert together.any_order.limits == apart.any_order.limits == (-51000, 51000)


def test_a_stage_takes_what_the_one_before_delivers():
    saturated = bounds.matmul(column(127, 127, 127, 127),
                              MacSpec.parse("{a: u8, b: s8, acc: s16 sat, lanes: 2, tile: 2, "
                                            "outer: s32 wrap}"))
    assert (saturated.acc.limits, saturated.acc.safe) == ((0, 64770), False)
    assert (saturated.outer.limits, saturated.outer.exact) == ((0, 65534), True)
    wrapped = bounds.matmul(column(127, 127, 127, 127),
                            MacSpec.parse("{a: u8, b: s8, acc: s16 wrap, lanes: 2, tile: 2, "
                                          "outer: s32 wrap}"))
    assert (wrapped.outer.limits, wrapped.outer.exact) == ((-65536, 65534), False)


def test_a_symmetric_product_stops_before_the_lowest_code():
    mac = MacSpec.parse("{a: s4, b: s4, product: s5 sat_sym, acc: s20}")
    assert bounds.matmul(column(-8), mac).acc.limits == (-15, 15)


def test_one_inexact_set_of_taps_makes_the_convolution_inexact():
    # The left column of outputs meets two taps whose product wraps, the right one those beside.
    mac = MacSpec.parse("{a: s4, b: s4, product: s5 wrap, acc: s20}")
    sizes = {"size": (1, 1), "padding": (0, 1)}
    for w, exact in (([1, 1], True), ([7, 1], False), ([1, 7], False)):
        assert bounds.conv2d(np.array(w).reshape(1, 1, 1, 2), mac, **sizes).acc.exact == exact


def test_an_unsigned_accumulator_has_no_width_for_negatives():
    mac = MacSpec.parse("{a: u8, b: s8, acc: u16 sat}")
    assert bounds.matmul(column(3, 5), mac).acc.width == 11
    found = bounds.matmul(column(3, -5), mac)
    assert (found.acc.width, found.acc.safe) == (None, False)


def test_sums_beyond_int64_are_exact():
    mac = MacSpec.parse("{a: s30, b: s32, acc: s62 sat}")
    w = np.full((100, 2), -(2**31))
    found = bounds.matmul(w, mac)
    assert found.acc.limits == (-100 * 2**31 * (2**29 - 1), 100 * 2**60)
    assert found.acc.width == 68
    assert bounds.data_types(100, mac).acc.limits[1] == 100 * 2**60
    tiled = bounds.matmul(w, MacSpec.parse("{a: s30, b: s32, acc: s62 wrap, tile: 50, "
                                           "outer: s62f-4 ties_even sat}"))
    assert tiled.acc.limits[1] == 50 * 2**60
    reloaded = bounds.matmul(w, MacSpec.parse("{a: s30, b: s32, acc: s62 wrap, tile: 50, "
                                              "outer: s60f-1 to_neg sat, reload: true}"))
    assert reloaded.outer.limits[1] == 100 * 2**59


def test_no_products_and_no_outputs():
    found = bounds.matmul(np.zeros((0, 2), int), MAC, [5, -7])
    assert (found.k, found.acc.limits, found.safe) == (0, (-7, 5), True)
    assert bounds.matmul(np.zeros((3, 0), int), MAC).acc.limits == (0, 0)
    assert bounds.data_types(0, MAC).acc.limits == (0, 0)
    for reload in ("false", "true"):
        tiled = MacSpec.parse(f"{{a: u8, b: s8, acc: s20 sat, tile: 2, outer: s32, "
                              f"reload: {reload}}}")
        assert bounds.matmul(np.zeros((0, 2), int), tiled, [5, 7]).safe


@pytest.mark.parametrize(("call", "message"), [
    (lambda: bounds.matmul([[128]], MAC), "w: code 128 is outside s8f0"),
    (lambda: bounds.matmul([[1.5]], MAC), "w: dtype float64 holds no codes"),
    (lambda: bounds.matmul([[1]], MAC, [1, 2]), "bias: shape (2,) for 1 outputs"),
    (lambda: bounds.matmul([[1]], MAC, [2**19]), "bias: code 524288 is outside s20f0"),
    (lambda: bounds.matmul([[1]], MAC, inputs=(1, 9)), "inputs from 1 to 9: needs codes of u8f0"),
    (lambda: bounds.matmul([[1]], MAC, inputs=(0, 256)), "from 0 to 255, and 0 among them"),
    (lambda: bounds.conv2d(np.ones((2, 2), int), MAC), "w: shape (2, 2) has 2 axes, needs 4"),
    (lambda: bounds.conv2d(np.ones((1, 1, 3, 3), int), MAC, size=2), "at least 1 x 1"),
    (lambda: bounds.conv2d_grad_input(np.ones((3, 1, 1, 1), int), MAC, groups=2),
     "outputs a multiple of groups"),
])
def test_bad_input_names_the_value_and_the_limit(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)


# Convolutions: the order of k and the taps that are met, as the definition walks them.


def over_definition(terms, channels, mac):
    """The hull of what each output meets: `terms` are of operands a that are 1 where there is one.

    `terms` yields outputs of which `channels` share their place, outermost after the batch.
    """
    terms = list(terms)
    pixels = len(terms) // channels
    hull = []
    for channel in range(channels):
        found = [bounds.matmul(column(*[x * y for x, y in zip(a, b, strict=True)]), mac)
                 for a, b in terms[channel * pixels:(channel + 1) * pixels]]
        hull.append([(min(one.stages[name].limits[0] for one in found),
                      max(one.stages[name].limits[1] for one in found))
                     for name in found[0].stages])
    return hull


def per_channel(found):
    ends = [zip(stage.lo.tolist(), stage.hi.tolist(), strict=True)
            for stage in found.stages.values()]
    return [list(limits) for limits in zip(*ends, strict=True)]


GEOMETRIES = [
    # channels, outputs, size, kernel, stride, padding, dilation, groups
    (3, 4, (5, 5), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (4, 4, (6, 5), (3, 2), (2, 1), (1, 0), (1, 2), 2),
    (2, 2, (2, 2), (3, 3), (1, 1), (1, 1), (1, 1), 1),  # no pixel meets every tap
    (2, 3, (1, 4), (3, 3), (1, 2), (1, 2), (1, 1), 1),
    (4, 4, (5, 5), (3, 3), (3, 3), (0, 0), (1, 1), 4),
    (3, 2, (7, 7), (2, 2), (3, 2), (1, 1), (2, 1), 1),  # a stride that skips pixels
    (2, 2, (3, 3), (3, 3), (1, 1), (2, 2), (2, 2), 1),  # taps of dilation beyond both borders
]
ORDERS = ["{a: u8, b: s8, acc: s16 sat, block: 2}",
          "{a: s8, b: s8, acc: s15 sat, lanes: 2, block: 2, tile: 4, outer: s14f-2 to_pos sat}"]


@pytest.mark.parametrize("text", ORDERS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_convolutions_meet_what_the_definition_meets(geometry, text):
    channels, outputs, size, kernel, stride, padding, dilation, groups = geometry
    mac = MacSpec.parse(text)
    w = np.random.default_rng(7).integers(-128, 128, (outputs, channels // groups, *kernel))
    shape = {"stride": stride, "padding": padding, "dilation": dilation}
    out = engine.Geometry(**shape).out_size(size, kernel)
    terms = reference.conv2d_terms(np.ones((1, channels, *size), int).tolist(), w.tolist(),
                                   groups=groups, block=mac.block, **shape)
    found = bounds.conv2d(w, mac, size=size, **shape)
    assert per_channel(found) == over_definition(terms, outputs, mac)
    terms = reference.conv2d_grad_input_terms(np.ones((1, outputs, *out), int).tolist(), w.tolist(),
                                              size, groups=groups, block=mac.block, **shape)
    found = bounds.conv2d_grad_input(w, mac, size=size, groups=groups, **shape)
    assert per_channel(found) == over_definition(terms, channels, mac)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_without_a_size_the_plane_is_large(geometry):
    channels, outputs, _, kernel, stride, padding, dilation, groups = geometry
    w = np.random.default_rng(7).integers(-128, 128, (outputs, channels // groups, *kernel))
    shape = {"stride": stride, "padding": padding, "dilation": dilation}
    for bound in (partial(bounds.conv2d, w, MAC), partial(
            bounds.conv2d_grad_input, w, MAC, groups=groups)):
        assert per_channel(bound(**shape)) == per_channel(bound(size=(40, 41), **shape))


def test_a_convolution_takes_its_bias():
    w = np.ones((2, 1, 2, 2), int)
    assert bounds.conv2d(w, MAC, [7, -9]).acc.limits == (-9, 4 * 255 + 7)


# Widths, and the formulas of the papers, against their definition by search.


def least_width(fits):
    return next(bits for bits in range(2, 200) if fits(bits))


@pytest.mark.parametrize("n", range(2, 62))
@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_widths_beside_a_power_of_two(n, beside):
    edge = 2**n + beside
    for lo, hi in ((-edge, 0), (0, edge), (-edge, edge), (-edge, edge - 1)):
        for text in ("s8", "s8 sat_sym"):
            low = 0 if text == "s8" else 1
            assert bounds.width(Cast.parse(text), lo, hi) == least_width(
                lambda bits, lo=lo, hi=hi, low=low:
                -(2 ** (bits - 1)) + low <= lo and hi <= 2 ** (bits - 1) - 1)
    assert bounds.width(Cast.parse("u8"), 0, edge) == least_width(lambda bits: edge < 2**bits)


@pytest.mark.parametrize("n", range(31, 54))
@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_a_sum_beside_a_power_of_two(n, beside):
    # Xilinx/finn#1517: 32 bits were reported where 33 are needed.
    mac = MacSpec.parse("{a: u25, b: s32, acc: s60 sat}")
    w = np.full((8, 1), 2 ** (n - 27))
    found = bounds.matmul(w, mac, [beside], inputs=(0, 2**24)).acc
    assert found.limits == (beside, 2**n + beside)
    assert found.width == n + 1 + (beside >= 0)


def test_a_float_logarithm_would_misjudge_them():
    assert math.ceil(math.log2(2**53 + 1)) == 53  # 54 bits hold it
    assert bounds.width(Cast.parse("u8"), 0, 2**53 + 1) == 54


@pytest.mark.parametrize(("l1", "bits", "a2q", "a2q_plus"), [
    (100, 8, 16, 15), (1000, 4, 15, 14), (4000, 8, 21, 20)])
def test_the_published_formulas(l1, bits, a2q, a2q_plus):
    inputs = Format(bits, 0, signed=False)
    assert bounds.a2q_width(l1, inputs) == a2q
    assert bounds.a2q_plus_width(l1, inputs) == a2q_plus


@pytest.mark.parametrize("form", [U8, Format(8), Format(1, 0, False), Format(4)], ids=str)
def test_the_formulas_beside_every_power_of_two(form):
    # A2Q: the largest magnitude l1 * 2^(N - signed) within 2^(P-1) - 1; A2Q+: l1 <= (2^P - 2) /
    # (2^N - 1).
    for l1 in {2**n + beside for n in range(1, 54) for beside in (-1, 0, 1)}:
        largest = l1 * 2 ** (form.width - form.signed)
        assert bounds.a2q_width(l1, form) == least_width(lambda p, x=largest: x <= 2**(p - 1) - 1)
        assert bounds.a2q_plus_width(l1, form) == least_width(
            lambda p, x=l1: Fraction(2**p - 2, 2**form.width - 1) >= x)
    for k in (1, 9, 256, 4608):
        magnitude = k * 2 ** (form.width - form.signed) * 2**7
        assert bounds.a2q_data_type_width(k, form, Format(8)) == least_width(
            lambda p, x=magnitude: x <= 2 ** (p - 1) - 1)


def test_the_exact_bound_is_narrower_than_the_papers():
    w = column(*[30, 30, -20, -20])  # pos 60, neg 40
    found = bounds.matmul(w, MAC)
    assert (found.any_order.limits, found.any_order.width) == ((-10200, 15300), 15)
    assert bounds.a2q_width(100, U8) == 16


@pytest.mark.parametrize("signed", [False, True])
def test_the_papers_never_fall_below_the_exact_bound(signed):
    draw = random.Random(5)
    mac = MacSpec(Format(8, 0, signed), Format(8), Cast.parse("s40"))
    for _ in range(100):
        half = [draw.randint(-127, 127) for _ in range(draw.randint(1, 20))]
        w = [*half, *[-x for x in half]]  # zero-centred, as A2Q+ supposes
        l1, exact = sum(map(abs, w)), bounds.matmul(column(*w), mac).acc.width
        assert exact <= bounds.a2q_plus_width(l1, mac.a) <= bounds.a2q_width(l1, mac.a)
        assert exact <= bounds.data_types(len(w), mac).acc.width


# Of a model.


def test_a_run_is_bounded_by_the_weights_that_it_wrote(tmp_path):
    recipe = Recipe.load("digits-mlp-int8")
    run = train(dataclasses.replace(recipe, training=dataclasses.replace(
        recipe.training, epochs=1)), tmp_path / "run")
    rows = {(row.layer, row.name): row for row in layer_bounds(str(run.path))}
    codes = safetensors.numpy.load_file(run.path / "weights.safetensors")
    for layer in ("fc1", "fc2"):
        w = codes[f"{layer}.w"].astype(int)
        row = rows[layer, "forward"]
        stage = row.by_weights.acc
        assert (row.by_weights.k, row.by_types.k) == (w.shape[1],) * 2
        # The bias moves both ends alike: it is the lower one where no weight is negative.
        assert (stage.hi - stage.lo).tolist() == (255 * abs(w).sum(1)).tolist()
        negative = np.where(w < 0, w, 0).sum(1)
        assert (abs(stage.lo - 255 * negative) < 2**16).all()
        assert row.a2q == bounds.a2q_width(int(abs(w).sum(1).max()), U8)
    w = codes["fc2.w"].astype(int)  # errors meet it the other way: k is the output
    assert rows["fc2", "grad_input"].by_weights.acc.hi.tolist() == np.where(
        w > 0, 127 * w, -128 * w).sum(0).tolist()
    assert ("fc1", "grad_input") not in rows
    assert rows["fc2", "grad_weight"].by_types.acc.limits == (-32 * 255 * 128, 32 * 255 * 127)
    counts = run.metrics[-1]["counts"]
    for (layer, name), row in rows.items():
        if row.by_types.safe:
            assert counts[f"{layer}.{name}"]["overflowing_steps"] == 0


def test_a_recipe_is_bounded_as_it_is_initialised():
    lines = table(layer_bounds("digits-cnn-int8"))
    assert lines[0].split() == ["layer", "pass", "K", "accumulator", "data", "types", "any",
                                "order", "in", "order", "A2Q", "verdict"]
    cells = {tuple(line.split()[:2]): line.split()[2:] for line in lines[1:]}
    assert len(cells) == 11
    assert cells["conv2", "forward"][:4] == ["144", "s17f0", "sat", "24"]
    assert cells["conv2", "grad_input"][:4] == ["288", "s16f0", "sat", "24"]
    assert cells["conv1", "grad_weight"] == ["2048", "s17f0", "sat", "27", "-", "-", "-", "acc",
                                             "lacks", "10", "bits"]
    assert cells["fc", "grad_bias"][-1] == "safe"


def test_a_table_shows_both_levels_and_every_kind_of_lack(tmp_path):
    items = yaml.safe_load((RECIPES / "digits-mlp-int8.yaml").read_text())
    items["hardware"]["default"] |= {
        "forward": {"product": "s12f-2 sat", "acc": "s15f-2 sat", "tile": 8, "outer": "s26f-2"},
        "grad_input": {"acc": "u20"}}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(items, sort_keys=False))
    lines = {tuple(line.split()[:2]): line for line in table(layer_bounds(
        str(tmp_path / "two.yaml")))}
    assert re.fullmatch(r"fc1 +forward +64 +s15f-2 sat / s26f-2 wrap +15/18 +1\d +\d+/1\d +- +"
                        r"product lacks \d bits?", lines["fc1", "forward"])
    assert re.fullmatch(r"fc2 +grad_input +10 +u20f0 wrap +- +- +- +18 +acc lacks a sign",
                        lines["fc2", "grad_input"])


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.yaml; give the folder of a run"):
        layer_bounds(str(tmp_path))
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ValueError, match=r"has no checkpoint\.pt"):
        layer_bounds(str(tmp_path))
