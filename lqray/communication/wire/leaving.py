"""The end of a process whose last collective has only just ended."""

from __future__ import annotations

import atexit
import functools
import time
from pathlib import Path

_LOOKS, _APART, _AT_MOST = 5, 1e-3, 2.0  # looks in a row, seconds between them, seconds in all


@functools.cache
def wait_for_gloo_at_exit() -> None:
    """Let this process end only once gloo's threads have let go of their last tensors; later calls do nothing.

    A thread of gloo says that a collective has ended before it lets go of its tensors, for which it needs Python. Where
    Python ends in between, as after a script's last line, the process dies by SIGABRT ("terminate called without an
    active exception", pytorch issue 190489), also after `destroy_process_group`, as models hold on to their group."""
    atexit.register(_wait_for_gloo)


def _wait_for_gloo() -> None:
    """At exit, while Python still works: give its lock away until all of gloo's threads sleep."""
    end, quiet = time.monotonic() + _AT_MOST, 0
    while quiet < _LOOKS and time.monotonic() < end:
        time.sleep(_APART)
        quiet = 0 if any(map(_works, _gloo_threads())) else quiet + 1


def _gloo_threads() -> list[Path]:
    """The threads that run gloo's collectives, as Linux shows them; elsewhere none."""
    return [each for each in Path("/proc/self/task").glob("*") if _read(each / "comm").startswith("pt_gloo")]


def _works(thread: Path) -> bool:
    """Whether a thread does anything but wait."""
    state = _read(thread / "stat").rpartition(")")[2].split()
    return bool(state) and state[0] != "S"


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # the thread has ended
        return ""
