"""Formats, casts and rules: their tables, their one text form, and what they refuse."""

import copy
import pickle
from dataclasses import FrozenInstanceError
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import casts, examples, formats, rules

from emu.number import Cast, Format, Overflow, Rounding
from emu.rule import Rule, parse_cast
from emu.value import parse_mapping

FORMATS = [  # text, width, frac, signed, lo, hi, step
    ("s8f4", 8, 4, True, -128, 127, 0.0625),
    ("u8f0", 8, 0, False, 0, 255, 1.0),
    ("s1f0", 1, 0, True, -1, 0, 1.0),
    ("u1f0", 1, 0, False, 0, 1, 1.0),
    ("s4f9", 4, 9, True, -8, 7, 0.001953125),
    ("s20f-2", 20, -2, True, -524288, 524287, 4.0),
    ("s64f0", 64, 0, True, -9223372036854775808, 9223372036854775807, 1.0),
    ("u64f64", 64, 64, False, 0, 18446744073709551615, 5.421010862427522e-20),
]


@pytest.mark.parametrize(("text", "width", "frac", "signed", "lo", "hi", "step"), FORMATS)
def test_a_format_derives_its_bounds(text, width, frac, signed, lo, hi, step):
    form = Format.parse(text)
    want = (width, frac, signed, lo, hi, step)
    got = (form.width, form.frac, form.signed, form.lo, form.hi, form.step)
    assert got == want


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("width", range(1, 65))
def test_a_format_has_two_to_the_width_codes(width, signed):
    form = Format(width, 0, signed)
    assert form.hi - form.lo + 1 == 2**width


@pytest.mark.parametrize("frac", [-512, -1, 0, 1, 512])
def test_the_step_is_exact_at_every_frac(frac):
    assert Fraction(Format(8, frac).step) == Fraction(2) ** -frac


@pytest.mark.parametrize(("text", "want"), [
    ("s8", "s8f0"), ("u3", "u3f0"), (" s8f4 ", "s8f4"), ("s8f-0", "s8f0"), ("s08f04", "s8f4"),
])
def test_a_format_prints_width_and_frac(text, want):
    assert str(Format.parse(text)) == want


@given(formats())
@examples(300)
def test_a_format_survives_its_text(form):
    assert Format.parse(str(form)) == form


def test_with_frac_moves_only_the_binary_point():
    assert Format.parse("u8f4").with_frac(-3) == Format.parse("u8f-3")


def test_the_cast_with_another_frac_keeps_its_modes():
    cast = Cast.parse("s8f4 stochastic7 sat_sym").with_frac(9)
    assert cast == Cast.parse("s8f9 stochastic7 sat_sym")


@pytest.mark.parametrize(("lo", "hi", "want"), [
    (0, 0, "u1f0"), (0, 1, "u1f0"), (3, 4, "u3f0"), (0, 255, "u8f0"), (0, 256, "u9f0"),
    (-1, 0, "s1f0"), (-1, 1, "s2f0"), (-2, 1, "s2f0"), (-128, 127, "s8f0"), (-129, 0, "s9f0"),
    (-1, 128, "s9f0"), (-5, -3, "s4f0"), (-(2**63), 2**63 - 1, "s64f0"), (0, 2**64 - 1, "u64f0"),
])
def test_holding_gives_the_format_of_a_range(lo, hi, want):
    assert str(Format.holding(lo, hi)) == want


@pytest.mark.parametrize("lo", range(-20, 21))
def test_holding_is_the_narrowest_format(lo):
    for hi in range(max(lo, 0), 40):
        signed = lo < 0
        want = next(form for form in (Format(w, 3, signed) for w in range(1, 9))
                    if form.lo <= lo and hi <= form.hi)
        assert Format.holding(lo, hi, frac=3) == want, (lo, hi)


def test_holding_is_the_narrowest_format_of_negative_codes():
    for lo in range(-20, 0):
        for hi in range(lo, 0):
            want = next(w for w in range(1, 9) if -(2 ** (w - 1)) <= lo)
            assert Format.holding(lo, hi).width == want, (lo, hi)


ROUNDINGS = {
    "to_neg": 0, "to_pos": 1, "to_zero": 2, "to_away": 3, "to_odd": 4, "ties_neg": 5,
    "ties_pos": 6, "ties_zero": 7, "ties_away": 8, "ties_even": 9, "ties_odd": 10,
    "stochastic": 11,
}
OVERFLOWS = {"wrap": 0, "sat": 1, "sat_sym": 2, "sat_zero": 3}


def test_the_roundings_have_their_verilog_numbers():
    assert {mode.name.lower(): int(mode) for mode in Rounding} == ROUNDINGS


def test_the_overflows_have_their_verilog_numbers():
    assert {mode.name.lower(): int(mode) for mode in Overflow} == OVERFLOWS


@pytest.mark.parametrize("overflow", OVERFLOWS)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_pair_of_modes_has_a_text(rounding, overflow):
    bits = 5 if rounding == "stochastic" else 0
    text = f"s8f4 {rounding}{bits or ''} {overflow}"
    want = Cast(Format(8, 4), Rounding(ROUNDINGS[rounding]), Overflow(OVERFLOWS[overflow]), bits)
    assert (Cast.parse(text), str(want)) == (want, text)


@pytest.mark.parametrize(("text", "want"), [
    ("s8f4", "s8f4 to_neg wrap"),
    ("u8 sat", "u8f0 to_neg sat"),
    ("s8 ties_even", "s8f0 ties_even wrap"),
    ("s8 sat ties_even", "s8f0 ties_even sat"),
    ("  s14f-2   to_odd  ", "s14f-2 to_odd wrap"),
    ("s8 stochastic16", "s8f0 stochastic16 wrap"),
    ("u8 sat_sym", "u8f0 to_neg sat"),
])
def test_a_cast_prints_all_its_modes(text, want):
    assert str(Cast.parse(text)) == want


@given(casts())
@examples(500)
def test_a_cast_survives_its_text(cast):
    assert Cast.parse(str(cast)) == cast


@given(rules())
@examples(300)
def test_a_rule_survives_its_text(rule):
    assert Rule.parse(str(rule)) == rule


@given(casts() | rules())
@examples(300)
def test_a_text_tells_a_cast_from_a_rule(value):
    assert parse_cast(str(value)) == value


@given(formats() | casts() | rules())
@examples(50)
def test_a_copy_and_a_pickle_are_equal_values(value):
    assert pickle.loads(pickle.dumps(value)) == copy.deepcopy(value) == value


@given(casts())
@examples(20)
def test_parse_cast_lets_a_value_pass(cast):
    assert parse_cast(cast) is cast


@pytest.mark.parametrize(("text", "want"), [
    ("s8 sat", (-128, 127)), ("s8 sat_sym", (-127, 127)), ("s8", (-128, 127)),
    ("s8 sat_zero", (-128, 127)), ("u8 sat_sym", (0, 255)), ("s2 sat_sym", (-1, 1)),
])
def test_the_range_of_a_cast_is_that_of_its_overflow_mode(text, want):
    assert Cast.parse(text).range == want


SAME = [  # two ways to write the same hardware
    (Format(8), Format(np.int64(8), np.int8(0), np.True_)),
    (Format(8, 0, signed=False), Format(8, 0, 0)),
    (Cast.parse("u8 sat_sym"), Cast.parse("u8 sat")),
    (Cast.parse("s8 ties_even"), Cast(Format(8), Rounding.TIES_EVEN, rand_bits=7)),
    (Cast.parse("s8 ties_even sat"), Cast(Format(8), 9, 1)),
    (Cast.parse("s8 stochastic16"), Cast(Format(8), 11, 0, np.int32(16))),
    (Rule.parse("u8 auto:max sat_sym"), Rule.parse("u8 auto:max sat")),
    (Rule.parse("s8 auto:max to_odd"), Rule(np.int64(8), 1, "auto:max", 4, 0, 3)),
    (Rule.parse("s8 auto:percentile99.90"), Rule.parse("s8 auto:percentile099.9")),
    (Rule.parse("s8 auto:percentile100.0@previous"), Rule.parse("s8 auto:max@previous")),
    (Rule.parse("s8 auto:max+0.00001@previous"), Rule.parse("s8 auto:max+1e-05@previous")),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_equal_hardware_compares_equal(one, other):
    assert one == other


@pytest.mark.parametrize(("one", "other"), SAME)
def test_equal_hardware_hashes_equal(one, other):
    assert hash(one) == hash(other)


@pytest.mark.parametrize(("one", "other"), SAME)
def test_equal_hardware_prints_equal(one, other):
    assert repr(one) == repr(other)


@pytest.mark.parametrize("text", ["s8f4 ties_even sat", "s8 auto:max to_neg wrap"])
def test_the_repr_shows_the_one_text_form(text):
    assert text in repr(parse_cast(text))


@pytest.mark.parametrize(("one", "other"), [
    ("s8", "u8"), ("s8", "s8f1"), ("s8", "s9"), ("s8 sat", "s8"), ("s8 sat_sym", "s8 sat"),
    ("s8 ties_even", "s8 ties_odd"), ("s8 stochastic3", "s8 stochastic4"),
])
def test_different_hardware_compares_different(one, other):
    assert Cast.parse(one) != Cast.parse(other)


@pytest.mark.parametrize(("value", "field"), [
    (Format(8), "width"), (Cast(Format(8)), "overflow"), (Rule(8), "scale"),
])
def test_a_value_is_frozen(value, field):
    with pytest.raises(FrozenInstanceError):
        setattr(value, field, 1)


REFUSED = [  # call, fragments of the message: the value, the limit or rule, the way out
    (lambda: Format(0), ["width 0", "from 1 to 64"]),
    (lambda: Format(65), ["width 65", "from 1 to 64"]),
    (lambda: Format(-3), ["width -3", "from 1 to 64"]),
    (lambda: Format(True), ["width True", "from 1 to 64"]),
    (lambda: Format(8.0), ["width 8.0", "whole number"]),
    (lambda: Format("8"), ["width '8'", "whole number"]),
    (lambda: Format(None), ["width None", "whole number"]),
    (lambda: Format(8, 513), ["frac 513", "from -512 to 512"]),
    (lambda: Format(8, -513), ["frac -513", "from -512 to 512"]),
    (lambda: Format(8, 0.5), ["frac 0.5", "whole number"]),
    (lambda: Format.parse("8"), ["'8'", "s or u", "s8f4"]),
    (lambda: Format.parse(""), ["''", "s or u", "s8f4"]),
    (lambda: Format.parse("s8.4"), ["'s8.4'", "s8f4"]),
    (lambda: Format.parse("s8f"), ["'s8f'", "s8f4"]),
    (lambda: Format.parse("S8"), ["'S8'", "s8f4"]),
    (lambda: Format.parse("s-8"), ["'s-8'", "s8f4"]),
    (lambda: Format.parse("s8f4 sat"), ["'s8f4 sat'", "s8f4"]),
    (lambda: Format.parse("s0"), ["width 0", "from 1 to 64"]),
    (lambda: Format.parse("s8f600"), ["frac 600", "from -512 to 512"]),
    (lambda: Format(8).with_frac(513), ["frac 513", "from -512 to 512"]),
    (lambda: Cast("s8"), ["'s8'", "needs a Format", "Cast.parse"]),
    (lambda: Cast(None), ["None", "needs a Format", "Cast.parse"]),
    (lambda: Cast.parse(""), ["''", "s8f4"]),
    (lambda: Cast.parse("sat"), ["'sat'", "s8f4"]),
    (lambda: Cast.parse("s8 tieseven"), ["s8 tieseven", "did you mean 'ties_even'", "to_odd"]),
    (lambda: Cast.parse("s8 sat_symm"), ["'sat_symm'", "did you mean 'sat_sym'", "wrap"]),
    (lambda: Cast.parse("s8 TIES_EVEN"), ["'TIES_EVEN'", "did you mean 'ties_even'"]),
    (lambda: Cast.parse("s8 wibble"), ["'wibble'", "known: to_neg", "sat_zero"]),
    (lambda: Cast.parse("s8 to_neg to_pos"), ["'to_pos' is a second rounding", "one of each"]),
    (lambda: Cast.parse("s8 to_neg to_neg"), ["'to_neg' is a second rounding", "one of each"]),
    (lambda: Cast.parse("s8 wrap sat"), ["'sat' is a second overflow", "one of each"]),
    (lambda: Cast.parse("s8 ties_even16"), ["'ties_even16'", "did you mean 'ties_even'"]),
    (lambda: Cast.parse("s8 auto:max"), ["'auto:max'", "known: to_neg"]),
    (lambda: Cast.parse("s8 stochastic"), ["rand_bits", "stochastic16", "from 1 to 32"]),
    (lambda: Cast.parse("s8 stochastic0"), ["rand_bits", " 0:", "from 1 to 32"]),
    (lambda: Cast.parse("s8 stochastic33"), ["rand_bits", " 33:", "from 1 to 32"]),
    (lambda: Cast(Format(8), Rounding.STOCHASTIC), ["rand_bits", "from 1 to 32"]),
    (lambda: Cast.parse("s1 sat_sym"), ["width 1", "at least 2 bits", "use sat"]),
    (lambda: Cast(Format(8), 12), ["12", "Rounding"]),
    (lambda: Cast(Format(8), -1), ["-1", "Rounding"]),
    (lambda: Cast(Format(8), 0, 4), ["4", "Overflow"]),
    (lambda: Rule(0), ["width 0", "from 1 to 64"]),
    (lambda: Rule(65), ["width 65", "from 1 to 64"]),
    (lambda: Rule(8, scale="auto:maximum"), ["'auto:maximum'", "did you mean 'auto:max'"]),
    (lambda: Rule(8, rounding=Rounding.STOCHASTIC), ["rand_bits", "from 1 to 32"]),
    (lambda: Rule.parse("s8"), ["''", "known: auto:max"]),
    (lambda: Rule.parse("s8 auto:max+0.0"), ["'auto:max+0.0'", "above 0", "auto:max has none"]),
    (lambda: Rule.parse("s8 auto:sweep+1e-5"), ["'auto:sweep+1e-5'", "did you mean"]),
    (lambda: Rule.parse("s8 auto:mean"), ["'auto:mean'", "did you mean 'auto:max'"]),
    (lambda: Rule.parse("s8 auto:percentile"), ["did you mean 'auto:percentile99.9'"]),
    (lambda: Rule.parse("s8 auto:percentile0"), ["percentile0:", "above 0 and at most 100"]),
    (lambda: Rule.parse("s8 auto:percentile100.1"), ["above 0 and at most 100"]),
    (lambda: Rule.parse("s8 auto:sweep@last"), ["'auto:sweep@last'", "@previous"]),
    (lambda: Rule.parse("s8 auto:3sigma99"), ["'auto:3sigma99'", "did you mean 'auto:3sigma'"]),
    (lambda: Rule.parse("s8f4 auto:max"), ["'s8f4'", "binary point", "write 's8'"]),
    (lambda: Rule.parse("s8 fixed").stored(None), ["s8 fixed to_neg wrap: no binary point is"]),
    (lambda: parse_cast("s8 fixd sat"), ["'fixd'", "did you mean 'fixed'"]),
    (lambda: parse_cast("s8f4 fixed"), ["'s8f4'", "binary point that 'fixed'", "write 's8'"]),
    (lambda: Rule.parse("s8 auto:max sad"), ["'sad'", "did you mean 'sat'"]),
    (lambda: Rule.parse("s1 auto:max sat_sym"), ["width 1", "at least 2 bits", "use sat"]),
    (lambda: parse_cast("s8 auto:mix"), ["'auto:mix'", "did you mean 'auto:max'"]),
    (lambda: parse_cast("s8 rnd"), ["'rnd'", "known: to_neg"]),
    (lambda: parse_mapping("s8"), ["'s8'", "{key: value, key: value}"]),
    (lambda: parse_mapping("{a: s8, b}"), ["{key: value, key: value}"]),
    (lambda: parse_mapping("{a: {b: s8}"), ["{key: value, key: value}"]),
]


@pytest.mark.parametrize(("call", "fragments"), REFUSED, ids=[f[0] for _, f in REFUSED])
def test_a_refusal_names_the_value_the_limit_and_the_way_out(call, fragments):
    with pytest.raises(ValueError) as refusal:
        call()
    message = str(refusal.value)
    assert [part for part in fragments if part not in message] == [], message


def power_of_two_range(largest, frac):
    """The least E with largest * 2^-frac <= 2^E."""
    value, exponent = Fraction(largest) / Fraction(2) ** frac, 0
    while Fraction(2) ** exponent < value:
        exponent += 1
    while Fraction(2) ** (exponent - 1) >= value:
        exponent -= 1
    return exponent


def rule_cast(rule, largest, frac):
    """The cast whose bounds are at +-2^E, its binary point kept within the exponent register."""
    magnitude_bits = rule.width - 1 if rule.signed else rule.width
    frac = sorted([-96, magnitude_bits - power_of_two_range(largest, frac), 96])[1]
    return Cast(Format(rule.width, frac, rule.signed), rule.rounding, rule.overflow, rule.rand_bits)


@pytest.mark.parametrize("text", ["s8 auto:max ties_even sat", "u8 auto:max", "s1 auto:max",
                                  "u1 auto:max sat", "s16 auto:max stochastic5 sat_sym"])
def test_a_rule_takes_the_least_power_of_two_range(text):
    rule = Rule.parse(text)
    for frac in range(-3, 12):
        for largest in range(1, 140):
            want = rule_cast(rule, largest, frac)
            assert rule.cast_for(largest, frac) == want, (largest, frac)


@given(rules().filter(lambda rule: rule.constant is None and rule.statistic != "shift" and not
                      rule.kind), st.integers(1, 2**64) | st.integers(0, 64).map(lambda n: 2**n),
       st.integers(-200, 200))
@examples(300)
def test_any_rule_takes_the_least_power_of_two_range(rule, largest, frac):
    assert rule.cast_for(largest, frac) == rule_cast(rule, largest, frac)


@pytest.mark.parametrize("exponent", range(63))
def test_a_rule_gives_a_power_of_two_and_its_successor_different_ranges(exponent):
    rule = Rule(8)
    at, above = rule.cast_for(2**exponent, 0), rule.cast_for(2**exponent + 1, 0)
    assert at.format.frac - above.format.frac == 1


@pytest.mark.parametrize(("largest", "frac", "want"), [(1, 300, 96), (2**60, -300, -96)])
def test_the_exponent_register_of_a_rule_ends_at_96(largest, frac, want):
    assert Rule(8).cast_for(largest, frac).format.frac == want


@pytest.mark.parametrize(("scale", "statistic", "percent", "previous"), [
    ("auto:max", "max", None, False), ("auto:3sigma@previous", "3sigma", None, True),
    ("auto:percentile99.9", "percentile", Fraction(999, 10), False),
    ("auto:percentile7@previous", "percentile", 7, True), ("auto:sweep", "sweep", None, False)])
def test_a_rule_says_which_statistic_of_which_tensor_decides(scale, statistic, percent, previous):
    rule = Rule.parse(f"s8 {scale} sat")
    assert (rule.scale, rule.statistic, rule.previous) == (scale, statistic, previous)
    assert percent is None or rule.percent == percent


def test_a_rule_with_a_known_frac_is_a_cast():
    assert Rule.parse("s8 auto:max ties_even sat").with_frac(3) == Cast.parse("s8f3 ties_even sat")


@pytest.mark.parametrize(("text", "want"), [
    ("{a: s8, b: u8}", {"a": "s8", "b": "u8"}),
    ("a: s8, b: u8", {"a": "s8", "b": "u8"}),
    ("  { a :s8f-2 sat,}  ", {"a": "s8f-2 sat"}),
    ("{rule: s8 auto:max}", {"rule": "s8 auto:max"}),
    ("{mac: {a: s8, b: s8}, x: s4}", {"mac": "{a: s8, b: s8}", "x": "s4"}),
])
def test_a_mapping_text_splits_at_its_own_commas(text, want):
    assert parse_mapping(text) == want


@pytest.mark.parametrize(("call", "message"), [
    (lambda: Cast(Format(8), "ties_even"), "rounding 'ties_even': needs an emu.Rounding"),
    (lambda: Cast(Format(8), 9, 4), "overflow 4: needs an emu.Overflow"),
    (lambda: Format(8, 0, "no"), "format signed 'no': needs True or False"),
    (lambda: Format.holding(5, 2), "codes from 5 to 2"),
    (lambda: Rule(8).cast_for(0, 0), "largest 0: zeros choose no binary point"),
    (lambda: Rule.parse("float16 auto:max"), "format 'float16': write s or u"),
    (lambda: parse_mapping("{a: s8, a: s9}"), "'a' stands twice"),
])
def test_a_senseless_argument_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
