"""What every launcher does: take trials from a queue, run them, and say how each ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lqray.experiment.grid import NamedTrial
from lqray.orchestration.failures import Failure
from lqray.training.reports import Report

if TYPE_CHECKING:
    from lqray.orchestration.queue import TrialQueue

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class Work:
    """A trial to be run now.

    run_id: of its MLflow run. folder: of its checkpoints and logs, an absolute path or a URI. start: counts how often
    this launch started it. continued: it was started before, by this launch or another. recorded: the last step that
    the store has of the run. claim: what its workers write to the folder by (`lqray.orchestration.fencing`).
    """

    named: NamedTrial
    run_id: str
    folder: str
    start: int = 1
    continued: bool = False
    recorded: int = 0
    claim: str = ""


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended.

    metrics: those of its last report, empty unless FINISHED. failure: of FAILED, what happened. stopped: of KILLED, who
    or what stopped it, when it was not Ctrl-C; early: that was early stopping, and the trial is not to be continued.
    halts: of KILLED, why no other trial may begin. snapshot, examples, lost: of rank 0's reports
    (`lqray.training.reports.Report`), None or empty where it made none. points: how many points of metrics rank 0 sent,
    None where that is not known.
    """

    named: NamedTrial
    status: Status
    metrics: dict[str, float] = field(default_factory=dict)
    run_id: str | None = None
    failure: Failure | None = None
    stopped: str | None = None
    early: bool = False
    halts: str | None = None
    snapshot: dict[str, Any] | None = None
    examples: tuple[int, int] | None = None
    points: int | None = None
    lost: tuple[str, ...] = ()


class Observer(Protocol):
    """Told what happens while trials run; its methods may be called from another thread."""

    def started(self, named: NamedTrial, continued: bool) -> None:
        """A trial begins, or goes on from a checkpoint."""

    def progressed(self, trial_id: str, report: Report) -> None:
        """A trial's rank 0 reported; not every report is passed on."""

    def retrying(self, named: NamedTrial, failure: Failure, seconds: float) -> None:
        """A trial failed through no fault of its own and is tried again after `seconds`."""

    def ended(self, result: TrialResult) -> None:
        """A trial ended, whatever its status."""


class Launcher(Protocol):
    """Runs trials. All launchers satisfy the same contract (tests/orchestration/test_launchers.py)."""

    def launch(self, queue: TrialQueue) -> None:
        """Run what the queue gives until it has nothing more to give, and tell it how each trial ended.

        A trial that fails does not stop the others. At a signal (`lqray.orchestration.signals`) LaunchInterrupted is
        raised, with no process of any trial left; what then becomes of the trials that were running is the queue's
        affair.
        """
        ...


class LaunchInterrupted(Exception):
    """The launch was stopped by Ctrl-C, SIGTERM or SIGHUP."""
