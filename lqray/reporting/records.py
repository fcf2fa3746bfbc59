"""Runs as MLflow recorded them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lqray.experiment.foreign import in_line, whole_number
from lqray.experiment.plan import plan_tags
from lqray.reporting import database
from lqray.reporting.exported import experiment_of, export_folder, runs_in
from lqray.store.client import reading_client

_TRIAL, _NAME = "lqray.trial_id", "lqray.trial_name"
_INFINITY = 1.797e308
"""MLflow stores an infinite metric as the largest float64."""


class UnknownExperimentError(LookupError):
    """No experiment of this name in the store."""


@dataclass(frozen=True)
class Record:
    """One recorded run of a trial. metrics: last value of each. params: as MLflow keeps them, as text. tags: lqray's.
    started: seconds since the epoch. status: MLflow's, or MISSING for a trial of the plan that has no run."""

    run_id: str
    trial_id: str
    name: str
    status: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    error: str | None
    tags: Mapping[str, str] = field(default_factory=dict)
    started: float = 0.0
    experiment: str = ""

    @property
    def method(self) -> str:
        """Of its quantizer."""
        return self.params.get("quantizer.method", "?")

    @property
    def attempt(self) -> int:
        """Counts the trial's runs in its experiment, from 1."""
        return whole_number(self.tags.get("lqray.attempt", "1"), 1)

    @property
    def state(self) -> str:
        """As people say it: finished, running, failed, killed, stopped early, missing."""
        if self.status == "KILLED" and "lqray.early" in self.tags:
            return "stopped early"
        return self.status.lower()


def read_records(uri: str, experiment: str) -> list[Record]:
    """lqray's runs of an experiment, oldest first. uri: absolute store.

    Runs of other tools in the same experiment, and deleted ones, are left out. Raises UnknownExperimentError.
    """
    identifier, _ = _experiment(uri, experiment)
    folder = export_folder(uri)
    if folder:
        return [Record(**fields) for fields in runs_in(folder)]
    with database.connected(uri) as connection:
        found = _from_tables(connection, experiment) if connection is not None else _from_search(uri, identifier)
    return [replace(one, experiment=experiment) for one in found]


def latest_attempts(records: Iterable[Record]) -> list[Record]:
    """Of the runs of each trial the last attempt, in the order of the first ones. records: of one experiment, oldest
    first by their clocks, which decide only between runs of one attempt."""
    latest: dict[str, Record] = {}
    for record in records:
        if record.trial_id not in latest or record.attempt >= latest[record.trial_id].attempt:
            latest[record.trial_id] = record
    return list(latest.values())


def experiment_id(uri: str, experiment: str) -> str:
    """MLflow's id of an experiment. Raises UnknownExperimentError, with the names that there are."""
    return _experiment(uri, experiment)[0]


def experiment_tags(uri: str, experiment: str) -> dict[str, str]:
    """Tags of an experiment. Raises UnknownExperimentError."""
    return _experiment(uri, experiment)[1]


def find_runs(uri: str, name: str, experiment: str | None = None) -> list[Record]:
    """Runs of lqray of this run id, trial name, or trial id or its beginning (from four letters), oldest first; of any
    experiment, unless one is given. Raises UnknownExperimentError."""
    folder = export_folder(uri)
    if folder:
        own = [Record(**fields) for fields in runs_in(folder)]
        alike = len(name) >= 4
        return [one for one in own if name in (one.name, one.run_id) or (alike and one.trial_id.startswith(name))]
    client = reading_client(uri)
    if experiment:
        names = {experiment_id(uri, experiment): experiment}
    else:
        names = {one.experiment_id: one.name for one in client.search_experiments()}
    conditions = [f"tags.`{_NAME}` = '{_quoted(name)}'"]
    if len(name) >= 4 and name.isalnum():
        conditions += [f"tags.`{_TRIAL}` LIKE '{name}%'", f"attributes.run_id = '{name}'"]
    runs: dict[str, Record] = {}
    for condition in conditions:
        for run in client.search_runs(list(names), condition, order_by=["attributes.start_time ASC"]):
            if _TRIAL in run.data.tags:
                runs[run.info.run_id] = replace(_of_run(run), experiment=names[run.info.experiment_id])
    return sorted(runs.values(), key=lambda one: one.started)


def number(value: float, is_nan: bool = False) -> float:
    """A stored metric as the number that was logged."""
    if is_nan:
        return math.nan
    return math.copysign(math.inf, value) if abs(value) > _INFINITY else value


def _quoted(text: str) -> str:
    """Inside single quotes of MLflow's search, which knows no escape."""
    return text.replace("'", "_")


def _experiment(uri: str, experiment: str) -> tuple[str, dict[str, str]]:
    """Id and tags of an experiment. Raises UnknownExperimentError."""
    folder = export_folder(uri)
    if folder:
        name, text = experiment_of(folder)
        return _known(uri, {name: ("", plan_tags("", text) if text else {})}, experiment)
    with database.connected(uri) as connection:
        if connection is not None:  # without the second that importing MLflow takes
            found = database.experiments_of(connection)
        else:
            found = {one.name: (one.experiment_id, one.tags) for one in reading_client(uri).search_experiments()}
    return _known(uri, found, experiment)


def _known(uri: str, found: Mapping[str, tuple[str, dict[str, str]]], experiment: str) -> tuple[str, dict[str, str]]:
    if experiment not in found:
        known = ", ".join(map(in_line, sorted(set(found) - {"lqray-leases"}))) or "none"
        raise UnknownExperimentError(f"no experiment {experiment!r} in {uri}; there are: {known}")
    return found[experiment]


def _from_tables(connection: Any, experiment: str) -> list[Record]:
    intern = sys.intern  # thousands of runs share their keys and most of their values
    tags: dict[str, dict[str, str]] = {}
    for run_id, key, value in database.tags_of(connection, experiment, "lqray."):
        tags.setdefault(run_id, {})[intern(key)] = value
    params: dict[str, dict[str, str]] = {}
    for run_id, key, value in database.params_of(connection, experiment):
        if run_id in tags:
            params.setdefault(run_id, {})[intern(key)] = intern(value)
    metrics: dict[str, dict[str, float]] = {}
    for run_id, key, last, is_nan in database.latest_metrics_of(connection, experiment):
        if run_id in tags:
            metrics.setdefault(run_id, {})[intern(key)] = number(last, is_nan)
    return [
        _record(run_id, name, status, started, params.get(run_id, {}), metrics.get(run_id, {}), tags[run_id])
        for run_id, name, status, started, _ in database.runs_of(connection, experiment)
        if _TRIAL in tags.get(run_id, ())
    ]


def _from_search(uri: str, identifier: str) -> list[Record]:
    client = reading_client(uri)
    records: list[Record] = []
    token = None
    while True:
        page = client.search_runs(
            [identifier],
            f"tags.`{_TRIAL}` != ''",
            max_results=1000,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        records += [_of_run(run) for run in page]
        token = page.token
        if not token:
            return records


def _of_run(run: Any) -> Record:
    data, info = run.data, run.info
    metrics = {key: number(value) for key, value in data.metrics.items()}
    own = {key: value for key, value in data.tags.items() if key.startswith("lqray.")}
    return _record(info.run_id, info.run_name, info.status, info.start_time, data.params, metrics, own)


def _record(
    run_id: str,
    name: str,
    status: str,
    started: int,
    params: Mapping[str, str],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
) -> Record:
    error = tags.get("lqray.error")
    lost = tags.get("lqray.nan_metrics")  # MLflow has their last value that was a number
    if lost:
        metrics = {**metrics, **dict.fromkeys(lost.split(","), math.nan)}
    return Record(
        run_id, tags[_TRIAL], tags.get(_NAME, name), status, params, metrics, error, tags, (started or 0) / 1000
    )
