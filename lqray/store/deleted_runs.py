"""Runs that somebody deleted while their trial was trained: in the UI, with their experiment, or for good by
`mlflow gc`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

DELETED = "its run was deleted"
"""Why such a trial is stopped."""

_REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE")
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")


def is_refusal(error: BaseException) -> bool:
    """Whether a store refused what it was asked to write: it would do so again."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in (*_REFUSED, *_MISSING)
    return isinstance(error, TypeError | ValueError) and type(error).__module__ == "builtins"


def is_deleted(client: Any, run_id: str) -> bool:
    """Whether the store has the run no more, or among the deleted ones. Raises what the store raises."""
    return _is_deleted(lambda: client.get_run(run_id).info, run_id)


def why_deleted(client: Any, experiment_id: str, run_id: str | None) -> str | None:
    """In words, what of a trial's record was deleted; None where nothing was. run_id: None before it has a run. Raises
    what the store raises."""
    if _is_deleted(lambda: client.get_experiment(experiment_id), experiment_id):
        return "its experiment was deleted"
    return DELETED if run_id and is_deleted(client, run_id) else None


def _is_deleted(look: Callable[[], Any], name: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return str(look().lifecycle_stage) == "deleted"
    except MlflowException as error:
        # A proxy's own "not found" names nothing of ours: its server is away.
        if error.error_code not in _MISSING or name not in str(error):
            raise
        return True
