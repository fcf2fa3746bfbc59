"""A launch's hand in the store: which trials are to be done, claimed, begun, heard of and ended."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from lqray.experiment.grid import NamedTrial
from lqray.experiment.plan import PublishedPlan
from lqray.experiment.schema import Storage
from lqray.experiment.secrets import masked
from lqray.experiment.store import storage_address
from lqray.orchestration import control
from lqray.orchestration.archivist import MODEL_TAG, Archivist
from lqray.orchestration.artifacts import ArtifactWriter
from lqray.orchestration.deleted_runs import DELETED, is_deleted, is_refusal, why_deleted
from lqray.orchestration.description import run_colour
from lqray.orchestration.failures import failure_of
from lqray.orchestration.fencing import LostClaimError, new_folder, own_name
from lqray.orchestration.launcher import TrialResult, Work
from lqray.orchestration.leases import HEARTBEAT_SECONDS, Leases
from lqray.orchestration.narrator import Narrator
from lqray.orchestration.queue import Held, TrialQueue
from lqray.orchestration.scribe import Scribe
from lqray.orchestration.states import TrialState
from lqray.orchestration.store_access import PATIENCE, StoreAwayError, client_of, is_away, lost_for_good, patiently
from lqray.orchestration.tracking import Launch, continue_run, end_run, start_run, state_of
from lqray.orchestration.worker import Heard, News

OnPlan = Callable[[PublishedPlan], tuple[Callable[[NamedTrial], bool], str] | None]
"""What a newer launch's experiment file leaves to be done, and why not the rest; None: all."""

TAGS = ("lqray.attempt", "lqray.early", "lqray.failure", "lqray.folder", "lqray.holder", MODEL_TAG)
FIGURE_SECONDS = 60.0
"""Trials that took as long have a figure of their own at once: drawing it takes .3 s."""

_POLL_SECONDS = 2.0
_SECONDS_TO_SETTLE = 5.0  # of a trial that goes on another time
_log = logging.getLogger(__name__)


class UndeliveredError(ConnectionError):
    """What a trial measured did not reach the store."""


class RefusedMetricError(ValueError):
    """The store does not take a metric."""


@dataclass(frozen=True)
class Planned:
    """What is to be done with a trial. what: run, continue, retry, done, early (stopped early; it stays so), rerun."""

    named: NamedTrial
    what: str

    @property
    def due(self) -> bool:
        """Whether the launch runs it."""
        return self.what in ("run", "continue", "retry", "rerun")


def planned(named: NamedTrial, states: Mapping[str, TrialState], rerun: bool) -> Planned:
    """What `lqray run` does with a trial, from how it stands in the store."""
    state = states.get(named.trial.id)
    if state is None:
        return Planned(named, "run")
    if rerun:
        return Planned(named, "rerun")
    if state.status == "FINISHED":
        return Planned(named, "done")
    if state.status == "FAILED":
        return Planned(named, "retry")
    return Planned(named, "early" if "lqray.early" in state.tags else "continue")


@dataclass
class Keeping:
    """What a launch keeps of trials beside metrics. archivist: makes figures and models. log_model: of every finished
    trial. narrator: told of trials as they begin and end. patience: seconds that the launch's end waits for figures and
    models."""

    archivist: Archivist
    log_model: bool = False
    narrator: Narrator | None = None
    patience: float = PATIENCE


class Ledger:
    """Implements `lqray.orchestration.queue.Books`; also takes what workers tell, and watches the store for others'
    wishes. Use as a context.

    rerun: begin a new attempt, with a run and a folder of its own, whatever became of earlier ones.
    """

    def __init__(
        self,
        launch: Launch,
        experiment: str,
        storage: Storage,
        states: Mapping[str, TrialState],
        rerun: bool = False,
        keeping: Keeping | None = None,
    ) -> None:
        self._launch, self._rerun = launch, rerun
        self._folder = f"{storage_address(storage.folder)}/{experiment}"
        self._states = dict(states)
        self._leases = Leases(launch.uri, launch.experiment_id, launch.launch_id)
        self._scribe = Scribe(launch.uri)
        self._scribe.lease(self._leases.valid_until)
        self._files = ArtifactWriter(launch.uri)
        self._keeping = keeping or Keeping(Archivist(launch.uri))
        self._narrator = self._keeping.narrator
        self._starts: dict[str, int] = {}
        self._runs: dict[str, str] = {}
        self._since: dict[str, float] = {}
        self._patience = PATIENCE
        self._first: dict[tuple[str, int], tuple[float, int]] = {}
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._wishes = control.Wishes(launch)
        self._folders: dict[str, str] = {}
        self._attempts: dict[str, int] = {}
        self._count: dict[str, int] = {}
        self._met: set[str] = set()
        self._lost: set[str] = set()
        self._said_foreign = False
        self.failed_elsewhere: dict[str, NamedTrial] = {}
        """Trials that another launch had and could not finish, by id."""
        self.left_out: dict[str, str] = {}
        """Trials that could not be begun, by id, and why: their record was deleted."""

    def watch(self, queue: TrialQueue, on_plan: OnPlan | None = None) -> None:
        """From now on keep this launch's claims alive and pass others' wishes to the queue."""
        self._threads = [
            threading.Thread(target=self._watch, args=(queue, on_plan), daemon=True),
            threading.Thread(target=self._beat, args=(queue,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=30)
        self._scribe.close()
        self._files.close(self._keeping.patience)
        try:
            self._leases.close()
        except Exception as error:
            _log.warning("claims on trials are not given back; they are void in a moment: %s", masked(str(error)))
        left = self._keeping.archivist.close(self._keeping.patience)
        if left:
            _log.warning("%d figures and models were not made; the next `lqray run` makes the models", left)

    def begin(self, named: NamedTrial) -> Work | Held | None:
        """See `Books`."""
        trial_id = named.trial.id
        again = trial_id in self._starts
        claimed = self._leases.ours(trial_id) if again else bool(self._leases.claim(trial_id))
        if not claimed:
            return self._held(trial_id)
        try:
            return self._begun(named, again)
        except LostClaimError:
            return self._held(trial_id)
        except Exception as error:
            why = self._deleted(trial_id, error)
            if why is None:
                raise
            self.left_out[trial_id] = why
        self._give_back(trial_id)
        return None

    def _begun(self, named: NamedTrial, again: bool) -> Work | None:
        """A claimed trial with its run, RUNNING; None where it need not be run any more. Raises LostClaimError."""
        trial_id = named.trial.id
        state, rerun = self._states.get(trial_id), self._rerun and trial_id not in self._met
        if not again and (self._leases.number(trial_id) > 1 or trial_id in self._met):
            # Somebody held it before; since this launch looked, it may have been ended.
            state = patiently(lambda: state_of(self._launch, trial_id, TAGS)) or state
            if state and not rerun and not self._due(named, state):
                self._give_back(trial_id)
                return None
        fresh = not again and (state is None or rerun)
        if again:
            run_id, folder, attempt = self._runs[trial_id], self._folders[trial_id], self._attempts[trial_id]
        elif state and not fresh:
            run_id, attempt = state.run_id, state.attempt
            # The experiment file says where storage is, by now perhaps elsewhere; the run, which folder there it has.
            known = own_name(state.tags.get("lqray.folder", ""), trial_id)
            folder = f"{self._folder}/{known}" if known else self._folder_of(trial_id, attempt)
        else:
            run_id, attempt = "", state.attempt + 1 if state else 1
            folder = self._new_folder(named, attempt)
        tags = {"lqray.attempt": str(attempt), "lqray.folder": folder, "lqray.holder": str(self._leases.me)}
        recorded = 0
        if fresh:
            tags["mlflow.runColor"] = run_colour(len(self._states) + len(self._runs))
            self._check(trial_id)
            run_id = start_run(self._launch, named, tags, self._files)
        else:
            self._runs[trial_id] = run_id
            recorded = continue_run(self._launch, named, run_id, tags, self._files, lambda: self._check(trial_id))
        with self._lock:
            self._count[trial_id] = self._starts[trial_id] = self._count.get(trial_id, 0) + 1
            self._runs[trial_id], self._folders[trial_id], self._attempts[trial_id] = run_id, folder, attempt
            self._since.setdefault(trial_id, time.monotonic())
            self._scribe.reopen(run_id)
        if self._narrator:
            self._narrator.began(named)
        start = self._starts[trial_id]
        claim = f"{self._leases.board} {self._leases.number(trial_id)} {start}"
        return Work(named, run_id, folder, start, not fresh, recorded, claim)

    def _due(self, named: NamedTrial, state: TrialState) -> bool:
        """Whether a trial that somebody else held is to be run here, as it stands now. What another launch has tried
        since this one began was this one's try, too."""
        before = self._states.get(named.trial.id)
        known = before and (before.run_id, before.status, before.ended) == (state.run_id, state.status, state.ended)
        if state.status == "FAILED" and not known:
            self.failed_elsewhere[named.trial.id] = named
            return False
        return planned(named, {named.trial.id: state}, False).due

    def _folder_of(self, trial_id: str, attempt: int) -> str:
        return f"{self._folder}/{trial_id if attempt == 1 else f'{trial_id}-{attempt}'}"

    def _new_folder(self, named: NamedTrial, attempt: int) -> str:
        """A folder that holds nothing yet, for a run that has trained nothing yet."""
        wanted = self._folder_of(named.trial.id, attempt)
        folder = new_folder(wanted)
        if folder != wanted and not self._said_foreign:
            self._said_foreign = True
            _log.warning(
                "%s is there already, of a run that is not in this store (any more): it is left as it is, and %s keeps "
                "its checkpoints in %s. The same holds for every other trial whose folder is taken",
                wanted,
                named.name,
                folder,
            )
        return folder

    def _held(self, trial_id: str) -> Held:
        """Another launch has the trial; this one forgets what it knew of it."""
        holder = self._leases.holder(trial_id)
        with self._lock:
            self._met.add(trial_id)
            if self._starts.pop(trial_id, None):
                self._scribe.reopen(self._runs[trial_id])  # what it was told and has not delivered is no longer ours
            self._lost.discard(trial_id)
        if trial_id in self._leases.lost():
            self._leases.forget(trial_id)
        return Held(holder, holder is not None and self._leases.moved(holder))

    def _give_back(self, trial_id: str) -> None:
        self._leases.release(trial_id)
        self._starts.pop(trial_id, None)

    def _deleted(self, trial_id: str, error: Exception) -> str | None:
        """Why there is nothing to write to any more, in words, where that is what an error comes from; else None."""
        if not is_refusal(error):
            return None
        client, run_id = client_of(self._launch.uri), self._runs.get(trial_id)
        return patiently(lambda: why_deleted(client, self._launch.experiment_id, run_id))

    def _check(self, trial_id: str) -> None:
        """Raises LostClaimError where another launch has the trial."""
        if not self._leases.ours(trial_id):
            raise LostClaimError(f"trial {trial_id} was taken over by another launch")

    def heard(self, news: News) -> None:
        """Take what a trial's rank 0 tells. What an earlier start of the trial still had to say is dropped: it goes on
        from a checkpoint, beside which everything up to there is kept."""
        with self._lock:
            if news.start != self._starts.get(news.trial_id) or news.trial_id in self._lost:
                return
            progress = None
            if news.report:
                first = self._first.setdefault((news.trial_id, news.start), (time.time(), news.report.iteration))
                steps, seconds = news.report.iteration - first[1], time.time() - first[0]
                progress = json.dumps(
                    {
                        "rate": round(steps / seconds, 4) if steps else None,
                        "iteration": news.report.iteration,
                        "iterations": news.report.iterations,
                        "host": news.host,
                        "time": round(time.time(), 1),
                    }
                )
            if news.points or progress:
                self._scribe.write(self._runs[news.trial_id], news.points, progress)

    def answer(self, trial_id: str, stop: bool) -> Heard:
        """What a trial's rank 0 is told. One whose run was deleted has to stop."""
        with self._lock:
            run_id = self._runs.get(trial_id)
        return Heard(self._scribe.delivered(run_id), stop or self._scribe.gone(run_id)) if run_id else Heard(0, stop)

    def retry(self, work: Work, result: TrialResult) -> None:
        """See `Books`: the run stays RUNNING and claimed."""

    def gone(self, work: Work) -> bool:
        """See `Books`."""
        return self._scribe.gone(work.run_id)

    def settled(self, work: Work, result: TrialResult) -> TrialResult:
        """See `Books`. Of a trial that goes on another time, what is not delivered is beside its checkpoint, or will be
        computed again. Raises StoreAwayError when the store stays away."""
        final = result.status == "FINISHED" or result.early
        delivered = self._scribe.settle(work.run_id, self._patience if final else _SECONDS_TO_SETTLE)
        if self._scribe.gone(work.run_id):
            return TrialResult(work.named, "KILLED", run_id=work.run_id, stopped=DELETED)
        with self._lock:
            lost = work.named.trial.id in self._lost
        if not final or lost:
            return result
        error = self._undelivered(work, result, delivered)
        if error is None:
            return result
        failure = failure_of(error, text=f"{type(error).__name__}: {error}")
        return replace(result, status="FAILED", metrics={}, failure=failure, stopped=None, early=False)

    def _undelivered(self, work: Work, result: TrialResult, delivered: bool) -> Exception | None:
        """Why not all that a trial measured is in the store."""
        name, run_id = work.named.name, work.run_id
        refused = self._scribe.refused(run_id)
        if refused:
            why = "; ".join(f"{key!r}: {' '.join(one.split())}" for key, one in refused.items())
            return RefusedMetricError(f"{name} was trained, but MLflow refuses to record of it {why}")
        if delivered and result.points is not None and self._scribe.written(run_id) < result.points:
            return UndeliveredError(
                f"{name} was trained, but of {result.points} points that it measured only "
                f"{self._scribe.written(run_id)} reached this launch"
            )
        if delivered:
            return None
        why, away = self._scribe.trouble(run_id)
        if away:
            self._patience = _SECONDS_TO_SETTLE  # nobody waits as long once more
            raise StoreAwayError(f"the MLflow store cannot be reached: metrics of {name} are not delivered: {why}")
        return UndeliveredError(
            f"{name} was trained, but its metrics could not be delivered ({why or 'no answer'}); they are when it is "
            "run again"
        )

    def end(self, work: Work, result: TrialResult) -> TrialResult | Held | None:
        """See `Books`. Raises StoreAwayError when the store stays away."""
        trial_id = work.named.trial.id
        try:
            why = result.stopped if self._scribe.gone(work.run_id) else self._ended(work, result)
        except LostClaimError:
            return self._held(trial_id)
        if why is not None:
            _log.warning("%s is not recorded any further: %s", work.named.name, why)
            result = TrialResult(work.named, "KILLED", run_id=work.run_id, stopped=why)
        self._leases.release(trial_id)
        with self._lock:
            self._starts.pop(trial_id, None)
            since = self._since.pop(trial_id, time.monotonic())
        self._keep(work, result, time.monotonic() - since)
        self._scribe.forget(work.run_id)
        if self._narrator:
            self._narrator.ended(result)
        return result

    def _ended(self, work: Work, result: TrialResult) -> str | None:
        """Record an end; why that is not possible, where somebody has deleted what it would be recorded in. Raises
        LostClaimError, StoreAwayError."""
        trial_id = work.named.trial.id
        tags = {MODEL_TAG: "pending"} if self._wants_model(result) else {}

        def check() -> None:
            self._check(trial_id)

        try:
            check()
            end_run(self._launch.uri, work.run_id, result, tags, self._files, self._patience, check)
        except StoreAwayError:
            self._patience = _SECONDS_TO_SETTLE
            raise
        except LostClaimError:
            raise
        except Exception as error:
            why = self._deleted(trial_id, error)
            if why is None:
                raise
            return why
        return None

    def _wants_model(self, result: TrialResult) -> bool:
        return self._keeping.log_model and result.status == "FINISHED"

    def _keep(self, work: Work, result: TrialResult, seconds: float) -> None:
        """What a trial that ran so long leaves beside its metrics."""
        if self._wants_model(result):
            self._keeping.archivist.model(work.run_id, work.folder, work.named.trial.config())
        if result.snapshot and seconds >= FIGURE_SECONDS:
            self._keeping.archivist.density(work.run_id, work.named.name, result.snapshot)

    def _beat(self, queue: TrialQueue) -> None:
        """Keep the claims alive; of a trial that was lost all the same, nothing more is written: first that is seen to,
        and only then does the metric writer hear that it may go on."""
        failed = False
        while not self._over.wait(1.0 if failed else HEARTBEAT_SECONDS):
            try:
                self._leases.prove()
            except Exception as error:  # it must outlive every hiccup of the store
                # Who waits for a store that is away says so, once; the watcher, when it is gone for good.
                if not failed and not self._over.is_set() and not is_away(error) and not lost_for_good(error):
                    _log.warning("claims on trials cannot be renewed, tried again: %s", masked(str(error)))
                failed = True
                continue
            failed = False
            for trial_id in self._leases.lost():
                with self._lock:
                    if trial_id in self._starts and trial_id not in self._lost:
                        self._lost.add(trial_id)
                        self._scribe.reopen(self._runs[trial_id])
                queue.lose(trial_id)
            self._scribe.lease(self._leases.valid_until)

    def _stop_deleted(self, queue: TrialQueue) -> None:
        """Whoever deletes the run of a trial wishes that it stops."""
        client = client_of(self._launch.uri)
        for trial_id in queue.running_ids:
            run_id = self._runs.get(trial_id)
            if run_id and not queue.stop_reason(trial_id) and is_deleted(client, run_id):
                queue.stop(lambda named, trial_id=trial_id: named.trial.id == trial_id, DELETED)  # type: ignore[misc]

    def _watch(self, queue: TrialQueue, on_plan: OnPlan | None) -> None:
        wishes = self._wishes
        looked = time.monotonic()
        while not self._over.wait(_POLL_SECONDS):
            try:
                if self._narrator:
                    self._narrator.tell()
                for chosen, why in wishes.stops():
                    queue.stop(chosen, why)
                if time.monotonic() - looked > HEARTBEAT_SECONDS:
                    looked = time.monotonic()
                    self._stop_deleted(queue)
                plan = wishes.newer_plan()
                wanted = on_plan(plan) if plan and on_plan else None
                if wanted:
                    queue.want(*wanted)
            except Exception as error:  # the watcher must outlive every hiccup of the store
                if self._over.is_set():
                    return
                if lost := lost_for_good(error):  # what trains could not be recorded: the end of the first says so
                    queue.stop(control.matching("*"), str(lost))
                    return
                if is_away(error):  # who waits for the store says so, once
                    continue
                _log.warning("watching the store: %s", masked(str(error)))
