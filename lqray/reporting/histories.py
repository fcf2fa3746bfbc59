"""Metrics over the steps of runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lqray.reporting.exported import export_folder, points_in
from lqray.store import tables
from lqray.store.runs import Run, number

if TYPE_CHECKING:
    from numpy.typing import NDArray

_REQUESTS = 8


@dataclass(frozen=True)
class History:
    """One metric of one run. steps (n,) int64, ascending, each once; values (n,) float64; times (n,) float64, seconds
    since the epoch."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    times: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.steps)


def read_histories(uri: str, experiment: str, run_ids: Collection[str], key: str) -> dict[str, History]:
    """By run id, the whole history of a metric; runs that have none of it are left out. uri: absolute store."""
    wanted = set(run_ids)
    folder = export_folder(uri)
    if folder:
        points = points_in(folder, key)
        return {
            run_id: history(steps, values, times * 1000) for run_id, steps, values, times in points if run_id in wanted
        }
    return tables.read(
        uri,
        lambda connection: _from_tables(connection, experiment, wanted, key),
        lambda client: _from_client(client, sorted(wanted), key),
    )


def of_runs(uri: str, records: Iterable[Run], key: str) -> dict[str, History]:
    """By run id, the whole history of a metric of runs of any experiments of a store; see `read_histories`."""
    ids: dict[str, list[str]] = {}
    for one in records:
        ids.setdefault(one.experiment, []).append(one.run_id)
    return {
        run_id: points
        for experiment, wanted in ids.items()
        for run_id, points in read_histories(uri, experiment, wanted, key).items()
    }


def smoothed(history: History, points: int) -> History:
    """Each value the mean of the `points` around it that are finite, fewer at the ends; what is not finite stays."""
    if points < 2:
        return history
    finite = np.isfinite(history.values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, history.values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(history))
    first, last = np.maximum(index - (points - 1) // 2, 0), np.minimum(index + points // 2 + 1, len(history))
    means = (sums[last] - sums[first]) / np.maximum(counts[last] - counts[first], 1)
    return History(history.steps, np.where(finite, means, history.values), history.times)


def history(steps: Any, values: Any, milliseconds: Any) -> History:
    """Of points in any order; of several at one step, the last one logged."""
    at, value = np.asarray(steps, np.int64), np.asarray(values, np.float64)
    time = np.asarray(milliseconds, np.float64)
    order = np.lexsort((time, at))
    at, value, time = at[order], value[order], time[order]
    last = np.append(at[1:] != at[:-1], True) if len(at) else np.zeros(0, bool)
    return History(at[last], value[last], time[last] / 1000)


def _from_tables(connection: Any, experiment: str, wanted: set[str], key: str) -> dict[str, History]:
    from array import array

    points: dict[str, tuple[array[int], array[float], array[int]]] = {}
    for run_id, step, value, is_nan, time in tables.history_of(connection, experiment, key):
        if run_id not in wanted:
            continue
        own = points.get(run_id)
        if own is None:
            own = points[run_id] = (array("q"), array("d"), array("q"))
        own[0].append(step)
        own[1].append(number(value, is_nan))
        own[2].append(time)
    return {run_id: history(*own) for run_id, own in points.items()}


def _from_client(client: Any, run_ids: list[str], key: str) -> dict[str, History]:
    def read(run_id: str) -> History:
        points = client.get_metric_history(run_id, key)
        return history(
            [one.step for one in points], [number(one.value) for one in points], [one.timestamp for one in points]
        )

    with ThreadPoolExecutor(_REQUESTS) as pool:
        found = dict(zip(run_ids, pool.map(read, run_ids), strict=True))
    return {run_id: one for run_id, one in found.items() if len(one)}
