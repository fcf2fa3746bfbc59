"""Rank 0's reports, from the training loop to the launcher."""

from __future__ import annotations

import math
import time
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lqray.orchestration.worker.fencing import Fence
from lqray.orchestration.worker.logs import host_and_process
from lqray.orchestration.worker.points import Point
from lqray.orchestration.worker.system_metrics import EVERY_SECONDS, SystemMetrics
from lqray.orchestration.worker.task import Link, Update, WorkerTask
from lqray.training.levels import LevelHistory, is_level
from lqray.training.reports import Report
from lqray.training.storage import open_folder

_SEND_SECONDS = 0.5
_LEVELS_SECONDS = 60.0
"""In which levels are sent at most once while a trial runs: all of them, a megabyte or two where there are many."""


class Reporter:
    """Rank 0's reports on their way to the launcher.

    A point is kept until MLflow has it. Before a checkpoint is written, those that it does not have yet are written
    beside it: a run that continues there sends them first, so that none is lost, wherever the launcher or MLflow was.
    """

    def __init__(self, task: WorkerTask, link: Link, say: Callable[[str], object]) -> None:
        from lqray.orchestration.worker.spool import read_spool  # which imports torch, for seconds

        self._task, self._link, self._say = task, link, say
        self._folder = open_folder(task.folder)
        self._fence = Fence(self._folder, task.claim)
        self._fence.take()
        self._kept: deque[tuple[int, Point]] = deque()
        self.count = self._sent = 0
        self._shown = 0.0
        self._latest: dict[str, float] = {}
        self._last: Report | None = None
        self._remarks: tuple[str, ...] = ()
        self.broken_rule: str | None = None
        self._seen: dict[str, Any] = {}
        self._levels: LevelHistory | None = None
        self._levels_sent = time.monotonic()
        self._system = SystemMetrics() if task.system_metrics else None
        self._sampled = time.monotonic()
        points, word = read_spool(self._folder, task.trial_id, task.run_id, task.recorded)
        if word:
            warnings.warn(word, stacklevel=3)
            say(word)
        for point in points:
            self._keep(point)

    def report(self, report: Report) -> None:
        """Send it, with others, at most twice a second, but at once with an evaluation. NaN is not for MLflow, whose
        charts and comparisons cannot show it; nor is each level, of which it would make a chart."""
        metrics = {key: value for key, value in report.metrics.items() if not is_level(key)}
        finite = {key: float(value) for key, value in metrics.items() if not math.isnan(value)}
        self._keep(Point(report.iteration, int(time.time() * 1000), finite | self._busy(report)))
        self._latest |= metrics
        self._remarks += report.remarks
        self._last = replace(report, metrics=dict(self._latest), snapshot=None, levels=None, remarks=self._remarks)
        self._seen = {"snapshot": report.snapshot, "examples": report.examples, "lost": report.lost}
        self._levels = report.levels
        for rule in self._task.stop_rules:
            if not report.final and self.broken_rule is None and rule.broken(report.iteration, report.metrics):
                self.broken_rule = str(rule)
        needed = self._task.needed_metric
        begun = self._task.continued or self._task.start > 1  # it may have been measured before the checkpoint
        if report.evaluated and needed and needed not in self._latest and not begun:
            raise ValueError(
                f"no metric {needed!r} is reported, by which `search` goes; there are: "
                f"{', '.join(sorted(self._latest))}"
            )
        if report.evaluated or time.monotonic() - self._shown > _SEND_SECONDS:
            self._send(self._levels_now() if report.evaluated else None)
        if report.evaluated:
            self._say(_line(report))

    @property
    def seen(self) -> dict[str, Any]:
        """What its reports told beside metrics: for the trial's end."""
        return {**self._seen, "levels": self._levels.document()} if self._levels else dict(self._seen)

    def stop(self) -> bool:
        """Whether a rule is broken or the launcher wants the trial to stop."""
        if time.monotonic() - self._shown > _SEND_SECONDS:
            self._send()
        return self.broken_rule is not None or self._link.acknowledged().stop

    def secure(self) -> None:
        """Write what MLflow does not have yet beside the checkpoint that is about to be written. Raises LostClaimError
        where this worker must not write any more."""
        from lqray.orchestration.worker.spool import write_spool

        self._fence.check()
        self._forget_delivered()
        write_spool(self._folder, self._task.trial_id, self._task.run_id, [point for _, point in self._kept])

    def close(self) -> None:
        """Send the rest, and wait until the launcher has it."""
        self._send()
        self._link.close()

    def _busy(self, report: Report) -> dict[str, float]:
        """How busy the machine is, every ten seconds and at the end. For MLflow only: not a metric of the trial."""
        if self._system is None or (not report.final and time.monotonic() - self._sampled < EVERY_SECONDS):
            return {}
        self._sampled = time.monotonic()
        try:
            return self._system.sample()
        except (OSError, RuntimeError) as error:  # what a machine does not show must not cost the trial
            self._say(f"no more system metrics: {error!r}")
            self._system = None
            return {}

    def _keep(self, point: Point) -> None:
        self.count += 1
        self._kept.append((self.count, point))

    def _levels_now(self) -> dict[str, Any] | None:
        """All so far, where it is time to send them."""
        if self._levels is None or time.monotonic() - self._levels_sent < _LEVELS_SECONDS:
            return None
        self._levels_sent = time.monotonic()
        return self._levels.document()

    def _send(self, levels: dict[str, Any] | None = None) -> None:
        self._shown = time.monotonic()
        self._forget_delivered()
        points = [point for number, point in self._kept if number > self._sent]
        self._sent = self.count
        told = points, self._last, host_and_process(), levels
        self._link.send(Update(self._task.trial_id, self._task.start, *told))
        if self._last:
            self._last, self._remarks = None, ()

    def _forget_delivered(self) -> None:
        delivered = self._link.acknowledged().delivered
        while self._kept and self._kept[0][0] <= delivered:
            self._kept.popleft()


def _line(report: Report) -> str:
    chosen = {key: value for key, value in sorted(report.metrics.items()) if key.startswith(("train", "test"))}
    shown = "  ".join(f"{key} {value:.5g}" for key, value in chosen.items())
    return f"step {report.iteration}/{report.iterations}  {shown}"
