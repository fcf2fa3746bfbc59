"""Runs as MLflow recorded them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


class UnknownExperimentError(LookupError):
    """No experiment of this name in the store."""


@dataclass(frozen=True)
class Record:
    """One recorded run of a trial. metrics: last value of each. params: as MLflow keeps them, as text."""

    run_id: str
    trial_id: str
    name: str
    status: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    error: str | None


def read_records(uri: str, experiment: str, launch_id: str | None = None) -> list[Record]:
    """lqray's runs of an experiment, oldest first; of one launch, when given. uri: absolute store.

    Runs of other tools in the same experiment are left out. Raises UnknownExperimentError.
    """
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        known = ", ".join(sorted(e.name for e in client.search_experiments())) or "none"
        raise UnknownExperimentError(f"no experiment {experiment!r} in {uri}; there are: {known}")
    condition = f"tags.`lqray.launch` = '{launch_id}'" if launch_id else "tags.`lqray.trial_id` != ''"
    records: list[Record] = []
    token = None
    while True:
        page = client.search_runs(
            [found.experiment_id], condition, max_results=1000, order_by=["attributes.start_time ASC"], page_token=token
        )
        records += [_record(run) for run in page]
        token = page.token
        if not token:
            return records


def latest_attempts(records: list[Record]) -> list[Record]:
    """Of the runs of each trial the latest, in the order of the first ones. records: oldest first."""
    latest: dict[str, Record] = {}
    for record in records:
        latest[record.trial_id] = record
    return list(latest.values())


def experiment_id(uri: str, experiment: str) -> str:
    """MLflow's id of an experiment. Raises UnknownExperimentError."""
    from mlflow import MlflowClient

    found = MlflowClient(tracking_uri=uri).get_experiment_by_name(experiment)
    if found is None:
        raise UnknownExperimentError(f"no experiment {experiment!r} in {uri}")
    identifier: str = found.experiment_id
    return identifier


def _record(run: object) -> Record:
    data, info = run.data, run.info  # type: ignore[attr-defined]
    return Record(
        run_id=info.run_id,
        trial_id=data.tags["lqray.trial_id"],
        name=data.tags.get("lqray.trial_name", info.run_name),
        status=info.status,
        params=data.params,
        metrics=data.metrics,
        error=data.tags.get("lqray.error"),
    )
