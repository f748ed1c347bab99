"""What a unit costs: LUTs, flip-flops and clock rate on an iCE40 HX8K, and gates of any technology.

Yosys counts the unit alone; nextpnr places and routes it between registers, from several seeds,
as one placement says little. A quantizer has the constant shift of its spec.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from os import cpu_count
from pathlib import Path
from statistics import median

from emu.cosim import tools, yosys
from emu.cosim.places import rtl_sources
from emu.cosim.ports import PROTOCOLS
from emu.cosim.store import kept
from emu.golden.units import Unit

SEEDS = (1, 2, 3)
DEVICE_LUTS = 7680  # of the HX8K
NAND2 = 4  # transistors of the gate that the estimate counts in


@dataclass(frozen=True)
class Cost:
    """Of one unit. `fmax` is in MHz, one for each seed; empty where it does not fit the device."""

    luts: int
    flops: int
    gates: int  # NAND2 equivalents, flip-flops included; abc's choices move it by some percent
    fmax: tuple[float, ...]

    @property
    def median_fmax(self) -> float | None:
        """The clock rate to expect, in MHz."""
        return median(self.fmax) if self.fmax else None


def cost(unit: Unit, seeds: Sequence[int] = SEEDS, rtl: Sequence[Path] = ()) -> Cost:
    """The cost of a unit, kept for this user until Verilog, parameters or tools change.

    Raises ToolFailed with a tool's own words, and ToolMissing where there is none.
    """
    sources, harness = rtl_sources(rtl, unit.module), _harness(unit)

    def build(work: Path) -> None:
        (work / "cost.json").write_text(json.dumps(asdict(_measure(sources, harness, seeds))))

    place = kept(["cost", versions(), harness, repr(tuple(seeds)),
                  *(path.read_bytes() for path in sources)], build)
    known = json.loads((place / "cost.json").read_text())
    return Cost(**{**known, "fmax": tuple(known["fmax"])})


def versions() -> str:
    """The tools that the numbers come from."""
    tools.require("yosys", "nextpnr-ice40")
    said = tools.version("nextpnr-ice40", "--version")
    return f"{yosys.version()}, nextpnr-ice40 {re.search(r'Version ([0-9][0-9.]*)', said)[1]}"


def _harness(unit: Unit) -> str:
    """`unit_only`, with the ports that cost something, and `placed`, it between registers."""
    inputs = {field.name: field.width for field in unit.fields if field.dir == "in"}
    outputs = {field.name: field.width for field in unit.fields if field.dir == "out"}
    tied = {}
    if unit.module in ("quantizer", "flag_quantizer"):
        flagged = unit.module == "flag_quantizer"
        shift = (unit.source.coarse if flagged else unit.source).shift
        tied = {"shift_i": f"8'd{shift}", **({} if flagged else {"rounding_i": "4'd0"})}
        if not unit.source.cast.rand_bits:
            tied["rand_i"] = "1'b0"
    elif protocol := PROTOCOLS[unit.module]:
        tied["clk_i"] = "clk"
        inputs |= dict.fromkeys(("rst_ni", "en_i", protocol.taken), 1)
        outputs[protocol.step] = 1
    inputs = {name: width for name, width in inputs.items() if name not in tied}
    many, more = sum(inputs.values()), sum(outputs.values())
    ports, start = dict(tied), 0
    for name, width in inputs.items():
        ports[name] = f"in[{start + width - 1}:{start}]"
        start += width
    start = 0
    for name, width in outputs.items():
        ports[name] = f"out[{start + width - 1}:{start}]"
        start += width
    parameters = ", ".join(f".{name}({value})" for name, value in unit.parameters.items())
    wiring = ", ".join(f".{name}({value})" for name, value in ports.items())
    return f"""
module unit_only (input wire clk, input wire [{many - 1}:0] in, output wire [{more - 1}:0] out);
  {unit.module} #({parameters}) unit ({wiring});
endmodule

module placed (input wire clk, input wire in, output reg out);
  reg [{many}:0] fed;
  reg [{more - 1}:0] held, folded;
  wire [{more - 1}:0] answer;
  unit_only unit (.clk(clk), .in(fed[{many - 1}:0]), .out(answer));
  always @(posedge clk) begin
    fed    <= {{fed, in}};
    held   <= answer;
    folded <= {{folded, out}} ^ held;
    out    <= folded[{more - 1}];
  end
endmodule
"""


def _measure(sources: Sequence[Path], harness: str, seeds: Sequence[int]) -> Cost:
    with tempfile.TemporaryDirectory(prefix="emu-cost-") as name:
        work = Path(name)
        (work / "harness.v").write_text(harness)
        sources = [*sources, work / "harness.v"]
        read = "read_verilog " + " ".join(f"{i}.v" for i in range(len(sources))) + "; "
        counted, gates, design = yosys.yosys(
            f"{read}synth_ice40 -top unit_only; tee -o luts stat; design -reset; "
            f"{read}synth -flatten -top unit_only; dffunmap; simplemap; opt -full; "
            "dfflegalize -cell $_DFF_P_ x; abc -g cmos2; abc -g cmos2; "  # twice: less by chance
            "opt_clean; tee -o gates stat -tech cmos; design -reset; "
            f"{read}synth_ice40 -top placed -json placed.json",
            sources, ["luts", "gates", "placed.json"])
        cells = {kind: int(count) for kind, count in
                 re.findall(r"^\s+(\w+) +(\d+)$", counted, re.M)}
        transistors = re.search(r"number of transistors: +(\d+)$", gates, re.M)
        if not transistors:
            raise RuntimeError(f"yosys counted no transistors: {gates.strip()[-300:]}")
        luts = cells.get("SB_LUT4", 0)
        flops = sum(count for kind, count in cells.items() if kind.startswith("SB_DFF"))
        (work / "placed.json").write_text(design)
        fits = luts < DEVICE_LUTS * 0.9
        with ThreadPoolExecutor(cpu_count()) as pool:
            fmax = tuple(pool.map(partial(_place, work), seeds)) if fits else ()
    return Cost(luts, flops, round(int(transistors[1]) / NAND2), fmax)


def _place(work: Path, seed: int) -> float:
    """The clock rate, in MHz, that one placement reaches."""
    tools.call(["nextpnr-ice40", "--hx8k", "--package", "ct256", "--json", "placed.json", "--seed",
                seed, "--report", f"{seed}.json", "--timing-allow-fail", "--quiet"], work)
    clock, = json.loads((work / f"{seed}.json").read_text())["fmax"].values()
    return round(clock["achieved"], 1)
