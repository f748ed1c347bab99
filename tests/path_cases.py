"""Cases that force every path of the engine against the plain kernel.

Widths, rails and sizes are drawn so that both sides of each path's bound come up: operands of 1 to
32 bits, accumulators of 2 to 62, start values at the rails, operands that drift to one side.
"""

from collections import Counter

import numpy as np

from emu import Cast, Format, MacSpec, Overflow, Rounding, engine
from emu.engine import paths
from emu.engine.operands import Matrix, Rows
from emu.engine.run import compute

MODES = [mode for mode in Rounding if mode != Rounding.STOCHASTIC]


def drawn_mac(rng: np.random.Generator) -> MacSpec:
    """A random MAC that int64 holds, one or two levels."""
    while True:
        a, b = (Format(int(rng.choice([1, 2, 4, 7, 8, 8, 8, 9, 15, 16, 17, 24, 31, 32])), 0,
                       bool(rng.random() < 0.75)) for _ in "ab")
        low, high = (f(x * y for x in (a.lo, a.hi) for y in (b.lo, b.hi)) for f in (min, max))
        if high >= 1 << 63:
            continue
        frac = int(rng.choice([0, 0, 0, -1, -3, -int(rng.integers(1, 40)), 2]))
        bits = Format.holding(min(low, -1), high).width
        product = None
        if frac:
            width = max(bits + frac, 1) + int(rng.choice([0, 1, 2, -1, -2]))
            if not 2 <= width <= 62:
                continue
            product = Cast(Format(width, frac), MODES[rng.integers(len(MODES))],
                           Overflow(int(rng.integers(4))))
        width = int(rng.choice([16, 17, 20, 24, 30, 31, 32, 33, 52, 53, 54, 62,
                                rng.integers(2, 63), min(max(bits + frac + 2, 2), 62)]))
        acc = Cast(Format(width, frac, bool(rng.random() < 0.85)),
                   overflow=Overflow(int(rng.choice([0, 1, 1, 1, 2, 3]))))
        lanes = int(rng.choice([1, 1, 1, 2, 3, 4, 16]))
        levels = {}
        if rng.random() < 0.2:
            reload = bool(rng.random() < 0.5)
            finer = int(rng.integers(0 if reload else -2, 6))
            outer = Format(int(rng.integers(2, 50)), frac - finer)
            levels = {"tile": lanes * int(rng.integers(1, 5)), "reload": reload, "outer": Cast(
                outer, MODES[rng.integers(len(MODES))], Overflow(int(rng.integers(4))))}
        try:
            return MacSpec(a, b, acc, product, lanes, **levels)
        except ValueError:
            continue


def drawn_codes(rng: np.random.Generator, form: Format, shape: tuple) -> np.ndarray:
    """Codes that are uniform, small, extreme, or drift to one side."""
    kind = rng.integers(5)
    if kind == 0:
        codes = rng.integers(form.lo, form.hi, shape, endpoint=True)
    elif kind == 1:
        codes = rng.integers(max(form.lo, -3), min(form.hi, 3), shape, endpoint=True)
    elif kind == 2:
        codes = rng.choice([form.lo, form.hi], shape)
    elif kind == 3:
        codes = rng.integers(form.hi // 2, form.hi, shape, endpoint=True)
    else:
        codes = np.full(shape, form.lo if rng.random() < 0.5 else form.hi)
    return np.ascontiguousarray(codes, np.int64)


def compare(rng: np.random.Generator, taken: Counter) -> None:
    """One case: every path that claims to hold gives the plain path's codes."""
    mac = drawn_mac(rng)
    m, k, n = (int(rng.choice([1, 2, 3, 7, 8, 9, 17, 33, 64, 65])),
               int(rng.choice([0, 1, 2, 3, 4, 5, 15, 16, 17, 31, 33, 100])),
               int(rng.choice([1, 2, 15, 16, 31, 32, 33, 65])))
    a, b = drawn_codes(rng, mac.a, (m, k)), drawn_codes(rng, mac.b, (k, n))
    result = mac.result.format
    bias = rng.choice([0, 0, result.lo, result.hi, result.hi // 2], n).astype(np.int64)
    want = engine.matmul(a, b, mac, bias, path="plain")
    got = engine.matmul(a, b, mac, bias)
    assert np.array_equal(got, want) and got.dtype == want.dtype, (mac, a, b, bias)
    if mac.outer is not None:
        taken["two levels"] += 1
        return
    for rows, columns, start, turn in ((a, b, bias[None], False), (b.T, a.T, bias[:, None], True)):
        problem = paths.Problem(Rows(rows), Matrix(columns), mac, start)
        for path in paths.candidates(problem):
            codes, up = compute(problem, path, start)
            out = ((codes << up) >> up)[:rows.shape[0], :columns.shape[1]]
            assert np.array_equal(out.T if turn else out, want), (path, mac, a, b, bias)
            taken[path] += 1
