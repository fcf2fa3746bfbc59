"""What Ray says of a process that died, put so that the last line names the process."""

from __future__ import annotations

import re
from dataclasses import replace

from lqray.orchestration.failures import Failure, failure_of, lost

_FIELDS = re.compile(r"^\s*(class_name|pid|ip): (\S+)\s*$", re.MULTILINE)
_DETAIL = re.compile(r"Worker exit type: (\w+) Worker exit detail: (.+)", re.DOTALL)
_CODE = re.compile(r"exit code (-?\d+)", re.IGNORECASE)
_DEATHS = ("ActorDiedError", "RayActorError", "WorkerCrashedError", "ray.exceptions.OutOfMemoryError")
_WHAT = {
    "TrialDriver": "the driver of the trial",
    "Mailbox": "the mailbox of the trial's worker group",
    "RayTrainWorker": "a worker of the trial",
}


def death(text: str, what: str = "a process of the trial") -> str:
    """In one line, who died and of what. text: of Ray's exception. what: who it was, where the text does not say."""
    found = dict(_FIELDS.findall(text))
    known = next((words for name, words in _WHAT.items() if name in found.get("class_name", "")), what)
    where = f" (process {found['pid']} on {found['ip']})" if {"pid", "ip"} <= set(found) else ""
    return f"{known}{where} {_cause(text)}"


def _cause(text: str) -> str:
    if "running low on memory" in text or "OutOfMemoryError" in text:
        return "was ended by Ray because its machine ran low on memory (OutOfMemoryError)"
    if "never ran" in text or "before it started running" in text:
        return "was killed, or its node was, while it started"
    detail = _DETAIL.search(text)
    code = _CODE.search(detail[2]) if detail else None
    if code:
        return f"ended with exit code {code[1]}"
    if detail and "connection error code 2" in detail[2]:
        return "was killed (SIGKILL or a crash: it left no exit code)"
    if "owner has died" in text:
        return "ended because the process that made it was killed"
    if "node" in text and ("died" in text or "dead" in text):
        return "ended with its node, which died"
    return "ended without a word"


def failure_of_death(text: str, what: str = "a process of the trial") -> Failure:
    """The failure that the end of a process is. text: of Ray's exception, or Tune's file of it."""
    return lost(f"{text.rstrip()}\n{death(text, what)}")


def failure_of_rank(error: BaseException, rank: int | None) -> Failure:
    """The failure of a rank, or (None) of what a trial's ranks have in common, from what Ray raised for it."""
    failure = failure_of(error, rank)
    if failure.kind not in ("infrastructure", "out_of_memory") or not _is_death(failure.traceback):
        return failure
    what = "a process of the trial" if rank is None else f"the process of rank {rank}"
    named = failure_of_death(failure.traceback, what)
    return replace(named, rank=rank, host=dict(_FIELDS.findall(failure.traceback)).get("ip"), symptom=failure.symptom)


def _is_death(text: str) -> bool:
    return any(name in text for name in _DEATHS)
