"""Where the files of datasets are, what to say when they are not there, and one download for all processes."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lqray.experiment.options.data import DownloadedOptions, FileOptions
from lqray.experiment.store import StorageError, expanded, with_home

VARIABLE = "LQRAY_DATA"
DEFAULT = "~/data"


class MissingDataError(FileNotFoundError):
    """A dataset's files are not where they were looked for."""


class CorruptDataError(ValueError):
    """A dataset's files are there, but are not what they should be."""


@dataclass(frozen=True)
class Folder:
    """Folder of a dataset, or its only file. path: absolute. origin: what made it this one."""

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
        hint = "delete them and get them again"
        if isinstance(error, PermissionError):
            hint = "let this user read them (chmod, chown), or name another folder"
        elif isinstance(error, OSError) and error.errno is not None:
            hint = "what they lie on does not give them now: look at that disk or share, and run the same command again"
        return CorruptDataError(
            f"dataset {name}: its files in {self.path} ({self.origin}) cannot be read\n"
            f"  found: {type(error).__name__}: {error}\n"
            f"  hint:  {hint}"
        )

    def not_downloaded(self, name: str, error: Exception) -> MissingDataError:
        """The error for dataset `name`, which was to be downloaded to here and could not be because of `error`."""
        hint = (
            "let this user write there, or name another folder with data.root"
            if isinstance(error, PermissionError)
            else "free space there, or name another folder with data.root"
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "is this machine on the network, and does a proxy stand between? Or get its files elsewhere, put them "
            "there and leave `download` out"
        )
        return MissingDataError(
            f"dataset {name}: not downloaded\n"
            f"  to:    {self.path} ({self.origin})\n"
            f"  found: {type(error).__name__}: {' '.join(str(error).split())[:300]}\n"
            f"  hint:  {hint}"
        )


def folder(options: FileOptions) -> Folder:
    """The dataset's folder: `root`, else LQRAY_DATA of this process's environment, else ~/data; with variables and ~ in
    place. Raises MissingDataError for a variable that is not set."""
    path, origin = DEFAULT, f"the default; data.root and the environment variable {VARIABLE} are not set"
    if os.environ.get(VARIABLE):
        path, origin = os.environ[VARIABLE], f"the environment variable {VARIABLE}"
    if options.root is not None:
        path, origin = options.root, "data.root"
    return at(options.name, path, origin)


def at(name: str, path: str, origin: str) -> Folder:
    """What dataset `name` has at `path`, with variables and ~ in place. origin: what says so. Raises MissingDataError
    for a variable that is not set."""
    try:
        return Folder(with_home(Path(expanded(path, origin)), origin).absolute(), origin)
    except StorageError as error:
        raise MissingDataError(f"dataset {name}: {error}") from error


def first_missing(paths: Iterable[Path]) -> Path | None:
    """The first of `paths` that does not exist, or None."""
    return next((path for path in paths if not path.exists()), None)


def fetch(options: DownloadedOptions, present: Callable[[], bool], download: Callable[[], object]) -> None:
    """With `download: true`, call `download` unless the files are `present`, in one process at a time: the others wait,
    and then find the files. Raises MissingDataError where it cannot."""
    if not options.download:
        return
    place = folder(options)
    try:
        place.path.mkdir(parents=True, exist_ok=True)
        if present() and not os.access(place.path, os.W_OK):
            return
        with locked(place.path):
            if not present():
                download()
    except (OSError, RuntimeError) as error:  # torchvision's own, and those of its HTTP client
        raise place.not_downloaded(options.name, error) from None


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """One process of this machine at a time in a folder that all of them may write to."""
    with (place / ".lqray-lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the system releases it with the file, also if this process dies
        yield
