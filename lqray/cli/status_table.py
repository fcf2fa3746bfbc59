"""What `lqray status` draws."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lqray.experiment.foreign import rich_text
from lqray.experiment.headline import OF_TASKS, name_of
from lqray.orchestration.recording.overview import STANDING, progress_of
from lqray.store.runs import Run, latest_runs, param_values
from lqray.store.tags import EARLY, FAILURE, PROGRESS, STOPPED

if TYPE_CHECKING:
    from rich.table import Table

_SILENT_SECONDS = 60.0
_SHOWN = (*dict.fromkeys(one.metric for one in OF_TASKS.values()), "train/loss")
_WORDS = {"test/loss": "test loss", "train/loss": "loss"}


def status_table(uri: str, experiments: Sequence[str]) -> Table:
    """A row for each trial that runs, or failed, or was stopped, and a line of counts for each experiment."""
    from rich.table import Table
    from rich.text import Text

    now = time.time()
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("trial", "state", "step", "steps/s", "ETA", "last metric", "host"):
        number = title in ("step", "steps/s", "ETA")
        table.add_column(title, no_wrap=number, justify="right" if number else "left", overflow="fold")
    for experiment in experiments:
        own = sorted(param_values(uri, experiment, "task.headline") - {"null"})
        runs = latest_runs(uri, experiment, STANDING, (*own, *_SHOWN))
        counts: dict[str, int] = {}
        for run in runs.values():
            word = _word(run, now)
            counts[word] = counts.get(word, 0) + 1
        summary = ", ".join(f"{count} {word}" for word, count in sorted(counts.items())) or "no trials"
        table.add_row(Text.assemble(rich_text(experiment, "bold"), ": ", rich_text(summary)))
        for run in sorted(runs.values(), key=lambda one: one.started):
            if run.status != "FINISHED":
                table.add_row(*map(rich_text, _row(run, now, own)), style=_STYLES.get(_word(run, now)))
    return table


_STYLES = {"failed": "red", "silent": "yellow", "killed": "yellow", "stopped": "yellow"}


def _word(run: Run, now: float) -> str:
    if run.status == "RUNNING":
        said = progress_of(run, now)
        silent = now - run.started if said is None else said.heard
        return "silent" if silent > _SILENT_SECONDS else "running"
    if EARLY in run.tags:
        return "stopped early"
    return "stopped" if STOPPED in run.tags else run.status.lower()


def _row(run: Run, now: float, own: Sequence[str]) -> list[str]:
    """Its cells. own: metrics that `task.headline` of trials of the experiment names."""
    said = progress_of(run, now)
    word = _word(run, now)
    last = ""
    if word in ("running", "silent"):
        last = _metrics(run, own)
    elif word == "failed":
        last = f"{run.tags.get(FAILURE, '')}: {run.error or ''}"[:90]
    else:
        last = run.tags.get(EARLY) or run.tags.get(STOPPED) or ""
    if said is None:
        step = f"{PROGRESS} is unreadable" if run.tags.get(PROGRESS) else ""
        return [f"  {run.name}", word, step, "", "", last, ""]
    running = word == "running"
    return [
        f"  {run.name}",
        word,
        f"{said.iteration}/{said.iterations}",
        f"{said.rate:.3g}" if running and said.rate else "",
        _duration(said.eta) if running and said.eta is not None else "",
        last,
        said.host,
    ]


def _metrics(run: Run, own: Sequence[str]) -> str:
    """The headline, and the loss of training."""
    judged = [key for key in dict.fromkeys((*own, *_SHOWN)) if key in run.metrics and key != "train/loss"]
    shown = [key for key in judged if key in own] or judged[:1]
    shown += [key for key in ("train/loss",) if key in run.metrics and key not in shown]
    return "  ".join(f"{_WORDS.get(key, name_of(key))} {run.metrics[key]:.4g}" for key in shown)


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
