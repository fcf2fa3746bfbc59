"""A metric's last value against a number that a sweep varies: what bits and bucket_size share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lqray.reporting.figures.lines import draw_points, is_logarithmic, label_metric, limit
from lqray.reporting.figures.recordings import Group, NothingToDrawError, Options, Recordings, band_note
from lqray.reporting.figures.seeds import Band
from lqray.reporting.figures.style import bounds, handle, legend, panels
from lqray.reporting.intervals import interval, kind_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_POWERS_FROM = 64
_ASIDE = 0.015
"""Of an axis, from its end to the whisker of a horizontal line, and from one to the next."""


def draw_against(recordings: Recordings, options: Options, key: str, example: str) -> Figure:
    """A panel for each metric, by default the headline; the axis, a parameter `key`, in powers of two. A line for
    each group, a little aside of those of others, error bars over its seeds; a group that does not have the parameter
    is a horizontal line. Runs whose value is not finite are left out, and said to be.

    example: a file of experiments/ that varies it. Raises NothingToDrawError, UnknownKeyError.
    """
    finished = [one for one in recordings.records if one.status == "FINISHED"]
    odd = [one for one in finished if key in one.params and not _is_place(one.params[key])]
    if odd:
        recordings.remark(f"{len(odd)} runs are left out, whose {key} is no positive number: {odd[0].params[key]}")
        kept = [one for one in recordings.records if one not in odd]
        recordings.records, finished = kept, [one for one in finished if one not in odd]
    values = sorted({one.params[key] for one in finished if key in one.params}, key=float)
    if len(values) < 2:
        found = f"every finished trial that has it has {values[0]}" if values else "no finished trial has it"
        name = key.rpartition(".")[2]
        raise NothingToDrawError(
            f"{key} does not vary: {found}; sweep it, as experiments/{example} does: matrix: {{{key}: [...]}}, or name "
            f"several experiments of different {name}"
        )
    metrics = recordings.shown(options.metrics)
    groups = [one for one in recordings.groups(options.group_by, without=(key,)) if one.finished]
    figure, axes = panels(options.width, len(metrics), columns=1 if options.width == "single" else 2)
    drawn: dict[str, Group] = {}
    for panel, metric in zip(axes, metrics, strict=True):
        bands = {one.label: _band(recordings, one, key, metric) for one in groups}
        used = [one for one in groups if len(bands[one.label])]
        if not used:
            raise NothingToDrawError(f"no finished trial has recorded a finite {metric}")
        drawn |= {one.label: one for one in used}
        _draw(panel, [(one, bands[one.label]) for one in used], metric)
        _axis(panel, key, [float(value) for value in values])
        label_metric(panel, metric, options)
    entries = [(handle(one.look), one.label) for one in groups if one.label in drawn]
    legend(figure, entries, band_note(_points(drawn.values(), key), map(is_logarithmic, metrics)))
    return figure


def _points(groups: Iterable[Group], key: str) -> list[Group]:
    """Groups that are equal in the parameter, too: what a point is the mean of."""
    return [
        replace(group, records=tuple(one for one in group.finished if one.params.get(key) == value))
        for group in groups
        for value in {one.params.get(key) for one in group.finished}
    ]


def _band(recordings: Recordings, group: Group, key: str, metric: str) -> Band:
    """Over the values of the parameter; of runs that do not have it at NaN."""
    by_value: dict[float, list[float]] = {}
    for one in group.finished:
        value = one.metrics.get(metric, math.nan)
        if math.isfinite(value):
            by_value.setdefault(float(one.params[key]) if key in one.params else math.nan, []).append(value)
    left_out = len(group.finished) - sum(len(values) for values in by_value.values())
    if left_out:
        recordings.remark(f"{group.label}: {left_out} runs are left out, whose {metric} is missing or not finite")
    places = sorted(by_value, key=lambda at: (math.isnan(at), at))
    columns = [interval(np.asarray(by_value[at])[:, None], kind_of(metric), is_logarithmic(metric)) for at in places]
    mean, low, high = (np.asarray([column[part][0] for column in columns]) for part in range(3))
    return Band(np.asarray(places), mean, low, high, len(group.finished))


def _draw(panel: Axes, bands: Sequence[tuple[Group, Band]], metric: str) -> None:
    if is_logarithmic(metric):
        panel.set_yscale("log")
    shifts = _shifts([band.x for _, band in bands])
    aside = _ASIDE
    for (group, band), shift in zip(bands, shifts, strict=True):
        own, level = group.look, np.isnan(band.x)
        at = ~level
        if at.any():
            draw_points(panel, group, band.x[at] * shift, band, at)
        for place in np.flatnonzero(level):
            label = "_" if at.any() else group.label
            panel.axhline(band.mean[place], color=own.colour, linestyle=own.dashes, label=label, zorder=2)
            if math.isfinite(band.low[place]):
                _draw_whisker(panel, 1 - aside, group, band, int(place))
                aside += _ASIDE
    limit(panel, metric, [band for _, band in bands])


def _draw_whisker(panel: Axes, at: float, group: Group, band: Band, place: int) -> None:
    """The interval of a horizontal line: bands of several would hide each other, and the points. at: of the axis."""
    mean, low, high = (part[place] for part in (band.mean, band.low, band.high))
    panel.errorbar(
        *([at], [mean]),
        yerr=[[mean - low], [high - mean]],
        color=group.look.colour,
        marker=group.look.marker,
        markersize=3,
        capsize=1.5,
        elinewidth=0.8,
        capthick=0.8,
        transform=panel.get_yaxis_transform(),
        gid="interval",
        zorder=4,
    )


def _shifts(places: Sequence[NDArray[np.float64]]) -> list[float]:
    """A factor for the places of each group, so that error bars stand side by side: within a quarter of the least
    distance of two places."""
    values = np.unique(np.concatenate(places))
    gap = np.diff(np.log2(values[np.isfinite(values)])).min(initial=1.0)
    return [float(2 ** (0.25 * gap * ((index + 0.5) / len(places) - 0.5))) for index in range(len(places))]


def _axis(panel: Axes, key: str, values: Sequence[float]) -> None:
    """Logarithmic to the base 2, a tick for each value; powers of two as such where the numbers are long."""
    panel.set_xscale("log", base=2)
    panel.set_xticks(values, [_text(value, max(values) > _POWERS_FROM) for value in values])
    panel.set_xticks([], minor=True)
    edges = bounds(values, logarithmic=True)
    if edges:
        panel.set_xlim(*edges)
    panel.set_xlabel(key.rpartition(".")[2].replace("_", " "))


def _is_place(text: str) -> bool:
    """Whether it is a number that a logarithmic axis has a place for."""
    try:
        return 1e-12 < float(text) < 1e12
    except ValueError:
        return False


def _text(value: float, powers: bool) -> str:
    exponent = math.log2(value)
    return f"$2^{{{exponent:.0f}}}$" if powers and exponent.is_integer() else f"{value:g}"
