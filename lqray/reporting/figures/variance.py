"""Variance of the gradient's estimators against the iteration, on a logarithmic axis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lqray.reporting.figures.drops import draw_drops
from lqray.reporting.figures.lines import curves_of, draw_curves, entries, finish_iterations, last_steps
from lqray.reporting.figures.recordings import Group, NothingToDrawError, Options, Recordings
from lqray.reporting.figures.spread import spread_note, spread_of
from lqray.reporting.figures.style import legend, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TAKES = frozenset({"metrics", "group_by", "smooth"})
_EXACT, _QUANTIZED, _RATIO = "quantizer/gradient_variance", "quantizer/quantized_variance", "quantizer/variance_ratio"


def draw(recordings: Recordings, options: Options) -> Figure:
    """The paper's figure: the variance of a coordinate of the mean gradient as quantized, and as it is where nothing is
    quantized (sgd, full_precision). With the metric quantizer/variance_ratio the one by the other, and a line at 1.

    Raises NothingToDrawError, UnknownKeyError.
    """
    if not options.metrics and not (recordings.reported(_QUANTIZED) or recordings.reported(_EXACT)):
        raise NothingToDrawError(
            f"no trial has recorded {_QUANTIZED} or {_EXACT}; they are measured with telemetry.samples of 2 or more, "
            "such as telemetry: {every: 100, samples: 10}"
        )
    groups = recordings.groups(options.group_by)
    chosen = [recordings.metric(name) for name in options.metrics] or [_QUANTIZED]
    figure, axes = panels(options.width, len(chosen), columns=1 if options.width == "single" else 2)
    found = [curves_of(recordings, groups, {one.label: _of(one, key) for one in groups}, options) for key in chosen]
    spread = spread_of(recordings, found)
    for panel, key, curves in zip(axes, chosen, found, strict=True):
        draw_curves(panel, key, curves, spread)
        finish_iterations(panel, key, options)
        if key == _RATIO:
            panel.axhline(1.0, color="black", linewidth=0.8, zorder=1)
            panel.set_ylabel(panel.get_ylabel().replace("variance ratio", "variance, quantized / exact"))
        elif key == _QUANTIZED:
            panel.set_ylabel(panel.get_ylabel().replace("quantized variance", "variance of the gradient"))
    drawn = [one for curves in found for one in curves]
    drops = draw_drops(axes, recordings, last_steps(drawn))
    legend(figure, [*entries(drawn), *drops], spread_note(spread, drawn, (True,)))
    return figure


def _of(group: Group, key: str) -> str:
    """The metric that says of the group what `key` says of quantized ones."""
    quantized = any(_QUANTIZED in one.metrics for one in group.records)
    return _EXACT if key == _QUANTIZED and not quantized else key
