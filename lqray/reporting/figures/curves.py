"""Metrics against the iteration: a line for each method, its seeds beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lqray.reporting.figures.drops import draw_drops
from lqray.reporting.figures.lines import (
    curves_of,
    draw_curves,
    entries,
    finish_iterations,
    is_logarithmic,
    last_steps,
)
from lqray.reporting.figures.recordings import Options, Recordings
from lqray.reporting.figures.spread import Curve, spread_note, spread_of
from lqray.reporting.figures.style import legend, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TAKES = frozenset({"metrics", "group_by", "smooth"})


def draw(recordings: Recordings, options: Options) -> Figure:
    """A panel for each metric, by default the headline; variances on a logarithmic axis. Vertical lines where the
    learning rate drops. Raises NothingToDrawError, UnknownKeyError."""
    metrics = recordings.shown(options.metrics)
    groups = recordings.groups(options.group_by)
    found: list[tuple[str, list[Curve]]] = []
    for key in metrics:
        of_each = dict.fromkeys((one.label for one in groups), key)
        found.append((key, curves_of(recordings, groups, of_each, options)))
    figure, axes = panels(options.width, len(metrics), columns=1 if options.width == "single" else 2)
    spread = spread_of(recordings, [curves for _, curves in found])
    for panel, (key, curves) in zip(axes, found, strict=True):
        draw_curves(panel, key, curves, spread)
        finish_iterations(panel, key, options)
    drawn = [curve for _, curves in found for curve in curves]
    drops = draw_drops(axes, recordings, last_steps(drawn))
    legend(figure, [*entries(drawn), *drops], spread_note(spread, drawn, map(is_logarithmic, metrics)))
    return figure
