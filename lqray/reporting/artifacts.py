"""Files that runs have kept in MLflow."""

from __future__ import annotations

import tempfile
from pathlib import Path


def read_text(uri: str, run_id: str, artifact: str) -> str | None:
    """Text of an artifact of a run; None where it has no such one. uri: absolute store."""
    import logging
    import os

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    logging.getLogger("mlflow.store").setLevel(logging.WARNING)
    client = MlflowClient(tracking_uri=uri)
    with tempfile.TemporaryDirectory() as folder:
        try:
            if all(one.path != artifact for one in client.list_artifacts(run_id)):
                return None
            return Path(client.download_artifacts(run_id, artifact, folder)).read_text(encoding="utf-8")
        except (MlflowException, OSError):
            return None
