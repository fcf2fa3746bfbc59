"""What `lqray status`, `logs` and `failures` show, read from the store and the trials' folders."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from lqray.experiment.foreign import in_line, json_value, rich_text
from lqray.experiment.store import StorageError
from lqray.orchestration.failures import ADVICE, Kind
from lqray.orchestration.rank_logs import log_name, read_logs
from lqray.orchestration.states import TrialState, read_states
from lqray.orchestration.store_access import StoreError, reading_client
from lqray.training.storage import cached_path

if TYPE_CHECKING:
    from rich.table import Table

_WORD = "lqray.progress"
_MOST = 1e15
_PROGRESS = (_WORD, "lqray.error", "lqray.failure", "lqray.early", "lqray.stopped", "lqray.attempt")
_SILENT_SECONDS = 60.0
_OTHERWISE: Kind = "user_error"
_SHOWN = ("test/accuracy", "train/loss")


class UnknownRunError(LookupError):
    """No experiment, or no trial, of this name or id in the store."""


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


def progress_of(state: TrialState, now: float) -> Progress | None:
    """What the run last said of itself; None before its first word, or where its tag is not what lqray writes."""
    text = state.tags.get(_WORD)
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


def known_experiments(uri: str) -> list[str]:
    """Names of the store's experiments that have runs of lqray."""
    found = reading_client(uri).search_experiments()
    return [one.name for one in found if one.name not in ("Default", "lqray-leases")]


def states_or_error(uri: str, experiment: str, tags: Collection[str] = _PROGRESS) -> dict[str, TrialState]:
    """As `read_states`. Raises UnknownRunError, with the names that there are, for an experiment without trials."""
    states = read_states(uri, experiment, tags)
    if not states:
        known = ", ".join(map(in_line, sorted(known_experiments(uri)))) or "none"
        raise UnknownRunError(f"no trials of an experiment {experiment!r} in {uri}; there are: {known}")
    return states


def status_table(uri: str, experiments: Sequence[str]) -> Table:
    """A row for each trial that runs, or failed, or was stopped, and a line of counts for each experiment."""
    from rich.table import Table
    from rich.text import Text

    now = time.time()
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("trial", "state", "step", "steps/s", "ETA", "last metric", "host"):
        table.add_column(title, no_wrap=True, justify="right" if title in ("step", "steps/s", "ETA") else "left")
    client = reading_client(uri)
    for experiment in experiments:
        states = read_states(uri, experiment, _PROGRESS)
        counts: dict[str, int] = {}
        for state in states.values():
            word = _word(state, now)
            counts[word] = counts.get(word, 0) + 1
        summary = ", ".join(f"{count} {word}" for word, count in sorted(counts.items())) or "no trials"
        table.add_row(Text.assemble(rich_text(experiment, "bold"), ": ", rich_text(summary)))
        for state in sorted(states.values(), key=lambda one: one.started):
            if state.status != "FINISHED":
                table.add_row(*map(rich_text, _row(state, now, client)), style=_STYLES.get(_word(state, now)))
    return table


_STYLES = {"failed": "red", "silent": "yellow", "killed": "yellow", "stopped": "yellow"}


def _word(state: TrialState, now: float) -> str:
    if state.status == "RUNNING":
        said = progress_of(state, now)
        silent = now - state.started if said is None else said.heard
        return "silent" if silent > _SILENT_SECONDS else "running"
    if "lqray.early" in state.tags:
        return "stopped early"
    return "stopped" if "lqray.stopped" in state.tags else state.status.lower()


def _row(state: TrialState, now: float, client: object) -> list[str]:
    said = progress_of(state, now)
    word = _word(state, now)
    last = ""
    if word in ("running", "silent"):
        metrics = client.get_run(state.run_id).data.metrics  # type: ignore[attr-defined]
        last = "  ".join(f"{key.partition('/')[2]} {metrics[key]:.4g}" for key in _SHOWN if key in metrics)
    elif word == "failed":
        last = f"{state.tags.get('lqray.failure', '')}: {state.tags.get('lqray.error', '')}"[:90]
    else:
        last = state.tags.get("lqray.early") or state.tags.get("lqray.stopped") or ""
    if said is None:
        step = f"{_WORD} is unreadable" if state.tags.get(_WORD) else ""
        return [f"  {state.name}", word, step, "", "", last, ""]
    running = word == "running"
    return [
        f"  {state.name}",
        word,
        f"{said.iteration}/{said.iterations}",
        f"{said.rate:.3g}" if running and said.rate else "",
        _duration(said.eta) if running and said.eta is not None else "",
        last,
        said.host,
    ]


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def find_trial(uri: str, trial: str, experiment: str | None = None) -> TrialState:
    """The latest run of the trial of a name, an id or its beginning, or a run id; of any experiment, unless one is
    given. Raises UnknownRunError unless it is exactly one."""
    tags = ("lqray.folder",)
    found: list[TrialState] = []
    for name in [experiment] if experiment else known_experiments(uri):
        for state in read_states(uri, name, tags).values():
            by_id = len(trial) >= 4 and (state.trial_id.startswith(trial) or state.run_id.startswith(trial))
            if state.name == trial or by_id:
                found.append(state)
    if len(found) == 1:
        return found[0]
    several = ", ".join(in_line(f"{one.name} ({one.trial_id})") for one in found[:5])
    what = f"{len(found)} trials are called {trial!r}: {several}; give an id" if found else f"no trial {trial!r}"
    raise UnknownRunError(f"{what} in {uri}; `lqray status` lists those that are not finished, `lqray expand` all")


def logs_of(state: TrialState) -> list[tuple[int, str, str]]:
    """(rank, address, text) of the logs of a trial's ranks. Raises UnknownRunError where they cannot be seen from here,
    StorageError."""
    folder = state.tags.get("lqray.folder", "")
    try:
        logs = [(rank, f"{folder}/{log_name(rank)}", text) for rank, text in read_logs(folder)] if folder else []
    except StorageError:
        raise
    except (OSError, ValueError) as error:  # a ValueError of an address that is none
        raise UnknownRunError(f"the logs of {state.name} in {folder} cannot be read: {error}") from error
    if not logs:
        late = f"; a process that was killed leaves its last words on its machine, in {cached_path(folder)}"
        raise UnknownRunError(
            f"{state.name} has no logs in {folder or 'any folder'}: it trained in the launcher's own process "
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
    """Sorted by kind, in the order of `Kind`. Raises UnknownRunError."""
    tags = ("lqray.failure", "lqray.error", "lqray.failed_host", "lqray.failed_rank")
    failed = [one for one in states_or_error(uri, experiment, tags).values() if one.status == "FAILED"]
    kinds = get_args(Kind)

    def kind_of(state: TrialState) -> Kind:
        kind: Kind = state.tags.get("lqray.failure", _OTHERWISE)  # type: ignore[assignment]
        return kind if kind in kinds else _OTHERWISE

    for state in sorted(failed, key=lambda one: (kinds.index(kind_of(one)), one.name)):
        host, rank = state.tags.get("lqray.failed_host"), state.tags.get("lqray.failed_rank")
        where = ", ".join([*([host] if host else []), *([f"rank {rank}"] if rank else [])]) or "place unknown"
        kind = kind_of(state)
        yield FailedTrial(state.name, kind, state.tags.get("lqray.error", "?"), where, _traceback(uri, state.run_id))


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
