"""A launch as its store knows it: the experiment that its runs are recorded in, and what they share."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lqray.experiment.secrets import masked
from lqray.experiment.store import store_folder
from lqray.store.client import client_of, patient_client
from lqray.store.experiments import ARTIFACTS, check_usable
from lqray.store.outage import patiently
from lqray.store.tables import workspaces_enabled


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

    A server decides where artifacts of a new experiment are kept, and MLflow where a store has workspaces. Those of a
    sqlite store are beside it, in lqray-artifacts/; those of another database, which says nothing of files, in the
    folder `storage`, where it is one.
    Raises StoreError for an experiment that is not to be recorded in.
    """
    client = patient_client(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        folder = store_folder(uri)
        if folder is None and not uri.startswith(("http://", "https://")) and "://" not in storage:
            folder = Path(storage)
        location = (folder / ARTIFACTS / experiment).as_uri() if folder and not workspaces_enabled() else None
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
