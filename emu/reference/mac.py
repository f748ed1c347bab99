"""The MAC: one accumulator, step by step."""

from __future__ import annotations

from collections.abc import Iterator

from emu.reference.casts import fit, overflows, round_shift
from emu.spec import MacSpec


def dot_steps(a: list[int], b: list[int], mac: MacSpec, bias: int = 0
              ) -> Iterator[tuple[int, bool]]:
    """Accumulate sum(a_k * b_k), yielding (result register, overflowed) after every step.

    The result register is acc, or outer where the MAC has two levels. A step overflows when any
    value fitted in it was out of range. Raises ValueError for codes outside their formats.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} operands a and {len(b)} operands b: a MAC takes pairs")
    _check("a", a, mac.a)
    _check("b", b, mac.b)
    rounded = [round_shift(x * y, -mac.product.format.frac, mac.product)
               for x, y in zip(a, b, strict=True)]
    return accumulate([fit(p, mac.product) for p in rounded], mac, bias,
                      [overflows(p, mac.product) for p in rounded])


def accumulate(terms: list[int], mac: MacSpec, bias: int, overflowed: list[bool]
               ) -> Iterator[tuple[int, bool]]:
    """What `dot_steps` yields, for terms as the adder tree takes them."""
    _check("bias", [bias], mac.result.format)
    acc = outer = bias
    for start in range(0, len(terms), mac.lanes):
        lost = False
        if mac.outer is not None and start % mac.tile == 0:
            zeros = mac.acc.format.frac - mac.outer.format.frac
            acc = outer << zeros if mac.reload else 0
            lost, acc = overflows(acc, mac.acc), fit(acc, mac.acc)
        stop = min(start + mac.lanes, len(terms))
        total = acc + sum(terms[start:stop])
        lost |= any(overflowed[start:stop]) or overflows(total, mac.acc)
        acc = fit(total, mac.acc)
        if mac.outer is not None and (stop % mac.tile == 0 or stop == len(terms)):
            spilled = round_shift(acc, mac.acc.format.frac - mac.outer.format.frac, mac.outer)
            total = spilled if mac.reload else outer + fit(spilled, mac.outer)
            lost |= overflows(spilled, mac.outer) or overflows(total, mac.outer)
            outer = fit(total, mac.outer)
        yield (acc if mac.outer is None else outer), lost


def dot(a: list[int], b: list[int], mac: MacSpec, bias: int = 0) -> int:
    """sum(a_k * b_k) + bias as the MAC computes it; `bias` is a code of `mac.result.format`.

    >>> mac = MacSpec.parse("{a: s8, b: s8, acc: s8 sat}")
    >>> dot([100, 100, -100], [1, 1, 1], mac), dot([100, -100, 100], [1, 1, 1], mac)
    (27, 100)
    """
    result = bias
    for result, _ in dot_steps(a, b, mac, bias):  # noqa: B007
        pass
    _check("bias", [bias], mac.result.format)
    return result


def _check(name: str, codes: list[int], form) -> None:
    for code in codes:
        if not form.lo <= code <= form.hi:
            raise ValueError(f"{name} {code}: outside {form}, whose codes go from {form.lo} to "
                             f"{form.hi}; cast it first")
