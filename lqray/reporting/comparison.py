"""How groups of runs compare: statistics over seeds, with a test against a baseline."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from lqray.experiment.errors import did_you_mean
from lqray.experiment.foreign import whole_number
from lqray.experiment.headline import ACCURACY, Headline, common_headline, higher_is_better
from lqray.reporting.histories import History, of_runs
from lqray.reporting.intervals import Spread, kind_of, spread
from lqray.reporting.methods import in_order
from lqray.reporting.selection import (
    METHOD,
    SEED,
    UnknownKeyError,
    alike,
    grouped,
    grouping_keys,
    keys_of,
    metrics_of,
    resolved,
)
from lqray.reporting.targets import BYTES, BYTES_A_STEP, COSTS, SECONDS_A_STEP, Read, check_target, to_target
from lqray.store.runs import Run

_LAST = 5


@dataclass(frozen=True)
class Difference:
    """From a baseline, in pairs of runs of equal seed: mean of the differences, its 95% interval, and the p-value of
    the paired t-test (NaN with fewer than two pairs). pairs: (run id, the baseline's)."""

    spread: Spread
    p_value: float
    pairs: tuple[tuple[str, str], ...]


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
    are in each. metrics: of its finished runs. costs: bits per coordinate, bytes sent by a process, seconds a step."""

    keys: Mapping[str, str | None]
    records: tuple[Run, ...]
    states: Mapping[str, int]
    metrics: Mapping[str, Measured]
    costs: Mapping[str, Spread]

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
    mean of `smooth` evaluations, where that is not 0. headline: by which the trials are judged."""

    keys: tuple[str, ...]
    metrics: tuple[str, ...]
    baseline: str | None
    target: float | None
    last: int
    groups: tuple[Group, ...]
    headline: Headline = ACCURACY
    smooth: int = 0


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
    endings, by default those that vary; `trial` for each trial on its own. baseline: a method, by default
    full_precision where it is among the runs. histories: False leaves out what needs them (best, last, to_target), and
    reads none. target, smooth: see `targets`. Raises UnknownKeyError, TargetError.
    """
    records = alike(records)
    headline = common_headline(one.params for one in records)
    reported = metrics_of(records) or {headline.metric}
    chosen = tuple(resolved(name, reported, "metric") for name in metrics) or (headline.metric,)
    keys = keys_of(records, group_by)
    methods = in_order(one.method for one in records)
    if baseline is None:
        baseline = "full_precision" if "full_precision" in methods and len(methods) > 1 else None
    elif baseline not in methods:
        hint = did_you_mean(baseline, methods)
        raise UnknownKeyError(f"found baseline {baseline!r}; {f'{hint} ' if hint else ''}allowed: {', '.join(methods)}")
    if target is not None:
        check_target(target, chosen[0], (one.metrics[chosen[0]] for one in records if chosen[0] in one.metrics))
    finished = [one for one in records if one.status == "FINISHED"]

    @cache
    def read(key: str) -> Mapping[str, History]:
        return of_runs(uri, finished, key) if histories else {}

    against = _Baseline(records, grouping_keys(records), baseline) if baseline else None
    groups = [
        Group(
            dict(zip(keys, values, strict=True)),
            tuple(members),
            Counter(one.state for one in members),
            {
                name: _measured(
                    name,
                    higher_is_better(name, headline),
                    members,
                    read,
                    against,
                    None if index else target,
                    last,
                    smooth,
                )
                for index, name in enumerate(chosen)
            },
            _costs(members),
        )
        for values, members in grouped(records, keys)
    ]
    return Comparison(keys, chosen, baseline, target, last, tuple(groups), headline, smooth)


def _measured(
    name: str,
    higher: bool,
    members: Sequence[Run],
    read: Read,
    against: _Baseline | None,
    target: float | None,
    last: int,
    smooth: int,
) -> Measured:
    finished = [one for one in members if one.status == "FINISHED"]
    final = {one.run_id: one.metrics[name] for one in finished if name in one.metrics}
    best, tail, histories = {}, {}, read(name)
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
    difference = against.difference(name, finished) if against else None
    reached = {} if target is None else to_target(finished, read, name, target, higher, smooth)
    until = {
        what: spread({run_id: getattr(values, what) for run_id, values in reached.items()}, "nonnegative")
        for what in (() if target is None else COSTS)
    }
    kind = kind_of(name)
    return Measured(spread(final, kind), spread(best, kind), spread(tail, kind), difference, until, len(reached))


class _Baseline:
    """Runs of the baseline's method, found by the seed and by what else both runs vary in."""

    def __init__(self, records: Sequence[Run], keys: Sequence[str], method: str) -> None:
        runs = [one for one in records if one.method == method and one.status == "FINISHED"]
        shared = [key for key in keys if key not in (METHOD, "trial") and all(key in one.params for one in runs)]
        self._keys = [*shared, SEED]
        self._method = method
        self._runs: dict[tuple[str | None, ...], list[Run]] = {}
        for one in runs:
            self._runs.setdefault(self._place(one), []).append(one)

    def difference(self, metric: str, finished: Sequence[Run]) -> Difference | None:
        """None for the baseline itself and where no run has its one counterpart."""
        values, pairs, both = {}, [], []
        for one in finished:
            found = self._runs.get(self._place(one), [])
            if one.method == self._method or len(found) != 1:
                continue
            mine, other = one.metrics.get(metric, math.nan), found[0].metrics.get(metric, math.nan)
            if math.isfinite(mine - other):
                values[one.run_id] = mine - other
                pairs.append((one.run_id, found[0].run_id))
                both.append((mine, other))
        return Difference(spread(values), _paired_p(both), tuple(pairs)) if pairs else None

    def _place(self, record: Run) -> tuple[str | None, ...]:
        return tuple(record.params.get(key) for key in self._keys)


def _paired_p(pairs: Sequence[tuple[float, float]]) -> float:
    if len(pairs) < 2:
        return math.nan
    from scipy.stats import ttest_rel

    first, second = np.transpose(pairs)
    gaps = first - second
    if np.ptp(gaps) <= 1e-12 * max(1.0, float(np.abs(gaps).max())):
        return math.nan  # they do not vary, as far as one can tell: nothing to test against
    return float(ttest_rel(first, second).pvalue)


def _costs(members: Sequence[Run]) -> dict[str, Spread]:
    finished = [one for one in members if one.status == "FINISHED"]
    found = {
        "bits_per_coordinate": {one.run_id: one.metrics.get("wire/bits_per_coordinate") for one in finished},
        "bytes_sent": {one.run_id: bytes_sent(one) for one in finished},
        "seconds_per_step": {one.run_id: one.metrics.get(SECONDS_A_STEP) for one in finished},
    }
    return {
        name: spread({run_id: value for run_id, value in values.items() if value is not None}, "nonnegative")
        for name, values in found.items()
    }


def bytes_sent(record: Run) -> float | None:
    """By one process over the whole run; from its bytes per step where the run did not record their sum, and None
    where it says nothing of either, or its steps are not known."""
    if BYTES in record.metrics:
        return record.metrics[BYTES]
    iterations, each = whole_number(record.params.get("schedule.iterations", ""), 0), record.metrics.get(BYTES_A_STEP)
    return each * iterations if iterations and each is not None else None
