"""Where runs are recorded, as one unambiguous address."""

from __future__ import annotations

import os
from pathlib import Path

_SQLITE = "sqlite:///"
STORE_VARIABLE = "MLFLOW_TRACKING_URI"
DEFAULT_STORE = "sqlite:///lqray.db"


def absolute_store(uri: str | None, directory: Path | None = None) -> str:
    """An MLflow tracking URI that means the same in every working directory; Ray changes that of its workers.

    None: MLFLOW_TRACKING_URI of the environment, else sqlite:///lqray.db. Relative sqlite paths are taken from
    `directory`, by default the current one; other URIs are returned as they are.
    """
    uri = uri or os.environ.get(STORE_VARIABLE) or DEFAULT_STORE
    if not uri.startswith(_SQLITE):
        return uri
    path = Path(uri.removeprefix(_SQLITE)).expanduser()
    return _SQLITE + str((directory or Path.cwd()).resolve() / path)


def store_folder(uri: str) -> Path | None:
    """The directory of an absolute sqlite store, beside which its artifacts are kept; None for a server."""
    return Path(uri.removeprefix(_SQLITE)).parent if uri.startswith(_SQLITE) else None
