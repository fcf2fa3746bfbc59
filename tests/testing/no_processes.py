"""`pytest --no-processes`: what starts no process, and so answers fast; `make check` is that and the linters.

No list says which tests these are: one that starts a process is skipped at that moment, with the program's name.
"""

from __future__ import annotations

import os
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

_AT_ONCE = ("git", "uname")
"""Programs that answer within milliseconds."""


def forbid() -> None:
    """From here on, for as long as this process lives."""
    from lqray.orchestration import launch

    sys.addaudithook(_audit)
    BaseProcess.start = _start  # what a fork server is asked for is in no audit event
    launch.run_plan = _launch  # its threads start processes, and cannot skip a test


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("subprocess.Popen", "os.posix_spawn"):
        program = Path(os.fsdecode(arguments[0])).name
        if program not in _AT_ONCE:
            pytest.skip(f"starts {program}")
    elif event in ("os.fork", "os.forkpty"):
        pytest.skip("forks")


def _start(process: BaseProcess) -> None:
    pytest.skip(f"starts {process.name}")


def _launch(*_: Any) -> Any:
    pytest.skip("launches a sweep")
