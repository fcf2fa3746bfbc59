"""Where the files of datasets are, what to say when they are not there, and one download for all processes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lqray.experiment.dataset_options import DownloadedOptions, FileOptions
from lqray.experiment.store import StorageError, expanded, with_home

VARIABLE = "LQRAY_DATA"
DEFAULT = "~/data"


class MissingDataError(FileNotFoundError):
    """A dataset's files are not where they were looked for."""


class CorruptDataError(ValueError):
    """A dataset's files are there, but are not what they should be."""


@dataclass(frozen=True)
class Folder:
    """Folder of a dataset. path: absolute. origin: what made it this one."""

    path: Path
    origin: str

    def missing(self, name: str, wanted: str, advice: str) -> MissingDataError:
        """The error for dataset `name`, whose files `wanted` are not here. advice: how to get them."""
        return MissingDataError(
            f"dataset {name}: not found\n"
            f"  looked in: {self.path} ({self.origin})\n"
            f"  for:       {wanted}\n"
            f"  hint:      {advice}"
        )

    def corrupt(self, name: str, error: Exception) -> CorruptDataError:
        """The error for dataset `name`, whose files here could not be read because of `error`."""
        return CorruptDataError(
            f"dataset {name}: its files in {self.path} ({self.origin}) cannot be read\n"
            f"  found: {type(error).__name__}: {error}\n"
            f"  hint:  delete them and get them again"
        )


def folder(options: FileOptions) -> Folder:
    """The dataset's folder: `root`, else LQRAY_DATA of this process's environment, else ~/data; with variables and ~ in
    place. Raises MissingDataError for a variable that is not set."""
    path, origin = DEFAULT, f"the default; data.root and the environment variable {VARIABLE} are not set"
    if os.environ.get(VARIABLE):
        path, origin = os.environ[VARIABLE], f"the environment variable {VARIABLE}"
    if options.root is not None:
        path, origin = options.root, "data.root"
    try:
        return Folder(with_home(Path(expanded(path, origin)), origin).absolute(), origin)
    except StorageError as error:
        raise MissingDataError(f"dataset {options.name}: {error}") from error


def first_missing(paths: Iterable[Path]) -> Path | None:
    """The first of `paths` that does not exist, or None."""
    return next((path for path in paths if not path.exists()), None)


def fetch(options: DownloadedOptions, present: Callable[[], bool], download: Callable[[], object]) -> None:
    """With `download: true`, call `download` unless the files are `present`, in one process at a time: the others wait,
    and then find the files. Raises what `download` raises."""
    if not options.download:
        return
    place = folder(options).path
    place.mkdir(parents=True, exist_ok=True)
    if present() and not os.access(place, os.W_OK):
        return
    with _lock(place):
        if not present():
            download()


@contextmanager
def _lock(place: Path) -> Iterator[None]:
    with (place / ".lqray-lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the system releases it with the file, also if this process dies
        yield
