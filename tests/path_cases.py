"""Cases that force every path of the engine against the plain kernel.

A theme says what hardware is drawn: any at all, or what one family of kernels is made for, on both
sides of its bounds. Start values lie at the rails, operands drift, burst and go to their extremes,
and half of the accumulators are as wide as the sums they meet.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np

from emu import Cast, Format, MacSpec, Overflow, Rounding, engine
from emu.engine import paths
from emu.engine.kernels import gemm
from emu.engine.kernels.vector import has_vnni
from emu.engine.operands import Matrix, Rows
from emu.engine.run import compute

MODES = [mode for mode in Rounding if mode != Rounding.STOCHASTIC]
CONSTANT = [Rounding.TO_NEG, Rounding.TO_POS, Rounding.TIES_NEG, Rounding.TIES_POS]
VNNI = {"quads", "pairs", "step32_native", "step32_vnni", "step32_vnni_drop", "step64f_range",
        "tracked", "int_mm"}
MATRICES = {"int_mm", "thin32", "thin64"}  # paths that convolutions do not take
SHORT, LONG = [0, 1, 2, 3, 4, 5, 15, 16, 17, 31, 33, 100], [16, 17, 31, 32, 33, 48, 64, 100, 150]


class Theme(NamedTuple):
    """What hardware is drawn: operand bits, accumulator bits, binary points, modes, lanes, K."""

    operands: list
    widths: list
    fracs: list
    modes: list
    overflows: list
    lanes: list
    depths: list
    signed: float = 0.8  # how often an operand is


SAT = [0, 1, 1, 1, 2]
THEMES = [
    Theme([1, 2, 4, 7, 8, 8, 9, 15, 16, 17, 24, 31, 32],
          [16, 17, 20, 24, 30, 31, 32, 33, 52, 53, 54, 62, *range(2, 63, 5)],
          [0, 0, 0, -1, -3, *range(-39, 0, 6), 2], MODES, [0, 1, 1, 1, 2, 3],
          [1, 1, 1, 2, 3, 4, 16], SHORT),
    Theme(list(range(2, 10)), list(range(5, 18)), [0, 0, 1], MODES, [0, 1, 1, 1], [1], SHORT, 0.95),
    Theme(list(range(5, 10)), [16], [-1, -2, -3, -5], [*CONSTANT, *MODES], [1], [1], SHORT, 0.95),
    Theme([7, 8, 9, 12, 15, 16, 17], list(range(16, 33)), [0, 0, -1, -2, -3, -7, -14],
          [*CONSTANT, *MODES], SAT, [1, 1, 2, 4, 16], SHORT),
    Theme([6, 7, 8, 8, 8], list(range(10, 32)), [0, 0, 0, 1], MODES, SAT,
          [1, 1, 2, 3, 4, 16, 20], LONG),
]


def expected() -> set[str]:
    """Every path that this CPU can take."""
    names = {*gemm.KERNELS, *MATRICES, "tracked"}
    return names if has_vnni() else names - VNNI


def drawn_operands(rng: np.random.Generator, theme: Theme) -> tuple:
    """(a (M, K), its format, b (K, N), its format), in int64."""
    m, k, n = (int(rng.choice([1, 2, 3, 7, 8, 9, 17, 33, 64, 65])), int(rng.choice(theme.depths)),
               int(rng.choice([1, 2, 15, 16, 31, 32, 33, 65])))
    a, b = (Format(int(rng.choice(theme.operands)), 0, bool(rng.random() < theme.signed))
            for _ in "ab")
    return drawn_codes(rng, a, (m, k)), a, drawn_codes(rng, b, (k, n)), b


def drawn_codes(rng: np.random.Generator, form: Format, shape: tuple) -> np.ndarray:
    """Codes that are uniform, small, extreme, drift to one side, or burst in some rows."""
    kind = rng.integers(7)
    if kind == 0:
        codes = rng.integers(form.lo, form.hi, shape, endpoint=True)
    elif kind == 1:
        codes = rng.integers(max(form.lo, -3), min(form.hi, 3), shape, endpoint=True)
    elif kind == 2:
        codes = rng.choice([form.lo, form.hi], shape)
    elif kind == 3:
        codes = rng.integers(form.hi // 2, form.hi, shape, endpoint=True)
    elif kind == 4:
        codes = np.full(shape, form.lo if rng.random() < 0.5 else form.hi)
    else:
        codes = rng.integers(form.lo // 4, form.hi // 4, shape, endpoint=True)
        rows = rng.random(shape[0]) < (0.05 if kind == 5 else 0.3)
        codes[rows] = rng.choice([form.lo, form.hi])
    return np.ascontiguousarray(codes, np.int64)


def drawn_mac(rng: np.random.Generator, theme: Theme, a, a_form, b, b_form) -> MacSpec | None:
    """Hardware of the theme for these operands, one or two levels; None where int64 is too small.
    """
    frac = int(rng.choice(theme.fracs))
    bits = a_form.width + b_form.width + frac
    product = None
    if frac:
        product = Cast(Format(int(np.clip(bits + rng.choice([0, 1, -1, -2]), 2, 62)), frac),
                       theme.modes[rng.integers(len(theme.modes))], Overflow(rng.integers(4)))
    width = int(rng.choice(theme.widths))
    if rng.random() < 0.5 and a.size * b.size:  # as wide as what the sums reach, or a bit off
        reach = np.abs(np.cumsum(a[:4, :, None].astype(float) * b[None, :, :4], axis=1)).max()
        near = int(np.ldexp(reach, frac)).bit_length() + int(rng.integers(3))
        width = near if near in theme.widths else width
    acc = Cast(Format(width, frac, bool(rng.random() < 0.85)),
               overflow=Overflow(int(rng.choice(theme.overflows))))
    lanes = int(rng.choice(theme.lanes))
    levels = {}
    if rng.random() < 0.1:
        reload = bool(rng.random() < 0.5)
        outer = Format(int(rng.integers(2, 50)), frac - int(rng.integers(0 if reload else -2, 6)))
        levels = {"tile": lanes * int(rng.integers(1, 5)), "reload": reload, "outer": Cast(
            outer, MODES[rng.integers(len(MODES))], Overflow(int(rng.integers(4))))}
    try:
        return MacSpec(a_form, b_form, acc, product, lanes, **levels)
    except ValueError:
        return None


def drawn_case(rng: np.random.Generator) -> tuple:
    """(mac, a, b, bias)."""
    while True:
        theme = THEMES[rng.integers(len(THEMES))]
        drawn = drawn_operands(rng, theme)
        mac = drawn_mac(rng, theme, *drawn)
        if mac is not None:
            a, _, b, _ = drawn
            result = mac.result.format
            rails = [0, 0, result.lo, result.hi, result.hi // 2] if rng.random() < 0.7 else [0]
            return mac, a, b, rng.choice(rails, b.shape[1]).astype(np.int64)


def compare(mac: MacSpec, a, b, bias, taken: Counter, active: Counter | None = None) -> None:
    """Every path that claims to hold gives the plain path's codes.

    `taken` counts the paths. `active`, if it is given, counts those where an accumulator left its
    range, which is found by watching; the codes of the watched MAC are compared too.
    """
    want = engine.matmul(a, b, mac, bias, path="plain")
    found = {"the fastest": engine.matmul(a, b, mac, bias)}
    names = ["two levels"]
    if active is not None:
        with engine.monitor() as seen:
            found["watched"] = engine.matmul(a, b, mac, bias)
    if mac.outer is None:
        names = [*every_path(mac, a, b, bias, found), *every_path(mac, a, b, bias, found, True)]
    for name, got in found.items():
        assert np.array_equal(got, want), (name, mac, a, b, bias)
    assert found["the fastest"].dtype == want.dtype, mac
    taken.update(names)
    if active is not None and seen[0].total.overflowing_steps:
        active.update(names)


def every_path(mac: MacSpec, a, b, bias, found: dict, turn: bool = False) -> list[str]:
    """The paths that this MAC may take, turned over or not; `found` receives their codes."""
    rows, columns, start = (b.T, a.T, bias[:, None]) if turn else (a, b, bias[None])
    problem = paths.Problem(Rows(rows), Matrix(columns), mac, start)
    names = list(paths.candidates(problem.facts))
    for path in names:
        codes, up = compute(problem, path)
        out = ((codes << up) >> up)[:rows.shape[0], :columns.shape[1]]
        found[path, turn] = out.T if turn else out
    return names


def drawn_comparison(rng: np.random.Generator, taken: Counter, active: Counter | None = None
                     ) -> None:
    """`compare` a case drawn from `rng`."""
    compare(*drawn_case(rng), taken, active)
