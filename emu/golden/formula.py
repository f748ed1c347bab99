"""What each hardware unit computes in one step, without branches.

The same text runs on Python ints, where it computes, and on the terms of a solver
(`emu.cosim.smt`), where it builds the formula that a proof compares with the Verilog. Numbers are
exact integers of any size in both; a condition is a bool, or the solver's. Written from the tables
of roundings and overflows, and tested against `emu.reference`, with which it shares no code.
"""

from __future__ import annotations

from emu.kind import FlagCast
from emu.number import Cast, Overflow, Rounding
from emu.spec import MacSpec
from emu.update import UpdateSpec

LFSR_TAPS = (0, 1, 21, 31)  # the state bits that a bit shifted out inverts


def pick(condition, yes, no):
    """`yes` where the condition holds, else `no`."""
    if isinstance(condition, bool):
        return yes if condition else no
    return condition.pick(yes, no)


def least(x, y):
    """The lesser of two numbers."""
    if isinstance(x, int) and isinstance(y, int):
        return min(x, y)
    return x.least(y) if not isinstance(x, int) else y.least(x)


def total(first, terms: list):
    """The sum of numbers; a solver's are added in one width, as an adder tree does."""
    numbers = [first, *terms]
    if all(isinstance(x, int) for x in numbers):
        return sum(numbers)
    return next(x for x in numbers if not isinstance(x, int)).total(numbers)


def cast(x, n, to: Cast, rand=0, rounding=None):
    """(code of `to`, overflowed) of x / 2^n, n >= 0; `rounding` replaces the cast's own."""
    mode, whole = to.rounding if rounding is None else rounding, 1 << n
    floor, rest = x >> n, x & whole - 1
    negative, positive = x < 0, x >= 0
    odd, even = (floor & 1) == 1, (floor & 1) == 0
    lost, above, tie = rest > 0, rest + rest > whole, rest + rest == whole
    carry = rest + (rand << n >> to.rand_bits) >= whole
    up = ((mode == Rounding.TO_POS) & lost
          | (mode == Rounding.TO_ZERO) & lost & negative
          | (mode == Rounding.TO_AWAY) & lost & positive
          | (mode == Rounding.TO_ODD) & lost & even
          | (mode == Rounding.TIES_NEG) & above
          | (mode == Rounding.TIES_POS) & (above | tie)
          | (mode == Rounding.TIES_ZERO) & (above | tie & negative)
          | (mode == Rounding.TIES_AWAY) & (above | tie & positive)
          | (mode == Rounding.TIES_EVEN) & (above | tie & odd)
          | (mode == Rounding.TIES_ODD) & (above | tie & even)
          | (mode == Rounding.STOCHASTIC) & carry)
    return fit(floor + pick(up, 1, 0), to)


def fit(x, to: Cast):
    """(code of `to`, overflowed) of a whole number."""
    lo, hi = to.range
    over, under = x > hi, x < lo
    instead = {Overflow.WRAP: x,
               Overflow.SAT: pick(over, hi, lo),
               Overflow.SAT_SYM: pick(over, hi, lo),
               Overflow.SAT_ZERO: 0}[to.overflow]
    fitted = pick(over | under, instead, x)
    kept = fitted - to.format.lo & (1 << to.format.width) - 1  # the low bits, as wires hold them
    return kept + to.format.lo, over | under


def flag_cast(x, n, to: FlagCast, rand=0):
    """(integer of `to`, overflowed) of x / 2^n codes of its cast, n >= 0."""
    one = 1 << n
    is_coarse = (x >= one) | (x <= 0 - one)
    large, lost = cast(x, n, to.cast, rand)
    small, _ = cast(x << to.low, n, Cast(to.format, to.rounding, Overflow.SAT, to.rand_bits), rand)
    return pick(is_coarse, large << to.low, small), is_coarse & lost


def flag_pack(code, to: FlagCast):
    """The bits that hold an integer of `to`: the flag, and a code of its cast."""
    one, mask = 1 << to.low, (1 << to.cast.format.width) - 1
    flag = (code >= one) | (code <= -one)
    return pick(flag, (code >> to.low & mask) + mask + 1, code & mask)


def sgd(spec: UpdateSpec, codes: dict, kept=None, rand_momentum=0, rand_weight=0):
    """{"momentum", "weight"} to (new code, overflowed): an update without decay or Nesterov.

    `kept` is the new momentum where that is known otherwise.
    """
    def summed(name):
        frac, found = spec.sum_frac(name), 0
        for sign, *factors in spec.sums[name]:
            term = known[factors[0]] if len(factors) == 1 else known[factors[0]] * known[factors[1]]
            term = term << frac - spec.term_frac(factors)
            found = found + term if sign > 0 else found - term
        return found

    def ended(name, rand):
        to, found = getattr(spec, name), summed(name)
        drop = spec.sum_frac(name) - to.format.frac
        return cast(found << max(-drop, 0), max(drop, 0), to, rand)

    known = dict(codes)
    momentum = ended("momentum", rand_momentum)
    known |= {"direction": summed("momentum"), "momentum": momentum[0] if kept is None else kept}
    return {"momentum": momentum, "weight": ended("weight", rand_weight)}


def mac_step(mac: MacSpec, a: list, b: list, base):
    """(accumulator, overflowed) after one step of a MAC of one level: `lanes` codes a and b."""
    frac = mac.product.format.frac
    products = [cast(x * y << max(frac, 0), max(-frac, 0), mac.product)
                for x, y in zip(a, b, strict=True)]
    acc, overflowed = fit(total(base, [code for code, _ in products]), mac.acc)
    for _, lost in products:
        overflowed = overflowed | lost
    return acc, overflowed


def dot_steps(mac: MacSpec, steps: list[tuple[list, list]], bias):
    """(result register, overflowed) after every step of one whole dot product, of any levels."""
    acc = outer = bias
    drop = 0 if mac.outer is None else mac.acc.format.frac - mac.outer.format.frac
    for i, (a, b) in enumerate(steps, start=1):
        start, lost, spilled, late = acc, False, False, False
        if mac.outer is not None and (i - 1) * mac.lanes % mac.tile == 0:
            start, lost = fit(outer << drop, mac.acc) if mac.reload else (0, False)
        acc, overflowed = mac_step(mac, a, b, start)
        if mac.outer is not None and (i * mac.lanes % mac.tile == 0 or i == len(steps)):
            code, spilled = cast(acc << max(-drop, 0), max(drop, 0), mac.outer)
            outer, late = (code, False) if mac.reload else fit(total(outer, [code]), mac.outer)
        yield (acc if mac.outer is None else outer), overflowed | lost | spilled | late


def lfsr_draw(state, rand_bits: int):
    """(next state, operand) of the LFSR: the next bits shifted out, the first one lowest."""
    rand, mask = 0, sum(1 << tap for tap in LFSR_TAPS)
    for i in range(rand_bits):
        bit = state & 1
        rand, state = rand ^ (bit << i), (state >> 1) ^ pick(bit == 1, mask, 0)
    return state, rand
