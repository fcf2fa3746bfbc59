"""Writing to MLflow: one flat run per trial, step metrics in batches."""

from __future__ import annotations

import json
import logging
import math
import time
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import yaml

from lqray.experiment.grid import NamedTrial
from lqray.experiment.store import store_folder
from lqray.orchestration.launcher import Status

_FLUSH_SECONDS = 1.5
_BATCH = 1000
_TRACEBACK = "traceback.txt"


@dataclass(frozen=True)
class Launch:
    """What all runs of one `lqray run` share: store, experiment and tags; plain data, sent to other processes.

    source: text of the experiment file, kept with every run as an artifact.
    """

    uri: str
    experiment_id: str
    launch_id: str
    file: str
    source: str
    tags: Mapping[str, str] = field(default_factory=dict)


def open_launch(uri: str, experiment: str, file: str, source: str, tags: Mapping[str, str]) -> Launch:
    """Find or make the MLflow experiment. `uri` is absolute (`lqray.experiment.store.absolute_store`).

    Artifacts of a new experiment in a sqlite store are kept beside it, in lqray-artifacts/.
    """
    client = _client(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        folder = store_folder(uri)
        location = (folder / "lqray-artifacts" / experiment).as_uri() if folder else None
        experiment_id = client.create_experiment(experiment, artifact_location=location)
    else:
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        experiment_id = found.experiment_id
    launch_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06d}"
    return Launch(uri, experiment_id, launch_id, file, source, dict(tags))


def describe_experiment(launch: Launch, markdown: str) -> None:
    """Set the description that the MLflow UI shows above the experiment's runs."""
    _client(launch.uri).set_experiment_tag(launch.experiment_id, "mlflow.note.content", markdown)


@contextmanager
def recorded_run(launch: Launch, named: NamedTrial) -> Iterator[str]:
    """An MLflow run for one trial: yields its id, ends it FINISHED, FAILED with the traceback, or KILLED."""
    run_id = start_run(launch, named)
    try:
        yield run_id
    except KeyboardInterrupt:
        end_run(launch.uri, run_id, "KILLED")
        raise
    except BaseException as error:
        end_run(launch.uri, run_id, "FAILED", error_traceback(error))
        raise
    end_run(launch.uri, run_id, "FINISHED")


def start_run(launch: Launch, named: NamedTrial) -> str:
    """A RUNNING run with all resolved parameters, tags, and the YAML and the resolved trial as artifacts."""
    from mlflow.entities import Param, RunTag

    client = _client(launch.uri)
    trial = named.trial
    tags = {
        **launch.tags,
        "lqray.trial_id": trial.id,
        "lqray.trial_name": named.name,
        "lqray.launch": launch.launch_id,
        "mlflow.source.name": launch.file,
        "mlflow.source.type": "LOCAL",
    }
    run = client.create_run(launch.experiment_id, run_name=named.name, tags=tags)
    run_id: str = run.info.run_id
    params = [Param(key, _text(value)) for key, value in trial.flat().items()]
    client.log_batch(run_id, params=params, tags=[RunTag("lqray.method", trial.quantizer.method)])
    client.log_text(run_id, launch.source, "experiment.yaml")
    client.log_text(run_id, yaml.safe_dump(trial.config(), sort_keys=False), "trial.yaml")
    return run_id


def end_run(uri: str, run_id: str, status: Status, error: str | None = None) -> None:
    """Set the final status; of a failure, keep the traceback as an artifact and its last line as a tag."""
    client = _client(uri)
    if error:
        client.log_text(run_id, error, _TRACEBACK)
        client.set_tag(run_id, "lqray.error", error.strip().splitlines()[-1][:500])
    client.set_terminated(run_id, status)


def end_dead_run(launch: Launch, trial_id: str, error: str) -> None:
    """End the trial's run of this launch as FAILED if it still counts as running: its driver died."""
    for run in _runs_of(launch):
        if run.data.tags.get("lqray.trial_id") == trial_id and run.info.status == "RUNNING":
            end_run(launch.uri, run.info.run_id, "FAILED", error)


def end_killed_runs(launch: Launch, trial_ids: Collection[str]) -> dict[str, str]:
    """End the runs of these trials in this launch as KILLED: trial id to run id of those that had been started.

    A run that was failing because its workers were being killed is KILLED too.
    """
    killed = {}
    for run in _runs_of(launch):
        trial_id = run.data.tags.get("lqray.trial_id")
        if trial_id in trial_ids:
            if "lqray.error" in run.data.tags:
                _client(launch.uri).delete_tag(run.info.run_id, "lqray.error")
            end_run(launch.uri, run.info.run_id, "KILLED")
            killed[trial_id] = run.info.run_id
    return killed


def _runs_of(launch: Launch) -> Any:
    condition = f"tags.`lqray.launch` = '{launch.launch_id}'"
    return _client(launch.uri).search_runs([launch.experiment_id], condition, max_results=50_000)


class MetricWriter:
    """Buffers metrics of one run and sends them a batch at a time: when a batch is full, every 1.5 s, and at close."""

    def __init__(self, uri: str, run_id: str) -> None:
        self._client = _client(uri)
        self._run_id = run_id
        self._buffer: list[Any] = []
        self._flushed = time.monotonic()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add metrics of one step. NaN is left out: MLflow's charts and comparisons cannot show it."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._buffer += [Metric(key, float(v), now, step) for key, v in metrics.items() if not math.isnan(v)]
        if len(self._buffer) >= _BATCH or time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send what is buffered."""
        while self._buffer:
            self._client.log_batch(self._run_id, metrics=self._buffer[:_BATCH])
            del self._buffer[:_BATCH]
        self._flushed = time.monotonic()

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()


def error_traceback(error: BaseException) -> str:
    """The traceback of an error; where workers of a Ray Train run raised, theirs, once for the ranks that agree."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", None) or {}
    if not failures:
        return "".join(traceback.format_exception(error))
    ranks: dict[str, list[int]] = {}
    for rank, failure in sorted(failures.items()):
        text = "".join(getattr(failure, "__notes__", None) or traceback.format_exception(failure))
        ranks.setdefault(text, []).append(rank)
    return "\n".join(f"rank {', '.join(map(str, of))}:\n{text}" for text, of in ranks.items())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    # A new store's creation is no news to the user.
    logging.getLogger("mlflow.store").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)
