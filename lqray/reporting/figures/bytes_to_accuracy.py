"""Accuracy against the bytes that a process has sent, on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lqray.experiment.headline import higher_is_better
from lqray.reporting.figures.lines import curves_of, draw_curves, entries, is_logarithmic, label_metric
from lqray.reporting.figures.recordings import Group, NothingToDrawError, Options, Recordings
from lqray.reporting.figures.sent import NOTHING_SENT, bytes_axis, bytes_sent, readable
from lqray.reporting.figures.spread import Curve, Trace, spread_note, spread_of
from lqray.reporting.figures.style import legend, panels
from lqray.reporting.targets import check_target, some_of, to_target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

TAKES = frozenset({"metrics", "group_by", "smooth", "target"})


def draw(recordings: Recordings, options: Options) -> Figure:
    """A panel for each metric, by default the headline. Bytes are the mean over the runs of a group of
    wire/total_bytes_sent; of runs that have not recorded it (older ones) the mean of wire/bytes_sent times the step.

    target: a line there; a mark on it, and in the legend, at the mean over a group's runs of what each had sent when it
    was first there, the number that `lqray report --target` has (see `targets`). Raises NothingToDrawError,
    UnknownKeyError, TargetError.
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
            notes |= _mark(panel, recordings, key, [one.group for one in curves], options)
    drawn = [one for curves in found for one in curves]
    legend(figure, entries(drawn, notes), spread_note(spread, drawn, map(is_logarithmic, metrics)))
    return figure


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


def _mark(
    panel: Axes, recordings: Recordings, metric: str, groups: Sequence[Group], options: Options
) -> dict[str, str]:
    """By label of a group, what the legend says of it."""
    target, higher = options.target, higher_is_better(metric, recordings.headline)
    assert target is not None
    check_target(target, metric, (one.metrics[metric] for one in recordings.records if metric in one.metrics))
    panel.axhline(target, color="0.4", linewidth=0.7, linestyle="--", zorder=1, gid="target")
    notes = {}
    for one in groups:
        runs = one.finished
        found = to_target(runs, recordings.histories, metric, target, higher, options.smooth)
        sent = [each.bytes for each in found.values() if np.isfinite(each.bytes)]
        if 0 < len(found) < len(runs):
            recordings.remark(f"{one.label}: {len(found)} of {len(runs)} runs reached the target; the mark is of these")
        if not sent:
            notes[one.label] = " (not reached)"
            continue
        x = float(np.mean(sent))
        notes[one.label] = f" ({readable(x)}){some_of(len(found), len(runs))}"
        mark: dict[str, Any] = {"marker": "o", "markersize": 7, "markerfacecolor": "none", "gid": "reached"}
        panel.plot([x], [target], color=one.look.colour, zorder=4, **mark)
    return notes
