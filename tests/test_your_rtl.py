"""A user's Verilog by a port map: right ones pass in every engine, wrong ones are explained."""

import re
from pathlib import Path

import pytest

from emu.cosim import check_rtl

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
