"""How the trials of an experiment stand in the store."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lqray.experiment.foreign import whole_number
from lqray.orchestration.store_access import reading_client
from lqray.store.errors import NoStoreError
from lqray.store.tables import ACTIVE, connected, workspace

_TRIAL, _NAME, _ATTEMPT, _NAN = "lqray.trial_id", "lqray.trial_name", "lqray.attempt", "lqray.nan_metrics"


@dataclass(frozen=True)
class TrialState:
    """The latest run of one trial. status: MLflow's. started, ended: seconds since the epoch. tags, metrics (the last
    values): those asked for. attempt: counts the trial's runs, from 1."""

    trial_id: str
    run_id: str
    name: str
    status: str
    started: float
    ended: float | None
    tags: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)
    attempt: int = 1

    @property
    def order(self) -> tuple[int, float, str]:
        """Of a trial's runs the latest is that of the last attempt. Clocks of machines differ, and are set back: when a
        run began decides only between runs of one attempt, as earlier versions of lqray could make them."""
        return self.attempt, self.started, self.run_id


def attempt_of(tags: Mapping[str, str]) -> int:
    """Which attempt at its trial a run is, from 1, by its tags."""
    return whole_number(tags.get(_ATTEMPT, "1"), 1)


def read_states(
    uri: str, experiment: str, wanted_tags: Collection[str] = (), wanted_metrics: Collection[str] = ()
) -> dict[str, TrialState]:
    """By trial id; {} where the experiment, or the store, does not exist: nothing is made. Deleted runs and those of
    other tools are left out. Raises StoreError, StoreAwayError.

    MLflow's search loads every param, metric and tag of every run. From a database only what is asked for is read here,
    straight from MLflow's tables; from a server, or tables that are not as expected, through the search.
    """
    states: dict[str, TrialState] = {}
    for state in _states(uri, experiment, wanted_tags, wanted_metrics):
        known = states.get(state.trial_id)
        if known is None or known.order < state.order:
            states[state.trial_id] = state
    return states


def last_values(metrics: Mapping[str, float], tags: Mapping[str, str]) -> dict[str, float]:
    """A run's metrics, as MLflow has them, with NaN for those that ended so: MLflow is not told of NaN, and has the
    value before it as the last."""
    lost = tags.get(_NAN, "").split(",")
    return {key: math.nan if key in lost else value for key, value in metrics.items()}


def _states(uri: str, experiment: str, wanted: Collection[str], metrics: Collection[str]) -> Iterator[TrialState]:
    try:
        with connected(uri) as connection:
            if connection is not None:
                yield from list(_from_tables(connection, experiment, wanted, metrics))
                return
    except NoStoreError:
        return
    yield from _from_search(uri, experiment, wanted, metrics)


def _from_tables(
    connection: Any, experiment: str, wanted: Collection[str], metrics: Collection[str] = ()
) -> Iterator[TrialState]:
    from sqlalchemy import bindparam, text

    tags, latest = (
        text(
            f"SELECT run_uuid, key, value FROM {table} WHERE run_uuid IN (SELECT r.run_uuid {ACTIVE}) AND key IN :keys"
        ).bindparams(bindparam("keys", expanding=True))
        for table in ("tags", "latest_metrics")
    )
    runs = text(f"SELECT r.run_uuid, r.status, r.start_time, r.end_time, r.name {ACTIVE}")
    which = {"name": experiment, "workspace": workspace()}
    found: dict[str, dict[str, str]] = {}
    for run_id, key, value in connection.execute(tags, {**which, "keys": [_TRIAL, _NAME, _ATTEMPT, _NAN, *wanted]}):
        found.setdefault(run_id, {})[key] = value
    values: dict[str, dict[str, float]] = {}
    for run_id, key, value in connection.execute(latest, {**which, "keys": [*metrics]}) if metrics else ():
        values.setdefault(run_id, {})[key] = value
    for run_id, status, started, ended, name in connection.execute(runs, which):
        yield from _state(run_id, status, started, ended, name, found.get(run_id, {}), wanted, values.get(run_id, {}))


def _from_search(
    uri: str, experiment: str, wanted: Collection[str], metrics: Collection[str] = ()
) -> Iterator[TrialState]:
    client = reading_client(uri)
    found = client.get_experiment_by_name(experiment)
    token = None
    while found is not None:
        page = client.search_runs([found.experiment_id], f"tags.`{_TRIAL}` != ''", max_results=1000, page_token=token)
        for run in page:
            info, data = run.info, run.data
            values = {key: data.metrics[key] for key in metrics if key in data.metrics}
            times = info.start_time, info.end_time
            yield from _state(info.run_id, info.status, *times, info.run_name, data.tags, wanted, values)
        token = page.token
        if not token:
            return


def _state(
    run_id: str,
    status: str,
    started: int | None,
    ended: int | None,
    name: str,
    tags: Mapping[str, str],
    wanted: Collection[str],
    metrics: Mapping[str, float],
) -> Iterator[TrialState]:
    if _TRIAL not in tags:
        return
    chosen = {key: tags[key] for key in wanted if key in tags}
    metrics = last_values(metrics, tags)
    begun, over = (started or 0) / 1000, ended / 1000 if ended else None
    yield TrialState(
        tags[_TRIAL], run_id, tags.get(_NAME, name), status, begun, over, chosen, metrics, attempt_of(tags)
    )
