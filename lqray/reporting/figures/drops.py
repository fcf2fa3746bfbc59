"""Where the learning rate drops: vertical lines over the iterations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lqray.experiment.foreign import json_value
from lqray.reporting.figures.recordings import Recordings
from lqray.store.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST = 8
_LEAST = 1e-15
_LINE: Mapping[str, Any] = {"color": "0.55", "linestyle": (0, (1, 1.5)), "linewidth": 0.8}


def learning_rate_drops(record: Run, last_step: int) -> tuple[float, ...]:
    """In iterations; of a schedule in steps, others fall evenly. last_step: of a finished run, by which those of a
    schedule in epochs are known."""
    if record.params.get("schedule.decay", "step") != "step":
        return ()
    epochs = _numbers(record, "schedule.epochs")
    length = last_step / epochs[0] if epochs else 1.0
    drops = {at * length for at in _numbers(record, "schedule.decay_at")}
    for every in _numbers(record, "schedule.decay_every")[:1]:
        count = min(last_step / (every * length), _MOST + 1.0)
        drops |= {every * length * turn for turn in range(1, int(count) + 1)}
    return tuple(sorted(at for at in drops if 0 < at < last_step))


def draw_drops(panels: Iterable[Axes], recordings: Recordings, last_steps: Mapping[str, int]) -> list[tuple[Any, str]]:
    """A line at every drop of the runs of which the last step is given; the legend's entry, if there is one."""
    from matplotlib.lines import Line2D

    drops: set[float] = set()
    for record in recordings.records:
        if record.run_id in last_steps:
            drops.update(learning_rate_drops(record, last_steps[record.run_id]))
    if len(drops) > _MOST:
        recordings.remark(f"learning-rate drops are not drawn: there are {len(drops)}, more than {_MOST}")
        return []
    for panel in panels:
        for at in sorted(drops):
            panel.axvline(at, zorder=1, gid="learning-rate drop", **_LINE)
    return [(Line2D([], [], **_LINE), "learning-rate drop")] if drops else []


def _numbers(record: Run, key: str) -> list[float]:
    """Of a parameter that is a number or a list; those that can be counts of steps or epochs."""
    try:
        found = json_value(record.params.get(key, "null"))
    except ValueError:
        return []
    numbers = found if isinstance(found, list) else [found]
    return [one for one in numbers if type(one) in (int, float) and _LEAST < one < 1 / _LEAST]
