"""What the terminal shows while trials run: a live line for each, or plain lines when it is no terminal."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lqray.experiment.foreign import rich_text
from lqray.experiment.grid import NamedTrial
from lqray.experiment.headline import Headline, headline_of, name_of, written
from lqray.orchestration.failures import Failure
from lqray.orchestration.launchers.contract import TrialResult
from lqray.training.reports import Report

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PLAIN_SECONDS = 2.0


@dataclass
class _Running:
    named: NamedTrial
    started: float
    headline: Headline
    first_report: tuple[float, int] | None = None
    iteration: int = 0
    iterations: int = 0
    loss: float | None = None
    value: float | None = None
    printed: float = 0.0

    def eta(self, now: float) -> str:
        """Time left at the rate since the first report."""
        if self.first_report is None:
            return "starting"
        began, at = self.first_report
        if self.iteration <= at:
            return "..."
        left = (now - began) / (self.iteration - at) * (self.iterations - self.iteration)
        return f"{int(left // 60)}:{int(left % 60):02d}"


class Progress:
    """An Observer that draws on a rich console; `total` trials are to come. Use as a context."""

    def __init__(self, console: Console, total: int) -> None:
        from rich.live import Live

        self._console = console
        self._total = total
        self._ended = 0
        self._running: dict[str, _Running] = {}
        self._lock = threading.RLock()
        self._live = (
            Live(console=console, get_renderable=self._draw, refresh_per_second=4) if console.is_terminal else None
        )

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            with self._lock:
                self._running.clear()
            self._live.stop()

    def started(self, named: NamedTrial, continued: bool) -> None:
        """See `lqray.orchestration.launchers.contract.Observer`."""
        with self._lock:
            self._running[named.trial.id] = _Running(named, time.monotonic(), headline_of(named.trial.flat()))
        if not self._live:
            word = "continued" if continued else "started"
            self._console.print(f"{self._count()} {named.name}: {word}", highlight=False, markup=False)

    def retrying(self, named: NamedTrial, failure: Failure, seconds: float) -> None:
        """See `lqray.orchestration.launchers.contract.Observer`."""
        with self._lock:
            self._running.pop(named.trial.id, None)
        text = f"{self._count()} {named.name}: again in {seconds:g} s, after: {failure.error}"
        self._console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)

    def moving(self, named: NamedTrial, why: str) -> None:
        """See `lqray.orchestration.launchers.contract.Observer`."""
        with self._lock:
            self._running.pop(named.trial.id, None)
        text = f"{self._count()} {named.name}: moves to another machine, from its checkpoint: {why}"
        self._console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)

    def progressed(self, trial_id: str, report: Report) -> None:
        """See `lqray.orchestration.launchers.contract.Observer`."""
        now = time.monotonic()
        with self._lock:
            running = self._running.get(trial_id)
            if running is None:
                return
            for remark in report.remarks:
                text = f"{self._count()} {running.named.name}: {remark}"
                self._console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)
            running.first_report = running.first_report or (now, report.iteration)
            running.iteration = max(running.iteration, report.iteration)
            running.iterations = report.iterations
            running.loss = report.metrics.get("train/loss", running.loss)
            running.value = report.metrics.get(running.headline.metric, running.value)
            due = not self._live and now - running.printed > _PLAIN_SECONDS
            if due:
                running.printed = now
                self._console.print(
                    f"{self._count()} {running.named.name}: {_line(running, now)}", highlight=False, markup=False
                )

    def ended(self, result: TrialResult) -> None:
        """See `lqray.orchestration.launchers.contract.Observer`."""
        with self._lock:
            self._ended += 1
            running = self._running.pop(result.named.trial.id, None)
        took = f" in {time.monotonic() - running.started:.1f} s" if running else ""
        text = f"{self._count()} {result.named.name}: {result.status.lower()}{took}"
        headline = running.headline if running else headline_of(result.named.trial.flat())
        if headline.metric in result.metrics:
            text += f", {_said(headline, result.metrics[headline.metric])}"
        if result.failure:
            text += f": {result.failure.error}"
        if result.stopped:
            text += f" ({result.stopped})"
        style = {"FINISHED": "green", "FAILED": "bold red", "KILLED": "yellow"}[result.status]
        self._console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def _count(self) -> str:
        return f"({self._ended}/{self._total})"

    def _draw(self) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        now = time.monotonic()
        table = Table.grid(padding=(0, 2))
        with self._lock:
            for running in self._running.values():
                bar = ProgressBar(
                    total=running.iterations or 1,
                    completed=running.iteration,
                    width=24,
                    pulse=running.first_report is None,
                )
                table.add_row(rich_text(running.named.name), bar, _line(running, now))
        return table


def _line(running: _Running, now: float) -> str:
    parts = [f"step {running.iteration}/{running.iterations or '?'}"]
    if running.loss is not None:
        parts.append(f"loss {running.loss:.4f}")
    if running.value is not None:
        parts.append(_said(running.headline, running.value))
    parts.append(f"ETA {running.eta(now)}")
    return "  ".join(parts)


def _said(headline: Headline, value: float) -> str:
    """Of the test set; a loss is told from that of the training."""
    name = name_of(headline.metric)
    return f"{'test loss' if name == 'loss' else name} {written(headline.metric, value, digits=5)}"
