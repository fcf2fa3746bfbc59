"""Seconds of a step, or to a target, against the bandwidth of the links, modelled, a line for each method."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lqray.reporting.figures.recordings import Group, NothingToDrawError, Options, Recordings
from lqray.reporting.figures.style import bounds, handle, legend, panels, shown_name
from lqray.reporting.links import Link, Step, shown_bandwidth
from lqray.reporting.measured_links import MeasuredPoint, matched
from lqray.reporting.modelled import modelled_steps
from lqray.store.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TAKES = frozenset({"group_by", "metrics", "target", "measured", "workers"})
_WORKERS = (2, 8, 64)
_BANDWIDTHS = np.logspace(6, 11, 51)
_MARK_EVERY = 10


@dataclass(frozen=True)
class _Line:
    """Of a group: `steps` times the seconds of a step."""

    group: Group
    step: Step
    steps: float = 1.0

    def seconds(self, workers: int) -> list[float]:
        return [self.steps * self.step.seconds(workers, Link("", bits)) for bits in _BANDWIDTHS]


@dataclass(frozen=True)
class _Mark:
    """Of measurements of a group on one link: their mean. measured: all of them, none extrapolated."""

    group: Group
    bandwidth: float
    workers: int
    seconds: float
    measured: bool


def draw(recordings: Recordings, options: Options) -> Figure:
    """A panel for each of 2, 8 and 64 workers, or of those asked for, both axes logarithmic; see
    `lqray.reporting.modelled` for what a line is made of. With a target of the metric (by default the headline) it is
    seconds to it: steps of the group's runs that got there, their mean, times those of a step. Markers are what was
    measured, hollow where it was extrapolated. A dotted line is bf16 at every step, modelled of the first network,
    where no group is that, and no target is set.

    Raises NothingToDrawError, UnknownKeyError.
    """
    groups = recordings.groups(options.group_by)
    steps = modelled_steps([group.finished for group in groups], recordings.histories)
    known = [(group, *one) for group, one in zip(groups, steps, strict=True) if one]
    if not known:
        raise NothingToDrawError(
            "no finished trial has recorded the bytes and phases of its steps, and exchanges by all_gather, "
            "scatter_reduce, by way of hosts or an all-reduce; telemetry.every: 10, for one, measures every tenth step"
        )
    silent = [group.label for group, one in zip(groups, steps, strict=True) if one is None]
    if silent:
        recordings.remark(f"left out, for they have no such exchange, or have not recorded it: {', '.join(silent)}")
    own = [_Line(group, step) for group, step, _ in known]
    what = "seconds per step"
    if options.target is not None:
        own, what = _to_target(recordings, own, options, options.target)
    marks = _marks(recordings, [one.group for one in own], options)
    workers = options.workers or tuple(sorted({*_WORKERS, *(one.workers for one in marks)}))
    figure, axes = panels(options.width, len(workers), columns=1 if options.width == "single" else 3)
    has_plain = any(_is_plain(one) for line in own for one in line.group.finished)
    plain = None if has_plain or options.target is not None else known[0][2]
    for panel, count in zip(axes, workers, strict=True):
        _draw(panel, own, plain, count)
        _draw_marks(panel, [one for one in marks if one.workers == count])
        panel.set_ylabel(what)
    legend(figure, _entries(own, plain, marks), "lines are modelled; nothing hides behind the backward pass")
    return figure


def _to_target(
    recordings: Recordings, lines: Sequence[_Line], options: Options, target: float
) -> tuple[list[_Line], str]:
    """Of the groups that got there, and the name of the axis."""
    (metric,) = recordings.shown(options.metrics)
    reached = recordings.steps_to(metric, target)
    found, without = [], []
    for one in lines:
        steps = [reached[run.run_id] for run in one.group.finished if run.run_id in reached]
        if not steps:
            without.append(one.group.label)
            continue
        found.append(_Line(one.group, one.step, statistics.fmean(steps)))
        if len(steps) < len(one.group.finished):
            recordings.remark(f"{one.group.label}: {len(steps)} of {len(one.group.finished)} runs reached {target:g}")
    if not found:
        raise NothingToDrawError(f"no run whose steps can be modelled reached {metric} {target:g}")
    if without:
        recordings.remark(f"left out, for they did not reach {target:g}: {', '.join(without)}")
    return found, f"seconds to {shown_name(metric)} {target:g}"


def _marks(recordings: Recordings, groups: Sequence[Group], options: Options) -> list[_Mark]:
    """The measurements of these groups, those on equal links together."""
    usable = [(one, took) for one in options.measured if (took := one.seconds(options.target)) is not None]
    places = matched([one for one, _ in usable], [group.finished for group in groups])
    together: dict[tuple[int, float, int], list[tuple[MeasuredPoint, float]]] = defaultdict(list)
    for (one, took), at in zip(usable, places, strict=True):
        if at is not None:
            together[at, one.bandwidth, one.workers].append((one, took))
    drawn = sum(map(len, together.values()))
    if drawn < len(options.measured):
        why = "of no group, or of several, or without seconds of what is drawn"
        recordings.remark(
            f"{len(options.measured) - drawn} of {len(options.measured)} measurements are left out: {why}"
        )
    return [
        _Mark(
            *(groups[at], bandwidth, workers),
            statistics.fmean(took for _, took in members),
            all(one.measured for one, _ in members),
        )
        for (at, bandwidth, workers), members in together.items()
    ]


def _draw(panel: Axes, lines: Sequence[_Line], plain: Step | None, workers: int) -> None:
    from matplotlib.ticker import FuncFormatter

    drawn = []
    for number, one in enumerate(lines):
        drawn.append(one.seconds(workers))
        look, marks = one.group.look, (number * _MARK_EVERY // len(lines), _MARK_EVERY)
        style: dict[str, Any] = {"color": look.colour, "linestyle": look.dashes, "marker": look.marker}
        panel.plot(_BANDWIDTHS, drawn[-1], **style, markersize=2, markevery=marks, label=one.group.label)
    if plain:
        drawn.append([plain.seconds(workers, Link("", bits)) for bits in _BANDWIDTHS])
        panel.plot(_BANDWIDTHS, drawn[-1], color="0.4", linestyle=":", zorder=1, gid="bf16")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlim(_BANDWIDTHS[0], _BANDWIDTHS[-1])
    edges = bounds(np.concatenate(drawn).tolist(), logarithmic=True)
    if edges:
        panel.set_ylim(*edges)
    panel.set_xticks([1e6, 1e8, 1e10])
    panel.xaxis.set_major_formatter(FuncFormatter(lambda bits, _: shown_bandwidth(bits)))
    panel.set_xlabel("bandwidth of each link")
    panel.set_title(f"{workers} workers")


def _draw_marks(panel: Axes, marks: Sequence[_Mark]) -> None:
    low, high = panel.get_ylim()
    for one in marks:
        panel.plot([one.bandwidth], [one.seconds], **_mark_style(one.group.look.colour, one.measured), gid="measured")
    edges = bounds([low, high, *(one.seconds for one in marks)], logarithmic=True)
    if marks and edges:
        panel.set_ylim(*edges)


def _mark_style(colour: str, measured: bool) -> Mapping[str, Any]:
    face = colour if measured else "white"
    edge = "black" if measured else colour
    shape = {"marker": "D", "markersize": 4.5, "markerfacecolor": face, "markeredgecolor": edge}
    return {**shape, "markeredgewidth": 0.7, "linestyle": "", "zorder": 5}


def _entries(lines: Sequence[_Line], plain: Step | None, marks: Sequence[_Mark]) -> list[tuple[Any, str]]:
    from matplotlib.lines import Line2D

    entries: list[tuple[Any, str]] = [(handle(one.group.look), one.group.label) for one in lines]
    if plain:
        entries.append((Line2D([], [], color="0.4", ls=":"), "bf16, modelled"))
    for measured, name in ((True, "measured"), (False, "extrapolated from fewer steps")):
        if any(one.measured == measured for one in marks):
            entries.append((Line2D([], [], **_mark_style("0.3", measured)), name))
    return entries


def _is_plain(run: Run) -> bool:
    return run.method == "bf16" and run.params.get("exchange.every", "null") == "null"
