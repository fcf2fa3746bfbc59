"""Where a trial's files are kept: a folder that all its processes see, or a prefix in an object store.

Both write a file whole or not at all. training/ and orchestration/ name files by what is in them, and never by where
they are.
"""

from __future__ import annotations

import fnmatch
import os
import tempfile
from pathlib import Path
from typing import Any, Protocol

from lqray.experiment.store import PACKAGES, StorageError

__all__ = ["Folder", "LocalFolder", "StorageAwayError", "StorageError", "open_folder"]


class StorageAwayError(OSError):
    """An object store that cannot be reached, or does not let us in."""


class Folder(Protocol):
    """Files by name, in one place. `str` is its address. Methods raise OSError where the place cannot be used."""

    def write(self, name: str, *parts: bytes) -> None:
        """A file of these parts, in place of what is there; other processes see the old one or the whole new one."""

    def read(self, name: str) -> bytes:
        """A file's content. Raises FileNotFoundError."""

    def names(self, pattern: str) -> list[str]:
        """Names that match a shell pattern, sorted; [] where the folder does not exist."""

    def rename(self, name: str, other: str) -> None:
        """Give something another name, which nothing has."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def tidy(self) -> None:
        """Remove what writers that were killed have left."""


class LocalFolder:
    """A folder of this machine, or one that machines share. What `write` wrote survives a crash of the machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def write(self, name: str, *parts: bytes) -> None:
        """See `Folder`: written aside, synced and renamed."""
        self.path.mkdir(parents=True, exist_ok=True)
        aside = self.path / f".{name}.{os.urandom(8).hex()}.tmp"
        with aside.open("wb") as stream:
            for part in parts:
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(self.path / name)
        folder = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def read(self, name: str) -> bytes:
        """See `Folder`."""
        return (self.path / name).read_bytes()

    def names(self, pattern: str) -> list[str]:
        """See `Folder`."""
        return sorted(file.name for file in self.path.glob(pattern))

    def rename(self, name: str, other: str) -> None:
        """See `Folder`."""
        (self.path / name).rename(self.path / other)

    def remove(self, name: str) -> None:
        """See `Folder`."""
        (self.path / name).unlink(missing_ok=True)

    def tidy(self) -> None:
        """See `Folder`."""
        for left in self.path.glob(".*.tmp"):
            left.unlink(missing_ok=True)


class ObjectFolder:
    """A prefix in an object store, through fsspec. Credentials are the environment's of each process."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._files, self._root = _opened(address)

    def __str__(self) -> str:
        return self.address

    def write(self, name: str, *parts: bytes) -> None:
        """See `Folder`: one put, or one upload in parts, which the store completes at once."""
        try:
            self._try(lambda: self._files.pipe_file(f"{self._root}/{name}", b"".join(parts)))
        except FileNotFoundError as error:
            raise StorageAwayError(f"{self.address}: {error}") from error

    def read(self, name: str) -> bytes:
        """See `Folder`."""
        content: bytes = self._try(lambda: self._files.cat_file(f"{self._root}/{name}"))
        return content

    def names(self, pattern: str) -> list[str]:
        """See `Folder`. Asks the store, which other processes write to, and no cache."""
        self._files.invalidate_cache()
        try:
            found = self._try(lambda: self._files.ls(self._root, detail=False))
        except FileNotFoundError:
            return []
        return sorted(fnmatch.filter((path.rstrip("/").rpartition("/")[2] for path in found), pattern))

    def rename(self, name: str, other: str) -> None:
        """See `Folder`: copied by the store, then removed; all that is below it, where it is a prefix."""
        self._files.invalidate_cache()
        whole = f"{self._root}/{name}"
        for path in self._try(lambda: self._files.find(whole)):
            self._try(lambda path=path: self._files.cp_file(path, f"{self._root}/{other}{path[len(whole) :]}"))
            self._try(lambda path=path: self._files.rm_file(path))

    def remove(self, name: str) -> None:
        """See `Folder`."""
        try:
            self._try(lambda: self._files.rm_file(f"{self._root}/{name}"))
        except FileNotFoundError:
            return

    def tidy(self) -> None:
        """See `Folder`: an object store shows nothing of an upload that did not end."""

    def _try(self, call: Any) -> Any:
        try:
            return call()
        except FileNotFoundError:
            raise
        except Exception as error:  # each package has its own: of its HTTP client, its SDK, its credentials
            raise StorageAwayError(f"{self.address}: {type(error).__name__}: {error}") from error


def open_folder(address: str | Path) -> Folder:
    """The folder at an absolute path, or at the URI of a prefix in an object store. Raises StorageError for a protocol
    that is unknown, or whose package is not installed; the store is not asked yet."""
    text = str(address)
    return ObjectFolder(text) if "://" in text else LocalFolder(Path(text))


def check_folder(folder: Folder) -> None:
    """Write, read and remove a file. Raises StorageError, which says what to look at."""
    name, word = f"lqray-check-{os.urandom(8).hex()}", os.urandom(16)
    try:
        folder.write(name, word)
        found = folder.read(name)
        folder.remove(name)
    except OSError as error:
        hint = (
            "does the bucket exist, and are the credentials and the endpoint in this process's environment?"
            if isinstance(folder, ObjectFolder)
            else "free space there or choose another folder"
        )
        raise StorageError(f"nothing can be kept in {folder}: {error}\n  hint: {hint}") from error
    if found != word:
        raise StorageError(f"{folder} gives back another content than was written to it a moment ago")


def cached_path(address: str) -> Path:
    """A folder of this machine for files of `address` on their way to it."""
    name = address.replace("://", "/").strip("/").replace("/", "-")
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir()) / f"lqray-logs-{user}" / name


def _opened(address: str) -> tuple[Any, str]:
    """A file system of fsspec's, and the address's path in it."""
    protocol = address.partition("://")[0]
    package = PACKAGES.get(protocol)
    if package is None:
        raise StorageError(f"no object store has the protocol {protocol}://; there are: {', '.join(PACKAGES)}")
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(address, use_listings_cache=False)
        return files, root.rstrip("/")
    except ImportError as error:
        extra = "; `pip install -e .[s3]` in its source tree" if package == "s3fs" else ""
        raise StorageError(
            f"storage at {protocol}:// needs the package {package}, on every machine: `pip install {package}`{extra} "
            f"({error})"
        ) from error
