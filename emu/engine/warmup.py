"""Compile every kernel once, so that no later call waits."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from emu.engine import adder, casts, conv, masks, norm, pool, ranges, table, update
from emu.engine.arrays import bounds
from emu.engine.kernels import jit
from emu.engine.kernels.mac import add_start
from emu.engine.kernels.vector import has_vnni
from emu.engine.matmul import matmul
from emu.engine.monitor import monitor
from emu.norm import NormSpec
from emu.number import Cast, Format
from emu.rule import Rule
from emu.spec import MacSpec
from emu.table import SoftmaxSpec
from emu.update import BufferSpec, UpdateSpec

DROP = "product: s14f-3 {}, acc: {}"
PATHS = {  # each kernel of the MAC, and hardware that it computes
    "plain": "acc: s20 sat_zero", "tracked": "acc: s17 sat",
    "step16": "acc: s16 sat", "step16_drop": DROP.format("ties_pos", "s16f-3 sat"),
    "step32": "acc: s20 sat", "step32_native": "acc: s20 sat",
    "step32_round": DROP.format("ties_even", "s20f-3 sat"),
    "step32_vnni": "acc: s20 sat", "step32_vnni_drop": DROP.format("ties_pos", "s20f-3 sat"),
    "step64f": "acc: s40 sat", "step64f_range": "acc: s40 sat", "step64": "acc: s60 sat",
    "step64_round": DROP.format("ties_even", "s60f-3 sat"),
    "quads": "acc: s20", "pairs": "acc: s20", "sum32": "acc: s20", "sum64f": "acc: s40",
    "sum64": "acc: s60", "sum32_round": DROP.format("ties_even", "s20f-3"),
    "sum64_round": DROP.format("ties_even", "s60f-3"),
    "thin32": "acc: s20 sat", "thin64": "acc: s60 sat",
}
VNNI = {"tracked", "step64f_range", "step32_native", "step32_vnni", "step32_vnni_drop", "quads",
        "pairs"}


A, B, X, W = (np.random.default_rng(0).integers(-99, 99, shape).astype(np.int8)
              for shape in ((9, 40), (40, 33), (2, 3, 6, 6), (2, 3, 3, 3)))


def jobs() -> Iterator[tuple[str, Callable]]:
    """(what it is, a call that compiles it) for everything that this CPU can run."""
    for name, job in _operations():
        yield name, partial(_by_team_and_alone, job)


def _by_team_and_alone(job: Callable) -> None:
    """Run a job by a team of threads, and without: two compilations of each kernel."""
    least = jit.TEAM
    try:
        for jit.TEAM in (0, 1 << 62):
            job()
    finally:
        jit.TEAM = least


def _operations() -> Iterator[tuple[str, Callable]]:
    for path, text in PATHS.items():
        if path not in VNNI or has_vnni():
            mac = MacSpec.parse(f"{{a: s8, b: s8, {text}}}")
            yield f"product, {path}", partial(matmul, A, B, mac, path=path)
            if not path.endswith(("_drop", "_round")) and not path.startswith("thin"):
                yield f"convolution, {path}", partial(_convolutions, mac, path)
    tiled = MacSpec.parse("{a: s8, b: s8, acc: s20 sat, tile: 8, outer: s24 sat, reload: true}")
    yield "product in two levels", partial(matmul, A, B, tiled)
    yield "product, watched", partial(_watched, tiled)
    yield "product with a bias", _biased
    yield "masks", _masks
    for dtype in (np.float32, np.float64):
        yield f"border of {np.dtype(dtype)}", partial(_border, dtype)
    for dtype in (np.int8, np.int16, np.int32):
        for width in (8, 16, 32):
            to = Cast.parse(f"s{width}f-2 ties_even sat")
            yield (f"cast of {np.dtype(dtype)} to {width} bits",
                   partial(casts.cast_full, A.astype(dtype), 0, to))
    for what, to in (("wide", "s60"), ("stochastic", "s8f-2 stochastic8"), ("plain", "s63f4")):
        yield f"cast, {what}", partial(casts.cast_full, A.astype(np.int64), 0, Cast.parse(to),
                                       loads=[1] * 16)
    yield "ranges", partial(ranges.cast_for_codes, Rule.parse("s4 auto:sweep"), A, 0, None)
    yield "float border", partial(casts.quantize, A * 0.25, Cast.parse("s8 ties_even sat"))
    for dtype in (np.float32, np.float64):
        for width in (8, 16, 32):
            for rounding in ("ties_even", "stochastic8"):
                to = Cast.parse(f"s{width}f2 {rounding} sat")
                yield (f"{np.dtype(dtype)} to {width} bits, {rounding}", partial(
                    casts.quantize_full, A.astype(dtype), to, loads=[1] * 16))
    yield "absolute differences", partial(adder.adder2d, X, W,
                                          MacSpec.parse("{a: s8, b: s8, acc: s20 sat}"))
    yield "pooling", _pooling
    yield "batch norm", _norm
    yield "tables", _tables
    for dtypes in (np.int64,) * 3, (np.int16, np.int32, np.int32):
        yield f"update of {np.dtype(dtypes[0])} weights", partial(_update, dtypes)
    for dtype, width in (np.float32, 16), (np.float32, 24), (np.float64, 24):
        yield (f"update of {np.dtype(dtype)} by {width} bits",
               partial(_update_floats, np.dtype(dtype), width))


def _watched(mac: MacSpec) -> None:
    with monitor():
        matmul(A, B, mac)


def _biased() -> None:
    # As of a product by torch, which emu.nn hands in.
    jit.launch(add_start, 9, np.zeros((3, 3), np.int32), np.zeros(3, np.int32))
    # The gradient of a bias: columns that lie side by side.
    matmul(A.T, np.ones((len(A), 1), np.int8), MacSpec.parse("{a: s8, b: s8, acc: s20 sat}"))


def _border(dtype: type) -> None:
    floats = A.astype(dtype)
    casts.on_grid(floats, 0)
    for limit in (None, -2):
        casts.encode(floats, limit)
    for codes in (np.int8, np.int16, np.int32, np.int64):
        casts.floats_of(A.astype(codes), 0, dtype)
        bounds(A.astype(codes))
    for width in (8, 16, 24):
        casts.codes_on(floats, Format(width))


def _masks() -> None:
    for dtype in (np.int8, np.int16, np.int32, np.int64):
        masks.masked(A.astype(dtype), A > 0)
    for dtype in (np.float32, np.float64):
        masks.rectify(A.astype(dtype))


def _convolutions(mac: MacSpec, path: str) -> None:
    y = conv.conv2d(X, W, mac, path=path)
    error = np.clip(y, -128, 127).astype(np.int8)
    conv.conv2d_grad_input(error, W, mac, (6, 6), path=path)
    conv.conv2d_grad_weight(X, error, mac, 3, path=path)


def _pooling() -> None:
    out, index = pool.max_pool2d(X, 2)
    pool.max_pool2d_grad(out, index, X.shape[2:])
    shares = pool.avg_pool2d(X, 0, Cast.parse("s8 ties_even sat"), 2)
    pool.avg_pool2d_grad(shares, 0, Cast.parse("s8 ties_even sat"), X.shape[2:], 2)


def _norm() -> None:
    for bits in (8, 30):  # in lanes of 32 bits, and of 64
        spec = NormSpec.parse({
            "x": "s8", "mean": "s8", "var": "u16", "std": "u8", "xhat": "s8", "gamma": f"s{bits}",
            "beta": "s8", "y": "s8", "backward": {
                "error": "s8", "mean_error": "s8", "mean_product": "s8", "scale": f"s{bits}",
                "grad_x": "s8", "grad_gamma": "s8", "grad_beta": "s8"}})
        state = norm.norm_statistics(X, spec)
        gamma = np.full(X.shape[1], 1 << bits - 2)
        y, xhat, *_ = norm.batch_norm(X, state.mean, state.var, gamma, state.mean, spec)
        norm.batch_norm_grad(y, xhat, state.var, gamma, spec)


def _tables() -> None:
    spec = SoftmaxSpec.parse("{x: s8f4, exp: u8f8 sat, prob: u8f8 sat, loss: u8f4 sat}")
    table.cross_entropy(A, np.zeros(len(A), np.int64), spec)


def _update(dtypes: tuple) -> None:
    casts = {"weight": "s8", "momentum": "s16", "grad": "s8", "lr": "u4f4", "mu": "u4f4"}
    buffer = BufferSpec.parse({"weight": "s8", "buffer": "s16f6", "grad": "s8"})
    state = [np.zeros((3, 4), dtype) for dtype in dtypes]
    update.sgd(*state, 1, 1, UpdateSpec.parse(casts))
    update.sgd(*state, 1, 1, UpdateSpec.parse(casts | {"nesterov": "s16"}))
    update.sgd(*state, 1, 1, UpdateSpec.parse(casts | {"lr": "u20f20"}))  # beyond 32 bits
    update.buffered_sgd(*state, 0, buffer)


def _update_floats(dtype: np.dtype, width: int) -> None:
    spec = UpdateSpec.parse({"weight": "s8", "momentum": f"s{width}", "grad": "s8", "lr": "u4f4",
                             "mu": "u4f4"})
    plan = update.floats_plan(spec, 1, 1, dtype, 0)
    update.sgd_of_floats(np.zeros(4, dtype), np.zeros(4, plan.momentum), np.zeros(4, dtype), plan)
