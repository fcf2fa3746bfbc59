"""What runs have beside parameters, tags and metrics: files, and their datasets. They are secondary: written from a
thread of their own, for which a run's status waits a moment at most; what cannot be written is tried again for a while,
then said with its place, and costs nothing else."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lqray.experiment.secrets import masked
from lqray.orchestration.launchers.contract import TrialResult
from lqray.orchestration.recording.datasets import dataset_inputs
from lqray.orchestration.recording.launch_files import LaunchFiles, write_texts
from lqray.store.client import client_of
from lqray.store.outage import PATIENCE

_PATIENCE = 20.0  # seconds, from a job's first failure on; of a server that cannot be reached, as long as for all else
_FIRST_DELAY, _LAST_DELAY = 0.5, 5.0
_TRACEBACK, _DENSITY, _LEVELS = "traceback.txt", "density.json", "levels.json"
_log = logging.getLogger(__name__)


@dataclass
class _Job:
    """place: where it writes to. failed: since when it fails."""

    run_id: str
    what: str
    place: str
    call: Callable[[], object]
    due: float = 0.0
    delay: float = _FIRST_DELAY
    failed: float | None = field(default=None)


class ArtifactWriter:
    """Of one launch, in order; a job that fails lets the others pass. uri: of its store. machine: see `LaunchFiles`."""

    def __init__(self, uri: str, machine: Callable[[str], str] | None = None, patience: float = _PATIENCE) -> None:
        self._uri, self._files = uri, LaunchFiles(uri, machine)
        self._patience = patience
        self._changed = threading.Condition()
        self._jobs: list[_Job] = []
        self._lost = 0
        self._lost_places: set[str] = set()
        self._over = False
        self._thread: threading.Thread | None = None

    def give(self, client: Any, run: Any, own: Mapping[str, str], below: str = "") -> None:
        """As `LaunchFiles.give`, soon."""
        what = f"the files of run {run.info.run_id}"
        self._put(run.info.run_id, what, run.info.artifact_uri, lambda: self._files.give(client, run, own, below))

    def complete(self, client: Any, run: Any, own: Mapping[str, str]) -> None:
        """As `LaunchFiles.complete`, soon."""
        what = f"the files of run {run.info.run_id}"
        self._put(run.info.run_id, what, run.info.artifact_uri, lambda: self._files.complete(client, run, own))

    def end(self, client: Any, run: Any, result: TrialResult) -> None:
        """Keep what an ended trial saw of its dataset, its gradients and its levels, and the traceback of a failure."""
        run_id, place = run.info.run_id, run.info.artifact_uri
        if result.examples:
            inputs = dataset_inputs(result.named.trial.data, result.examples)
            self._put(run_id, f"the datasets of run {run_id}", "the store", lambda: client.log_inputs(run_id, inputs))
        found = {_DENSITY: result.snapshot, _LEVELS: result.levels}
        texts = {name: json.dumps(one) for name, one in found.items() if one}
        if result.failure:
            texts[_TRACEBACK] = result.failure.traceback
        for name, text in texts.items():
            what = f"{name} of run {run_id}"
            self._put(run_id, what, place, partial(write_texts, client, run, {name: text}), instead=True)

    def levels(self, run_id: str, levels: Mapping[str, Any], ours: Callable[[], bool]) -> None:
        """Keep the levels of a running trial so far, in the place of those before. ours: whether this launch may still
        write to the run, asked when it does."""

        def write() -> None:
            if ours():
                client = client_of(self._uri)
                write_texts(client, client.get_run(run_id), {_LEVELS: json.dumps(levels)})

        self._put(run_id, f"{_LEVELS} of run {run_id}", "the place of its artifacts", write, instead=True)

    def settle(self, run_id: str, patience: float) -> None:
        """Wait until all of a run's is written, or has failed once, at most so many seconds."""
        with self._changed:
            self._changed.wait_for(
                lambda: not any(job.run_id == run_id and job.failed is None for job in self._jobs), patience
            )

    def close(self, patience: float) -> None:
        """Wait until all is written or given up, at most so many seconds; say what is not."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join(patience)
        with self._changed:
            left = self._lost + len(self._jobs)
            self._jobs.clear()
        if left:
            where = ", ".join(sorted(self._lost_places)) or "the runs"
            _log.warning("%d artifacts are missing in %s; metrics and results are not touched by that", left, where)

    def _put(self, run_id: str, what: str, place: str, call: Callable[[], object], instead: bool = False) -> None:
        """instead: of what is called the same and is not written yet."""
        with self._changed:
            if instead:
                self._jobs = [job for job in self._jobs if job.what != what]
            self._jobs.append(_Job(run_id, what, place, call))
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                job.call()
            except Exception as error:
                self._failed(job, error)
            else:
                with self._changed:
                    if job in self._jobs:
                        self._jobs.remove(job)
                    self._lost_places.discard(_root(job.place))
                    self._changed.notify_all()

    def _next(self) -> _Job | None:
        """The first job that is due; None when all is over."""
        with self._changed:
            while True:
                now = time.monotonic()
                for job in self._jobs:
                    if job.due <= now:
                        return job
                if self._over and not self._jobs:
                    return None
                self._changed.wait(min((job.due for job in self._jobs), default=now + 60.0) - now)

    def _failed(self, job: _Job, error: Exception) -> None:
        with self._changed:
            if job not in self._jobs:  # another one has taken its place
                return
            now = time.monotonic()
            job.failed = job.failed or now
            self._changed.notify_all()
            root = _root(job.place)
            # Where nothing can be written, one job has waited for all.
            patience = PATIENCE if _unreachable(error) else self._patience
            if now - job.failed < patience and root not in self._lost_places:
                job.due, job.delay = now + job.delay, min(2 * job.delay, _LAST_DELAY)
                return
            self._jobs.remove(job)
            self._lost += 1
            new = root not in self._lost_places
            self._lost_places.add(root)
        if new:
            _log.warning(
                "%s cannot be written to %s: %s; training goes on without. Free space there, or see who may write",
                job.what,
                masked(job.place),
                masked(f"{type(error).__name__}: {error}"),
            )


def _unreachable(error: Exception) -> bool:
    return isinstance(error, ConnectionError | TimeoutError) or "failed with exception" in str(error)


def _root(place: str) -> str:
    """Of an artifact URI (ROOT/RUN/artifacts) what runs share."""
    return masked(place.rpartition("/artifacts")[0].rpartition("/")[0] or place)
