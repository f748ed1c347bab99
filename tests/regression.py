"""The long comparison of every path with the plain kernel: `make regression`.

A case that differs is printed with its seed; `--seed S --first I --cases 1` draws it again.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from itertools import product

import conv_cases
import numba
import numpy as np
import path_cases
import test_engine_exhaustive

from emu.engine.kernels.vector import has_vnni, vector_bits

try:
    import emu.nn  # noqa: F401  hands in torch's product
except ModuleNotFoundError:
    print("no torch: its product is not compared")


def each(name: str, cases: list, compare: Callable) -> None:
    """Compare case by case, with a line of progress on a terminal."""
    for done, case in enumerate(cases):
        try:
            compare(case)
        except BaseException:
            print(f"\n{name}: case {case}", file=sys.stderr)
            raise
        if sys.stderr.isatty():
            print(f"\r{name}: {done + 1} of {len(cases)}", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)


def drawn(name: str, compare: Callable, seed: int, cases: range) -> None:
    """Compare cases, each drawn from (seed, case); print what they met."""
    taken, active = Counter(), Counter()
    each(f"{name}, seed {seed}", cases,
         lambda case: compare(np.random.default_rng([seed, case]), taken, active))
    print(f"{name}: {len(cases)} cases agree; comparisons (with an accumulator out of range): "
          + ", ".join(f"{path} {n} ({active[path]})" for path, n in taken.most_common()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--convolutions", type=int, default=5_000)
    parser.add_argument("--sequences", type=int, default=3, help="K of the exhaustive sequences")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    numba.set_num_threads(1)  # arrays this small only wait for their threads
    print(f"{vector_bits()}-bit vectors, {'with' if has_vnni() else 'without'} VNNI")
    for name, compare, count in (("products", path_cases.drawn_comparison, given.cases),
                                 ("convolutions", conv_cases.compare, given.convolutions)):
        drawn(name, compare, given.seed, range(given.first, given.first + count))
    if given.sequences:
        sequences = list(product(path_cases.MODES, range(1, given.sequences + 1)))
        each(f"all sequences of {given.sequences} pairs of 4 bits: rounding, lanes", sequences,
             lambda case: test_engine_exhaustive.every_sequence(*case, given.sequences))
        print(f"all sequences of {given.sequences} pairs of 4 bits agree")


if __name__ == "__main__":
    main()
