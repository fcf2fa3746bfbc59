"""Files that runs have kept in MLflow."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lqray.reporting.exported import artifact_in, export_folder
from lqray.store.client import reading_client
from lqray.store.errors import StoreError


def read_text(uri: str, run_id: str, artifact: str) -> str | None:
    """Text of an artifact of a run; None where it has no such one. uri: absolute store. Raises
    StoreError, StoreAwayError."""
    folder = export_folder(uri)
    if folder:
        return artifact_in(folder, run_id, artifact)
    from mlflow.exceptions import MlflowException

    client = reading_client(uri)
    with tempfile.TemporaryDirectory() as aside:
        try:
            if all(one.path != artifact for one in client.list_artifacts(run_id)):
                return None
            return Path(client.download_artifacts(run_id, artifact, aside)).read_text(encoding="utf-8")
        except StoreError:
            raise
        except (MlflowException, OSError):
            return None
