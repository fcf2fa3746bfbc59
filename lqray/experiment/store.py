"""Where runs are recorded and where files of trials are kept, as unambiguous addresses."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from urllib.parse import unquote

from lqray.experiment.secrets import masked

_SQLITE = "sqlite:///"
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)\}|(?P<plain>[A-Za-z_]\w*))")
# What stands before the @ is a user and a password, which may hold anything.
_LOGIN = re.compile(r"[A-Za-z][\w+.-]*://[^/\s]*:\S*@")
# A question mark begins options only where options follow: elsewhere it is part of a file's name.
_SQLITE_FILE = re.compile(r"(?s)sqlite(?:\+\w+)?:///(?P<path>.+?)(?P<options>\?\w+=[^/?]*)?")
STORE_VARIABLE = "MLFLOW_TRACKING_URI"
DEFAULT_STORE = "sqlite:///lqray.db"
FOLDER_VARIABLE = "LQRAY_STORAGE"
DEFAULT_FOLDER = "lqray-storage"

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
"""Object stores by the protocol of their URIs, and the package of fsspec's that speaks it. Only such that write an
object whole or not at all are here."""


class StorageError(ValueError):
    """An address that no files can be kept at."""


def expanded(address: str, origin: str) -> str:
    """`address` with the environment's variables, $NAME and ${NAME}, in place; user and password of a URI stay as they
    are. Raises StorageError, which names `origin`, for a variable that is not set."""
    login = _LOGIN.match(address)
    kept = login.end() if login else 0

    def value(found: re.Match[str]) -> str:
        name = found["braced"] or found["plain"]
        if not os.environ.get(name):
            raise StorageError(
                f"{origin}: found {address!r}, and the environment variable {name} is not set here; allowed: variables "
                "that are set, or the address written out"
            )
        return os.environ[name]

    return address[:kept] + _VARIABLE.sub(value, address[kept:])


def with_home(path: Path, origin: str) -> Path:
    """`path` with ~ in place. Raises StorageError, which names `origin`, for a user that there is not."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise StorageError(f"{origin}: found {path}; allowed: ~ or ~USER of this machine ({error})") from error


def begins_elsewhere(text: str) -> bool:
    """Whether where a path begins is for the environment to say: at a variable, or at a home directory."""
    return text.startswith("~") or bool(_VARIABLE.match(text))


def absolute_store(uri: str | None, directory: Path | None = None) -> str:
    """An MLflow tracking URI that means the same in every working directory; Ray changes that of its workers.

    None: MLFLOW_TRACKING_URI of the environment, else sqlite:///lqray.db. Variables are expanded. Relative sqlite paths
    are taken from `directory`, by default the current one; other URIs are returned as they are. Raises StorageError.
    """
    origin = "the address of the MLflow store (tracking.uri, --uri or MLFLOW_TRACKING_URI)"
    uri = expanded(uri or os.environ.get(STORE_VARIABLE) or DEFAULT_STORE, origin)
    if any(ord(each) < 32 for each in uri):
        raise StorageError(f"{origin}: found {uri!r}; allowed: one line")
    path = sqlite_path(uri)
    if path is None:
        return uri
    found = _SQLITE_FILE.fullmatch(uri)
    return sqlite_uri((directory or Path.cwd()).resolve() / path) + ((found and found["options"]) or "")


def as_argument(experiment: str, uri: str) -> str:
    """An experiment as an argument of a command that is printed: its name, with --uri (without passwords) where the
    command would look for it in another store; of an exported one, its folder. uri: an absolute store, or a folder."""
    if "://" not in uri:
        return shlex.quote(uri)
    try:
        elsewhere = uri != absolute_store(None)
    except StorageError:  # of the environment's address, which was not asked for
        elsewhere = True
    return shlex.quote(experiment) + (f" --uri {shlex.quote(masked(uri))}" if elsewhere else "")


def sqlite_path(uri: str) -> Path | None:
    """The file of a sqlite store, with ~ and URL escapes (%20) read; None for every other store.

    The one place where such an address is taken apart: `sqlite:///x.db?timeout=5` is the file x.db.
    """
    found = _SQLITE_FILE.fullmatch(uri)
    if found is None or found["path"] == ":memory:":
        return None
    return with_home(Path(unquote(found["path"])), "the address of the MLflow store")


def sqlite_uri(path: Path) -> str:
    """The address of a sqlite file; what SQLAlchemy would read as an escape or the beginning of options is escaped, and
    what `absolute_store` would read as a variable."""
    return _SQLITE + re.sub(
        r"%(?=[0-9A-Fa-f]{2})|\?|\$(?=[A-Za-z_{])",
        lambda found: {"%": "%25", "?": "%3F", "$": "%24"}[found[0]],
        str(path),
    )


def store_folder(uri: str) -> Path | None:
    """The directory of an absolute sqlite store, beside which its artifacts are kept; None for a server."""
    path = sqlite_path(uri)
    return path.parent if path else None


def storage_address(folder: str | None) -> str:
    """Where files of trials are kept: an absolute path, or the URI of a prefix in an object store, without a slash at
    its end. folder: `storage.folder`; without it LQRAY_STORAGE of the environment, else lqray-storage here. Variables
    and ~ are expanded. Raises StorageError."""
    origin = "storage.folder"
    if folder is None and os.environ.get(FOLDER_VARIABLE):
        folder, origin = os.environ[FOLDER_VARIABLE], f"the environment variable {FOLDER_VARIABLE}"
    folder = expanded(folder or DEFAULT_FOLDER, origin)
    if wrong := wrong_address(folder):
        raise StorageError(f"{origin}: found {folder!r}; allowed: {wrong}")
    if "://" not in folder:
        return str(with_home(Path(folder), origin).resolve())
    return folder.removeprefix("file://").rstrip("/") or "/"


def wrong_address(folder: str) -> str | None:
    """What may stand in place of an address that cannot be one; None for one that can."""
    if any(ord(each) < 32 for each in folder):
        return "an address in one line"
    if _VARIABLE.match(folder):  # what it begins with is known where it is used
        return None
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
