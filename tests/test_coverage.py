"""The vectors meet every situation that an input can reach, and no bin is lost or invented."""

from collections import Counter
from itertools import product

import pytest

from emu.golden.cases import classes, coverage, from_text, standard
from emu.golden.coverage import all_bins, bins, reachable, why_not
from emu.number import Overflow, Rounding


def test_the_standard_vectors_meet_every_reachable_bin():
    for unit in standard():
        found = coverage(unit, 1)
        assert found.met.keys() == found.reachable, unit.spec
        assert found.reachable | found.unreachable.keys() == set(all_bins(unit))
        assert unit.module in ("lfsr", "mac_tiled") or len(found.reachable) >= 2


@pytest.mark.parametrize("text", ["s6f5 -> s3f0 {}", "u5f4 -> s2f0 {}", "s5f4 -> u2f0 {} align 1",
                                  "s3f1 -> s6f2 {}", "s1f1 -> u1f0 {}"])
def test_reachable_cast_bins_are_those_of_every_input(text):
    for rounding, overflow in product(Rounding, Overflow):
        bits = "3" * (rounding == Rounding.STOCHASTIC)
        unit = from_text(text.format(f"{rounding.name.lower()}{bits} {overflow.name.lower()}"))
        spec = unit.source
        every = product(range(spec.source.lo, spec.source.hi + 1), range(spec.max_shift + 2),
                        range(1 << spec.cast.rand_bits))
        assert set(bins(unit, every)) == set(reachable(unit))


@pytest.mark.parametrize("text", [
    "{a: s3, b: s3, acc: s4 sat}", "{a: u2, b: s3, acc: s7 sat_sym}", "{a: u2, b: u2, acc: u5}",
    "{a: s3, b: s3, product: s3f-2 ties_even sat, acc: s4f-2 sat_zero}",
    "{a: s3, b: u2, product: s2f-1 to_pos sat_zero, acc: s9f-1, lanes: 2}",
])
def test_reachable_mac_bins_are_those_of_every_step(text):
    unit = from_text(text)
    mac, found = unit.source, Counter()
    codes = [range(form.lo, form.hi + 1) for form in (mac.a, mac.b)]
    pairs = list(product(*codes))
    form = mac.acc.format
    biases = {form.lo, form.lo + 1, -1, 0, 1, form.hi - 1, form.hi}
    for x, y in pairs:
        for bias in (b for b in biases if form.lo <= b <= form.hi):
            found += bins(unit, [([x] * mac.lanes, [y] * mac.lanes, bias),
                                 ([0] * mac.lanes + [x] * mac.lanes,
                                  [0] * mac.lanes + [y] * mac.lanes, bias)])
    assert set(found) == set(reachable(unit))


@pytest.mark.parametrize("text", [
    "s6f4 -> flag s3f2 ties_even sat", "u6f5 -> flag s2f1 to_pos sat_sym align 2",
    "s5f6 -> flag s3f2 stochastic2 wrap", "s4f1 -> flag s4f3 ties_odd sat_zero align 1",
])
def test_reachable_flag_bins_are_those_of_every_input(text):
    unit = from_text(text)
    spec = unit.source
    every = product(range(spec.source.lo, spec.source.hi + 1), range(spec.coarse.max_shift + 2),
                    range(1 << spec.cast.rand_bits))
    assert set(bins(unit, every)) == set(reachable(unit))


@pytest.mark.parametrize("text", [
    "{weight: s5f4 sat, momentum: s3f2 ties_even sat, grad: s4f3, lr: u2f1, mu: u1f1, "
    "direction: s5f3}",
    "{weight: s4f2 stochastic2 sat, momentum: s3f1 ties_odd sat_sym, grad: s3f3, lr: s2f1, mu: u1}",
    "{weight: u4f2 to_pos sat_zero, momentum: s3f2 wrap, grad: u3f2, lr: u2f1, mu: s2f1}",
])
def test_reachable_update_bins_are_those_of_every_input(text):
    unit = from_text(text)
    spec = unit.source
    forms = [getattr(spec, name).format for name in ("weight", "momentum", "grad", "lr", "mu")]
    every = product(*(range(form.lo, form.hi + 1) for form in forms),
                    range(1 << spec.momentum.rand_bits), range(1 << spec.weight.rand_bits))
    assert set(bins(unit, every)) == set(reachable(unit))


def test_a_thinner_plan_would_miss_bins():
    unit = from_text("s12f14 -> s5f0 ties_even sat")
    by_class = dict(classes(unit, 1))
    added = by_class.pop("bins")
    met = bins(unit, [case for cases in by_class.values() for case in cases])
    assert added and len(met) + len(added) == len(reachable(unit))


def test_every_unreachable_bin_has_its_reason():
    unit = from_text("u4f1 -> s2f0 ties_even sat")
    reasons = {why_not(unit, bin_) for bin_ in all_bins(unit) if bin_ not in reachable(unit)}
    assert reasons == {
        "nothing is dropped, so nothing is left over", "one dropped bit is a half or nothing",
        "a negative value does not leave the range at its other end",
        "a positive value does not leave the range at its other end",
        "every negative value is inside s2f0, or there is none",
        "every negative value is outside s2f0, or there is none"}
