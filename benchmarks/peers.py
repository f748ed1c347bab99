"""The same product in other tools: int8 codes, an accumulator that saturates at every addition.

`python benchmarks/peers.py`; each tool runs what comes closest in it, on operands that already are
codes. Its sums are compared with the definition ("every step"), with the exact sum clamped once
("at the end") and with the exact sum; `accumulator` says which one the tool could model.
"""

from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import torch
from race import machine, out, quartiles, race
from rich.table import Table

import emu
from emu import Format, MacSpec

SIZES = [(256, 16), (512, 17)]  # of the square matrices, with the accumulator's width
OURS = "emu"


def torch_mm(a, b, acc: Format):
    a, b = torch.from_numpy(a).float(), torch.from_numpy(b).float()
    return lambda: torch.mm(a, b)


def torch_fake_quantize(a, b, acc: Format):
    product = torch_mm(a, b, acc)
    return lambda: torch.fake_quantize_per_tensor_affine(product(), 1.0, 0, acc.lo, acc.hi)


def torch_loop(a, b, acc: Format):
    a, b = torch.from_numpy(a).int(), torch.from_numpy(b).int()

    def product():
        c = torch.zeros(a.shape[0], b.shape[1], dtype=torch.int32)
        for k in range(a.shape[1]):
            c.add_(a[:, k:k + 1] * b[k]).clamp_(acc.lo, acc.hi)
        return c

    return product


def qtorch_quantize(a, b, acc: Format):
    from qtorch.quant import fixed_point_quantize

    product = torch_mm(a, b, acc)  # its default, stochastic rounding, moves sums that need none
    return lambda: fixed_point_quantize(product(), acc.width, 0, rounding="nearest")


def brevitas_linear(a, b, acc: Format):
    from brevitas.nn import QuantLinear
    from brevitas.quant import Int8ActPerTensorFixedPoint, Int8WeightPerTensorFixedPoint

    layer = QuantLinear(  # with scales that are powers of two, here 1: they leave codes alone
        *b.shape, bias=False, weight_quant=Int8WeightPerTensorFixedPoint, weight_narrow_range=False,
        output_quant=Int8ActPerTensorFixedPoint, output_bit_width=acc.width,
        output_scaling_impl_type="const", output_scaling_init=2.0 ** (acc.width - 1)).eval()
    layer.weight.data = torch.from_numpy(b.T.copy()).float()
    a = torch.from_numpy(a).float()
    return torch.no_grad()(lambda: layer(a))


def apytypes_operands(*operands) -> list:
    from apytypes import fx

    return [fx(codes, int_bits=8, frac_bits=0) for codes in operands]


def apytypes_product(a, b, acc: Format):
    a, b = apytypes_operands(a, b)
    return lambda: a @ b


def apytypes_context(a, b, acc: Format):
    from apytypes import APyFixedAccumulatorContext, OverflowMode

    a, b = apytypes_operands(a, b)

    def product():
        with APyFixedAccumulatorContext(int_bits=acc.width, frac_bits=0,
                                        overflow=OverflowMode.SAT):
            return a @ b

    return product


def apytypes_loop(a, b, acc: Format):
    from apytypes import OverflowMode, fx

    a, b = apytypes_operands(a, b)

    def product():
        c = fx(np.zeros((a.shape[0], b.shape[1])), int_bits=acc.width, frac_bits=0)
        for k in range(a.shape[1]):
            c = (c + a[:, k:k + 1] * b[k:k + 1]).cast(acc.width, 0, overflow=OverflowMode.SAT)
        return c

    return product


class Peer(NamedTuple):
    """One way to compute the product; `build(a, b, acc)` returns the function to be timed."""

    build: Callable
    accumulator: str  # what it can model
    largest: int = 512  # the matrices it is given; slow ones would take minutes


PEERS = {  # (package, what is called): how
    ("torch", "mm"): Peer(torch_mm, "float32"),
    ("torch", "mm, fake_quantize"): Peer(torch_fake_quantize, "float32"),
    ("torch", "loop over k"): Peer(torch_loop, "any, by hand"),
    ("qtorch", "after torch.mm"): Peer(qtorch_quantize, "float32"),
    ("brevitas", "QuantLinear"): Peer(brevitas_linear, "float32"),
    ("apytypes", "@"): Peer(apytypes_product, "the exact sum's"),
    ("apytypes", "@ with accumulator"): Peer(apytypes_context, "casts products", 256),
    ("apytypes", "loop over k, cast"): Peer(apytypes_loop, "any, by hand", 256),
}


def verdict(sums, a, b, mac: MacSpec) -> str:
    """Which of the three the sums equal."""
    exact = a.astype(np.int64) @ b.astype(np.int64)
    acc = mac.acc.format
    wanted = {"every step": emu.matmul(a, b, mac, path="plain"),
              "at the end": np.clip(exact, acc.lo, acc.hi), "exact sum": exact}
    sums = sums.to_numpy() if hasattr(sums, "to_numpy") else np.asarray(sums)
    equal = [name for name, codes in wanted.items() if np.array_equal(sums, codes)]
    return ", ".join(equal) or "none"


def compare(n: int, width: int) -> None:
    """Every tool against emu, in pairs, on n x n matrices."""
    rng = np.random.default_rng(n)
    a, b = (np.clip(np.rint(rng.normal(0, 32, (n, n))), -128, 127).astype(np.int8) for _ in "ab")
    mac = MacSpec.parse(f"{{a: s8, b: s8, acc: s{width} sat}}")
    table = Table("", "accumulator", "sums equal", "ms", "G/s", f"x {OURS}", "quartiles",
                  title=f"{n} x {n} x {n}, {width} bits that saturate at every addition",
                  title_justify="left")

    def line(name, accumulator, function, times):
        low, found, high = quartiles(times, name, OURS)
        seconds = np.median(times[name])
        table.add_row(name, accumulator, verdict(function(), a, b, mac), f"{1e3 * seconds:.3f}",
                      f"{n**3 / seconds / 1e9:.3g}", f"{found:.2g}", f"{low:.2g} to {high:.2g}")

    def ours():
        return emu.matmul(a, b, mac)

    line(OURS, "any MacSpec", ours, race({OURS: ours}))
    missing = {}
    for (package, call), peer in PEERS.items():
        if n > peer.largest:
            continue
        try:
            function = peer.build(a, b, mac.acc.format)
        except Exception as error:  # not installed, or it does not build here
            missing[package] = (f"{package}: not measured, {' '.join(str(error).split()):.70}; "
                                "pip install -e '.[bench]' installs it (qtorch needs g++ too)")
            continue
        name = f"{package} {version(package).partition('+')[0]}: {call}"
        line(name, peer.accumulator, function, race({OURS: ours, name: function}))
    out.print(table)
    for reason in missing.values():
        out.print(reason, markup=False, soft_wrap=True)


def main() -> None:
    for n, width in SIZES:
        compare(n, width)


if __name__ == "__main__":
    out.print(machine())
    main()
