"""What `lqray run --dry-run` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lqray.experiment.grid import Experiment
from lqray.orchestration.run import Plan

if TYPE_CHECKING:
    from rich.console import Console

_ROWS = 30


def show_plan(console: Console, plan: Plan, experiment: Experiment) -> None:
    """The first trials that would run, and counts of all."""
    from rich.table import Table

    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    for title in ("trial", "id", "what"):
        table.add_column(title, no_wrap=True)
    due = {named.trial.id for named in plan.due}
    rows = [one for one in plan.trials if one.named.trial.id in due]
    for one in rows[:_ROWS]:
        table.add_row(one.named.name, one.named.trial.id, one.what)
    console.print(table)
