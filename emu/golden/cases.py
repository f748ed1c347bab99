"""Which cases are worth a line: listed edges and their sums, ties, bounds, dither, then random.

Every list is built in full and thinned by a seeded draw, so that both levels follow one plan.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from emu.golden.coverage import Bin, all_bins, bins, reachable, why_not
from emu.golden.flagged import FlagQuantizerSpec, flag_plan, flag_records, flag_unit
from emu.golden.units import (
    COUNT_WIDTH,
    QuantizerSpec,
    Record,
    Unit,
    lfsr_records,
    lfsr_unit,
    mac_records,
    mac_unit,
    quantizer_records,
    quantizer_unit,
)
from emu.golden.update import update_plan, update_records, update_unit
from emu.golden.vectors import vector_set
from emu.number import Format, Overflow, Rounding
from emu.spec import MacSpec
from emu.update import UpdateSpec
from emu.value import parse_mapping

SEED = 1
STRENGTH = Path(__file__).with_name("strength.json")  # written by `emu mutate --update`
LIMITS = {1: 40, 2: 4000}  # cases kept of each class, by level
ACC_MODES = ("wrap", "sat", "sat_sym", "sat_zero")

QUANTIZERS = [f"s12f14 -> s5f0 {rounding} {overflow}"
              for rounding in [*(r.name.lower() for r in list(Rounding)[:-1]), "stochastic6"]
              for overflow in (o.name.lower() for o in Overflow)]
QUANTIZERS += [
    "s8f3 -> s16f0 ties_even sat", "s8f2 -> s8f0 ties_away sat",  # OUT_WIDTH >= IN_WIDTH
    "s8f0 -> s16f6 sat", "s8f0 -> s10f4 sat_sym", "s8f4 -> s10f4 ties_odd sat align 4",
    "u8f4 -> u4f0 ties_even sat", "u8f4 -> s6f0 ties_pos sat_sym", "s8f4 -> u6f0 ties_zero sat",
    "s8f2 -> u4f0 stochastic3 wrap", "u9f8 -> u1f0 stochastic8 sat",
    "s1f0 -> s1f0 to_neg wrap", "u1f1 -> u1f0 ties_even sat", "s2f1 -> s2f0 to_odd sat_sym",
    "s8f8 -> u1f0 to_pos sat_zero", "s6f20 -> s4f0 ties_neg sat", "s6f12 -> s4f0 stochastic4 sat",
    "s20f9 -> s8f0 stochastic1 sat", "s20f12 -> s8f0 stochastic32 sat",
    "s32f24 -> s8f0 ties_even sat", "s62f40 -> s32f0 ties_even sat", "s64f0 -> s64f0 to_neg sat",
    "u64f63 -> u64f0 ties_even wrap",
]
MACS = [(f"{{a: s8, b: s8, acc: s16 {mode}}}", 0) for mode in ACC_MODES]
MACS += [(f"{{a: s6, b: s6, product: s7f-4 {rounding.name.lower()} {ACC_MODES[rounding % 4]}, "
          f"acc: s9f-4 sat}}", 0) for rounding in list(Rounding)[:-1]]
MACS += [
    ("{a: s8, b: s8, acc: s16 sat}", 1), ("{a: s8, b: s8, acc: s16 sat}", 2),
    ("{a: s8, b: s8, acc: s18 sat, lanes: 4}", 0), ("{a: s8, b: s8, acc: s17 wrap, lanes: 4}", 2),
    ("{a: u8, b: s8, product: s16 sat, acc: s16 sat_sym, lanes: 2}", 1),
    ("{a: u8, b: s8, acc: s17 sat}", 0), ("{a: s4, b: u4, acc: s9 sat_zero}", 0),
    ("{a: u8, b: u8, acc: u10 sat, lanes: 4}", 0), ("{a: u4, b: u4, acc: u10 sat}", 0),
    ("{a: u4, b: u4, acc: u8 wrap, lanes: 3}", 0),
    ("{a: s8, b: s8, acc: s10 sat}", 0), ("{a: s8, b: s8, acc: s10 wrap}", 0),
    ("{a: s8, b: s4, product: s16f3, acc: s16f3 sat}", 0),
    ("{a: s4, b: s4, product: s4f-2 ties_even sat, acc: s8f-2 sat, lanes: 4}", 1),
    ("{a: u1, b: u1, acc: u2 sat}", 0), ("{a: s1, b: s1, acc: s3 sat, lanes: 4}", 0),
    ("{a: u1, b: s8, product: s8 sat_sym, acc: s16 sat}", 0),
    ("{a: s16, b: s16, acc: s40 sat}", 0), ("{a: s32, b: s30, acc: s62 sat}", 0),
    ("{a: s8, b: s8, acc: s17 sat, tile: 4, outer: s20 sat}", 0),
    ("{a: u8, b: s8, acc: s18 wrap, lanes: 2, tile: 6, outer: s16f-4 ties_even sat_sym}", 1),
    ("{a: s6, b: s6, product: s9f-3 ties_pos sat, acc: s10f-3 sat_zero, tile: 3, "
     "outer: s12f-1 wrap}", 2),
    ("{a: s8, b: s8, acc: s16 sat, tile: 3, outer: s9f-8 ties_away sat, reload: true}", 0),
    ("{a: s8, b: s8, acc: s17 sat, tile: 2, outer: s7f-8 ties_odd sat_zero, reload: true}", 0),
    ("{a: u4, b: u4, acc: u9 sat, lanes: 2, tile: 2, outer: u5f-5 to_odd sat, reload: true}", 0),
]
SHORT_COUNTS = [  # an overflow counter of 4 bits, so that vectors reach its end
    ("{a: s8, b: s8, acc: s16 sat}", 2), ("{a: s8, b: s8, acc: s18 sat, lanes: 4}", 0),
    ("{a: s6, b: s6, product: s7f-4 ties_even sat, acc: s9f-4 sat}", 0),
    ("{a: s4, b: s4, product: s4f-2 ties_even sat, acc: s8f-2 sat, lanes: 4}", 1),
]
LFSRS = (1, 8, 16, 32)
FLAGS = [
    "s16f10 -> flag s8f7 ties_even sat_sym", "s20f16 -> flag s8f4 stochastic8 sat align 2",
    "s12f9 -> flag s5f3 to_odd wrap", "u10f6 -> flag s4f3 ties_away sat_zero",
    "s7f4 -> flag s2f1 to_neg sat", "s8f2 -> flag s6f6 to_away sat_sym align 9",
    "s32f30 -> flag s16f15 ties_even sat_sym",
]
UPDATES = [  # the first two are those of WAGEUBN: 13, 15, 10, 24 and 3 bits, and narrow ones
    "{weight: s24f23 sat, momentum: s13f12 ties_even sat, grad: s15f14, lr: u10f9, mu: u3f2, "
    "direction: s17f14}",
    "{weight: s8f7 sat_sym, momentum: s4f3 stochastic3 sat, grad: s5f4, lr: u4f3, mu: u2f1, "
    "direction: s7f4}",
    "{weight: s16f14 stochastic8 sat, momentum: s12f10 ties_even sat, grad: s8f9, lr: u8f8, "
    "mu: u4f4}",
    "{weight: s12f9 ties_away wrap, momentum: s10f4 ties_pos sat_sym, grad: s9f8 sat, lr: s5f4, "
    "mu: s5f3}",
    "{weight: u8f4 to_zero sat, momentum: u6f6 to_odd sat_zero, grad: u5f2, lr: u3f1, mu: u1}",
    "{weight: s6f9 sat_zero, momentum: s5f7 wrap, grad: s4f3, lr: u2f1, mu: u2f2}",
    "{weight: s32f30 stochastic16 sat, momentum: s16f12 stochastic32 sat, grad: s16f14, "
    "lr: u16f16, mu: u8f8}",
]

Plan = list[tuple[str, list]]


def standard() -> list[Unit]:
    """The units of the committed contract; both levels have the same."""
    return [*(quantizer_unit(QuantizerSpec.parse(text)) for text in QUANTIZERS),
            *(mac_unit(MacSpec.parse(text), pipeline) for text, pipeline in MACS),
            *(mac_unit(MacSpec.parse(text), pipeline, 4) for text, pipeline in SHORT_COUNTS),
            *(lfsr_unit(bits) for bits in LFSRS),
            *map(from_text, FLAGS), *map(from_text, UPDATES)]


def from_text(text: str) -> Unit:
    """The unit of a MacSpec or UpdateSpec text, of `s16f8 -> s8f4 ties_even sat`, or of `lfsr16`.

    A cast after `flag` is that of a `flag_quantizer`.
    """
    if match := re.fullmatch(r"\s*lfsr(\d+)\s*", text):
        return lfsr_unit(int(match[1]))
    if re.search(r"->\s*flag ", text):
        return flag_unit(FlagQuantizerSpec.parse(text))
    if "->" in text:
        return quantizer_unit(QuantizerSpec.parse(text))
    if text.strip().startswith("{"):
        if "weight" in parse_mapping(text):
            return update_unit(UpdateSpec.parse(text))
        return mac_unit(MacSpec.parse(text))
    raise ValueError(f"spec {text!r}: write a mac '{{a: s8, b: s8, acc: s20 sat}}', a quantizer "
                     "'s16f8 -> s8f4 ties_even sat', or 'lfsr16'")


def write_vectors(out: Path, spec: str | None = None, level: int = 1, progress=None) -> Path:
    """Write the vectors of one spec, or the standard set; the same bytes each time.

    `progress` is called with the name of each file, how many are done and how many there are.
    """
    if level not in LIMITS:
        raise ValueError(f"level {level}: 1 is the committed set, 2 the large one")
    units = standard() if spec is None else [from_text(spec)]
    report = progress and partial(progress, total=len(units))
    about = {"level": level}
    if spec is None and level == 1:
        about["strength"] = _strength()["strength"]
    with vector_set(out, about, report) as writer:
        for unit in units:
            writer.add(file_name(unit), unit, records(unit, level), seed=SEED)
    return Path(out)


def file_name(unit: Unit) -> str:
    """The name of a unit's file, from its spec: `quantizer/s16f8-s8f4-ties_even-sat.hex`."""
    text = re.sub(r"\b[ab]: |f0\b", "", unit.spec).replace("f-", "fm")
    if unit.module == "sgd_update":  # many casts: what a text may leave out is left out
        text = re.sub(r" to_neg\b| wrap\b", "", text)
    text = re.sub(r"\W+", "-", text).strip("-")
    if pipeline := unit.parameters.get("PIPELINE"):
        text += f"-pipeline-{pipeline}"
    if (count := unit.parameters.get("COUNT_WIDTH", COUNT_WIDTH)) != COUNT_WIDTH:
        text += f"-count-{count}"
    return f"{unit.module}/{text}.hex"


def records(unit: Unit, level: int) -> Iterator[tuple[str, Iterable[Record]]]:
    """The records of a unit, class by class."""
    for name, cases in classes(unit, level):
        yield name, expected(unit, cases)


def classes(unit: Unit, level: int) -> Iterator[tuple[str, list]]:
    """The cases of a unit, class by class: planned, found by a solver, and what bins still miss."""
    random = Random(SEED)
    limit = LIMITS[level]
    met = set()
    for name, cases in [*_PLANS[unit.module](unit, random, limit),
                        ("found", _strength()["found"].get(unit.spec, []))]:
        kept = cases
        if len(cases) > limit:
            kept = [cases[i] for i in sorted(random.sample(range(len(cases)), limit))]
        met |= bins(unit, kept).keys()
        yield name, kept
    yield "bins", [case for bin_, case in reachable(unit).items() if bin_ not in met]


@dataclass(frozen=True)
class Coverage:
    """The bins of a unit: those met with how often, those that can be, and why others cannot."""

    unit: Unit
    met: Counter[Bin]
    reachable: frozenset[Bin]
    unreachable: dict[Bin, str]


def coverage(unit: Unit, level: int) -> Coverage:
    """Which situations the cases of a unit meet."""
    met = Counter()
    for _, cases in classes(unit, level):
        met.update(bins(unit, cases))
    can_be = frozenset(reachable(unit))
    return Coverage(unit, met, can_be, {bin_: why_not(unit, bin_) for bin_ in all_bins(unit)
                                        if bin_ not in can_be})


def _strength() -> dict:
    return json.loads(STRENGTH.read_text())


def expected(unit: Unit, cases: list) -> Iterator[Record]:
    """The records of cases, as the plan of the unit makes them."""
    if unit.module in _RECORDS:
        yield from _RECORDS[unit.module](unit.source, cases)
    else:
        for a, b, bias in cases:
            yield from mac_records(unit.source, a, b, bias, idle=~(bias or 0),
                                   count_width=unit.parameters["COUNT_WIDTH"])


def edges(form: Format) -> list[int]:
    """0, the bounds, and every power of two with its neighbours, of both signs."""
    near = [(1 << k) + d for k in range(form.width) for d in (-1, 0, 1)]
    listed = {0, form.lo, form.lo + 1, form.hi - 1, form.hi, *near, *(-x for x in near)}
    return sorted((x for x in listed if form.lo <= x <= form.hi), key=lambda x: (abs(x), x))


# The quantizer


def _quantizer_plan(unit: Unit, random: Random, count: int) -> Plan:
    spec: QuantizerSpec = unit.source
    source, to = spec.source, spec.cast
    pre, top, rand_top = spec.pre_shift, spec.max_shift, (1 << (to.rand_bits or 1)) - 1
    shifts = sorted({0, 1, pre, pre + 1, pre + 2, top // 2, top - 1, top} & set(range(top + 1)))
    listed = edges(source)
    any_rand = lambda: random.randint(0, rand_top)  # noqa: E731
    inside = lambda x: source.lo <= x <= source.hi  # noqa: E731

    edge = [(x, s, any_rand()) for x in listed for s in [*shifts, 255]]
    sums = [x + y for x in listed for y in listed if x < y and inside(x + y)]
    pair = [(x, random.randint(0, top), any_rand()) for x in sums]

    rands = (0, 1, rand_top // 2, rand_top // 2 + 1, rand_top - 1, rand_top)
    bound, tie, dither = [], [], []
    lo, hi = to.format.lo, to.format.hi
    for s in range(top + 1):
        n = s - pre
        whole, half = 1 << max(n, 0), (1 << max(n, 0)) // 2
        for x in (lo - 1, lo, lo + 1, hi - 1, hi, hi + 1):
            start = x << n if n >= 0 else x >> -n
            bound += [(start + d, s, any_rand())
                      for d in sorted({-1, 0, 1, half - 1, half, half + 1, whole - 1})]
        if n < 1:
            continue
        for x in sorted({-3, -2, -1, 0, 1, 2, lo, hi - 1, hi}):
            tie += [((x << n) + half, s, any_rand())]
            for rand in rands if to.rounding == Rounding.STOCHASTIC else ():
                r = rand << n >> to.rand_bits  # carries at rest = 2^n - r, not one below
                dither += [((x << n) + whole - r - d, s, rand) for d in (0, 1) if r + d > 0]
    picked = [(_draw(random, source), random.randint(0, top), any_rand()) for _ in range(count)]
    plan = [("edges", edge), ("pairs", pair), ("bounds", bound), ("ties", tie),
            ("dither", dither), ("random", picked)]
    return [(name, [case for case in cases if inside(case[0])]) for name, cases in plan]


def _draw(random: Random, form: Format) -> int:
    """A code: of any size, or small in magnitude as often as large."""
    return random.randint(form.lo, form.hi) >> random.choice((0, 0, random.randrange(form.width)))


# The MAC: a case is one transaction, (operands a, operands b, bias)


def _mac_plan(unit: Unit, random: Random, count: int) -> Plan:
    mac: MacSpec = unit.source
    a_ends, b_ends = (mac.a.lo, mac.a.hi), (mac.b.lo, mac.b.hi)
    form, lanes = mac.result.format, mac.lanes
    biases = sorted({form.lo, form.lo + 1, 0, form.hi - 1, form.hi})

    edge = [([x], [y], bias) for x in edges(mac.a) for y in edges(mac.b) for bias in (0, form.hi)]
    rail = []  # to one rail, then back towards the other
    for x in a_ends:
        for y in b_ends:
            for bias in biases:
                there, back = 3 * lanes, 3 * lanes + 1
                other = b_ends[y == b_ends[0]]
                rail.append(([x] * (there + back), [y] * there + [other] * back, bias))
    drop = -mac.product.format.frac
    tie = [([x], [y], 0)  # a tie is an odd multiple of half, 2^(drop - 1)
           for k in range(max(drop, 0)) for y in (1 << k, -(1 << k)) for odd in range(-7, 8, 2)
           for x in range((odd << drop - 1 - k) - 1, (odd << drop - 1 - k) + 2)
           if mac.a.lo <= x <= mac.a.hi and mac.b.lo <= y <= mac.b.hi]

    def some(size: int) -> tuple[list[int], list[int], int]:
        return ([random.choice((*a_ends, _draw(random, mac.a))) for _ in range(size)],
                [random.choice((*b_ends, _draw(random, mac.b))) for _ in range(size)],
                random.choice((0, *biases, _draw(random, form))))

    short = [some(size) for size in range(1, 3 * lanes + 1)]
    picked = [some(random.randint(1, 12 * lanes)) for _ in range(count // 2)]
    reset = [([*a_ends] * lanes, [b_ends[0]] * 2 * lanes, None)]
    full, count = 1 << unit.parameters["COUNT_WIDTH"], []
    if full < 1 << COUNT_WIDTH:
        count = [([x] * (full + 2) * lanes, [y] * (full + 2) * lanes, bias) for x, y in
                 ((a_ends[0], b_ends[0]), (a_ends[0], b_ends[1])) for bias in (0, form.hi)]
    return [("reset", reset), ("edges", edge), ("rails", rail), ("ties", tie), ("short", short),
            ("random", picked), ("count", count)]


# The LFSR: a case is (load word, number of draws)


def _lfsr_plan(unit: Unit, random: Random, count: int) -> Plan:
    words = [0, 1, 2, 3, 0x80000000, 0xFFFFFFFF, 0x80200003, 0x7FDFFFFC]
    single = [(1 << bit, 1) for bit in range(2, 31)]
    return [("reset", [(None, 40)]), ("edges", [(word, 40) for word in words] + single),
            ("random", [(random.getrandbits(32), random.randint(1, 8)) for _ in range(count)])]


_PLANS = {"quantizer": _quantizer_plan, "mac": _mac_plan, "mac_tiled": _mac_plan,
          "lfsr": _lfsr_plan, "flag_quantizer": flag_plan, "sgd_update": update_plan}
_RECORDS = {"quantizer": quantizer_records, "lfsr": lfsr_records, "flag_quantizer": flag_records,
            "sgd_update": update_records}
