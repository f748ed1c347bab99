"""The weight update as vectors see it: hw/rtl/sgd_update.v, its records, cases and situations.

A case is (weight, momentum, gradient, lr, mu, random operand of the momentum, of the weight).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import product
from math import prod
from random import Random

from emu.golden.situations import KINDS, SIGNS, kind, near, outcome, outcomes
from emu.golden.units import MAX_SHIFT, Field, Record, Unit, form_field
from emu.number import Format, Rounding
from emu.reference import overflows, round_shift, sgd
from emu.update import UpdateSpec

OPERANDS = ("weight", "momentum", "grad", "lr", "mu")
SUMS = ("momentum", "weight")  # the casts, in the order of their sums
Case = tuple[int, ...]


def update_parameters(spec: UpdateSpec) -> dict[str, int]:
    """The Verilog parameters of hw/rtl/sgd_update.v.

    Raises ValueError for what it has not: weight decay and Nesterov momentum. Limits of a gradient
    (clip, norm) come before it.
    """
    if absent := _absent(spec):
        raise ValueError(f"update {absent} {getattr(spec, absent)}: sgd_update.v has none; leave "
                         "it out, or check its sums and casts one by one, on mac and quantizer")
    found = {}
    for short, name in (("W", "weight"), ("M", "momentum"), ("G", "grad"), ("LR", "lr"),
                        ("MU", "mu")):
        form = getattr(spec, name).format
        found |= {f"{short}_WIDTH": form.width, f"{short}_SIGNED": int(form.signed)}
    ups = {factors[0]: spec.sum_frac(name) - spec.term_frac(factors)
           for name in SUMS for _, *factors in spec.sums[name]}
    found |= {"G_UP": ups["grad"], "MU_UP": ups["mu"], "W_UP": ups["weight"], "LR_UP": ups["lr"],
              "EXACT": int(spec.direction is not None),
              "D_WIDTH": (spec.direction or spec.momentum).format.width}
    for short, name in (("M", "momentum"), ("W", "weight")):
        to, drop = getattr(spec, name), _dropped(spec, name)
        found |= {f"{short}_SHIFT": min(max(drop, 0), MAX_SHIFT),
                  f"{short}_PRE_SHIFT": max(-drop, 0), f"{short}_ROUNDING": int(to.rounding),
                  f"{short}_OVERFLOW": int(to.overflow), f"{short}_RAND_WIDTH": to.rand_bits or 1}
    return found


def _absent(spec: UpdateSpec) -> str | None:
    return next((name for name in ("decay", "shrink", "nesterov") if getattr(spec, name)), None)


def is_whole(spec: UpdateSpec) -> bool:
    """Whether sgd_update.v computes the whole of an update."""
    return _absent(spec) is None


def update_unit(spec: UpdateSpec) -> Unit:
    """The sgd_update that computes `spec`."""
    fields = (*(form_field(f"{name}_i", getattr(spec, name).format) for name in OPERANDS),
              *(Field(f"rand_{name}_i", getattr(spec, name).rand_bits or 1) for name in SUMS),
              *(form_field(f"{name}_o", to.format, "out", to.format.frac)
                for name, to in (("weight", spec.weight), ("momentum", spec.momentum))),
              Field("ovf_weight_o", 1, dir="out"), Field("ovf_momentum_o", 1, dir="out"))
    return Unit("sgd_update", str(spec), update_parameters(spec), fields, 0, spec)


def update_records(spec: UpdateSpec, cases: Iterable[Case]) -> Iterator[Record]:
    """Each case to its record."""
    masks = [(1 << getattr(spec, name).format.width) - 1 for name in OPERANDS]
    for case in cases:
        *operands, rand_momentum, rand_weight = case
        weight, momentum = sgd(*operands, spec, rand_momentum, rand_weight)
        lost = {name: overflows(rounded, getattr(spec, name))
                for name, (_, rounded) in _sums(spec, case, momentum).items()}
        yield (*(code & mask for code, mask in zip(operands, masks, strict=True)),
               rand_momentum, rand_weight, weight & masks[0], momentum & masks[1],
               int(lost["weight"]), int(lost["momentum"]))


def _dropped(spec: UpdateSpec, name: str) -> int:
    """How many bits the cast of a sum drops; fewer than 0 where it appends zeros."""
    return spec.sum_frac(name) - getattr(spec, name).format.frac


def _exact(spec: UpdateSpec, name: str, codes: dict[str, int]) -> int:
    """The exact sum that a cast ends."""
    frac = spec.sum_frac(name)
    return sum(sign * prod(codes[factor] for factor in factors) << frac - spec.term_frac(factors)
               for sign, *factors in spec.sums[name])


def _sums(spec: UpdateSpec, case: Case, kept: int) -> dict[str, tuple[int, int]]:
    """(exact, rounded) sum by cast; `kept` is the new momentum."""
    codes, rands = dict(zip(OPERANDS, case, strict=False)), dict(zip(SUMS, case[-2:], strict=True))
    found = {}
    for name in SUMS:
        to, exact = getattr(spec, name), _exact(spec, name, codes)
        rand = rands[name] if to.rounding == Rounding.STOCHASTIC else None
        found[name] = exact, round_shift(exact, _dropped(spec, name), to, rand)
        codes |= {"momentum": kept, "direction": exact}
    return found


# Situations


def update_bins(spec: UpdateSpec, case: Case) -> Iterator[tuple]:
    """What of one case can be told: of the cast of either sum."""
    _, kept = sgd(*case[:5], spec, *case[5:])
    for name, (exact, rounded) in _sums(spec, case, kept).items():
        n = _dropped(spec, name)
        yield (name, max(n, 0), kind(exact, n), SIGNS[exact >= 0],
               outcome(rounded, getattr(spec, name)))


def all_update_bins(spec: UpdateSpec) -> list[tuple]:
    """Every combination, whether or not it can be."""
    return [bin_ for name in SUMS
            for bin_ in product([name], [max(_dropped(spec, name), 0)], KINDS, SIGNS,
                                outcomes(getattr(spec, name)))]


def update_aimed(spec: UpdateSpec) -> Iterator[Case]:
    """Cases whose sums are around every bound of their cast, with every kind of rest.

    An addend of coarser units than its sum's brings that near a bound, and the product the rest.
    """
    forms = {name: getattr(spec, name).format for name in OPERANDS}
    some = {name: _codes(form, -1, 2) for name, form in forms.items()}
    rands = list(product(*([0, (1 << to.rand_bits) - 1] if to.rand_bits else [0]
                           for to in (spec.momentum, spec.weight))))
    rests = _rests(spec, "momentum", "grad")
    for mu, momentum in product(some["mu"], _codes(forms["momentum"], -rests, rests)):
        known = {"mu": mu, "momentum": momentum, "grad": 0}
        for grad in _addends(spec, "momentum", "grad", known):
            for rand in rands:
                yield (0, momentum, grad, 0, mu, *rand)
    mu, rests = forms["mu"].hi, _rests(spec, "weight", "weight")
    for lr, momentum, grad in product(_codes(forms["lr"], -1, max(rests, 2)), some["momentum"],
                                      some["grad"]):
        known = {"mu": mu, "momentum": momentum, "grad": grad, "lr": lr, "weight": 0}
        for rand in rands:
            _, kept = sgd(0, momentum, grad, lr, mu, spec, *rand)
            moved = {"direction": _exact(spec, "momentum", known), "momentum": kept}
            for weight in _addends(spec, "weight", "weight", known | moved):
                yield (weight, momentum, grad, lr, mu, *rand)


def _rests(spec: UpdateSpec, name: str, addend: str) -> int:
    """How many rests of a sum its addend alone cannot make; as many as are worth a case."""
    up = spec.sum_frac(name) - spec.term_frac([addend])
    return 1 << max(0, min(up, _dropped(spec, name), 5))


def _codes(form: Format, start: int, stop: int) -> list[int]:
    """The bounds of a format, and what of it is in a range."""
    return sorted({form.lo, form.hi, *(x for x in range(start, stop) if form.lo <= x <= form.hi)})


def _addends(spec: UpdateSpec, name: str, addend: str, codes: dict[str, int]) -> Iterator[int]:
    """The codes of a sum's addend, 0 in `codes`, that bring it near a bound of its cast."""
    form, up = getattr(spec, addend).format, spec.sum_frac(name) - spec.term_frac([addend])
    others = _exact(spec, name, codes)
    lo, hi = (form.lo << up) + others, (form.hi << up) + others
    for total in near(lo, hi, _dropped(spec, name), getattr(spec, name)):
        code, rest = divmod(total - others, 1 << up)
        if not rest:
            yield code


# Cases


def update_plan(unit: Unit, random: Random, count: int) -> list[tuple[str, list[Case]]]:
    """The cases of a unit, class by class."""
    spec: UpdateSpec = unit.source
    forms = [getattr(spec, name).format for name in OPERANDS]
    tops = [(1 << to.rand_bits) - 1 for to in (spec.momentum, spec.weight)]
    rands = lambda: [random.randint(0, top) for top in tops]  # noqa: E731
    ends = [sorted({form.lo, 0, min(1, form.hi), form.hi}) for form in forms]
    edge = [(*codes, *rands()) for codes in product(*ends)]
    steps = [(*(_draw(random, form) for form in forms), *rands()) for _ in range(count)]
    return [("edges", edge), ("bounds", list(update_aimed(spec))),
            ("dither", list(_dither(spec, rands))),
            ("random", steps), ("walk", list(_walk(spec, random, rands, count)))]


def _draw(random: Random, form: Format) -> int:
    """A code: of any size, or small in magnitude as often as large."""
    return random.randint(form.lo, form.hi) >> random.choice((0, 0, random.randrange(form.width)))


def _dither(spec: UpdateSpec, rands: Callable[[], list[int]]) -> Iterator[Case]:
    """Sums that carry with their random operand, and those one below."""
    for i, (name, addend) in enumerate((("momentum", "grad"), ("weight", "weight"))):
        to, n, form = getattr(spec, name), _dropped(spec, name), getattr(spec, addend).format
        if to.rounding != Rounding.STOCHASTIC or n < 1:
            continue
        top, up = (1 << to.rand_bits) - 1, spec.sum_frac(name) - spec.term_frac([addend])
        for rand, floor, below in product((0, 1, top // 2, top // 2 + 1, top - 1, top),
                                          (-2, -1, 0, 1), (0, 1)):
            code = (floor + 1 << n) - (rand << n >> to.rand_bits) - below >> up
            if form.lo <= code <= form.hi:
                drawn = rands()
                drawn[i] = rand
                yield (*(code if operand == addend else 0 for operand in OPERANDS), *drawn)


def _walk(spec: UpdateSpec, random: Random, rands: Callable[[], list[int]], count: int
          ) -> Iterator[Case]:
    """One weight through many steps with the same gradient's sign, until it is at its bound."""
    weight = momentum = 0
    lr, mu = spec.lr.format.hi, spec.mu.format.hi
    for _ in range(count):
        grad = random.randint(0, spec.grad.format.hi)
        case = (weight, momentum, grad, lr, mu, *rands())
        yield case
        weight, momentum = sgd(*case[:5], spec, *case[5:])

