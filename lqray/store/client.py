"""The one door to an MLflow store: whoever opens one, to record or to read, does it here."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lqray.experiment import user_cache
from lqray.experiment.store import sqlite_path, sqlite_uri
from lqray.store import outage, sqlite_file
from lqray.store.errors import NoStoreError, StoreBusyError, StoreError
from lqray.store.outage import PATIENCE, READ_PATIENCE, patiently

_LOCK_NUMBER = 0x6C71726179
"""Of the advisory lock under which MLflow's tables are made in a database: "lqray"."""
MAKING_SECONDS = 60.0
"""How long one waits for another process that makes a store; then it counts as away."""
CONNECT_SECONDS = 10
_SILENCED = ("mlflow", "alembic", "sqlalchemy", "urllib3", "huey")
_LOOPBACK = ("localhost", "::1")

_opened: set[str] = set()


def client_of(uri: str) -> Any:
    """An MlflowClient of a store to record to; the store is made where there is none.

    Its calls report a server that is away within seconds: how long to wait is decided by `patiently`. Opening it the
    first time waits so long. Raises StoreError, StoreAwayError.
    """
    # A launch's helpers record into the store that it opened: where that is gone, they make no other.
    return _client(uri, multiprocessing.parent_process() is None, PATIENCE)


def patient_client(uri: str) -> Any:
    """As `client_of`, and every method waits while the store is away: for calls that may be made twice."""
    return _Patient(lambda: client_of(uri), PATIENCE)


def reading_client(uri: str) -> Any:
    """An MlflowClient of a store to read from, whose methods wait a few seconds while the store is away. Nothing is
    made: raises NoStoreError where there is no store; StoreError, StoreAwayError."""
    return _Patient(lambda: _client(uri, False, READ_PATIENCE), READ_PATIENCE)


def exists(uri: str) -> bool:
    """Whether there may be something to read: not where a sqlite file has not been made. Raises StoreError."""
    path = sqlite_path(uri)
    return path is None or sqlite_file.readable(path)


def prepare(uri: str) -> None:
    """Make the tables of a sqlite store where it has none, as one act among all processes that do. Raises StoreError,
    StoreBusyError."""
    path = sqlite_path(uri)
    if path is None:
        return
    if sqlite_file.exists(path) and sqlite_file.whole(path):
        return
    quiet()
    with sqlite_file.lock(path, MAKING_SECONDS):
        sqlite_file.make(path, _make_tables, outage.say)


def quiet() -> None:
    """Import MLflow, set how soon its requests give up, and silence what it and its packages log of a store that is
    away: tracebacks by the thousand. What is wrong is raised, and said once by `lqray.store.outage`. It does not print
    the addresses of runs, with the store's password, nor send its makers what it is used for."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow  # noqa: F401  its import sets the levels that are set here

    for name in _SILENCED:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in ("sqlalchemy.engine", "sqlalchemy.pool", "mlflow.store"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class _Patient:
    """A client whose methods wait for the store."""

    def __init__(self, opened: Callable[[], Any], patience: float) -> None:
        self._client, self._patience = opened(), patience

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            return patiently(lambda: method(*arguments, **options), self._patience)

        return call


def _client(uri: str, make: bool, patience: float) -> Any:
    path = sqlite_path(uri)
    if path is None and uri.startswith("sqlite"):
        raise StoreError(
            f"found the MLflow store {uri}, which is kept in one process's memory; allowed: sqlite:///FILE"
        )
    outage.concerns(uri)
    quiet()
    if uri in _opened:
        if path is not None and (lost := sqlite_file.gone(path)):
            raise StoreError(lost)
    else:
        patiently(lambda: _open(uri, path, make), patience)
        _opened.add(uri)
    sqlite_file.remember(path)
    return _mlflow_client(uri)


def _mlflow_client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _open(uri: str, path: Path | None, make: bool) -> None:
    if path is not None:
        _open_file(uri, path, make)
    elif uri.startswith(("http://", "https://")):
        _reach_without_proxy(uri)
        if not make:
            _look_for_server(uri)
    elif uri.startswith(("postgresql", "mysql")):
        with _database_lock(uri):
            _mlflow_client(uri)


def _open_file(uri: str, path: Path, make: bool) -> None:
    if make:
        prepare(uri)
    elif not sqlite_file.readable(path):
        raise NoStoreError(uri)
    _connect_only_to_what_is_there()
    # MLflow makes the folder that the address names, escapes and all.
    stray = Path(uri.partition(":///")[2].partition("?")[0]).parent
    known = stray.exists()
    try:
        if sqlite_file.has_first_experiment(path):
            _mlflow_client(uri)
        else:  # MLflow makes it; two at once would meet
            with sqlite_file.lock(path, MAKING_SECONDS):
                _mlflow_client(uri)
    finally:
        if not known and stray.exists():
            os.removedirs(stray)


def _make_tables(path: Path) -> None:
    """As a copy of those that this version of MLflow made before on this machine: to make them again takes seconds."""
    from mlflow.store.db import utils
    from mlflow.version import VERSION

    kept = user_cache.kept(f"tables-of-mlflow-{VERSION}.db")
    if kept and sqlite_file.copied(kept, path):
        return
    engine = utils.create_sqlalchemy_engine(sqlite_uri(path))
    try:
        utils._initialize_tables(engine)
    finally:
        engine.dispose()
    if kept:
        sqlite_file.keep(path, kept)


def database_engine(uri: str) -> Any:
    """SQLAlchemy's engine of a database on a server, each connection of which is made anew, within seconds or not at
    all. Raises StoreError where no package speaks to it."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    try:
        return create_engine(uri, poolclass=NullPool, connect_args={"connect_timeout": CONNECT_SECONDS})
    except ImportError as error:
        raise StoreError(
            f"the MLflow store {uri} needs the package {error.name}, which is not installed; for PostgreSQL: "
            "pip install 'psycopg[binary]', and an address that begins with postgresql+psycopg://"
        ) from error


@contextmanager
def _database_lock(uri: str) -> Iterator[None]:
    """Alone, among all launches, while MLflow makes its tables; not at all where they are complete."""
    from sqlalchemy import inspect, text

    with database_engine(uri).connect() as connection:
        tables = set(inspect(connection).get_table_names())
        if {"alembic_version", "experiments"} <= tables and connection.execute(
            text("SELECT 1 FROM alembic_version, experiments WHERE experiment_id = 0")
        ).first():
            connection.rollback()
            yield
            return
        connection.rollback()
        # Of the connection, and so given back with it, whatever becomes of this process.
        take = (
            f"SELECT pg_try_advisory_lock({_LOCK_NUMBER})"
            if uri.startswith("postgresql")
            else f"SELECT GET_LOCK('{_LOCK_NUMBER}', 0)"
        )
        deadline = time.monotonic() + MAKING_SECONDS
        while not connection.execute(text(take)).scalar():
            connection.rollback()
            if time.monotonic() > deadline:
                raise StoreBusyError("another process is making the tables of the MLflow store")
            time.sleep(0.2)
        connection.rollback()  # the lock is the session's; a transaction would hold others up
        yield


def _reach_without_proxy(uri: str) -> None:
    """A server on this machine is never behind a proxy, whatever HTTP_PROXY says: so for this process and those that
    it starts."""
    host = urlsplit(uri).hostname or ""
    if host not in _LOOPBACK and not host.startswith("127."):
        return
    for name in ("NO_PROXY", "no_proxy"):
        known = os.environ.get(name, "")
        if host not in known.split(","):
            os.environ[name] = f"{known},{host}" if known else host


def _look_for_server(uri: str) -> None:
    """Raise what `requests` raises within seconds where nothing answers: later requests may take longer, since a long
    list takes a server a while."""
    import requests

    requests.get(uri.rstrip("/") + "/health", timeout=READ_PATIENCE).close()


def _connect_only_to_what_is_there() -> None:
    """sqlite would make an empty file where one was removed, and lqray would record into it."""
    from sqlalchemy import Engine, event

    if not event.contains(Engine, "do_connect", _there):
        event.listen(Engine, "do_connect", _there)


def _there(dialect: Any, _record: Any, arguments: Any, _options: Any) -> None:
    if dialect.name == "sqlite" and arguments and (lost := sqlite_file.gone(Path(arguments[0]))):
        raise StoreError(lost)
