"""MLflow stores with known numbers."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag


@cache
def _tables() -> bytes:
    """A new store, whose tables MLflow takes two seconds to make."""
    with tempfile.TemporaryDirectory() as folder:
        MlflowClient(f"sqlite:///{folder}/lqray.db").search_experiments()
        return (Path(folder) / "lqray.db").read_bytes()


class Store:
    """An experiment in a sqlite store, filled run by run."""

    def __init__(self, folder: Path, experiment: str = "known") -> None:
        self.uri = f"sqlite:///{folder}/lqray.db"
        self.experiment = experiment
        if not (folder / "lqray.db").exists():
            (folder / "lqray.db").write_bytes(_tables())
        self.client = MlflowClient(self.uri)
        self.number = self.client.create_experiment(experiment, artifact_location=f"{folder}/artifacts/{experiment}")

    def run(
        self,
        method: str,
        seed: int,
        accuracies: Sequence[float] = (),
        status: str = "FINISHED",
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        name: str | None = None,
        headline: str = "test/accuracy",
    ) -> str:
        """A run with an evaluation every 100 steps, of `headline`; returns its id."""
        name = name or f"{method}-seed{seed}"
        own = {"lqray.trial_id": f"{abs(hash(name)):016x}"[:16], "lqray.trial_name": name, "lqray.git_commit": "c0ffee"}
        run_id = self.client.create_run(self.number, run_name=name).info.run_id
        flat = {"quantizer.method": method, "seed": str(seed), "schedule.iterations": "300"}
        flat |= {key: str(value) for key, value in (params or {}).items()}
        points = [Metric(headline, value, 1000 + 10 * k, 100 * (k + 1)) for k, value in enumerate(accuracies)]
        points += [Metric(key, value, 2000, 100 * len(accuracies)) for key, value in (metrics or {}).items()]
        self.client.log_batch(
            run_id,
            metrics=points,
            params=[Param(key, value) for key, value in flat.items()],
            tags=[RunTag(key, value) for key, value in (own | dict(tags or {})).items()],
        )
        if status != "RUNNING":
            self.client.set_terminated(run_id, status)
        return str(run_id)


def many_runs(folder: Path, count: int) -> Store:
    """So many finished runs of five methods, straight into the tables: 3 evaluations, 20 metrics, 20 params each."""
    store = Store(folder, "many")
    pattern = store.client.create_run(store.number).info.run_id
    methods = ("full_precision", "qsgd_inf", "nuqsgd", "alq", "amq")
    engine = sqlalchemy.create_engine(store.uri)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("runs", "tags", "params", "metrics", "latest")}
    with engine.begin() as connection:
        row = dict(
            connection.execute(sqlalchemy.text("SELECT * FROM runs WHERE run_uuid = :r"), {"r": pattern})
            .mappings()
            .one()
        )
        for index in range(count):
            run_id, method, seed = f"{index:032x}", methods[index % 5], index // 5
            rows["runs"].append(row | {"run_uuid": run_id, "name": f"r{index}", "status": "FINISHED", "end_time": 1})
            own = {"lqray.trial_id": f"{index:016x}", "lqray.trial_name": f"{method}-seed{seed}"}
            rows["tags"] += [{"run_uuid": run_id, "key": key, "value": value} for key, value in own.items()]
            flat = {"quantizer.method": method, "seed": seed, "schedule.iterations": 300} | {
                f"model.p{k}": k for k in range(17)
            }
            rows["params"] += [{"run_uuid": run_id, "key": key, "value": str(value)} for key, value in flat.items()]
            for step in (100, 200, 300):
                rows["metrics"].append(_point(run_id, "test/accuracy", step / 400 + seed % 7 / 1000, step))
            rows["latest"] += [_point(run_id, "test/accuracy", 0.75 + seed % 7 / 1000, 300)]
            rows["latest"] += [_point(run_id, f"quantizer/m{k}", 0.5, 300) for k in range(19)]
        for table, name in (
            ("runs", "runs"),
            ("tags", "tags"),
            ("params", "params"),
            ("metrics", "metrics"),
            ("latest", "latest_metrics"),
        ):
            columns = list(rows[table][0])
            values = ", ".join(f":{column}" for column in columns)
            connection.execute(
                sqlalchemy.text(f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({values})"), rows[table]
            )
    engine.dispose()
    store.client.delete_run(pattern)
    return store


def _point(run_id: str, key: str, value: float, step: int) -> dict[str, Any]:
    return {"run_uuid": run_id, "key": key, "value": value, "timestamp": step, "step": step, "is_nan": False}
