"""The formula that proofs use equals the reference on ints, and means the same to a solver."""

import random
from itertools import product

import pytest

from emu.cosim.smt import Number, Script, Truth
from emu.cosim.solver import satisfiable
from emu.golden import formula
from emu.golden.cases import expected, from_text
from emu.golden.units import QuantizerSpec, mac_records, quantizer_records
from emu.number import Overflow, Rounding
from emu.reference import dot_steps, flag_unpack, sgd
from emu.reference import lfsr_draw as reference_draw
from emu.spec import MacSpec


def modes():
    return [f"{rounding.name.lower()}{'3' * (rounding == Rounding.STOCHASTIC)} "
            f"{overflow.name.lower()}" for rounding in Rounding for overflow in Overflow]


@pytest.mark.parametrize("text", ["s5f6 -> s3f0 {} align 1", "u4f5 -> s2f0 {}", "s4f3 -> u2f0 {}",
                                  "s1f2 -> s2f0 {}", "s3f1 -> s6f2 {}", "u1f1 -> u1f0 {}"])
def test_cast_equals_the_reference_for_every_input(text):
    for mode in modes():
        spec = QuantizerSpec.parse(text.format(mode))
        to, source = spec.cast, spec.source
        cases = list(product(range(source.lo, source.hi + 1), range(spec.max_shift + 2),
                             range(1 << to.rand_bits)))
        for (value, shift, rand), want in zip(cases, quantizer_records(spec, cases), strict=True):
            for other in Rounding:  # the mode may also come from a port
                same = other if other == to.rounding else None
                code, overflowed = formula.cast(
                    value << spec.pre_shift, formula.least(shift, spec.max_shift), to, rand, same)
                assert (code & (1 << to.format.width) - 1, int(overflowed)) == want[3:]


@pytest.mark.parametrize("text", ["s6f5 -> flag s3f1 {} align 1", "u5f4 -> flag s2f1 {}",
                                  "s4f3 -> flag s4f3 {} align 2"])
def test_flag_cast_equals_the_reference_for_every_input(text):
    for mode in modes():
        unit = from_text(text.format(mode))
        spec, to = unit.source, unit.source.cast
        cases = list(product(range(spec.source.lo, spec.source.hi + 1),
                             range(spec.coarse.max_shift + 2), range(1 << to.rand_bits)))
        for (value, shift, rand), want in zip(cases, expected(unit, cases), strict=True):
            code, overflowed = formula.flag_cast(
                value << spec.coarse.pre_shift, formula.least(shift, spec.coarse.max_shift), to,
                rand)
            assert (formula.flag_pack(code, to), code & (1 << to.format.width) - 1,
                    int(overflowed)) == want[3:]
            assert flag_unpack(want[3], to) == code


@pytest.mark.parametrize("text", [
    "{weight: s4f3 sat, momentum: s3f2 stochastic2 sat, grad: s4f3, lr: u1f0, mu: u1f1, "
    "direction: s5f3}",
    "{weight: s4f2 ties_away sat_sym, momentum: s3f1 ties_odd, grad: s3f3, lr: s2f1, mu: u1}",
    "{weight: u4f2 to_pos sat_zero, momentum: s3f2 wrap, grad: u3f2, lr: u2f1, mu: s2f1}",
])
def test_sgd_equals_the_reference_for_every_input(text):
    unit = from_text(text)
    spec, names = unit.source, ("weight", "momentum", "grad", "lr", "mu")
    forms = [getattr(spec, name).format for name in names]
    for codes in product(*(range(form.lo, form.hi + 1) for form in forms)):
        rand = sum(codes) % 4 if spec.momentum.rand_bits else 0
        record, = expected(unit, [(*codes, rand, 0)])
        found = formula.sgd(spec, dict(zip(names, codes, strict=True)), rand_momentum=rand)
        (weight, over), (momentum, lost) = found["weight"], found["momentum"]
        assert (weight, momentum) == sgd(*codes, spec, rand, 0)
        assert record[-2:] == (int(over), int(lost))


@pytest.mark.parametrize("text", [
    "{a: s3, b: s3, acc: s5 sat}", "{a: u2, b: s3, acc: s4 sat_sym}", "{a: s2, b: u2, acc: s6}",
    "{a: s3, b: s3, product: s3f-2 ties_even sat_zero, acc: s4f-2 sat_zero}",
    "{a: s3, b: u3, product: s9f2, acc: s6f2 sat}",
])
def test_mac_step_equals_the_reference_for_every_input(text):
    mac = MacSpec.parse(text)
    codes = [range(form.lo, form.hi + 1) for form in (mac.a, mac.b, mac.acc.format)]
    for a, b, base in product(*codes):
        assert formula.mac_step(mac, [a], [b], base) == next(dot_steps([a], [b], mac, base))


def test_mac_step_of_lanes_equals_the_reference():
    mac = MacSpec.parse("{a: s4, b: s4, product: s4f-2 ties_away sat, acc: s6f-2 sat, lanes: 4}")
    draw = random.Random(1)
    for _ in range(3000):
        a, b = ([draw.randint(-8, 7) for _ in range(4)] for _ in "ab")
        base = draw.randint(-32, 31)
        assert formula.mac_step(mac, a, b, base) == next(dot_steps(a, b, mac, base))
        assert len(list(mac_records(mac, a, b, base))) == 1


@pytest.mark.parametrize("text", [
    "{a: s4, b: s4, acc: s8 sat, lanes: 2}", "{a: s3, b: s4, acc: s7 sat, tile: 2, outer: s8 sat}",
    "{a: s4, b: u3, acc: s9 sat, lanes: 2, tile: 4, outer: s6f-3 ties_even sat_zero}",
    "{a: u3, b: u3, acc: u7, tile: 3, outer: u9f2 wrap}",
    "{a: s4, b: s4, acc: s8 sat, tile: 2, outer: s4f-4 ties_away sat, reload: true}",
    "{a: s4, b: s4, product: s5f-2 to_odd sat, acc: s6f-2 sat_zero, tile: 1, "
    "outer: s5f-3 ties_odd sat_sym, reload: true}",
])
def test_dot_steps_equals_the_reference(text):
    mac, draw = MacSpec.parse(text), random.Random(1)
    form, lanes = mac.result.format, mac.lanes
    for _ in range(2000):
        steps = draw.randint(1, 7)
        a, b = ([draw.choice((f.lo, f.hi, draw.randint(f.lo, f.hi))) for _ in range(steps * lanes)]
                for f in (mac.a, mac.b))
        bias = draw.choice((0, form.lo, form.hi, draw.randint(form.lo, form.hi)))
        pairs = [(a[i:i + lanes], b[i:i + lanes]) for i in range(0, len(a), lanes)]
        assert list(formula.dot_steps(mac, pairs, bias)) == list(dot_steps(a, b, mac, bias))


@pytest.mark.parametrize("bits", [1, 7, 32])
def test_lfsr_draw_equals_the_reference(bits):
    state = 0x12345678
    for _ in range(300):
        want = reference_draw(state, bits)
        assert formula.lfsr_draw(state, bits) == want
        state = want[0]


OPERATIONS = [
    lambda x, y: x + y, lambda x, y: x - y, lambda x, y: x * y, lambda x, y: 5 - x,
    lambda x, y: x << (y & 3), lambda x, y: x >> (y & 7), lambda x, y: 3 << (x & 7),
    lambda x, y: x & 5, lambda x, y: (x & 6) & (y & 3), lambda x, y: (x & 6) ^ (y & 3),
    formula.least, lambda x, y: formula.least(x, 2), lambda x, y: formula.total(x, [y, y, -3]),
    lambda x, y: formula.pick((x < y) | (x == 1), x, y),
    lambda x, y: formula.pick((x >= y) & (y > 0), 7, x),
    lambda x, y: formula.pick(x <= 1, x + y, -9),
]


@pytest.mark.parametrize("signs", list(product((False, True), repeat=2)))
def test_a_term_means_what_the_python_expression_means(signs):
    """Every operation on all pairs of 3-bit numbers, in one question: is one of them wrong?"""
    script, claims = Script(), []
    for bits in product(range(8), repeat=2):
        ints = [b - 8 * (signed and b >= 4) for b, signed in zip(bits, signs, strict=True)]
        terms = [script.number(f"#b{b:03b}", 3, s) for b, s in zip(bits, signs, strict=True)]
        for operation in OPERATIONS:
            want, got = operation(*ints), operation(*terms)
            assert (got if isinstance(got, int) else got.lo) <= want
            assert want <= (got if isinstance(got, int) else got.hi)
            if not isinstance(got, int):
                claims.append(got == want)
    assert len(claims) > 500 and all(isinstance(claim, Truth) for claim in claims)
    names = " ".join(claim.name for claim in claims)
    text = "\n".join(["(set-logic QF_BV)", *script.lines])
    asked = [f"{text}(assert (not (and {names})))", f"{text}(assert (and {names}))"]
    assert satisfiable(asked, "bitwuzla") == satisfiable(asked, "z3") == [False, True]


def test_bounds_decide_what_they_can():
    x = Number(Script(), 2, 5, "x")
    assert (x > 1, x < 6, x >= 6, x == 6, x <= 1) == (True, True, False, False, False)
    assert (x & 0, x - x > -4) == (0, True)
    with pytest.raises(TypeError, match="use pick"):
        bool(x > 3)
