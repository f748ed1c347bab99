"""What `emu.monitor()` costs: operations, watched and not; the ratio is how much longer they take.

`python benchmarks/monitor.py [SIZE]`; operands are gaussian with a deviation of 30 codes.
"""

import sys
from functools import partial
from timeit import timeit

import numpy as np
from race import machine, out, race, ratio
from rich.table import Table

import emu
from emu import Cast, MacSpec

MACS = ["{a: s8, b: s8, acc: s24 sat}", "{a: s8, b: s8, acc: s16 sat}",
        "{a: s8, b: s8, acc: s24 sat, lanes: 16}",
        "{a: s8, b: s8, acc: s18 sat, tile: 64, outer: s24 sat}",
        "{a: s8, b: s8, product: s14f-3 ties_pos, acc: s16f-3 sat}"]
CASTS = ["s8 ties_even sat", "s8 stochastic16 sat"]
NORMAL = np.random.default_rng(0).normal


def codes(shape) -> np.ndarray:
    """Seeded int8 codes."""
    return np.clip(np.rint(NORMAL(0, 30, shape)), -128, 127).astype(np.int8)


def watched(operation):
    """The operation inside a monitor."""
    with emu.monitor():
        return operation()


def main(size: int = 256) -> None:
    a, b, x, w = map(codes, ((size, size), (size, size), (8, 16, 32, 32), (16, 16, 3, 3)))
    accumulators = np.rint(NORMAL(0, 2e4, 1 << 20)).astype(np.int32)
    rand = np.random.default_rng(1).integers(0, 1 << 16, accumulators.size)
    work = {f"matmul {size}^3 {text}": partial(emu.matmul, a, b, MacSpec.parse(text))
            for text in MACS}
    work |= {f"conv2d 16 x 3 x 3 {text}": partial(emu.conv2d, x, w, MacSpec.parse(text), padding=1)
             for text in MACS[:2]}
    work |= {f"cast 2^20 codes {text}": partial(
        emu.cast, accumulators, 8, Cast.parse(text), rand if "stochastic" in text else None)
        for text in CASTS}
    table = Table("", "ms", "watched, ms", "times as long", title="what watching costs",
                  title_justify="left")
    for name, operation in work.items():
        times = race({"off": operation, "on": partial(watched, operation)}, rounds=5)
        off, on = (1e3 * float(np.median(times[key])) for key in ("off", "on"))
        table.add_row(name, f"{off:.3f}", f"{on:.3f}", f"{ratio(times, 'off', 'on'):.1f}")
    out.print(table)
    asked = timeit(emu.engine.watching, number=1 << 18) / (1 << 18)
    out.print(f"off: each operation asks once whether it is watched, {1e9 * asked:.0f} ns")


if __name__ == "__main__":
    out.print(machine())
    main(*map(int, sys.argv[1:]))
