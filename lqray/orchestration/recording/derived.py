"""Makes of ended trials what takes a while, figures and models, in a process of its own with the lowest priority: the
next trial does not wait for it."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lqray.experiment.secrets import masked
from lqray.orchestration.signals import heard, leave_to_launcher, starting_processes
from lqray.store.tags import MODEL_STATE

Draw = Callable[[Sequence[tuple[str, Mapping[str, Any]]]], Any]
"""(title, snapshot) of runs to a matplotlib Figure."""

MODEL = "model"

_DPI = 110
_TRIES = 2  # of a job whose process is killed
_log = logging.getLogger(__name__)


class DerivedArtifacts:
    """Works off what it is given, in order; the process starts with the first job. draw: sent to it by its name."""

    def __init__(self, uri: str, draw: Draw | None = None) -> None:
        self._uri, self._draw = uri, draw
        self._jobs: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._left = 0
        self._closed = False
        self._process: Any = None
        self._pipe: Connection | None = None
        self._thread: threading.Thread | None = None

    def density(self, run_id: str, title: str, snapshot: Mapping[str, Any]) -> None:
        """Draw a run's `density.json` as `density.png`, if there is something to draw with."""
        if self._draw:
            self._give(("density", run_id, title, dict(snapshot)))

    def model(self, run_id: str, folder: str, config: Mapping[str, Any]) -> None:
        """Record the network of the last checkpoint in a folder as the run's model. config: `Trial.config()`."""
        self._give((MODEL, run_id, folder, dict(config)))

    def close(self, patience: float) -> int:
        """Wait until all is done, at most so many seconds; returns how many jobs are left undone."""
        if self._thread is None:
            return 0
        self._jobs.put(None)
        deadline, before = time.monotonic() + patience, heard()
        try:
            while self._thread.is_alive() and time.monotonic() < deadline and heard() == before:
                self._thread.join(0.1)  # at a signal whoever waits has waited enough; what is not made is counted
        finally:
            self._end()
        return self._left

    def _give(self, job: tuple[Any, ...]) -> None:
        self._left += 1
        self._jobs.put(job)
        if self._thread is None:
            self._thread = threading.Thread(target=self._hand_over, daemon=True)
            self._thread.start()
            atexit.register(self._end)

    def _hand_over(self) -> None:
        while (job := self._jobs.get()) is not None:
            error = ""
            for _ in range(_TRIES):
                try:
                    pipe = self._connected()
                    pipe.send(job)
                    error = pipe.recv()
                    break
                except (EOFError, OSError) as lost:
                    if self._closed:
                        return
                    self._disconnect()
                    error = f"its process ended {_TRIES} times: {lost!r}"
            if error:
                _log.error("%s of run %s is not recorded: %s", job[0], job[1], masked(error))
            self._left -= 1

    def _disconnect(self) -> None:
        """The next job gets a new process."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._process is not None and self._process.pid is not None:
            self._process.kill()
            self._process.join()

    def _connected(self) -> Connection:
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(
                target=_serve, args=(self._uri, self._draw, theirs), daemon=True, name="lqray-derived"
            )
            try:
                with starting_processes():
                    self._process.start()
            finally:
                theirs.close()
        return self._pipe

    def _end(self) -> None:
        self._closed = True
        atexit.unregister(self._end)
        if self._process is not None and self._process.pid is not None:
            self._process.kill()
            self._process.join()


def _serve(uri: str, draw: Draw | None, pipe: Connection) -> None:
    leave_to_launcher()
    os.nice(19)
    try:
        while True:
            kind, run_id, *details = pipe.recv()
            error = None
            try:
                if kind == MODEL:
                    _keep_model(uri, run_id, details[0], details[1])
                elif draw:
                    _keep_figure(uri, run_id, draw([(details[0], details[1])]))
            except Exception as failed:  # one run's figure must not cost another's
                error = f"{type(failed).__name__}: {failed}"
            pipe.send(error)
    except (EOFError, OSError):
        return  # the launcher is gone


def _keep_figure(uri: str, run_id: str, figure: Any) -> None:
    from lqray.store.client import client_of
    from lqray.store.outage import patiently

    client = client_of(uri)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "density.png"
        figure.savefig(file, dpi=_DPI)
        patiently(lambda: client.log_artifact(run_id, str(file)))


def _keep_model(uri: str, run_id: str, folder: str, config: Mapping[str, Any]) -> None:
    """Raises what went wrong; the run's tag says it, too."""
    from lqray.orchestration.recording.models import log_model
    from lqray.store.client import client_of
    from lqray.store.outage import patiently

    client = client_of(uri)
    try:
        patiently(lambda: log_model(uri, run_id, MODEL, config, folder))
        said = MODEL
    except Exception as error:
        said = masked(f"failed: {type(error).__name__}: {error}")
        raise
    finally:
        patiently(lambda: client.set_tag(run_id, MODEL_STATE, said))
