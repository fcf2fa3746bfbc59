"""What the ranks of a trial wrote: kept beside its checkpoints, also where those are in an object store."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lqray.orchestration.failures import failure_of
from lqray.orchestration.private_folder import make_private
from lqray.training.storage import Folder, LocalFolder, cached_path, cached_root, open_folder

if TYPE_CHECKING:
    from lqray.orchestration.worker.task import WorkerTask

_UPLOAD_SECONDS = 10.0
_log = logging.getLogger(__name__)


def host_and_process() -> str:
    """As `lqray status` and logs show it."""
    return f"{socket.gethostname()}:{os.getpid()}"


@contextmanager
def output_to_log(task: WorkerTask, rank: int) -> Iterator[None]:
    """Within it, whatever this process writes to its standard output and error goes to the end of the rank's log.

    Objects cannot be appended to. For an object store the log is a file of this machine, of which a copy is uploaded
    every ten seconds while it grows, and at the end; the file goes when all of it has arrived.
    """
    folder, name = open_folder(task.folder), log_name(rank)
    with ExitStack() as stack:
        if isinstance(folder, LocalFolder):
            file = folder.path / name
        else:
            make_private(cached_root())
            file = cached_path(task.folder) / name
            stack.enter_context(_uploaded(file, folder))
        stack.enter_context(_output_to(file, f"{task.name} ({task.trial_id}), rank {rank}", task.backend))
        yield


def log_name(rank: int) -> str:
    """Of a rank's log, in its trial's folder."""
    return f"rank-{rank}.log"


def read_logs(address: str) -> Iterator[tuple[int, str]]:
    """(rank, text) of every log in a trial's folder. Raises OSError, StorageError."""
    folder = open_folder(address)
    found = (name.removeprefix("rank-").removesuffix(".log") for name in folder.names("rank-*.log"))
    for rank in sorted(int(rank) for rank in found if rank.isdecimal() and len(rank) < 10):
        yield rank, folder.read(log_name(rank)).decode("utf-8", errors="replace")


@contextmanager
def _output_to(file: Path, who: str, backend: str) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        with suppress(OSError):  # a full disk is said by what cannot do without: the checkpoint
            stream.write(f"{when} {who}, {host_and_process()}, {backend}\n")
            stream.flush()
        saved = [(number, os.dup(number)) for number in (1, 2)]
        try:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, _ in saved:
                os.dup2(stream.fileno(), number)
            yield
        except Exception as error:
            with suppress(OSError):
                stream.write(failure_of(error).traceback)
                stream.flush()
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, original in saved:
                os.dup2(original, number)
                os.close(original)


@contextmanager
def _uploaded(file: Path, folder: Folder) -> Iterator[None]:
    """Within it and at its end, `file`, which begins with what an earlier start left, is copied to `folder`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        before = folder.read(file.name)
    except FileNotFoundError:
        before = b""
    # A start that was killed here may have left more than it could upload.
    if not (file.exists() and file.read_bytes().startswith(before)):
        file.write_bytes(before)
    over = threading.Event()
    arrived = len(before)

    def upload() -> None:
        nonlocal arrived
        content = file.read_bytes()
        if len(content) > arrived:
            folder.write(file.name, content)
            arrived = len(content)

    def keep_uploading() -> None:
        while not over.wait(_UPLOAD_SECONDS):
            try:
                upload()
            except OSError as error:  # the next attempt, or the last one, may do better
                _log.warning("%s waits in %s: %s", file.name, file, error)

    thread = threading.Thread(target=keep_uploading, daemon=True, name="lqray-log-upload")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        try:
            upload()
            file.unlink()
        except OSError as error:  # a trial does not fail because of its log
            _log.error("%s stays on %s in %s: %s", file.name, socket.gethostname(), file, error)
