"""More of the Verilog than `make test` has time for; run by `make regression`.

Every committed vector through the compiled models and the synthesised gates; all 2^32 values of a
stochastic cast and all 2^32 products of 16 bits; the gates that an FPGA gets, proved equal to the
Verilog; and an epoch of each digits recipe computed in the Verilog: its weights must be the bytes
that the engine gives.
"""

import dataclasses
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import emu
from emu import cosim
from emu.cosim import yosys
from emu.cosim.places import rtl_sources
from emu.golden.cases import from_text
from emu.lab.recipe import Recipe
from emu.lab.rtl import RtlBackend
from emu.lab.run import WEIGHTS
from emu.lab.train import train
from emu.nn.backend import Backend

EQUIVALENT = ("proc; flatten; opt; "
              "equiv_opt -assert -async2sync -map +/ice40/cells_sim.v synth_ice40 ")


def replayed(backend: str) -> bool:
    """Whether every committed vector matches in this engine."""
    begin = time.perf_counter()
    report = cosim.replay_arrays(cosim.default_vectors(), backend)
    print(*report.differences, sep="\n", end="\n" * bool(report.differences))
    print(f"{backend}: {report.cases} cases, {report.mismatches} differences, "
          f"{time.perf_counter() - begin:.0f} s")
    return report.ok


def every_cast(text: str) -> bool:
    """Whether all codes of 16 bits agree with the engine under all 16-bit random operands."""
    unit = from_text(text)
    cast, frac = unit.source.cast, unit.source.source.frac
    value = np.tile(np.arange(-2**15, 2**15), 2**8)
    shift = np.full(value.size, frac - cast.format.frac)
    for first in range(0, 2**16, 2**8):
        rand = np.repeat(np.arange(first, first + 2**8), 2**16)
        found = cosim.run("quantizer", unit.parameters,
                          {"value_i": value, "shift_i": shift, "rand_i": rand}, "cxxrtl")
        if (found["code_o"] != emu.cast(value, frac, cast, rand=rand)).any():
            return False
    return True


def every_product(text: str) -> bool:
    """Whether all pairs of 16-bit operands give the engine's product, cast and fitted."""
    unit = from_text(text)
    mac, codes = unit.source, np.arange(-2**15, 2**15)
    once = np.ones(2**8 * codes.size, np.int64)
    inputs = {"a_i": np.tile(codes, 2**8), "bias_i": 0 * once, "load_i": once, "last_i": once}
    for first in range(-2**15, 2**15, 2**8):
        b = np.arange(first, first + 2**8)
        found = cosim.run("mac", unit.parameters,
                          {**inputs, "b_i": np.repeat(b, codes.size)}, "cxxrtl")
        want = emu.matmul(codes[:, None], b[None], mac).T.ravel()
        if (found["acc_o"] != want).any():
            return False
    return True


def synthesised(text: str) -> bool:
    """Whether Yosys proves the iCE40 netlist equal to the Verilog it was made from."""
    unit = from_text(text)
    begin = time.perf_counter()
    try:
        yosys.synthesise(unit.module, unit.parameters, rtl_sources((), unit.module), EQUIVALENT
                         + f"-top {unit.module}; write_json unit.json", "unit.json")
    except RuntimeError as error:
        print(error)
        return False
    print(f"the gates of {text} are proved equal, {time.perf_counter() - begin:.0f} s")
    return True


def trained(name: str) -> bool:
    """Whether an epoch in the Verilog gives the weights of the engine."""
    recipe = Recipe.load(name)
    recipe = dataclasses.replace(
        recipe, monitor=0, training=dataclasses.replace(recipe.training, epochs=1))
    weights = []
    for computes in (Backend, RtlBackend, RtlBackend):  # the second time all models are compiled
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            run = train(recipe, Path(folder) / "run", computes=computes)
            weights.append((run.path / WEIGHTS).read_bytes())
        print(f"{name}: an epoch in {computes.__name__}, {time.perf_counter() - begin:.1f} s")
    return len(set(weights)) == 1


def main() -> int:
    checks = [(replayed, "cxxrtl"), (replayed, "netlist"),
              (every_cast, "s16f12 -> s8f4 stochastic16 sat"),
              (every_product, "{a: s16, b: s16, product: s24f-6 ties_even, acc: s26f-6 sat}"),
              (synthesised, "s24f12 -> s8f4 ties_even sat"),
              (synthesised, "s16f8 -> s8f4 stochastic8 sat_sym"), (synthesised, "lfsr32"),
              (synthesised, "{a: s8, b: s8, acc: s20 sat}"),
              (trained, "digits-mlp-int8"), (trained, "digits-cnn-int8")]
    failed = [f"{check.__name__} {what}" for check, what in checks if not check(what)]
    print("failed: " + ", ".join(failed) if failed else "the Verilog and the model agree")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
