"""MACs, updates and layers: their one text form, what they refuse, and that int64 holds the rest.

The extremes of every intermediate are found again here, with Python ints, from the plain fields.
"""

import copy
import pickle
from dataclasses import FrozenInstanceError, fields, replace
from itertools import product

import oracle
import pytest
from hypothesis import given
from strategies import casts, examples, layers, macs, updates

from emu.number import Cast, Format, Overflow, Rounding
from emu.rule import Rule
from emu.spec import PASS_OPERANDS, LayerSpec, MacSpec, UpdateSpec

INT64 = range(-(2**63), 2**63)


def mac(**texts):
    """A MAC of 8-bit operands and a 20-bit accumulator, but for the given fields."""
    return MacSpec.parse({"a": "s8", "b": "s8", "acc": "s20", **texts})


TEXTS = [  # written, printed
    ("{a: s8, b: s8, acc: s20 sat, lanes: 4}",
     "{a: s8f0, b: s8f0, acc: s20f0 to_neg sat, lanes: 4}"),
    ("a: u8, b: s4, acc: s20", "{a: u8f0, b: s4f0, acc: s20f0 to_neg wrap}"),
    ("{a: s8, b: s8, product: s14f-2, acc: s20f-2 sat, lanes: 4}",
     "{a: s8f0, b: s8f0, product: s14f-2 to_neg wrap, acc: s20f-2 to_neg sat, lanes: 4}"),
    ("{b: s8, acc: s20, a: s8, block: 16, lanes: 1}",
     "{a: s8f0, b: s8f0, acc: s20f0 to_neg wrap, block: 16}"),
    ("{a: s8, b: s8, acc: s16, tile: 32, outer: s32f-3 ties_even sat, reload: false}",
     "{a: s8f0, b: s8f0, acc: s16f0 to_neg wrap, tile: 32, outer: s32f-3 ties_even sat}"),
    ("{a: s8, b: s8, acc: s24, tile: 8, outer: s16f-8 ties_away sat, reload: true}",
     "{a: s8f0, b: s8f0, acc: s24f0 to_neg wrap, tile: 8, outer: s16f-8 ties_away sat, "
     "reload: true}"),
]


@pytest.mark.parametrize(("text", "want"), TEXTS)
def test_a_mac_prints_what_is_not_the_default(text, want):
    assert str(MacSpec.parse(text)) == want


@given(macs())
@examples(200)
def test_a_mac_survives_its_text(spec):
    assert MacSpec.parse(str(spec)) == spec


@given(macs())
@examples(100)
def test_a_mac_survives_a_mapping_of_its_values(spec):
    values = {f.name: getattr(spec, f.name) for f in fields(spec)}
    given_values = {key: value for key, value in values.items() if value is not None}
    assert MacSpec.parse(given_values) == spec


@given(updates())
@examples(200)
def test_an_update_survives_its_text(spec):
    assert UpdateSpec.parse(str(spec)) == spec


@given(layers().filter(lambda spec: spec != LayerSpec()))
@examples(120)
def test_a_layer_survives_its_text(spec):
    assert LayerSpec.parse(str(spec)) == spec


def test_an_empty_layer_survives_its_text():
    assert LayerSpec.parse(str(LayerSpec())) == LayerSpec()


@given(macs() | updates() | layers())
@examples(60)
def test_a_copy_and_a_pickle_are_equal_values(spec):
    assert pickle.loads(pickle.dumps(spec)) == copy.deepcopy(spec) == spec


@pytest.mark.parametrize("spec", [mac(), LayerSpec()])
def test_parse_lets_a_value_pass(spec):
    assert type(spec).parse(spec) is spec


@pytest.mark.parametrize(("spec", "field"), [(mac(), "lanes"), (LayerSpec(), "x")])
def test_a_spec_is_frozen(spec, field):
    with pytest.raises(FrozenInstanceError):
        setattr(spec, field, 1)


SAME = [  # two ways to write the same hardware
    ({}, {"product": "s16"}),
    ({}, {"product": "s16 sat"}),
    ({}, {"product": "s40 ties_even sat_zero"}),
    ({}, {"product": "s16 sat_sym"}),
    ({}, {"acc": "s20 ties_even"}),
    ({}, {"lanes": "1", "block": 1, "reload": "false"}),
    ({"a": "u8"}, {"a": "u8", "product": "s17 to_odd"}),
    ({"a": "u4", "b": "u4"}, {"a": "u4", "b": "u4", "product": "u8 sat"}),
    ({"a": "u4", "b": "u4"}, {"a": "u4", "b": "u4", "product": "s9"}),
    ({"product": "s18f2", "acc": "s20f2"}, {"product": "s30f2 ties_odd sat", "acc": "s20f2"}),
    ({"product": "s14f-2 ties_even", "acc": "s20f-2"},
     {"product": "s15f-2 ties_even sat_sym", "acc": "s20f-2"}),
    ({"acc": "u20 sat"}, {"acc": "u20 sat_sym"}),
    ({"tile": 4, "outer": "s24"}, {"tile": 4, "outer": "s24 ties_even"}),
    ({"tile": 4, "outer": "s24f1"}, {"tile": 4, "outer": "s24f1 to_odd"}),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_equal_hardware_compares_equal(one, other):
    assert mac(**one) == mac(**other)


@pytest.mark.parametrize(("one", "other"), SAME)
def test_equal_hardware_hashes_equal(one, other):
    assert hash(mac(**one)) == hash(mac(**other))


@pytest.mark.parametrize(("one", "other"), SAME)
def test_equal_hardware_prints_equal(one, other):
    assert str(mac(**one)) == str(mac(**other))


@pytest.mark.parametrize(("one", "other"), [
    ({}, {"product": "s15"}),
    ({"product": "s15"}, {"product": "s15 sat"}),
    ({"product": "s15 sat"}, {"product": "s15 sat_sym"}),
    ({"product": "s14f-2", "acc": "s20f-2"}, {"product": "s14f-2 ties_even", "acc": "s20f-2"}),
    ({"product": "s14f-2", "acc": "s20f-2"}, {"product": "s13f-2", "acc": "s20f-2"}),
    ({}, {"acc": "s20 sat"}),
    ({}, {"lanes": 2}),
    ({}, {"block": 2}),
    ({}, {"tile": 4, "outer": "s20"}),
    ({"tile": 4, "outer": "s20"}, {"tile": 4, "outer": "s20", "reload": "true"}),
    ({"tile": 4, "outer": "s20f-1"}, {"tile": 4, "outer": "s20f-1 ties_even"}),
])
def test_different_hardware_compares_different(one, other):
    assert mac(**one) != mac(**other)


def products(a, b):
    """Every product of two formats' codes."""
    return {x * y for x, y in product(range(a.lo, a.hi + 1), range(b.lo, b.hi + 1))}


NARROW = [Format(2), Format(3), Format(2, signed=False), Format(3, signed=False)]
PRODUCTS = [Cast(Format(width, frac, signed), rounding, overflow)
            for width in (2, 3, 4, 6) for frac in (-3, -1, 0, 1) for signed in (True, False)
            for rounding in (Rounding.TO_NEG, Rounding.TO_AWAY, Rounding.TIES_EVEN)
            for overflow in Overflow]


@pytest.mark.parametrize("a", NARROW, ids=str)
def test_normalising_the_product_cast_keeps_what_it_computes(a):
    for b, given_cast in product(NARROW, PRODUCTS):
        acc = Cast(Format(20, given_cast.format.frac))
        normal = MacSpec(a=a, b=b, acc=acc, product=given_cast).product
        want = [oracle.cast(x, given_cast) for x in products(a, b)]
        got = [oracle.cast(x, normal) for x in products(a, b)]
        assert got == want, (b, given_cast, normal)


@pytest.mark.parametrize("a", NARROW, ids=str)
def test_the_default_product_is_exact(a):
    for b in NARROW:
        spec = MacSpec(a=a, b=b, acc=Cast(Format(20)))
        got = [oracle.cast(x, spec.product) for x in products(a, b)]
        assert got == list(products(a, b))


@pytest.mark.parametrize("a", NARROW, ids=str)
def test_exact_product_says_whether_any_product_changes(a):
    for b, given_cast in product(NARROW, PRODUCTS):
        spec = MacSpec(a=a, b=b, acc=Cast(Format(20, given_cast.format.frac)), product=given_cast)
        frac = given_cast.format.frac
        want = frac >= 0 and all(
            oracle.value_of(oracle.cast(x, given_cast), given_cast.format) == x
            for x in products(a, b))
        assert spec.exact_product == want, (b, given_cast)


REFUSED = [  # call, fragments of the message: the value, the limit or rule, the way out
    (lambda: mac(line=4), ["'line'", "did you mean 'lanes'", "known: a, b, acc"]),
    (lambda: mac(accumulator="s8"), ["MacSpec key 'accumulator'", "known: a, b, acc"]),
    (lambda: MacSpec.parse("{a: s8, b: s8}"), ["'acc' is missing", "needs a, b and acc"]),
    (lambda: MacSpec.parse("{acc: s8}"), ["'a' is missing", "needs a, b and acc"]),
    (lambda: MacSpec.parse(5), ["MacSpec 5", "needs a mapping", "acc"]),
    (lambda: MacSpec.parse("s8"), ["'s8'", "{key: value, key: value}"]),
    (lambda: MacSpec("s8", Format(8), Cast(Format(20))), ["operand a 's8'", "Format such as s8"]),
    (lambda: MacSpec(Format(8), Format(8), "s20"), ["acc 's20'", "needs a Cast", "'s20 sat'"]),
    (lambda: mac(a="s33"), ["operand a s33f0", "at most 32 bits"]),
    (lambda: mac(b="u33"), ["operand b u33f0", "at most 32 bits"]),
    (lambda: mac(a="s8f4"), ["operand a s8f4", "integer units", "write s8f0"]),
    (lambda: mac(b="u8f-1"), ["operand b u8f-1", "integer units", "write u8f0"]),
    (lambda: mac(a="u32", b="u32", acc="u62"), ["u32f0", "leaves int64", "narrow one"]),
    (lambda: mac(acc="s1"), ["acc s1f0", "2 to 62 bits"]),
    (lambda: mac(acc="s63"), ["acc s63f0", "2 to 62 bits"]),
    (lambda: mac(acc="u63"), ["acc u63f0", "2 to 62 bits"]),
    (lambda: mac(acc="s20f-2"), ["frac differs", "0 and -2", "same frac"]),
    (lambda: mac(product="s14f-2"), ["s14f-2", "s20f0", "frac differs", "same frac"]),
    (lambda: mac(product="s14f-63", acc="s20f-63"), ["s14f-63", "from -62 to 62"]),
    (lambda: mac(product="s14f63", acc="s20f63"), ["s14f63", "from -62 to 62"]),
    (lambda: mac(product="s20f49", acc="s20f49"), ["s20f49", "leaves int64", "smaller frac"]),
    (lambda: mac(product="s16 stochastic4"), ["stochastic4", "no random operand", "determinis"]),
    (lambda: mac(acc="s20 stochastic4"), ["acc s20f0 stochastic4", "no random operand", "result"]),
    (lambda: mac(tile=4, outer="s20f-1 stochastic4"), ["outer", "stochastic4", "deterministic"]),
    (lambda: mac(lanes=0), ["lanes 0", "from 1 to"]),
    (lambda: mac(lanes=-1), ["lanes -1", "from 1 to"]),
    (lambda: mac(lanes=2**20 + 1), ["lanes 1048577", "to 1048576"]),
    (lambda: mac(lanes="four"), ["'four'", "lanes, block and tile are whole numbers"]),
    (lambda: mac(lanes=1.5), ["1.5", "lanes, block and tile are whole numbers"]),
    (lambda: replace(mac(), lanes=1.5), ["lanes 1.5", "whole number"]),
    (lambda: mac(block=0), ["block 0", "from 1 to"]),
    (lambda: mac(tile=0, outer="s20"), ["tile 0", "from 1 to"]),
    (lambda: mac(tile=6, lanes=4, outer="s20"), ["tile 6", "multiple of lanes 4"]),
    (lambda: mac(tile=4), ["tile 4", "outer None", "needs both", "give the outer"]),
    (lambda: mac(outer="s20"), ["tile None", "needs both", "outer"]),
    (lambda: mac(reload="true"), ["reload without tile", "give tile and outer"]),
    (lambda: mac(reload="yes", tile=4, outer="s20"), ["reload 'yes'", "true or false"]),
    (lambda: mac(tile=4, outer="s1"), ["outer s1f0", "2 to 62 bits"]),
    (lambda: mac(tile=4, outer="s63"), ["outer s63f0", "2 to 62 bits"]),
    (lambda: mac(tile=4, outer="s20f1", reload="true"), ["s20f1", "lost", "at most acc's frac"]),
    (lambda: mac(tile=4, outer="s20f44"), ["outer + acc", "leaves int64", "narrower"]),
    (lambda: mac(tile=4, outer="s40f-25", reload="true"), ["outer aligned", "leaves int64"]),
    (lambda: mac(a="s32", b="s32", acc="s40", lanes=2), ["a step's sum", "fewer lanes"]),
    (lambda: mac(a="s32", b="s32", acc="s62", product="u62 to_neg", lanes=2),
     ["acc + sum", "leaves int64", "fewer lanes"]),
    (lambda: UpdateSpec.parse("{weight: s8}"), ["'momentum' is missing", "weight, momentum, grad"]),
    (lambda: UpdateSpec.parse(5), ["update 5", "needs a mapping"]),
    (lambda: update(learning_rate="s8"), ["'learning_rate'", "known: weight"]),
    (lambda: update(momemtum="s8"), ["'momemtum'", "did you mean 'momentum'"]),
    (lambda: update(lr="u32"), ["lr u32f0", "at most 31 bits"]),
    (lambda: update(mu="s32"), ["mu s32f0", "at most 31 bits"]),
    (lambda: update(lr="u8f8 stochastic4"), ["lr u8f8 stochastic4", "deterministically"]),
    (lambda: update(momentum="s33"), ["momentum s33f0", "at most 32 bits"]),
    (lambda: update(weight="s62f20"), ["weight - lr * momentum", "limit is 62", "narrower"]),
    (lambda: update(grad="s16f60"), ["mu * momentum + gradient", "limit is 62", "closer fracs"]),
    (lambda: update(grad="s16f-60"), ["mu * momentum + gradient", "limit is 62"]),
    (lambda: LayerSpec.parse("{z: s8}"), ["layer key 'z'", "known: x, w, b, y"]),
    (lambda: LayerSpec.parse("{grad_x: s8}"), ["'grad_x'", "did you mean 'grad_"]),
    (lambda: LayerSpec.parse("{x: s8, forward: {acc: s20}}"), ["operand b", "cast for w"]),
    (lambda: LayerSpec.parse("{forward: {a: s8, acc: s20}}"), ["forward", "operand b", "write b"]),
    (lambda: LayerSpec.parse("{x: s8, w: s8, forward: {acc: s63}}"), ["forward:", "2 to 62 bits"]),
    (lambda: LayerSpec.parse("{x: s8, w: s8, forward: {a: s4, acc: s20}}"),
     ["forward.a s4f0", "layer's x is s8f0", "leave a out"]),
    (lambda: LayerSpec.parse("{error: s8, grad_bias: {b: s8, acc: s20}}"),
     ["grad_bias.b s8f0", "constant 1 is u1f0", "leave b out"]),
    (lambda: LayerSpec.parse("{x: s40, w: s8, forward: {acc: s20}}"),
     ["forward", "operand a s40f0", "at most 32 bits"]),
    (lambda: LayerSpec.parse("{x: s8 auto:mix}"), ["'auto:mix'", "did you mean 'auto:max'"]),
]


def update(**texts):
    """An update of 16-bit numbers, but for the given fields."""
    return UpdateSpec.parse({"weight": "s16f12", "momentum": "s16f12", "grad": "s16f12",
                             "lr": "u8f8", "mu": "u8f8", **texts})


@pytest.mark.parametrize(("call", "fragments"), REFUSED, ids=[f[0] for _, f in REFUSED])
def test_a_refusal_names_the_value_the_limit_and_the_way_out(call, fragments):
    with pytest.raises(ValueError) as refusal:
        call()
    message = str(refusal.value)
    assert [part for part in fragments if part not in message] == [], message


@pytest.mark.parametrize("call", [
    lambda: replace(mac(), product="s16"),
    lambda: replace(mac(), tile=4, outer="s20"),
    lambda: LayerSpec.parse(5),
    lambda: LayerSpec.parse({"x": "s8", "w": "s8", "forward": 5}),
    lambda: LayerSpec(x="s8", forward=mac()),
], ids=["product text", "outer text", "layer number", "pass number", "layer cast text"])
def test_a_field_of_the_wrong_type_is_a_value_error(call):
    with pytest.raises(ValueError):
        call()


def ends(form):
    """The least and greatest code of a format, from its width and sign."""
    if form.signed:
        return -(2 ** (form.width - 1)), 2 ** (form.width - 1) - 1
    return 0, 2**form.width - 1


def times(one, other):
    """The range of a product."""
    corners = [x * y for x, y in product(one, other)]
    return min(corners), max(corners)


def plus(one, other):
    """The range of a sum."""
    return one[0] + other[0], one[1] + other[1]


def cast_range(limits, frac, to):
    """The ranges of a value from `limits` rounded to `to`, and then fitted."""
    rounded = tuple(oracle.whole(oracle.value_of(code, Format(1, frac)), to) for code in limits)
    inside = oracle.limits(to)[0] <= rounded[0] and rounded[1] <= oracle.limits(to)[1]
    return rounded, (rounded if inside else ends(to.format))


def mac_ranges(spec):
    """name -> (least, greatest) of everything a MAC computes, whatever the operands and K."""
    acc, frac = ends(spec.acc.format), spec.acc.format.frac
    seen = {"product": times(ends(spec.a), ends(spec.b))}
    seen["rounded"], fitted = cast_range(seen["product"], 0, spec.product)
    seen["step"] = times(fitted, (spec.lanes, spec.lanes))
    seen["acc + step"] = plus(acc, seen["step"])
    if spec.outer is not None:
        outer = ends(spec.outer.format)
        seen["spilled"], spilled = cast_range(acc, frac, spec.outer)
        seen["outer + spilled"] = plus(outer, (0, 0) if spec.reload else spilled)
        if spec.reload:
            seen["reloaded"] = cast_range(outer, spec.outer.format.frac, spec.acc)[0]
    return seen


def outside_int64(ranges):
    """What of the ranges leaves int64."""
    return {name: limits for name, limits in ranges.items()
            if limits[0] not in INT64 or limits[1] not in INT64}


@pytest.mark.parametrize("lanes", [1, 2, 3, 1000])
@pytest.mark.parametrize("acc", ["s2", "u33", "s62"])
def test_every_intermediate_of_an_accepted_mac_fits_int64(acc, lanes):
    operands = ["u1", "s8", "u8", "s31", "u31", "s32", "u32"]
    stages = product(operands, operands, (-62, -31, -1, 0, 1, 30), ("u20", "s61 ties_away sat"),
                     ({}, {"outer": "s62f-3 to_pos"}, {"outer": "s40f2"},
                      {"outer": "u62f-20 to_odd", "reload": True}))
    accepted = 0
    for a, b, frac, cast, outer in stages:
        try:
            spec = MacSpec(
                Format.parse(a), Format.parse(b), Cast.parse(acc).with_frac(frac),
                Cast.parse(cast).with_frac(frac), lanes, tile=lanes if outer else None,
                outer=Cast.parse(outer["outer"]) if outer else None, reload="reload" in outer)
        except ValueError:
            continue
        accepted += 1
        assert outside_int64(mac_ranges(spec)) == {}, spec
    assert accepted > 200


@given(macs(operands=(24, 32), accs=(50, 62)))
@examples(100)
def test_every_intermediate_of_any_wide_accepted_mac_fits_int64(spec):
    assert outside_int64(mac_ranges(spec)) == {}


LIMITS = [  # a, b, acc and the greatest number of lanes whose sums fit
    ("s32", "s32", "s62", 1), ("s31", "s32", "s62", 3), ("s31", "s31", "s62", 6),
    ("u31", "u32", "s33", 1), ("u32", "s32", "s32", 1), ("s30", "s30", "s61", 28),
    ("u30", "s30", "s62", 12),
]


@pytest.mark.parametrize(("a", "b", "acc", "lanes"), LIMITS)
def test_the_most_lanes_that_fit_are_accepted(a, b, acc, lanes):
    assert mac(a=a, b=b, acc=acc, lanes=lanes).lanes == lanes


@pytest.mark.parametrize(("a", "b", "acc", "lanes"), LIMITS)
def test_one_lane_too_many_is_refused(a, b, acc, lanes):
    with pytest.raises(ValueError, match="leaves int64"):
        mac(a=a, b=b, acc=acc, lanes=lanes + 1)


@pytest.mark.parametrize(("a", "b", "acc", "lanes"), LIMITS)
def test_the_limit_of_lanes_is_where_int64_ends(a, b, acc, lanes):
    products = times(ends(Format.parse(a)), ends(Format.parse(b)))
    sums = {n: plus(ends(Format.parse(acc)), times(products, (n, n))) for n in (lanes, lanes + 1)}
    assert list(outside_int64(sums)) == [lanes + 1]


def update_ranges(mu, grad, momentum, lr, weight):
    """name -> (least, greatest) of what an update adds, on the finer grid of the two terms."""
    seen = {}
    for name, sign, factor, addend in (("momentum", 1, mu, grad), ("weight", -1, lr, weight)):
        frac = factor.frac + momentum.frac
        finer = max(frac, addend.frac)
        term = times(times(ends(factor), ends(momentum)), (sign * 2 ** (finer - frac),) * 2)
        other = times(ends(addend), (2 ** (finer - addend.frac),) * 2)
        seen |= {f"{name} product": term, f"{name} addend": other,
                 f"{name} sum": plus(term, other)}
    return seen


@given(updates(bits=64))
@examples(200)
def test_every_sum_of_an_accepted_update_fits_int64(spec):
    names = ("mu", "grad", "momentum", "lr", "weight")
    ranges = update_ranges(*(getattr(spec, name).format for name in names))
    assert outside_int64(ranges) == {}


def test_the_exact_sum_of_an_update_has_at_most_62_bits():
    small, wrong, counts = Format(2), [], {True: 0, False: 0}
    momenta = [Format(31), Format(32), Format(31, signed=False), Format(8)]
    factors = [Format(30), Format(31), Format(29, signed=False), Format(31, signed=False)]
    addends = [Format(width, frac, signed) for width in (1, 30, 58, 59, 60, 61, 62)
               for frac in (-1, 0, 2) for signed in (True, False)]
    for momentum, factor, addend, swap in product(momenta, factors, addends, (True, False)):
        formats = {"mu": factor, "grad": addend, "momentum": momentum, "lr": small, "weight": small}
        if swap:
            formats |= {"mu": small, "grad": small, "lr": factor, "weight": addend}
        want = all(lo >= -(2**61) and hi < 2**61 for name, (lo, hi) in
                   update_ranges(**formats).items() if name.endswith("sum"))
        counts[want] += 1
        if accepts(UpdateSpec, **{name: Cast(form) for name, form in formats.items()}) != want:
            wrong.append(formats)
    assert (wrong, min(counts.values()) > 100) == ([], True)


def accepts(build, **fields):
    """Whether a value takes its fields."""
    try:
        build(**fields)
    except ValueError:
        return False
    return True


LAYER = """{x: s8 auto:max ties_even sat, w: s4f3, error: u6f9, y: s8f4 sat,
            forward: {acc: s20 sat, lanes: 4}, grad_input: {acc: s24},
            grad_weight: {acc: s32}, grad_bias: {acc: s16}}"""


@pytest.mark.parametrize(("name", "want"), [
    ("forward", ("s8f0", "s4f0")), ("grad_input", ("u6f0", "s4f0")),
    ("grad_weight", ("s8f0", "u6f0")), ("grad_bias", ("u6f0", "u1f0")),
])
def test_a_pass_takes_its_operands_from_the_layers_casts(name, want):
    spec = getattr(LayerSpec.parse(LAYER), name)
    assert (str(spec.a), str(spec.b)) == want


def test_the_operands_of_each_pass_are_those_of_the_design():
    assert PASS_OPERANDS == {"forward": ("x", "w"), "grad_input": ("error", "w"),
                             "grad_weight": ("x", "error"), "grad_bias": ("error", None)}


def test_an_operand_may_be_written_where_the_layer_has_no_cast():
    spec = LayerSpec.parse("{w: s4, forward: {a: u7, acc: s20}}")
    assert str(spec.forward.a) == "u7f0"


def test_none_in_a_layer_means_no_cast():
    assert LayerSpec.parse({"x": "s8", "y": None, "b": "none"}) == LayerSpec.parse("{x: s8}")


def test_a_layer_reads_mappings_of_mappings():
    nested = {"x": "s8", "w": "s8", "forward": {"acc": "s20 sat", "lanes": 4}}
    assert LayerSpec.parse(nested) == LayerSpec.parse(
        "{x: s8, w: s8, forward: {acc: s20 sat, lanes: 4}}")


def test_a_layer_keeps_rules_and_casts_apart():
    spec = LayerSpec.parse("{x: s8 auto:max sat, w: s8 sat}")
    assert (type(spec.x), type(spec.w)) == (Rule, Cast)


@pytest.mark.parametrize(("texts", "want"), [
    ({}, "s20f0 to_neg wrap"), ({"tile": 4, "outer": "s9f-3 ties_odd sat"}, "s9f-3 ties_odd sat"),
])
def test_the_result_of_a_mac_is_its_last_stage(texts, want):
    assert str(mac(**texts).result) == want


@given(casts((1, 8), (-4, 4), stochastic=False))
@examples(200)
def test_a_casts_range_is_that_of_the_oracle(cast):
    assert cast.range == oracle.limits(cast)


def test_zeros_that_the_cast_of_an_update_appends_count():
    with pytest.raises(ValueError, match="needs 72 bits, the limit is 62"):
        update(weight="s8", momentum="s8f20", grad="s8f-40", lr="s4", mu="s4f-60")


def test_a_symmetric_product_that_loses_its_lowest_code_is_not_exact():
    text = "{a: u1f0, b: s8f0, product: s8f0 to_neg sat_sym, acc: s16f0 to_neg sat}"
    spec = MacSpec.parse(text)
    assert (str(spec), spec.exact_product) == (text, False)
