"""One thread or two: every operation writes the same bytes."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numba
import numpy as np
import pytest
from engine_cases import filled
from path_cases import expected

import emu
from emu import Cast, Format, MacSpec, NormSpec, SoftmaxSpec, Table, UpdateSpec, engine
from emu.engine.kernels import jit
from emu.engine.warmup import PATHS

S8, S20 = Format(8), Format(20)
X, W = filled((3, 4, 7, 7), S8, 0), filled((6, 2, 3, 3), S8, 1)
ERROR = filled((3, 6, 4, 4), S8, 2)
ROWS, COLUMNS, BIAS = filled((9, 20), S8, 3), filled((20, 300), S8, 4), filled((300,), S8, 5)
FLOATS = filled((7, 31), S20, 6) / 64.0
LOADS = engine.load_words(0, 0, "site", "forward", 0)
OPERANDS = engine.random_operands((7, 31), 8, LOADS)
MANY = filled((40000,), Format(12), 12)  # more than each thread takes in one turn
GEOMETRY = {"stride": 2, "padding": 1, "groups": 2}
MAC = MacSpec.parse("{a: s8, b: s8, product: s14f-1 ties_even, acc: s16f-1 sat, lanes: 2}")
EXACT = MacSpec.parse("{a: s8, b: s8, acc: s24}")
TWO_LEVEL = MacSpec.parse("{a: s8, b: s8, acc: s16 sat, tile: 4, outer: s18f-1 ties_odd sat}")
TO, DITHER = Cast.parse("s8 ties_even sat"), Cast.parse("s8 stochastic8 sat")
SPEC = UpdateSpec.parse({"weight": "s12f4 stochastic8 sat", "momentum": "s12f4 to_neg sat",
                         "grad": "s8f4", "lr": "u6f6", "mu": "u4f4"})
NORM = NormSpec.parse({
    "x": "s8", "mean": "s8f2", "var": "u20f4", "std": "u12f4", "xhat": "s8f5", "gamma": "s8f6",
    "beta": "s8", "y": "s8 stochastic8 sat", "backward": {
        "error": "s8", "mean_error": "s8f4", "mean_product": "s8f4", "scale": "s8f6",
        "grad_x": "s8 stochastic8", "grad_gamma": "s16", "grad_beta": "s16"}})
PER_CHANNEL = [filled((4,), Format(7, 0, False), 12)] * 2
SLOPE = Table.parse("{x: s8f4, y: s9f7 sat, function: grad_gelu}")
SOFTMAX = SoftmaxSpec.parse("{x: s8f4, exp: u12f11 sat, prob: u8f8 sat, loss: u8f5 sat}")
DRAWS = engine.random_operands(X.shape, 8, engine.load_words(0, 0, "site", "forward", 1))


def update():
    weight, momentum = filled((7, 31), Format(12), 7), filled((7, 31), Format(12), 8)
    return engine.sgd(weight, momentum, filled((7, 31), S8, 9), 40, 14, SPEC, None, OPERANDS)


def watched(operation) -> list:
    """What an operation returns, and its records."""
    with engine.monitor() as seen:
        out = operation()
    return [*out, repr(seen)]


MACS = {
    "exact matmul": lambda: [engine.matmul(ROWS, COLUMNS, EXACT)],
    "stepped matmul": lambda: [engine.matmul(ROWS, COLUMNS, MAC, BIAS)],
    "two-level matmul": lambda: [engine.matmul(ROWS, COLUMNS, TWO_LEVEL, BIAS)],
    "conv2d": lambda: [engine.conv2d(X, W, MAC, **GEOMETRY)],
    "gradient of x": lambda: [engine.conv2d_grad_input(ERROR, W, MAC, (7, 7), **GEOMETRY)],
    "gradient of w": lambda: [engine.conv2d_grad_weight(X, ERROR, MAC, (3, 3), **GEOMETRY)],
}
OPERATIONS = {
    **MACS,
    **{f"matmul, {path}": lambda path=path, text=text: [engine.matmul(
        ROWS, COLUMNS, MacSpec.parse(f"{{a: s8, b: s8, {text}}}"), path=path)]
       for path, text in PATHS.items() if path in expected()},
    **{f"watched {name}": partial(watched, mac) for name, mac in MACS.items()},
    "cast": lambda: engine.cast_full(FLOATS.astype(int), 3, TO),
    "stochastic cast": lambda: engine.cast_full(FLOATS.astype(int), 3, DITHER, OPERANDS),
    "drawn cast": lambda: engine.cast_full(MANY, 3, DITHER, loads=LOADS),
    "quantize": lambda: [engine.quantize(FLOATS, TO)],
    "max pool": lambda: engine.max_pool2d(X, 3, 2, 1),
    "gradient of max pool": lambda: [engine.max_pool2d_grad(
        filled((3, 4, 4, 4), S8, 10), engine.max_pool2d(X, 3, 2, 1)[1], (7, 7))],
    "average pool": lambda: [engine.avg_pool2d(X, 4, TO, 3, 2, 1, count_include_pad=False)],
    "gradient of average pool": lambda: [engine.avg_pool2d_grad(filled((3, 4, 4, 4), S8, 11), 4,
                                                                TO, (7, 7), 3, 2, 1)],
    "sgd": update,
    "statistics": lambda: engine.norm_statistics(X, NORM),
    "batch norm": lambda: engine.batch_norm(X, *PER_CHANNEL, *PER_CHANNEL, NORM, DRAWS),
    "gradients of batch norm": lambda: engine.batch_norm_grad(
        X, filled(X.shape, S8, 13), *PER_CHANNEL, NORM, rand={"grad_x": DRAWS}),
    "lookup": lambda: [engine.lookup(X, SLOPE)],
    "gradient of a lookup": lambda: engine.lookup_grad(X, 2, X, SLOPE, DITHER, DRAWS),
    "cross entropy": lambda: engine.cross_entropy(ROWS, np.arange(9), SOFTMAX),
}


@pytest.fixture
def threads():
    before = numba.get_num_threads()
    yield numba.set_num_threads
    numba.set_num_threads(before)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_two_threads_write_what_one_writes(operation, threads, monkeypatch):
    monkeypatch.setattr(jit, "TEAM", 0)  # else arrays this small run on one thread anyway
    threads(1)
    want = [np.asarray(part).tobytes() for part in operation()]
    threads(2)
    got = [np.asarray(part).tobytes() for part in operation()]
    assert got == want


def kernel(*arguments):
    """A kernel that says which of its twins ran."""
    return "team", *arguments


kernel.serial = lambda: lambda *arguments: ("serial", *arguments)


@pytest.mark.parametrize(("additions", "want"), [(jit.TEAM - 1, "serial"), (jit.TEAM, "team")])
def test_a_team_of_threads_starts_where_it_is_worth_it(additions, want):
    assert jit.launch(kernel, additions, 3, "x") == (want, 3, "x")


CALLERS = """
import threading
import numba
import numpy as np
from emu import MacSpec, engine
from emu.engine.kernels import jit

jit.TEAM = 0
numba.set_num_threads(2)
mac, a = MacSpec.parse("{a: s8, b: s8, acc: s16 sat}"), np.full((128, 128), 90, np.int8)
differ = []

def call():
    for _ in range(50):
        differ.append(bool((engine.matmul(a, a.T, mac) != 2**15 - 1).any()))

callers = [threading.Thread(target=call) for _ in range(3)]
for thread in callers:
    thread.start()
for thread in callers:
    thread.join()
print(numba.threading_layer(), len(differ), any(differ))
"""


def test_threads_that_call_at_once_take_turns_where_numba_has_only_its_own_pool():
    """Without OpenMP and TBB: that pool ends the process if two threads launch at once."""
    found = subprocess.run(
        [sys.executable, "-c", CALLERS], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "2",
             "PYTHONPATH": str(Path(emu.__file__).parent.parent)})
    assert (found.returncode, found.stdout.strip()) == (0, "workqueue 150 False"), found.stderr
