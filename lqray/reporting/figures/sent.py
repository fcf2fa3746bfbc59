"""Bytes that a process has sent, and an axis of them: what bytes_to_accuracy and loss_to_bytes share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lqray.experiment.foreign import whole_number
from lqray.reporting.figures.recordings import Recordings
from lqray.reporting.figures.style import bounds
from lqray.reporting.targets import BYTES, BYTES_A_STEP, counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_NARROW = 100
"""An axis that ends before so many times its beginning has ticks at 2 and 5, too."""
NOTHING_SENT = f"no trial that has sent anything has recorded {BYTES} or {BYTES_A_STEP}"


def bytes_sent(recordings: Recordings, run_id: str, steps: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """By a run until each of these steps, (n,), as `targets.counted` has it; None where nothing is sent or known."""
    run = next((one for one in recordings.records if one.run_id == run_id), None)
    if run is None or not max(run.metrics.get(BYTES, 0.0), run.metrics.get(BYTES_A_STEP, 0.0)) > 0:
        return None
    found = counted(recordings.histories, run, steps, BYTES)
    return found if np.isfinite(found).all() else None


def bytes_a_step(recordings: Recordings, run_id: str) -> float | None:
    """The mean over a run's steps of what `bytes_sent` counts; None where nothing is sent or known."""
    known = recordings.histories(BYTES).get(run_id) or recordings.histories(BYTES_A_STEP).get(run_id)
    run = next((one for one in recordings.records if one.run_id == run_id), None)
    planned = whole_number(run.params.get("schedule.iterations", ""), 0) if run else 0
    last = float(known.steps[-1]) if known is not None else float(planned or math.nan)
    found = bytes_sent(recordings, run_id, np.asarray([last])) if last > 0 else None
    return None if found is None else float(found[0]) / last


def bytes_axis(panel: Axes, places: Sequence[NDArray[np.float64]], each: str = "") -> None:
    """The x axis, logarithmic, with room for all of `places`. each: of what they are a mean, such as `step`."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.set_xscale("log")
    edges = bounds(np.concatenate(places).tolist(), logarithmic=True)
    if edges:
        panel.set_xlim(*edges)
        if edges[1] < _NARROW * edges[0]:
            panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda count, _: readable(count)))
    panel.set_xlabel(f"sent by one process{f' per {each}' if each else ''}")


def readable(count: float) -> str:
    """Bytes with a unit, to three digits."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"
