"""Where runs are recorded and where files of trials are kept, as unambiguous addresses."""

from __future__ import annotations

import os
import re
from pathlib import Path

_SQLITE = "sqlite:///"
STORE_VARIABLE = "MLFLOW_TRACKING_URI"
DEFAULT_STORE = "sqlite:///lqray.db"
FOLDER_VARIABLE = "LQRAY_STORAGE"
DEFAULT_FOLDER = "lqray-storage"

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
"""Object stores by the protocol of their URIs, and the package of fsspec's that speaks it. Only such that write an
object whole or not at all are here."""


class StorageError(ValueError):
    """An address that no files can be kept at."""


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


def storage_address(folder: str | None) -> str:
    """Where files of trials are kept: an absolute path, or the URI of a prefix in an object store, without a slash at
    its end. folder: `storage.folder`; without it LQRAY_STORAGE of the environment, else lqray-storage here. Raises
    StorageError."""
    origin = "storage.folder"
    if folder is None and os.environ.get(FOLDER_VARIABLE):
        folder, origin = os.environ[FOLDER_VARIABLE], f"the environment variable {FOLDER_VARIABLE}"
    folder = folder or DEFAULT_FOLDER
    if wrong := wrong_address(folder):
        raise StorageError(f"{origin}: found {folder!r}; allowed: {wrong}")
    if "://" not in folder:
        return str(Path(folder).expanduser().resolve())
    return folder.removeprefix("file://").rstrip("/") or "/"


def wrong_address(folder: str) -> str | None:
    """What may stand in place of an address that cannot be one; None for one that can."""
    protocol, separator, rest = folder.partition("://")
    allowed = f"a folder, file:///FOLDER, or {', '.join(f'{one}://' for one in PACKAGES)}BUCKET/PREFIX"
    if not separator:
        return None
    if protocol == "file":
        return None if rest.startswith("/") else f"{allowed}; file:// is followed by an absolute path"
    if protocol == "memory":
        return f"{allowed}; memory:// is not shared between processes"
    if protocol not in PACKAGES:
        return allowed
    return None if re.match(r"[^/]+", rest) else f"{allowed}; no bucket is named"
