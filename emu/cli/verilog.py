"""The commands of the Verilog: `emu vectors`, `cosim`, `prove`, `coverage`, `mutate`, `cost`."""

from __future__ import annotations

from collections import Counter
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from emu.cli.terminal import app, out, progress, table_of


class Simulator(str, Enum):
    """The simulators that replay vectors."""

    icarus = "icarus"
    verilator = "verilator"


class Engine(str, Enum):
    """What computes the Verilog where whole arrays pass through it."""

    cxxrtl = "cxxrtl"
    verilator = "verilator"
    netlist = "netlist"
    icarus = "icarus"


@app.command()
def vectors(
    spec: Annotated[str, typer.Argument(
        help="'{a: s8, b: s8, acc: s20 sat}', 's16f8 -> s8f4 ties_even sat' or 'lfsr16'; "
             "default: the standard set")] = "",
    level: Annotated[int, typer.Option(min=1, max=2, help="2 has many more cases")] = 1,
    folder: Annotated[Path | None, typer.Option(
        "--out", help="folder to write; default vectors, for the standard set")] = None,
) -> None:
    """Write golden test vectors and their manifest."""
    from emu import golden

    if folder is None and (spec or level != 1):
        raise ValueError("vectors of a spec or of level 2: name their folder with --out; vectors/ "
                         "is for the standard set")
    folder = folder or Path("vectors")
    with progress() as report:
        path = golden.write_vectors(folder, spec or None, level, report)
    manifest = golden.read_manifest(path)
    cases = sum(file.cases for file in manifest.files)
    out.print(f"{len(manifest.files)} files, {cases} cases: {path}", soft_wrap=True)


@app.command()
def cosim(
    manifest: Annotated[str | None, typer.Argument(
        metavar="[MANIFEST | SPEC]",
        help="manifest.json or its folder; default: the vectors that come with emu. With --map: "
             "what your module should compute, as for vectors")] = None,
    sim: Annotated[Simulator, typer.Option(help="simulator")] = Simulator.icarus,
    rtl: Annotated[list[Path] | None, typer.Option(
        help="Verilog that replaces ours, by the same module and port names, or that --map "
             "describes")] = None,
    ports: Annotated[Path | None, typer.Option(
        "--map", help="TOML file that says which port of your module carries what")] = None,
    top: Annotated[str, typer.Option(help="with --map: your module")] = "",
    backend: Annotated[Engine | None, typer.Option(
        help="send each file through as arrays, without cocotb: for volume")] = None,
    waves: Annotated[Path | None, typer.Option(
        help="keep the waves in this file: .fst of Icarus, .vcd of Verilator")] = None,
    junit: Annotated[Path | None, typer.Option(help="write a JUnit XML report")] = None,
    require: Annotated[str, typer.Option(
        help="tools that must be here, like icarus,yosys: else exit status 2")] = "",
    seed: Annotated[int, typer.Option(
        help="draws what Icarus sees of a recorded step that --backend replays; with --map, "
             "idle clocks and stalls")] = 1,
) -> None:
    """Replay vectors on the Verilog; exit status 1 at any difference."""
    from emu import cosim as bench

    bench.require(*filter(None, require.split(",")))
    if top and not ports:
        raise ValueError(f"--top {top}: needs --map, which says what the ports of {top} carry")
    manifest = manifest or ("" if ports else bench.default_vectors())
    if backend and waves and not ports:
        raise ValueError(f"--waves: {backend.value} is fed arrays and keeps none; --sim icarus "
                         "writes .fst and --sim verilator .vcd")
    with progress() as report:
        if ports:
            result = bench.check_rtl(rtl or (), ports, manifest, top,
                                     (backend or sim).value, seed=seed, junit=junit,
                                     waves=waves)
        elif backend:
            result = bench.replay_arrays(manifest, backend.value, rtl or (), junit, report, seed)
        else:
            result = bench.replay(manifest, sim.value, rtl or (), waves, junit, progress=report)
    for line in [*result.differences, *result.explained]:
        out.print(line, soft_wrap=True, markup=False)
    if ports:
        out.print(f"{result.files[0].name}: {result.cases} answers, {result.mismatches} "
                  f"differences ({result.sim}, seed {seed})", soft_wrap=True, markup=False)
    else:
        out.print(f"{len(result.files)} files, {result.cases} cases, {result.mismatches} "
                  "differences", soft_wrap=True)
    if not result.ok:
        raise typer.Exit(1)


@app.command()
def prove(
    specs: Annotated[list[str] | None, typer.Argument(
        help="as for vectors; default: the units of the committed vectors, and wider ones")] = None,
    rtl: Annotated[list[Path] | None, typer.Option(
        help="Verilog that replaces ours; same module and port names")] = None,
    ports: Annotated[Path | None, typer.Option(
        "--map", help="as for cosim: prove your own module")] = None,
    top: Annotated[str, typer.Option(help="with --map: your module")] = "",
    second: Annotated[int, typer.Option(
        min=1, help="ask z3, besides bitwuzla, about every n-th unit")] = 5,
    folder: Annotated[Path | None, typer.Option(
        "--out", help="write counterexamples as vectors into this folder")] = None,
) -> None:
    """Prove that the Verilog equals its definition for all inputs; exit status 1 if not."""
    from emu.cosim import prove as proofs
    from emu.cosim import solver, yosys
    from emu.golden.cases import from_text

    if ports or top:
        _prove_own(rtl or (), ports, specs or [], top, second)
        return
    units = [(from_text(spec), {}) for spec in specs] if specs else proofs.standard_proofs()
    with progress() as report:
        done = proofs.prove(units, rtl or (), second, progress=report)
    wrong = [proof for proof in done if proof.difference]
    for proof in wrong:
        out.print(proof.difference, soft_wrap=True, markup=False)
    if folder is not None and (stored := proofs.store(wrong, folder)):
        out.print(f"counterexamples {stored}; replay them with: emu cosim {stored}",
                  soft_wrap=True)
    twice = sum(len(proof.solvers) > 1 for proof in done)
    out.print(f"{len(done) - len(wrong)} of {len(done)} units proved for all inputs "
              f"({yosys.version()}, {solver.version('bitwuzla')}; {twice} of them also asked of "
              f"{solver.version('z3')})", soft_wrap=True)
    if wrong:
        raise typer.Exit(1)


def _prove_own(rtl: list[Path], ports: Path | None, specs: list[str], top: str, second: int
               ) -> None:
    """`emu prove --map`; z3 is asked too where `second` is 1."""
    from emu.cosim.prove import SOLVERS
    from emu.cosim.your_proof import prove_rtl

    if not ports:
        raise ValueError(f"--top {top}: needs --map, which says what the ports of {top} carry")
    if len(specs) > 1:
        raise ValueError(f"--map with {len(specs)} specs: a module computes one; name one")
    name, difference = prove_rtl(rtl, ports, *specs, top=top,
                                 solvers=SOLVERS[:2 if second == 1 else 1])
    if difference:
        out.print(difference, soft_wrap=True, markup=False)
        raise typer.Exit(1)
    out.print(f"{name}: proved for all inputs", soft_wrap=True, markup=False)


@app.command()
def coverage(
    spec: Annotated[str, typer.Argument(
        help="as for vectors; default: all units, a line each")] = "",
    level: Annotated[int, typer.Option(min=1, max=2, help="as for vectors")] = 1,
) -> None:
    """Say which situations the vectors meet, and why others cannot be; exit 1 if one is missed."""
    from emu.golden import cases

    reports = [cases.coverage(unit, level) for unit in ([cases.from_text(spec)] if spec
                                                      else cases.standard())]
    if spec and not reports[0].reachable:
        raise ValueError(f"{spec}: no situations are listed for {reports[0].unit.module}; "
                         "emu mutate --spec says how strong its vectors are")
    if spec:
        table = table_of("what, dropped bits, rest, sign, outcome", "cases")
        for bin_, count in reports[0].met.items():
            table.add_row(" ".join(map(str, bin_)), str(count))
    else:
        table = table_of("unit", "bins", "reachable", "met")
        for one in reports:
            counts = len(one.reachable) + len(one.unreachable), len(one.reachable), len(one.met)
            table.add_row(f"{one.unit.module} {one.unit.spec}", *map(str, counts))
    out.print(table)
    reasons = Counter(reason for one in reports for reason in one.unreachable.values())
    for reason, count in reasons.most_common():
        out.print(f"{count} bins cannot be: {reason}", soft_wrap=True)
    missed = [f"{one.unit.spec}: {' '.join(map(str, bin_))}" for one in reports
              for bin_ in one.reachable if bin_ not in one.met]
    for line in missed:
        out.print(f"missed: {line}", soft_wrap=True, markup=False)
    total = sum(len(one.reachable) for one in reports)
    out.print(f"{total - len(missed)} of {total} reachable bins are met")
    if missed:
        raise typer.Exit(1)


@app.command()
def mutate(
    manifest: Annotated[Path | None, typer.Argument(
        help="vector set to measure; default: the vectors that come with emu")] = None,
    update: Annotated[bool, typer.Option(
        "--update", help="close the gaps by new vectors, and keep what was proved")] = False,
    gates: Annotated[bool, typer.Option(
        "--gates", help="change gates, not operations; what is no change is proved anew")
    ] = False,
    specs: Annotated[list[str] | None, typer.Option(
        "--spec", help="a unit to change, as for vectors, which must hold a file of it; default: "
        "quantizers, MACs and LFSRs")] = None,
) -> None:
    """Measure how many small changes of the Verilog the vectors notice; exit 1 below the bar."""
    from emu import cosim as bench
    from emu.cosim import mutate as mutants

    vectors = manifest or bench.default_vectors()
    asked = mutants.designs(specs or (), gates) if specs or gates else None
    with progress() as report:
        scores = (mutants.update if update else mutants.mutate)(vectors, asked, progress=report)
    table = table_of("unit", "mutants", "no change", "noticed", "gaps")
    for score in scores:
        table.add_row(f"{score.design.unit.module} {score.design.unit.spec}",
                      *map(str, (score.design.mutants, len(score.equivalent), score.killed,
                                 len(score.gaps))))
    out.print(table)
    for gap in (gap for score in scores for gap in score.gaps):
        out.print(f"gap: {gap.difference}  ({gap.mutation})", soft_wrap=True, markup=False)
    shares = {unit: mutants.share(counts) for unit, counts in mutants.strength(scores).items()}
    for unit, share in shares.items():
        out.print(f"{unit}: {100 * share:.2f} % of the mutants that change anything are noticed")
    if any(share < mutants.BARS[unit] for unit, share in shares.items()):
        raise typer.Exit(1)


@app.command()
def cost(
    specs: Annotated[list[str], typer.Argument(help="one or more, as for vectors")],
) -> None:
    """Say what units cost: LUTs, flip-flops and clock rate on an iCE40, and gates."""
    from emu.cosim.cost import cost as cost_of
    from emu.cosim.cost import versions
    from emu.golden.cases import from_text

    units = [from_text(spec) for spec in specs]
    table = table_of("unit", "LUT4", "flip-flops", "MHz", "from", "to", "NAND2 gates")
    with progress() as report:
        for done, unit in enumerate(units):
            report(unit.spec, done, len(units))
            found = cost_of(unit)
            rates = (found.median_fmax, min(found.fmax), max(found.fmax)) if found.fmax else ()
            table.add_row(f"{unit.module} {unit.spec}", str(found.luts), str(found.flops),
                          *(f"{rate:.1f}" for rate in rates) if rates else ("too large", "", ""),
                          str(found.gates))
    out.print(table)
    out.print(f"{versions()}; HX8K, median of 3 placements; a quantizer has its spec's shift",
              soft_wrap=True)
