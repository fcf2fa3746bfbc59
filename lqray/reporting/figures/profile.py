"""Performance profiles: the share of workloads on which a method is within a factor of what the best one costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lqray.experiment.headline import common_headline, headline_of, higher_is_better, name_of, written
from lqray.reporting.figures.recordings import Group, NothingToDrawError, Options, Recordings
from lqray.reporting.figures.style import handle, legend, panels
from lqray.reporting.pairs import chosen_baseline
from lqray.reporting.selection import METHOD, grouping_keys, keys_of
from lqray.reporting.targets import check_target, to_target
from lqray.store.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TAKES = frozenset({"metrics", "group_by", "smooth", "target", "baseline", "of"})
_NEAR = 0.01
_WORKLOAD = ("data.", "model.", "task.")
_WORKLOAD_KEYS = ("workers", "schedule.batch_size", "schedule.accumulate", "optimizer.name")
_NAMES = {"bytes": "bytes sent", "seconds": "seconds", "steps": "steps"}


@dataclass(frozen=True)
class _Goal:
    """Of a workload: what its runs are to reach. higher: whether more is better."""

    metric: str
    higher: bool
    target: float


_Workload = tuple[tuple[str, str], ...]


def draw(recordings: Recordings, options: Options) -> Figure:
    """Dolan and More (2002, Benchmarking optimization software with performance profiles): of each group of trials, at
    each factor on a logarithmic axis, the share of workloads on which its cost is at most so many times the least one.

    A workload is all trials of equal data, model, task, workers, batch and optimizer's name. Cost: `options.of`, bytes
    without; the mean over a group's runs of what each took to the target, as `targets` has it. The target is
    `options.target`; without, of each workload what is 1% of it worse than the mean last value of the baseline there
    (of several groups of the baseline, the best). A group that did not reach it, or was not run there, has an infinite
    cost: its line ends below 1. Raises NothingToDrawError, UnknownKeyError, TargetError.
    """
    runs = [one for one in recordings.records if one.status == "FINISHED"]
    workloads: dict[_Workload, list[Run]] = {}
    for one in runs:
        workloads.setdefault(_workload(one), []).append(one)
    groups = [one for one in recordings.groups(_keys(recordings, workloads, options)) if one.finished]
    if len(groups) < 2:
        raise NothingToDrawError(f"a profile compares methods: found {len(groups)} in the finished trials; run several")
    ratios = _ratios(recordings, groups, workloads, options)
    if len(ratios) < 2:
        recordings.remark("of a single workload: each method is a step from 0 to 1; name several experiments")
    figure, (panel,) = panels(options.width, 1)
    _draw(panel, groups, ratios, options)
    entries = [(handle(one.look), one.label) for one in groups]
    legend(figure, entries, f"{len(ratios)} workload{'s' if len(ratios) > 1 else ''}, {_said(recordings, options)}")
    return figure


def profile(ratios: Sequence[float]) -> tuple[list[float], list[float]]:
    """(factors, shares) of a method's line, a step up at each of its ratios (infinite where it is not there): the share
    of all workloads of which the ratio is at most the factor. Begins at 1."""
    known = sorted(one for one in ratios if math.isfinite(one))
    shares = [sum(one <= at for one in known) / len(ratios) for at in (1.0, *known)]
    return [1.0, *known], shares


def _keys(recordings: Recordings, workloads: Mapping[_Workload, Sequence[Run]], options: Options) -> list[str]:
    """What tells methods apart: not what makes workloads, nor what follows from them."""
    if options.group_by:
        found = list(keys_of(recordings.records, options.group_by))
    else:
        found = list(dict.fromkeys([METHOD, *(key for runs in workloads.values() for key in grouping_keys(runs))]))
    return [key for key in found if not _of_workload(key)] or [METHOD]


def _ratios(
    recordings: Recordings, groups: Sequence[Group], workloads: Mapping[_Workload, Sequence[Run]], options: Options
) -> list[list[float]]:
    """Of each workload that some group is at the target of: of each group, its cost over the least."""
    baselines = {workload: _baseline(runs, workloads, options) for workload, runs in workloads.items()}
    without = sum(one is None for one in baselines.values()) if options.target is None else 0
    advice = "give --target, or --baseline METHOD"
    if without == len(workloads):
        raise NothingToDrawError(f"found no bf16, fp16 or full_precision to set a target; {advice}")
    if without:
        recordings.remark(f"workloads left out that have no finished run of a baseline: {without}; {advice}")
    found, left_out = [], 0
    for workload, runs in workloads.items():
        if without and baselines[workload] is None:
            continue
        goal = _goal(recordings, groups, runs, baselines[workload], options)
        costs = [math.inf] * len(groups) if goal is None else _costs(recordings, groups, runs, goal, options)
        least = min(costs)
        if math.isinf(least):
            left_out += 1
        else:
            found.append([one / least for one in costs])
    if left_out:
        recordings.remark(f"workloads left out in which no run of known cost reached the target: {left_out}")
    if not found:
        what = _NAMES[options.of or "bytes"]
        raise NothingToDrawError(f"no run reached the target with {what} that are known and more than 0")
    for index, group in enumerate(groups):
        missing = sum(math.isinf(each[index]) for each in found)
        if missing:
            recordings.remark(f"{group.label}: not at the target of {missing} of {len(found)} workloads, or not run")
    return found


def _baseline(runs: Sequence[Run], workloads: Mapping[_Workload, Sequence[Run]], options: Options) -> str | None:
    """Of a workload; None where it has none. Raises UnknownKeyError of one that no workload has."""
    everywhere = [one for each in workloads.values() for one in each]
    if options.baseline is not None:
        wanted = chosen_baseline(everywhere, options.baseline)
        return wanted if any(one.method == wanted for one in runs) else None
    return chosen_baseline(runs, None)


def _goal(
    recordings: Recordings, groups: Sequence[Group], runs: Sequence[Run], baseline: str | None, options: Options
) -> _Goal | None:
    """None of a workload without a finite value of the baseline."""
    headline = common_headline(one.params for one in runs)
    metric = recordings.metric(options.metrics[0]) if options.metrics else headline.metric
    higher = higher_is_better(metric, headline)
    values = [one.metrics[metric] for one in runs if metric in one.metrics]
    if options.target is not None:
        check_target(options.target, metric, values)
        return _Goal(metric, higher, options.target)
    ids = {one.run_id for one in runs if one.method == baseline}
    means = []
    for group in groups:
        finals = [one.metrics.get(metric, math.nan) for one in group.finished if one.run_id in ids]
        if usable := [one for one in finals if math.isfinite(one)]:
            means.append(float(np.mean(usable)))
    if not means:
        return None
    mean = (max if higher else min)(means)
    return _Goal(metric, higher, mean - _NEAR * abs(mean) if higher else mean + _NEAR * abs(mean))


def _costs(
    recordings: Recordings, groups: Sequence[Group], runs: Sequence[Run], goal: _Goal, options: Options
) -> list[float]:
    """Of each group, mean over its runs that were there; infinity without any."""
    reached = to_target(runs, recordings.histories, goal.metric, goal.target, goal.higher, options.smooth)
    ids = {one.run_id for one in runs}
    costs = []
    for group in groups:
        own = [one for one in group.finished if one.run_id in ids]
        there = [getattr(reached[one.run_id], options.of or "bytes") for one in own if one.run_id in reached]
        usable = [one for one in there if math.isfinite(one) and one > 0]
        if 0 < len(there) < len(own):
            recordings.remark(
                f"{group.label}: {len(there)} of {len(own)} runs of a workload reached its target; these count"
            )
        costs.append(float(np.mean(usable)) if usable else math.inf)
    return costs


def _draw(panel: Axes, groups: Sequence[Group], ratios: Sequence[Sequence[float]], options: Options) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    last = 1.1 * max(2.0, *(one for each in ratios for one in each if math.isfinite(one)))
    for index, group in enumerate(groups):
        x, y = profile([each[index] for each in ratios])
        look = group.look
        panel.plot(
            *([*x, last], [*y, y[-1]]),
            drawstyle="steps-post",
            color=look.colour,
            linestyle=look.dashes,
            marker=look.marker,
            markevery=list(range(len(x))),
            label=group.label,
            clip_on=False,
        )
    panel.set_xscale("log")
    panel.set_xlim(1, last)
    panel.set_ylim(0, 1.02)
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda factor, _: f"{factor:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel(f"{_NAMES[options.of or 'bytes']} to the target, by the least")
    panel.set_ylabel("share of workloads")


def _said(recordings: Recordings, options: Options) -> str:
    """Of the target, for the legend."""
    runs = [one for one in recordings.records if one.status == "FINISHED"]
    headlines = {headline_of(one.params).metric for one in runs}
    shown = [recordings.metric(name) for name in options.metrics[:1]] or filter(recordings.reported, headlines)
    metrics = sorted(shown)
    names = " or ".join(name_of(metric) for metric in metrics)
    if options.target is not None:
        return f"target: {names} of {written(metrics[0], options.target)}"
    workloads: dict[_Workload, list[Run]] = {}
    for one in runs:
        workloads.setdefault(_workload(one), []).append(one)
    found = {_baseline(each, workloads, options) for each in workloads.values()} - {None}
    return f"target: {names} within {_NEAR:.0%} of {' or '.join(sorted(map(str, found)))}'s"


def _workload(run: Run) -> _Workload:
    return tuple(sorted((key, value) for key, value in run.params.items() if _of_workload(key)))


def _of_workload(key: str) -> bool:
    return key.startswith(_WORKLOAD) or key in _WORKLOAD_KEYS
