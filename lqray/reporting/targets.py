"""To the target: the one definition, for tables, files and figures.

A run is at the target at the first evaluation at which its metric is finite and at least as good: as it is, or, where
that is wanted, as the mean of the N evaluations around it (`histories.smoothed`, as figures draw it). What it took is
the step of that evaluation, and the seconds of training and the bytes that a process had sent by then: the recorded
sums at that step; between two of them, or before the first, on the line that joins them, which begins with nothing at
step 0; beyond the last, or where a run recorded no sums, so much a step times the steps. Of a run that has kept none of
these over its steps, as in an export of little, its last sum or its last value of a step counts, as if all were alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lqray.experiment.foreign import whole_number
from lqray.experiment.headline import is_share, name_of, written
from lqray.reporting.histories import History, smoothed
from lqray.store.runs import Run

if TYPE_CHECKING:
    from numpy.typing import NDArray

BYTES, SECONDS = "wire/total_bytes_sent", "time/training_seconds"
BYTES_A_STEP, SECONDS_A_STEP = "wire/bytes_sent", "time/seconds_per_step"
_A_STEP = {BYTES: BYTES_A_STEP, SECONDS: SECONDS_A_STEP}
_ROUNDING = 1e-12
"""Of means, relative to the target: three evaluations at the target are there."""
COUNTED = (SECONDS, BYTES)
COSTS = ("steps", "seconds", "bytes")
Read = Callable[[str], Mapping[str, History]]
"""Histories of a metric, by run id; reads a metric once."""


class TargetError(ValueError):
    """A target that is no number, or none that the metric can be at."""


@dataclass(frozen=True)
class ToTarget:
    """What a run took. bytes: sent by a process. seconds, bytes: NaN where they are not known."""

    steps: float
    seconds: float
    bytes: float


def check_target(target: float, metric: str, values: Iterable[float]) -> None:
    """Raises TargetError of a target that is not finite, and of one beyond 0 to 1 for a share of examples. values: of
    the metric; where one of them is beyond that, too, it is no share."""
    if not math.isfinite(target):
        raise TargetError(f"found --target {target}; allowed: a finite number")
    if is_share(metric) and not 0 <= target <= 1 and all(0 <= one <= 1 for one in values if math.isfinite(one)):
        hint = f"did you mean {target / 100:g}?" if 1 < target <= 100 else "allowed: 0 to 1"
        raise TargetError(f"found --target {target:g}; {name_of(metric)} is a share: {hint}")


def first_at(points: History | None, target: float, higher: bool, smooth: int = 0) -> int | None:
    """The step of the first evaluation that is at the target. higher: whether more is better. smooth: evaluations of
    the running mean, 0 for none."""
    if points is None or not len(points):
        return None
    values = smoothed(points, smooth).values
    near = _ROUNDING * abs(target) if smooth > 1 else 0.0
    there = np.isfinite(values) & (values >= target - near if higher else values <= target + near)
    return int(points.steps[there.argmax()]) if there.any() else None


def to_target(
    runs: Sequence[Run], read: Read, metric: str, target: float, higher: bool, smooth: int = 0
) -> dict[str, ToTarget]:
    """By run id, of those that were there."""
    found, histories = {}, read(metric)
    for one in runs:
        step = first_at(histories.get(one.run_id), target, higher, smooth)
        if step is not None:
            at = np.asarray([step], np.float64)
            seconds, sent = (float(counted(read, one, at, what)[0]) for what in COUNTED)
            found[one.run_id] = ToTarget(float(step), seconds, sent)
    return found


def until(read: Read, run_id: str, steps: NDArray[np.float64], what: str) -> NDArray[np.float64]:
    """BYTES or SECONDS of a run until each of these steps, (n,); NaN where they are not known."""
    points = read(what).get(run_id)
    if points is None or not np.isfinite(points.values).all():
        return steps * _a_step(read, run_id, what)
    known = np.interp(steps, np.append(0, points.steps), np.append(0.0, points.values))
    beyond = steps > points.steps[-1]
    if beyond.any():
        known[beyond] = np.fmax(known[beyond], steps[beyond] * _a_step(read, run_id, what))
    return np.asarray(known)


def counted(read: Read, run: Run, steps: NDArray[np.float64], what: str) -> NDArray[np.float64]:
    """As `until`; of a run that kept no history of it, what its last values say."""
    found = until(read, run.run_id, steps, what)
    if not np.isnan(found).any():
        return found
    iterations, total = whole_number(run.params.get("schedule.iterations", ""), 0), run.metrics.get(what, math.nan)
    each = total / iterations if iterations and math.isfinite(total) else run.metrics.get(_A_STEP[what], math.nan)
    return np.where(np.isnan(found), steps * each, found)


def target_note(metric: str, target: float, smooth: int) -> str:
    """What is said of it, a sentence."""
    mean = f" as the mean of {smooth} evaluations" if smooth > 1 else ""
    return (
        f"To {written(metric, target)}: until the first evaluation that was there{mean}, of the runs that reached it."
    )


def some_of(reached: int, runs: int) -> str:
    """Nothing where all runs of a group reached the target; else how many did, in brackets."""
    return f" ({reached} of {runs})" if reached < runs else ""


def _a_step(read: Read, run_id: str, what: str) -> float:
    """Mean over the recorded steps."""
    points = read(_A_STEP[what]).get(run_id)
    usable = points.values[np.isfinite(points.values)] if points is not None else ()
    return float(np.mean(usable)) if len(usable) else math.nan
