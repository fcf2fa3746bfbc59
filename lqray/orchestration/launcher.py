"""What every launcher does: run trials, each recorded as one MLflow run, and say how each ended."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from lqray.experiment.grid import NamedTrial
from lqray.training.loop import Report

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended. metrics: those of its last report, empty unless FINISHED. error: the traceback, for FAILED."""

    named: NamedTrial
    status: Status
    metrics: dict[str, float] = field(default_factory=dict)
    run_id: str | None = None
    error: str | None = None


class Observer(Protocol):
    """Told what happens while trials run; its methods may be called from another thread."""

    def started(self, named: NamedTrial) -> None:
        """A trial begins."""

    def progressed(self, trial_id: str, report: Report) -> None:
        """A trial's rank 0 reported; not every report is passed on."""

    def ended(self, result: TrialResult) -> None:
        """A trial ended, whatever its status."""


class Launcher(Protocol):
    """Runs trials. Inline and Ray launchers satisfy the same contract (tests/orchestration/test_launchers.py)."""

    def launch(self, trials: Iterable[NamedTrial], on_result: Callable[[TrialResult], None]) -> None:
        """Run every trial and call `on_result` once for each, when it ends.

        A trial that fails does not stop the others. On Ctrl-C (or SIGTERM) running trials end as KILLED, the rest are
        not started and have no result, and LaunchInterrupted is raised, with no process of any trial left.
        """
        ...


class LaunchInterrupted(Exception):
    """The launch was stopped by Ctrl-C or SIGTERM."""


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Within it, SIGTERM is Ctrl-C (in the main thread; elsewhere signal handlers are not ours to set)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
