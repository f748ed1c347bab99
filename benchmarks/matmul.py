"""MAC/s of the engine's matmul, 256 x 256 x 256 on int8 codes, beside numpy's int64 matmul.

    python benchmarks/matmul.py
"""

import os
import time

import numpy as np

from emu import MacSpec, matmul

SPECS = [
    "{a: s8, b: s8, acc: s18}",
    "{a: s8, b: s8, acc: s18 sat}",
    "{a: s8, b: s8, acc: s18 sat, lanes: 4}",
    "{a: s8, b: s8, acc: s18 sat, tile: 16, outer: s20f-2 ties_even sat}",
    "{a: s8, b: s8, product: s14f-2 ties_even, acc: s18f-2 sat}",
]
SIZE, ROUNDS = 256, 7


def best(compute) -> float:
    """The shortest of some runs, in seconds, after one that compiles."""
    compute()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        compute()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Print one line per spec; ratios are of this run."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(-128, 128, (2, SIZE, SIZE)).astype(np.int8)
    wide = a.astype(np.int64), b.astype(np.int64)
    numpy = best(lambda: wide[0] @ wide[1])
    print(f"{os.cpu_count()} cores, {SIZE}^3, int8; numpy int64 @: {SIZE**3 / numpy / 1e6:.0f} "
          "M MAC/s")
    for spec in SPECS:
        mac = MacSpec.parse(spec)
        seconds = best(lambda mac=mac: matmul(a, b, mac))
        print(f"{SIZE**3 / seconds / 1e6:8.0f} M MAC/s  {numpy / seconds:5.1f} x numpy  {spec}")


if __name__ == "__main__":
    main()
