"""Where runs are recorded, as one unambiguous address."""

from __future__ import annotations

from pathlib import Path

_SQLITE = "sqlite:///"


def absolute_store(uri: str, directory: Path | None = None) -> str:
    """An MLflow tracking URI that means the same in every working directory; Ray changes that of its workers.

    Relative sqlite paths are taken from `directory`, by default the current one; other URIs are returned as they are.
    """
    if not uri.startswith(_SQLITE):
        return uri
    path = Path(uri.removeprefix(_SQLITE)).expanduser()
    return _SQLITE + str((directory or Path.cwd()).resolve() / path)


def store_folder(uri: str) -> Path | None:
    """The directory of an absolute sqlite store, beside which its artifacts are kept; None for a server."""
    return Path(uri.removeprefix(_SQLITE)).parent if uri.startswith(_SQLITE) else None
