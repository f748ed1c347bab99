"""Compare functions in one run: in turns, so that a busy machine slows all of them alike."""

import platform
import time
from pathlib import Path

import numba
import numpy as np
from rich.console import Console
from rich.table import Table

ROUNDS = 9
out = Console(highlight=False)


def machine() -> str:
    """The CPU, its cores and the versions that matter."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if "model name" in line),
                platform.processor() or platform.machine())
    flags = next((line for line in lines if line.startswith("flags")), "")
    simd = "AVX-512 VNNI" if "avx512_vnni" in flags else "AVX2" if "avx2" in flags else "no AVX2"
    return (f"{name}, {numba.get_num_threads()} threads, {simd}; torch {torch.__version__}, "
            f"numba {numba.__version__}, numpy {np.__version__}")


def race(functions: dict, rounds: int = ROUNDS) -> dict[str, np.ndarray]:
    """Seconds of each function in each round; every function ran once before."""
    for function in functions.values():
        function()
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - begin)
    return {name: np.array(seconds) for name, seconds in times.items()}


def ratio(times: dict, name: str, base: str) -> float:
    """How many times faster `name` is than `base`: the median over the rounds."""
    return float(np.median(times[base] / times[name]))


def report(title: str, times: dict, base: str, bars: dict, work: float | None = None) -> None:
    """A line a function: its time, its rate where `work` is given, its ratio to `base`, its bar."""
    table = Table("", "ms", "G/s", f"x {base}", "at least", "", title=title, title_justify="left")
    for name, seconds in times.items():
        found, bar = ratio(times, name, base), bars.get(name)
        table.add_row(name, f"{1e3 * np.median(seconds):.3f}",
                      f"{work / np.median(seconds) / 1e9:.1f}" if work else "", f"{found:.2f}",
                      "" if bar is None else f"{bar:.2f}",
                      "" if bar is None else "ok" if found >= bar else "MISSED")
    out.print(table)
