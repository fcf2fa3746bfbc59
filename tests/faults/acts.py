"""Numbers every act that leaves a process, and fails the chosen one.

Acts are calls to the store, writes, renames and syncs of files, messages between our processes, and starts of
processes. They are counted over all processes of a sweep, in the order in which they begin, in a file that all of them
open.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import functools
import io
import multiprocessing
import os
import signal
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection, context
from pathlib import Path
from typing import Any, Literal

Kind = Literal["store", "file", "message", "process"]
Mode = Literal["none", "before", "after", "kill", "always"]
MODES: tuple[Mode, ...] = ("before", "after", "kill", "always")

PATIENCE = 2.0
"""Seconds that a sweep in which something fails waits for its store."""

KINDS: tuple[Kind, ...] = ("store", "file", "message", "process")
_COUNTERS = struct.Struct("<qq")  # acts so far; 1 + the index in KINDS of those that fail from now on


@dataclass(frozen=True)
class Fault:
    """What happens to the act of this number. before: it fails, and nothing is done. after: it is done, and answers
    with an error all the same. kill: its process gets SIGKILL. always: it fails, and so does every later one of its
    kind."""

    mode: Mode = "none"
    number: int = 0


class Acts:
    """The acts of one sweep. folder: of the sweep; only files below it count. The journal names every act."""

    def __init__(self, folder: Path, fault: Fault) -> None:
        self.folder, self.fault = folder, fault
        self._own = f"{folder}.acts"
        self._lock = threading.Lock()

    @staticmethod
    def journal(folder: Path) -> list[list[str]]:
        """Of each act: number, process, kind, name and what happened to it."""
        file = Path(f"{folder}.acts.journal")
        return [line.split("\t") for line in file.read_text().splitlines()] if file.exists() else []

    @staticmethod
    def processes(folder: Path) -> set[int]:
        """Processes that took part."""
        file = Path(f"{folder}.acts.processes")
        return {int(line) for line in file.read_text().split()} if file.exists() else set()

    def joined(self) -> None:
        """Note that the process that calls takes part."""
        _append(f"{self._own}.processes", f"{os.getpid()}\n")

    def next(self, kind: Kind, name: str) -> Mode:
        """Count an act and say what is to happen to it."""
        with self._lock:
            counters = os.open(self._own, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(counters, fcntl.LOCK_EX)
                count, failing = _COUNTERS.unpack(os.pread(counters, _COUNTERS.size, 0).ljust(_COUNTERS.size, b"\0"))
                count += 1
                chosen: Mode = self.fault.mode if count == self.fault.number else "none"
                if chosen == "always":
                    failing = 1 + KINDS.index(kind)
                if failing and KINDS[failing - 1] == kind:
                    chosen = "always"
                os.pwrite(counters, _COUNTERS.pack(count, failing), 0)
                _append(f"{self._own}.journal", f"{count}\t{os.getpid()}\t{kind}\t{name}\t{chosen}\n")
            finally:
                os.close(counters)
        return chosen


def _append(file: str, text: str) -> None:
    stream = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(stream, text.encode())
    finally:
        os.close(stream)


_acts: Acts | None = None
_inside = threading.local()


def install(acts: Acts) -> None:
    """From now on this process's acts are counted, and those of processes that it starts through multiprocessing."""
    global _acts
    if _acts is None:
        _wrap_store()
        _wrap_files()
        _wrap_messages()
        _wrap_processes()
    _acts = acts
    acts.joined()


def _act(kind: Kind, name: str, call: Callable[[], Any]) -> Any:
    """An act, or a part of one that is counted already."""
    if _acts is None or getattr(_inside, "act", False):
        return call()
    _inside.act = True
    try:
        mode = _acts.next(kind, name)
        if mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if mode in ("before", "always"):
            raise _error(kind, name)
        result = call()
        if mode == "after":
            raise _error(kind, name)
        return result
    finally:
        _inside.act = False


def _error(kind: Kind, name: str) -> Exception:
    """As the outside would say it."""
    if kind == "store" and name == "execute":
        import sqlite3

        from sqlalchemy.exc import OperationalError

        return OperationalError("execute", {}, sqlite3.OperationalError("database is locked"))
    if kind == "store":
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

        return MlflowException("(sqlite3.OperationalError) database is locked", error_code=TEMPORARILY_UNAVAILABLE)
    if kind == "file":
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if kind == "message":
        return BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    return BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _wrapped(function: Callable[..., Any], kind: Kind, name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        return _act(kind, name, lambda: function(*arguments, **options))

    return wrapper


def _wrap_store() -> None:
    """MLflow's client, and statements that are sent to the store's database beside it."""
    from mlflow import MlflowClient
    from sqlalchemy.engine import Connection

    for name in ("__init__", *(name for name in dir(MlflowClient) if not name.startswith("_"))):
        method = getattr(MlflowClient, name)
        if callable(method):
            setattr(MlflowClient, name, _wrapped(method, "store", name))
    Connection.execute = _wrapped(Connection.execute, "store", "execute")  # type: ignore[method-assign]


def _path(place: Any) -> Path:
    """Of a name or a descriptor."""
    return Path(f"/proc/self/fd/{place}").readlink() if isinstance(place, int) else Path(os.fspath(place)).absolute()


def _counts(*places: Any) -> bool:
    if _acts is None:
        return False
    for place in places:
        try:
            path = _path(place)
        except (OSError, TypeError):
            return False
        if not str(path).startswith(f"{_acts.folder}/") or "lqray.db" in str(path):
            return False
    return True


def _wrap_files() -> None:
    for name, paths in {"fsync": 1, "replace": 2, "rename": 2, "link": 2, "unlink": 1, "mkdir": 1}.items():
        setattr(os, name, _of_files(getattr(os, name), name, paths))
    builtins.open = io.open = _opening(io.open)  # type: ignore[assignment]


def _of_files(function: Callable[..., Any], name: str, paths: int) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        if options.get("dir_fd") is not None or not _counts(*arguments[:paths]):
            return function(*arguments, **options)
        return _act("file", f"{name} {_shown(arguments[0])}", lambda: function(*arguments, **options))

    return wrapper


def _opening(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if not set(mode) & set("wax+") or not _counts(file):
            return original(file, mode, *arguments, **options)
        stream = _act("file", f"open {_shown(file)}", lambda: original(file, mode, *arguments, **options))
        return _Stream(stream, _shown(file))

    return opened


class _Stream:
    """A file that is written to."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name = stream, name

    def write(self, content: Any) -> int:
        written: int = _act("file", f"write {self._name}", lambda: self._stream.write(content))
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __iter__(self) -> Any:
        return iter(self._stream)


def _shown(place: Any) -> str:
    assert _acts is not None
    return str(_path(place)).removeprefix(f"{_acts.folder}/")


def _wrap_messages() -> None:
    connection.Connection.send = _wrapped(connection.Connection.send, "message", "send")  # type: ignore[method-assign]


def _wrap_processes() -> None:
    from lqray.orchestration.recording import metrics

    multiprocessing.get_context = lambda method=None: Context()  # type: ignore[assignment, misc]
    metrics._processes = Context()  # type: ignore[assignment]


class Process(context.ForkServerProcess):
    """A process made by one whose acts are counted; its own are counted, too."""

    acts: tuple[Path, Fault]

    def start(self) -> None:
        assert _acts is not None
        self.acts = _acts.folder, _acts.fault
        _act("process", f"start {self.name}", super().start)

    def run(self) -> None:
        from tests.faults.preload import hurry

        folder, fault = self.acts
        hurry(fault)
        install(Acts(folder, fault))
        super().run()


class Context(context.ForkServerContext):
    """Instead of spawning, forks from a server that has imported everything: a case would else take seconds."""

    Process = Process  # type: ignore[assignment]
