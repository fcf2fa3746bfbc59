"""Why a trial failed, sorted by what to do about it."""

from __future__ import annotations

import errno
import os
import socket
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from lqray.experiment.secrets import masked

Kind = Literal["out_of_memory", "non_finite", "infrastructure", "user_error", "code_changed", "no_space"]

ADVICE: dict[Kind, str] = {
    "out_of_memory": "a retry runs out of memory again: take a smaller batch_size or model, a larger "
    "resources.memory_gib_per_process, or a larger machine",
    "non_finite": "a retry gives the same bits and fails again: a smaller optimizer.lr, schedule.warm_up, or "
    "schedule.on_nonfinite: skip",
    "infrastructure": "a retry makes sense: `lqray run FILE` continues from the last checkpoint",
    "user_error": "a retry fails again until the cause is mended: see the traceback",
    "code_changed": "run the same command again: a launch is of one version of lqray's code",
    "no_space": "free space there, then run the same command again: trials continue from their checkpoints",
}

_OUT_OF_MEMORY = {"OutOfMemoryError", "MemoryError", "MemoryLimitError"}
_OUT_OF_MEMORY_TEXTS = ("can't allocate memory", "out of memory", "bad_alloc", "Cannot allocate memory")
_NON_FINITE = {"DivergedError"}
_CODE_CHANGED = {"CodeChangedError"}
_NO_SPACE = {"NoSpaceError"}
_NO_SPACE_TEXTS = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
HALTING: dict[Kind, str] = {"code_changed": "lqray's code has changed", "no_space": "there is no room for its files"}
"""No fault of the trial's, and those to come would end so, too: the launch ends, and what it ran is KILLED. Why, in
words."""
_INFRASTRUCTURE = {
    "RankLostError",
    "RankStalledError",
    "ProcessLostError",
    "ProcessEndedError",
    "DistBackendError",
    "DistNetworkError",
    "DistStoreError",
    "StoreAwayError",
    "UndeliveredError",
    "StorageAwayError",
    "CheckpointStorageAwayError",
}
# What gloo, NCCL and their store say of another rank that does not answer: plain RuntimeErrors, told by their text.
_COLLECTIVE = {"RuntimeError", "DistError"}
_COLLECTIVE_TEXTS = (
    "gloo/transport",
    "gloo/rendezvous",
    "Timed out waiting",
    "Connection closed by peer",
    "Connection reset by peer",
    "Application timeout caused pair closure",
    "Socket Timeout",
    "wait timeout after",
    "Watchdog caught collective operation timeout",
    "ncclRemoteError",
    "ncclSystemError",
    "ncclInternalError",
    "NCCL communicator was aborted",
)
_OF_RAY = "an error of Ray's own: an actor, a worker or a node that died, a group that could not start"
_SYMPTOMS = {"RankLostError", "RankStalledError", "ProcessEndedError"}  # of another rank's failure
_BLAMELESS = {"ProcessEndedError"}


class MemoryLimitError(MemoryError):
    """A process used more memory than resources.memory_gib_per_process allows."""


class ProcessLostError(RuntimeError):
    """A process of a trial, its driver or its worker group ended without a word."""


class ProcessEndedError(RuntimeError):
    """A process of a trial was ended by its launch, after another one had failed."""


class CodeChangedError(RuntimeError):
    """A worker has other code than the launch."""


class PartChangedError(RuntimeError):
    """A worker has other code of a user's own part than the launch."""


@dataclass(frozen=True)
class Failure:
    """What made a trial fail, as seen where it happened.

    error: in one line. host, rank: None where that is not known (a driver that died). symptom: of another rank's
    failure. blameless: not even a symptom, an end that the launch brought about.
    """

    kind: Kind
    error: str
    traceback: str
    host: str | None = None
    rank: int | None = None
    symptom: bool = False
    blameless: bool = False

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
        _kind(names, str(error)),
        masked(_headline(raised)),
        whole,
        socket.gethostname(),
        rank,
        bool(names & _SYMPTOMS),
        bool(names & _BLAMELESS),
    )


def lost(what: str) -> Failure:
    """The failure of something that ended without a word. what: the whole story, its last line the shortest."""
    kind: Kind = "out_of_memory" if "OutOfMemoryError" in what else "infrastructure"
    return Failure(kind, _last_line(what), what)


def root_cause(failures: Mapping[int, Failure]) -> Failure:
    """Of the failures of a trial's ranks the one to blame: ranks that only missed another one are symptoms. Its
    traceback shows all that are no symptoms, once for the ranks that agree, and those that the launch ended."""
    known = dict(sorted(failures.items()))
    guilty = {rank: one for rank, one in known.items() if not one.blameless} or known
    causes = {rank: one for rank, one in guilty.items() if not one.symptom} or guilty
    first = next(iter(causes.values()))
    ranks: dict[str, list[int]] = {}
    for rank, one in {**causes, **{rank: one for rank, one in known.items() if one.blameless}}.items():
        ranks.setdefault(one.traceback, []).append(rank)
    text = "\n".join(f"rank {', '.join(map(str, of))}:\n{trace}" for trace, of in ranks.items())
    return replace(first, traceback=text)


def _kind(names: set[str], message: str) -> Kind:
    if names & _OUT_OF_MEMORY or any(text in message for text in _OUT_OF_MEMORY_TEXTS):
        return "out_of_memory"
    if names & _NON_FINITE:
        return "non_finite"
    if names & _CODE_CHANGED:
        return "code_changed"
    if names & _NO_SPACE or ("OSError" in names and any(text in message for text in _NO_SPACE_TEXTS)):
        return "no_space"
    of_a_collective = names & _COLLECTIVE and any(text in message for text in _COLLECTIVE_TEXTS)
    return "infrastructure" if of_a_collective or names & {*_INFRASTRUCTURE, _OF_RAY} else "user_error"


def _headline(error: BaseException) -> str:
    """The error in one line. Of a message of several lines the first: what follows is detail, in the messages of
    torch's futures a list of places in files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return (f"{name}: {text}" if text else name)[:500]


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip()[:500] if lines else "unknown"
