"""Seconds of a step and of its phases, bars for each method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lqray.reporting.figures.recordings import Group, NothingToDrawError, Options, Recordings, band_note
from lqray.reporting.figures.style import MOST_IN_LEGEND, WIDTHS, legend, panels, wrapped
from lqray.reporting.intervals import interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TAKES = frozenset({"group_by"})
_STEP = "time/seconds_per_step"
_PHASES = ("data", "forward", "backward", "optimizer")
_WITHIN = ("encode", "exchange", "decode")
_COLOURS = {
    "data": "#DDDDDD",
    "forward": "#9DB8D9",
    "backward": "#4A76A8",
    "optimizer": "#1D2F45",
    "encode": "#E8A33D",
    "exchange": "#C8553D",
    "decode": "#7A2E3A",
}
_INCHES_PER_BAR = 0.34
_SUM, _WHOLE = "95% interval of the phases' sum", "whole step, where phases are not measured"


@dataclass(frozen=True)
class _Bars:
    """Means over the runs of a group. seconds: by phase. total: mean, low, high of the phases one after the other.
    step: of steps that were not measured."""

    group: Group
    seconds: Mapping[str, float]
    total: tuple[float, float, float]
    step: float | None

    @property
    def within(self) -> float:
        """Encoding, exchanging and decoding together."""
        return sum(self.seconds.get(phase, 0.0) for phase in _WITHIN)


def draw(recordings: Recordings, options: Options) -> Figure:
    """Upper bars: the phases of a step one after the other, with the interval of their sum. The exchange runs within
    the backward phase, which ends when it has: lower bars, to the end of that phase, are the time that encoding,
    exchanging and decoding take in it; DDP's buckets may overlap, and where they take longer than all before (an
    exchange of many steps) they begin with the step. A diamond is the mean time of whole steps that were not measured.

    Of a run the median over its measured steps, of a group the mean of its runs. Raises NothingToDrawError,
    UnknownKeyError.
    """
    bars = [found for group in recordings.groups(options.group_by) if (found := _bars(recordings, group))]
    if not bars:
        raise NothingToDrawError(
            f"no trial has recorded time/{_PHASES[1]}_seconds; telemetry.every: 10, for one, measures every tenth step"
        )
    if len(bars) > MOST_IN_LEGEND:
        recordings.remark(f"{MOST_IN_LEGEND} of {len(bars)} groups are drawn; choose with --only or --where")
        bars = bars[:MOST_IN_LEGEND]
    figure, (panel,) = panels(options.width, 1, 0.55 + _INCHES_PER_BAR * len(bars))
    longest = max(max(one.total[0], one.within, one.step or 0.0) for one in bars)
    unit, name = (1.0, "seconds") if longest >= 1 else (1e3, "milliseconds")
    entries: dict[str, Any] = {}
    for row, one in enumerate(bars):
        entries |= _draw(panel, row, one, unit)
    panel.set_yticks(range(len(bars)), [wrapped(one.group.label, 0.3 * WIDTHS[options.width]) for one in bars])
    panel.set_ylim(len(bars) - 0.45, -0.55)
    panel.set_xlim(0, unit * min(1.25 * longest, 1.05 * max(longest, *(np.nan_to_num(one.total[2]) for one in bars))))
    panel.grid(False, axis="y")
    panel.set_xlabel(f"{name} per step")
    order = (*_PHASES, *_WITHIN, _SUM, _WHOLE)
    named = {"backward": "backward + exchange"}
    legend(
        *(figure, [(entries[key], named.get(key, key)) for key in order if key in entries]),
        band_note(one.group for one in bars).replace(" and 95% interval", ""),
    )
    return figure


def _bars(recordings: Recordings, group: Group) -> _Bars | None:
    runs = [found for one in group.records if (found := _medians(recordings, one.run_id))]
    if not runs:
        return None
    phases = [phase for phase in (*_PHASES, *_WITHIN) if any(phase in one for one in runs)]
    seconds = {phase: float(np.mean([one.get(phase, 0.0) for one in runs])) for phase in phases}
    sums = np.array([[sum(one.get(phase, 0.0) for phase in _PHASES)] for one in runs])
    mean, low, high = (float(part[0]) for part in interval(sums, "nonnegative"))
    steps = [one.metrics[_STEP] for one in group.records if np.isfinite(one.metrics.get(_STEP, np.nan))]
    return _Bars(group, seconds, (mean, low, high), float(np.mean(steps)) if steps else None)


def _medians(recordings: Recordings, run_id: str) -> dict[str, float]:
    """Of the measured steps but the first, which warms up, where there are others."""
    found = {}
    for phase in (*_PHASES, *_WITHIN):
        history = recordings.histories(f"time/{phase}_seconds").get(run_id)
        if history is None:
            continue
        values = history.values[1:] if len(history) > 1 else history.values
        values = values[np.isfinite(values)]
        if len(values):
            found[phase] = float(np.median(values))
    return found


def _draw(panel: Axes, row: int, bars: _Bars, unit: float) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    left = 0.0
    for phase in _PHASES:
        width = bars.seconds.get(phase, 0.0) * unit
        entries[phase] = panel.barh(row - 0.1, width, 0.5, left=left, color=_COLOURS[phase])
        left += width
        if phase == "backward":
            entries |= _draw_within(panel, row, bars.seconds, max(left, bars.within * unit), unit)
    mean, low, high = (value * unit for value in bars.total)
    if np.isfinite(low):
        ends = [[mean - low], [high - mean]]
        entries[_SUM] = panel.errorbar(mean, row - 0.1, xerr=ends, color="black", capsize=2, elinewidth=0.8)
    if bars.step is not None:
        style: dict[str, Any] = {"marker": "D", "color": "black", "markerfacecolor": "white", "linestyle": ""}
        entries[_WHOLE] = panel.plot(bars.step * unit, row - 0.1, zorder=4, **style)[0]
    return entries


def _draw_within(panel: Axes, row: int, seconds: Mapping[str, float], end: float, unit: float) -> dict[str, Any]:
    """Side by side, so that the last ends where the backward phase does."""
    entries: dict[str, Any] = {}
    for phase in reversed([one for one in _WITHIN if one in seconds]):
        width = seconds[phase] * unit
        end -= width
        entries[phase] = panel.barh(row + 0.26, width, 0.2, left=end, color=_COLOURS[phase])
    return entries
