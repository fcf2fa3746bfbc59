"""Stores with known histories, written straight into MLflow's tables."""

from __future__ import annotations

import math
import tempfile
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy
from mlflow import MlflowClient

Points = Mapping[int, float] | float
"""By step, or one value at step 0."""


@cache
def _tables() -> bytes:
    """A new store, whose tables MLflow takes seconds to make."""
    with tempfile.TemporaryDirectory() as folder:
        MlflowClient(f"sqlite:///{folder}/lqray.db").search_experiments()
        return (Path(folder) / "lqray.db").read_bytes()


class FigureStore:
    """Experiments in a sqlite store. Fill it run by run, then `save`."""

    def __init__(self, folder: Path, *experiments: str) -> None:
        self.uri = f"sqlite:///{folder}/lqray.db"
        self.numbers = {name: number for number, name in enumerate(experiments or ("known",), start=1)}
        self._artifacts = folder / "artifacts"
        (folder / "lqray.db").write_bytes(_tables())
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._runs = 0
        for name, number in self.numbers.items():
            where = (self._artifacts / name).as_uri()
            self._add("experiments", experiment_id=number, name=name, artifact_location=where, lifecycle_stage="active")

    def run(
        self,
        method: str | None,
        seed: int = 1,
        metrics: Mapping[str, Points] | None = None,
        params: Mapping[str, Any] | None = None,
        status: str = "FINISHED",
        experiment: str | None = None,
    ) -> str:
        """One run; returns its id. method None: of another tool."""
        experiment = experiment or next(iter(self.numbers))
        self._runs += 1
        # MLflow keeps where artifacts are by run id alone, for as long as a process lives.
        run_id = f"{zlib.crc32(self.uri.encode()):08x}{self._runs:024x}"
        name = "-".join(str(part) for part in (method, *(params or {}).values(), f"seed{seed}"))
        self._add(
            "runs",
            run_uuid=run_id,
            name=name,
            status=status,
            lifecycle_stage="active",
            experiment_id=self.numbers[experiment],
            start_time=self._runs,
            artifact_uri=f"{(self._artifacts / experiment).as_uri()}/{run_id}/artifacts",
            source_type="LOCAL",
            user_id="",
        )
        if method:
            for key, value in {"lqray.trial_id": f"{self._runs:016x}", "lqray.trial_name": name}.items():
                self._add("tags", run_uuid=run_id, key=key, value=value)
            flat = {"quantizer.method": method, "seed": seed, "schedule.iterations": 300, "schedule.decay": "step"}
            for key, value in (flat | dict(params or {})).items():
                self._add("params", run_uuid=run_id, key=key, value=str(value))
        for key, points in (metrics or {}).items():
            steps = points if isinstance(points, Mapping) else {0: points}
            for step, value in steps.items():
                self._add("metrics", **self._point(run_id, key, step, value))
            last = max(steps)
            self._add("latest_metrics", **self._point(run_id, key, last, steps[last]))
        return run_id

    def save(self) -> FigureStore:
        """Write the rows."""
        engine = sqlalchemy.create_engine(self.uri)
        with engine.begin() as connection:
            for table, rows in self._rows.items():
                columns = list(rows[0])
                values = ", ".join(f":{column}" for column in columns)
                connection.execute(
                    sqlalchemy.text(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({values})"), rows
                )
        engine.dispose()
        self._rows = {}
        return self

    def _add(self, table: str, **row: Any) -> None:
        self._rows.setdefault(table, []).append(row)

    @staticmethod
    def _point(run_id: str, key: str, step: int, value: float) -> dict[str, Any]:
        stored = (
            0.0 if math.isnan(value) else math.copysign(1.7976931348623157e308, value) if math.isinf(value) else value
        )
        return {
            "run_uuid": run_id,
            "key": key,
            "value": stored,
            "timestamp": 1000 + step,
            "step": step,
            "is_nan": math.isnan(value),
        }
