"""What the rooms of orchestration know of each other: trials are taken from a queue, run by a launcher, and
recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from lqray.experiment.grid import NamedTrial
from lqray.orchestration.failures import Failure
from lqray.orchestration.worker.task import Ack, Update
from lqray.training.reports import Report

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class Work:
    """A trial to be run now.

    run_id: of its MLflow run. folder: of its checkpoints and logs, an absolute path or a URI. start: counts how often
    this launch started it. continued: it was started before, by this launch or another. recorded: the last step that
    the store has of the run. claim: what its workers write to the folder by (`lqray.orchestration.worker.fencing`).
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
    or what stopped it, when it was not Ctrl-C; early: that was early stopping, and the trial is not to be continued;
    moves: it left its machine, and continues at once elsewhere. halts: of KILLED, why no other trial may begin.
    snapshot, examples, lost, levels: what rank 0 told (`lqray.orchestration.worker.task.Outcome`), None or empty where
    it told none. points: how many points of metrics rank 0 sent, None where that is not known.
    """

    named: NamedTrial
    status: Status
    metrics: dict[str, float] = field(default_factory=dict)
    run_id: str | None = None
    failure: Failure | None = None
    stopped: str | None = None
    early: bool = False
    moves: bool = False
    halts: str | None = None
    snapshot: dict[str, Any] | None = None
    examples: tuple[int, int] | None = None
    points: int | None = None
    lost: tuple[str, ...] = ()
    levels: dict[str, Any] | None = None


class Observer(Protocol):
    """Told what happens while trials run; its methods may be called from another thread."""

    def started(self, named: NamedTrial, continued: bool) -> None:
        """A trial begins, or goes on from a checkpoint."""

    def progressed(self, trial_id: str, report: Report) -> None:
        """A trial's rank 0 reported; not every report is passed on."""

    def retrying(self, named: NamedTrial, failure: Failure, seconds: float) -> None:
        """A trial failed through no fault of its own and is tried again after `seconds`."""

    def moving(self, named: NamedTrial, why: str) -> None:
        """A trial has left its machine after a checkpoint, and continues as soon as there is room elsewhere."""

    def ended(self, result: TrialResult) -> None:
        """A trial ended, whatever its status."""


class Process(Protocol):
    """Of a launch, somewhere."""

    @property
    def host(self) -> str:
        """The name of its machine."""

    @property
    def pid(self) -> int:
        """Its number there."""


@dataclass(frozen=True)
class Held:
    """Another launch has a trial. holder: which, where that is known. works: it was seen to be at work just now; else
    it may be dead, which shows after a while."""

    holder: Process | None = None
    works: bool = False

    def __str__(self) -> str:
        return f"{self.holder.host}, process {self.holder.pid}" if self.holder else "another launch"


class Recording(Protocol):
    """What the queue and the launchers see of the recorder: who runs a trial, what it measures, how it ended."""

    def begin(self, named: NamedTrial) -> Work | Held | None:
        """Claim a trial and make its run; None where it need not be run any more."""

    def retry(self, work: Work, result: TrialResult) -> None:
        """A trial that failed, or left its machine, is kept, to be continued by this launch."""

    def gone(self, work: Work) -> bool:
        """Whether its run was deleted: nothing more can be recorded of it. Never waits."""

    def settled(self, work: Work, result: TrialResult) -> TrialResult:
        """Wait until all that the trial measured is in the store; the result that can be recorded: where that is not
        possible, no trial is FINISHED. Several trials may be settled and ended at a time."""

    def end(self, work: Work, result: TrialResult) -> TrialResult | Held | None:
        """Record how a trial ended, and give it back. Gives what was recorded, where that is not the result, and the
        new holder, where another launch has taken the trial over: then nothing is recorded."""

    def record(self, update: Update) -> None:
        """Take what a trial's rank 0 measured."""

    def acknowledge(self, trial_id: str, stop: bool) -> Ack:
        """What a trial's rank 0 is told: how much of it is in the store, and whether it is to stop."""


class Source(Protocol):
    """Where trials come from."""

    def next(self) -> NamedTrial | None:
        """The next trial; None when there is none now: see `over`."""

    @property
    def over(self) -> bool:
        """Whether no more will come."""

    def told(self, result: TrialResult) -> None:
        """A trial ended for good."""


class Queue(Protocol):
    """What launchers see of the queue of trials (`lqray.orchestration.queue.queue`, which says more)."""

    observer: Observer

    def take(self, patience: float | None = None) -> Work | None:
        """A trial to be run now, or None: nothing is left (`over`), or has to wait."""

    @property
    def over(self) -> bool:
        """Whether `take` will give nothing more."""

    @property
    def running_ids(self) -> list[str]:
        """Of trials that were taken and have not ended."""

    def ended(self, result: TrialResult) -> None:
        """Say how a trial that was taken ended."""

    def stop(self, chosen: Callable[[NamedTrial], bool], why: str) -> None:
        """Running trials among the chosen stop, those to come are not begun."""

    def halt(self, why: str) -> None:
        """Nothing more is begun, and what runs stops after a checkpoint."""

    def lose(self, trial_id: str) -> None:
        """Another launch has taken a trial over: it stops here."""

    def stop_reason(self, trial_id: str) -> str | None:
        """Why a running trial has to stop, if it has to."""


class Launcher(Protocol):
    """Runs trials. All launchers satisfy the same contract (tests/orchestration/launchers/test_launchers.py)."""

    def launch(self, queue: Queue) -> None:
        """Run what the queue gives until it has nothing more to give, and tell it how each trial ended.

        A trial that fails does not stop the others. At a signal (`lqray.orchestration.signals`) LaunchInterrupted is
        raised, with no process of any trial left; what then becomes of the trials that were running is the queue's
        affair.
        """
        ...


class LaunchInterrupted(Exception):
    """The launch was stopped by Ctrl-C, SIGTERM or SIGHUP."""
