"""How groups of runs compare: statistics over seeds, with a test against a baseline."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from lqray.experiment.foreign import whole_number
from lqray.experiment.headline import ACCURACY, Headline, common_headline, higher_is_better
from lqray.reporting.histories import History, of_runs
from lqray.reporting.intervals import Spread, kind_of, spread
from lqray.reporting.pairs import Counterparts, Difference, Pair, chosen_baseline, difference
from lqray.reporting.savings import SAVED, Saving, saving
from lqray.reporting.selection import SEED, alike, grouped, grouping_keys, keys_of, metrics_of, resolved
from lqray.reporting.significance import leading
from lqray.reporting.targets import BYTES, BYTES_A_STEP, COSTS, SECONDS_A_STEP, ToTarget, check_target, to_target
from lqray.store.runs import Run

_LAST = 5
_COSTS = ("bits_per_coordinate", "bytes_sent", "seconds_per_step")


@dataclass(frozen=True)
class Measured:
    """A metric of a group. best: of what is finite in each run's history; last: mean over
    its last evaluations, what the run ended with where that is not finite. to_target: steps, seconds
    and bytes until the metric first reached the target, of the runs that did."""

    final: Spread
    best: Spread
    last: Spread
    difference: Difference | None = None
    to_target: Mapping[str, Spread] = field(default_factory=dict)
    reached: int = 0


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed. keys: what tells the group from others. states: how many of its trials
    are in each. metrics: of its finished runs. costs: bits per coordinate, bytes sent by a process, seconds a step.
    saved: of those, and of what it took to the target, against the baseline; where they are known."""

    keys: Mapping[str, str | None]
    records: tuple[Run, ...]
    states: Mapping[str, int]
    metrics: Mapping[str, Measured]
    costs: Mapping[str, Spread]
    saved: Mapping[str, Saving] = field(default_factory=dict)

    @property
    def finished(self) -> tuple[Run, ...]:
        """Its finished runs."""
        return tuple(one for one in self.records if one.status == "FINISHED")

    def digests(self, tag: str) -> Mapping[str, int]:
        """What its finished runs recorded under a tag of digests, to how many of them."""
        return Counter(one.tags[tag] for one in self.finished if tag in one.tags)

    @property
    def not_finite(self) -> int:
        """How many of its finished runs ended with a metric of the comparison that is NaN or infinite."""
        ended = [values.final.values for values in self.metrics.values()]
        return sum(any(not math.isfinite(values.get(one.run_id, 0.0)) for values in ended) for one in self.finished)

    @property
    def runs(self) -> str:
        """How many finished with numbers; of how many, where some did not, and what became of those."""
        others = [f"{count} {state}" for state, count in sorted(self.states.items()) if state != "finished"]
        if self.not_finite:
            others.append(f"{self.not_finite} not finite")
        usable = len(self.finished) - self.not_finite
        return f"{usable} of {sum(self.states.values())} ({', '.join(others)})" if others else str(usable)


@dataclass(frozen=True)
class Comparison:
    """Groups in the order of methods. keys: those that tell them apart. target: of the first metric; of its running
    mean of `smooth` evaluations, where that is not 0. headline: by which the trials are judged. apart: what runs differ
    in, of whatever groups."""

    keys: tuple[str, ...]
    metrics: tuple[str, ...]
    baseline: str | None
    target: float | None
    last: int
    groups: tuple[Group, ...]
    headline: Headline = ACCURACY
    smooth: int = 0
    baseline_by_default: bool = False
    apart: tuple[str, ...] = ()

    def leading(self, metric: str) -> frozenset[int]:
        """Indices of the groups whose last value of a metric none is significantly better than; see `significance`."""
        keys = [key for key in self.apart if key not in self.keys]
        samples = []
        for group in self.groups:
            values = group.metrics[metric].final.values
            places = {one.run_id: tuple(one.params.get(key) for key in (*keys, SEED)) for one in group.finished}
            samples.append([(places[run_id], value) for run_id, value in values.items() if math.isfinite(value)])
        return leading(samples, higher_is_better(metric, self.headline))


def compare_groups(
    records: Sequence[Run],
    uri: str,
    metrics: Sequence[str] = (),
    group_by: Sequence[str] = (),
    baseline: str | None = None,
    target: float | None = None,
    last: int = _LAST,
    histories: bool = True,
    smooth: int = 0,
) -> Comparison:
    """Compare the latest attempts of trials. records: at most one a trial; of MISSING ones only their params count.

    metrics: final values to compare, by default that by which the trials are judged. group_by: parameters, or their
    endings, by default those that vary; `trial` for each trial on its own. baseline: a method, by default that of
    `chosen_baseline`. histories: False leaves out what needs them (best, last, to_target), and
    reads none. target, smooth: see `targets`. Raises UnknownKeyError, TargetError.
    """
    records = alike(records)
    headline = common_headline(one.params for one in records)
    reported = metrics_of(records) or {headline.metric}
    chosen = tuple(resolved(name, reported, "metric") for name in metrics) or (headline.metric,)
    keys = keys_of(records, group_by)
    method = chosen_baseline(records, baseline)
    if target is not None:
        check_target(target, chosen[0], (one.metrics[chosen[0]] for one in records if chosen[0] in one.metrics))
    finished = [one for one in records if one.status == "FINISHED"]

    @cache
    def read(key: str) -> Mapping[str, History]:
        return of_runs(uri, finished, key) if histories else {}

    higher = {name: higher_is_better(name, headline) for name in chosen}
    reached = None if target is None else to_target(finished, read, chosen[0], target, higher[chosen[0]], smooth)
    apart = grouping_keys(records)
    counterparts = Counterparts(records, apart, method) if method else None
    costs = _costs_of(finished) | {
        "bytes_to_target": {run_id: one.bytes for run_id, one in (reached or {}).items()},
        "seconds_to_target": {run_id: one.seconds for run_id, one in (reached or {}).items()},
    }
    groups = []
    for values, members in grouped(records, keys):
        own = [one for one in members if one.status == "FINISHED"]
        pairs = counterparts.pairs(own) if counterparts else []
        measured = {
            name: _measured(name, higher[name], own, read(name), pairs, last, None if index else reached)
            for index, name in enumerate(chosen)
        }
        saved = {what: found for what in SAVED if (found := saving(pairs, costs[what]))}
        states = Counter(one.state for one in members)
        spreads = {name: _spread_over(own, costs[name]) for name in _COSTS}
        place = dict(zip(keys, values, strict=True))
        groups.append(Group(place, tuple(members), states, measured, spreads, saved))
    by_default = baseline is None and method is not None
    return Comparison(keys, chosen, method, target, last, tuple(groups), headline, smooth, by_default, apart)


def _measured(
    name: str,
    higher: bool,
    finished: Sequence[Run],
    histories: Mapping[str, History],
    pairs: Sequence[Pair],
    last: int,
    to_target: Mapping[str, ToTarget] | None,
) -> Measured:
    final = {one.run_id: one.metrics[name] for one in finished if name in one.metrics}
    best, tail = {}, {}
    for one in finished:
        points, ended = histories.get(one.run_id), final.get(one.run_id, 0.0)
        if points is not None:
            usable = points.values[np.isfinite(points.values)]
            extreme = np.max if higher else np.min
            best[one.run_id] = float(extreme(usable)) if len(usable) else math.nan
            tail[one.run_id] = float(np.mean(points.values[-last:]))
        if not math.isfinite(ended):  # of which MLflow keeps no points, where it is NaN
            best.setdefault(one.run_id, math.nan)
            tail[one.run_id] = ended
    known = to_target or {}
    reached = {one.run_id: known[one.run_id] for one in finished if one.run_id in known}
    until = {
        what: spread({run_id: getattr(values, what) for run_id, values in reached.items()}, "nonnegative")
        for what in (() if to_target is None else COSTS)
    }
    kind = kind_of(name)
    own, extremes, ends = (spread(values, kind) for values in (final, best, tail))
    return Measured(own, extremes, ends, difference(name, pairs), until, len(reached))


def _costs_of(finished: Sequence[Run]) -> dict[str, dict[str, float]]:
    """By cost and run id, of runs that know it."""
    found = {
        "bits_per_coordinate": {one.run_id: one.metrics.get("wire/bits_per_coordinate") for one in finished},
        "bytes_sent": {one.run_id: bytes_sent(one) for one in finished},
        "seconds_per_step": {one.run_id: one.metrics.get(SECONDS_A_STEP) for one in finished},
    }
    return {
        name: {run_id: value for run_id, value in values.items() if value is not None} for name, values in found.items()
    }


def _spread_over(runs: Sequence[Run], cost: Mapping[str, float]) -> Spread:
    return spread({one.run_id: cost[one.run_id] for one in runs if one.run_id in cost}, "nonnegative")


def bytes_sent(record: Run) -> float | None:
    """By one process over the whole run; from its bytes per step where the run did not record their sum, and None
    where it says nothing of either, or its steps are not known."""
    if BYTES in record.metrics:
        return record.metrics[BYTES]
    iterations, each = whole_number(record.params.get("schedule.iterations", ""), 0), record.metrics.get(BYTES_A_STEP)
    return each * iterations if iterations and each is not None else None
