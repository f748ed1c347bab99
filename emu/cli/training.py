"""The commands of training and of the engine: train, diff, bounds, presets, warmup."""

from __future__ import annotations

import dataclasses
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from emu.cli.terminal import app, out, progress, table_of


class Computes(str, Enum):
    """What computes a training."""

    engine = "engine"
    rtl = "rtl"


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="a shipped recipe, or a YAML file")],
    data: Annotated[str | None, typer.Option(
        help="digits, mnist:DIR, cifar10:DIR, patches, lookup; instead of the recipe's")] = None,
    folder: Annotated[Path | None, typer.Option(
        "--out", help="run folder; default runs/RECIPE")] = None,
    record: Annotated[Path | None, typer.Option(
        help="also write one training step as golden vectors in this folder")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run folder")] = False,
    epochs: Annotated[int | None, typer.Option(help="instead of the recipe's")] = None,
    monitor: Annotated[int | None, typer.Option(
        help="watch every n-th step, 0 none; instead of the recipe's")] = None,
    start: Annotated[Path | None, typer.Option(
        help="run folder of the first stage, instead of the recipe's")] = None,
    baseline: Annotated[bool, typer.Option(
        "--baseline", help="also train the same network in float64")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="instead of the recipe's")] = None,
    hardware: Annotated[str, typer.Option(
        help="changes of the recipe's hardware, as YAML: '{default: {w: s4f3 ties_even sat}}'")
    ] = "",
    backend: Annotated[Computes, typer.Option(
        help="rtl: every product of matrices, cast, draw and update in the compiled Verilog, "
        "watched by nobody; an operation that no module does is refused")
    ] = Computes.engine,
) -> None:
    """Train a network with every sum in integer codes."""
    from emu.lab.recipe import Recipe
    from emu.lab.train import float_accuracy
    from emu.lab.train import train as run_training

    chosen = Recipe.load(recipe)
    if data is not None:
        chosen = dataclasses.replace(chosen, data=data)
    if start is not None:
        chosen = dataclasses.replace(chosen, start=str(start))
    if backend == Computes.rtl:
        monitor = 0
    if monitor is not None:
        chosen = dataclasses.replace(chosen, monitor=monitor)
    if seed is not None:
        chosen = dataclasses.replace(chosen, seed=seed)
    if hardware:
        chosen = chosen.with_hardware(hardware)
    if epochs is not None:
        chosen = dataclasses.replace(
            chosen, training=dataclasses.replace(chosen.training, epochs=epochs))
    folder = folder or Path("runs") / Path(recipe).stem
    with progress() as report:
        run = run_training(chosen, folder, resume, record, report, _computes(backend))
        twin = float_accuracy(chosen, report) if baseline else None
    last = run.metrics[-1]
    _print_telemetry(run.telemetry)
    out.print(f"test accuracy {100 * last['test_accuracy']:.2f} % after {last['epoch']} epochs"
              + ("" if twin is None else f"; the same network in float: {100 * twin:.2f} %"))
    out.print(f"run folder {folder}", soft_wrap=True)
    if record:
        out.print(f"recorded step {record}; replay it with: emu cosim {record}", soft_wrap=True)


def _computes(backend: Computes):
    if backend == Computes.rtl:
        from emu.lab.rtl import RtlBackend as Chosen
    else:
        from emu.nn.backend import Backend as Chosen
    return Chosen


@app.command()
def diff(a: Path, b: Path) -> None:
    """Say where two runs or two vector sets first differ; exit status 1 if they do."""
    if (a / "manifest.json").exists() or a.suffix == ".json":
        from emu import golden

        lines = golden.diff(a, b)
    else:
        from emu.lab.diff import diff_runs

        lines = diff_runs(a, b)
    for line in lines:
        out.print(line, soft_wrap=True, markup=False)
    if lines:
        raise typer.Exit(1)


@app.command()
def bounds(
    model: Annotated[str, typer.Argument(help="a run folder of emu train, or a recipe")],
) -> None:
    """Say how wide each accumulator must be, so that no input makes it overflow."""
    from emu.lab.bounds import layer_bounds, table

    for line in table(layer_bounds(model)):
        out.print(line, soft_wrap=True, markup=False)


@app.command()
def presets(
    name: Annotated[str | None, typer.Argument(help="print this one in full")] = None,
) -> None:
    """List the MAC units of real machines, or print one with its source and its limits."""
    from emu import presets as known

    if name is not None:
        lines = [str(known[name])]
    else:
        longest = max(map(len, known))
        lines = [f"{preset.name:<{longest}}  {preset.mac}" for preset in known.values()]
    for line in lines:
        out.print(line, soft_wrap=True, markup=False)


@app.command()
def warmup() -> None:
    """Compile every kernel for this machine now, so that no later command waits."""
    from emu.engine.warmup import jobs

    work = list(jobs())
    with progress() as report:
        for done, (what, job) in enumerate(work):
            report(f"compiling: {what}", done, len(work))
            job()
    out.print(f"{len(work)} kinds of operation are compiled and kept on disk")


def _print_telemetry(telemetry) -> None:
    """Every MAC, and every cast that met a value out of range or is biased."""
    if not telemetry.watched:
        return
    out.print(f"what the hardware did in {telemetry.watched} of {telemetry.steps} steps",
              style="bold")
    for rows, headings in (
            (telemetry.accumulators(), ("accumulator", "additions", "overflowed", "transient",
                                        "persistent", "bits")),
            (telemetry.casts(), ("cast", "values", "out of range", "bits", "bias in steps"))):
        table = table_of(*headings)
        for row in rows:
            table.add_row(*row)
        out.print(table)
