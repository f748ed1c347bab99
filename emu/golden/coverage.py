"""Which situations the cases of a unit meet: every kind of rest, sign and outcome, at every shift.

A bin is one such situation. The bins that any input can reach each come with a case: for a cast
from the few values near a bound that could reach it, for a MAC from its products and its ends. A
test finds the same bins by trying every input.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import product

from emu.golden.flagged import all_flag_bins, flag_aimed, flag_bins
from emu.golden.situations import KINDS, SIGNS, kind, near, outcome, outcomes
from emu.golden.units import QuantizerSpec, Unit
from emu.golden.update import all_update_bins, update_aimed, update_bins
from emu.number import Rounding
from emu.reference import fit, round_shift
from emu.spec import MacSpec

MAX_PRODUCTS = 1 << 16  # pairs of operands tried for the bins of a product
Bin = tuple  # what is cast, dropped bits or kind of step, kind of the rest, sign, outcome
Case = tuple  # as the plans of `emu.golden.cases` make them


def bins(unit: Unit, cases: Iterable[Case]) -> Counter[Bin]:
    """How often the cases of a unit meet each bin; an LFSR and a MAC of two levels have none."""
    if unit.module not in _UNITS:
        return Counter()
    met, _, _ = _UNITS[unit.module]
    return Counter(bin_ for case in cases for bin_ in met(unit.source, case))


def all_bins(unit: Unit) -> list[Bin]:
    """Every combination, whether or not it can be."""
    if unit.module not in _UNITS:
        return []
    _, every, _ = _UNITS[unit.module]
    return every(unit.source)


def reachable(unit: Unit) -> dict[Bin, Case]:
    """Each bin that some input reaches, with a case that does."""
    if unit.module not in _UNITS:
        return {}
    _, _, tried = _UNITS[unit.module]
    found = {}
    for case in tried(unit.source):
        for bin_ in bins(unit, [case]):
            found.setdefault(bin_, case)
    return found


def why_not(unit: Unit, bin_: Bin) -> str:
    """Why no input reaches a bin."""
    what, n, left, sign, became = bin_
    to = unit.source.coarse.cast if what == "coarse" else getattr(unit.source, what)
    if n == 0 and left != "exact":
        return "nothing is dropped, so nothing is left over"
    if n == 1 and left in ("below", "above"):
        return "one dropped bit is a half or nothing"
    if (sign, became) in (("negative", "high"), ("positive", "low")):
        return f"a {sign} value does not leave the range at its other end"
    if became == "in":
        return f"every {sign} value is outside {to.format}, or there is none"
    return f"every {sign} value is inside {to.format}, or there is none"


# The quantizer: a case is (value, shift, rand)


def _cast_bins(spec: QuantizerSpec, case: Case) -> Iterator[Bin]:
    value, shift, rand = case
    n = min(shift, spec.max_shift) - spec.pre_shift
    stochastic = spec.cast.rounding == Rounding.STOCHASTIC
    rounded = round_shift(value, n, spec.cast, rand if stochastic else None)
    yield "cast", max(n, 0), kind(value, n), SIGNS[value >= 0], outcome(rounded, spec.cast)


def _all_cast_bins(spec: QuantizerSpec) -> list[Bin]:
    dropped = range(max(spec.max_shift - spec.pre_shift, 0) + 1)
    return list(product(["cast"], dropped, KINDS, SIGNS, outcomes(spec.cast)))


def _cast_cases(spec: QuantizerSpec) -> Iterator[Case]:
    """The values around every bound, with every kind of rest."""
    source, to = spec.source, spec.cast
    rands = (0, (1 << to.rand_bits) - 1) if to.rand_bits else (0,)
    for shift in range(spec.max_shift + 1):
        for value in near(source.lo, source.hi, shift - spec.pre_shift, to):
            yield from ((value, shift, rand) for rand in rands)


# The MAC: a case is (operands a, operands b, bias)


def _mac_bins(mac: MacSpec, case: Case) -> Iterator[Bin]:
    a, b, bias = case
    n, acc = -mac.product.format.frac, bias or 0
    for start in range(0, len(a), mac.lanes):
        terms = []
        for x, y in zip(a[start:start + mac.lanes], b[start:start + mac.lanes], strict=True):
            rounded = round_shift(x * y, n, mac.product)
            terms.append(fit(rounded, mac.product))
            yield ("product", max(n, 0), kind(x * y, n), SIGNS[x * y >= 0],
                   outcome(rounded, mac.product))
        step = "add" if start or bias is None else "load"
        total = acc + sum(terms)
        yield "acc", step, "exact", SIGNS[total >= 0], outcome(total, mac.acc)
        acc = fit(total, mac.acc)


def _all_mac_bins(mac: MacSpec) -> list[Bin]:
    n = max(-mac.product.format.frac, 0)
    return [*product(["product"], [n], KINDS, SIGNS, outcomes(mac.product)),
            *product(["acc"], ["load", "add"], ["exact"], SIGNS, outcomes(mac.acc))]


def _mac_cases(mac: MacSpec) -> Iterator[Case]:
    """Every product of small operands, or the ends of large ones; then the ends of the sum."""
    operands = [range(form.lo, form.hi + 1) for form in (mac.a, mac.b)]
    if mac.exact_product or len(operands[0]) * len(operands[1]) > MAX_PRODUCTS:
        operands = [sorted({form.lo, 0, min(1, form.hi), form.hi}) for form in (mac.a, mac.b)]
    pairs = list(product(*operands))
    yield from (([x], [y], 0) for x, y in pairs)
    terms = {fit(round_shift(x * y, -mac.product.format.frac, mac.product), mac.product): (x, y)
             for x, y in pairs}
    form, lanes = mac.acc.format, mac.lanes
    for x, y in ((0, 0), terms[min(terms)], terms[max(terms)]):
        for bias in sorted({form.lo, form.lo + 1, 0, form.hi - 1, form.hi}):
            yield [x] * lanes, [y] * lanes, bias
            yield [0] * lanes + [x] * lanes, [0] * lanes + [y] * lanes, bias


# What of each unit's case can be told, all that could be, and cases that reach what can be.
_UNITS = {
    "quantizer": (_cast_bins, _all_cast_bins, _cast_cases),
    "mac": (_mac_bins, _all_mac_bins, _mac_cases),
    "flag_quantizer": (flag_bins, all_flag_bins, flag_aimed),
    "sgd_update": (update_bins, all_update_bins, update_aimed),
}
