"""What reports read straight from MLflow's tables, through `lqray.store.tables`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lqray.store.tables import ACTIVE, EXPERIMENTS, connected, workspace

__all__ = ["connected"]

_CHUNK = 50_000


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
    return _rows(connection, f"SELECT run_uuid, key, value FROM params WHERE {_of(experiment)}", name=experiment)


def tags_of(connection: Any, experiment: str, prefix: str) -> Iterator[tuple[str, str, str]]:
    """(run id, key, value) of the tags of active runs whose key begins with `prefix`."""
    condition = f"{_of(experiment)} AND key LIKE :prefix"
    query = f"SELECT run_uuid, key, value FROM tags WHERE {condition}"
    return _rows(connection, query, name=experiment, prefix=f"{prefix}%")


def latest_metrics_of(connection: Any, experiment: str) -> Iterator[tuple[str, str, float, bool]]:
    """(run id, key, value, whether it is NaN): the last value of every metric of active runs."""
    query = f"SELECT run_uuid, key, value, is_nan FROM latest_metrics WHERE {_of(experiment)}"
    return _rows(connection, query, name=experiment)


def history_of(connection: Any, experiment: str, key: str) -> Iterator[tuple[str, int, float, bool, int]]:
    """(run id, step, value, whether it is NaN, milliseconds since the epoch) of a metric of active runs, unordered.

    All columns are in the primary key, which begins with the metric's: sqlite reads that index alone, if it is kept
    (by the +) from looking up every row of every run.
    """
    run = "+run_uuid" if connection.dialect.name == "sqlite" else "run_uuid"
    query = f"SELECT run_uuid, step, value, is_nan, timestamp FROM metrics WHERE key = :key AND {_of(experiment, run)}"
    return _rows(connection, query, name=experiment, key=key)


def _of(experiment: str, column: str = "run_uuid") -> str:
    return f"{column} IN (SELECT r.run_uuid {ACTIVE})"


def _rows(connection: Any, query: str, **values: Any) -> Iterator[Any]:
    from sqlalchemy import text

    parameters: Mapping[str, Any] = {"workspace": workspace(), **values}
    result = connection.execution_options(stream_results=True).execute(text(query), parameters)
    while True:
        rows = result.fetchmany(_CHUNK)
        yield from rows
        if len(rows) < _CHUNK:
            return
