"""Vector sets through the Verilog: everything matches, and whatever is broken is found."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from itertools import chain
from pathlib import Path
from xml.etree import ElementTree

import pytest

from emu.cosim import (
    ToolMissing,
    default_vectors,
    hardware,
    replay,
    replay_arrays,
    simulator,
)
from emu.cosim.prove import prove
from emu.golden import read_manifest, write_vectors
from emu.golden.cases import file_name, from_text, records
from emu.golden.units import (
    QuantizerSpec,
    mac_records,
    mac_unit,
    quantizer_records,
    quantizer_unit,
)
from emu.golden.vectors import vector_set
from emu.number import Overflow, Rounding
from emu.spec import MacSpec

RTL = hardware() / "rtl"


@pytest.fixture(scope="module")
def committed():
    return replay(default_vectors())


def mutant(folder: Path, module: str, old: str, new: str) -> Path:
    text = (RTL / f"{module}.v").read_text()
    assert text.count(old) == 1
    path = folder / f"{module}.v"
    path.write_text(text.replace(old, new))
    return path


def flip_bit(folder: Path, name: str, line: int, column: int) -> None:
    """Flip the lowest bit of one field, and make the manifest agree."""
    path = folder / name
    lines = path.read_text().splitlines()
    fields = lines[line - 1].split("_")
    fields[column] = f"{int(fields[column], 16) ^ 1:0{len(fields[column])}x}"
    lines[line - 1] = "_".join(fields)
    old = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text("\n".join(lines) + "\n")
    new = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace(old, new))


def test_the_committed_vectors_match(committed):
    assert committed.differences == []
    assert committed.ok
    assert committed.cases == sum(f.cases for f in read_manifest(default_vectors()).files)


def test_bubbles_and_stalls_do_not_matter():
    assert replay(default_vectors(), bubbles=True).differences == []


def test_every_small_quantizer_is_exact(tmp_path):
    """5 to 3 bits: all values, shifts and operands, in all 12 roundings and 4 overflows."""
    with vector_set(tmp_path / "v", {}) as writer:
        for rounding in Rounding:
            for overflow in Overflow:
                bits = 3 if rounding == Rounding.STOCHASTIC else 0
                text = f"{rounding.name.lower()}{bits or ''} {overflow.name.lower()}"
                spec = QuantizerSpec.parse(f"s5f6 -> s3f0 {text} align 1")
                unit = quantizer_unit(spec)
                every = [(value, shift, rand) for value in range(-16, 16) for shift in range(9)
                         for rand in range(1 << bits or 1)]
                writer.add(file_name(unit), unit, [("all", quantizer_records(spec, every))])
    report = replay(tmp_path / "v")
    assert (len(report.files), report.differences) == (48, [])


def test_every_small_mac_is_exact(tmp_path):
    """One step from every accumulator state, with every operand, in several shapes."""
    shapes = ["a: s3, b: s3, acc: s4f0", "a: u3, b: s2, acc: s5f0", "a: s2, b: u3, acc: s3f0",
              "a: u2, b: u2, acc: u3f0", "a: s3, b: s3, product: s3f-1 ties_odd sat, acc: s4f-1",
              "a: u3, b: s3, product: s2f-2 to_zero, acc: s4f-2",
              "a: s2, b: s3, product: s5f2 sat, acc: s6f2"]
    with vector_set(tmp_path / "v", {}) as writer:
        for shape in shapes:
            for mode in Overflow:
                mac = MacSpec.parse(f"{{{shape} {mode.name.lower()}, lanes: 2}}")
                every = (mac_records(mac, [x, 1], [y, y], bias)
                         for x in _codes(mac.a) for y in _codes(mac.b)
                         for bias in _codes(mac.acc.format))
                writer.add(f"{len(writer.entries)}.hex", mac_unit(mac),
                           [("all", chain.from_iterable(every))])
    report = replay(tmp_path / "v")
    assert (len(report.files), report.differences) == (28, [])


def _codes(form):
    return range(form.lo, form.hi + 1)


def test_one_flipped_bit_is_one_difference_naming_its_line(tmp_path):
    write_vectors(tmp_path / "v", "{a: s8, b: s8, acc: s16 sat}")
    name, = [file.name for file in read_manifest(tmp_path / "v").files]
    flip_bit(tmp_path / "v", name, 17, 6)
    junit = tmp_path / "out" / "junit.xml"
    report = replay(tmp_path / "v", junit=junit)
    assert (report.mismatches, len(report.differences), report.ok) == (1, 1, False)
    assert re.fullmatch(rf"{name}:17  load_i=1 .* b_i=.. => acc_o=\w+, expected \w+ \(-?\d+\)",
                        report.differences[0])
    suite = ElementTree.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("1", "1")
    assert f"{name}:17" in suite.find("testcase/failure").text


@pytest.mark.parametrize(("module", "old", "new"), [
    ("quantizer", "TIES_EVEN:  round_up = above || (tie && odd)",
     "TIES_EVEN:  round_up = above || (tie && !odd)"),
    ("quantizer", ": over                       ? HI[", ": over                       ? LO["),
    ("quantizer", "lower = |(rest << 1)", "lower = |(rest << 2)"),
    ("mac", "? TREE : ACC_WIDTH) + 2", "? TREE : ACC_WIDTH) + 1"),
    ("mac", ".OVERFLOW(ACC_OVERFLOW)", ".OVERFLOW(ACC_OVERFLOW == 1 ? 2 : ACC_OVERFLOW)"),
    ("mac", "(ovf_o && !load)", "ovf_o"),
    ("mac", "valid && last", "valid && load"),
    ("lfsr", "32'h80200003", "32'ha3000000"),
    ("register", "else if (en_i)", "else"),
])
def test_a_mutated_module_is_caught(tmp_path, module, old, new):
    text = (RTL / f"{module}.v").read_text()
    path = tmp_path / f"{module}.v"
    path.write_text(text.replace(old, new))
    assert old in text
    report = replay(default_vectors(), rtl=[path], bubbles=True)
    assert not report.ok and report.differences


def test_a_saturation_bound_off_by_one_is_caught(tmp_path):
    path = mutant(tmp_path, "quantizer", "- ONE;\n  localparam signed [WIDE-1:0] LO",
                  "- ONE - ONE;\n  localparam signed [WIDE-1:0] LO")
    report = replay(default_vectors(), rtl=[path])
    assert {file.unit for file in report.files if file.mismatches} == {
        "quantizer", "mac", "mac_tiled", "flag_quantizer", "sgd_update"}
    assert len(report.differences) == 21 and "more" in report.differences[-1]


def test_a_step_that_never_comes_is_a_difference(tmp_path):
    path = mutant(tmp_path, "mac", ".d_i({valid, valid && last})", ".d_i({1'b0, 1'b0})")
    report = replay(write_vectors(tmp_path / "v", "{a: s4, b: s4, acc: s8}"), rtl=[path])
    assert report.mismatches == report.cases
    assert "only 0 of" in report.differences[0]


def test_an_end_without_a_step_is_a_difference(tmp_path):
    path = mutant(tmp_path, "mac", ".d_i({valid, valid && last})", ".d_i({valid, !valid || last})")
    report = replay(write_vectors(tmp_path / "v", "{a: s4, b: s4, acc: s8}"), rtl=[path])
    assert report.mismatches


def test_verilog_that_no_vector_would_try_is_refused(tmp_path):
    vectors = write_vectors(tmp_path / "v", "lfsr4")
    for tried in (partial(replay, vectors), partial(replay_arrays, vectors, "icarus"),
                  lambda rtl: prove([(from_text("lfsr4"), {})], rtl)):
        with pytest.raises(ValueError, match=r"mac\.v: no part of lfsr, which alone"):
            tried(rtl=[RTL / "mac.v"])


def test_an_x_is_a_difference(tmp_path):
    path = mutant(tmp_path, "quantizer", "assign ovf_o = over || under;", "assign ovf_o = 1'bx;")
    assert replay(write_vectors(tmp_path / "v", "s8f4 -> s4f0 sat"), rtl=[path]).mismatches


def test_verilog_that_does_not_elaborate_is_one_clear_line(tmp_path):
    path = mutant(tmp_path, "mac", "wire ovf_d =", "wire ovf_d = nothing +")
    with pytest.raises(RuntimeError, match=r"icarus could not build top: .*nothing") as caught:
        replay(default_vectors(), rtl=[path])
    assert "\n" not in str(caught.value)


def test_a_missing_simulator_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolMissing, match="iverilog is not on PATH: apt-get install iverilog"):
        replay(default_vectors())


def test_missing_cocotb_names_the_extra(monkeypatch):
    monkeypatch.setattr(simulator, "find_spec", lambda name: None)
    with pytest.raises(ToolMissing, match=r"pip install emu\[hw\]"):
        replay(default_vectors())


def test_golden_and_cosim_import_without_cocotb():
    code = ("import sys; sys.modules['cocotb'] = sys.modules['cocotb_tools'] = None\n"
            "import emu.golden, emu.cosim\n"
            "assert not {'numpy', 'emu.engine'} & sys.modules.keys()")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=hardware().parent)


def test_zero_tests_run_is_a_failure(tmp_path):
    with pytest.raises(RuntimeError, match="No tests were discovered"):
        simulator.simulate("icarus", tmp_path, "register", [RTL / "register.v"], "replay", 0)


def test_a_test_that_did_not_run_is_a_failure(tmp_path):
    (tmp_path / "top.v").write_text(
        "module top; reg go = 0, done = 0; always @(posedge go) done = 1; endmodule\n"
        "module outer; top file_0 (); endmodule\n")
    run = lambda tests: simulator.simulate(  # noqa: E731
        "icarus", tmp_path, "outer", [tmp_path / "top.v"], "replay", tests, plusargs=["+files=1"])
    run(1)
    with pytest.raises(RuntimeError, match="1 of 2 tests ran and 0 failed"):
        run(2)


def test_settings_of_another_cocotb_run_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("COCOTB_TEST_FILTER", "nothing")
    assert replay(write_vectors(tmp_path / "v", "lfsr8")).ok


def test_progress_names_each_file_as_it_starts(tmp_path):
    told = []
    vectors = write_vectors(tmp_path / "v", "lfsr8", progress=lambda *a, **k: told.append((a, k)))
    replay(vectors, progress=lambda *a: told.append(a))
    assert told == [(("lfsr/lfsr8.hex", 1), {"total": 1}), ("lfsr/lfsr8.hex", 0, 1)]


def test_an_empty_set_is_refused(tmp_path):
    with vector_set(tmp_path / "v", {}):
        pass
    with pytest.raises(ValueError, match="holds no vector file"):
        replay(tmp_path / "v")


def test_an_unknown_simulator_is_refused():
    with pytest.raises(ValueError, match="known are icarus and verilator"):
        replay(default_vectors(), sim="questa")


def test_waves_are_kept_and_nothing_else(tmp_path):
    vectors = write_vectors(tmp_path / "v", "s8f4 -> s4f0 sat")
    assert replay(vectors, waves=tmp_path / "waves" / "run.fst").ok
    assert (tmp_path / "waves" / "run.fst").stat().st_size > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v", "waves"]
    assert not list(hardware().rglob("*.pyc"))


def simulate(tmp_path, top, module, tests, parameters, vectors, *plusargs):
    simulator.simulate("icarus", tmp_path / "work", top, sorted(RTL.glob("*.v")), module, tests,
                       parameters, [f"+vectors={vectors}", *plusargs])


@pytest.mark.parametrize(("spec", "pipeline", "asynchronous"), [
    ("{a: s8, b: s8, acc: s16 sat}", 0, 0),
    ("{a: u4, b: s4, product: s6f-2 ties_even sat, acc: s8f-2 sat_sym}", 1, 1),
    ("{a: s8, b: s8, acc: s18 wrap, lanes: 4}", 2, 0),
    ("{a: s8, b: s8, acc: s16 sat}", 2, 1),
])
def test_the_mac_keeps_its_protocol(tmp_path, spec, pipeline, asynchronous):
    unit = mac_unit(MacSpec.parse(spec), pipeline)
    with vector_set(tmp_path / "v", {}) as writer:
        writer.add("mac.hex", unit, records(unit, 1))
    simulate(tmp_path, "mac", "protocol_mac", 6, {**unit.parameters, "ASYNC_RESET": asynchronous},
             tmp_path / "v", f"+async={asynchronous}")


@pytest.mark.parametrize("rand_bits", [1, 16, 32])
def test_the_lfsr_keeps_its_protocol(tmp_path, rand_bits):
    vectors = write_vectors(tmp_path / "v", f"lfsr{rand_bits}")
    simulate(tmp_path, "lfsr", "protocol_lfsr", 3, {"RAND_WIDTH": rand_bits}, vectors)


def test_the_rounding_port_and_the_clamped_shift(tmp_path):
    with vector_set(tmp_path / "v", {}) as writer:
        for rounding in Rounding:
            name = rounding.name.lower() + ("6" if rounding == Rounding.STOCHASTIC else "")
            unit = quantizer_unit(QuantizerSpec.parse(f"s12f14 -> s5f0 {name} sat"))
            writer.add(f"{name}.hex", unit, records(unit, 1))
    parameters = {**unit.parameters, "ROUNDING": 0, "ROUNDING_PORT": 1}
    simulate(tmp_path, "quantizer", "protocol_quantizer", 3, parameters, tmp_path / "v")


def test_a_failed_protocol_test_is_reported(tmp_path):
    """The wrong latency: the runner must not swallow it."""
    unit = mac_unit(MacSpec.parse("{a: s4, b: s4, acc: s8}"), 1)
    with vector_set(tmp_path / "v", {}) as writer:
        writer.add("mac.hex", unit, records(unit, 1))
    with pytest.raises(RuntimeError, match=r"6 tests ran and [1-9] failed"):
        simulate(tmp_path, "mac", "protocol_mac", 6, {**unit.parameters, "PIPELINE": 0},
                 tmp_path / "v", "+async=0")


def test_verilator_agrees(tmp_path):
    if shutil.which("g++") is None and "CI" not in os.environ:
        pytest.skip("verilator compiles with g++, which is not here")
    vectors = write_vectors(tmp_path / "v", "{a: s4, b: s4, acc: s8 sat, lanes: 2}")
    name, = [file.name for file in read_manifest(vectors).files]
    flip_bit(vectors, name, 17, 6)
    report = replay(vectors, sim="verilator")
    assert report.mismatches == 1 and report.differences[0].startswith(f"{name}:17  ")
