"""Convolutions that force the flat planes against im2col, in all three passes.

Kernels of 1 to 5, not square; strides, dilations and paddings that leave pixels unread or whole
windows on the border; groups down to depthwise; blocks, lanes and two levels that order the sum.
"""

from collections import Counter

import numpy as np
import path_cases
from path_cases import MODES, drawn_codes

from emu import Cast, Format, MacSpec, Overflow, engine

PASSES = "forward", "grad_input", "grad_weight"


def drawn_mac(rng: np.random.Generator) -> MacSpec:
    """A narrow MAC, most often one that leaves its range."""
    while True:
        a, b = (Format(int(rng.choice([2, 4, 8, 8, 8, 9, 12])), 0, bool(rng.random() < 0.8))
                for _ in "ab")
        frac = int(rng.choice([0, 0, 0, -1, -3]))
        bits = a.width + b.width + 1 + frac
        product = None
        if frac:
            product = Cast(Format(max(bits - int(rng.integers(3)), 2), frac),
                           MODES[rng.integers(len(MODES))], Overflow(rng.integers(4)))
        width = int(rng.choice([16, 20, 24, 40, max(bits, 2), bits + 1, bits + 2]))
        acc = Cast(Format(width, frac, bool(rng.random() < 0.9)),
                   overflow=Overflow(int(rng.choice([0, 1, 1, 1, 2, 3]))))
        lanes = int(rng.choice([1, 1, 1, 2, 3]))
        levels = {"block": int(rng.choice([1, 1, 2, 3, 4]))}
        if rng.random() < 0.15:
            levels |= {"tile": lanes * int(rng.integers(1, 7)), "reload": bool(rng.random() < 0.5),
                       "outer": Cast(Format(int(rng.integers(6, 24)), frac - 1),
                                     MODES[rng.integers(len(MODES))], Overflow(rng.integers(4)))}
        try:
            return MacSpec(a, b, acc, product, lanes, **levels)
        except ValueError:
            continue


def drawn_layer(rng: np.random.Generator) -> dict:
    """Shapes of x, w and error, and the geometry."""
    while True:
        kernel, stride, dilation = (tuple(rng.integers(1, top + 1, 2).tolist())
                                    for top in (5, 3, 3))
        padding = tuple(rng.choice([0, 0, 1, 1, 2, 3, 7], 2).tolist())
        size = tuple(rng.integers(1, 15, 2).tolist())
        out = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in
                    zip(size, kernel, stride, padding, dilation, strict=True))
        if min(out) > 0:
            break
    groups = int(rng.choice([1, 1, 1, 2, 3]))
    inputs, outputs = (groups * int(rng.choice([1, 1, 2, 3, 5, 9])) for _ in "xy")
    batch = int(rng.integers(1, 4))
    return {"x": (batch, inputs, *size), "w": (outputs, inputs // groups, *kernel),
            "error": (batch, outputs, *out),
            "geometry": {"stride": stride, "padding": padding, "dilation": dilation,
                         "groups": groups}}


def call(which: str, mac: MacSpec, layer: dict, operands: tuple, bias, **options) -> np.ndarray:
    """One pass of a layer on its two operands; `bias` is the forward pass's, or None."""
    if which == "forward":
        return engine.conv2d(*operands, mac, bias, **layer["geometry"], **options)
    if which == "grad_input":
        return engine.conv2d_grad_input(*operands, mac, layer["x"][2:], bias, **layer["geometry"],
                                        **options)
    return engine.conv2d_grad_weight(*operands, mac, layer["w"][2:], **layer["geometry"],
                                     **options)


def compare(rng: np.random.Generator, taken: Counter, active: Counter) -> None:
    """One layer, all passes: the planes give the codes of im2col, by every path that may be forced.

    `taken` counts passes and paths, `active` those where an accumulator left its range.
    """
    layer = drawn_layer(rng)
    for which, names in zip(PASSES, (("x", "w"), ("error", "w"), ("x", "error")), strict=True):
        mac = drawn_mac(rng)
        operands = tuple(drawn_codes(rng, form, layer[name]).astype(dtype) for form, name, dtype in
                         zip((mac.a, mac.b), names, rng.choice([np.int16, np.int32, np.int64], 2),
                             strict=True))
        outputs = {"forward": layer["w"][0], "grad_input": layer["x"][1]}.get(which)
        form, bias = mac.result.format, None
        if outputs and rng.random() < 0.5:
            bias = rng.choice([0, form.lo, form.hi, form.hi // 2], outputs)
        want = call(which, mac, layer, operands, bias, path="plain")
        with engine.monitor() as seen:
            watched = call(which, mac, layer, operands, bias)
        case = which, mac, layer, operands, bias
        for got in (call(which, mac, layer, operands, bias), watched):
            assert np.array_equal(got, want) and got.dtype == want.dtype, case
        ran = [which]
        for path in sorted(path_cases.expected()) if rng.random() < 0.2 else ():
            try:
                got = call(which, mac, layer, operands, bias, path=path)
            except ValueError as error:
                assert "not exact, or unknown" in str(error) or "only the plain" in str(error)
            else:
                assert np.array_equal(got, want), (path, *case)
                ran.append(path)
        taken.update(ran)
        active.update(ran if seen[0].total.overflowing_steps else ())
