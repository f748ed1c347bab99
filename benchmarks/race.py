"""Compare functions in one run: in turns, so that a busy machine slows all of them alike."""

import gc
import os
import platform
import sys
import time
from pathlib import Path

import numba
import numpy as np
from rich.console import Console
from rich.table import Table

ROUNDS = 15
PAUSE, TURN = 0.02, 0.01  # seconds
out = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def machine() -> str:
    """The CPU, its cores, how busy it is, and the versions that matter."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if "model name" in line),
                platform.processor() or platform.machine())
    flags = next((line for line in lines if line.startswith("flags")), "")
    simd = "AVX-512 VNNI" if "avx512_vnni" in flags else "AVX2" if "avx2" in flags else "no AVX2"
    return (f"{name}, {numba.get_num_threads()} threads, {simd}, load {os.getloadavg()[0]:.1f}; "
            f"torch {torch.__version__}, numba {numba.__version__}, numpy {np.__version__}")


def race(functions: dict, rounds: int = ROUNDS) -> dict[str, np.ndarray]:
    """Seconds a call of each function takes, in each round.

    Torch and numba keep a team of threads each, and a team spins for some 10 ms after its work: on
    the cores that the next function needs. So a turn begins with a pause, then a call that wakes
    the function's own team and brings its operands into the caches, and only then is timed.
    """
    for function in functions.values():
        function()  # what compiles, compiles now
    times = {name: [] for name in functions}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, function in functions.items():
                time.sleep(PAUSE)
                function()
                times[name].append(_seconds(function))
    finally:
        gc.enable()
    return {name: np.array(seconds) for name, seconds in times.items()}


def _seconds(function) -> float:
    """The mean of the calls that begin within `TURN` seconds."""
    calls, begin = 0, time.perf_counter()
    now = begin
    while now < begin + TURN:
        function()
        calls, now = calls + 1, time.perf_counter()
    return (now - begin) / calls


def quartiles(times: dict, name: str, base: str) -> np.ndarray:
    """How many times faster `name` is than `base` in the same round: quartiles over the rounds."""
    return np.percentile(times[base] / times[name], (25, 50, 75))


def ratio(times: dict, name: str, base: str) -> float:
    """How many times faster `name` is than `base`: the median over the rounds."""
    return float(quartiles(times, name, base)[1])


def report(title: str, times: dict, base: str, bars: dict, work: float | None = None) -> None:
    """A line a function: its time, its rate where `work` is given, its ratio to `base`, its bar."""
    table = Table("", "ms", "G/s", f"x {base}", "quartiles", "at least", "", title=title,
                  title_justify="left")
    for name, seconds in times.items():
        (low, found, high), bar = quartiles(times, name, base), bars.get(name)
        table.add_row(name, f"{1e3 * np.median(seconds):.3f}",
                      f"{work / np.median(seconds) / 1e9:.1f}" if work else "", f"{found:.2f}",
                      f"{low:.2f} to {high:.2f}", "" if bar is None else f"{bar:.2f}",
                      "" if bar is None else "ok" if found >= bar else "MISSED")
    out.print(table)


def main() -> None:
    out.print(machine())


if __name__ == "__main__":
    main()
