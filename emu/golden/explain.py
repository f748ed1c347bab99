"""How one step of a dot product comes about: its products, and the register before and after."""

from __future__ import annotations

from collections.abc import Sequence

from emu.golden.units import unpack
from emu.golden.vectors import VectorFile
from emu.reference import dot_steps, fit, overflows, round_shift
from emu.spec import MacSpec

SHOWN = 8  # lanes told
Axes = Sequence[tuple[str, int]]  # name and size, the slowest first


def explain_step(mac: MacSpec, a: Sequence[int], b: Sequence[int], bias: int | None, step: int,
                 came: int, which: str = "", taps: Axes = ()) -> list[str]:
    """Step `step`, from 0, of the dot product that `which` tells, whose register then held `came`.

    `taps` are the axes of k.

    >>> for line in explain_step(MacSpec.parse("{a: s8, b: s8, acc: s8 sat}"),
    ...                          [100, 100, -100], [1, 1, 1], 0, 1, -56):
    ...     print(line)
    step 2 of 3, k = 1, bias 0: before it the sum is 100
      k 1: a 100 * b 1 = 100
      100 + 100 = 200, out of s8f0 (-128 to 127): sat gives 127, came -56
    """
    start, stop = step * mac.lanes, min((step + 1) * mac.lanes, len(a))
    told = [result for result, _ in dot_steps(list(a[:stop]), list(b[:stop]), mac, bias or 0)]
    before, after = told[-2] if step else bias or 0, told[-1]
    ks = f"k = {start}" if stop == start + 1 else f"k = {start} to {stop - 1}"
    lines = [f"{which}step {step + 1} of {-(-len(a) // mac.lanes)}, {ks}, bias {bias or 0}: before "
             f"it the sum is {before}"]
    products = []
    for k in range(start, stop):
        exact = a[k] * b[k]
        rounded = round_shift(exact, -mac.product.format.frac, mac.product)
        products.append(fit(rounded, mac.product))
        if k < start + SHOWN:
            lines.append(f"  k {k}{_place(k, taps)}: a {a[k]} * b {b[k]} = {exact}" + (
                "" if products[-1] == exact else f", as {mac.product} {products[-1]}"))
    if stop - start > SHOWN:
        lines.append(f"  ... and {stop - start - SHOWN} products more")
    added = "".join(f" {'-' if p < 0 else '+'} {abs(p)}" for p in products[:SHOWN])
    if len(products) > SHOWN:
        added = f" + {sum(products)}"
    if mac.outer is not None:
        lines.append(f"  with tiles of {mac.tile} into {mac.outer}: {after}, came {came}")
        return lines
    total = before + sum(products)
    fits = ""
    if overflows(total, mac.acc):
        low, high = mac.acc.range
        fits = (f", out of {mac.acc.format} ({low} to {high}): {mac.acc.overflow.name.lower()} "
                f"gives {after}")
    lines.append(f"  {before}{added} = {total}{fits}, came {came}")
    return lines


def explain_line(file: VectorFile, number: int, came: Sequence[str]) -> list[str]:
    """The step at line `number` (from 1), which answered the fields `came`; empty if not a mac's.
    """
    if not file.unit.startswith("mac"):
        return []
    mac = MacSpec.parse(file.spec)
    names = [field.name for field in file.fields]
    steps: list[dict[str, int]] = []
    step, sums = 0, 0
    for i, line in enumerate(file.lines(), start=1):
        bits = [int(digits, 16) for digits in line]
        record = dict(zip(names, bits, strict=True))
        if record["load_i"]:
            if i > number:
                break
            steps = []
            sums += 1
        steps.append(record)
        if i == number:
            step = len(steps) - 1
        if i >= number and record["last_i"]:
            break
    form = mac.result.format
    bias = steps[0]["bias_i"] if steps[0]["load_i"] else 0
    a, b = ([code for record in steps for code in unpack(record[f"{name}_i"], operand, mac.lanes)]
            for name, operand in (("a", mac.a), ("b", mac.b)))
    acc = dict(zip(names, came, strict=True))["acc_o"]
    if not set(acc) <= set("0123456789abcdef"):
        return []
    bias, acc = (unpack(bits, form, 1)[0] for bits in (bias, int(acc, 16)))
    axes = file.axes or {"sums": [], "terms": []}
    which = f"sum {sums}{_place(sums - 1, axes['sums'])}, " if file.axes else ""
    return explain_step(mac, a, b, bias, step, acc, which, axes["terms"])


def _place(index: int, axes: Axes) -> str:
    """Where an index lies on its axes."""
    named = []
    for name, size in reversed(axes):
        index, at = divmod(index, size)
        named.append(f"{name} {at}")
    return f" ({', '.join(reversed(named))})" if named else ""
