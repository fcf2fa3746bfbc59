"""Waits for work on Ray, and looks meanwhile whether that Ray still lives.

Ray itself notices after up to a minute that its head is gone, does not return from its calls until then, and then ends
this process. Hence the work has a thread of its own, which can be left behind, and this one is free to hear signals.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from lqray.orchestration.launchers.presence import end_processes_of
from lqray.orchestration.launchers.ray.cluster import Cluster, RayLostError, answers
from lqray.orchestration.signals import exit_code, heard, noting

_POLL_SECONDS = 0.5
_CTRL_C = 130
_ASK_SECONDS = 2.0
_STOP_SECONDS = 90.0  # after Ctrl-C
_HURRY_SECONDS = 20.0
"""After other signals: SLURM, Kubernetes or a shutdown may kill 30 s later, and by then ends must be recorded."""
_RECORD_SECONDS = 600.0
_HEAD_SECONDS = 20.0
"""So long may the head of a cluster that was joined be away: where it is made again, Ray goes on."""
_log = logging.getLogger(__name__)


class _Gone(BaseException):
    """Ends the work that was left behind, at the next thing it wants to record. No Exception, so that nothing takes it
    for a trial's."""


class RayWatch:
    """Of one cluster. lost: what of it is gone, once something is."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._needed = needed_processes(cluster)
        self._away: float | None = None
        self._asked = -_ASK_SECONDS
        self._recording = threading.RLock()
        self._work: threading.Thread | None = None
        self.lost: str | None = None

    def wait_for(self, work: Callable[[], None], stop: Callable[[], None]) -> None:
        """Do the work, and return when it is done. stop: asks it to end; at a signal it has a while for that.

        Raises what it raises; RayLostError within a second or two after Ray is lost, of which a line tells at once,
        with what is left of a Ray of our own ended.
        """
        errors: list[BaseException] = []
        done = threading.Event()

        def do() -> None:
            try:
                work()
            except BaseException as error:
                errors.append(error)
            finally:
                done.set()

        self._work = threading.Thread(target=do, daemon=True, name="lqray-tune")
        try:
            with noting():
                self._work.start()
            self._wait(done)
        except KeyboardInterrupt:
            stop()
            patience = _STOP_SECONDS if exit_code() == _CTRL_C else _HURRY_SECONDS
            if not self._wait(done, patience):
                self._leave(f"it has not ended its trials within {patience:g} s")
            raise
        if errors:
            raise errors[0]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """The work records something: what is begun is done whole, and nothing begins after Ray was lost."""
        with self._recording:
            if self.lost is not None:
                raise _Gone
            yield

    def look(self) -> str | None:
        """What is gone, if anything."""
        for what, process in self._needed:
            if not _lives(process):
                return f"{what} (process {process.pid}) has ended"
        now = time.monotonic()
        if any("head" in what for what, _ in self._needed) or now - self._asked < _ASK_SECONDS:
            return None
        self._asked = now
        if answers(self._cluster.gcs_address):
            self._away = None
            return None
        if self._away is None:
            self._away = now
            _log.warning(
                "the head of the Ray cluster at %s does not answer: the sweep ends in %g s, unless it is back by then",
                self._cluster.gcs_address,
                _HEAD_SECONDS,
            )
        return f"the head at {self._cluster.gcs_address} is gone" if now - self._away > _HEAD_SECONDS else None

    def _wait(self, done: threading.Event, patience: float | None = None) -> bool:
        """Whether it is done, which without a patience it is."""
        deadline = None if patience is None else time.monotonic() + patience
        while deadline is None or time.monotonic() < deadline:
            with noting():  # what a signal raised within `Event.wait` would keep the event's lock for ever
                over = done.wait(_POLL_SECONDS)
            if over:
                return True
            found = self.look()
            if found is not None:
                self._leave(found)
        return False

    def _leave(self, found: str) -> NoReturn:
        text = (
            f"Ray is gone: {found}. Trials that were running are recorded as KILLED; run the same command again to "
            "continue"
        )
        self.lost = text
        if not heard():  # a scheduler sends its signal to Ray's processes, too: then there is nothing to explain
            _log.error("%s", text)
        if self._cluster.folder:
            end_processes_of(self._cluster.folder, patience=0.0)
        if self._recording.acquire(timeout=_RECORD_SECONDS):
            self._recording.release()
        raise RayLostError(text, self._work)


def needed_processes(cluster: Cluster) -> list[tuple[str, Any]]:
    """Of this machine: (what it is, process) of the raylet and, where it is here, the head's gcs_server."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            name, arguments = process.name(), process.cmdline()
        except psutil.Error:
            continue
        # Another raylet of this machine, as an autoscaler's, has its socket beside ours, and is not ours to miss. Nor
        # is a container's, with the same folders and another address.
        ours = {f"--raylet_socket_name={cluster.raylet_socket}"}
        ours |= {f"--node_ip_address={cluster.ip}"} if cluster.ip else set()
        if name == "raylet" and ours.issubset(arguments):
            found.append(("this machine's node manager, the raylet", process))
        elif name == "gcs_server" and cluster.session in " ".join(arguments):
            found.append(("the head, the gcs_server", process))
    return found


def _lives(process: Any) -> bool:
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


class Guarded:
    """A queue that records as `RayWatch.recording` says; everything else of it as it is."""

    def __init__(self, queue: Any, watch: RayWatch) -> None:
        self._queue, self._watch = queue, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    def take(self, *arguments: Any) -> Any:
        """See `lqray.orchestration.queue.queue.TrialQueue`."""
        with self._watch.recording():
            return self._queue.take(*arguments)

    def ended(self, result: Any) -> None:
        """See `lqray.orchestration.queue.queue.TrialQueue`."""
        with self._watch.recording():
            self._queue.ended(result)
