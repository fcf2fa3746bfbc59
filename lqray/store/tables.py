"""Every SQL statement on experiments and runs: MLflow's tables, read straight from a database, and which rows of them.

MLflow's own search makes an object of every param, metric and tag of every run, and reads a history run by run; a query
takes what is asked for, of all runs at once. Only tables of a revision that these queries were tested with are read so:
`connected` yields None for every other store, and MLflow's client serves that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from lqray.experiment.store import sqlite_path
from lqray.store import outage, sqlite_file
from lqray.store.client import database_engine, reading_client
from lqray.store.errors import NoStoreError, StoreBusyError, StoreError

REVISIONS = frozenset({"dc11669786a5"})
"""Of MLflow's schema (`alembic_version`): that of MLflow 3.17."""

EXPERIMENTS = "e.lifecycle_stage = 'active' AND e.workspace = :workspace"
"""Which rows of `experiments e` there are, for this user."""
ACTIVE = (
    "FROM runs r JOIN experiments e ON e.experiment_id = r.experiment_id "
    "WHERE e.name = :name AND e.workspace = :workspace AND r.lifecycle_stage = 'active'"
)
"""The runs of an experiment; another of its name may be in another workspace."""

_LOCK_SECONDS = 10.0
_CHUNK = 50_000
T = TypeVar("T")
_MODELS = (("logged_models", "artifact_location"),)


def workspace() -> str:
    """The workspace that MLflow's client would read from: names of experiments are unique in one. MLflow heeds
    MLFLOW_WORKSPACE for a database only where workspaces are enabled."""
    return (os.environ.get("MLFLOW_WORKSPACE", "").strip() or "default") if workspaces_enabled() else "default"


def workspaces_enabled() -> bool:
    """Whether MLflow is told that the store has several."""
    return os.environ.get("MLFLOW_ENABLE_WORKSPACES", "").lower() in ("true", "1")


def read(uri: str, from_tables: Callable[[Any], T], from_client: Callable[[Any], T]) -> T:
    """What is to be known of a store: from its tables, where they are as expected; through MLflow's client from every
    other store, and where its tables cannot be read for another reason than that it is away. Both give the same.

    Raises NoStoreError, StoreError, StoreAwayError.
    """
    failed = None
    try:
        with connected(uri) as connection:
            if connection is not None:
                return from_tables(connection)
    except (NoStoreError, StoreBusyError):
        raise
    except StoreError as error:
        failed = error
    try:
        return from_client(reading_client(uri))
    except Exception as error:
        if failed is None:
            raise
        raise failed from error


@contextmanager
def connected(uri: str) -> Iterator[Any]:
    """A connection to the database of a tracking URI, or None; it never makes one, and what is written with it is kept
    where the caller commits.

    Raises NoStoreError where there is none, StoreBusyError for one that cannot be read now, StoreError for one that
    cannot be read; also for errors within the context.
    """
    from sqlalchemy.exc import SQLAlchemyError

    engine = _engine(uri)
    if engine is None:
        yield None
        return
    try:
        with engine.connect() as connection:
            yield connection if _revision(connection) in REVISIONS else None
    except SQLAlchemyError as error:
        kind = StoreBusyError if outage.is_away(error) else StoreError
        raise kind(f"the MLflow store {uri} cannot be read: {outage.explained(error)}") from error
    finally:
        engine.dispose()


def _engine(uri: str) -> Any:
    path = sqlite_path(uri)
    if path is not None:
        from sqlalchemy import create_engine
        from sqlalchemy.pool import NullPool

        if not sqlite_file.readable(path):
            raise NoStoreError(uri)
        return create_engine("sqlite://", creator=lambda: sqlite_file.connect(path, _LOCK_SECONDS), poolclass=NullPool)
    return database_engine(uri) if uri.startswith("postgresql") else None


def _revision(connection: Any) -> str | None:
    from sqlalchemy import inspect, text

    if not inspect(connection).has_table("alembic_version"):
        return None
    rows = connection.execute(text("SELECT version_num FROM alembic_version")).all()
    return str(rows[0][0]) if len(rows) == 1 else None


def experiments_of(connection: Any) -> dict[str, tuple[str, dict[str, str]]]:
    """By name, the id and the tags of active experiments."""
    query = f"SELECT e.experiment_id, e.name FROM experiments e WHERE {EXPERIMENTS}"
    found: dict[str, tuple[str, dict[str, str]]] = {
        name: (str(number), {}) for number, name in _rows(connection, query)
    }
    query = (
        "SELECT e.name, t.key, t.value FROM experiment_tags t JOIN experiments e ON e.experiment_id = t.experiment_id "
        f"WHERE {EXPERIMENTS}"
    )
    for name, key, value in _rows(connection, query):
        if name in found:  # not of one that was made in between
            found[name][1][key] = value
    return found


def runs_of(connection: Any, experiment: str) -> list[tuple[str, str, str, int, int | None]]:
    """(run id, name, status, start, end) of active runs, oldest first; times in milliseconds since the epoch."""
    columns = "r.run_uuid, r.name, r.status, r.start_time, r.end_time"
    return list(_rows(connection, f"SELECT {columns} {ACTIVE} ORDER BY r.start_time, r.run_uuid", name=experiment))


def params_of(connection: Any, experiment: str) -> Iterator[tuple[str, str, str]]:
    """(run id, key, value) of all params of active runs."""
    return _rows(connection, f"SELECT run_uuid, key, value FROM params WHERE {_of_experiment()}", name=experiment)


def param_values_of(connection: Any, experiment: str, key: str) -> Iterator[tuple[str]]:
    """(value,) of each that a param has in some active run, once."""
    query = f"SELECT DISTINCT value FROM params WHERE key = :key AND {_of_experiment()}"
    return _rows(connection, query, name=experiment, key=key)


def tags_of(connection: Any, experiment: str, keys: Collection[str] | None = None) -> Iterator[tuple[str, str, str]]:
    """(run id, key, value) of tags of active runs: of these keys, or all of lqray's."""
    condition = "key LIKE 'lqray.%'" if keys is None else "key IN :keys"
    query = f"SELECT run_uuid, key, value FROM tags WHERE {_of_experiment()} AND {condition}"
    return _rows(connection, query, name=experiment, keys=keys)


def latest_metrics_of(
    connection: Any, experiment: str, keys: Collection[str] | None = None
) -> Iterator[tuple[str, str, float, bool]]:
    """(run id, key, value, whether it is NaN): the last value of metrics of active runs, of these keys or all."""
    if keys is not None and not keys:
        return iter(())
    condition = "" if keys is None else " AND key IN :keys"
    query = f"SELECT run_uuid, key, value, is_nan FROM latest_metrics WHERE {_of_experiment()}{condition}"
    return _rows(connection, query, name=experiment, keys=keys)


def history_of(connection: Any, experiment: str, key: str) -> Iterator[tuple[str, int, float, bool, int]]:
    """(run id, step, value, whether it is NaN, milliseconds since the epoch) of a metric of active runs, unordered.

    All columns are in the primary key, which begins with the metric's: sqlite reads that index alone, if it is kept
    (by the +) from looking up every row of every run.
    """
    run = "+run_uuid" if connection.dialect.name == "sqlite" else "run_uuid"
    query = f"SELECT run_uuid, step, value, is_nan, timestamp FROM metrics WHERE key = :key AND {_of_experiment(run)}"
    return _rows(connection, query, name=experiment, key=key)


def _of_experiment(column: str = "run_uuid") -> str:
    return f"{column} IN (SELECT r.run_uuid {ACTIVE})"


def _rows(connection: Any, query: str, keys: Collection[str] | None = None, **values: str) -> Iterator[Any]:
    from sqlalchemy import bindparam, text

    parameters: dict[str, Any] = {"workspace": workspace(), **values}
    statement = text(query)
    if keys is not None:
        statement, parameters["keys"] = statement.bindparams(bindparam("keys", expanding=True)), sorted(keys)
    result = connection.execution_options(stream_results=True).execute(statement, parameters)
    while True:
        rows = result.fetchmany(_CHUNK)
        yield from rows
        if len(rows) < _CHUNK:
            return


def experiments_named(connection: Any, name: str | None = None) -> list[tuple[str, str, str, bool]]:
    """(id, name, location of its artifacts, whether it was deleted) of the experiment of this name, or of all."""
    from sqlalchemy import text

    which = "workspace = :workspace" + ("" if name is None else " AND name = :name")
    rows = connection.execute(
        text(f"SELECT experiment_id, name, artifact_location, lifecycle_stage FROM experiments WHERE {which}"),
        {"workspace": workspace()} | ({} if name is None else {"name": name}),
    )
    return [(str(number), found, location or "", stage == "deleted") for number, found, location, stage in rows]


def relocate_experiment(connection: Any, experiment_id: str, old: str, new: str) -> None:
    """Have an experiment, its runs and its models kept below another URI; the caller commits."""
    from sqlalchemy import text

    which = {"id": int(experiment_id), "old": old, "new": new, "length": len(old)}
    for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri"), *_MODELS):
        connection.execute(
            text(
                f"UPDATE {table} SET {column} = :new || substr({column}, :length + 1) "
                f"WHERE experiment_id = :id AND ({column} = :old OR substr({column}, 1, :length + 1) = :old || '/')"
            ),
            which,
        )
