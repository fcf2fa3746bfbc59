"""When MLflow's tables are read straight from a database, and which rows of them.

MLflow's own search makes an object of every param, metric and tag of every run, and reads a history run by run; a query
takes what is asked for, of all runs at once. Only tables of a revision that these queries were tested with are read so:
`connected` yields None for every other store, and MLflow's client serves that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lqray.experiment.store import sqlite_path
from lqray.store import outage, sqlite_file
from lqray.store.client import database_engine
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
_MODELS = (("logged_models", "artifact_location"),)


def workspace() -> str:
    """The workspace that MLflow's client would read from: names of experiments are unique in one. MLflow heeds
    MLFLOW_WORKSPACE for a database only where workspaces are enabled."""
    enabled = os.environ.get("MLFLOW_ENABLE_WORKSPACES", "").lower() in ("true", "1")
    return (os.environ.get("MLFLOW_WORKSPACE", "").strip() or "default") if enabled else "default"


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
