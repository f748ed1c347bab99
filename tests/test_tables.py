"""Tables of functions: every entry against the real function, every lookup against the memory."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import oracle
import pytest
import real_oracle
from engine_cases import filled
from hypothesis import given
from hypothesis import strategies as st
from strategies import DETERMINISTIC, casts, codes, examples, formats

import emu
from emu import Cast, Format, Overflow, Table, engine, reference
from emu.functions import FUNCTIONS, Real, Undecided, root_of_two_pi, to_odd

NAMES = sorted([*FUNCTIONS, *(f"grad_{name}" for name in FUNCTIONS)])
IDENTITY = Table.parse("{x: s3, y: s3, codes: -4 -3 -2 -1 0 1 2 3}")


def inputs(name, form):
    """The codes where the function has a finite value."""
    return [code for code in range(form.lo, form.hi + 1) if "neg_log" not in name or code > 0]


def input_format(name, width, frac):
    return Format(width, frac, signed="neg_log" not in name)


def rounded(name, q, to):
    """The code of the real value in a cast: both ends of its enclosure agree on it."""
    low, high = real_oracle.value(name, q)
    found = {oracle.cast(end, to) for end in (low, high)}
    if len(found) > 1:  # the value is on a boundary, which its enclosure surrounds
        middle = Fraction(round((low + high) * 2**40), 2**40)
        assert low <= middle <= high
        found = {oracle.cast(middle, to)}
    return found.pop()


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_is_the_correctly_rounded_value(name):
    form = input_format(name, 6, 2)
    for y in ("s9f5", "s5f2", "u6f7"):
        for i, rounding in enumerate(DETERMINISTIC):
            to = Cast(Format.parse(y), rounding, list(Overflow)[1 + i % 3])
            got = reference.table_entries(Table(form, to, name))
            for code in inputs(name, form):
                want = rounded(name, oracle.value_of(code, form), to)
                assert got[code - form.lo] == want, (name, code, str(to))


@pytest.mark.parametrize("digits", [3, 6, 10])
@pytest.mark.parametrize("name", NAMES)
def test_every_enclosure_holds_the_value_at_few_digits_too(name, digits):
    form = input_format(name, 6, 2)
    compute = FUNCTIONS[name.removeprefix("grad_")][name.startswith("grad_")]
    for code in inputs(name, form):
        try:
            low, high = map(Fraction, compute(Real(digits, Decimal(code) / 4)).ends())
        except Undecided:
            continue
        least, most = real_oracle.value(name, Fraction(code, 4))
        assert low <= most and least <= high, code


@pytest.mark.parametrize("digits", range(3, 40, 3))
def test_the_constant_is_enclosed(digits):
    low, high = map(Fraction, root_of_two_pi(digits).ends())
    want = real_oracle.ROOT_OF_TWO_PI
    assert low <= want.lo <= want.hi <= high <= low * (1 + Fraction(10) ** (3 - digits))


@pytest.mark.parametrize("name", ["exp", "sigmoid", "tanh", "gelu", "softplus"])
def test_entries_of_many_bits_are_correctly_rounded(name):
    form, to = Format(5, 2), Cast.parse("s32f24 ties_even sat")
    got = reference.table_entries(Table(form, to, name))
    assert got == [rounded(name, oracle.value_of(code, form), to) for code in inputs(name, form)]


@pytest.mark.parametrize(("name", "x", "y", "code", "entry"), [
    # What is out of reach of every float is still above or below its asymptote.
    ("sigmoid", "s12f4", "u9f8 to_neg sat", 2047, 255),
    ("sigmoid", "s12f4", "u9f8 to_pos", 2047, 256),
    ("sigmoid", "s12f4", "u9f8 to_pos sat", -2048, 1),
    ("sigmoid", "s16", "u9f8 to_neg", 32767, 255),
    ("tanh", "s16", "s9f7 to_zero sat", -32768, -127), ("tanh", "s16", "s9f7 to_away", 32767, 128),
    ("softplus", "s16", "s18 to_pos sat", 32767, 32768),
    ("silu", "s16", "s18 to_neg", 32767, 32766), ("gelu", "s16", "s18 to_neg sat", -32768, -1),
    ("gelu", "s16", "s18 to_pos", 32767, 32767), ("gelu_tanh", "s16", "s18 to_neg", 32767, 32766),
    ("mish", "s16", "s18 to_neg", 32767, 32766), ("elu", "s16", "s9f7 to_neg sat", -32768, -128),
    ("elu", "s16", "s9f7 to_pos sat", -32768, -127),
    ("exp_neg", "u16", "u8f8 to_pos sat", 65535, 1),
    ("exp", "s16", "u8 ties_even sat", 32767, 255),
    ("grad_gelu", "s16", "u9f8 to_neg sat", 32767, 256),
    ("grad_silu", "s16", "u9f8 to_neg sat", 9, 256),
    # Exact values are exact, and ties are ties.
    ("exp", "s4", "u4 to_away sat", 0, 1), ("sigmoid", "s4", "u1 ties_even", 0, 0),
    ("sigmoid", "s4", "u1 ties_odd", 0, 1), ("grad_sigmoid", "s4", "u2f1 ties_even", 0, 0),
    ("grad_tanh", "s4", "u4f2 to_away sat", 0, 4), ("tanh", "s4", "s4f2 to_away sat", 0, 0),
    ("gelu", "s4", "s4 to_away sat", 0, 0), ("grad_gelu", "s4", "s4 ties_odd sat", 0, 1),
    ("grad_mish", "s4", "u8f7 to_zero", 0, 76), ("mish", "s4", "s6 to_away sat", 0, 0),
    ("hardswish", "s4", "s6 to_away sat", 3, 3), ("hardswish", "s4f1", "s4 ties_zero sat", -3, 0),
    ("neg_log", "u4f3", "s4f2 to_away sat", 8, 0), ("neg_log", "u4f3", "s4f2 to_zero sat", 0, 7),
    ("grad_neg_log", "u4f3", "s4f2 sat", 0, -8), ("grad_neg_log", "u4f3", "s8f2 sat", 4, -8),
    ("exp", "s4f400", "u8f6 to_neg sat", -8, 63), ("exp", "s4f400", "u8f6 to_pos sat", 7, 65),
    ("exp", "s4f-16", "u8f6 to_pos sat", -8, 1), ("elu", "s4f60", "s32f80 to_neg sat", 7, 7 << 20),
])
def test_hard_values_are_rounded_right(name, x, y, code, entry):
    form, to = Format.parse(x), Cast.parse(y)
    exact = to_odd(name, code, form.frac, to.format.frac + 2, -1 << 40, 1 << 40)
    assert reference.cast(exact, to.format.frac + 2, to) == entry


@given(st.sampled_from(NAMES), formats((1, 6), (-2, 8)), casts((1, 12), (-3, 12), False))
@examples(60)
def test_the_engines_memory_is_the_definitions(name, form, to):
    form = Format(form.width, form.frac, form.signed and "neg_log" not in name)
    if to.overflow == Overflow.WRAP:
        to = Cast(to.format, to.rounding, Overflow.SAT)
    table = Table(form, to, name)
    assert engine.table_entries(table).tolist() == reference.table_entries(table)


@given(st.data(), formats((1, 6), (-2, 3)), formats((1, 32), (-9, 9)))
def test_a_table_of_codes_gives_its_codes(data, x, y):
    entries = data.draw(st.lists(codes(y), min_size=1 << x.width, max_size=1 << x.width))
    table = Table(x, Cast(y), codes=tuple(entries))
    every = range(x.lo, x.hi + 1)
    assert [reference.lookup(code, table) for code in every] == entries
    assert engine.lookup(list(every), table).tolist() == entries
    assert Table.parse(str(table)) == table


def test_lookups_keep_the_shape_and_take_the_smallest_dtype():
    table = Table.parse("{x: s4f2, y: s12f8 ties_even sat, function: tanh}")
    x = filled((2, 3, 4), table.x, 0).astype(np.int8)
    got = engine.lookup(x, table)
    assert (got.shape, got.dtype) == (x.shape, np.int16)
    assert got.ravel().tolist() == [reference.lookup(code, table) for code in x.ravel().tolist()]
    assert emu.lookup(np.zeros((0, 3), int), table).shape == (0, 3)


@given(st.data(), formats((1, 30), (-3, 9)), casts((1, 20), (-3, 9)), st.integers(0, 99))
@examples(50)
def test_errors_go_through_the_slope(data, form, to, seed):
    slope = Table(Format(4, 2), Cast.parse("s9f7 ties_even sat"), "grad_silu")
    error, x = filled((5,), form, seed), filled((5,), slope.x, seed + 1)
    one = codes(Format(to.rand_bits, 0, signed=False)) if to.rand_bits else st.none()
    rand = data.draw(st.lists(one, min_size=5, max_size=5))
    memory = reference.table_entries(slope)
    want = [oracle.cast(oracle.value_of(e, form) * oracle.value_of(memory[c + 8], slope.y.format),
                        to, r) for e, c, r in zip(error.tolist(), x.tolist(), rand, strict=True)]
    steps = zip(error.tolist(), x.tolist(), rand, strict=True)
    assert [reference.lookup_grad(e, form.frac, c, slope, to, r) for e, c, r in steps] == want
    got = engine.lookup_grad(error, form.frac, x, slope, to, rand if to.rand_bits else None)
    assert got.codes.tolist() == want
    assert got.outside == (~got.inside).sum()


def test_the_slope_of_a_table_is_its_derivative():
    table = Table.parse("{x: s8f4, y: s8f6 ties_even sat, function: gelu}")
    slope = table.gradient(Cast.parse("s9f7 ties_even sat"))
    assert str(slope) == "{x: s8f4, y: s9f7 ties_even sat, function: grad_gelu}"


@pytest.mark.parametrize("text", [
    "{x: s8f4, y: u8f8 ties_even sat, function: sigmoid}",
    "{x: u3f0, y: s4f0 to_neg wrap, codes: 0 1 2 3 -8 7 -1 0}",
])
def test_the_text_of_a_table_parses_back(text):
    table = Table.parse(text)
    assert str(table) == text
    assert Table.parse(str(table)) == table
    assert eval(repr(table), {"Table": Table}) == table


def test_codes_may_be_a_list_and_are_never_rounded():
    table = Table.parse({"x": "u1", "y": "s4 ties_even sat", "codes": [3, -8]})
    assert table == Table.parse("{x: u1, y: s4, codes: 3 -8}")


@pytest.mark.parametrize(("text", "message"), [
    ("{x: s8f4, y: u8f8 sat, function: sigmoyd}", "did you mean 'sigmoid'"),
    ("{x: s8f4, y: u8f8 sat}", "give one of them"),
    ("{x: u1, y: u8, function: exp, codes: 0 1}", "give one of them"),
    ("{x: s17, y: u8 sat, function: exp}", "table x s17f0: at most 16 bits"),
    ("{x: s8, y: s33 sat, function: exp}", "table y s33f0: at most 32 bits"),
    ("{x: s8f-14, y: s8 sat, function: exp}", r"magnitudes go up to 2\^21"),
    ("{x: s8, y: u8 stochastic4 sat, function: exp}", "use a deterministic rounding"),
    ("{x: u2, y: s4, codes: 1 2 3}", "table of 3 codes for x u2f0: needs 4, from code 0 to 3"),
    ("{x: u1, y: s4, codes: 1 8}", "table code 8: outside s4f0"),
    ("{x: u1, y: s4, codes: 1 0.5}", "need whole numbers"),
    ("{x: u1, codes: 1 0}", "'y' is missing"),
    ("{x: u1, y: s4, function: exp, z: 3}", "unknown table key 'z'"),
])
def test_a_bad_table_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Table.parse(text)


@pytest.mark.parametrize(("text", "message"), [
    ("{x: s8f4, y: u8f4 ties_even, function: exp}", "exp at code 45 is outside u8f4; write sat"),
    ("{x: s8f4, y: s8f4 ties_even sat, function: neg_log}", "no value below 0"),
])
def test_entries_without_a_code_are_refused(text, message):
    table = Table.parse(text)
    for entries in (reference.table_entries, engine.table_entries):
        with pytest.raises(ValueError, match=message):
            entries(table)


def test_a_table_of_codes_has_no_derivative():
    with pytest.raises(ValueError, match="give its table as codes"):
        IDENTITY.gradient(Cast.parse("s4"))


@pytest.mark.parametrize("lookup", [reference.lookup, lambda x, t: engine.lookup([x], t)])
def test_codes_outside_the_address_are_refused(lookup):
    with pytest.raises(ValueError, match=r"4.* outside s3f0, whose codes go from -4"):
        lookup(4, IDENTITY)


def test_products_beyond_int64_are_refused():
    to = Cast(Format(8))
    engine.lookup_grad([2**60 - 1], 0, [3], IDENTITY, to)
    with pytest.raises(ValueError, match="the product needs 64 bits, the limit is 63"):
        engine.lookup_grad([2**60], 0, [3], IDENTITY, to)
    with pytest.raises(ValueError, match="shapes differ"):
        engine.lookup_grad([1, 2], 0, [3], IDENTITY, to)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_and_slopes_are_torchs_within_a_float_tolerance(name):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    theirs = {"exp_neg": lambda x: torch.exp(-x), "neg_log": lambda x: -torch.log(x),
              "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh")}.get(
                  name, getattr(functional, name, None) or getattr(torch, name, None))
    form = input_format(name, 8, 4)
    where = inputs(name, form)
    x = torch.tensor(where, dtype=torch.float64).div(16).requires_grad_()
    y = theirs(x)
    y.sum().backward()
    for want, table in ((y.detach(), Table(form, Cast(Format(32, 16), overflow=1), name)),
                        (x.grad, Table(form, Cast(Format(32, 16), overflow=1), f"grad_{name}"))):
        got = engine.lookup(where, table) / 2**16
        tolerance = 2**-16 + 1e-9 * np.abs(want.numpy())
        inside = np.abs(want.numpy()) < 2**15 - 1
        assert (np.abs(got - want.numpy()) <= tolerance)[inside].all()
