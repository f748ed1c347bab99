"""What the engine's tests share: seeded arrays of codes, and the definition's results as lists."""

from collections.abc import Iterable

import numpy as np
from hypothesis import strategies as st
from strategies import casts, codes, formats

from emu import Cast, Format, MacSpec, reference

U64 = Format(64, 0, signed=False)  # the one format that int64 does not hold
held_formats = formats((1, 64), (0, 0)).filter(lambda form: form != U64)
held_casts = casts((1, 64), (0, 0)).filter(lambda to: to.format != U64)


def operands(to: Cast, count: int) -> st.SearchStrategy[list[int]]:
    """The random operands of a cast, one for each element; 0 where the cast draws none."""
    one = codes(Format(to.rand_bits, 0, signed=False)) if to.rand_bits else st.just(0)
    return st.lists(one, min_size=count, max_size=count)


def filled(shape: tuple, form: Format, seed: int) -> np.ndarray:
    """Seeded codes of a format; every fourth one is a bound, so that sums drift and overflow."""
    generator = np.random.default_rng(seed)
    inner = generator.integers(form.lo, form.hi, shape, np.int64, endpoint=True)
    bounds = np.where(generator.random(shape) < 0.7, form.hi, form.lo)
    return np.where(generator.random(shape) < 0.25, bounds, inner)


def stepped(terms: Iterable[tuple[list[int], list[int]]], mac: MacSpec, biases: Iterable[int]
            ) -> tuple[list[int], list[int]]:
    """(results, numbers of overflowing steps) of the definition, one for each output."""
    results, counts = [], []
    for (a, b), bias in zip(terms, biases, strict=True):
        steps = list(reference.dot_steps(a, b, mac, bias))
        results.append(steps[-1][0] if steps else bias)
        counts.append(sum(overflowed for _, overflowed in steps))
    return results, counts
