"""What earlier launches of an experiment have recorded of one metric: for early stopping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lqray.store.outage import patiently
from lqray.store.runs import number


@dataclass(frozen=True)
class Evaluation:
    """The value of a metric after `iteration` steps of a trial. time: milliseconds since the epoch."""

    trial_id: str
    iteration: int
    value: float
    time: int


def stored_evaluations(client: Any, runs: Mapping[str, str], metric: str) -> list[Evaluation]:
    """Of the trials with these runs (by trial id), in the order in which they were made. NaN is not stored: a trial
    that has it says so again with its next evaluation."""
    found: list[Evaluation] = []
    for trial_id, run_id in runs.items():
        history = patiently(lambda run_id=run_id: client.get_metric_history(run_id, metric))  # type: ignore[misc]
        for one in history:
            found.append(Evaluation(trial_id, one.step, number(one.value), one.timestamp))
    return sorted(found, key=lambda one: (one.time, one.iteration, one.trial_id))
