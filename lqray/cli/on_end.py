"""`lqray run --on-end CMD`: a command of the user's own, when a launch ends."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from lqray.cli import shared

SECONDS = 60.0
"""That the command may take."""
_MOST_SHOWN = 200


@dataclass
class Ending:
    """How a launch ended: what the command is told. report: the command that shows its trials."""

    experiment: str
    status: str = "lost"
    finished: int = 0
    failed: int = 0
    left: int = 0
    code: int = 1
    report: str = ""

    def variables(self) -> dict[str, str]:
        """Of the command's environment."""
        return {
            "LQRAY_EXPERIMENT": self.experiment,
            "LQRAY_STATUS": self.status,
            "LQRAY_FINISHED": str(self.finished),
            "LQRAY_FAILED": str(self.failed),
            "LQRAY_LEFT": str(self.left),
            "LQRAY_EXIT_CODE": str(self.code),
            "LQRAY_REPORT": self.report,
        }


@contextmanager
def told_of_end(command: str | None, ending: Ending) -> Iterator[None]:
    """Around a launch, which takes down how it ends: then the command is run, also where something is raised."""
    from lqray.orchestration import signals

    try:
        yield
    except BaseException as error:
        if signals.heard():
            ending.status, ending.code = "interrupted", signals.exit_code()
        elif isinstance(error, SystemExit) and isinstance(error.code, int):
            ending.code = error.code
        _tell(command, ending)
        raise
    _tell(command, ending)


def _tell(command: str | None, ending: Ending) -> None:
    """That the command fails, or takes too long, is said in a line and changes nothing."""
    from lqray.orchestration import signals

    if command is None:
        return
    with signals.noting():  # a second Ctrl-C, or the scheduler's SIGTERM, lets it end, too
        if word := _failure(command, ending.variables()):
            shared.say(f"--on-end: {word}: {command[:_MOST_SHOWN]}", err=True)


def _failure(command: str, variables: Mapping[str, str]) -> str | None:
    """What went wrong, in words."""
    try:
        process = subprocess.Popen(
            command, shell=True, env=os.environ | variables, stdin=subprocess.DEVNULL, start_new_session=True
        )
    except (OSError, ValueError) as error:
        return f"the command cannot be started ({error})"
    try:
        code = process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"the command was ended after {SECONDS:g} s"
    if code < 0:
        return f"the command was killed by {signal.Signals(-code).name}"
    return f"the command's exit code is {code}" if code else None
