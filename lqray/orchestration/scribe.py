"""Delivers metrics to MLflow, from a process of its own with the lowest priority.

MLflow takes some 70 microseconds of Python for a point. In a thread beside training that would hold up every operator
through the interpreter's lock; at low priority in another process it uses what training leaves.
"""

from __future__ import annotations

import atexit
import logging
import math
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from multiprocessing.connection import Connection
from typing import Any

from lqray.experiment.secrets import masked
from lqray.orchestration.leases import now
from lqray.orchestration.store_access import client_of, is_away
from lqray.orchestration.worker import Point

_DELIVER_SECONDS = 1.5
_BATCH = 1000
_FIRST_DELAY, _LAST_DELAY = 0.5, 15.0
_log = logging.getLogger(__name__)


class Scribe:
    """Writes points of runs to one store, in order, each once.

    When the store is away, points wait here and are delivered when it is back. Which of a run's points the store has is
    asked from the store itself, before the first delivery and after every one whose answer was lost: a point at or
    before a metric's last step is not written again.
    """

    def __init__(self, uri: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(uri, theirs), daemon=True, name="lqray-scribe")
        self._process.start()
        theirs.close()
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._written: dict[str, int] = {}
        self._delivered: dict[str, int] = {}
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        # It ignores SIGTERM, with which multiprocessing would end it and then wait for ever.
        atexit.register(self.close)

    def write(self, run_id: str, points: list[Point], progress: str | None = None) -> None:
        """Deliver these soon. progress: the newest value of the run's lqray.progress tag."""
        with self._changed:
            self._written[run_id] = self._written.get(run_id, 0) + len(points)
        self._send(("write", run_id, points, progress))

    def delivered(self, run_id: str) -> int:
        """How many of the run's points are dealt with, of those written since `reopen` or the start."""
        with self._changed:
            return self._delivered.get(run_id, 0)

    def reopen(self, run_id: str) -> None:
        """Forget the run: somebody else may have written to it since, or a new process counts from one."""
        with self._changed:
            self._written.pop(run_id, None)
            self._delivered.pop(run_id, None)
        self._send(("reopen", run_id))

    def lease(self, until: float) -> None:
        """Deliver until then, by `lqray.orchestration.leases.now`, and after that only when told again; without a word,
        for ever. What was said before comes first: of a run that was lost, and reopened, nothing more is delivered."""
        self._send(("lease", until))

    def settle(self, run_id: str, patience: float) -> bool:
        """Deliver what is left of a run now; whether that was possible within `patience` seconds."""
        self._send(("flush", run_id))
        with self._changed:
            return self._changed.wait_for(
                lambda: self._delivered.get(run_id, 0) >= self._written.get(run_id, 0) or not self._process.is_alive(),
                patience,
            ) and self._delivered.get(run_id, 0) >= self._written.get(run_id, 0)

    def close(self) -> None:
        """End the process; what is not delivered by now is not delivered."""
        atexit.unregister(self.close)
        self._send(("close",))
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()

    def _send(self, message: tuple[Any, ...]) -> None:
        with self._sending:
            try:
                self._pipe.send(message)
            except (BrokenPipeError, OSError):
                return  # it died; `settle` says so

    def _listen(self) -> None:
        try:
            while True:
                run_id, count = self._pipe.recv()
                with self._changed:
                    if run_id in self._written:
                        self._delivered[run_id] = self._delivered.get(run_id, 0) + count
                    self._changed.notify_all()
        except (EOFError, OSError):
            with self._changed:
                self._changed.notify_all()


class _Run:
    def __init__(self) -> None:
        self.points: deque[Point] = deque()
        self.steps: dict[str, int] | None = None
        self.progress: str | None = None
        self.due = 0.0
        self.delay = _FIRST_DELAY


def _serve(uri: str, pipe: Connection) -> None:
    os.nice(19)
    # Ctrl-C reaches every process of the terminal; the launcher decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    client = client_of(uri)
    runs: dict[str, _Run] = {}
    lease = math.inf
    try:
        while True:
            waiting = [run.due for run in runs.values() if run.points or run.progress]
            pause = max(0.0, min(waiting) - time.monotonic()) if waiting else None
            while pipe.poll(pause):
                message = pipe.recv()
                if message[0] == "close":
                    return
                if message[0] == "reopen":
                    runs.pop(message[1], None)
                    continue
                if message[0] == "lease":
                    lease = message[1]
                    continue
                run = runs.setdefault(message[1], _Run())
                if message[0] == "flush":
                    run.due = 0.0
                else:
                    if not run.points and not run.progress:
                        run.due = max(run.due, time.monotonic() + _DELIVER_SECONDS)
                    run.points.extend(message[2])
                    run.progress = message[3] or run.progress
                pause = 0.0
            for run_id, run in list(runs.items()):
                if (run.points or run.progress) and run.due <= time.monotonic():
                    _deliver(client, run_id, run, pipe, lease)
    except (EOFError, OSError):
        return  # the launcher is gone: what is not delivered is in its checkpoints, or will be computed again


def _deliver(client: Any, run_id: str, run: _Run, pipe: Connection, lease: float = math.inf) -> None:
    """One batch of one run, or more while they are full; none after the launch's lease."""
    from mlflow.entities import Metric, RunTag

    batch: list[Metric]
    while run.points or run.progress:
        if now() >= lease:
            run.due = time.monotonic() + _FIRST_DELAY
            return
        count, batch = 0, []
        try:
            if run.steps is None:
                run.steps = _last_steps(client, run_id)
            steps = dict(run.steps)
            for point in run.points:
                fresh = {key: value for key, value in point.metrics.items() if point.step > steps.get(key, -1)}
                if len(batch) + len(fresh) > _BATCH and batch:
                    break
                batch += [Metric(key, value, point.time, point.step) for key, value in fresh.items()]
                steps |= dict.fromkeys(fresh, point.step)
                count += 1
            tags = [RunTag("lqray.progress", run.progress)] if run.progress else []
            if batch or tags:
                client.log_batch(run_id, metrics=batch, tags=tags)
        except Exception as error:
            run.steps = None  # it may have arrived all the same
            if is_away(error):
                run.due = time.monotonic() + run.delay
                run.delay = min(2 * run.delay, _LAST_DELAY)
                return
            # The run is deleted, or a metric has a name that MLflow refuses: no later attempt would do better.
            _log.error("metrics of run %s are not recorded: %s", run_id, masked(str(error)))
        else:
            run.steps = steps
            run.delay = _FIRST_DELAY
        run.progress = None
        for _ in range(count):
            run.points.popleft()
        pipe.send((run_id, count))
    run.due = time.monotonic() + _DELIVER_SECONDS


def _last_steps(client: Any, run_id: str) -> dict[str, int]:
    """The last step of each metric of a run."""
    return {metric.key: metric.step for metric in client.get_run(run_id).data.to_proto().metrics}
