"""Casts from int32 to int8 beside what fake quantisation does in torch float32.

    python benchmarks/casts.py

Every candidate takes its turn in each round; a ratio is the median over the rounds of torch's time
in that round by the candidate's.
"""

import os
import statistics
import time

import numpy as np
import torch

from emu import Cast, Rounding, cast, load_words, random_operands

SIZE, ROUNDS, CALLS, DROP = 1 << 20, 60, 3, 7
TORCH = "torch.clamp(torch.round(x * s), lo, hi)"


def race(candidates: dict, base: str) -> dict[str, tuple[float, float]]:
    """(median seconds, median ratio to the base) of each, all called in turn."""
    times = {name: [] for name in candidates}
    for compute in candidates.values():
        compute()  # compiles
    for _ in range(ROUNDS):
        for name, compute in candidates.items():
            start = time.perf_counter()
            for _ in range(CALLS):
                compute()
            times[name].append((time.perf_counter() - start) / CALLS)
    return {name: (statistics.median(mine),
                   statistics.median(b / m for b, m in zip(times[base], mine, strict=True)))
            for name, mine in times.items()}


def main() -> None:
    """Print one line per mode; ratios are of this run."""
    codes = np.random.default_rng(0).integers(-20000, 20000, SIZE).astype(np.int32)
    floats = torch.from_numpy(codes).float()
    loads = load_words(0, 0, "benchmark", "cast", 0)
    candidates = {TORCH: lambda: torch.clamp(torch.round(floats * 2.0**-DROP), -128, 127)}
    for rounding in Rounding:
        if rounding != Rounding.STOCHASTIC:
            to = Cast.parse(f"s8 {rounding.name.lower()} sat")
            candidates[str(to)] = lambda to=to: cast(codes, DROP, to)
    for mode in ("wrap", "sat_zero"):
        to = Cast.parse(f"s8 ties_even {mode}")
        candidates[str(to)] = lambda to=to: cast(codes, DROP, to)
    for bits in (8, 16, 32):
        to = Cast.parse(f"s8 stochastic{bits} sat")
        rand = random_operands(SIZE, bits, loads)
        candidates[f"{to}, drawn"] = lambda to=to: cast(codes, DROP, to, loads=loads)
        candidates[f"{to}, given"] = lambda to=to, rand=rand: cast(codes, DROP, to, rand)
    print(f"{os.cpu_count()} cores, {SIZE} codes, int32 -> int8, {DROP} bits dropped")
    for name, (seconds, ratio) in race(candidates, TORCH).items():
        print(f"{SIZE / seconds / 1e9:7.2f} G/s  {ratio:5.2f} x torch  {name}")


if __name__ == "__main__":
    main()
