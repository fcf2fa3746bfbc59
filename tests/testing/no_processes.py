"""`pytest --no-processes`: what starts no process, and so answers fast; `make check` is that and the linters.

No list says which tests these are: one that starts a process is skipped at that moment, with the program's name. A
thread cannot skip a test, which would wait for it: what one starts does start, and what is known to start processes in
threads is skipped before.
"""

from __future__ import annotations

import os
import sys
import threading
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

_AT_ONCE = ("git", "uname")
"""Programs that answer within milliseconds."""


def forbid() -> None:
    """From here on, for as long as this process lives."""
    from lqray.orchestration import launch
    from lqray.orchestration.recording.metrics import MetricDelivery

    sys.addaudithook(_audit)
    BaseProcess.start = _start  # what a fork server is asked for is in no audit event
    launch.run_plan = _launch
    MetricDelivery.__init__ = _deliver


_started = BaseProcess.start


def _can_skip() -> bool:
    return threading.current_thread() is threading.main_thread()


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _can_skip():
        return
    if event in ("subprocess.Popen", "os.posix_spawn"):
        program = Path(os.fsdecode(arguments[0])).name
        if program not in _AT_ONCE:
            pytest.skip(f"starts {program}")
    elif event in ("os.fork", "os.forkpty"):
        pytest.skip("forks")


def _start(process: BaseProcess) -> None:
    if _can_skip():
        pytest.skip(f"starts a {type(process).__name__}")
    _started(process)


def _launch(*_: Any) -> Any:
    pytest.skip("launches a sweep")


def _deliver(*_: Any) -> None:
    pytest.skip("starts lqray-metric-writer")
