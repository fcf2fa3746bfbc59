"""The command that shows what a file describes: expand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lqray.cli import shared

if TYPE_CHECKING:
    from lqray.experiment.grid import Experiment


@click.command()
@shared.file
@click.option(
    "--format",
    "shape",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="table: names and what differs; json: every trial whole.",
)
def expand(file: Path, shape: str) -> None:
    """Show the trials that FILE describes; runs nothing."""
    with shared.clear_errors():
        experiment = shared.read(file)
        if shape == "json":
            _print_json(experiment)
        else:
            _print_trials(experiment)


def _print_json(experiment: Experiment) -> None:
    import json

    separator = "["
    for named in experiment.trials():
        item = {"id": named.trial.id, "name": named.name, "config": named.trial.config()}
        click.echo(separator + "\n  " + json.dumps(item), nl=False)
        separator = ","
    click.echo("\n]")


def _print_trials(experiment: Experiment) -> None:
    from rich.table import Table

    from lqray.experiment.budgets import said_of_budget
    from lqray.experiment.foreign import rich_text
    from lqray.experiment.unused import Usage

    console = shared.console()
    combinations = sum(1 for _ in experiment.combinations())
    usage = Usage(experiment.layout)
    table = Table(header_style="bold")
    for title in ("id", "name", *experiment.axes):
        table.add_column(
            rich_text(title), no_wrap=title == "id", min_width=16 if title == "id" else None, overflow="fold"
        )
    count = 0
    for named in experiment.trials():
        flat = named.trial.flat()
        cells = (named.trial.id, named.name, *(flat.get(axis, "-") for axis in experiment.axes))
        table.add_row(*map(rich_text, cells))
        usage.add(named.trial)
        count += 1
    console.print(table)
    same = combinations - count
    note = f"; {same} combinations are the same trial as another one and run once" if same else ""
    console.print(f"{experiment.name}: {count} trials{note}", highlight=False)
    for line in usage.unused() if count else ():
        console.print(line, highlight=False)
    if experiment.search and (
        said := said_of_budget(experiment.search.each, (one.trial for one in experiment.trials()))
    ):
        console.print(said, highlight=False)
