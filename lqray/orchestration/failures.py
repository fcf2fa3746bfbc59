"""Why a trial failed, sorted by what to do about it."""

from __future__ import annotations

import socket
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lqray.experiment.secrets import masked

Kind = Literal["out_of_memory", "non_finite", "infrastructure", "user_error"]

ADVICE: dict[Kind, str] = {
    "out_of_memory": "a retry runs out of memory again: take a smaller batch_size or model, a larger "
    "resources.memory_gib_per_process, or a larger machine",
    "non_finite": "a retry gives the same bits and fails again: a smaller optimizer.lr, schedule.warm_up, or "
    "schedule.on_nonfinite: skip",
    "infrastructure": "a retry makes sense: `lqray run` continues from the last checkpoint",
    "user_error": "a retry fails again until the cause is mended: see the traceback",
}

_OUT_OF_MEMORY = {"OutOfMemoryError", "MemoryError", "MemoryLimitError"}
_OUT_OF_MEMORY_TEXTS = ("can't allocate memory", "out of memory", "bad_alloc", "Cannot allocate memory")
_NON_FINITE = {"DivergedError"}
_INFRASTRUCTURE = {
    "RankLostError",
    "ProcessLostError",
    "DistNetworkError",
    "StoreAwayError",
    "UndeliveredError",
    "StorageAwayError",
    "CheckpointStorageAwayError",
}
_OF_RAY = "an error of Ray's own: an actor, a worker or a node that died, a group that could not start"
_SYMPTOMS = {"RankLostError"}  # of another rank's failure


class MemoryLimitError(MemoryError):
    """A process used more memory than resources.memory_gib_per_process allows."""


class ProcessLostError(RuntimeError):
    """A process of a trial, its driver or its worker group ended without a word."""


@dataclass(frozen=True)
class Failure:
    """What made a trial fail, as seen where it happened.

    error: last line of the traceback. host, rank: None where that is not known (a driver that died).
    """

    kind: Kind
    error: str
    traceback: str
    host: str | None = None
    rank: int | None = None
    symptom: bool = False

    @property
    def retry(self) -> bool:
        """Whether the same trial may well succeed the next time."""
        return self.kind == "infrastructure"


def failure_of(error: BaseException, rank: int | None = None, text: str | None = None) -> Failure:
    """The failure that an exception is, raised on this host. text: its traceback, where it is not its own."""
    whole = masked(text or "".join(traceback.format_exception(error)))
    # Ray wraps what a remote call raised, and derives the wrapper's class from it.
    cause = getattr(error, "cause", None)
    raised = cause if isinstance(cause, BaseException) else error
    names = {cls.__name__ for cls in type(raised).__mro__}
    if type(raised).__module__.startswith("ray."):
        names.add(_OF_RAY)
    return Failure(
        _kind(names, str(error)), _last_line(whole), whole, socket.gethostname(), rank, bool(names & _SYMPTOMS)
    )


def lost(what: str) -> Failure:
    """The failure of something that ended without a word. what: the whole story, its last line the shortest."""
    kind: Kind = "out_of_memory" if "OutOfMemoryError" in what else "infrastructure"
    return Failure(kind, _last_line(what), what)


def root_cause(failures: Mapping[int, Failure]) -> Failure:
    """Of the failures of a trial's ranks the one to blame: ranks that only missed another one are symptoms. Its
    traceback shows all that are no symptoms, once for the ranks that agree."""
    causes = {rank: one for rank, one in sorted(failures.items()) if not one.symptom} or dict(sorted(failures.items()))
    first = next(iter(causes.values()))
    ranks: dict[str, list[int]] = {}
    for rank, one in causes.items():
        ranks.setdefault(one.traceback, []).append(rank)
    text = "\n".join(f"rank {', '.join(map(str, of))}:\n{trace}" for trace, of in ranks.items())
    return Failure(first.kind, first.error, text, first.host, first.rank, first.symptom)


def _kind(names: set[str], message: str) -> Kind:
    if names & _OUT_OF_MEMORY or any(text in message for text in _OUT_OF_MEMORY_TEXTS):
        return "out_of_memory"
    if names & _NON_FINITE:
        return "non_finite"
    return "infrastructure" if names & {*_INFRASTRUCTURE, _OF_RAY} else "user_error"


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip()[:500] if lines else "unknown"
