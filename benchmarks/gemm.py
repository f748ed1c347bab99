"""Matrix products of int8 codes against torch's float32 and int8 products.

`python benchmarks/gemm.py [SIZE ...]`; operands are gaussian with a deviation of 30 codes.
"""

import sys

import numpy as np
import torch
from race import machine, out, race, report

import emu
import emu.nn  # hands torch._int_mm to the engine
from emu import MacSpec

SPECS = {  # name: (MAC, what it is compared with, at least so many times as fast, forced path)
    "W = 16, saturating": ("{a: s8, b: s8, acc: s16 sat}", "mm", 0.9, None),
    "W = 24, saturating": ("{a: s8, b: s8, acc: s24 sat}", "mm", 0.55, "step32_native"),
    "W = 24, rails -hi to hi": ("{a: s8, b: s8, acc: s24 sat_sym}", "mm", 0.55, "step32_vnni"),
    "W = 24, portable kernel": ("{a: s8, b: s8, acc: s24 sat}", "mm", None, "step32"),
    "W = 20, tracked": ("{a: s8, b: s8, acc: s20 sat}", "mm", 1.5, "tracked"),
    "W = 52, saturating": ("{a: s8, b: s8, acc: s52 sat}", "mm", 0.25, "step64f_range"),
    "W = 62, saturating": ("{a: s8, b: s8, acc: s62 sat}", "mm", 0.15, "step64"),
    "W = 16, products >> 3": ("{a: s8, b: s8, product: s14f-3 ties_pos, acc: s16f-3 sat}", "mm",
                              0.8, None),
    "W = 31, products >> 3": ("{a: s8, b: s8, product: s14f-3 ties_pos, acc: s30f-3 sat}", "mm",
                              0.35, "step32_vnni_drop"),
    "W = 31, products >> 3, even": ("{a: s8, b: s8, product: s14f-3 ties_even, acc: s30f-3 sat}",
                                    "mm", None, "step32_round"),
    "lanes 4, W = 24": ("{a: s8, b: s8, acc: s24 sat, lanes: 4}", "mm", 0.55, "step32_vnni"),
    "lanes 16, W = 24": ("{a: s8, b: s8, acc: s24 sat, lanes: 16}", "mm", 0.55, "step32_vnni"),
    "tile 64, outer W = 24": ("{a: s8, b: s8, acc: s18 sat, tile: 64, outer: s24 sat}", "mm", None,
                              None),
    "wrap, W = 32": ("{a: s8, b: s8, acc: s32}", "_int_mm", 0.85, None),
    "wrap, W = 20": ("{a: s8, b: s8, acc: s20}", "_int_mm", 0.85, None),
    "wrap, W = 32, without torch": ("{a: s8, b: s8, acc: s32}", "_int_mm", None, "quads"),
    "the plain kernel": ("{a: s8, b: s8, acc: s24 sat}", "mm", None, "plain"),
}


def product(a, b, text: str, path: str | None):
    """The engine's product, ready to be timed."""
    mac = MacSpec.parse(text)
    return lambda: emu.matmul(a, b, mac, path=path)


def compare(n: int, base: str, peer) -> None:
    """All MACs that are compared with `peer` on n x n matrices."""
    rng = np.random.default_rng(n)
    a, b = (np.clip(np.rint(rng.normal(0, 30, (n, n))), -128, 127).astype(np.int8) for _ in "ab")
    dtype = torch.int8 if base == "_int_mm" else torch.float32
    tensors = [torch.from_numpy(codes).to(dtype) for codes in (a, b)]
    rows = {name: row for name, row in SPECS.items() if row[1] == base
            and (row[3] != "plain" or n <= 512)}
    times = race({f"torch.{base}": lambda: peer(*tensors)} | {
        name: product(a, b, text, path) for name, (text, _, _, path) in rows.items()})
    report(f"{n} x {n} x {n}", times, f"torch.{base}", {name: row[2] for name, row in rows.items()},
           n**3)


def main(*sizes: int) -> None:
    for n in sizes or (512, 1024):
        compare(n, "mm", torch.mm)
        compare(n, "_int_mm", torch._int_mm)


if __name__ == "__main__":
    out.print(machine())
    main(*map(int, sys.argv[1:]))
