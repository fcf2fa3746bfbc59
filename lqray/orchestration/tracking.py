"""Writing to MLflow: one flat run per attempt at a trial. Metrics are the scribe's."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from lqray.experiment.grid import NamedTrial
from lqray.experiment.secrets import masked
from lqray.experiment.store import store_folder
from lqray.orchestration.datasets import dataset_inputs
from lqray.orchestration.description import axis_metrics, trial_description
from lqray.orchestration.launch_files import LaunchFiles
from lqray.orchestration.launcher import TrialResult
from lqray.orchestration.states import TrialState
from lqray.orchestration.store_access import client_of, patient_client, patiently

_TRACEBACK = "traceback.txt"
_OF_THE_END = (
    "lqray.error",
    "lqray.failure",
    "lqray.failed_host",
    "lqray.failed_rank",
    "lqray.stopped",
    "lqray.early",
    "lqray.nan_metrics",
)


@dataclass(frozen=True)
class Launch:
    """What all runs of one `lqray run` share: store, experiment and tags; plain data, sent to other processes.

    source: text of the experiment file, passwords in it masked; kept with every run as an artifact. axes: dotted keys
    that vary.
    """

    uri: str
    experiment: str
    experiment_id: str
    launch_id: str
    file: str
    source: str
    tags: Mapping[str, str] = field(default_factory=dict)
    axes: tuple[str, ...] = ()


def open_launch(
    uri: str, experiment: str, file: str, source: str, tags: Mapping[str, str], axes: tuple[str, ...], storage: str
) -> Launch:
    """Find or make the MLflow experiment. `uri` is absolute (`lqray.experiment.store.absolute_store`).

    A server decides where artifacts of a new experiment are kept. Those of a sqlite store are beside it, in
    lqray-artifacts/; those of another database, which says nothing of files, in the folder `storage`, where it is one.
    """
    client = patient_client(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        folder = store_folder(uri)
        if folder is None and not uri.startswith(("http://", "https://")) and "://" not in storage:
            folder = Path(storage)
        location = (folder / "lqray-artifacts" / experiment).as_uri() if folder else None
        experiment_id = _created(client, experiment, location)
    else:
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        experiment_id = found.experiment_id
    launch_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06d}"
    return Launch(uri, experiment, experiment_id, launch_id, file, masked(source), dict(tags), axes)


def _created(client: Any, experiment: str, location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(experiment, artifact_location=location))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return str(client.get_experiment_by_name(experiment).experiment_id)  # another launch was faster


def describe_experiment(launch: Launch, markdown: str) -> None:
    """Set the description that the MLflow UI shows above the experiment's runs."""
    client = client_of(launch.uri)
    patiently(lambda: client.set_experiment_tag(launch.experiment_id, "mlflow.note.content", markdown))


def start_run(launch: Launch, named: NamedTrial, tags: Mapping[str, str], files: LaunchFiles) -> str:
    """A RUNNING run with all resolved parameters, numeric axes as metrics at step 0, tags, a description, and as
    artifacts the YAML, the resolved trial and the launch's files."""
    from mlflow.entities import Metric, Param

    client = client_of(launch.uri)
    trial = named.trial
    mark = secrets.token_hex(8)
    every = {
        **launch.tags,
        **tags,
        "lqray.trial_id": trial.id,
        "lqray.trial_name": named.name,
        "lqray.launch": launch.launch_id,
        "lqray.mark": mark,
        "lqray.method": trial.quantizer.method,
        "mlflow.note.content": trial_description(trial),
        "mlflow.source.name": launch.file,
        "mlflow.source.type": "LOCAL",
    }
    tried: list[bool] = []

    def create() -> Any:
        if tried:  # its answer may have been lost, not the request
            for found in client.search_runs([launch.experiment_id], f"tags.`lqray.mark` = '{mark}'"):
                return found
        tried.append(True)
        return client.create_run(launch.experiment_id, run_name=named.name, tags=every)

    run = patiently(create)
    run_id = str(run.info.run_id)
    params = [Param(key, _text(value)) for key, value in trial.flat().items()]
    now = int(time.time() * 1000)  # of one time, a batch that is sent again is the same batch
    axes = [Metric(key, value, now, 0) for key, value in axis_metrics(trial, launch.axes).items()]
    patiently(lambda: client.log_batch(run_id, metrics=axes, params=params))
    own = {"experiment.yaml": launch.source, "trial.yaml": yaml.safe_dump(trial.config(), sort_keys=False)}
    files.give(client, run, own)
    return run_id


def continue_run(launch: Launch, run_id: str, tags: Mapping[str, str], files: LaunchFiles) -> None:
    """Make an ended or abandoned run RUNNING again; what is said of its end is forgotten. The launch's files go to
    launches/LAUNCH, if it is not the launch that made the run. May be called twice."""
    from mlflow.entities import RunTag

    client = client_of(launch.uri)
    client.update_run(run_id, status="RUNNING")
    run = client.get_run(run_id)
    old = run.data.tags
    for key in _OF_THE_END:
        if key in old:
            client.delete_tag(run_id, key)
    if old.get("lqray.launch") != launch.launch_id:
        files.give(client, run, {}, f"launches/{launch.launch_id}")
    every = {**launch.tags, **tags, "lqray.launch": launch.launch_id}
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in every.items()])


def end_run(uri: str, run_id: str, result: TrialResult, tags: Mapping[str, str] = MappingProxyType({})) -> None:
    """Set the final status, and tags; keep what the trial saw of its dataset and its gradients; of a failure, the
    traceback as an artifact and what is known of it as tags. May be called twice."""
    client = client_of(uri)
    if result.examples:
        client.log_inputs(run_id, dataset_inputs(result.named.trial.data, result.examples))
    if result.snapshot:
        client.log_text(run_id, json.dumps(result.snapshot), "density.json")
    lost = sorted(key for key, value in result.metrics.items() if math.isnan(value))
    if lost:  # MLflow is not told of NaN, and would show the value before it as the last
        tags = {**tags, "lqray.nan_metrics": ",".join(lost)}
    for key, value in tags.items():
        client.set_tag(run_id, key, value)
    if result.failure:
        failure = result.failure
        client.log_text(run_id, failure.traceback, _TRACEBACK)
        client.set_tag(run_id, "lqray.error", failure.error)
        client.set_tag(run_id, "lqray.failure", failure.kind)
        if failure.host:
            client.set_tag(run_id, "lqray.failed_host", failure.host)
        if failure.rank is not None:
            client.set_tag(run_id, "lqray.failed_rank", str(failure.rank))
    if result.stopped:
        client.set_tag(run_id, "lqray.early" if result.early else "lqray.stopped", result.stopped)
    client.set_terminated(run_id, result.status)


def state_of(launch: Launch, trial_id: str, wanted_tags: Collection[str]) -> TrialState | None:
    """How one trial stands now: as `lqray.orchestration.states.read_states` says of all."""
    runs = client_of(launch.uri).search_runs(
        [launch.experiment_id],
        f"tags.`lqray.trial_id` = '{trial_id}'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    if not runs:
        return None
    info, tags = runs[0].info, runs[0].data.tags
    return TrialState(
        trial_id,
        info.run_id,
        tags.get("lqray.trial_name", info.run_name),
        info.status,
        info.start_time / 1000,
        info.end_time / 1000 if info.end_time else None,
        {key: tags[key] for key in wanted_tags if key in tags},
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
