"""The launcher's side of the metric writer: what is to be delivered is kept here until the store has it."""

from __future__ import annotations

import atexit
import logging
import math
import multiprocessing
import queue
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from lqray.experiment.secrets import masked
from lqray.orchestration.recording import metric_writer
from lqray.orchestration.signals import starting_processes
from lqray.orchestration.worker.points import Point
from lqray.store.deleted_runs import DELETED

_SILENT_SECONDS = 60.0
"""Without a sign of life, after which the process is replaced: it hangs, or was stopped."""

_START_SECONDS = 300.0  # until the first one: it may have much to import, on a machine that has much to do
_FIRST_PAUSE, _LAST_PAUSE = 0.5, 15.0  # before a new process
_MOST_DEATHS = 5  # in a row, without a delivery between them: then nobody waits any longer
_REFUSAL_SECONDS = 20.0  # of an error that waiting does not mend: then nobody waits any longer
_log = logging.getLogger(__name__)
_processes = multiprocessing.get_context("spawn")


@dataclass
class _Run:
    """number: of the count that began with the last `reopen`. trouble: why the last attempt failed, whether the store
    was away, and when that began."""

    number: int
    points: deque[Point] = field(default_factory=deque)
    progress: str | None = None
    written: int = 0
    delivered: int = 0
    gone: bool = False
    refused: dict[str, str] = field(default_factory=dict)
    trouble: tuple[str, bool, float] | None = None


class MetricDelivery:
    """Writes points of runs to one store, in order, each once, through a process of its own.

    When the store is away, points wait and are delivered when it is back. When the process is killed or hangs, a new
    one is started and given what was not acknowledged. Which of a run's points the store has is asked from the store
    itself, before the first delivery and after every one whose answer was lost: a point at or before a metric's last
    step is not written again.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._changed = threading.Condition()
        self._runs: dict[str, _Run] = {}
        self._numbers = 0
        self._deaths = 0
        self._until = math.inf
        self._closing = threading.Event()
        self._outbox: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._process: Any = None
        self._thread = threading.Thread(target=self._keep_writing, daemon=True)
        self._thread.start()
        # It ignores SIGTERM, with which multiprocessing would end it and then wait for ever.
        atexit.register(self.close)

    def write(self, run_id: str, points: list[Point], progress: str | None = None) -> None:
        """Deliver these soon. progress: the newest value of the run's lqray.progress tag. Never waits."""
        with self._changed:
            run = self._run(run_id)
            run.points.extend(points)
            run.written += len(points)
            run.progress = progress or run.progress
            self._outbox.put(("write", run_id, run.number, points, progress))

    def written(self, run_id: str) -> int:
        """How many of the run's points were given to `write` since `reopen` or the start."""
        with self._changed:
            return self._run(run_id).written

    def delivered(self, run_id: str) -> int:
        """How many of those are dealt with."""
        with self._changed:
            return self._run(run_id).delivered

    def gone(self, run_id: str) -> bool:
        """Whether the store has the run no more: its points are dropped."""
        with self._changed:
            return self._run(run_id).gone

    def refused(self, run_id: str) -> dict[str, str]:
        """Metrics that the store does not take, and why."""
        with self._changed:
            return dict(self._run(run_id).refused)

    def trouble(self, run_id: str) -> tuple[str, bool]:
        """Why points of the run are not delivered, and whether the store is away; ("", False) when nothing is known."""
        with self._changed:
            run = self._run(run_id)
            if run.trouble:
                return run.trouble[:2]
            return (
                (f"the process that delivers metrics ended {self._deaths} times", False)
                if self._deaths
                else ("", False)
            )

    def reopen(self, run_id: str) -> None:
        """Forget the run: somebody else may have written to it since, or a new process counts from one."""
        with self._changed:
            self._runs.pop(run_id, None)
            self._outbox.put(("open", run_id, self._run(run_id).number))

    def forget(self, run_id: str) -> None:
        """The run has ended, and all is delivered."""
        with self._changed:
            run = self._runs.get(run_id)
            if run and not run.points:
                self._outbox.put(("forget", run_id, run.number))
                del self._runs[run_id]

    def allow(self, until: float) -> None:
        """Deliver until then, by `lqray.orchestration.recording.claims.now`, and after that only when told again;
        without a word, for ever. What was said before comes first: of a run that was lost, and reopened, nothing more
        is delivered."""
        with self._changed:
            self._until = until
            self._outbox.put(("until", until))

    def settle(self, run_id: str, patience: float) -> bool:
        """Deliver what is left of a run now; whether that was possible within `patience` seconds. Waits less where
        waiting does not help: see `trouble`."""
        deadline = time.monotonic() + patience
        with self._changed:
            run = self._run(run_id)
            self._outbox.put(("flush", run_id, run.number))
            while run.delivered < run.written and not self._hopeless(run) and self._runs.get(run_id) is run:
                left = deadline - time.monotonic()
                if left <= 0 or self._closing.is_set():
                    break
                self._changed.wait(min(1.0, left))
            return run.delivered >= run.written

    def close(self) -> None:
        """End the process; what is not delivered by now is not delivered."""
        atexit.unregister(self.close)
        self._closing.set()
        self._outbox.put(("close",))
        self._thread.join(10)
        if self._thread.is_alive():
            process = self._process
            if process is not None:
                process.kill()
            self._thread.join(10)

    def _run(self, run_id: str) -> _Run:
        if run_id not in self._runs:
            self._numbers += 1
            self._runs[run_id] = _Run(self._numbers)
        return self._runs[run_id]

    def _hopeless(self, run: _Run) -> bool:
        if self._deaths >= _MOST_DEATHS:
            return True
        return run.trouble is not None and not run.trouble[1] and time.monotonic() - run.trouble[2] > _REFUSAL_SECONDS

    def _keep_writing(self) -> None:
        """One process after the other, until the end."""
        while not self._closing.is_set():
            ended = self._with_a_process()
            if self._closing.is_set():
                return
            with self._changed:
                self._deaths += 1
                left = sum(len(run.points) for run in self._runs.values())
                pause = min(_FIRST_PAUSE * 2 ** (self._deaths - 1), _LAST_PAUSE)
                self._changed.notify_all()
            _log.warning(
                "the process that delivers metrics %s; a new one delivers what it had not: %d points", ended, left
            )
            self._closing.wait(pause)

    def _with_a_process(self) -> str:
        """Start a process, give it what is not delivered yet and what comes, until it ends; returns how that was."""
        pipe, theirs = _processes.Pipe()
        process = _processes.Process(
            target=metric_writer.serve, args=(self._uri, theirs), daemon=True, name="lqray-metric-writer"
        )
        try:
            with starting_processes():
                process.start()
        except OSError as error:
            pipe.close()
            theirs.close()
            return f"could not be started: {error}"
        self._process = process
        theirs.close()
        outbox = self._refilled()
        hung: list[float] = []
        listener = threading.Thread(target=self._listen, args=(pipe, process, outbox, hung), daemon=True)
        listener.start()
        try:
            while (message := outbox.get()) is not None:
                pipe.send(message)
                if message[0] == "close":
                    process.join(8)
                    break
        except OSError:
            pass  # it ended; what it did not acknowledge is kept
        process.kill()
        process.join()
        listener.join()
        pipe.close()
        if hung:
            return f"said nothing for {hung[0]:g} s and was replaced"
        return f"(process {process.pid}) ended with exit code {process.exitcode}"

    def _refilled(self) -> queue.SimpleQueue[tuple[Any, ...] | None]:
        """A new outbox with all that is not acknowledged."""
        with self._changed:
            outbox: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
            outbox.put(("until", self._until))
            for run_id, run in self._runs.items():
                if run.points or run.progress:
                    outbox.put(("open", run_id, run.number))
                    outbox.put(("write", run_id, run.number, list(run.points), run.progress))
            if self._closing.is_set():
                outbox.put(("close",))
            self._outbox = outbox
            return outbox

    def _listen(
        self, pipe: Connection, process: Any, outbox: queue.SimpleQueue[tuple[Any, ...] | None], hung: list[float]
    ) -> None:
        patience = _START_SECONDS
        try:
            while True:
                if not pipe.poll(patience):
                    hung.append(patience)
                    process.kill()
                    return
                self._take(pipe.recv())
                # A machine that has too much to do starves it; the next one is given more time.
                patience = _SILENT_SECONDS * 2 ** min(self._deaths, 3)
        except (EOFError, OSError):
            return
        finally:
            outbox.put(None)

    def _take(self, message: tuple[Any, ...]) -> None:
        what, *content = message
        if what == "alive":
            return
        run_id, number, *more = content
        with self._changed:
            run = self._runs.get(run_id)
            if run is None or run.number != number:
                return  # of a count that is over
            if what == "delivered":
                for _ in range(more[0]):
                    run.points.popleft()
                run.delivered += more[0]
                run.progress = run.trouble = None
                self._deaths = 0
            elif what == "gone":
                run.gone = True
                _log.warning("run %s is recorded no further: %s", run_id, DELETED)
            elif what == "refused":
                if more[0] not in run.refused:
                    _log.warning("metric %r of run %s is not recorded: %s", more[0], run_id, masked(more[1]))
                run.refused[more[0]] = more[1]
            elif what == "trouble":
                since = run.trouble[2] if run.trouble and run.trouble[1] == more[1] else time.monotonic()
                run.trouble = more[0], more[1], since
            self._changed.notify_all()
