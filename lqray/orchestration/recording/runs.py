"""Writing to MLflow: one flat run per attempt at a trial. Metrics are the delivery's, files the artifact writer's."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import yaml

from lqray.experiment.grid import NamedTrial
from lqray.orchestration.launchers.contract import TrialResult
from lqray.orchestration.origins import continued
from lqray.orchestration.recording.artifacts import ArtifactWriter
from lqray.orchestration.recording.description import axis_metrics, has_axes, trial_description
from lqray.store.client import client_of
from lqray.store.launches import Launch
from lqray.store.outage import PATIENCE, patiently
from lqray.store.runs import Run, run_of
from lqray.store.tags import (
    DATA,
    EARLY,
    ERROR,
    FAILED_HOST,
    FAILED_RANK,
    FAILURE,
    LAUNCH,
    MARK,
    METHOD,
    NAN_METRICS,
    STOPPED,
    TRIAL_ID,
    TRIAL_NAME,
)
from lqray.training.data_files import data_digest

_SECONDS_FOR_FILES = 2.0
_OF_THE_END = (
    ERROR,
    FAILURE,
    FAILED_HOST,
    FAILED_RANK,
    STOPPED,
    EARLY,
    NAN_METRICS,
)


def start_run(launch: Launch, named: NamedTrial, tags: Mapping[str, str], files: ArtifactWriter) -> str:
    """A RUNNING run with all resolved parameters, numeric axes as metrics at step 0, tags, a description, and as
    artifacts the YAML, the resolved trial and the launch's files."""
    client = client_of(launch.uri)
    trial = named.trial
    mark = secrets.token_hex(8)
    every = {
        **launch.tags,
        **tags,
        TRIAL_ID: trial.id,
        TRIAL_NAME: named.name,
        LAUNCH: launch.launch_id,
        MARK: mark,
        METHOD: trial.quantizer.method,
        "mlflow.note.content": trial_description(trial),
        "mlflow.source.name": launch.file,
        "mlflow.source.type": "LOCAL",
    }
    tried: list[bool] = []

    def create() -> Any:
        if tried:  # its answer may have been lost, not the request
            for found in client.search_runs([launch.experiment_id], f"tags.`{MARK}` = '{mark}'"):
                return found
        tried.append(True)
        return client.create_run(launch.experiment_id, run_name=named.name, tags=every)

    run = patiently(create)
    run_id = str(run.info.run_id)
    _log_trial(launch, named, run)
    files.give(client, run, _own_files(launch, named))
    return run_id


def _log_trial(launch: Launch, named: NamedTrial, run: Any, check: Callable[[], None] = lambda: None) -> None:
    """What a run does not have yet of its trial's parameters, and its axes if it has none: whoever made it may have
    been killed before it came to that, or in the midst of it."""
    from mlflow.entities import Metric, Param

    known, now = run.data, int(time.time() * 1000)  # of one time, a batch that is sent again is the same batch
    params = [Param(key, _text(value)) for key, value in named.trial.flat().items() if key not in known.params]
    axes = {} if has_axes(known.metrics) else axis_metrics(named.trial, launch.axes)
    metrics = [Metric(key, value, now, 0) for key, value in axes.items()]
    if params or metrics:
        client = client_of(launch.uri)
        patiently(_checked(check, lambda: client.log_batch(run.info.run_id, metrics=metrics, params=params)))


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
    _log_trial(launch, named, run, check)
    if old.get(LAUNCH) != launch.launch_id:
        files.give(client, run, {}, f"launches/{launch.launch_id}")
        files.complete(client, run, _own_files(launch, named))
    every = {**launch.tags, **tags, LAUNCH: launch.launch_id, **continued(old, tags)}
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
    """Set tags; keep what the trial saw of its dataset and its gradients, and the traceback of a failure, as far as
    that can be written at once; set the final status. May be called twice. patience: seconds that each call waits for a
    store that is away. check: as of `continue_run`."""
    from mlflow.entities import RunTag

    client = client_of(uri)
    every = {**tags, **_tags_of_the_end(result)}
    if result.status == "FINISHED" and (data := data_digest(result.named.trial.data)):
        # Its files may have been downloaded by the trial itself.
        run = patiently(_checked(check, lambda: client.get_run(run_id)), patience)
        every |= {} if DATA in run.data.tags else {DATA: data}
    if every:
        batch = [RunTag(key, value) for key, value in every.items()]
        patiently(_checked(check, lambda: client.log_batch(run_id, tags=batch)), patience)
    if files and (result.examples or result.snapshot or result.levels or result.failure):
        # First, so that a run which is ended has them, whoever is killed now; but its status does not wait for long.
        files.end(client, patiently(_checked(check, lambda: client.get_run(run_id)), patience), result)
        files.settle(run_id, _SECONDS_FOR_FILES)
    patiently(_checked(check, lambda: client.set_terminated(run_id, result.status)), patience)


def _checked(check: Callable[[], None], call: Callable[[], Any]) -> Callable[[], Any]:
    def both() -> Any:
        check()
        return call()

    return both


def _tags_of_the_end(result: TrialResult) -> dict[str, str]:
    tags = {}
    lost = sorted({key for key, value in result.metrics.items() if math.isnan(value)}.union(result.lost))
    if lost:  # MLflow is not told of NaN, and would show the value before it as the last
        tags[NAN_METRICS] = ",".join(lost)
    if result.failure:
        failure = result.failure
        tags |= {ERROR: failure.error, FAILURE: failure.kind}
        if failure.host:
            tags[FAILED_HOST] = failure.host
        if failure.rank is not None:
            tags[FAILED_RANK] = str(failure.rank)
    if result.stopped:
        tags[EARLY if result.early else STOPPED] = result.stopped
    return tags


def latest_run(launch: Launch, trial_id: str) -> Run | None:
    """How one trial stands now: as `lqray.store.runs.latest_runs` says of all."""
    found = client_of(launch.uri).search_runs([launch.experiment_id], f"tags.`{TRIAL_ID}` = '{trial_id}'")
    return max((run for one in found if (run := run_of(one))), key=lambda one: one.order, default=None)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
