"""The Verilog in four engines: codes a second through a quantizer and a MAC, on one core.

`python benchmarks/cosim.py [RECORDS]`. Every engine gets the same arrays, and its answers must be
those of the first one. Bars: CXXRTL at 100 times Icarus, and 20 M records/s.
"""

import sys
import time

import numpy as np
from race import machine, out
from rich.table import Table

from emu import cosim
from emu.cosim.engines import BACKENDS
from emu.cosim.tools import found
from emu.golden.units import QuantizerSpec, mac_parameters, quantizer_parameters
from emu.spec import MacSpec

BARS = {"cxxrtl": (100, 20e6)}  # times as fast as Icarus, records a second
FEWER = {"icarus": 50}  # times fewer records, as the rate does not depend on them
ROUNDS = 5


def work(records: int) -> dict:
    """(unit, parameters, arrays): 32 to 8 bits at run-time shifts, and dot products of 784."""
    rng = np.random.default_rng(0)
    quantizer = quantizer_parameters(QuantizerSpec.parse("s32f24 -> s8f0 stochastic16 sat"))
    mac = mac_parameters(MacSpec.parse("{a: s8, b: s8, acc: s20 sat}"))
    step = np.arange(records) % 784
    return {
        "quantizer": ("quantizer", quantizer, {
            "value_i": rng.integers(-1 << 31, 1 << 31, records) >> rng.integers(0, 32, records),
            "shift_i": rng.integers(0, 25, records), "rand_i": rng.integers(0, 1 << 16, records)}),
        "MAC": ("mac", mac, {
            "load_i": (step == 0).astype(int), "last_i": (step == 783).astype(int),
            "bias_i": rng.integers(-1000, 1000, records),
            "a_i": rng.integers(-128, 128, records), "b_i": rng.integers(-60, 128, records)}),
    }


def rates(unit: str, parameters: dict, arrays: dict) -> dict[str, float]:
    """Records a second of each installed engine, the best of some rounds in turn."""
    parts = {name: {port: codes[:max(1, len(codes) // FEWER.get(name, 1))]
                    for port, codes in arrays.items()}
             for name, (_, needs) in BACKENDS.items() if all(map(found, needs))}
    best, first = dict.fromkeys(parts, 0.0), None
    for turn in range(ROUNDS + 1):  # in the first one, models are compiled
        for name, part in parts.items():
            begin = time.perf_counter()
            answers = cosim.run(unit, parameters, part, name)
            seconds = time.perf_counter() - begin
            first = first or answers
            records = len(next(iter(part.values())))
            if any((codes != first[port][:records]).any() for port, codes in answers.items()):
                raise RuntimeError(f"{name} answers otherwise than {next(iter(parts))}")
            if turn:
                best[name] = max(best[name], records / seconds)
    return best


def main(records: int = 2_000_000) -> None:
    table = Table("", "engine", "M/s", "x icarus", "at least", "", title="records through the "
                  "Verilog, equal in every engine", title_justify="left")
    for title, (unit, parameters, arrays) in work(records).items():
        best = rates(unit, parameters, arrays)
        for name, rate in best.items():
            times = rate / best["icarus"] if "icarus" in best else float("nan")
            ratio, least = BARS.get(name, (0, 0))
            ok = not (times < ratio or rate < least)
            table.add_row(title, name, f"{rate / 1e6:.2f}", f"{times:.0f}",
                          f"{ratio} x, {least / 1e6:.0f} M/s" if ratio else "",
                          "" if not ratio else "ok" if ok else "MISSED")
    out.print(table)


if __name__ == "__main__":
    out.print(machine())
    main(*map(int, sys.argv[1:]))
