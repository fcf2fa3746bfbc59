"""What a launch still has to do: which trial comes next, which is tried again, when it is over."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from queue import SimpleQueue

from lqray.experiment.grid import NamedTrial
from lqray.orchestration.launchers.contract import Held, Observer, Recording, Source, TrialResult, Work
from lqray.orchestration.queue.limits import Limits

_HELD_SECONDS = 3.0
_NO_LIMITS = Limits()


class TrialQueue:
    """Gives trials to a launcher, in order; those that failed through no fault of their own again, after a while, and
    at once those that had to leave their machine.

    Thread-safe. `want`, `stop` and `interrupt` may be called by whoever watches the store. What waits for the store
    happens on threads of its own: trials are begun by one, one after the other, and the end of each is recorded by
    another; the lock is never held meanwhile, and Ctrl-C, which Python raises in the main thread, cuts none of it
    short.
    """

    def __init__(
        self,
        source: Source,
        recorder: Recording,
        observer: Observer,
        on_result: Callable[[TrialResult], None],
        limits: Limits = _NO_LIMITS,
    ) -> None:
        self.observer = observer
        self.failed = 0
        self.halted: str | None = None
        """Why the launch ended before its time, where that was a trial's end or `halt`; None otherwise."""
        self._source, self._recorder, self._on_result, self._limits = source, recorder, on_result, limits
        self._changed = threading.Condition(threading.RLock())
        self._asked = False  # for a trial to be begun
        self._nothing = False  # was there to begin, when it was last asked for
        self._begun: deque[Work] = deque()  # and not taken yet
        self._running: dict[str, Work] = {}
        self._since: dict[str, float] = {}
        self._recording: dict[str, Work] = {}
        self._tries: dict[str, int] = {}
        self._again: list[_Again] = []
        self._ties = itertools.count()
        self._stops: dict[str, str] = {}
        self._stopped: list[tuple[Callable[[NamedTrial], bool], str]] = []
        self._wanted: Callable[[NamedTrial], bool] = lambda named: True
        self._unwanted = ""
        self._waiting: list[tuple[float, int, NamedTrial]] = []
        self._idle: float | None = None
        self.elsewhere: dict[str, tuple[NamedTrial, Held]] = {}
        """Trials left to other launches, by id."""
        self.left_out: dict[str, tuple[NamedTrial, str]] = {}
        """Trials that were not begun, by id, and why: somebody does not want them any more."""
        self._closed = False
        self._error: BaseException | None = None
        self._jobs: SimpleQueue[tuple[Callable[[], None], threading.Event]] = SimpleQueue()
        for work in (self._begin_trials, self._do_jobs):
            threading.Thread(target=work, daemon=True).start()

    def take(self, patience: float | None = None) -> Work | None:
        """A trial to be run now, or None: nothing is left (`over`), or has to wait, or is still being begun after
        `patience` seconds. Raises what a beginning or an end, of any trial, could not be recorded for."""
        deadline = None if patience is None else time.monotonic() + patience
        with self._changed:
            while True:
                if self._error:
                    raise self._error
                if self._closed:
                    return None
                if self._begun:
                    return self._begun.popleft()
                if not self._asked:
                    self._asked, self._nothing = True, False
                    self._changed.notify_all()
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                ready = self._changed.wait_for(lambda: self._begun or self._closed or not self._asked, left)
                if not ready or (self._nothing and not self._asked):
                    return None

    @property
    def over(self) -> bool:
        """Whether `take` will give nothing more, whatever becomes of the trials that run."""
        with self._changed:
            if self._closed:
                return True
            if self._running or self._recording or self._asked:
                return False  # one of them may have to be tried again
            return not self._again and not self._waiting and self._source.over

    @property
    def running(self) -> dict[str, Work]:
        """Trials that were taken and have not ended, by id."""
        with self._changed:
            return dict(self._running)

    @property
    def running_ids(self) -> list[str]:
        """Of trials that were taken and have not ended."""
        return list(self._running)

    def ended(self, result: TrialResult) -> None:
        """Say how a trial that was taken ended; it is recorded soon. Ends that come twice are passed over."""
        self._do(lambda: self._note(result))

    def interrupt(self) -> None:
        """The launch ends: trials that run, or wait for another try, are KILLED. They continue with the next launch.

        Returns when every end is recorded. Raises what one could not be recorded for.
        """
        self._do(self._end_all)
        with self._changed:
            self._changed.wait_for(lambda: not self._running and not self._recording and not self._asked)
        if self._error:
            raise self._error

    def stop(self, chosen: Callable[[NamedTrial], bool], why: str) -> None:
        """Running trials among the chosen stop after a checkpoint; those that wait for another try end now, those to
        come are not begun."""
        with self._changed:
            for trial_id, work in self._running.items():
                if chosen(work.named):
                    self._stops.setdefault(trial_id, why)
            self._stopped.append((chosen, why))
            self._end_waiting(lambda one: _stopped(one, why), chosen)

    def halt(self, why: str) -> None:
        """Nothing more is begun: running trials stop after a checkpoint, those that wait for another try end now."""
        with self._changed:
            self._closed, self.halted = True, self.halted or why
            for trial_id in self._running:
                self._stops.setdefault(trial_id, why)
            self._end_waiting(lambda one: _stopped(one, why))
            self._changed.notify_all()

    def want(self, chosen: Callable[[NamedTrial], bool], why_not: str = "not wanted any more") -> None:
        """From now on begin only the chosen, but for those that were to be stopped; those that run are left alone,
        those that wait for another try end. why_not: what is said of the others."""
        with self._changed:
            self._wanted, self._unwanted = chosen, why_not
            self._end_waiting(lambda one: _stopped(one, why_not), lambda named: not chosen(named))

    def lose(self, trial_id: str) -> None:
        """Another launch has taken a trial over: it stops here. Never waits, as `running_ids`."""
        if trial_id in self._running:
            self._stops[trial_id] = "taken over by another launch"

    def stop_reason(self, trial_id: str) -> str | None:
        """Why a running trial has to stop, if it has to."""
        return self._stops.get(trial_id) or self._over_time(trial_id)

    def _over_time(self, trial_id: str) -> str | None:
        """Why a trial has run for too long, if it has."""
        most, since = self._limits.trial_seconds, self._since.get(trial_id)
        return self._limits.over_time if most and since is not None and time.monotonic() - since > most else None

    def _end_waiting(
        self, result: Callable[[_Again], TrialResult], chosen: Callable[[NamedTrial], bool] = lambda named: True
    ) -> None:
        """Record an end for the chosen among the trials that wait for another try."""
        with self._changed:
            for one in [one for one in self._again if chosen(one.named)]:
                self._again.remove(one)
                self._record(one.work, result(one))
            heapq.heapify(self._again)

    def _begin_trials(self) -> None:
        """A thread: begins a trial whenever one is asked for."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._asked)
            try:
                self._begin_one()
            except BaseException as error:
                self._fail(error)
            with self._changed:
                self._asked = False
                self._changed.notify_all()

    def _begin_one(self) -> None:
        while True:
            with self._changed:
                again = heapq.heappop(self._again) if self._again and self._again[0].due <= time.monotonic() else None
                named = again.named if again else None if self._closed else self._next()
                if named is None:
                    self._nothing = True
                    return
                why = None if again else self._why_not(named)
                if why:
                    self.left_out[named.trial.id] = (named, why)
                    continue
            try:
                work = self._recorder.begin(named)
            except BaseException:
                if again:
                    with self._changed:
                        heapq.heappush(self._again, again)
                raise
            if work is None:
                continue
            with self._changed:
                if isinstance(work, Held):
                    self._wait_for(named, work)
                    continue
                self._idle = None
                self._running[named.trial.id] = work
                self._since.setdefault(named.trial.id, time.monotonic())
                if self._closed:
                    self._note(TrialResult(named, "KILLED", run_id=work.run_id))
                    return
                self._begun.append(work)
                self.observer.started(named, work.continued)
                return

    def _next(self) -> NamedTrial | None:
        """The next trial that is new, or was another launch's when it was last offered. With the lock."""
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
        that for as long as it takes a dead launch to be known for dead, it is left to one that is at work. With the
        lock."""
        now = time.monotonic()
        busy = self._running or self._recording or self._again or not self._source.over
        self._idle = None if busy else now if self._idle is None else self._idle
        if self._closed or (held.works and self._idle is not None and now - self._idle >= self._limits.held):
            self.elsewhere[named.trial.id] = (named, held)
            return
        heapq.heappush(self._waiting, (now + min(_HELD_SECONDS, self._limits.held / 4), next(self._ties), named))

    def _taken_over(self, work: Work, result: TrialResult, held: Held) -> None:
        """Nothing was recorded. With the lock."""
        self.failed -= result.status == "FAILED"
        self.observer.ended(replace(result, status="KILLED", failure=None, stopped=f"taken over by {held}"))
        self._recording.pop(work.named.trial.id, None)
        self._since.pop(work.named.trial.id, None)
        self._wait_for(work.named, held)

    def _do(self, job: Callable[[], None]) -> None:
        """Have something done that Ctrl-C must not cut short, and wait for it."""
        done = threading.Event()
        self._jobs.put((job, done))
        done.wait()

    def _do_jobs(self) -> None:
        """A thread: see `_do`."""
        while True:
            job, done = self._jobs.get()
            try:
                job()
            except BaseException as error:
                self._fail(error)
            finally:
                done.set()

    def _end_all(self) -> None:
        with self._changed:
            self._closed = True
            for work in list(self._running.values()):
                self._note(TrialResult(work.named, "KILLED", run_id=work.run_id))
            self._end_waiting(lambda one: TrialResult(one.named, "KILLED", run_id=one.work.run_id))
            self._changed.notify_all()

    def _note(self, result: TrialResult) -> None:
        trial_id = result.named.trial.id
        with self._changed:
            work = self._running.pop(trial_id, None)
            if work is None:
                return
            if work in self._begun:
                self._begun.remove(work)
            self._stops.pop(trial_id, None)
            if result.halts:
                self._closed, self.halted = True, self.halted or result.halts
                self._end_waiting(lambda one: one.result)
            self._tries[trial_id] = self._tries.get(trial_id, 0) + (not result.moves)
            if not self._tried_again(work, result):
                self._count(result)
                self._record(work, result)
            self._changed.notify_all()

    def _tried_again(self, work: Work, result: TrialResult) -> bool:
        """Keep a trial for another try, if it is to have one; one that moves is to go on. With the lock."""
        tries = self._tries[result.named.trial.id]
        failure = result.failure
        fit = result.moves or (failure is not None and failure.retry and tries <= self._limits.retries)
        if self._closed or not fit:
            return False
        if any(chosen(result.named) for chosen, _ in self._stopped) or self._recorder.gone(work):
            return False
        if self._over_time(result.named.trial.id):
            return False
        seconds = self._limits.backoff * 4 ** (tries - 1) if failure else 0.0
        self._recorder.retry(work, result)
        heapq.heappush(self._again, _Again(time.monotonic() + seconds, next(self._ties), work, result))
        if failure:
            self.observer.retrying(result.named, failure, seconds)
        else:
            self.observer.moving(result.named, result.stopped or "")
        return True

    def _count(self, result: TrialResult) -> None:
        """With the lock."""
        if result.status != "FAILED":
            return
        self.failed += 1
        if self._limits.max_failures is not None and self.failed >= self._limits.max_failures and not self._closed:
            self._closed = True
            self._end_waiting(lambda one: one.result)

    def _record(self, work: Work, result: TrialResult) -> None:
        """Have an end recorded by a thread of its own. With the lock."""
        self._recording[result.named.trial.id] = work
        threading.Thread(target=self._record_now, args=(work, result), daemon=True).start()

    def _record_now(self, work: Work, said: TrialResult) -> None:
        try:
            result = self._recorder.settled(work, said)
            with self._changed:
                if result.failure and not said.failure:
                    if self._tried_again(work, result):
                        return
                    self._count(result)
            recorded = self._recorder.end(work, result)
            with self._changed:
                if isinstance(recorded, Held):
                    self._taken_over(work, result, recorded)
                    return
                result = recorded or result
                self._source.told(result)
                self.observer.ended(result)
                self._on_result(result)
        except BaseException as error:
            self._fail(error)
        finally:
            with self._changed:
                self._recording.pop(work.named.trial.id, None)
                self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        """Nothing more is begun; whoever asks for more, or ends the launch, is told why."""
        with self._changed:
            self._error = self._error or error
            self._closed = True
            self._changed.notify_all()


@dataclass(frozen=True, order=True)
class _Again:
    """A trial that waits for another try until `due`. tie: the order of those due at the same moment. result: how the
    last try ended."""

    due: float
    tie: int
    work: Work = field(compare=False)
    result: TrialResult = field(compare=False)

    @property
    def named(self) -> NamedTrial:
        return self.result.named


def _stopped(one: _Again, why: str) -> TrialResult:
    return TrialResult(one.named, "KILLED", run_id=one.work.run_id, stopped=why)
