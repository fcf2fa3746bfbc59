"""Accuracy against the bytes that a process has sent, on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lqray.experiment.headline import higher_is_better
from lqray.reporting.figures.lines import Curve, Trace, curves_of, draw_curves, entries, is_logarithmic, label_metric
from lqray.reporting.figures.recordings import Group, NothingToDrawError, Options, Recordings
from lqray.reporting.figures.seeds import Band
from lqray.reporting.figures.sent import NOTHING_SENT, bytes_axis, bytes_sent, readable
from lqray.reporting.figures.spread import spread_note, spread_of
from lqray.reporting.figures.style import legend, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

TAKES = frozenset({"metrics", "group_by", "smooth", "target"})


def draw(recordings: Recordings, options: Options) -> Figure:
    """A panel for each metric, by default the headline. Bytes are the mean over the runs of a group of
    wire/total_bytes_sent; of runs that have not recorded it (older ones) the mean of wire/bytes_sent times the step.

    target: a line there, and in the legend the bytes at which a group's mean first is there: from below where more is
    better (accuracies), else from above. Raises NothingToDrawError, UnknownKeyError.
    """
    metrics = recordings.shown(options.metrics)
    groups = recordings.groups(options.group_by)
    figure, axes = panels(options.width, len(metrics), columns=1 if options.width == "single" else 2)
    found = [_curves(recordings, groups, key, options) for key in metrics]
    spread = spread_of(recordings, found)
    notes: dict[str, str] = {}
    for panel, key, curves in zip(axes, metrics, found, strict=True):
        panel.set_xscale("log")
        draw_curves(panel, key, curves, spread)
        label_metric(panel, key, options)
        places = [part for one in curves for part in (one.band.x, *(trace.x for trace in one.running))]
        bytes_axis(panel, [*places, panel.dataLim.intervalx[1:]])
        if options.target is not None:
            notes |= _mark(panel, curves, options.target, higher=higher_is_better(key, recordings.headline))
    drawn = [one for curves in found for one in curves]
    legend(figure, entries(drawn, notes), spread_note(spread, drawn, map(is_logarithmic, metrics)))
    return figure


def reached(band: Band, target: float, higher: bool) -> int | None:
    """Index of the first point of the mean that is at the target or better; None where none is."""
    there = band.mean >= target if higher else band.mean <= target
    return int(there.argmax()) if there.any() else None


def _curves(recordings: Recordings, groups: Sequence[Group], key: str, options: Options) -> list[Curve]:
    """Of a metric against bytes. Raises NothingToDrawError without any."""
    steps = curves_of(recordings, groups, dict.fromkeys((one.label for one in groups), key), options)
    curves = [moved for one in steps if (moved := _by_bytes(recordings, one))]
    silent = [one.group.label for one in steps if one.group.label not in {moved.group.label for moved in curves}]
    if silent:
        recordings.remark(f"left out, for they send nothing, or have not recorded it: {', '.join(silent)}")
    if not curves:
        raise NothingToDrawError(NOTHING_SENT)
    return curves


def _by_bytes(recordings: Recordings, curve: Curve) -> Curve | None:
    x = _bytes(recordings, curve.group, curve.band.x)
    if x is None:
        return None
    runs, running = (
        tuple(
            Trace(one.run_id, own, one.values)
            for one in traces
            if (own := bytes_sent(recordings, one.run_id, one.x)) is not None
        )
        for traces in (curve.runs, curve.running)
    )
    return Curve(curve.group, curve.band.at(x), runs, running) if len(x) or running else None


def _bytes(recordings: Recordings, group: Group, steps: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Mean over the runs at the steps; None where nothing is sent or known."""
    found = [bytes_sent(recordings, one.run_id, steps) for one in group.finished]
    known = [one for one in found if one is not None]
    if known:
        return np.asarray(np.mean(known, axis=0))
    return None if len(steps) else steps  # without a finished run there is no band to place


def _mark(panel: Axes, curves: Sequence[Curve], target: float, higher: bool) -> dict[str, str]:
    panel.axhline(target, color="0.4", linewidth=0.7, linestyle="--", zorder=1, gid="target")
    notes = {}
    for one in curves:
        index = reached(one.band, target, higher)
        if index is None:
            notes[one.group.label] = " (not reached)"
            continue
        x, y = one.band.x[index], one.band.mean[index]
        notes[one.group.label] = f" ({readable(x)})"
        colour = one.group.look.colour
        panel.plot([x], [y], marker="o", markersize=7, markerfacecolor="none", color=colour, zorder=4, gid="reached")
    return notes
