"""The file of a sqlite store: whole or not there. It is made aside, under a lock, and renamed when it is complete.

MLflow makes its tables in some seventy steps that sqlite does not undo together: a process that ends in between, or two
at once, leave a file that no MLflow opens again. Such files of earlier versions are recognised here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shlex
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lqray.experiment.store import sqlite_uri
from lqray.store.errors import StoreBusyError, StoreError

_TABLES = {"experiments", "runs", "params", "tags", "metrics", "latest_metrics"}
_HEADER = b"SQLite format 3\x00"
_LOCK_SECONDS = 5.0
_OTHERS_SECONDS = 5.0
"""A half-made file that has not changed for so long is made by nobody."""

# What the filesystem says where it has no locks; then nobody is kept out, which is how it always was there.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
_UNKNOWN = (-1, -1)

_identities: dict[Path, tuple[int, int]] = {}
_current: list[Path] = []


def exists(path: Path) -> bool:
    """Whether there is a file with something in it: an empty one is as good as none."""
    try:
        return path.stat().st_size > 0
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StoreError(f"the MLflow store {path} cannot be looked at: {error.strerror}") from error


def readable(path: Path) -> bool:
    """Whether there is a store to read; False where nothing has been made yet. Raises StoreError for a file that is no
    MLflow store, or half of one; StoreBusyError for a locked one."""
    if not exists(path):
        return False
    state = _state(path)
    if state == "half-made":
        raise StoreError(_half_made(path) if _holds_data(path) else _to_be_made_anew(path))
    return state == "whole"


def whole(path: Path) -> bool:
    """Whether a file has all of MLflow's tables. Raises StoreError for one that is not MLflow's, StoreBusyError."""
    return _state(path) == "whole"


def has_first_experiment(path: Path) -> bool:
    """Whether MLflow has made the experiment that every store has. Raises StoreError, StoreBusyError."""
    with _reading(path) as connection:
        return bool(list(connection.execute("SELECT 1 FROM experiments WHERE experiment_id = 0")))


def make(path: Path, make_tables: Callable[[Path], None], say: Callable[[str], None]) -> None:
    """See that the store is there, whole. To be called under `lock`. make_tables: of a new file. say: tells the user.

    Raises StoreError for a file that is not MLflow's, or whose tables are half changed and hold data.
    """
    if exists(path) and _state(path) == "half-made":
        if _holds_data(path):
            raise StoreError(_half_made(path))
        if not _others_make_it(path):
            aside = path.with_name(f"{path.name}.half-made-{time.strftime('%Y%m%d-%H%M%S')}")
            _rename_with_journals(path, aside)
            say(
                f"lqray: {path} was half-made, without runs, by a process that ended: moved to {aside.name}, made anew."
            )
    if exists(path) and _state(path) != "empty":
        return
    new = path.with_name(f"{path.name}.new")
    _remove(new)
    try:
        make_tables(new)
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise StoreError(
            f"the MLflow store {path} cannot be made: {error.strerror or error}; choose another place with "
            "tracking.uri or MLFLOW_TRACKING_URI, or free space there"
        ) from error
    finally:
        _remove(new)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def copied(kept: Path, path: Path) -> bool:
    """Whether a store without runs, kept before, now is at `path`, too; False where none is, or it is not whole."""
    try:
        if not (kept.is_file() and whole(kept) and not _holds_data(kept) and _is_sound(kept)):
            return False
        shutil.copyfile(kept, path)
        return True
    except (StoreError, sqlite3.Error, OSError):
        path.unlink(missing_ok=True)
        return False


def keep(path: Path, kept: Path) -> None:
    """Keep a copy of a store without runs, if that is possible."""
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as aside:
            copy = Path(aside.name)
        try:
            shutil.copyfile(path, copy)
            copy.replace(kept)
        finally:
            copy.unlink(missing_ok=True)


@contextmanager
def lock(path: Path, seconds: float) -> Iterator[None]:
    """Alone with a store's file while it is made, among all processes that ask. Raises StoreBusyError when another has
    it for longer; StoreError where the folder cannot be written to."""
    name = path.with_name(f"{path.name}.lock")
    deadline = time.monotonic() + seconds
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while (descriptor := _locked(name)) is None:
            if time.monotonic() > deadline:
                raise StoreBusyError(f"another process is making the MLflow store {path}")
            time.sleep(0.1)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(
            f"the MLflow store {path} cannot be made: {error.strerror or error}; choose another place with "
            "tracking.uri or MLFLOW_TRACKING_URI"
        ) from error
    try:
        yield
    finally:
        # While it is held: who opened it before finds that it is no longer the one in the folder, and opens the next.
        name.unlink(missing_ok=True)
        os.close(descriptor)


def remember(path: Path | None) -> None:
    """From now on this process records in this file (None: in none): another in its place is an error."""
    if path is None:
        _current.clear()
        return
    _current[:] = [path]
    _identities.setdefault(path, _identity(path) or _UNKNOWN)


def gone(path: Path) -> str | None:
    """Where a file that this process opened is no longer there, words that say so."""
    return _lost(path, "is gone") if path in _identities and _identity(path) is None else None


def moved() -> str | None:
    """Where the file that this process records in is not what it was when it was opened, words that say so."""
    for path in _current:
        known, now = _identities[path], _identity(path)
        if now is None:
            return _lost(path, "is gone")
        if now != known and _UNKNOWN not in (now, known):
            return _lost(path, "was replaced by another file")
    return None


def connect(path: Path, seconds: float = _LOCK_SECONDS) -> sqlite3.Connection:
    """A connection to a file that is there; it never makes one."""
    from urllib.parse import quote

    return sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=seconds, check_same_thread=False)


def _state(path: Path) -> str:
    """empty, whole or half-made. Raises StoreError, StoreBusyError."""
    with _reading(path) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        tables.discard("sqlite_sequence")
        if not tables:
            return "empty"
        if not tables & (_TABLES | {"alembic_version"}) and not any(one.startswith("_alembic_tmp_") for one in tables):
            some = ", ".join(sorted(tables)[:5])
            raise StoreError(
                f"{path} is a sqlite database of another program (tables: {some}), not an MLflow store; name another "
                "file with --uri, tracking.uri or MLFLOW_TRACKING_URI"
            )
        whole = tables >= _TABLES | {"alembic_version"} and not any(one.startswith("_alembic_tmp_") for one in tables)
        return "whole" if whole and list(connection.execute("SELECT 1 FROM alembic_version")) else "half-made"


def _is_sound(path: Path) -> bool:
    with _reading(path) as connection:
        return list(connection.execute("PRAGMA quick_check")) == [("ok",)]


def _holds_data(path: Path) -> bool:
    """Whether a half-made file has runs, or experiments beside MLflow's own first one."""
    least = {"runs": 0, "experiments": 1, "registered_models": 0}
    with _reading(path) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        counts = {
            name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]
            for name in tables
            if name.removeprefix("_alembic_tmp_") in least
        }
    return any(count > least[name.removeprefix("_alembic_tmp_")] for name, count in counts.items())


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with path.open("rb") as file:
            beginning = file.read(len(_HEADER))
        if beginning and beginning != _HEADER:
            raise StoreError(
                f"{path} is no sqlite database (it begins with {beginning[:8]!r}), so not an MLflow store; name "
                "another file with --uri, tracking.uri or MLFLOW_TRACKING_URI"
            )
        with contextlib.closing(connect(path)) as connection:
            yield connection
    except sqlite3.OperationalError as error:
        if re.search("locked|disk I/O error", str(error)):
            raise StoreBusyError(f"the MLflow store {path} cannot be read now: {error}") from error
        raise StoreError(f"the MLflow store {path} cannot be opened: {error}") from error
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path} cannot be read as a sqlite database: {error}; restore it from a copy") from error
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"the MLflow store {path} cannot be opened: {error.strerror or error}") from error


def _others_make_it(path: Path) -> bool:
    """Wait while a process that does not know the lock (MLflow's own server) makes the file; whether it is whole."""
    seen, since = _stamp(path), time.monotonic()
    while time.monotonic() - since < _OTHERS_SECONDS and time.time() - path.stat().st_mtime < _OTHERS_SECONDS:
        time.sleep(0.2)
        if _state(path) == "whole":
            return True
        if (now := _stamp(path)) != seen:
            seen, since = now, time.monotonic()
    return False


def _half_made(path: Path) -> str:
    return (
        f"the tables of the MLflow store {path} were left half changed by a process that ended, and it holds runs. "
        "Make a copy of the file; then restore a backup, or drop its tables called _alembic_tmp_... with a sqlite "
        f"tool and run `{shlex.quote(sys.executable)} -m mlflow db upgrade {shlex.quote(sqlite_uri(path))}`"
    )


def _to_be_made_anew(path: Path) -> str:
    ended = "was left half-made by a process that ended"
    return f"the MLflow store {path} {ended}. It holds no runs: `lqray run FILE` makes it anew"


def _locked(name: Path) -> int | None:
    """A descriptor of the lock file, which holds the lock until it is closed; None while another process has it."""
    descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return descriptor
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    if _identity(name) == (os.fstat(descriptor).st_dev, os.fstat(descriptor).st_ino):
        return descriptor
    os.close(descriptor)
    return None


def _identity(path: Path) -> tuple[int, int] | None:
    """None where there is no file; unknown where its filesystem does not answer."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return _UNKNOWN
    return found.st_dev, found.st_ino


def _lost(path: Path, what: str) -> str:
    return (
        f"the MLflow store {path} {what} since this command opened it. Put it back and run the same command again: "
        "trials continue from their checkpoints"
    )


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _rename_with_journals(path: Path, target: Path) -> None:
    for ending in ("-journal", "-wal", "-shm", ""):
        source = path.with_name(path.name + ending)
        if source.exists():
            source.rename(target.with_name(target.name + ending))


def _remove(path: Path) -> None:
    for ending in ("", "-journal", "-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)
