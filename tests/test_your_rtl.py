"""A user's Verilog by a port map: right ones pass in every engine, wrong ones are explained."""

import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from xml.etree import ElementTree

import pytest

from emu import cli
from emu.cosim import bench, check_rtl, yours
from emu.cosim.cast_changes import cast_changes
from emu.cosim.changes import Said
from emu.cosim.drive import steps_of
from emu.cosim.joints import _by_yosys, wires_of
from emu.cosim.mac_changes import mac_changes
from emu.cosim.portmap import INPUTS, OUTPUTS, PortMap, read_map
from emu.cosim.prove import SOLVERS
from emu.cosim.tools import ToolFailed
from emu.cosim.your_proof import prove_rtl
from emu.golden import cases as golden
from emu.golden.units import unpack
from emu.number import Format

HERE = Path(__file__).parent / "your_rtl"
MACS = ["mac_registered", "mac_two_stage", "mac_packed"]


def changed(folder: Path, name: str, *pairs: tuple[str, str]) -> tuple[list[Path], Path]:
    """A module of `your_rtl` and its map, each pair replaced in the one of them that has it."""
    texts = {end: (HERE / f"{name}.{end}").read_text() for end in ("v", "toml")}
    for old, new in pairs:
        end, = [end for end, text in texts.items() if old in text]
        texts[end] = texts[end].replace(old, new)
    for end, text in texts.items():
        (folder / f"{name}.{end}").write_text(text)
    return [folder / f"{name}.v"], folder / f"{name}.toml"


def own(folder: Path, verilog: str, toml: str) -> tuple[list[Path], Path]:
    (folder / "own.v").write_text(verilog)
    (folder / "own.toml").write_text(toml)
    return [folder / "own.v"], folder / "own.toml"


def said(report) -> str:
    return "\n".join([*report.differences, *report.explained])


@pytest.mark.parametrize("backend", ["icarus", "cxxrtl", "netlist"])
def test_right_modules_pass_and_the_wrong_one_is_named_in_every_engine(backend):
    for name in MACS:
        report = check_rtl([HERE / f"{name}.v"], HERE / f"{name}.toml", backend=backend)
        assert report.ok == (name != "mac_two_stage") and report.cases > 200
        if not report.ok:
            assert "product: s12f-4 ties_pos wrap instead of s12f-4 ties_even wrap" in said(report)


def test_the_wrong_module_passes_as_what_it_is():
    spec = "{a: s8, b: s8, product: s12f-4 ties_pos, acc: s16f-4}"
    assert check_rtl([HERE / "mac_two_stage.v"], HERE / "mac_two_stage.toml", spec).ok


RULES = [
    ("mac_registered", [("above ? 20'sd524287 : below ? -20'sd524288 : total[19:0]",
                         "total[19:0]")], "acc: s20f0 to_neg wrap instead of s20f0 to_neg sat"),
    ("mac_registered", [("below = total < -21'sd524288", "below = total < -21'sd524287"),
                        ("-20'sd524288 : total", "-20'sd524287 : total")],
     "acc: s20f0 to_neg sat_sym instead of"),
    ("mac_registered", [("524287", "262143"), ("524288", "262144")],
     "acc: s19f0 to_neg sat instead of"),
    ("mac_registered", [("product = x * w", "product = {1'b0, x} * w")],
     "a: u8f0 instead of s8f0; b: u8f0 instead of s8f0"),
    ("mac_registered", [("product = x * w", "product = $signed({1'b0, x}) * w")],
     "a: u8f0 instead of s8f0"),
    ("mac_registered", [("product = x * w", "product = (x * w) & ~16'sd3")],
     "each product loses its lowest 2 bits before the sum"),
    ("mac_registered", [("load ? init : sum", "load ? 20'sd0 : sum")], "the bias is ignored"),
    ("mac_registered", [("(load ? init : sum) + product", "load ? init : sum + product")],
     "the products of the first step are lost"),
    ("mac_registered", [("output reg signed [19:0] sum", "output signed [19:0] sum"),
                        ("  wire above", "  reg signed [29:0] wide;\n  assign sum = "
                         "wide > 524287 ? 20'sd524287 : wide < -524288 ? -20'sd524288 : "
                         "wide[19:0];\n  wire above"),
                        ("wire signed [20:0] total = (load ? init : sum)",
                         "wire signed [29:0] total = (load ? init : wide)"),
                        ("sum <= 20'sd0", "wide <= 0"), ('overflow = "clipped"\n', ""),
                        ("sum <= above ? 20'sd524287 : below ? -20'sd524288 : total[19:0]",
                         "wide <= total")],
     "the sum is fitted where it is shown, not after each step"),
    ("mac_registered", [("(clipped && !load)", "1'b0")],
     "overflow tells of one step, not of all since the start"),
    ("mac_registered", [("latency = 1", "latency = 2")], "latency = 1, not 2"),
    ("mac_registered", [('reset = "rst"', 'reset = "!rst"')], "reset inverted"),
    ("mac_registered", [('load = "load"', 'load = "!load"')], "inputs.load inverted"),
    ("mac_registered", [("(load ? init : sum)", "sum")], "a start does not clear the sum"),
    ("mac_packed", [('"ops[15:8]", "ops[31:24]", "ops[47:40]", "ops[63:56]"',
                     '"ops[63:56]", "ops[47:40]", "ops[31:24]", "ops[15:8]"')],
     "lane i of a meets lane lanes-1-i of b"),
    ("mac_packed", [("lanes: 4}", "lanes: 4, tile: 8, outer: s18}")], "tile: 4 instead of 8"),
    ("mac_two_stage", [("(product + (1 << (DROP - 1))) >>> DROP", "product >>> DROP")],
     "product: s12f-4 to_neg wrap instead of"),
    ("mac_two_stage", [("(first ? 16'sd0 : m_sum) + term", "(first ? 16'sd0 : m_sum) + term / 2")],
     "no single change"),
]


@pytest.mark.parametrize(("name", "pairs", "rule"), RULES)
def test_one_change_is_found_by_its_name(tmp_path, name, pairs, rule):
    report = check_rtl(*changed(tmp_path, name, *pairs))
    assert not report.ok and rule in said(report)


# Quantizers, and MACs with other protocols

ROUNDER = """
module own (input signed [15:0] v, output signed [7:0] q);
  wire signed [15:0] floor = v >>> 4;
  wire up = {UP};
  wire signed [15:0] rounded = floor + {{15'd0, up}};
  assign q = rounded > 127 ? 8'sd127 : rounded < -128 ? -8'sd128 : rounded[7:0];
endmodule
"""
ROUNDER_MAP = """
top = "own"
spec = "s16f8 -> s8f4 ties_even sat"
latency = 0
inputs = {value = "v"}
outputs = {code = "q"}
"""
TIES = [("v[3:0] > 8 || v[3:0] == 8 && floor[0]", ""),
        ("v[3]", "cast: s8f4 ties_pos sat instead of s8f4 ties_even sat"),
        ("v[3:0] > 8 || v[3:0] == 8 && !v[15]", "cast: s8f4 ties_away sat instead of"),
        ("1'b0", "cast: s8f4 to_neg sat instead of")]


@pytest.mark.parametrize(("up", "rule"), TIES)
def test_a_quantizer_of_wires(tmp_path, up, rule):
    report = check_rtl(*own(tmp_path, ROUNDER.replace("{UP}", up).replace("{{", "{")
                            .replace("}}", "}"), ROUNDER_MAP))
    assert report.ok != bool(rule) and rule in said(report)


DITHER = """
module own (input clk, input go, input signed [11:0] v, input [3:0] s, input [4:0] r,
            output reg done, output reg signed [5:0] q, output reg o);
  wire [31:0] wide = {v, 20'd0};
  wire [31:0] moved = $signed(wide) >>> s;
  wire [24:0] sum = {1'b0, moved[19:0], 4'd0} + {1'b0, r, 19'd0};
  wire signed [12:0] rounded = $signed(moved[31:20]) + $signed({1'b0, sum[24]});
  wire over = rounded > 31 || rounded < -32;
  always @(posedge clk) begin done <= go; q <= rounded[5:0]; o <= over; end
endmodule
"""
DITHER_MAP = """
top = "own"
clock = "clk"
inputs = {value = "v", shift = "s", rand = "r", valid = "go"}
outputs = {code = "q", overflow = "o", valid = "done"}
"""


def test_a_clocked_quantizer_with_shift_and_random_operand(tmp_path):
    rtl, ports = own(tmp_path, DITHER, DITHER_MAP)
    assert check_rtl(rtl, ports, "s12f9 -> s6f0 stochastic5 wrap").ok
    report = check_rtl(rtl, ports, "s12f9 -> s6f0 stochastic5 sat")
    assert "cast: s6f0 stochastic5 wrap instead of s6f0 stochastic5 sat" in said(report)
    low = rtl[0].read_text().replace("{1'b0, r, 19'd0}", "(({20'd0, r} << (24 - s)) & 25'hffffff)")
    rtl[0].write_text(low)
    report = check_rtl(rtl, ports, "s12f9 -> s6f0 stochastic5 wrap")
    assert "the random operand is aligned at its lowest bit" in said(report)


SERIAL = """
// Three clocks for a step, begun by reset; its operands are one port for each lane.
module own (input c, input res_n, input [3:0] a0, a1, b0, b1, input start, output idle,
            output reg [9:0] y, output reg ok);
  reg [1:0] state;
  reg [7:0] p0, p1;
  assign idle = state == 0;
  always @(posedge c or negedge res_n)
    if (!res_n) begin state <= 0; y <= 0; ok <= 0; end
    else begin
      ok <= state == 2;
      if (idle && start) begin p0 <= a0 * b0; p1 <= a1 * b1; state <= 1; end
      if (state == 1) state <= 2;
      if (state == 2) begin y <= y + p0 + p1; state <= 0; end
    end
endmodule
"""
SERIAL_MAP = """
top = "own"
spec = "{a: u4, b: u4, acc: u10, lanes: 2}"
clock = "c"
reset = "!res_n"
async_reset = true
[inputs]
a = ["a0", "a1"]
b = ["b0", "b1"]
valid = "start"
[outputs]
result = "y"
valid = "ok"
ready = "idle"
"""


@pytest.mark.parametrize("backend", ["icarus", "netlist"])
def test_a_module_that_makes_steps_wait_and_begins_by_reset(tmp_path, backend):
    assert check_rtl(*own(tmp_path, SERIAL, SERIAL_MAP), backend=backend).ok
    rtl, ports = own(tmp_path, SERIAL.replace("y + p0 + p1", "y + p0 + p0"), SERIAL_MAP)
    assert not check_rtl(rtl, ports, backend=backend).ok


def test_a_module_that_is_never_ready_is_told(tmp_path):
    rtl, ports = own(tmp_path, SERIAL.replace("if (state == 2) begin", "if (0) begin"),
                     SERIAL_MAP)
    with pytest.raises(RuntimeError, match=r"own: is not ready for a step in 64 clocks"):
        check_rtl(rtl, ports)


def test_system_verilog_by_the_name_of_the_file(tmp_path):
    text = (HERE / "mac_registered.v").read_text().replace(
        "always @(posedge clk)", "always_ff @(posedge clk)").replace("wire", "logic")
    text = re.sub(r"logic (signed \[\d+:0\] )?(\w+) =", r"wire \1\2 =", text)
    path = tmp_path / "mac_registered.sv"
    path.write_text(text)
    for backend in ("icarus", "cxxrtl"):
        assert check_rtl([path], HERE / "mac_registered.toml", backend=backend).ok


# What a module does not answer, or answers only sometimes


def test_an_answer_that_is_lost_is_missed(tmp_path):
    report = check_rtl(*changed(tmp_path, "mac_two_stage", ("m_valid <= valid && last",
                                                            "m_valid <= valid && last && term[0]")))
    assert re.search(r"mac_two_stage: \d+ answers came to 214 that were owed", said(report))


def test_what_only_stalls_bring_out_is_told_with_its_seed(tmp_path):
    rtl, ports = changed(tmp_path, "mac_registered", ("else if (en) begin",
                                                      "else if (en || !load) begin"))
    report = check_rtl(rtl, ports, seed=7)
    assert "the first 287 answers are right" in said(report) and "--seed 7" in said(report)
    assert said(report) == said(check_rtl(rtl, ports, seed=7))


def test_x_is_a_difference_in_icarus(tmp_path):
    report = check_rtl(*changed(tmp_path, "mac_registered", ("load ? init : sum", "sum"),
                                ("sum <= 20'sd0;", "")))
    assert "result=x, expected" in said(report) and "read before it is written" in said(report)


def test_reset_is_of_the_kind_that_the_map_says(tmp_path):
    for style, says, at in (("posedge clk", "true", "at the edge of the clock"),
                            ("posedge clk or posedge rst", "false", "at once")):
        rtl, ports = changed(tmp_path, "mac_registered", ("@(posedge clk)", f"@({style})"),
                             ('reset = "rst"', f'reset = "rst"\nasync_reset = {says}'))
        report = check_rtl(rtl, ports)
        assert report.differences == [f"mac_registered: reset acts {at}; {ports} says "
                                      f"async_reset = {says}"]


# Bad input: one line, exit status 2, and the way out

BAD = [  # what the map of mac_registered becomes, and what is said of it
    (('a = "x"', 'a = "xx"'), "inputs.a = \"xx\": unknown input of mac_registered 'xx': did you "
                              "mean 'x'? known: clk, rst, en, load, x, w, init"),
    (('a = "x"', 'a = "sum"'), "inputs.a = \"sum\": sum is an output of mac_registered"),
    (('bias = "init"', 'biass = "init"'), "unknown key of inputs for a mac 'biass': did you mean "
                                          "'bias'?"),
    (("latency = 1", "latncy = 1"), "unknown key 'latncy': did you mean 'latency'?"),
    (("latency = 1", "latency = 1025"), "latency = 1025: needs 0 to 1024 clocks"),
    (("latency = 1", "latency = true"), "latency = True: needs a whole number"),
    (("latency = 1", ""), "latency, outputs.valid: one of the two"),
    (("latency = 1", "latency = = 1"), "is not TOML: Invalid value (at line 5"),
    (('b = "w"', ""), "inputs.b: is missing; a mac needs a, b, result"),
    (('b = "w"', 'b = "x"'), "inputs.a and inputs.b: both drive bit 0 of x"),
    (("acc: s20", "acc: s24"), "inputs.bias: its ports have 20 bits; by the spec {a: s8, b: s8, "
                               "acc: s24 sat} it needs 24"),
    (("acc: s20", "acc: s99"), "format width 99: needs a whole number from 1 to 64"),
    (('a = "x"', 'a = "x[8:1]"'), "inputs.a = \"x[8:1]\": x has 8 bits, 7 to 0"),
    (('a = "x"', 'a = "x[0:7]"'), "bits go from high to low; write x[7:0]"),
    (('a = "x"', "a = 3"), "inputs.a = 3: write a port"),
    (('a = "x"', 'a = ["x[3:0]", "x[7:4]", "x[7:4]"]'), "its ports have 12 bits"),
    (('bias = "init"', ""), "nothing drives bit 0 of its input init; name it under inputs, or "
                            "give it a value under [ties]"),
    (('load = "load"', ""), "inputs.bias: needs inputs.load or inputs.clear"),
    (('load = "load"', 'load = "load"\nclear = "rst"'), "inputs.load, inputs.clear: a dot product "
                                                        "begins by one of them"),
    (('valid = "en"', 'valid = "en"\nready = "x"'), "inputs.ready: needs outputs.valid"),
    (('clock = "clk"', ""), "clock: is missing"),
    (('reset = "rst"', "async_reset = true"), "async_reset: is of no use without reset"),
    (('reset = "rst"', 'answers = "steps"'), "unknown answers 'steps': "),
    (("latency = 1", "latency = 1\nties = {en = 2}"), "ties.en = 2: en has 1 bits, which hold"),
    (("latency = 1", "latency = 1\nties = {en = 1}"), "ties.en and inputs.valid: both drive"),
    (("latency = 1", "latency = 1\nparameters = {W = 3}"), "mac_registered has no parameters"),
    (('top = "mac_registered"', ""), "top: is missing; name the module, here or by --top"),
    (('top = "mac_registered"', 'top = "mac"'), "top: unknown module 'mac': "),
    (('spec = "{a: s8, b: s8, acc: s20 sat}"', ""), "spec: is missing"),
    (('spec = "{a: s8, b: s8, acc: s20 sat}"', 'spec = "lfsr8"'), "describes a mac or a quantizer"),
    (('spec = "{a: s8, b: s8, acc: s20 sat}"', 'spec = "s8 -> s4 sat"'),
     "unknown key of inputs for a quantizer 'a'"),
]


@pytest.mark.parametrize(("pair", "message"), BAD)
def test_a_bad_map_is_refused_at_its_key(tmp_path, pair, message):
    rtl, ports = changed(tmp_path, "mac_registered", pair)
    with pytest.raises(ValueError) as error:
        check_rtl(rtl, ports)
    assert str(error.value).startswith(f"{ports}: ") and message in str(error.value)


@pytest.fixture
def emu(monkeypatch, capfd):
    """Run a command in `your_rtl`: (exit status, what it prints)."""
    monkeypatch.chdir(HERE)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["emu", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
            raise SystemExit(0)
        return stop.value.code or 0, "".join(capfd.readouterr())

    return run


def test_verilog_that_does_not_elaborate_is_told_by_file_and_line(emu, tmp_path):
    rtl, ports = changed(tmp_path, "mac_registered", ("wire above =", "wire above = ="))
    line = 1 + rtl[0].read_text().split("above = =")[0].count("\n")
    status, text = emu("cosim", "--rtl", *rtl, "--map", ports)
    assert status == 2 and text.endswith(f": {rtl[0]}:{line}: syntax error\n"), text
    assert text.startswith("emu: mac_registered does not elaborate: iverilog ended with status ")
    with pytest.raises(RuntimeError, match=rf"{rtl[0]}:{line}: ERROR: syntax error"):
        check_by_yosys(rtl, ports)


def check_by_yosys(rtl, ports):
    found, _ = read_map(ports)
    try:
        return _by_yosys(found, rtl)
    except ToolFailed as error:
        raise RuntimeError(str(error)) from None


def test_yosys_and_icarus_tell_the_same_ports():
    for name in MACS:
        found, _ = read_map(HERE / f"{name}.toml")
        rtl = [HERE / f"{name}.v"]
        assert _by_yosys(found, rtl) == wires_of(found, rtl)


def test_what_is_missing_on_the_command_line_is_named(emu, tmp_path):
    rtl, ports = HERE / "mac_packed.v", HERE / "mac_packed.toml"
    for arguments, message in [
            (["--map", ports], "name its files by --rtl"),
            (["--rtl", rtl, "--top", "mac_packed"], "--top mac_packed: needs --map"),
            (["--rtl", rtl, "--map", tmp_path / "no.toml"], "cannot be read (No such file"),
            (["--rtl", tmp_path / "no.v", "--map", ports], "cannot be read (No such file")]:
        status, text = emu("cosim", *arguments)
        assert status == 2 and message in text and text.count("\n") == 1, text


def test_no_case_is_no_proof(monkeypatch):
    monkeypatch.setattr(yours, "golden_cases", lambda unit: [])
    with pytest.raises(ValueError, match="nothing would be checked"):
        check_rtl([HERE / "mac_packed.v"], HERE / "mac_packed.toml")


def test_one_corrupted_answer_is_one_difference(monkeypatch):
    right = bench.steps_of

    def corrupted(unit, cases):
        steps = right(unit, cases)
        steps[5][-1].want["result"] ^= 1
        return steps

    monkeypatch.setattr(bench, "steps_of", corrupted)
    report = check_rtl([HERE / "mac_packed.v"], HERE / "mac_packed.toml")
    assert (report.mismatches, report.ok) == (1, False)


def test_waves_are_kept(tmp_path):
    files = [HERE / "mac_packed.v"], HERE / "mac_packed.toml"
    for name, start in (("w.fst", b"\0"), ("w.vcd", b"$date")):
        assert check_rtl(*files, waves=tmp_path / name).ok
        assert (tmp_path / name).read_bytes().startswith(start)
    text = (tmp_path / "w.vcd").read_text()
    assert " ops [63:0]" in text and text.count("\n#") > 200
    with pytest.raises(ValueError, match=r"w2.fst: netlist keeps no waves; use icarus"):
        check_rtl(*files, backend="netlist", waves=tmp_path / "w2.fst")
    assert not (tmp_path / "w2.fst").exists()


def test_junit_has_the_explanation(emu, tmp_path):
    status, _ = emu("cosim", "--rtl", HERE / "mac_two_stage.v", "--map",
                    HERE / "mac_two_stage.toml", "--junit", tmp_path / "junit.xml")
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert status == 1 and (suite.get("tests"), suite.get("failures")) == ("1", "1")
    assert "one change removes every difference" in suite.find("testcase/failure").text


# docs/your-rtl.md

DOC = (Path(__file__).parents[1] / "docs" / "your-rtl.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", DOC, re.M | re.S)
COMMANDS = [part for kind, block in BLOCKS if not kind
            for part in re.split(r"^\$ ", block, flags=re.M)[1:]]


@pytest.mark.parametrize("text", COMMANDS, ids=lambda text: text.partition("\n")[0])
def test_the_page_shows_what_its_commands_print(emu, text):
    command, _, shown = text.partition("\n")
    program, *arguments = shlex.split(command)
    assert program == "emu"
    _, printed = emu(*arguments)
    pattern = re.escape(shown).replace(re.escape("...\n"), "(?:.*\n)*?")
    assert re.fullmatch(pattern, printed), printed


def test_the_page_shows_the_maps_as_they_are():
    shown = [block for kind, block in BLOCKS if kind == "toml"]
    assert shown == [(HERE / f"{name}.toml").read_text() for name in MACS]


def test_the_page_names_every_key():
    keys = {field.name for field in fields(PortMap)} - {"path"}
    roles = {role for table in (INPUTS, OUTPUTS) for names in table.values() for role in names}
    for key in keys | roles:
        assert re.search(rf"^\|.*`\[?{key}\]?`.*\|", DOC, re.M), key
    assert len(COMMANDS) > 5


# Proofs


PIPED = """
module own (input clk, input go, input [3:0] x, w, output reg [9:0] acc);
  reg [7:0] product;
  reg gone;
  always @(posedge clk) begin
    gone <= go;
    product <= x * w;
    acc <= gone ? 10'd0 : acc + product;
  end
endmodule
"""
PIPED_MAP = """
top = "own"
spec = "{a: u4, b: u4, acc: u10}"
clock = "clk"
latency = 2
inputs = {a = "x", b = "w", clear = "go"}
outputs = {result = "acc"}
"""


def test_a_right_module_is_proved(tmp_path):
    assert prove_rtl([HERE / "mac_registered.v"], HERE / "mac_registered.toml",
                     solvers=SOLVERS)[1] is None
    rtl, ports = own(tmp_path, PIPED, PIPED_MAP)
    assert prove_rtl(rtl, ports)[1] is None and check_rtl(rtl, ports).ok
    reset = PIPED_MAP.replace(', clear = "go"', "").replace("latency", 'reset = "go"\nlatency')
    rtl, ports = own(tmp_path, PIPED, reset)
    assert prove_rtl(rtl, ports)[1] is None and check_rtl(rtl, ports).ok


WRONG = [
    ("mac_registered", [("acc: s20 sat", "acc: s20 sat_sym")]),
    ("mac_registered", [("latency = 1", "latency = 2")]),
    ("mac_registered", [("(clipped && !load)", "clipped")]),
    ("mac_registered", [("else if (en) begin", "else begin")]),  # takes a step that is not there
    ("mac_registered", [("(load ? init : sum)", "sum")]),
    ("mac_packed", [("clear ? 18'd0 : acc + tree", "acc + tree")]),
    ("mac_packed", [("clear ? 18'd0 : acc + tree", "clr ? 18'd0 : acc + tree")]),
]


@pytest.mark.parametrize(("name", "pairs"), WRONG)
def test_a_wrong_module_gives_a_counterexample(tmp_path, name, pairs):
    _, told = prove_rtl(*changed(tmp_path, name, *pairs))
    assert told and re.match(rf"{name}: .* => result=", told)


def test_a_proof_finds_what_no_vector_meets(tmp_path):
    rtl, ports = changed(tmp_path, "mac_registered", (
        "product = x * w", "product = x * w + (x == 8'sd93 && w == -8'sd41 ? 16'sd1 : 16'sd0)"))
    assert check_rtl(rtl, ports).ok
    _, told = prove_rtl(rtl, ports)
    fields = dict(re.findall(r"(\w+)=(\w+)", told))
    assert (fields["a"], fields["b"]) == ("5d", "d7")
    base = fields["bias"] if fields["load"] == "1" else fields["sum"]
    base, = unpack(int(base, 16), Format(20), 1)
    want, = unpack(int(told.split("expected ")[1], 16), Format(20), 1)
    came, = unpack(int(fields["result"], 16), Format(20), 1)
    assert want == max(-1 << 19, min((1 << 19) - 1, base - 93 * 41)) and came == want + 1


def test_quantizers_are_proved(tmp_path):
    right = ROUNDER.replace("{{", "{").replace("}}", "}")
    assert prove_rtl(*own(tmp_path, right.replace("{UP}", TIES[0][0]), ROUNDER_MAP))[1] is None
    _, told = prove_rtl(*own(tmp_path, right.replace("{UP}", TIES[1][0]), ROUNDER_MAP))
    value = int(re.search(r"value=(\w+)", told)[1], 16)
    assert value % 32 == 8  # a tie above an even code
    ports = DITHER_MAP.replace(', valid = "done"', "").replace("clock", "latency = 1\nclock")
    spec = "s12f9 -> s6f0 stochastic5 wrap"
    assert prove_rtl(*own(tmp_path, DITHER, ports), spec)[1] is None
    wrong = DITHER.replace("$signed(wide) >>> s", "wide >> s")
    assert "shift=" in prove_rtl(*own(tmp_path, wrong, ports), spec)[1]


def test_a_proof_says_what_it_needs():
    for name, spec, message in [
            ("mac_two_stage", "", "latency: is missing; a proof needs it"),
            ("mac_packed", "{a: s8, b: s8, acc: s18, lanes: 4, tile: 8, outer: s18}",
             "has two levels")]:
        with pytest.raises(ValueError, match=message):
            prove_rtl([HERE / f"{name}.v"], HERE / f"{name}.toml", spec)


# The changes that are tried


@pytest.mark.parametrize("spec", [
    *golden.QUANTIZERS[::7], "s4f2 -> s2f0 sat_sym", "u1f0 -> s1f0",
    "s64f0 -> u64f0 stochastic32 sat",
    *(text for text, _ in golden.MACS[::3]), "{a: s1, b: u1, acc: s2 sat_sym}",
    "{a: u32, b: u29, acc: u62 sat}"])
def test_every_change_can_be_computed_and_most_are_told_from_the_spec(spec):
    unit = golden.from_text(spec)
    changes = list((cast_changes if unit.module == "quantizer" else mac_changes)(unit.source))
    cases = [(*case[:2], case[2] or 0) for case in yours.golden_cases(unit)][::5]
    if unit.module == "quantizer":
        cases = [(value, min(shift, unit.source.max_shift), rand) for value, shift, rand in cases]
    steps = steps_of(unit, cases)
    result = next(iter(steps[0][0].want))
    right = [[(step.want[result], step.want["overflow"]) for step in some] for some in steps]
    width = next(field.width for field in unit.fields if field.name in ("code_o", "acc_o"))
    mask = (1 << width) - 1
    said = Said(cases, [[(code & mask, over) for code, over in some] for some in right], True,
                width)
    assert len({change.words for change in changes}) == len(changes) > 5
    counts = [sum(said.differences(change)) for change in changes]
    assert len([count for count in counts if count]) > 3
