"""What must not go into a Ray job: results, since its folder goes with it, and secrets, since everybody can read it."""

from __future__ import annotations

import os
from pathlib import Path

from lqray.experiment.schema import Storage, Tracking
from lqray.experiment.secrets import masked
from lqray.experiment.store import (
    DEFAULT_FOLDER,
    DEFAULT_STORE,
    FOLDER_VARIABLE,
    STORE_VARIABLE,
    begins_elsewhere,
    sqlite_path,
)


class UnfitForJobsError(ValueError):
    """Results would be written where Ray deletes them, or a secret where everybody can read it."""


def check_lasting(tracking: Tracking, storage: Storage, here: bool) -> None:
    """Raise UnfitForJobsError where runs or checkpoints would go to a job's own folder.

    here: this is the job, and its environment has the last word; otherwise only what the file itself says is known.
    """
    uri = tracking.uri or (os.environ.get(STORE_VARIABLE) or DEFAULT_STORE if here else "")
    said = storage.folder if "folder" in storage.model_fields_set else None
    folder = said or (os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER if here else "")
    problems = []
    path = sqlite_path(uri)
    if path is not None and _relative(str(path)):
        problems.append(
            f"tracking.uri\n  found:   {uri}{_default(tracking.uri)}\n"
            f"  allowed: an MLflow server (http://..., `lqray server`), a database, or sqlite:////ABSOLUTE/lqray.db\n"
            f"  hint:    leave it out of the file and set {STORE_VARIABLE} on the cluster's machines, or give "
            f"--set tracking.uri=..."
        )
    if folder and "://" not in folder and _relative(folder):
        problems.append(
            f"storage.folder\n  found:   {folder}{_default(said)}\n"
            f"  allowed: a folder that all machines see, as an absolute path, or a URI\n"
            f"  hint:    leave it out of the file and set {FOLDER_VARIABLE} on the cluster's machines, or give "
            f"--set storage.folder=..."
        )
    if problems:
        raise UnfitForJobsError(
            "a Ray job runs in a folder that Ray deletes after it: what is written below it is lost.\n"
            + "\n".join(problems)
        )


def check_secret(text: str, where: str) -> None:
    """Raise UnfitForJobsError for text with a password in a URI: who sees a job sees it."""
    if masked(text) != text:
        raise UnfitForJobsError(
            f"{where}\n  found:   a URI with a password\n"
            f"  allowed: none: a job's files and command can be read by everyone who has the cluster's token\n"
            f"  hint:    set {STORE_VARIABLE}, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, on the "
            "machines of the cluster"
        )


def _relative(path: str) -> bool:
    return not (begins_elsewhere(path) or Path(path).is_absolute())


def _default(value: str | None) -> str:
    return "" if value else " (the default)"
