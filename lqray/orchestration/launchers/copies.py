"""Worker processes that begin as copies of one that has imported torch.

To import it, and what DDP and the optimizers import of its compiler, takes a process some seconds of a core; a copy of
a process that has done so begins at once. The original is multiprocessing's fork server, which does nothing else: it
has no threads, and has not touched a GPU.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from lqray.orchestration.signals import raise_if_heard, starting_processes

IMPORTED = (
    "lqray.orchestration.launchers.inline",
    "torch._dynamo",
    "lqray.training.worker",
    "lqray.communication.reductions",
    *("scipy.linalg", "scipy.optimize", "scipy.special"),  # of those that fit levels
)


@contextmanager
def copying(folder: Path) -> Iterator[BaseContext]:
    """A context of multiprocessing whose processes are such copies, from the second of a launch on; elsewhere than on
    Linux, where libraries do not outlive being copied, they begin from nothing. folder: for the socket at which copies
    are asked for; it may be removed afterwards. Copies have the environment that the original began with: see
    `take_over`."""
    if not sys.platform.startswith("linux"):
        yield multiprocessing.get_context("spawn")
        return
    original: Any = forkserver._forkserver
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    # Else it would make a folder in that for temporary files, where paths may be longer than a socket's may be, and
    # leave it there when the launch is killed.
    settings: dict[str, Any] = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    before, running = settings.get("tempdir"), original._forkserver_pid is not None
    settings["tempdir"] = str(folder)
    try:
        yield context
    finally:
        settings["tempdir"] = before
        if not running and original._forkserver_pid is not None:
            with suppress(ProcessLookupError):  # by itself it would take down what it imported, for a second or two
                os.kill(original._forkserver_pid, signal.SIGKILL)
            original._stop()


def wait_for_the_original(context: BaseContext) -> None:
    """Until it has imported what it is to, and copies begin at once: to be called where signals are heeded, which they
    are not while processes are started. Raises what a signal raises."""
    original: Any = forkserver._forkserver
    if context.get_start_method() != "forkserver":
        return
    with starting_processes():
        original.ensure_running()
    first = threading.Thread(target=_make_one, args=(context,), daemon=True)
    first.start()
    while first.is_alive():
        raise_if_heard()
        first.join(0.05)


def _make_one(context: BaseContext) -> None:
    with suppress(OSError, EOFError):  # as whoever starts the next one will see
        process = context.Process(target=_nothing)  # type: ignore[attr-defined]
        process.start()
        process.join()


def _nothing() -> None:
    os._exit(0)


def take_over(environment: Mapping[str, str]) -> None:
    """Called first in a copy: have the environment of the one that asked for it."""
    os.environ.clear()
    os.environ.update(environment)
