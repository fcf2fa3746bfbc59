"""A launch's hand in the store: which trials are to be done, claimed, begun, heard of and ended."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lqray.experiment.grid import NamedTrial
from lqray.experiment.schema import Storage
from lqray.experiment.secrets import masked
from lqray.experiment.store import storage_address
from lqray.orchestration import control
from lqray.orchestration.archivist import MODEL_TAG, Archivist
from lqray.orchestration.description import run_colour
from lqray.orchestration.launch_files import LaunchFiles
from lqray.orchestration.launcher import TrialResult, Work
from lqray.orchestration.leases import HEARTBEAT_SECONDS, Holder, Leases
from lqray.orchestration.narrator import Narrator
from lqray.orchestration.queue import TrialQueue
from lqray.orchestration.scribe import Scribe
from lqray.orchestration.states import TrialState
from lqray.orchestration.store_access import PATIENCE, is_away, lost_for_good, patiently
from lqray.orchestration.tracking import Launch, continue_run, end_run, start_run, state_of
from lqray.orchestration.worker import Heard, News

TAGS = ("lqray.attempt", "lqray.early", "lqray.failure", "lqray.folder", "lqray.holder", MODEL_TAG)
_POLL_SECONDS = 2.0
_log = logging.getLogger(__name__)


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
        self._files = LaunchFiles(launch.uri)
        self._keeping = keeping or Keeping(Archivist(launch.uri))
        self._narrator = self._keeping.narrator
        self._starts: dict[str, int] = {}
        self._runs: dict[str, str] = {}
        self._first: dict[tuple[str, int], tuple[float, int]] = {}
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._watcher: threading.Thread | None = None
        self.elsewhere: dict[str, Holder | None] = {}
        """Trials that another launch holds, as they were met."""

    def watch(self, queue: TrialQueue, on_plan: Callable[[str], Callable[[NamedTrial], bool]] | None = None) -> None:
        """From now on keep this launch's claims alive and pass others' wishes to the queue. on_plan: what a newer
        launch's experiment file leaves to be done."""
        self._watcher = threading.Thread(target=self._watch, args=(queue, on_plan), daemon=True)
        self._watcher.start()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._watcher:
            self._watcher.join(timeout=30)
        self._scribe.close()
        left = self._keeping.archivist.close(self._keeping.patience)
        if left:
            _log.warning("%d figures and models were not made; the next `lqray run` makes the models", left)

    def begin(self, named: NamedTrial) -> Work | None:
        """See `Books`."""
        trial_id = named.trial.id
        again = trial_id in self._starts
        claim = 1 if again else self._leases.claim(trial_id)
        if not claim:
            self.elsewhere[trial_id] = self._leases.holder(trial_id)
            return None
        state = self._states.get(trial_id)
        if claim > 1 and not self._rerun:
            # Somebody held it before; since this launch looked, it may have been ended.
            state = patiently(lambda: state_of(self._launch, trial_id, TAGS)) or state
            if state and not planned(named, {trial_id: state}, False).due:
                self._leases.release(trial_id)
                return None
        attempt = int(state.tags.get("lqray.attempt", "1")) if state else 1
        fresh = state is None or (self._rerun and not again)
        if state and fresh:
            attempt += 1
        folder = f"{self._folder}/{trial_id if attempt == 1 else f'{trial_id}-{attempt}'}"
        tags = {"lqray.attempt": str(attempt), "lqray.folder": folder, "lqray.holder": str(self._leases.me)}
        if again:
            run_id = self._runs[trial_id]
            patiently(lambda: continue_run(self._launch, run_id, tags, self._files))
        elif state and not fresh:
            run_id = state.run_id
            patiently(lambda: continue_run(self._launch, run_id, tags, self._files))
        else:
            tags["mlflow.runColor"] = run_colour(len(self._states) + len(self._runs))
            run_id = start_run(self._launch, named, tags, self._files)
        with self._lock:
            self._starts[trial_id] = self._starts.get(trial_id, 0) + 1
            self._runs[trial_id] = run_id
            self._scribe.reopen(run_id)
        if self._narrator:
            self._narrator.began(named)
        return Work(named, run_id, folder, self._starts[trial_id], (state is not None and not fresh) or again)

    def heard(self, news: News) -> None:
        """Take what a trial's rank 0 tells. What an earlier start of the trial still had to say is dropped: it goes on
        from a checkpoint, beside which everything up to there is kept."""
        with self._lock:
            if news.start != self._starts.get(news.trial_id):
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
        """What a trial's rank 0 is told."""
        with self._lock:
            return Heard(self._scribe.delivered(self._runs.get(trial_id, "")), stop)

    def retry(self, work: Work, result: TrialResult) -> None:
        """See `Books`: the run stays RUNNING and claimed."""

    def end(self, work: Work, result: TrialResult) -> None:
        """See `Books`. Raises StoreAwayError when the store stays away."""
        self._scribe.settle(work.run_id, PATIENCE if result.status == "FINISHED" else 5.0)
        wanted = self._keeping.log_model and result.status == "FINISHED"
        tags = {MODEL_TAG: "pending"} if wanted else {}
        patiently(lambda: end_run(self._launch.uri, work.run_id, result, tags))
        if result.snapshot:
            self._keeping.archivist.density(work.run_id, work.named.name, result.snapshot)
        if wanted:
            self._keeping.archivist.model(work.run_id, work.folder, work.named.trial.config())
        self._leases.release(work.named.trial.id)
        self._starts.pop(work.named.trial.id, None)
        if self._narrator:
            self._narrator.ended(result)

    def _watch(self, queue: TrialQueue, on_plan: Callable[[str], Callable[[NamedTrial], bool]] | None) -> None:
        wishes = control.Wishes(self._launch)
        beaten = time.monotonic()
        while not self._over.wait(_POLL_SECONDS):
            try:
                if time.monotonic() - beaten > HEARTBEAT_SECONDS:
                    beaten = time.monotonic()
                    self._leases.beat()
                if self._narrator:
                    self._narrator.tell()
                for chosen, why in wishes.stops():
                    queue.stop(chosen, why)
                plan = wishes.newer_plan()
                if plan and on_plan:
                    queue.want(on_plan(plan))
            except Exception as error:  # the watcher must outlive every hiccup of the store
                if self._over.is_set():
                    return
                if lost := lost_for_good(error):  # what trains could not be recorded: the end of the first says so
                    queue.stop(control.matching("*"), str(lost))
                    return
                if is_away(error):  # who waits for the store says so, once
                    continue
                _log.warning("watching the store: %s", masked(str(error)))
