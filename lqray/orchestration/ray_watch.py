"""Is the Ray that trials run on still there? Ray itself notices after up to a minute, and then ends this process."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lqray.orchestration.cluster import Cluster, answers
from lqray.orchestration.launcher import LaunchInterrupted
from lqray.orchestration.presence import end_processes_of

_POLL_SECONDS = 0.5
_AGAIN_SECONDS = 5.0
_HEAD_SECONDS = 20.0
"""So long may the head of a cluster that was joined be away: where it is made again, Ray goes on."""
_SIGNAL = signal.SIGUSR2
_log = logging.getLogger(__name__)


class RayLostError(LaunchInterrupted):
    """A process without which Ray does not go on has ended; says which, and what to do."""


class _Leave(BaseException):
    """Raised in the thread that waits for Ray: it is no Exception, so that nothing takes it for a trial's."""


class RayWatch:
    """Looks twice a second whether Ray lives. Once it does not: one line says so, what is left of a Ray of our own is
    ended, and whoever is within `watching` leaves with RayLostError."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._needed = needed_processes(cluster)
        self._away: float | None = None
        self._over = threading.Event()
        self._recording = 0
        self._main = threading.get_ident()
        self._signals = threading.current_thread() is threading.main_thread()
        self.lost: str | None = None
        """What is gone."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While it lasts Ray is looked at. Raises RayLostError, at the latest at its end."""
        before = signal.signal(_SIGNAL, self._leave) if self._signals else None
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        except _Leave:
            pass
        except Exception:
            if self.lost is None:  # else it is what comes of that
                raise
        finally:
            self._over.set()
            thread.join()
            if self._signals:
                signal.signal(_SIGNAL, before)
        if self.lost is not None:
            raise RayLostError(self.lost)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Something is written down, which the loss of Ray must not cut in two."""
        self.check()
        self._recording += 1
        try:
            yield
        finally:
            self._recording -= 1
        self.check()

    def check(self) -> None:
        """Leave, when Ray is gone."""
        if self.lost is not None:
            raise _Leave

    def look(self) -> str | None:
        """What is gone, if anything."""
        for what, process in self._needed:
            if not _lives(process):
                return f"{what} (process {process.pid}) has ended"
        if any("head" in what for what, _ in self._needed) or answers(self._cluster.gcs_address):
            self._away = None
            return None
        now = time.monotonic()
        if self._away is None:
            self._away = now
            _log.warning(
                "the head of the Ray cluster at %s does not answer: the sweep ends in %g s, unless it is back by then",
                self._cluster.gcs_address,
                _HEAD_SECONDS,
            )
        return f"the head at {self._cluster.gcs_address} is gone" if now - self._away > _HEAD_SECONDS else None

    def _watch(self) -> None:
        while not self._over.wait(_POLL_SECONDS):
            found = self.look()
            if found is None:
                continue
            self.lost = (
                f"Ray is gone: {found}. Trials that were running are recorded as KILLED; run the same command again to "
                "continue"
            )
            _log.error("%s", self.lost)
            if self._cluster.folder:
                end_processes_of(self._cluster.folder, patience=0.0)
            while self._signals and not self._over.is_set():
                signal.pthread_kill(self._main, _SIGNAL)
                self._over.wait(_AGAIN_SECONDS)
            return

    def _leave(self, number: int, frame: FrameType | None) -> None:
        if not self._recording:
            self.check()


def needed_processes(cluster: Cluster) -> list[tuple[str, Any]]:
    """Of this machine: (what it is, process) of the raylet and, where it is here, the head's gcs_server."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            name, line = process.name(), " ".join(process.cmdline())
        except psutil.Error:
            continue
        if name == "raylet" and cluster.raylet_socket in line:
            found.append(("this machine's node manager, the raylet,", process))
        elif name == "gcs_server" and cluster.session in line:
            found.append(("the head, the gcs_server,", process))
    return found


def _lives(process: Any) -> bool:
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


class Guarded:
    """A queue whose store is written to without the loss of Ray cutting in, see `RayWatch.recording`; everything else
    of it as it is."""

    def __init__(self, queue: Any, watch: RayWatch) -> None:
        self._queue, self._watch = queue, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    def take(self, *arguments: Any) -> Any:
        """See `lqray.orchestration.queue.TrialQueue`."""
        with self._watch.recording():
            return self._queue.take(*arguments)

    def ended(self, result: Any) -> None:
        """See `lqray.orchestration.queue.TrialQueue`."""
        with self._watch.recording():
            self._queue.ended(result)
