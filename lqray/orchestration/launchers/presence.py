"""A launch's presence on its machine: a folder of its own for temporary files, and the cores it has taken.

All launches of a user have theirs in one folder. Each holds a lock on its own as long as it lives, however it ends, so
that another one can tell: what a launch that was killed left is removed, and its cores are free.
"""

from __future__ import annotations

import fcntl
import json
import logging
import multiprocessing
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lqray.experiment.foreign import json_value
from lqray.orchestration.private_folder import make_private

_LONGEST_ROOT = 32
"""Characters. Ray makes sockets below it, whose whole path Linux limits to 107."""
_CLAIM = "claim"
MARK_VARIABLE = "LQRAY_LAUNCH_FOLDER"
"""In the environment of the processes that belong to a launch's own Ray, and of theirs: its folder."""
_END_SECONDS = 5.0
_REMOVALS = 50
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """Of a machine's cores: how many a launch has taken, of how many, and what others hold: (process, cores)."""

    cores: int
    total: int
    others: tuple[tuple[int, int], ...] = ()

    @property
    def free(self) -> int:
        """Cores that no other launch holds."""
        return max(0, self.total - sum(cores for _, cores in self.others))

    def __str__(self) -> str:
        """For people, when there are others."""
        held = ", ".join(f"process {pid} has {cores}" for pid, cores in self.others)
        less = "" if self.cores <= self.free else f", though only {self.free} are free: all of them will be slower"
        return (
            f"another lqray shares this machine's {self.total} core{'s' * (self.total != 1)} ({held}); "
            f"this launch takes {self.cores}{less}"
        )


class Presence:
    """Use as a context; `folder` is there, for this user alone, until its end.

    root: where all launches of this user have theirs; by default beside other temporary files.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = root or _root()
        self._held = -1
        self._used = 0
        self.folder = self._root

    def __enter__(self) -> Presence:
        with _locked(self._root):
            _remove_dead(self._root)
            self.folder = Path(tempfile.mkdtemp(prefix="", dir=self._root))
            self._held = os.open(self.folder / _CLAIM, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._held, fcntl.LOCK_EX)
            self._write(0)
        return self

    def __exit__(self, *_: object) -> None:
        with _locked(self._root):
            _remove(self.folder)
            os.close(self._held)
            with suppress(OSError):  # another launch is there
                self._root.rmdir()

    def take(self, need: int, most: int | None = None, total: int | None = None) -> Share:
        """Take cores: what other launches leave, at most `most`, and never less than `need`. total: of the machine."""
        total = total or available_cores()
        with _locked(self._root):
            others = tuple(sorted((pid, cores) for pid, cores in self._others() if cores))
            free = total - sum(cores for _, cores in others)
            cores = max(need, free if most is None else min(free, most))
            self._write(cores)
        return Share(cores, total, others)

    def use(self, cores: int) -> None:
        """As `take` of just so many; says it once when the machine has less to give."""
        if cores != self._used:
            self._used = cores
            share = self.take(cores, cores)
            if share.others and cores > share.free:
                _log.warning("%s", share)

    def _write(self, cores: int) -> None:
        content = json.dumps({"pid": os.getpid(), "cores": cores}).encode()
        os.ftruncate(self._held, 0)
        os.pwrite(self._held, content, 0)

    def _others(self) -> Iterator[tuple[int, int]]:
        for folder in self._root.iterdir():
            if folder != self.folder and _lives(folder):
                with suppress(OSError, ValueError, KeyError, TypeError):  # it ends just now
                    claim = json_value((folder / _CLAIM).read_bytes())
                    yield int(claim["pid"]), int(claim["cores"])


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _root() -> Path:
    """Of this user. /tmp where the temporary folder's name is too long for Ray."""
    name = f"lqray-{os.getuid()}"
    chosen = Path(tempfile.gettempdir()) / name
    return chosen if len(str(chosen)) <= _LONGEST_ROOT else Path("/tmp") / name


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """While no other launch comes, goes or counts. Raises PermissionError when the folder is not this user's alone."""
    while True:
        try:
            make_private(root)
            held = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        fcntl.flock(held, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(held), root.stat()):
                break
        os.close(held)  # its last launch has just removed it
    try:
        yield
    finally:
        os.close(held)


def end_processes_of(folder: Path, patience: float = _END_SECONDS) -> None:
    """End the processes of the Ray that a launch has had in its folder; those that are ending have `patience`
    seconds."""
    import psutil

    ours = {child.pid for child in multiprocessing.active_children()}  # one may have been started as Ray's were
    left = [process for process in psutil.process_iter() if process.pid not in ours and _marked(process, folder)]
    _, alive = psutil.wait_procs(left, timeout=patience)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=_END_SECONDS)


def _marked(process: Any, folder: Path) -> bool:
    """Whether it carries the mark, or writes into the Ray session in `folder`: Ray's agents write their long names over
    the beginning of their environment, and the mark may stand there."""
    import psutil

    if process.pid == os.getpid():
        return False
    wanted = f"{MARK_VARIABLE}={folder}"
    own = Path(f"/proc/{process.pid}")
    with suppress(psutil.Error, OSError):  # it has just ended, or is another user's
        if not Path("/proc/self/environ").exists():
            return bool(process.environ().get(MARK_VARIABLE) == str(folder))
        if wanted.encode() in (own / "environ").read_bytes().split(b"\0"):
            return True
        logs = f"{folder.resolve()}/session_"
        return any(_writes_below(logs, descriptor, own) for descriptor in (own / "fd").iterdir())
    return False


def _writes_below(place: str, descriptor: Path, process: Path) -> bool:
    """Whether an open file of a process is there, and open for writing."""
    with suppress(OSError):  # it has just been closed
        if str(descriptor.readlink()).startswith(place):
            flags = re.search(r"flags:\s*(\d+)", (process / "fdinfo" / descriptor.name).read_text())
            return flags is not None and int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY
    return False


def _remove_dead(root: Path) -> None:
    for folder in root.iterdir():
        if not _lives(folder):
            _remove(folder)


def _remove(folder: Path) -> None:
    """All of it, and first what still writes there: processes of a Ray that ends."""
    for _ in range(_REMOVALS):
        end_processes_of(folder, patience=0.0)
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def _lives(folder: Path) -> bool:
    try:
        held = os.open(folder / _CLAIM, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(held)
    return False
