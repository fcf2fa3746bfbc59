"""A launch's hand in the store: which trials are to be done, claimed, begun, heard of and ended."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from lqray.experiment.grid import NamedTrial
from lqray.experiment.secrets import masked
from lqray.orchestration.failures import failure_of
from lqray.orchestration.launchers.contract import Held, Queue, TrialResult, Work
from lqray.orchestration.origins import origins
from lqray.orchestration.recording.artifacts import ArtifactWriter
from lqray.orchestration.recording.claims import HEARTBEAT_SECONDS, Claims
from lqray.orchestration.recording.derived import DerivedArtifacts
from lqray.orchestration.recording.description import run_colour
from lqray.orchestration.recording.metrics import MetricDelivery
from lqray.orchestration.recording.runs import continue_run, end_run, latest_run, start_run
from lqray.orchestration.recording.summary import SummaryWriter
from lqray.orchestration.worker.fencing import LostClaimError, new_folder, own_name
from lqray.orchestration.worker.task import Ack, Update
from lqray.store.client import client_of
from lqray.store.deleted_runs import DELETED, is_deleted, is_refusal, why_deleted
from lqray.store.errors import StoreAwayError
from lqray.store.launches import Launch
from lqray.store.outage import PATIENCE, is_away, lost_for_good, patiently
from lqray.store.runs import Run
from lqray.store.tags import ATTEMPT, FOLDER, HOLDER, MODEL_STATE

FIGURE_SECONDS = 60.0
"""Trials that took as long have a figure of their own at once: drawing it takes .3 s."""

_SECONDS_TO_SETTLE = 5.0  # of a trial that goes on another time
_log = logging.getLogger(__name__)


class UndeliveredError(ConnectionError):
    """What a trial measured did not reach the store."""


class RefusedMetricError(ValueError):
    """The store does not take a metric."""


@dataclass
class RecordingOptions:
    """What a launch keeps of trials beside metrics. derived: makes figures and models. log_model: of every finished
    trial. summary_writer: told of trials as they begin and end. machine: see `LaunchFiles`. patience: seconds that the
    launch's end waits for figures and models."""

    derived: DerivedArtifacts
    log_model: bool = False
    summary_writer: SummaryWriter | None = None
    machine: Callable[[str], str] | None = None
    patience: float = PATIENCE


class Recorder:
    """Implements `lqray.orchestration.launchers.contract.Recording`. Use as a context.

    folder: below which every trial has one. known: its trials' latest runs. rerun: begin a new attempt, with a run and
    a folder of its own, whatever became of earlier ones."""

    def __init__(
        self,
        launch: Launch,
        folder: str,
        known: Mapping[str, Run],
        rerun: bool = False,
        recording: RecordingOptions | None = None,
    ) -> None:
        self._launch, self._rerun = launch, rerun
        self._folder = folder
        self._known = dict(known)
        self._claims = Claims(launch.uri, launch.experiment_id, launch.launch_id)
        self._delivery = MetricDelivery(launch.uri)
        self._delivery.allow(self._claims.valid_until)
        self._options = recording or RecordingOptions(DerivedArtifacts(launch.uri))
        self._files = ArtifactWriter(launch.uri, self._options.machine)
        self._summary_writer = self._options.summary_writer
        self._starts: dict[str, int] = {}
        self._runs: dict[str, str] = {}
        self._since: dict[str, float] = {}
        self._patience = PATIENCE
        self._first: dict[tuple[str, int], tuple[float, int]] = {}
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
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

    def keep_claims(self, queue: Queue) -> None:
        """From now on keep this launch's claims alive; the queue is told of those that are lost."""
        self._thread = threading.Thread(target=self._beat, args=(queue,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread:
            self._thread.join(timeout=30)
        self._delivery.close()
        self._files.close(self._options.patience)
        try:
            self._claims.close()
        except Exception as error:
            _log.warning("claims on trials are not given back; they are void in a moment: %s", masked(str(error)))
        left = self._options.derived.close(self._options.patience)
        if left:
            _log.warning("%d figures and models were not made; the next `lqray run FILE` makes the models", left)

    def begin(self, named: NamedTrial) -> Work | Held | None:
        """See `Recording`."""
        trial_id = named.trial.id
        again = trial_id in self._starts
        claimed = self._claims.ours(trial_id) if again else bool(self._claims.claim(trial_id))
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
        run, rerun = self._known.get(trial_id), self._rerun and trial_id not in self._met
        if not again and (self._claims.number(trial_id) > 1 or trial_id in self._met):
            # Somebody held it before; since this launch looked, it may have been ended.
            run = patiently(lambda: latest_run(self._launch, trial_id)) or run
            if run and not rerun and not self._due(named, run):
                self._give_back(trial_id)
                return None
        fresh = not again and (run is None or rerun)
        if again:
            run_id, folder, attempt = self._runs[trial_id], self._folders[trial_id], self._attempts[trial_id]
        elif run and not fresh:
            run_id, attempt = run.run_id, run.attempt
            # The experiment file says where storage is, by now perhaps elsewhere; the run, which folder there it has.
            name = own_name(run.tags.get(FOLDER, ""), trial_id)
            folder = f"{self._folder}/{name}" if name else self._folder_of(trial_id, attempt)
        else:
            run_id, attempt = "", run.attempt + 1 if run else 1
            folder = self._new_folder(named, attempt)
        tags = {ATTEMPT: str(attempt), FOLDER: folder, HOLDER: str(self._claims.me), **origins(named.trial)}
        recorded = 0
        if fresh:
            tags["mlflow.runColor"] = run_colour(len(self._known) + len(self._runs))
            self._check(trial_id)
            run_id = start_run(self._launch, named, tags, self._files)
        else:
            self._runs[trial_id] = run_id
            recorded = continue_run(self._launch, named, run_id, tags, self._files, lambda: self._check(trial_id))
        with self._lock:
            self._count[trial_id] = self._starts[trial_id] = self._count.get(trial_id, 0) + 1
            self._runs[trial_id], self._folders[trial_id], self._attempts[trial_id] = run_id, folder, attempt
            self._since.setdefault(trial_id, time.monotonic())
            self._delivery.reopen(run_id)
        if self._summary_writer:
            self._summary_writer.began(named)
        start = self._starts[trial_id]
        claim = f"{self._claims.board} {self._claims.number(trial_id)} {start}"
        return Work(named, run_id, folder, start, not fresh, recorded, claim)

    def _due(self, named: NamedTrial, run: Run) -> bool:
        """Whether a trial that somebody else held is to be run here, as it stands now. What another launch has tried
        since this one began was this one's try, too."""
        before = self._known.get(named.trial.id)
        known = before and (before.run_id, before.status, before.ended) == (run.run_id, run.status, run.ended)
        if run.status == "FAILED" and not known:
            self.failed_elsewhere[named.trial.id] = named
            return False
        return not run.over

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
        holder = self._claims.holder(trial_id)
        with self._lock:
            self._met.add(trial_id)
            if self._starts.pop(trial_id, None):
                self._delivery.reopen(self._runs[trial_id])  # what it was told and has not delivered is no longer ours
            self._lost.discard(trial_id)
        if trial_id in self._claims.lost():
            self._claims.forget(trial_id)
        return Held(holder, holder is not None and self._claims.moved(holder))

    def _give_back(self, trial_id: str) -> None:
        self._claims.release(trial_id)
        self._starts.pop(trial_id, None)

    def _deleted(self, trial_id: str, error: Exception) -> str | None:
        """Why there is nothing to write to any more, in words, where that is what an error comes from; else None."""
        if not is_refusal(error):
            return None
        client, run_id = client_of(self._launch.uri), self._runs.get(trial_id)
        return patiently(lambda: why_deleted(client, self._launch.experiment_id, run_id))

    def _check(self, trial_id: str) -> None:
        """Raises LostClaimError where another launch has the trial."""
        if not self._claims.ours(trial_id):
            raise LostClaimError(f"trial {trial_id} was taken over by another launch")

    def record(self, update: Update) -> None:
        """Take what a trial's rank 0 tells. What an earlier start of the trial still had to say is dropped: it goes on
        from a checkpoint, beside which everything up to there is kept."""
        with self._lock:
            if update.start != self._starts.get(update.trial_id) or update.trial_id in self._lost:
                return
            progress = None
            if update.report:
                first = self._first.setdefault((update.trial_id, update.start), (time.time(), update.report.iteration))
                steps, seconds = update.report.iteration - first[1], time.time() - first[0]
                progress = json.dumps(
                    {
                        "rate": round(steps / seconds, 4) if steps else None,
                        "iteration": update.report.iteration,
                        "iterations": update.report.iterations,
                        "host": update.host,
                        "time": round(time.time(), 1),
                    }
                )
            if update.points or progress:
                self._delivery.write(self._runs[update.trial_id], update.points, progress)
            if update.levels:
                ours = partial(self._claims.ours, update.trial_id)
                self._files.levels(self._runs[update.trial_id], update.levels, ours)

    def acknowledge(self, trial_id: str, stop: bool) -> Ack:
        """What a trial's rank 0 is told. One whose run was deleted has to stop."""
        with self._lock:
            run_id = self._runs.get(trial_id)
        return Ack(self._delivery.delivered(run_id), stop or self._delivery.gone(run_id)) if run_id else Ack(0, stop)

    def retry(self, work: Work, result: TrialResult) -> None:
        """See `Recording`: the run stays RUNNING and claimed."""

    def gone(self, work: Work) -> bool:
        """See `Recording`."""
        return self._delivery.gone(work.run_id)

    def settled(self, work: Work, result: TrialResult) -> TrialResult:
        """See `Recording`. Of a trial that goes on another time, what is not delivered is beside its checkpoint, or
        will be computed again. Raises StoreAwayError when the store stays away."""
        final = result.status == "FINISHED" or result.early
        delivered = self._delivery.settle(work.run_id, self._patience if final else _SECONDS_TO_SETTLE)
        if self._delivery.gone(work.run_id):
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
        refused = self._delivery.refused(run_id)
        if refused:
            why = "; ".join(f"{key!r}: {' '.join(one.split())}" for key, one in refused.items())
            return RefusedMetricError(f"{name} was trained, but MLflow refuses to record of it {why}")
        if delivered and result.points is not None and self._delivery.written(run_id) < result.points:
            return UndeliveredError(
                f"{name} was trained, but of {result.points} points that it measured only "
                f"{self._delivery.written(run_id)} reached this launch"
            )
        if delivered:
            return None
        why, away = self._delivery.trouble(run_id)
        if away:
            self._patience = _SECONDS_TO_SETTLE  # nobody waits as long once more
            raise StoreAwayError(f"the MLflow store cannot be reached: metrics of {name} are not delivered: {why}")
        return UndeliveredError(
            f"{name} was trained, but its metrics could not be delivered ({why or 'no answer'}); they are when it is "
            "run again"
        )

    def end(self, work: Work, result: TrialResult) -> TrialResult | Held | None:
        """See `Recording`. Raises StoreAwayError when the store stays away."""
        trial_id = work.named.trial.id
        try:
            why = result.stopped if self._delivery.gone(work.run_id) else self._ended(work, result)
        except LostClaimError:
            return self._held(trial_id)
        if why is not None:
            _log.warning("%s is not recorded any further: %s", work.named.name, why)
            result = TrialResult(work.named, "KILLED", run_id=work.run_id, stopped=why)
        self._claims.release(trial_id)
        with self._lock:
            self._starts.pop(trial_id, None)
            since = self._since.pop(trial_id, time.monotonic())
        self._keep(work, result, time.monotonic() - since)
        self._delivery.forget(work.run_id)
        if self._summary_writer:
            self._summary_writer.ended(result)
        return result

    def _ended(self, work: Work, result: TrialResult) -> str | None:
        """Record an end; why that is not possible, where somebody has deleted what it would be recorded in. Raises
        LostClaimError, StoreAwayError."""
        trial_id = work.named.trial.id
        tags = {MODEL_STATE: "pending"} if self._wants_model(result) else {}

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
        return self._options.log_model and result.status == "FINISHED"

    def _keep(self, work: Work, result: TrialResult, seconds: float) -> None:
        """What a trial that ran so long leaves beside its metrics."""
        if self._wants_model(result):
            self._options.derived.model(work.run_id, work.folder, work.named.trial.config())
        if result.snapshot and seconds >= FIGURE_SECONDS:
            self._options.derived.density(work.run_id, work.named.name, result.snapshot)

    def _beat(self, queue: Queue) -> None:
        """Keep the claims alive; of a trial that was lost all the same, nothing more is written: first that is seen to,
        and only then does the metric writer hear that it may go on."""
        failed = False
        while not self._over.wait(1.0 if failed else HEARTBEAT_SECONDS):
            try:
                self._claims.prove()
            except Exception as error:  # it must outlive every hiccup of the store
                # Who waits for a store that is away says so, once; the watcher, when it is gone for good.
                if not failed and not self._over.is_set() and not is_away(error) and not lost_for_good(error):
                    _log.warning("claims on trials cannot be renewed, tried again: %s", masked(str(error)))
                failed = True
                continue
            failed = False
            for trial_id in self._claims.lost():
                with self._lock:
                    if trial_id in self._starts and trial_id not in self._lost:
                        self._lost.add(trial_id)
                        self._delivery.reopen(self._runs[trial_id])
                queue.lose(trial_id)
            self._delivery.allow(self._claims.valid_until)

    def deleted(self, trial_id: str) -> str | None:
        """Why a running trial is to stop, where somebody deleted its run; else None. Asks the store."""
        run_id = self._runs.get(trial_id)
        return DELETED if run_id and is_deleted(client_of(self._launch.uri), run_id) else None
