"""How recorded trials stand, what they wrote and why they failed: read from the store and the trials' folders."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from lqray.experiment.foreign import in_line, json_value
from lqray.experiment.store import StorageError
from lqray.orchestration.failures import ADVICE, Kind
from lqray.orchestration.worker.logs import log_name, read_logs
from lqray.store.client import reading_client
from lqray.store.errors import StoreError
from lqray.store.experiments import UnknownExperimentError, sweeps_of
from lqray.store.runs import Run, UnknownRunError, latest_runs
from lqray.store.tags import ATTEMPT, EARLY, ERROR, FAILED_HOST, FAILED_RANK, FAILURE, FOLDER, PROGRESS, STOPPED
from lqray.training.storage import cached_path

_MOST = 1e15
STANDING = (PROGRESS, ERROR, FAILURE, EARLY, STOPPED, ATTEMPT)
_OTHERWISE: Kind = "user_error"


@dataclass(frozen=True)
class Progress:
    """How far a run is, by its last word. rate: steps per second since it started or continued; heard: seconds ago."""

    iteration: int
    iterations: int
    host: str
    rate: float | None
    heard: float

    @property
    def eta(self) -> float | None:
        """Seconds left at this rate."""
        return (self.iterations - self.iteration) / self.rate if self.rate else None


def progress_of(run: Run, now: float) -> Progress | None:
    """What the run last said of itself; None before its first word, or where its tag is not what lqray writes."""
    text = run.tags.get(PROGRESS)
    if not text:
        return None
    try:
        said = json_value(text)
        iteration, iterations, time_, rate = (_number(said[key]) for key in ("iteration", "iterations", "time", "rate"))
        if iteration is None or iterations is None or time_ is None:
            return None
        return Progress(int(iteration), int(iterations), str(said["host"]).partition(":")[0], rate, now - time_)
    except (ValueError, KeyError, TypeError):
        return None


def _number(value: object) -> float | None:
    """None for null. Raises ValueError unless it is a number that a clock or a count of steps can be."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MOST:
        raise ValueError(f"no usable number: {value!r}")
    return float(value)


def recorded_trials(uri: str, experiment: str, tags: Collection[str] = STANDING) -> dict[str, Run]:
    """As `latest_runs`. Raises UnknownExperimentError, with the names that there are, for one without trials."""
    runs = latest_runs(uri, experiment, tags)
    if not runs:
        known = ", ".join(map(in_line, sorted(sweeps_of(uri)))) or "none"
        raise UnknownExperimentError(f"no trials of an experiment {experiment!r} in {uri}; there are: {known}")
    return runs


def logs_of(run: Run) -> list[tuple[int, str, str]]:
    """(rank, address, text) of the logs of a trial's ranks. Raises UnknownRunError where they cannot be seen from here,
    StorageError."""
    folder = run.tags.get(FOLDER, "")
    try:
        logs = [(rank, f"{folder}/{log_name(rank)}", text) for rank, text in read_logs(folder)] if folder else []
    except StorageError:
        raise
    except (OSError, ValueError) as error:  # a ValueError of an address that is none
        raise UnknownRunError(f"the logs of {run.name} in {folder} cannot be read: {error}") from error
    if not logs:
        late = f"; a process that was killed leaves its last words on its machine, in {cached_path(folder)}"
        raise UnknownRunError(
            f"{run.name} has no logs in {folder or 'any folder'}: it trained in the launcher's own process "
            "(--launcher inline, one process), has not begun, or its folder is on another machine"
            f"{late if '://' in folder else ''}"
        )
    return logs


@dataclass(frozen=True)
class FailedTrial:
    """A failed trial as it is recorded."""

    name: str
    kind: Kind
    error: str
    where: str
    traceback: str


def failed_trials(uri: str, experiment: str) -> Iterator[FailedTrial]:
    """Sorted by kind, in the order of `Kind`. Raises UnknownExperimentError."""
    tags = (FAILURE, ERROR, FAILED_HOST, FAILED_RANK)
    failed = [one for one in recorded_trials(uri, experiment, tags).values() if one.status == "FAILED"]
    kinds = get_args(Kind)

    def kind_of(run: Run) -> Kind:
        kind: Kind = run.tags.get(FAILURE, _OTHERWISE)  # type: ignore[assignment]
        return kind if kind in kinds else _OTHERWISE

    for run in sorted(failed, key=lambda one: (kinds.index(kind_of(one)), one.name)):
        host, rank = run.tags.get(FAILED_HOST), run.tags.get(FAILED_RANK)
        where = ", ".join([*([host] if host else []), *([f"rank {rank}"] if rank else [])]) or "place unknown"
        kind = kind_of(run)
        yield FailedTrial(run.name, kind, run.tags.get(ERROR, "?"), where, _traceback(uri, run.run_id))


def advice(kind: Kind) -> str:
    """Whether a retry makes sense, and what else to do."""
    return ADVICE[kind]


def _traceback(uri: str, run_id: str) -> str:
    try:
        text: str = reading_client(uri).download_artifacts(run_id, "traceback.txt")
        return Path(text).read_text(encoding="utf-8", errors="replace")
    except StoreError:
        raise
    except Exception:  # the artifact is a courtesy; its last line is a tag
        return "(the traceback is not to be had from here)"
