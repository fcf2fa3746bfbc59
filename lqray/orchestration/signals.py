"""What Ctrl-C, SIGTERM and SIGHUP do to a launch, and how they stay away from the processes that it starts.

A launch hears all three alike; only its exit code, 128 and the signal's number, tells them apart. One that was ignored
when the process began stays ignored (SIGINT of a shell's background job, SIGHUP under nohup). What the first one does
depends on where it meets the launch: while it plans, the process leaves at once; while trials run, Interrupted is
raised; while something is being recorded, it is noted and acted on afterwards. A second one is answered with a word. A
third gives up, but not within the first seconds: a key that is held down, or a wrapper that passes Ctrl-C on once more,
must not cost what is just being recorded.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any, Literal, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GIVE_UP_SECONDS = 5.0

Mode = Literal["leave", "raise", "note"]
"""Where the first signal meets the launch: it leaves at once, Interrupted is raised, or it is acted on afterwards."""


class Interrupted(KeyboardInterrupt):
    """A signal ends the launch."""


@dataclass
class _State:
    """Of this process. before: the handlers that were found, None while none is ours. first, at: the first signal and
    when it came. met: something has been done about it."""

    mode: Mode = "raise"
    before: dict[signal.Signals, Any] | None = None
    first: int | None = None
    at: float = 0.0
    count: int = 0
    met: bool = False
    ignored: set[signal.Signals] = field(default_factory=set)


_state = _State()


def heard() -> int:
    """How many signals have come since the launch began."""
    return _state.count


def heard_seconds_ago() -> float | None:
    """Time since the first signal; None without one."""
    return time.monotonic() - _state.at if _state.count else None


def exit_code() -> int:
    """Of a launch that was interrupted: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    return 128 + (_state.first or signal.SIGINT)


def raise_if_heard() -> None:
    """Raise Interrupted if a signal has come, also where something has swallowed the one that was raised before. Only
    within `heeded`: one that an earlier launch of this process heard is over."""
    if _state.before is not None and _state.count and _on_main_thread():
        _state.met = True
        raise Interrupted


@contextmanager
def heeded(mode: Mode = "raise") -> Iterator[None]:
    """Within it, signals mean what this module says. Nested ones change nothing; off the main thread, where handlers
    are not ours to set, it does nothing."""
    global _state
    if not _on_main_thread() or _state.before is not None:
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ignored = {number for number, handler in before.items() if handler == signal.SIG_IGN}
    _state = _State(mode, before, ignored=ignored)
    _install()
    try:
        yield
    finally:
        _state.before = None
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def pass_on() -> None:
    """After `heeded`, in a process that goes on: a SIGTERM or SIGHUP, which told more than the launch to end, is sent
    once more, to whoever heard it before."""
    if _state.before is None and _state.first not in (None, signal.SIGINT):
        number, _state.first = _state.first, None
        signal.raise_signal(number)


def from_here(mode: Mode) -> None:
    """What the first signal does from now on, within `heeded`."""
    if _on_main_thread() and _state.before is not None:
        _state.mode = mode
        _act()


@contextmanager
def raising() -> Iterator[None]:
    """Within it, the first signal raises Interrupted, also one that has been noted. Sets the handlers anew, where
    somebody else has set others meanwhile."""
    with heeded(), _mode("raise"):
        yield


@contextmanager
def noting() -> Iterator[None]:
    """Within it, the first signal waits for the end of what must not be left half done."""
    if _state.before is None:
        yield
        return
    with _mode("note"):
        yield


@contextmanager
def starting_processes() -> Iterator[None]:
    """Around every start of a process: it begins with the signals blocked, so that none ends it, or makes it write a
    traceback, before it has said what they mean to it (`leave_to_launcher`), and none interrupts the start half way.

    A program that is not ours keeps them blocked: give it a time-out.
    """
    with noting():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            # The first process of multiprocessing would start its tracker, too, which unblocks signals here.
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_launcher() -> None:
    """Called first in a process that a launch has started: the terminal sends Ctrl-C, and a scheduler SIGTERM, to every
    process of a launch, but it alone decides what that means."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextmanager
def _mode(mode: Mode) -> Iterator[None]:
    if not _on_main_thread():
        yield
        return
    before, _state.mode = _state.mode, mode
    try:
        _install()
        _act()
        yield
    finally:
        _state.mode = before
    _act()


def _install() -> None:
    for number in SIGNALS:
        if number not in _state.ignored:
            signal.signal(number, _on_signal)


def _act() -> None:
    """Do what is due about a signal that was noted."""
    if _state.before is None or not _state.count or _state.met or _state.mode == "note":
        return
    _state.met = True
    if _state.mode == "leave":
        _leave("Interrupted.")
    raise Interrupted


def _on_signal(number: int, frame: FrameType | None) -> None:
    state = _state
    state.count += 1
    if state.count == 1:
        state.first, state.at = number, time.monotonic()
        other = signal.getsignal(signal.SIGINT)
        if state.mode == "raise" and callable(other) and other is not _on_signal:
            state.met = True  # what runs the trials has a way of its own to end them
            other(signal.SIGINT, frame)
        else:
            _act()
    elif state.count > 2 and time.monotonic() - state.at > _GIVE_UP_SECONDS:
        _leave("Given up: trials that were running stay RUNNING in the store until the next `lqray run FILE`.")
    else:
        _say("It is being ended, and how each trial stands recorded. Some seconds from now, once more gives up.")


def _leave(word: str) -> NoReturn:
    _say(word)
    if os.isatty(1):
        with suppress(OSError):
            os.write(1, b"\x1b[?25h")  # the cursor, which a live display hides
    os._exit(exit_code())


def _say(text: str) -> None:
    """From a handler, which may have interrupted a stream in the middle of a write."""
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


def _on_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
