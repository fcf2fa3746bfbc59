"""Whether a run or an experiment was deleted by somebody, in the MLflow UI for example, while a launch works on it."""

from __future__ import annotations

from typing import Any


def is_deleted(client: Any, experiment_id: str, run_id: str | None = None) -> bool:
    """Whether the experiment is deleted, or purged for good (`mlflow gc`); with a run id, whether that run is. Raises
    what the store raises."""
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_run(run_id).info if run_id else client.get_experiment(experiment_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return True
    return str(found.lifecycle_stage) == "deleted"


def why_deleted(client: Any, experiment_id: str, run_id: str | None) -> str | None:
    """In words, what of a trial's record was deleted; None where nothing was. run_id: None before it has a run."""
    if is_deleted(client, experiment_id):
        return "its experiment was deleted"
    if run_id and is_deleted(client, experiment_id, run_id):
        return "its run was deleted"
    return None
