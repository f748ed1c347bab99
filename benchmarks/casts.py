"""Casts from int32 to int8 against round and clamp in torch float32, as fake quantisation does.

`python benchmarks/casts.py`; a million codes, 7 bits dropped.
"""

import numpy as np
import torch
from race import machine, out, race, report

from emu import Cast, Rounding, cast, load_words, random_operands

SIZE, DROP = 1 << 20, 7
TORCH = "torch round + clamp"


def main() -> None:
    out.print(machine())
    codes = np.random.default_rng(0).integers(-20000, 20000, SIZE).astype(np.int32)
    floats = torch.from_numpy(codes).float()
    loads = load_words(0, 0, "benchmark", "cast", 0)
    functions = {TORCH: lambda: torch.clamp(torch.round(floats * 2.0**-DROP), -128, 127)}
    bars = {}
    modes = [f"{r.name.lower()} sat" for r in Rounding if r != Rounding.STOCHASTIC]
    for mode in [*modes, "ties_even wrap", "ties_even sat_zero"]:
        to = Cast.parse(f"s8 {mode}")
        functions[mode], bars[mode] = lambda to=to: cast(codes, DROP, to), 1
    for bits in (8, 16, 32):
        to, rand = Cast.parse(f"s8 stochastic{bits} sat"), random_operands(SIZE, bits, loads)
        mode = f"stochastic{bits} sat"
        functions[f"{mode}, drawn"] = lambda to=to: cast(codes, DROP, to, loads=loads)
        functions[f"{mode}, given"] = lambda to=to, rand=rand: cast(codes, DROP, to, rand)
        bars |= {f"{mode}, drawn": 0.5, f"{mode}, given": 0.5}
    report(f"{SIZE} codes, int32 to int8", race(functions, rounds=101), TORCH, bars, SIZE)


if __name__ == "__main__":
    main()
