"""The account of one dot product and of one cast, restated on fractions tile by tile."""

from fractions import Fraction
from itertools import accumulate, product

import oracle
import pytest
from engine_cases import filled
from hypothesis import given
from hypothesis import strategies as st
from strategies import casts, codes, examples, macs

from emu import Cast, Format, MacSpec, Overflow, reference

S8 = {"a": "s8", "b": "s8"}
ONES = [1] * 3


@pytest.mark.parametrize(("acc", "row", "transient", "persistent", "steps"), [
    ("s8 sat", [100, 27, 0], False, False, 0),
    ("s8 sat", [100, 28, -1], True, False, 1),  # 128 left the range, 127 is the sum
    ("s8 sat", [100, 100, -100], True, False, 1),
    ("s8 sat", [100, 100, 100], False, True, 2),
    ("s8 sat", [100, -100, 127], False, False, 0),
    ("s8 sat", [-100, -100, 100], True, False, 1),
    ("s8 sat_sym", [-100, -28, 0], False, True, 1),  # -127, to which -128 saturates, stays
    ("s8 sat_zero", [100, 100, -100], True, False, 1),  # 200 becomes 0, and -100 fits
    ("s8 wrap", [100, 100, -100], True, False, 2),  # 200 is -56, then -156 is 100
    ("s8 wrap", [100, 100, 100], False, True, 1),  # 200 wraps to -56, to which 100 may be added
    ("u8 sat", [-1, 1, 0], True, False, 1),
    ("u8 sat", [-1, 0, 0], False, True, 1),
])
def test_an_overflow_is_transient_if_the_exact_sum_fits(acc, row, transient, persistent, steps):
    found = reference.watch_dot(row, ONES, MacSpec.parse({**S8, "acc": acc}))
    assert (found.transient, found.persistent) == (transient, persistent)
    assert (found.steps, found.overflowing_steps, found.acc.overflows) == (3, steps, steps)


def test_the_account_of_a_saturating_sum():
    found = reference.watch_dot([100, 100, -50], ONES, MacSpec.parse({**S8, "acc": "s8 sat"}), 3)
    assert found == (3, 1, False, True, None, (3, 1, False, True, 0, 203, 0, 203), None, None,
                     ("acc", 1, 103, 203, 203, 127, 203, False))


def test_the_account_of_rounded_products():
    mac = MacSpec.parse("{a: s8, b: s8, product: s4f-2 ties_even sat, acc: s8f-2 sat}")
    found = reference.watch_dot([5, 6, 100, -3], [1] * 4, mac)
    # 1.25 to 1, 1.5 to 2, 25 to 7, -0.75 to -1: the rounding of 25, which is out, is no error.
    assert found.product == (4, 1, Fraction(-3, 4), 25, Fraction(-1, 4) + Fraction(1, 2)
                             - Fraction(1, 4))
    assert (found.transient, found.persistent, found.overflowing_steps) == (False, True, 1)
    assert found.first == ("product", 2, 3, 25, 25, 7, 25, True)


def test_the_account_of_two_levels():
    mac = MacSpec.parse("{a: s8, b: s8, acc: s8 sat, tile: 2, outer: s7f-1 sat}")
    found = reference.watch_dot([100, 100, -100, -1, 41, 0], [1] * 6, mac, 60)
    # acc holds 127 (of 200), -101 and 41 at the end of its tiles; half of that, to_neg, goes to
    # outer: 60 + 63 is 63, then 12, then 32. Without limits: 60, 123, 72, 92.
    assert found.acc == (6, 1, False, True, -101, 200, -101, 200)
    assert found.spill == (3, 0, Fraction(-101, 2), Fraction(127, 2), Fraction(-3, 2))
    assert found.outer == (3, 1, False, True, 0, 123, 0, 123)


def test_a_reload_may_leave_the_accumulator():
    mac = MacSpec.parse("{a: s8, b: s8, acc: s6 sat, tile: 1, outer: s6f-1 sat, reload: true}")
    found = reference.watch_dot([2, -9], [1, 1], mac, 20)
    # 40 does not fit acc, which holds 31, then 33: 31 again, and 15 in outer. 30 - 9 is 21, 10.
    assert found.acc == (4, 2, False, True, 0, 40, 0, 42)
    assert found.spill == (2, 0, 0, Fraction(31, 2), -1)
    assert (found.outer, found.steps, found.overflowing_steps) == (None, 2, 1)
    assert found.first == ("acc", 0, 0, 40, 40, 31, 40, False)



@pytest.mark.parametrize("overflow", Overflow)
@pytest.mark.parametrize(("length", "form", "every"), [(1, "s4", 1), (2, "s3", 7), (3, "s2", 7),
                                                       (4, "s2", 151)])
def test_every_sum_is_classed_by_its_exact_prefixes(length, form, every, overflow):
    a = Format.parse(form)
    rows = list(product(range(a.lo, a.hi + 1), repeat=length))
    for lanes, bias in product(range(1, length + 1), (0, 2)):
        mac = MacSpec(a, a, Cast(Format(3), 0, overflow), lanes=lanes)
        lo, hi = oracle.limits(mac.acc)
        for x, y in product(rows, rows[::every]):
            terms = [p * q for p, q in zip(x, y, strict=True)]
            sums = list(accumulate(map(sum, oracle.chunks(terms, lanes)), initial=bias))
            out = [not lo <= value <= hi for value in sums]
            got = reference.watch_dot(x, y, mac, bias)
            assert (got.persistent, got.transient) == (out[-1], any(out) and not out[-1])
            assert (got.acc.exact_low, got.acc.exact_high) == (min(0, *sums), max(0, *sums))
            steps = [bad for _, bad in reference.dot_steps(x, y, mac, bias)]
            assert got.overflowing_steps == got.acc.overflows == sum(steps)
            assert got.first is None if True not in steps else (
                got.first.step == steps.index(True) == out.index(True) - 1)


class Seen(oracle.Register):
    """A register that keeps, in its own steps, what it met and would hold without limits."""

    def __init__(self, to):
        super().__init__(to)
        self.given, self.whole, self.exact, self.without = [], [], [], Fraction(0)

    def put(self, value, anew=False):
        """Load a value; `anew` forgets what the register held."""
        units = oracle.power_of_two(self.to.format.frac)
        self.given.append(value * units)
        self.whole.append(oracle.whole(value, self.to))
        self.without = value if anew else self.without + value - self.value
        self.exact.append(self.without * units)
        return self.load(value)

    def out(self, number):
        """Whether a number of its steps is outside its range."""
        lo, hi = oracle.limits(self.to)
        return not lo <= number <= hi

    def as_cast(self):
        """Values, overflows, extremes of what came in, and the error of what was in range."""
        errors = [w - x for x, w in zip(self.given, self.whole, strict=True) if not self.out(w)]
        return (len(self.given), self.events, min([0, *self.given]), max([0, *self.given]),
                sum(errors))

    def as_register(self, handed):
        """Values, overflows, transient, persistent, extremes met, extremes without limits."""
        gone = any(map(self.out, handed))
        return (len(self.given), self.events, self.events > 0 and not gone, gone,
                min([0, *self.whole]), max([0, *self.whole]),
                min([0, *self.exact]), max([0, *self.exact]))


def watched(a, b, mac, bias):
    """(product, acc, spill, outer) of `watch_dot`, on real values, tile by tile."""
    two = mac.outer is not None
    by, acc, to = Seen(mac.product), Seen(mac.acc), Seen(mac.result)
    outer = Seen(mac.result) if two else acc
    outer.value = outer.without = oracle.value_of(bias, outer.to.format)
    outer.whole, outer.exact, full = [bias], [bias], []
    for tile in oracle.chunks(list(zip(a, b, strict=True)), mac.tile or max(len(a), 1)):
        if two:
            acc.put(outer.value if mac.reload else Fraction(0), anew=True)
        for step in oracle.chunks(tile, mac.lanes):
            acc.put(acc.value + sum(by.put(Fraction(x) * y, anew=True) for x, y in step))
        full.append(acc.exact[-1])
        if two:
            spilled = to.put(acc.value, anew=True)
            outer.put(spilled if mac.reload else outer.value + spilled, anew=mac.reload)
    return (by.as_cast(), acc.as_register(full), to.as_cast(),
            outer.as_register(outer.exact[-1:]))


def counted(account, values):
    """An account whose number of values is known; the oracle also puts what is loaded."""
    return account and (values, *account[1:])


WATCHED = (macs((1, 6), (1, 12), (2, 9), (-6, 6), lanes=4)
           | macs((12, 32), (16, 64), (24, 62), (-8, 8), lanes=3))


def sums(mac):
    """Some (a, b, mac, bias) whose operands are often at their bounds."""
    for seed, length in enumerate((0, 1, 2, 3, 5, 8, 13)):
        a, b = (filled((length,), form, seed + i).tolist() for i, form in enumerate((mac.a, mac.b)))
        yield a, b, mac, int(filled((1,), mac.result.format, seed + 2)[0])


@examples(60)
@given(WATCHED)
def test_every_account_agrees(mac):
    for terms in sums(mac):
        got, length = reference.watch_dot(*terms), len(terms[0])
        product_, acc, spill, outer = watched(*terms)
        steps, tiles = -(-length // mac.lanes), -(-length // (mac.tile or 1))
        assert got.product == (None if mac.exact_product else product_)
        assert got.acc == counted(acc, steps + tiles * mac.reload)
        assert got.spill == (spill if mac.outer else None)
        assert got.outer == (counted(outer, tiles) if mac.outer and not mac.reload else None)


@examples(60)
@given(WATCHED)
def test_the_verdict_follows_from_the_stages(mac):
    for terms in sums(mac):
        got = reference.watch_dot(*terms)
        steps = [bad for _, bad in reference.dot_steps(*terms)]
        assert (got.steps, got.overflowing_steps) == (len(steps), sum(steps))
        assert got.persistent == (any(r.persistent for r in (got.acc, got.outer) if r)
                                  or any(c.overflows for c in (got.product, got.spill) if c))
        assert got.transient == (any(steps) and not got.persistent)
        assert got.first is None or got.first.step == steps.index(True)
        assert (got.first is None) == (not any(steps))


ROUNDED = "{a: s8, b: s8, product: s4 sat, acc: s5 sat}"
TILED = "{a: s8, b: s8, acc: s5 sat, tile: 2, outer: s4 sat}"


@pytest.mark.parametrize(("mac", "row", "first"), [
    (ROUNDED, [1, 9, 9], ("product", 1, 1, 9, 9, 7, 9, True)),
    (ROUNDED, [7, 7, 7], ("acc", 2, 14, 21, 21, 15, 21, True)),
    (TILED, [9, 9, 0], ("acc", 1, 9, 18, 18, 15, 18, True)),
    (TILED, [5, 5, -3], ("spill", 1, 0, 10, 10, 7, 10, True)),
    (TILED, [3, 3, 3], ("outer", 2, 6, 9, 9, 7, 9, True)),
])
def test_the_first_overflow_is_the_first_in_the_data_flow(mac, row, first):
    assert reference.watch_dot(row, ONES, MacSpec.parse(mac)).first == first


def unlimited(a, b, mac, bias):
    """The result of a MAC whose casts round and whose formats have no limits, in result steps."""
    def put(value, to):
        return oracle.value_of(oracle.whole(value, to), to.format)

    outer = oracle.value_of(bias, mac.result.format)
    for tile in oracle.chunks(list(zip(a, b, strict=True)), mac.tile or max(len(a), 1)):
        products = sum(put(Fraction(x) * y, mac.product) for x, y in tile)
        if mac.outer is None:
            outer += products
        else:
            outer = (put(outer + products, mac.outer) if mac.reload
                     else outer + put(products, mac.outer))
    return outer * oracle.power_of_two(mac.result.format.frac)


def wrapping(mac):
    """The same MAC, except that everything wraps."""
    def wrap(to):
        return to and Cast(to.format, to.rounding, Overflow.WRAP)

    return MacSpec(mac.a, mac.b, wrap(mac.acc), wrap(mac.product), mac.lanes, mac.block, mac.tile,
                   wrap(mac.outer), mac.reload)


@examples(60)
@given(WATCHED.map(wrapping))
def test_what_wraps_loses_nothing_unless_persistently(mac):
    for terms in sums(mac):
        if not reference.watch_dot(*terms).persistent:
            assert reference.dot(*terms) == unlimited(*terms)


@examples(200)
@given(st.data(), casts((1, 12), (-6, 6)), st.integers(-2000, 2000), st.integers(-8, 12))
def test_every_cast_is_accounted_for(data, to, x, frac):
    rand = data.draw(codes(Format(to.rand_bits, 0, False))) if to.rand_bits else None
    seen = oracle.whole(oracle.value_of(x, Format(64, frac)), to, rand)
    units = oracle.value_of(x, Format(64, frac)) * oracle.power_of_two(to.format.frac)
    lo, hi = oracle.limits(to)
    want = (1, not lo <= seen <= hi, min(0, units), max(0, units),
            seen - units if lo <= seen <= hi else 0)
    assert reference.watch_cast(x, frac, to, rand) == want


@examples(100)
@given(casts((1, 12), (-6, 6), stochastic=False), st.integers(-2000, 2000), st.integers(1, 30),
       st.integers(-8, 12))
def test_every_division_is_accounted_for(to, x, divisor, frac):
    units = (oracle.value_of(x, Format(64, frac)) / divisor
             * oracle.power_of_two(to.format.frac))
    seen = oracle.rounded(units, to.rounding.name)
    lo, hi = oracle.limits(to)
    want = (1, not lo <= seen <= hi, min(0, units), max(0, units),
            seen - units if lo <= seen <= hi else 0)
    assert reference.watch_divide(x, divisor, frac, to) == want
