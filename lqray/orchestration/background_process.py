"""Processes of lowest priority beside a launch: how they are started, and that no signal to the launch ends them."""

from __future__ import annotations

import os
import signal
from multiprocessing import resource_tracker
from typing import Any

_SHELTERED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def start(process: Any) -> None:
    """Start a process of multiprocessing's, whose function calls `settle_in` first.

    Ctrl-C reaches every process of a terminal. In one that still imports it would be a traceback; hence those signals
    are held back from the start, which a process inherits.
    """
    resource_tracker.ensure_running()  # started below, it would let the signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SHELTERED)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def settle_in() -> None:
    """In the process: leave to the launcher what Ctrl-C, SIGTERM and SIGHUP mean."""
    for number in _SHELTERED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SHELTERED)


def step_back() -> None:
    """In the process, once it can work: take the lowest priority. Before, on a machine that has much to do, its imports
    would take minutes, for which the end of a trial may have to wait."""
    os.nice(19)
