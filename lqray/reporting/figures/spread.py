"""How the runs of a group are shown beside their mean, so that it can be seen: bands, each run, or whiskers at the end.

Bands of many groups, and those of two or three runs, hide each other and the means.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lqray.reporting.figures.recordings import Group, Recordings, mean_of, runs_of
from lqray.reporting.figures.seeds import Band

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray


Spread = Literal["bands", "runs", "whiskers"]
_MOST_GROUPS = 4
_RUNS_OF_A_BAND = 5
_STEP, _MOST_ASIDE = 0.014, 0.3
"""Shares of an axis: from one whisker to the next, and of all beyond the last point."""
_SAID = {
    "runs": f"thin lines are single runs: intervals of fewer than {_RUNS_OF_A_BAND} would hide the means",
    "whiskers": f"95% intervals stand at the end of lines: bands of more than {_MOST_GROUPS} groups would hide them",
}
_NOTES = {
    "bands": "{mean} and 95% interval of {runs}",
    "runs": "{mean} and, thin, each of {runs}",
    "whiskers": "{mean} of {runs}, 95% interval at the end",
}


@dataclass(frozen=True)
class Trace:
    """A trial on its own. x, values: (n,)."""

    run_id: str
    x: NDArray[np.float64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A group's metric. band: over its finished runs. runs: each of these. running: the others. last_steps: of finished
    runs, by run id."""

    group: Group
    band: Band
    runs: tuple[Trace, ...] = ()
    running: tuple[Trace, ...] = ()
    last_steps: Mapping[str, int] = field(default_factory=dict)


def spread_of(recordings: Recordings, panels: Iterable[Sequence[Curve]]) -> Spread:
    """For all panels of a figure: bands of five or more runs of at most four groups; of fewer runs each run; of more
    groups whiskers. What is not bands is remarked on. panels: the curves of each."""
    several = [[one.band.runs for one in curves if one.band.runs > 1] for curves in panels]
    if not any(several):
        return "bands"
    found: Spread = "bands"
    if max(map(len, several)) > _MOST_GROUPS:
        found = "whiskers"
    elif min(map(min, filter(None, several))) < _RUNS_OF_A_BAND:
        found = "runs"
    if found in _SAID:
        recordings.remark(_SAID[found])
    return found


def spread_note(spread: Spread, curves: Sequence[Curve], logarithmic: Iterable[bool]) -> str:
    """Of the legend; nothing where no group has two finished runs. logarithmic: whether the axes are."""
    runs = runs_of(one.group for one in curves)
    return _NOTES[spread].format(mean=mean_of(logarithmic), runs=runs) if runs else ""


def interval_ends(spread: Spread, curve: Curve) -> list[NDArray[np.float64]]:
    """Of the intervals that stand beside a curve's mean."""
    if spread == "runs":
        return []
    if spread == "bands":
        return [curve.band.low, curve.band.high]
    last = _last(curve)
    return [] if last is None else [curve.band.low[[last]], curve.band.high[[last]]]


def draw_spread(panel: Axes, spread: Spread, curves: Sequence[Curve]) -> None:
    """Beside means that are drawn already; the x axis has its scale."""
    if spread == "whiskers":
        _draw_whiskers(panel, curves)
        return
    for one in curves:
        own, band = one.group.look, one.band
        if spread == "bands" and np.isfinite(band.low).any():
            panel.fill_between(band.x, band.low, band.high, color=own.colour, alpha=0.15, linewidth=0, zorder=2)
        for run in drawn_runs(spread, one):
            style: Mapping[str, Any] = {"color": own.colour, "linestyle": own.dashes, "linewidth": 0.5, "alpha": 0.6}
            panel.plot(run.x, run.values, **style, zorder=2, gid="run")


def drawn_runs(spread: Spread, curve: Curve) -> tuple[Trace, ...]:
    """Those that stand beside a curve's mean."""
    return curve.runs if spread == "runs" and curve.band.runs > 1 else ()


def _draw_whiskers(panel: Axes, curves: Sequence[Curve]) -> None:
    """Right of the last point of each line, aside of those that end there, too."""
    ended = [(one, last) for one in curves if (last := _last(one)) is not None]
    logarithmic = panel.get_xscale() == "log"
    everywhere = _placed(np.concatenate([one.band.x for one in curves]), logarithmic)
    everywhere = everywhere[np.isfinite(everywhere)]
    span = float(np.ptp(everywhere)) if len(everywhere) else 0.0
    step = min(_STEP, _MOST_ASIDE / max(len(ended), 1)) * (span or 1.0)
    at = -math.inf
    for one, last in sorted(ended, key=lambda each: each[0].band.x[each[1]]):
        own, band = one.group.look, one.band
        at = max(at, float(_placed(band.x[last], logarithmic))) + step
        panel.errorbar(
            *(np.asarray([10**at if logarithmic else at]), band.mean[[last]]),
            yerr=[[band.mean[last] - band.low[last]], [band.high[last] - band.mean[last]]],
            color=own.colour,
            marker=own.marker,
            markersize=2.5,
            capsize=1.2,
            elinewidth=0.7,
            capthick=0.7,
            zorder=4,
            gid="interval",
        )


def _placed(x: NDArray[np.float64] | float, logarithmic: bool) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log10(x) if logarithmic else x, np.float64)


def _last(curve: Curve) -> int | None:
    """The last point that has an interval."""
    known = np.flatnonzero(np.isfinite(curve.band.low))
    return int(known[-1]) if len(known) else None
