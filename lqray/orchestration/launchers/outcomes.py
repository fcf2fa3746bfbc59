"""From what the ranks of a trial say to how the trial ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lqray.orchestration.failures import HALTING, root_cause
from lqray.orchestration.launchers.contract import TrialResult, Work
from lqray.orchestration.worker.task import Outcome


def result_of(work: Work, outcomes: Mapping[int, Outcome], asked: str | None, drained: str = "") -> TrialResult:
    """The trial's result: failed if any rank failed, else what rank 0 says. asked: why the launcher wanted it to
    stop, if it did. drained: a machine of its that is being drained, which stops it, too."""
    first = outcomes.get(0, Outcome())
    seen: dict[str, Any] = {
        "snapshot": first.snapshot,
        "examples": first.examples,
        "lost": first.lost,
        "levels": first.levels,
        "points": first.points,
    }
    failures = {rank: outcome.failure for rank, outcome in outcomes.items() if outcome.failure}
    halting = [failure for failure in failures.values() if failure.kind in HALTING]
    if halting:
        halts, stopped = halting[0].error.partition(": ")[2], HALTING[halting[0].kind]
        return TrialResult(work.named, "KILLED", run_id=work.run_id, stopped=stopped, halts=halts, **seen)
    if failures:
        return TrialResult(work.named, "FAILED", run_id=work.run_id, failure=root_cause(failures), **seen)
    if first.stopped is None:
        return TrialResult(work.named, "FINISHED", first.metrics, work.run_id, **seen)
    early = bool(first.stopped)
    why, moves = first.stopped or asked, False
    if why is None and drained:
        why, moves = f"its machine {drained} is being drained", True
    return TrialResult(work.named, "KILLED", run_id=work.run_id, stopped=why, early=early, moves=moves, **seen)
