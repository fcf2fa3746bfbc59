"""What a launch still has to do: which trial comes next, which is tried again, when it is over."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from lqray.experiment.grid import NamedTrial
from lqray.orchestration.launcher import Observer, TrialResult, Work

if TYPE_CHECKING:
    from lqray.orchestration.leases import Holder

MOST_RETRIES = 3
_FIRST_DELAY = 2.0
_HELD_SECONDS = 3.0


@dataclass(frozen=True)
class Held:
    """Another launch has a trial. holder: which, where that is known. works: it was seen to be at work just now; else
    it may be dead, which shows after a while."""

    holder: Holder | None = None
    works: bool = False

    def __str__(self) -> str:
        return f"{self.holder.host}, process {self.holder.pid}" if self.holder else "another launch"


class Books(Protocol):
    """Where it is written down who runs a trial and how it ended; see `lqray.orchestration.ledger.Ledger`."""

    def begin(self, named: NamedTrial) -> Work | Held | None:
        """Claim a trial and make its run; None where it need not be run any more."""

    def retry(self, work: Work, result: TrialResult) -> None:
        """A failed trial is kept, to be tried again."""

    def end(self, work: Work, result: TrialResult) -> TrialResult | Held | None:
        """Record how a trial ended, and give it back. Gives what was recorded, where that is not the result, and the
        new holder, where another launch has taken the trial over: then nothing is recorded."""


class Source(Protocol):
    """Where trials come from."""

    def next(self) -> NamedTrial | None:
        """The next trial; None when there is none now: see `over`."""

    @property
    def over(self) -> bool:
        """Whether no more will come."""

    def told(self, result: TrialResult) -> None:
        """A trial ended for good."""


class Given(Source):
    """Trials that are known ahead, in their order."""

    def __init__(self, trials: Iterable[NamedTrial]) -> None:
        self._rest = iter(trials)
        self._ahead: NamedTrial | None = None
        self._over = False

    def next(self) -> NamedTrial | None:
        """See `Source`."""
        self._look()
        chosen, self._ahead = self._ahead, None
        return chosen

    @property
    def over(self) -> bool:
        """See `Source`."""
        self._look()
        return self._over

    def told(self, result: TrialResult) -> None:
        """See `Source`: nothing depends on results."""

    def _look(self) -> None:
        if self._ahead is None and not self._over:
            self._ahead = next(self._rest, None)
            self._over = self._ahead is None


@dataclass(frozen=True)
class Limits:
    """max_failures: after so many no further trial is begun. backoff: seconds before the first of `retries`; each
    further one waits four times as long. held: seconds that trials of other launches are waited for when nothing else
    is left to do; then those are left whose launch is surely at work."""

    max_failures: int | None = None
    backoff: float = _FIRST_DELAY
    retries: int = MOST_RETRIES
    held: float = 40.0


class TrialQueue:
    """Gives trials to a launcher, in order; those that failed through no fault of their own again, after a while.

    Thread-safe. `wanted`, `stop` and `close` may be called by whoever watches the store.
    """

    def __init__(
        self,
        source: Source,
        books: Books,
        observer: Observer,
        on_result: Callable[[TrialResult], None],
        limits: Limits = Limits(),
    ) -> None:
        self.observer = observer
        self.failed = 0
        self._source, self._books, self._on_result, self._limits = source, books, on_result, limits
        self._lock = threading.RLock()
        self._running: dict[str, Work] = {}
        self._tries: dict[str, int] = {}
        self._again: list[tuple[float, int, NamedTrial]] = []
        self._ties = itertools.count()
        self._stops: dict[str, str] = {}
        self._stopped: list[tuple[Callable[[NamedTrial], bool], str]] = []
        self._wanted: Callable[[NamedTrial], bool] = lambda named: True
        self._unwanted = ""
        self._closed = False
        self._waiting: list[tuple[float, int, NamedTrial]] = []
        self._idle: float | None = None
        self.elsewhere: dict[str, tuple[NamedTrial, Held]] = {}
        """Trials left to other launches, by id."""
        self.left_out: dict[str, tuple[NamedTrial, str]] = {}
        """Trials that were not begun, by id, and why: somebody does not want them any more."""

    def take(self) -> Work | None:
        """A trial to be run now, or None: nothing is left (`over`), or has to wait."""
        with self._lock:
            while not self._closed:
                named = self._next()
                if named is None:
                    return None
                why = self._why_not(named)
                if why:
                    self.left_out[named.trial.id] = (named, why)
                    continue
                work = self._books.begin(named)
                if isinstance(work, Held):
                    self._wait_for(named, work)
                elif work:
                    self._idle = None
                    self._running[named.trial.id] = work
                    self.observer.started(named, work.continued)
                    return work
            return None

    @property
    def over(self) -> bool:
        """Whether `take` will give nothing more, whatever becomes of the trials that run."""
        with self._lock:
            if self._running and not self._closed:
                return False  # one of them may have to be tried again
            return self._closed or (not self._again and not self._waiting and self._source.over)

    @property
    def running(self) -> dict[str, Work]:
        """Trials that were taken and have not ended, by id."""
        with self._lock:
            return dict(self._running)

    @property
    def running_ids(self) -> list[str]:
        """Of trials that were taken and have not ended. Never waits: `ended` may hold the lock for long."""
        return list(self._running)

    def ended(self, result: TrialResult) -> None:
        """Say how a trial that was taken ended. Ends that come twice are passed over."""
        trial_id = result.named.trial.id
        with self._lock:
            work = self._running.pop(trial_id, None)
            if work is None:
                return
            self._stops.pop(trial_id, None)
            tries = self._tries[trial_id] = self._tries.get(trial_id, 0) + 1
            if result.failure and result.failure.retry and tries <= self._limits.retries and not self._closed:
                seconds = self._limits.backoff * 4 ** (tries - 1)
                self._books.retry(work, result)
                heapq.heappush(self._again, (time.monotonic() + seconds, next(self._ties), result.named))
                self.observer.retrying(result.named, result.failure, seconds)
                return
            recorded = self._books.end(work, result)
            if isinstance(recorded, Held):
                self.observer.ended(replace(result, status="KILLED", failure=None, stopped=f"taken over by {recorded}"))
                self._wait_for(work.named, recorded)
                return
            result = recorded or result
            self._source.told(result)
            if result.status == "FAILED":
                self.failed += 1
                if self._limits.max_failures is not None and self.failed >= self._limits.max_failures:
                    self._closed = True
            self.observer.ended(result)
            self._on_result(result)

    def interrupt(self) -> None:
        """The launch ends: trials that run, or wait for another try, are KILLED. They continue with the next launch."""
        with self._lock:
            self._closed = True
            for work in list(self._running.values()):
                self.ended(TrialResult(work.named, "KILLED", run_id=work.run_id))

    def stop(self, chosen: Callable[[NamedTrial], bool], why: str) -> None:
        """Running trials among the chosen stop after a checkpoint; those to come are not begun."""
        with self._lock:
            for trial_id, work in self._running.items():
                if chosen(work.named):
                    self._stops.setdefault(trial_id, why)
            self._again = [entry for entry in self._again if not chosen(entry[2])]
            heapq.heapify(self._again)
            self._stopped.append((chosen, why))

    def want(self, chosen: Callable[[NamedTrial], bool], why_not: str = "not wanted any more") -> None:
        """From now on begin only the chosen, but for those that were to be stopped; those that run are left alone.
        why_not: what is said of the others."""
        with self._lock:
            self._wanted, self._unwanted = chosen, why_not

    def lose(self, trial_id: str) -> None:
        """Another launch has taken a trial over: it stops here. Never waits, as `running_ids`."""
        if trial_id in self._running:
            self._stops[trial_id] = "taken over by another launch"

    def stop_reason(self, trial_id: str) -> str | None:
        """Why a running trial has to stop, if it has to. Never waits, as `running_ids`."""
        return self._stops.get(trial_id)

    def _next(self) -> NamedTrial | None:
        if self._again and self._again[0][0] <= time.monotonic():
            return heapq.heappop(self._again)[2]
        named = self._source.next()
        if named is None and self._waiting and self._waiting[0][0] <= time.monotonic():
            return heapq.heappop(self._waiting)[2]
        return named

    def _why_not(self, named: NamedTrial) -> str | None:
        """Why somebody does not want a trial to be begun."""
        for chosen, why in self._stopped:
            if chosen(named):
                return why
        return None if self._wanted(named) else self._unwanted

    def _wait_for(self, named: NamedTrial, held: Held) -> None:
        """Offer a trial of another launch again in a while: that may end, or die. Once nothing else is left to do, and
        that for as long as it takes a dead launch to be known for dead, it is left to one that is at work."""
        now = time.monotonic()
        busy = self._running or self._again or not self._source.over
        self._idle = None if busy else now if self._idle is None else self._idle
        if held.works and self._idle is not None and now - self._idle >= self._limits.held:
            self.elsewhere[named.trial.id] = (named, held)
            return
        heapq.heappush(self._waiting, (now + min(_HELD_SECONDS, self._limits.held / 4), next(self._ties), named))
