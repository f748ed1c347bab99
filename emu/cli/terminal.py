"""What all commands share: the app, its two consoles, tables and progress."""

from __future__ import annotations

from contextlib import contextmanager

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Bit-exact fixed-point MAC hardware: train on it, write its vectors, "
                       "replay them on RTL.")
out, err = Console(highlight=False), Console(stderr=True, highlight=False)


def table_of(*headings: str) -> Table:
    """A table whose first column is words and whose others are numbers."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="left" if heading == headings[0] else "right")
    return table


@contextmanager
def progress():
    """A function (what, done, total) that shows what runs on a terminal, nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        task = bars.add_task("", total=None)

        def report(what: str, done: int = 0, total: int | None = None) -> None:
            bars.update(task, description=what, completed=done, total=total)

        yield report
