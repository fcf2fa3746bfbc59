"""What a worker is given, and what it says: plain data, sent between processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lqray.experiment.options.storage import Storage
from lqray.experiment.schema import Resources
from lqray.orchestration.failures import Failure
from lqray.orchestration.worker.points import Point
from lqray.training.reports import Report


class StopRule(Protocol):
    """A rule that ends a trial early; its text says which."""

    def broken(self, step: int, metrics: Mapping[str, float]) -> bool:
        """By a report after `step` iterations."""


@dataclass(frozen=True)
class WorkerTask:
    """Everything that a worker needs, as plain data. config: `Trial.config()`. folder: of the trial's checkpoints and
    logs. start: counts how often the launch started the trial. backend: of the process group. code: `training_code()`
    of the launcher. needed_metric: what early stopping or the search goes by. system_metrics: whether rank 0 records
    how busy its machine is. recorded: the last step that the store has of the run. claim: by which it writes to the
    folder (`lqray.orchestration.worker.fencing`). continued: whether the run was begun before. places: where the
    launch looks for parts of a user's own (`lqray.experiment.parts`). own_parts: what their code is there
    (`lqray.experiment.part_files.own_digests`)."""

    trial_id: str
    name: str
    config: dict[str, Any]
    resources: Resources
    storage: Storage
    folder: str
    run_id: str
    start: int
    backend: str
    code: str
    stop_rules: tuple[StopRule, ...] = ()
    needed_metric: str | None = None
    system_metrics: bool = False
    recorded: int = 0
    claim: str = ""
    continued: bool = False
    places: tuple[str, ...] = ()
    own_parts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Update:
    """From rank 0 to the launcher. start: of its task. report: the latest value of every metric, for people to see.
    levels: now and then, all that were measured so far (`lqray.training.levels.LevelHistory.document`)."""

    trial_id: str
    start: int
    points: list[Point]
    report: Report | None = None
    host: str = ""
    levels: dict[str, Any] | None = None


@dataclass(frozen=True)
class Ack:
    """What rank 0 last heard from its launcher. delivered: how many of its points MLflow has."""

    delivered: int = 0
    stop: bool = False


class Link(Protocol):
    """Rank 0's line to the launcher. Neither method waits."""

    def send(self, update: Update) -> None:
        """Send, in order."""

    def acknowledged(self) -> Ack:
        """The launcher's latest word."""

    def close(self) -> None:
        """Wait until all that was sent has arrived."""


@dataclass(frozen=True)
class Outcome:
    """How a task ended on one rank: with metrics, a failure, or stopped (by which rule; "" for the launcher's request).
    snapshot, examples, lost: of rank 0, the last that it reported (`lqray.training.reports.Report`). levels: as of
    `Update`. points: how many rank 0 sent."""

    metrics: dict[str, float] = field(default_factory=dict)
    failure: Failure | None = None
    stopped: str | None = None
    snapshot: dict[str, Any] | None = None
    examples: tuple[int, int] | None = None
    points: int | None = None
    lost: tuple[str, ...] = ()
    levels: dict[str, Any] | None = None
