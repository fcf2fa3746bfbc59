"""Final loss, or another headline metric, against the bytes that a process sends per step, and what is best at each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lqray.experiment.headline import higher_is_better
from lqray.reporting.figures.lines import draw_points, is_logarithmic, label_metric, limit
from lqray.reporting.figures.recordings import Group, NothingToDrawError, Options, Recordings, band_note
from lqray.reporting.figures.seeds import Band
from lqray.reporting.figures.sent import NOTHING_SENT, bytes_a_step, bytes_axis, readable
from lqray.reporting.figures.style import handle, legend, panels
from lqray.reporting.intervals import interval, kind_of
from lqray.reporting.selection import natural
from lqray.store.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TAKES = frozenset({"metrics", "group_by"})
_EVERY = "exchange.every"
_NEAR = 0.01
_NEVER_SENT = "; several workers in one process send nothing: set resources.processes"


@dataclass(frozen=True)
class _Line:
    """Of trials that differ in the seed and in exchange.every. every: of each point, None for each step's exchange.
    band: a point each, at its bytes."""

    group: Group
    every: tuple[str | None, ...]
    band: Band


def draw(recordings: Recordings, options: Options) -> Figure:
    """A panel for each metric, by default the headline. A point is the mean of the last values of trials that differ in
    nothing but the seed, at their mean bytes per step. A line joins those that differ in `exchange.every` alone; each
    of its points says H, or DDP. The frontier is a step line through all points that none is better than with as few
    bytes; full precision at every step has a vertical line, and a band of 1% to either side.

    Raises NothingToDrawError, UnknownKeyError.
    """
    metrics = recordings.shown(options.metrics)
    groups = [one for one in recordings.groups(options.group_by, without=(_EVERY,)) if one.finished]
    figure, axes = panels(options.width, len(metrics), 2.4, columns=1 if options.width == "single" else 2)
    drawn: dict[str, Group] = {}
    marks: dict[str, Any] = {}
    for panel, metric in zip(axes, metrics, strict=True):
        lines = [found for one in groups if (found := _line(recordings, one, metric))]
        if not lines:
            raise NothingToDrawError(NOTHING_SENT + _NEVER_SENT)
        drawn |= {one.group.label: one.group for one in lines}
        _draw(panel, lines, metric)
        marks |= _draw_frontier(panel, lines, higher_is_better(metric, recordings.headline))
        marks |= _mark_full_precision(panel, lines)
        bytes_axis(panel, [one.band.x for one in lines], each="step")
        label_metric(panel, metric, options)
    entries = [(handle(one.look), one.label) for one in groups if one.label in drawn]
    legend(figure, entries + [(one, text) for text, one in marks.items()], _note(drawn.values(), metrics))
    return figure


def _line(recordings: Recordings, group: Group, metric: str) -> _Line | None:
    """None where no run of the group has both the metric and bytes; runs that lack one are remarked on."""
    by_every: dict[str | None, list[tuple[float, float]]] = {}
    silent = broken = 0
    for one in group.finished:
        value, sent = one.metrics.get(metric, math.nan), bytes_a_step(recordings, one.run_id)
        if not math.isfinite(value):
            broken += 1
        elif sent is None:
            silent += 1
        else:
            by_every.setdefault(_every(one), []).append((sent, value))
    if broken:
        recordings.remark(f"{group.label}: {broken} runs are left out, whose {metric} is missing or not finite")
    if silent:
        recordings.remark(f"{group.label}: {silent} runs are left out, for they send nothing, or have not recorded it")
    if not by_every:
        return None
    every = sorted(by_every, key=natural)
    columns = [np.asarray(by_every[one]) for one in every]
    x = np.asarray([column[:, 0].mean() for column in columns])
    each = [interval(column[:, 1:], kind_of(metric), is_logarithmic(metric)) for column in columns]
    mean, low, high = (np.asarray([one[part][0] for one in each]) for part in range(3))
    return _Line(group, tuple(every), Band(x, mean, low, high, len(group.finished)))


def _every(record: Run) -> str | None:
    found = record.params.get(_EVERY)
    return None if found in ("null", "None") else found


def _draw(panel: Axes, lines: Sequence[_Line], metric: str) -> None:
    if is_logarithmic(metric):
        panel.set_yscale("log")
    seldom = any(every is not None for one in lines for every in one.every)
    for one in lines:
        band = one.band
        draw_points(panel, one.group, band.x, band)
        for every, x, y in zip(one.every, band.x, band.mean, strict=True) if seldom else ():
            text = "DDP" if every is None else f"H={every}"
            panel.annotate(text, (x, y), (3, 3), textcoords="offset points", fontsize=5.5, color="0.3", zorder=4)
    limit(panel, metric, [one.band for one in lines])


def frontier(points: Iterable[tuple[float, float]], higher: bool) -> list[tuple[float, float]]:
    """Of (bytes, value) those, by bytes, that no other point is as good as with as few bytes."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1] if higher else point[1])):
        if not best or (y > best[-1][1] if higher else y < best[-1][1]):
            best.append((x, y))
    return best


def _draw_frontier(panel: Axes, lines: Sequence[_Line], higher: bool) -> dict[str, Any]:
    points = [point for one in lines for point in zip(one.band.x.tolist(), one.band.mean.tolist(), strict=True)]
    best = frontier(points, higher)
    ends = [*best, (2 * max(x for x, _ in points), best[-1][1])]
    (line,) = panel.plot(
        *zip(*ends, strict=True), drawstyle="steps-post", color="0.55", linewidth=0.7, zorder=2, gid="frontier"
    )
    return {"best with as few bytes": line}


def _mark_full_precision(panel: Axes, lines: Sequence[_Line]) -> dict[str, Any]:
    """Of the first line that has it."""
    for one in lines:
        if None not in one.every or any(_is_quantized(run) for run in one.group.finished if _every(run) is None):
            continue
        at = one.every.index(None)
        x, y = float(one.band.x[at]), float(one.band.mean[at])
        panel.axvline(x, color="0.4", linewidth=0.7, linestyle="--", zorder=1, gid="full precision")
        near = _NEAR * abs(y)
        band = panel.axhspan(y - near, y + near, color="0.4", alpha=0.15, linewidth=0, zorder=1, gid="near")
        return {f"within {_NEAR:.0%} of float32 DDP ({readable(x)} per step)": band}
    return {}


def _is_quantized(run: Run) -> bool:
    """Whether it does not exchange 32 bits a coordinate."""
    return run.method != "full_precision" or run.params.get("model.dtype", "float32") != "float32"


def _note(groups: Iterable[Group], metrics: Sequence[str]) -> str:
    """Of the points, which are groups that are equal in `exchange.every`, too."""
    points = [
        replace(group, records=tuple(one for one in group.finished if _every(one) == every))
        for group in groups
        for every in {_every(one) for one in group.finished}
    ]
    return band_note(points, map(is_logarithmic, metrics))
