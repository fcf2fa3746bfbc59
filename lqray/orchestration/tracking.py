"""Writing to MLflow: one flat run per attempt at a trial. Metrics are the scribe's, files the artifact writer's."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from lqray.experiment.grid import NamedTrial
from lqray.experiment.secrets import masked
from lqray.experiment.store import store_folder
from lqray.orchestration.artifacts import ArtifactWriter
from lqray.orchestration.description import axis_metrics, trial_description
from lqray.orchestration.launcher import TrialResult
from lqray.orchestration.states import TrialState, attempt_of
from lqray.orchestration.store_access import PATIENCE, StoreAwayError, client_of, patient_client, patiently
from lqray.store.experiments import ARTIFACTS, check_usable

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
    Raises StoreError for an experiment that is not to be recorded in.
    """
    client = patient_client(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        folder = store_folder(uri)
        if folder is None and not uri.startswith(("http://", "https://")) and "://" not in storage:
            folder = Path(storage)
        location = (folder / ARTIFACTS / experiment).as_uri() if folder else None
        experiment_id = _created(client, experiment, location)
    else:
        check_usable(uri, experiment)  # it may have been deleted since the launch was planned
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


def start_run(launch: Launch, named: NamedTrial, tags: Mapping[str, str], files: ArtifactWriter) -> str:
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
    files.give(client, run, _own_files(launch, named))
    return run_id


def _own_files(launch: Launch, named: NamedTrial) -> dict[str, str]:
    return {"experiment.yaml": launch.source, "trial.yaml": yaml.safe_dump(named.trial.config(), sort_keys=False)}


def continue_run(
    launch: Launch,
    named: NamedTrial,
    run_id: str,
    tags: Mapping[str, str],
    files: ArtifactWriter,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Make an ended or abandoned run RUNNING again; what is said of its end is forgotten. The launch's files go to
    launches/LAUNCH, if it is not the launch that made the run; the run's own, where that one did not come to write
    them, to their places. Returns the last step of its metrics. May be called
    twice. check: called before each write, and raises where it is not to be made any more.

    Each call waits by itself for a store that is away: one that loses every fourth answer would never let all of them
    through in a row.
    """
    from mlflow.entities import RunTag

    client = client_of(launch.uri)
    patiently(_checked(check, lambda: client.update_run(run_id, status="RUNNING")))
    run = patiently(lambda: client.get_run(run_id))
    old = run.data.tags
    for key in _OF_THE_END:
        if key in old:
            patiently(lambda key=key: _forget_tag(client, run_id, key))  # type: ignore[misc]
    if old.get("lqray.launch") != launch.launch_id:
        files.give(client, run, {}, f"launches/{launch.launch_id}")
        files.complete(client, run, _own_files(launch, named))
    every = {**launch.tags, **tags, "lqray.launch": launch.launch_id}
    batch = [RunTag(key, value) for key, value in every.items()]
    patiently(_checked(check, lambda: client.log_batch(run_id, tags=batch)))
    return max((metric.step for metric in run.data.to_proto().metrics), default=0)


def _forget_tag(client: Any, run_id: str, key: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.delete_tag(run_id, key)
    except MlflowException as error:  # deleted before, and only the answer was lost
        if error.error_code != "RESOURCE_DOES_NOT_EXIST" or key in client.get_run(run_id).data.tags:
            raise


def end_run(
    uri: str,
    run_id: str,
    result: TrialResult,
    tags: Mapping[str, str] = MappingProxyType({}),
    files: ArtifactWriter | None = None,
    patience: float = PATIENCE,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Set tags and the final status; then, with time, keep what the trial saw of its dataset and its gradients, and the
    traceback of a failure. May be called twice. patience: seconds that each call waits for a store that is away. check:
    as of `continue_run`."""
    from mlflow.entities import RunTag

    client = client_of(uri)
    every = {**tags, **_tags_of_the_end(result)}
    if every:
        batch = [RunTag(key, value) for key, value in every.items()]
        patiently(_checked(check, lambda: client.log_batch(run_id, tags=batch)), patience)
    # Nothing may be asked of the store between a run's end and what is kept of it: who is ended is not looked at again.
    kept = files if result.examples or result.snapshot or result.failure else None
    run = patiently(lambda: client.get_run(run_id), patience) if kept else None
    try:
        patiently(_checked(check, lambda: client.set_terminated(run_id, result.status)), patience)
    except StoreAwayError:  # perhaps only the answer was lost; then the writer says at least what is missing
        if kept:
            kept.end(client, run, result)
        raise
    if kept:
        kept.end(client, run, result)


def _checked(check: Callable[[], None], call: Callable[[], Any]) -> Callable[[], Any]:
    def both() -> Any:
        check()
        return call()

    return both


def _tags_of_the_end(result: TrialResult) -> dict[str, str]:
    tags = {}
    lost = sorted({key for key, value in result.metrics.items() if math.isnan(value)}.union(result.lost))
    if lost:  # MLflow is not told of NaN, and would show the value before it as the last
        tags["lqray.nan_metrics"] = ",".join(lost)
    if result.failure:
        failure = result.failure
        tags |= {"lqray.error": failure.error, "lqray.failure": failure.kind}
        if failure.host:
            tags["lqray.failed_host"] = failure.host
        if failure.rank is not None:
            tags["lqray.failed_rank"] = str(failure.rank)
    if result.stopped:
        tags["lqray.early" if result.early else "lqray.stopped"] = result.stopped
    return tags


def state_of(launch: Launch, trial_id: str, wanted_tags: Collection[str]) -> TrialState | None:
    """How one trial stands now: as `lqray.orchestration.states.read_states` says of all."""
    runs = client_of(launch.uri).search_runs([launch.experiment_id], f"tags.`lqray.trial_id` = '{trial_id}'")
    states = []
    for run in runs:
        info, tags = run.info, run.data.tags
        states.append(
            TrialState(
                trial_id,
                info.run_id,
                tags.get("lqray.trial_name", info.run_name),
                info.status,
                info.start_time / 1000,
                info.end_time / 1000 if info.end_time else None,
                {key: tags[key] for key in wanted_tags if key in tags},
                attempt=attempt_of(tags),
            )
        )
    return max(states, key=lambda one: one.order, default=None)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
