"""More of the Verilog than `make test` has time for; run by `make regression`.

Every committed vector through the compiled models and the synthesised gates, and an epoch of each
digits recipe computed in the Verilog: its weights must be the bytes that the engine gives.
"""

import dataclasses
import sys
import tempfile
import time
from pathlib import Path

from emu import cosim
from emu.lab.recipe import Recipe
from emu.lab.rtl import RtlBackend
from emu.lab.run import WEIGHTS
from emu.lab.train import train
from emu.nn.backend import Backend


def replayed(backend: str) -> bool:
    """Whether every committed vector matches in this engine."""
    begin = time.perf_counter()
    report = cosim.replay_arrays(cosim.default_vectors(), backend)
    print(*report.differences, sep="\n", end="\n" * bool(report.differences))
    print(f"{backend}: {report.cases} cases, {report.mismatches} differences, "
          f"{time.perf_counter() - begin:.0f} s")
    return report.ok


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
              (trained, "digits-mlp-int8"), (trained, "digits-cnn-int8")]
    failed = [f"{check.__name__} {what}" for check, what in checks if not check(what)]
    print("failed: " + ", ".join(failed) if failed else "the Verilog and the model agree")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
