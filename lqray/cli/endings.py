"""What `lqray run` says at its end, and how it leaves."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

from lqray.cli import shared

if TYPE_CHECKING:
    from lqray.cli.on_end import Ending
    from lqray.orchestration.launch import Ran
    from lqray.orchestration.plan.plan import Plan

_FAILED, _NOT_COMPARED, _LEFT, _OUT_OF_TIME = 1, 2, 3, 4
_MOST_NAMED = 40


def exit_code(ran: Ran, compared: bool) -> int:
    """Of a launch. compared: whether its trials could be."""
    from lqray.orchestration import signals

    if ran.interrupted or ran.lost or signals.heard():
        return _FAILED if ran.lost and not signals.heard() else signals.exit_code()
    if ran.halted or ran.failed_elsewhere or any(result.status == "FAILED" for result in ran.results):
        return _FAILED
    if not compared:
        return _NOT_COMPARED
    return _OUT_OF_TIME if ran.out_of_time else _LEFT if ran.elsewhere else 0


def say_what_failed(ran: Ran, name: str) -> None:
    """name: of the experiment, as a command's arguments."""
    failed = [(result.named.name, result.failure) for result in ran.results if result.failure]
    for trial, failure in failed[:_MOST_NAMED]:
        shared.say(f"{trial} failed ({failure.kind}): {failure.error}", err=True)
    if len(failed) > _MOST_NAMED:
        shared.say(f"... and {len(failed) - _MOST_NAMED} more failed", err=True)
    if failed:
        shared.say(f"With tracebacks, and what to do:  {shared.program()} failures {name}", err=True)


def say_why_it_ended(plan: Plan, ran: Ran) -> None:
    """Where a launch ended before its work was done."""
    from lqray.orchestration import signals

    left = len(plan.due) - len(ran.results)
    if ran.halted:
        shared.say(f"Stopped: {ran.halted}. {left} trials were not begun, and none failed because of it.", err=True)
    if ran.lost and not signals.heard():
        shared.say(f"Ended before its time, with Ray: {left} trials were not started or not finished.", err=True)
        return
    if ran.interrupted:
        shared.say(
            "Interrupted: trials that were running are recorded as KILLED; run the same command again to continue "
            f"({left} were not started).",
            err=True,
        )
    elif signals.heard():
        shared.say("Interrupted: all that was to be run had ended before, and is recorded.", err=True)
    if ran.out_of_time and not ran.interrupted:
        shared.say(f"{_out_of_time(ran)}. The same command continues.", err=True)


def leave(ran: Ran, code: int) -> int:
    """The exit code; leaves where the end was a signal or the loss of Ray."""
    from lqray.orchestration import signals

    if ran.lost:
        _leave_at_once(code)
    if ran.interrupted or signals.heard():
        sys.exit(code)
    return code


def note(ending: Ending, plan: Plan, ran: Ran, code: int) -> None:
    """Take down how a launch ended."""
    from lqray.orchestration import signals

    words = {_FAILED: "failed", _NOT_COMPARED: "failed", _LEFT: "left", _OUT_OF_TIME: "out-of-time", 0: "finished"}
    if ran.interrupted or signals.heard():
        ending.status = "interrupted" if signals.heard() or not ran.lost else "lost"
    else:
        ending.status = words[code]
    ending.code = code
    ending.finished = sum(result.status == "FINISHED" for result in ran.results)
    ending.failed = sum(result.status == "FAILED" for result in ran.results) + len(ran.failed_elsewhere)
    early = sum(result.early for result in ran.results)
    ending.left = max(0, len(plan.due) + plan.more - ending.finished - ending.failed - early)


def _out_of_time(ran: Ran) -> str:
    """What time ended, in words."""
    said = []
    for why in ran.time_reasons:
        stopped = sum(result.stopped == why for result in ran.results)
        left = sum(reason == why for _, reason in ran.left_out)
        parts = [f"{stopped} stopped after a checkpoint"] if stopped else []
        parts += [f"{left} not begun"] if left else []
        if parts:
            said.append(f"{why}: {', '.join(parts)}")
    return "; ".join(said)


def say_what_is_left(ran: Ran, name: str) -> None:
    """Name the trials of the plan that this launch has not run, and say why. name: of the experiment, as a command's
    arguments."""
    lines = [f"{trial}: {why}" for trial, why in what_is_left(ran, name).items()]
    for line in lines[:_MOST_NAMED]:
        shared.say(line, err=True)
    if len(lines) > _MOST_NAMED:
        shared.say(f"... and {len(lines) - _MOST_NAMED} more such trials", err=True)


def what_is_left(ran: Ran, name: str) -> dict[str, str]:
    """Why this launch has not run trials of its plan, by their names. name: of the experiment, as a command's
    arguments."""
    left = {named.name: f"left to {held}, which runs it" for named, held in ran.elsewhere}
    for named in ran.failed_elsewhere:
        left[named.name] = f"failed in another launch; `{shared.program()} failures {name}` shows how"
    return left | {named.name: f"not begun ({why})" for named, why in ran.left_out}


def _leave_at_once(code: int) -> NoReturn:
    """Without the ends that modules have asked for: Ray's would wait for a minute for what is gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
