"""The learning rate over a run, and its length."""

from __future__ import annotations

import bisect
import math

from lqray.experiment.options.schedule import ScheduleOptions


def in_iterations(schedule: ScheduleOptions, steps_per_epoch: int) -> ScheduleOptions:
    """The same schedule, with `iterations` set and everything counted in them; shares of the run stay shares."""
    if schedule.epochs is None:
        return schedule
    return schedule.model_copy(
        update={
            "iterations": schedule.epochs * steps_per_epoch,
            "epochs": None,
            "decay_at": tuple(epoch * steps_per_epoch for epoch in schedule.decay_at),
            "decay_every": schedule.decay_every * steps_per_epoch,
            "warm_up": schedule.warm_up * steps_per_epoch,
        }
    )


def learning_rate(start: float, schedule: ScheduleOptions, iteration: int) -> float:
    """The rate of the step `iteration`, counted from 0: `start`, lowered as `schedule.decay` says, and raised linearly
    over the steps of the warm-up, n of them: step i takes (i + 1) / n of it. The schedule counts iterations."""
    steps = schedule.warm_up or _steps(schedule, schedule.warm_up_share)
    rising = min(1.0, (iteration + 1) / steps) if steps else 1.0
    return start * rising * _decay(schedule, iteration)


def _steps(schedule: ScheduleOptions, share: float) -> int:
    """A share of the run in iterations."""
    assert schedule.iterations is not None
    return round(share * schedule.iterations)


def _decay(schedule: ScheduleOptions, iteration: int) -> float:
    assert schedule.iterations is not None
    match schedule.decay:
        case "step":
            drops = bisect.bisect_right(schedule.decay_at, iteration)
            drops += iteration // schedule.decay_every if schedule.decay_every else 0
            return float(schedule.decay_rate**drops)
        case "exponential":
            return float(schedule.decay_rate ** (iteration / (schedule.decay_every or schedule.iterations)))
        case "cosine":
            begin = _steps(schedule, schedule.warm_up_share)
            done, steps = max(0, iteration - begin), max(1, schedule.iterations - begin)
            left = 0.5 * (1.0 + math.cos(math.pi * done / steps))
        case "wsd":
            left = min(1.0, (schedule.iterations - iteration) / max(1, _steps(schedule, schedule.cooldown)))
    return schedule.final_rate + (1.0 - schedule.final_rate) * left
