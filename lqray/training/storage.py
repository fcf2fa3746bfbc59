"""Where a trial's files are kept: a folder that all its processes see, or a prefix in an object store.

Both write a file whole or not at all. training/ and orchestration/ name files by what is in them, and never by where
they are.
"""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from lqray.experiment.store import PACKAGES, StorageError

__all__ = ["Folder", "LocalFolder", "NoSpaceError", "StorageAwayError", "StorageError", "open_folder"]


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_LEFT_SECONDS = 3600.0
"""Age of a file aside that is taken for left, where a file system knows no locks."""


class StorageAwayError(OSError):
    """An object store that cannot be reached, or does not let us in."""


class NoSpaceError(OSError):
    """A file has no room where it is to be kept: the disk is full, or a quota is used up. Says which, and how much."""


class Folder(Protocol):
    """Files by name, in one place. `str` is its address. Methods raise OSError where the place cannot be used."""

    def write(self, name: str, *parts: bytes) -> None:
        """A file of these parts, in place of what is there; other processes see the old one or the whole new one.
        Raises NoSpaceError where there is no room for it."""

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """A file's content, or its bytes from `start` to before `end`. Raises FileNotFoundError, and OSError at once
        for what is no file: a folder, a pipe, a device."""

    def size(self, name: str) -> int:
        """A file's bytes. Raises as `read`."""

    def names(self, pattern: str) -> list[str]:
        """Names that match a shell pattern, sorted; [] where the folder does not exist."""

    def rename(self, name: str, other: str) -> None:
        """Give something another name, which nothing has."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def tidy(self) -> None:
        """Remove what writers that were killed have left, and nothing of those that still write."""


class LocalFolder:
    """A folder of this machine, or one that machines share. What `write` wrote survives a crash of the machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def write(self, name: str, *parts: bytes) -> None:
        """See `Folder`: written aside, synced and renamed. Where that fails, nothing stays aside: of a full disk it
        would be what fills it."""
        try:
            self._make()
            with self._aside(name) as (aside, stream):
                for part in parts:
                    stream.write(part)
                stream.flush()
                os.fsync(stream.fileno())
                aside.replace(self.path / name)
            _sync(self.path)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            raise NoSpaceError(error.errno, self._no_space(name, sum(map(len, parts)), error)) from error

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """See `Folder`."""
        with self._opened(name) as stream:
            stream.seek(start)
            return stream.read(-1 if end is None else max(0, end - start))

    def size(self, name: str) -> int:
        """See `Folder`."""
        with self._opened(name) as stream:
            return os.fstat(stream.fileno()).st_size

    def names(self, pattern: str) -> list[str]:
        """See `Folder`. Raises OSError for a folder that may not be looked into."""
        try:
            return sorted(fnmatch.filter((file.name for file in self.path.iterdir()), pattern))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def rename(self, name: str, other: str) -> None:
        """See `Folder`."""
        (self.path / name).rename(self.path / other)
        _sync(self.path)

    def remove(self, name: str) -> None:
        """See `Folder`."""
        (self.path / name).unlink(missing_ok=True)

    def tidy(self) -> None:
        """See `Folder`: a file aside that is locked is being written."""
        for name in self.names(".*.tmp"):
            left = self.path / name
            if _abandoned(left):
                left.unlink(missing_ok=True)

    def _no_space(self, name: str, wanted: int, error: OSError) -> str:
        """In one line: the file, what it takes, and what is free."""
        there = next(one for one in (self.path, *self.path.parents) if one.exists())
        try:
            free = f"{shutil.disk_usage(there).free:,} bytes free"
        except OSError:
            free = "how much is free is not known"
        return (
            f"{self.path / name} takes {wanted:,} bytes, and there is no room ({error.strerror}; {free}): free space "
            "there, or choose another storage.folder"
        )

    def _make(self) -> None:
        """The folder, and those above it, so that a crash of the machine does not lose them either."""
        if self.path.is_dir():
            return
        there = next(parent for parent in self.path.parents if parent.exists())
        self.path.mkdir(parents=True, exist_ok=True)
        for parent in self.path.parents:
            with suppress(PermissionError):  # of a folder above ours that we may not open
                _sync(parent)
            if parent == there:
                return

    @contextmanager
    def _aside(self, name: str) -> Iterator[tuple[Path, BinaryIO]]:
        """A new file to write to, locked while it is open; gone at the end, unless it got another name."""
        while True:
            aside = self.path / f".{name}.{os.urandom(8).hex()}.tmp"
            try:
                with aside.open("xb") as stream:
                    _lock(stream.fileno())
                    if not os.fstat(stream.fileno()).st_nlink:
                        continue  # another process tidied up before it was locked
                    yield aside, stream
            finally:
                aside.unlink(missing_ok=True)
            return

    def _opened(self, name: str) -> BinaryIO:
        """A file to read. Opening a pipe waits for nobody."""
        path = self.path / name
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "Not a file but a folder, a pipe or a device", str(path))
        return os.fdopen(descriptor, "rb")


def _lock(descriptor: int) -> bool:
    """Lock an open file for this process; False where another has it, or the file system knows no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _abandoned(aside: Path) -> bool:
    """Whether whoever wrote a file aside is gone."""
    try:
        descriptor = os.open(aside, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False  # a folder, a link, a pipe, or just renamed: nothing of ours
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return time.time() - found.st_mtime > _LEFT_SECONDS
    finally:
        os.close(descriptor)
    return True


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """See `Folder`."""
        limits = {} if end is None and not start else {"start": start, "end": end}
        content: bytes = self._try(lambda: self._files.cat_file(f"{self._root}/{name}", **limits))
        return content

    def size(self, name: str) -> int:
        """See `Folder`."""
        found = self._try(lambda: self._files.info(f"{self._root}/{name}"))
        if found["type"] != "file":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), f"{self.address}/{name}")
        return int(found["size"])

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
    except NoSpaceError as error:
        raise StorageError(f"nothing can be kept in {folder}: {error.strerror}") from error
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
    return cached_root() / address.replace("://", "/").strip("/").replace("/", "-")


def cached_root() -> Path:
    """Where this machine has all those of this user. Whoever writes there makes sure that it is no other user's."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir()) / f"lqray-logs-{user}"


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
        extra = "; `pip install -e '.[s3]'` in its source tree" if package == "s3fs" else ""
        raise StorageError(
            f"storage at {protocol}:// needs the package {package}, on every machine: `pip install {package}`{extra} "
            f"({error})"
        ) from error
