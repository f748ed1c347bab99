"""A failing accumulation is explained at its step: sum, k, tap, operands, before and after."""

import re

import numpy as np
import pytest

from emu.cosim import hardware, replay, replay_arrays
from emu.golden import read_manifest, write_vectors
from emu.golden.explain import explain_line, explain_step
from emu.golden.trace import write_step
from emu.golden.units import unpack
from emu.lab.record import Recorder
from emu.nn.backend import Backend, Place
from emu.number import Format
from emu.spec import MacSpec


def test_a_replayed_accumulation_is_explained_at_its_step(tmp_path):
    write_vectors(tmp_path / "v", "{a: s8, b: s8, acc: s16 sat, lanes: 2}")
    wrong = tmp_path / "mac.v"
    text = (hardware() / "rtl" / "mac.v").read_text()
    assert text.count("k < LANES;") == 1
    wrong.write_text(text.replace("k < LANES;", "k < LANES - 1;"))
    for report in (replay(tmp_path / "v", rtl=[wrong]),
                   replay_arrays(tmp_path / "v", "cxxrtl", rtl=[wrong])):
        first = report.differences[0]
        number = int(re.search(r":(\d+)  ", first)[1])
        step, *products, total = report.explained
        file, = read_manifest(tmp_path / "v").files
        lines = list(file.lines())
        start = max((i for i in range(number) if lines[i][0] == "1"), default=0)
        assert step.startswith(f"step {number - start} of ") and len(products) == 2
        k = 2 * (number - 1 - start)
        a, b = (unpack(int(lines[number - 1][i], 16), Format(8), 2) for i in (3, 4))
        for i in range(2):
            assert products[i] == f"  k {k + i}: a {a[i]} * b {b[i]} = {a[i] * b[i]}"
        held = lines[number - 2][6] if number - 1 > start else "0"  # the first comes after reset
        before, = unpack(int(held, 16), Format(16), 1)
        assert step.endswith(f"before it the sum is {before}")
        exact = before + a[0] * b[0] + a[1] * b[1]
        assert f"= {exact}" in total and "came " in total


def test_a_step_tells_casts_and_tiles():
    mac = MacSpec.parse("{a: s8, b: s8, product: s12f-2 ties_even sat, acc: s13f-2 sat, lanes: 2}")
    assert explain_step(mac, [127, 127, 3], [127, 127, 2], 5, 1, 7) == [
        "step 2 of 2, k = 2, bias 5: before it the sum is 4095",
        "  k 2: a 3 * b 2 = 6, as s12f-2 ties_even sat 2",
        "  4095 + 2 = 4097, out of s13f-2 (-4096 to 4095): sat gives 4095, came 7"]
    mac = MacSpec.parse("{a: s8, b: s8, acc: s17, tile: 1, outer: s20}")
    assert explain_step(mac, [1, 2], [3, 4], 0, 1, 0)[-1] == \
        "  with tiles of 1 into s20f0 to_neg wrap: 11, came 0"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A convolution and its gradients as vectors: (x, w, error, file by pass)."""
    rng, recorder = np.random.default_rng(1), Recorder(Backend(0))
    mac = MacSpec.parse("{a: s8, b: s8, acc: s24 sat, block: 2}")
    x, w, error = (rng.integers(-128, 128, shape)
                   for shape in ((2, 3, 4, 5), (4, 3, 3, 2), (2, 4, 4, 6)))
    place = lambda name: Place("conv", name, True)  # noqa: E731
    recorder.conv2d(place("forward"), x, w, mac, padding=1)
    recorder.conv2d_grad_input(place("grad_input"), error, w, mac, (4, 5), padding=1)
    recorder.conv2d_grad_weight(place("grad_weight"), x, error, mac, (3, 2), padding=1)
    folder = write_step(tmp_path_factory.mktemp("step") / "v", recorder.traces, {})
    files = {file.name.split(".")[1]: file for file in read_manifest(folder).files}
    return x, w, error, files


def named(line: str) -> dict[str, int]:
    """`(n 0, in block 1)` and `a 5 * b -3` as numbers by name."""
    found = re.findall(r"((?:in |out )?\w+) (-?\d+)", line)
    return {name: int(value) for name, value in found}


@pytest.mark.parametrize("name", ["forward", "grad_input", "grad_weight"])
def test_a_recorded_convolution_names_its_sum_and_its_tap(recorded, name):
    x, w, error, files = recorded
    lines = list(files[name].lines())
    for number in range(1, len(lines) + 1, len(lines) // 23):
        step, product, _ = explain_line(files[name], number, lines[number - 1])
        at = named(step.split("(")[1].split(")")[0])
        tap = named(product.split("(")[1].split(")")[0])
        values = named(product.split("):")[1])
        if name == "forward":
            c, taps = tap["in block"] * 2 + tap["in"], (tap["ky"], tap["kx"])
            a = pixel(x, at["n"], c, at["y"] + taps[0] - 1, at["x"] + taps[1] - 1)
            b = w[at["out"], c][taps] if c < 3 else 0
        elif name == "grad_input":
            o, taps = tap["out block"] * 2 + tap["out"], (tap["ky"], tap["kx"])
            a = pixel(error, at["n"], o, at["y"] + 1 - taps[0], at["x"] + 1 - taps[1])
            b = w[o, at["in"]][taps]
        else:
            a = pixel(x, tap["n"], at["in"], tap["y"] + at["ky"] - 1, tap["x"] + at["kx"] - 1)
            b = error[tap["n"], at["out"], tap["y"], tap["x"]]
        assert (values["a"], values["b"]) == (a, b), (number, step, product)


def pixel(images, n, c, y, x):
    """A code, or the zero of padding and of channels that are not there."""
    inside = c < images.shape[1] and 0 <= y < images.shape[2] and 0 <= x < images.shape[3]
    return images[n, c, y, x] if inside else 0
