"""The learning rate over a run."""

from __future__ import annotations

import bisect

from lqray.experiment.options import ScheduleOptions


def learning_rate(start: float, schedule: ScheduleOptions, iteration: int) -> float:
    """start * decay_rate ** (number of `decay_at` up to and including this iteration)."""
    return start * schedule.decay_rate ** bisect.bisect_right(schedule.decay_at, iteration)
