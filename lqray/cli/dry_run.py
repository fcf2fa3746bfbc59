"""What `lqray run --dry-run` shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lqray.experiment.budgets import said_of_budget
from lqray.experiment.foreign import rich_text
from lqray.experiment.grid import NamedTrial
from lqray.orchestration.plan.history import History, expected
from lqray.orchestration.plan.plan import Plan
from lqray.reporting.fitting import print_whole
from lqray.training.estimate import Estimate

if TYPE_CHECKING:
    from rich.console import Console

_ROWS = 30
_Expected = tuple[Estimate | None, float | None, bool]


@dataclass
class _Sums:
    """Over trials. unknown: those whose bytes cannot be told. guessed: those whose time was not measured."""

    steps: int = 0
    megabytes: float = 0.0
    seconds: float = 0.0
    unknown: int = 0
    guessed: int = 0

    def add(self, known: Estimate | None, time: float | None, measured: bool) -> float | None:
        """Megabytes that a process of the trial sends, as far as they are known."""
        sent = known.iterations * known.bytes_per_step / 1e6 if known and known.bytes_per_step is not None else None
        self.unknown += sent is None
        self.guessed += time is not None and not measured
        self.steps += known.iterations if known else 0
        self.megabytes += sent or 0.0
        self.seconds += time or 0.0
        return sent


def _outlook(plan: Plan, due: Iterable[NamedTrial]) -> Iterator[tuple[NamedTrial, Estimate | None, float | None, bool]]:
    """What is expected of each trial. Trials of a grid share their sections: it is worked out once for each combination
    of them."""
    history = History(plan.uri, plan.experiment.name)
    shapes: dict[tuple[int, ...], _Expected] = {}
    for named in due:
        trial = named.trial
        parts = (trial.data, trial.model, trial.schedule, trial.exchange, trial.quantizer, trial.telemetry)
        key = (trial.workers, *(id(part) for part in parts))
        found = shapes.get(key) or shapes.setdefault(key, expected(trial, plan.experiment.resources, history))
        yield named, *found


def show_plan(console: Console, plan: Plan) -> None:
    """The first trials that would run, and counts, steps, bytes and time of all."""
    from rich.table import Table
    from rich.text import Text

    experiment = plan.experiment
    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    for title in ("trial", "id", "what", "steps", "MB sent", "time"):
        number = title in ("steps", "MB sent", "time")
        table.add_column(title, no_wrap=number, justify="right" if number else "left", overflow="fold")
    what = {one.named.trial.id: one.what for one in plan.trials}
    sums, due = _Sums(), plan.due
    for place, (named, known, time, measured) in enumerate(_outlook(plan, due)):
        sent = sums.add(known, time, measured)
        if place < _ROWS:
            table.add_row(
                rich_text(named.name),
                named.trial.id,
                what[named.trial.id],
                f"{known.iterations:,}" if known else "-",
                "-" if sent is None else f"{sent:,.1f}",
                "-" if time is None else f"{'' if measured else '~'}{duration(time)}",
            )
    if due:
        print_whole(console, table)
    if len(due) > _ROWS:
        console.print(f"... and {len(due) - _ROWS:,} more")
    counts = Counter(one.what for one in plan.trials)
    names = {"run": "new", "done": "finished", "early": "stopped early"}
    summary = ", ".join(f"{count:,} {names.get(word, word)}" for word, count in counts.most_common())
    summary += plan.said_of_others
    said = f": {summary or 'no trials'}; {len(due):,} would run"
    console.print(Text.assemble(rich_text(experiment.name, "bold"), said))
    search = experiment.search
    if search and (budget := said_of_budget(search.each, (one.trial for one in experiment.trials()))):
        console.print(budget, highlight=False)
    if plan.more:
        console.print(f"{plan.more:,} more would be suggested, each from the results so far")
    if due:
        sent_in_all = f"{sums.steps:,.0f} steps, {sums.megabytes:,.1f} MB sent by each process"
        console.print(f"{sent_in_all}, {duration(sums.seconds)} one trial after another", highlight=False)
    if sums.guessed:
        console.print(
            f"~ {sums.guessed:,} times are guesses from arithmetic: no earlier run of that shape has finished"
        )
    if sums.unknown:
        why = "without their files, of parts of your own, or at all (powersgd)"
        console.print(f"- {sums.unknown:,} trials whose bytes cannot be told: {why}")


def duration(seconds: float) -> str:
    """As people say it, rounded."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
