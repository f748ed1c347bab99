"""What a MAC may compute instead of its spec, by one change.

By `emu.reference` where a spec can say it, and otherwise by a few lines that say the mistake:
products truncated before the sum, a fit that comes too late, another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

from emu.cosim.changes import (
    Case,
    Change,
    Told,
    bits_as,
    each,
    modes,
    other_sign,
    swapped,
    widths,
)
from emu.number import Cast, Format, Overflow
from emu.reference import dot_steps, fit, overflows, round_shift
from emu.spec import MacSpec


def mac_changes(mac: MacSpec) -> Iterator[Change]:
    """The likely ones first."""
    for words, other in _specs(mac):
        yield Change(words, partial(each, partial(_by_spec, mac, other)))
    yield Change("overflow tells of one step, not of all since the start",
                 partial(each, partial(_by_spec, mac, mac)), sticky=False)
    yield from _orders(mac)
    yield from _starts(mac)
    if mac.outer is None:
        yield from _sums(mac)


def _specs(mac: MacSpec) -> Iterator[tuple[str, MacSpec]]:
    """The specs beside this one, with what tells them apart."""
    changes = [{"acc": cast} for cast in modes(mac.acc, rounds=False)]
    if mac.outer is not None:
        changes += [{"outer": cast} for cast in modes(mac.outer)]
    if not mac.exact_product or mac.product.format.frac < 0:
        changes += [{"product": cast} for cast in modes(mac.product)]
    changes += [{"acc": cast} for cast in widths(mac.acc)]
    if mac.outer is not None:
        changes += [{"outer": cast} for cast in widths(mac.outer)]
        changes += [{"tile": mac.tile + by * mac.lanes} for by in (1, -1)]
        changes += [{"tile": 2 * mac.tile}, {"tile": mac.tile // 2}, {"reload": not mac.reload}]
    changes += [{side: other_sign(getattr(mac, side))} for side in "ab"]
    changes += [{"a": other_sign(mac.a), "b": other_sign(mac.b)}]
    exact = mac.product.format
    sizes = {exact.width - 1, exact.width + 1, exact.width - 2, mac.a.width, mac.b.width,
             mac.acc.format.width}
    changes += [{"product": Cast(Format(width, exact.frac, exact.signed), mac.product.rounding,
                                 mode)}
                for width in sorted(sizes, reverse=True) if 1 <= width <= 64
                for mode in (Overflow.WRAP, Overflow.SAT)]
    if mac.outer is None:
        changes += [{"product": mac.product.with_frac(frac), "acc": mac.acc.with_frac(frac)}
                    for frac in (exact.frac - 1, exact.frac + 1)]
    if mac.product.format.frac < 0:  # the cast that was normalised away may be a change too
        changes += [{"product": Cast(Format(64, exact.frac), mac.product.rounding)}]
    known = {mac}
    for change in changes:
        try:
            exact_again = {"product": None} if {"a", "b"} & change.keys() and \
                mac.exact_product and not exact.frac else {}
            other = replace(mac, **{**exact_again, **change})
        except ValueError:
            continue  # no hardware of this project is that
        if other not in known:
            known.add(other)
            yield "; ".join(swapped(name, getattr(other, name), getattr(mac, name))
                            for name in change), other


def _by_spec(mac: MacSpec, other: MacSpec, case: Case) -> Told:
    """The same wires into another MAC; where its steps are smaller, the last of each of ours."""
    a, b, bias = case
    a, b = [bits_as(x, other.a) for x in a], [bits_as(x, other.b) for x in b]
    form = other.result.format
    if other.outer is None and not form.lo <= bias <= form.hi:  # it is added as it is
        told = list(_steps(other, a, b, bias))
    else:
        told = list(dot_steps(a, b, other, bits_as(bias, form)))
    if other.lanes == mac.lanes:
        return told
    ends = [*range(mac.lanes - 1, len(a) - 1, mac.lanes), len(a) - 1]
    starts = [0, *(end + 1 for end in ends)]
    return [(told[end][0], any(over for _, over in told[start:end + 1]))
            for start, end in zip(starts, ends, strict=False)]


def _steps(mac: MacSpec, a: list[int], b: list[int], base: int) -> Iterator[tuple[int, bool]]:
    """The steps of one level, from a number that the accumulator may not hold."""
    for start in range(0, len(a), mac.lanes):
        total = base + sum(fit(round_shift(x * y, -mac.product.format.frac, mac.product),
                               mac.product)
                           for x, y in zip(a[start:start + mac.lanes], b[start:start + mac.lanes],
                                           strict=True))
        base = fit(total, mac.acc)
        yield base, overflows(total, mac.acc)


def _orders(mac: MacSpec) -> Iterator[Change]:
    lanes = mac.lanes
    if lanes > 1:
        if mac.outer is None:
            one = replace(mac, lanes=1)
            yield Change("the accumulator takes product by product, not all lanes at once",
                         partial(each, partial(_by_spec, mac, one)))
            yield Change("the accumulator takes product by product, the highest lane first",
                         partial(each, lambda case: _by_spec(mac, one, (
                             _lanes_reversed(case[0], lanes), _lanes_reversed(case[1], lanes),
                             case[2]))))
        yield Change("lane i of a meets lane lanes-1-i of b",
                     partial(each, lambda case: _by_spec(mac, mac, (
                         _whole(case[0], lanes), _lanes_reversed(_whole(case[1], lanes), lanes),
                         case[2]))))
    yield Change("the products come in reversed order",
                 partial(each, lambda case: _by_spec(mac, mac, (case[0][::-1], case[1][::-1],
                                                                 case[2]))))


def _whole(codes: Sequence[int], lanes: int) -> list[int]:
    """With the zeros of the lanes that the last step leaves."""
    return [*codes, *[0] * (-len(codes) % lanes)]


def _lanes_reversed(codes: Sequence[int], lanes: int) -> list[int]:
    return list(chain.from_iterable(codes[i:i + lanes][::-1]
                                    for i in range(0, len(codes), lanes)))


def _starts(mac: MacSpec) -> Iterator[Change]:
    """How a dot product may begin and end wrongly."""
    form, lanes = mac.result.format, mac.lanes

    def unbiased(case: Case) -> Told:
        return _by_spec(mac, mac, (*case[:2], 0))

    def late_bias(case: Case) -> Told:
        *told, (last, over) = unbiased(case)
        total = last + case[2]
        cast = mac.outer or mac.acc
        return [*told, (fit(total, cast), over or overflows(total, cast))]

    def not_restarted(cases: Sequence[Case], biased: bool) -> Iterator[Told]:
        before = 0
        for a, b, bias in cases:
            start = fit(before + biased * bias, replace(mac.outer or mac.acc,
                                                        overflow=Overflow.WRAP))
            told = _by_spec(mac, mac, (a, b, start))
            before = told[-1][0]
            yield told

    def first_lost(case: Case) -> Told:
        a, b, bias = case
        rest = _by_spec(mac, mac, (a[lanes:], b[lanes:], bias)) if len(a) > lanes else []
        return [(bits_as(bias, form), False), *rest]

    def last_lost(case: Case) -> Told:
        told = _by_spec(mac, mac, case)
        return [*told[:-1], told[-2] if len(told) > 1 else (case[2], False)]

    yield Change("the bias is ignored", partial(each, unbiased))
    yield Change("the bias is added after the last product", partial(each, late_bias))
    yield Change("a start does not clear the sum", partial(not_restarted, biased=False))
    yield Change("a start adds its bias to the old sum", partial(not_restarted, biased=True))
    yield Change("the products of the first step are lost", partial(each, first_lost))
    yield Change("the products of the last step are lost", partial(each, last_lost))


def _sums(mac: MacSpec) -> Iterator[Change]:
    """Other ways from the products to the sum, in one level."""
    product, acc, drop = mac.product, mac.acc, -mac.product.format.frac

    def summed(case: Case, step: Callable[[list[int], int], tuple[int, bool]]) -> Told:
        a, b, value = case
        told = []
        for start in range(0, len(a), mac.lanes):
            exact = [x * y for x, y in zip(a[start:start + mac.lanes], b[start:start + mac.lanes],
                                           strict=True)]
            value, over = step(exact, value)
            told.append((value, over))
        return told

    def fitted(total: int) -> tuple[int, bool]:
        return fit(total, acc), overflows(total, acc)

    def cast_product(x: int) -> int:
        return fit(round_shift(x, drop, product), product)

    yield Change("the sum is fitted where it is shown, not after each step", partial(
        each, lambda case: [fitted(total) for total, _ in summed(
            case, lambda exact, value: (value + sum(map(cast_product, exact)), False))]))
    if drop > 0:
        if mac.lanes > 1:
            yield Change("the sum of a step is rounded, not each product", partial(
                each, lambda case: summed(case, lambda exact, value: fitted(
                    value + round_shift(sum(exact), drop, product)))))
        yield Change("the products are added exactly, and what is shown is rounded", partial(
            each, lambda case: [fitted(round_shift(total, drop, product)) for total, _ in summed(
                (*case[:2], case[2] << drop), lambda exact, value: (value + sum(exact), False))]))
        yield Change("the magnitude of a product is shifted, then its sign is put back", partial(
            each, lambda case: summed(case, lambda exact, value: fitted(value + sum(
                (-1 if x < 0 else 1) * cast_product(abs(x)) for x in exact)))))
    if drop <= 0:
        for bits in range(1, min(product.format.width, 9)):
            for how, cut in (("", lambda x, n: x >> n << n),
                             (", towards zero", lambda x, n: (abs(x) >> n << n)
                              * (-1 if x < 0 else 1))):
                yield Change(f"each product loses its lowest {bits} bits before the sum{how}",
                             partial(each, partial(_cut, summed, fitted, partial(cut, n=bits),
                                                    cast_product)))


def _cut(summed, fitted, cut, cast_product, case: Case) -> Told:
    return summed(case, lambda exact, value: fitted(
        value + sum(cast_product(cut(x)) for x in exact)))
