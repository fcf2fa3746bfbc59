"""Lines over iterations (or bytes) with their runs beside them: what curves, variance and bytes_to_accuracy share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lqray.experiment.headline import is_share
from lqray.reporting.figures.recordings import Group, NothingToDrawError, Options, Recordings
from lqray.reporting.figures.seeds import Band, across
from lqray.reporting.figures.spread import Curve, Spread, Trace, draw_spread, drawn_runs, interval_ends
from lqray.reporting.figures.style import bounds, handle, shown_name
from lqray.reporting.histories import History, smoothed
from lqray.reporting.intervals import kind_of
from lqray.store.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_MARKS = 6
_FEW = 12
_WIDER = 0.2
"""An interval widens the axis by this share of what means span, no more: of two seeds it may be tens of times that."""
_MARGIN = 0.02
_PLAIN_FROM, _PLAIN_TO = 1e-2, 1e3


def draw_points(panel: Axes, group: Group, x: NDArray[np.float64], band: Band, at: Any = slice(None)) -> None:
    """A group's means at x (n,), joined, with its intervals as error bars. at: which points of the band they are."""
    panel.errorbar(
        *(x, band.mean[at]),
        yerr=np.nan_to_num(np.stack([band.mean - band.low, band.high - band.mean])[:, at]),
        color=group.look.colour,
        linestyle=group.look.dashes,
        marker=group.look.marker,
        capsize=1.5,
        elinewidth=0.6,
        capthick=0.6,
        label=group.label,
        zorder=3,
    )


def curves_of(
    recordings: Recordings, groups: Sequence[Group], metrics: Mapping[str, str], options: Options
) -> list[Curve]:
    """A curve for each group that has its metric (metrics: by the group's label); those that have none, and what is cut
    off, are remarked on. Raises NothingToDrawError without any."""
    curves, without = [], []
    for group in groups:
        key = metrics[group.label]
        found = recordings.histories(key)
        shown = {run_id: smoothed(one, options.smooth) for run_id, one in found.items()}
        runs = {one.run_id: shown[one.run_id] for one in group.finished if one.run_id in shown}
        running = tuple(_trace(one.run_id, shown[one.run_id]) for one in group.running if one.run_id in shown)
        band = across(list(runs.values()), kind_of(key), is_logarithmic(key))
        if not len(band) and not running:
            without.append(group.label)
            continue
        if len(runs) < len(group.finished):
            recordings.remark(f"{group.label}: {len(group.finished) - len(runs)} runs have no {key}, and are left out")
        ended = sum(_ended_unseen(one, key, found.get(one.run_id)) for one in group.finished)
        if ended:
            recordings.remark(f"{group.label}: {ended} runs ended with {key} not finite, of which there are no points")
        if band.cut:
            recordings.remark(f"{group.label}: its runs end at different iterations; the mean ends with the first")
        if np.isnan(band.mean).any():
            recordings.remark(f"{group.label}: gaps where {key} of a run is not finite")
        last = {one.run_id: int(found[one.run_id].steps[-1]) for one in group.finished if one.run_id in found}
        curves.append(Curve(group, band, tuple(_trace(*one) for one in runs.items()), running, last))
    if not curves:
        raise NothingToDrawError(f"no trial has a history of {', '.join(sorted(set(metrics.values())))}")
    if without:
        recordings.remark(f"left out, for they have none of it: {', '.join(without)}")
    return curves


def _ended_unseen(record: Run, key: str, history: History | None) -> bool:
    """Whether a run ended with a metric that is not finite, of which its history tells nothing, for MLflow is not told
    of NaN."""
    told = history is not None and not math.isfinite(history.values[-1])
    return not told and not math.isfinite(record.metrics.get(key, 0.0))


def last_steps(curves: Sequence[Curve]) -> dict[str, int]:
    """Of the finished runs drawn, by run id."""
    return {run_id: step for curve in curves for run_id, step in curve.last_steps.items()}


def draw_curves(panel: Axes, metric: str, curves: Sequence[Curve], spread: Spread) -> None:
    """Means as lines, runs or their interval beside them, running trials as thin lines; the y axis shows all means. The
    x axis has its scale."""
    if is_logarithmic(metric):
        panel.set_yscale("log")
    for number, curve in enumerate(curves):
        own, band = curve.group.look, curve.band
        if len(band):
            marks = _marks(len(band), number, len(curves))
            panel.plot(
                *(band.x, band.mean),
                color=own.colour,
                linestyle=own.dashes,
                marker=own.marker,
                markevery=marks,
                label=curve.group.label,
                zorder=3,
            )
        for trace in curve.running:
            panel.plot(trace.x, trace.values, color=own.colour, linestyle=own.dashes, linewidth=0.6)
    draw_spread(panel, spread, curves)
    traces = [one for curve in curves for one in (*curve.running, *drawn_runs(spread, curve))]
    shown = [*(one.band.mean for one in curves), *(one.values for one in traces)]
    limit_to(panel, metric, shown, [part for one in curves for part in interval_ends(spread, one)])


def entries(curves: Sequence[Curve], notes: Mapping[str, str] | None = None) -> list[tuple[Any, str]]:
    """Of the legend. notes: by label, added to it."""
    return [
        (handle(one.group.look), one.group.label + (notes or {}).get(one.group.label, "")) for one in _each_once(curves)
    ]


def limit(panel: Axes, metric: str, bands: Sequence[Band]) -> None:
    """See `limit_to`; of means and their intervals."""
    limit_to(panel, metric, [one.mean for one in bands], [part for one in bands for part in (one.low, one.high)])


def limit_to(
    panel: Axes, metric: str, all_of: Sequence[NDArray[np.float64]], ends: Sequence[NDArray[np.float64]]
) -> None:
    """Limits of the y axis: all values of the first, and of the second what widens it by no more than a fifth to either
    side; each (n,). Of accuracies nothing beyond 0 and 1."""
    logarithmic = is_logarithmic(metric)
    means = np.concatenate(all_of)
    tight = bounds(means.tolist(), logarithmic)
    if tight is None:
        return
    whole = bounds(np.concatenate([means, *ends]).tolist(), logarithmic)
    assert whole is not None
    change, back = (np.log, np.exp) if logarithmic else (np.asarray, np.asarray)
    first, last = change(tight)
    lowest, highest = change(whole)
    room = _WIDER * (last - first)
    low, high = float(back(max(lowest, first - room))), float(back(min(highest, last + room)))
    if is_share(metric):
        low, high = max(low, -_MARGIN), min(high, 1.0 + _MARGIN)
    panel.set_ylim(low, high)


def is_logarithmic(metric: str) -> bool:
    """Whether it is drawn on a logarithmic axis: variances and their ratios are."""
    return "variance" in metric


def label_metric(panel: Axes, metric: str, options: Options) -> None:
    """Name and numbers of a y axis that shows the metric; accuracies in percent."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    smoothed = f"\n(mean of {options.smooth} points)" if options.smooth > 1 else ""
    panel.set_ylabel(shown_name(metric) + smoothed)
    if is_share(metric):
        panel.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.6g}%"))
    low, high = panel.get_ylim()
    if panel.get_yscale() == "log" and low > _PLAIN_FROM and high < _PLAIN_TO:
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())


def finish_iterations(panel: Axes, metric: str, options: Options) -> None:
    """Both axes of a metric against the iteration; many thousands of iterations as k."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    label_metric(panel, metric, options)
    panel.set_xlabel("iteration")
    panel.xaxis.set_major_locator(MaxNLocator(5))
    if panel.get_xlim()[1] >= 10_000:
        panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k" if x else "0"))


def _each_once(curves: Sequence[Curve]) -> list[Curve]:
    return list({curve.group.label: curve for curve in curves}.values())


def _marks(points: int, number: int, lines: int) -> Any:
    """All of a few points, else six, not where the markers of the other lines are."""
    if points <= _FEW:
        return 1
    every = max(1, points // _MARKS)
    return (number * every // max(lines, 1), every)


def _trace(run_id: str, history: History) -> Trace:
    values = np.where(np.isfinite(history.values), history.values, np.nan)
    return Trace(run_id, history.steps.astype(np.float64), values)
