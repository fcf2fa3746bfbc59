"""What a figure is of: trials in groups, and their histories, read when they are asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lqray.experiment.headline import Headline, common_headline, higher_is_better
from lqray.reporting.artifacts import ArtifactError
from lqray.reporting.histories import History, read_histories
from lqray.reporting.labels import PLAIN, Labels
from lqray.reporting.levels import LEVEL_METRIC, continued, level_histories, read_levels
from lqray.reporting.measured_links import MeasuredPoint
from lqray.reporting.methods import Look, look, numbered, shade
from lqray.reporting.selection import METHOD, SEED, TRIAL, alike, grouped, keys_of, metrics_of, resolved
from lqray.reporting.targets import to_target
from lqray.store.runs import Run

FINISHED, RUNNING = "FINISHED", "RUNNING"


class NothingToDrawError(ValueError):
    """The records do not hold what a figure shows; the text says what is missing, and how to get it."""


@dataclass(frozen=True)
class Options:
    """metrics: by default the kind's own. group_by: parameters, by default those that vary. target: of the metric.
    smooth: points of a running mean, 0 for none. width: of a column of a paper or of both. measured: seconds on links,
    workers: numbers of them, both of `links`. baseline: a method, by default that of `chosen_baseline`, of: which cost,
    None for bytes, both of `profile`."""

    metrics: tuple[str, ...] = ()
    group_by: tuple[str, ...] = ()
    target: float | None = None
    smooth: int = 0
    width: Literal["single", "double"] = "single"
    measured: tuple[MeasuredPoint, ...] = ()
    workers: tuple[int, ...] = ()
    baseline: str | None = None
    of: Literal["bytes", "seconds", "steps"] | None = None


@dataclass(frozen=True)
class Group:
    """Trials drawn as one: they differ in the seed, and in what they were not grouped by."""

    label: str
    look: Look
    records: tuple[Run, ...]

    @property
    def finished(self) -> list[Run]:
        """Those that count."""
        return [one for one in self.records if one.status == FINISHED]

    @property
    def running(self) -> list[Run]:
        """Those that are under way."""
        return [one for one in self.records if one.status != FINISHED]


class Recordings:
    """Finished trials, and running ones where these are wanted.

    uri: absolute store. records: at most one a trial. left_out: what the reader of any figure of them should know.
    labels: what keys and values are called.
    remarks: what a reader of the figure should know of what it leaves out; drawing adds to them.
    """

    def __init__(self, uri: str, records: Sequence[Run], left_out: Sequence[str] = (), labels: Labels = PLAIN) -> None:
        self._uri = uri
        self.labels = labels
        self._histories: dict[str, dict[str, History]] = {}
        self._levels: dict[str, dict[str, History]] = {}
        self.records = alike(records)
        self.left_out = tuple(left_out)
        self.remarks: list[str] = []

    def remark(self, text: str) -> None:
        """Say something once."""
        if text not in self.remarks:
            self.remarks.append(text)

    def metric(self, name: str) -> str:
        """The reported metric that `name` is, or is the ending of. Raises UnknownKeyError, which lists them."""
        return resolved(name, metrics_of(self.records), "metric")

    @property
    def headline(self) -> Headline:
        """By which the trials are judged."""
        return common_headline(one.params for one in self.records)

    def shown(self, names: Sequence[str]) -> list[str]:
        """The reported metrics `names`, or without any the headline. Raises UnknownKeyError."""
        return [self.metric(name) for name in names or (self.headline.metric,)]

    def reported(self, key: str) -> bool:
        """Whether some trial has the metric."""
        return any(key in one.metrics for one in self.records)

    def histories(self, key: str) -> dict[str, History]:
        """By run id; reads a metric once."""
        if key not in self._histories:
            found: dict[str, History] = {}
            for name in dict.fromkeys(one.experiment for one in self.records):
                wanted = [one.run_id for one in self.records if one.experiment == name and key in one.metrics]
                found |= read_histories(self._uri, name, wanted, key) if wanted else {}
            self._histories[key] = found
        return self._histories[key]

    def steps_to(self, metric: str, target: float) -> dict[str, float]:
        """By run id, of the finished runs whose metric was at the target or better, the step at which it first was."""
        finished = [one for one in self.records if one.status == FINISHED]
        found = to_target(finished, self.histories, metric, target, higher_is_better(metric, self.headline))
        return {run_id: one.steps for run_id, one in found.items()}

    def density(self, record: Run) -> dict[str, Any] | None:
        """A run's `density.json`; None where it has none. Raises ArtifactError."""
        from lqray.reporting.artifacts import read_density

        return read_density(self._uri, record)

    def levels(self, record: Run) -> dict[str, History]:
        """A run's levels, by the metrics that they would be (quantizer/level/3, quantizer/NAME/level/3); of runs of
        earlier versions they are. Read once. An artifact that cannot be used is a remark."""
        if record.run_id not in self._levels:
            try:
                document = read_levels(self._uri, record)
            except ArtifactError as error:
                self.remark(f"left out: {error}")
                document = None
            found = level_histories(document) if document else {}
            for key in filter(LEVEL_METRIC.fullmatch, record.metrics):
                earlier = self.histories(key).get(record.run_id)
                if earlier is not None:
                    found[key] = continued(earlier, found[key]) if key in found else earlier
            self._levels[record.run_id] = {key: one for key, one in found.items() if LEVEL_METRIC.fullmatch(key)}
        return self._levels[record.run_id]

    def groups(self, group_by: Sequence[str] = (), without: Collection[str] = ()) -> list[Group]:
        """Trials by the parameters `group_by`, by default those that tell groups of seeds apart, but not by `without`.

        In the order of methods. Raises UnknownKeyError.
        """
        keys = [key for key in keys_of(self.records, group_by) if key not in without]
        parted = grouped(self.records, keys, self.labels.places)
        hidden = _hidden(keys, [values for values, _ in parted])
        by_method = all(len({one.method for one in members}) == 1 for _, members in parted)
        groups = [
            Group(
                _label(keys, values, hidden, self.labels),
                look(members[0].method) if by_method else numbered(number),
                tuple(members),
            )
            for number, (values, members) in enumerate(parted)
        ]
        return _shaded(groups)


def band_note(groups: Iterable[Group], logarithmic: Iterable[bool] = ()) -> str:
    """What lines and bands are of, for the legend; nothing where no group has two finished runs. logarithmic: whether
    the axes are."""
    runs = runs_of(groups)
    return f"{mean_of(logarithmic)} and 95% interval of {runs}" if runs else ""


def runs_of(groups: Iterable[Group]) -> str:
    """How many finished runs groups have: `3 to 5 seeds`; nothing where none has two."""
    finished = [one.finished for one in groups if one.finished]
    counts = sorted({len(runs) for runs in finished})
    if not counts or counts[-1] < 2:
        return ""
    many = f"{counts[0]} to {counts[-1]}" if counts[0] < counts[-1] else f"{counts[0]}"
    seeds = all(len({one.params.get(SEED) for one in runs}) == len(runs) for runs in finished)
    return f"{many} {'seeds' if seeds else 'runs'}"


def mean_of(logarithmic: Iterable[bool]) -> str:
    """What is drawn of several runs. logarithmic: whether the axes are."""
    scales = set(logarithmic)
    return ("geometric mean" if scales == {True} else "mean") + (
        " (geometric where logarithmic)" if len(scales) == 2 else ""
    )


def _hidden(keys: Sequence[str], groups: Collection[Sequence[str | None]]) -> dict[str, str]:
    """Parameters that vary within a single method, with that method: labels of others need not name them."""
    if METHOD not in keys:
        return {}
    at = keys.index(METHOD)
    alone = {}
    for place, key in enumerate(keys):
        by_method: dict[str | None, set[str | None]] = {}
        for values in groups:
            by_method.setdefault(values[at], set()).add(values[place])
        varying = [method for method, found in by_method.items() if len(found) > 1]
        if len(varying) == 1:
            alone[key] = varying[0] or "?"
    return alone


def _label(keys: Sequence[str], values: Sequence[str | None], hidden: Mapping[str, str], labels: Labels) -> str:
    method = dict(zip(keys, values, strict=True)).get(METHOD)
    parts = []
    for key, value in zip(keys, values, strict=True):
        if value is None or hidden.get(key, method) != method:
            continue
        alone = key in (METHOD, TRIAL) or labels.has(key, value)
        parts.append(labels.value(key, value) if alone else f"{labels.heading(key, keys)} {value}")
    return ", ".join(parts) or "all trials"


def _shaded(groups: Sequence[Group]) -> list[Group]:
    """Groups of one method in shades of its colour, the last in the colour itself."""
    same: dict[Look, list[int]] = {}
    for index, group in enumerate(groups):
        same.setdefault(group.look, []).append(index)
    return [
        replace(group, look=shade(group.look, same[group.look].index(index), len(same[group.look])))
        for index, group in enumerate(groups)
    ]
