"""Which situations the cases of a unit meet: every kind of rest, sign and outcome, at every shift.

A bin is one such situation. The bins that any input can reach each come with a case: for a cast
from the few values near a bound that could reach it, for a MAC from its products and its ends. A
test finds the same bins by trying every input.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import product

from emu.golden.units import QuantizerSpec, Unit
from emu.number import Cast, Overflow, Rounding
from emu.reference import fit, overflows, round_shift
from emu.spec import MacSpec

KINDS, SIGNS = ("exact", "below", "tie", "above"), ("negative", "positive")
MAX_PRODUCTS = 1 << 16  # pairs of operands tried for the bins of a product
Bin = tuple  # what is cast, dropped bits or kind of step, kind of the rest, sign, outcome
Case = tuple  # as the plans of `emu.golden.cases` make them


def bins(unit: Unit, cases: Iterable[Case]) -> Counter[Bin]:
    """How often the cases of a unit meet each bin; an LFSR and a MAC of two levels have none."""
    if unit.module == "quantizer":
        return Counter(_cast_bin(unit.source, case) for case in cases)
    if unit.module == "mac":
        return Counter(bin_ for case in cases for bin_ in _mac_bins(unit.source, case))
    return Counter()


def all_bins(unit: Unit) -> list[Bin]:
    """Every combination, whether or not it can be."""
    spec = unit.source
    if unit.module == "quantizer":
        dropped = range(max(spec.max_shift - spec.pre_shift, 0) + 1)
        return list(product(["cast"], dropped, KINDS, SIGNS, _outcomes(spec.cast)))
    if unit.module == "mac":
        n = max(-spec.product.format.frac, 0)
        return [*product(["product"], [n], KINDS, SIGNS, _outcomes(spec.product)),
                *product(["acc"], ["load", "add"], ["exact"], SIGNS, _outcomes(spec.acc))]
    return []


def reachable(unit: Unit) -> dict[Bin, Case]:
    """Each bin that some input reaches, with a case that does."""
    tried = {"quantizer": _cast_cases, "mac": _mac_cases}.get(unit.module, lambda _: ())
    found = {}
    for case in tried(unit.source):
        for bin_ in bins(unit, [case]):
            found.setdefault(bin_, case)
    return found


def why_not(unit: Unit, bin_: Bin) -> str:
    """Why no input reaches a bin."""
    what, n, kind, sign, outcome = bin_
    to = {"cast": lambda: unit.source.cast, "product": lambda: unit.source.product,
          "acc": lambda: unit.source.acc}[what]()
    if n == 0 and kind != "exact":
        return "nothing is dropped, so nothing is left over"
    if n == 1 and kind in ("below", "above"):
        return "one dropped bit is a half or nothing"
    if (sign, outcome) in (("negative", "high"), ("positive", "low")):
        return f"a {sign} value does not leave the range at its other end"
    if outcome == "in":
        return f"every {sign} value is outside {to.format}, or there is none"
    return f"every {sign} value is inside {to.format}, or there is none"


def _outcomes(to: Cast) -> tuple[str, ...]:
    return ("in", "wrap") if to.overflow == Overflow.WRAP else ("in", "low", "high")


def _outcome(rounded: int, to: Cast) -> str:
    if not overflows(rounded, to):
        return "in"
    if to.overflow == Overflow.WRAP:
        return "wrap"
    return "low" if rounded < to.range[0] else "high"


def _kind(x: int, n: int) -> str:
    """What is left over of x / 2^n."""
    whole = 1 << max(n, 0)
    rest = x % whole
    if rest == 0:
        return "exact"
    return "tie" if 2 * rest == whole else "above" if 2 * rest > whole else "below"


# The quantizer: a case is (value, shift, rand)


def _cast_bin(spec: QuantizerSpec, case: Case) -> Bin:
    value, shift, rand = case
    n = min(shift, spec.max_shift) - spec.pre_shift
    stochastic = spec.cast.rounding == Rounding.STOCHASTIC
    rounded = round_shift(value, n, spec.cast, rand if stochastic else None)
    return "cast", max(n, 0), _kind(value, n), SIGNS[value >= 0], _outcome(rounded, spec.cast)


def _cast_cases(spec: QuantizerSpec) -> Iterator[Case]:
    """The values around every bound, with every kind of rest.

    For one kind and sign of rest the outcome depends on the floor alone, and changes only where
    the floor, or the code after it, passes a bound; odd and even are both here.
    """
    source, to = spec.source, spec.cast
    rands = (0, (1 << to.rand_bits) - 1) if to.rand_bits else (0,)
    for shift in range(spec.max_shift + 1):
        n = shift - spec.pre_shift
        whole, half = 1 << max(n, 0), (1 << max(n, 0)) // 2
        ends = (source.lo // whole, source.hi // whole)
        bounds = [bound >> max(-n, 0) for bound in to.range]
        floors = {end + d for end in (0, *ends, *bounds) for d in (-2, -1, 0, 1, 2)}
        rests = sorted({rest for rest in (0, 1, half - 1, half, half + 1, whole - 1)
                        if 0 <= rest < whole})
        for floor in sorted(floors, key=lambda x: (abs(x), x)):
            for rest in rests:
                value = floor * whole + rest
                if source.lo <= value <= source.hi:
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
            yield ("product", max(n, 0), _kind(x * y, n), SIGNS[x * y >= 0],
                   _outcome(rounded, mac.product))
        step = "add" if start or bias is None else "load"
        total = acc + sum(terms)
        yield "acc", step, "exact", SIGNS[total >= 0], _outcome(total, mac.acc)
        acc = fit(total, mac.acc)


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
