"""An exported experiment read in the place of a store: `lqray report`, `plot` and `compare` take its folder, so that
what was published can be looked at, and drawn again, without the store that it came from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

RUNS, POINTS, FILE, ARTIFACTS = "runs.json", "metrics", "experiment.yaml", "artifacts"
COLUMNS = ("run_id", "trial", "metric", "step", "value", "time")


def export_folder(uri: str) -> Path | None:
    """The folder, where a store's address is one that `lqray export` wrote; None for MLflow's."""
    if "://" in uri:
        return None
    folder = Path(uri)
    return folder if (folder / RUNS).is_file() else None


def experiment_of(folder: Path) -> tuple[str, str | None]:
    """(name, text of the experiment file where there is one)."""
    file = folder / FILE
    name: str = _document(folder)["experiment"]
    return name, file.read_text(encoding="utf-8") if file.is_file() else None


def runs_in(folder: Path) -> list[Mapping[str, Any]]:
    """Fields of `lqray.reporting.records.Record`, of each run. JSON knows neither NaN nor infinity: they are text."""
    runs: list[dict[str, Any]] = _document(folder)["runs"]
    return [{**one, "metrics": {key: float(value) for key, value in one["metrics"].items()}} for one in runs]


def points_in(folder: Path, key: str) -> Iterator[tuple[str, Any, Any, Any]]:
    """(run id, steps, values, seconds since the epoch), numpy arrays, of a metric; a run may come in several parts."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv
    import pyarrow.parquet as pq

    whole = folder / f"{POINTS}.parquet"
    if whole.is_file():
        table = pq.read_table(whole, filters=[("metric", "=", key)])
    else:
        table = pa.csv.read_csv(folder / f"{POINTS}.csv")
        table = table.filter(pc.equal(table["metric"], key))
    if not len(table):
        return
    names = table["run_id"].to_numpy()
    order = np.argsort(names, kind="stable")
    steps, values, times = (table[name].to_numpy()[order] for name in ("step", "value", "time"))
    runs, starts = np.unique(names[order], return_index=True)
    for run_id, first, end in zip(runs, starts, [*starts[1:], len(names)], strict=True):
        yield str(run_id), steps[first:end], values[first:end], times[first:end]


def artifact_in(folder: Path, run_id: str, name: str) -> str | None:
    """Text of an artifact that was exported."""
    file = folder / ARTIFACTS / run_id / name
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _document(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / RUNS).read_text(encoding="utf-8"))
    return document
