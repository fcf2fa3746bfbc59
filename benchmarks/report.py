"""What reading costs: `lqray report` on a store of 1,000 runs, 20 metrics each, 1,000 points each.

python benchmarks/report.py      some six minutes, five of which fill a sqlite store of 6 GB in the temporary folder

The report is a process of its own, so that its time has the imports in it and its memory is its own: the peak of
resident memory, as the kernel counts it.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import record

RUNS, METRICS, POINTS = 1_000, 20, 1_000
METHODS = ("full_precision", "qsgd_inf", "nuqsgd", "alq", "amq")


def fill(path: Path) -> None:
    """Five methods, 200 seeds each; accuracy rises with the step, differently for each method."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{path}")
    experiment = client.create_experiment("big")
    ids = []
    for index in range(RUNS):
        method, seed = METHODS[index % len(METHODS)], index // len(METHODS)
        tags = {"lqray.trial_id": f"{index:016x}", "lqray.trial_name": f"{method}-seed{seed}"}
        run = client.create_run(experiment, run_name=tags["lqray.trial_name"], tags=tags)
        from mlflow.entities import Param

        params = {"quantizer.method": method, "seed": str(seed), "schedule.iterations": str(POINTS)}
        client.log_batch(run.info.run_id, params=[Param(key, value) for key, value in params.items()])
        client.set_terminated(run.info.run_id)
        ids.append(run.info.run_id)
    keys = ["test/accuracy", "wire/total_bytes_sent", "time/training_seconds"]
    keys += [f"quantizer/metric{number}" for number in range(METRICS - len(keys))]
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA synchronous=OFF")
        kept = list(
            database.execute("SELECT sql FROM sqlite_master WHERE tbl_name = 'metrics' AND sql LIKE 'CREATE INDEX%'")
        )
        for (name,) in list(
            database.execute("SELECT name FROM sqlite_master WHERE tbl_name = 'metrics' AND sql LIKE 'CREATE INDEX%'")
        ):
            database.execute(f"DROP INDEX {name}")
        columns = "(key, value, timestamp, run_uuid, step, is_nan)"
        for key in sorted(keys):
            scale = 1 / POINTS if key == "test/accuracy" else 1.0
            database.executemany(
                f"INSERT INTO metrics {columns} VALUES (?, ?, ?, ?, ?, 0)",
                (
                    (key, scale * step * (1 + index % 7 / 100), 10**12 + step, run_id, step)
                    for step in range(1, POINTS + 1)
                    for index, run_id in enumerate(ids)
                ),
            )
            database.executemany(
                f"INSERT INTO latest_metrics {columns} VALUES (?, ?, ?, ?, ?, 0)",
                (
                    (key, scale * POINTS * (1 + index % 7 / 100), 10**12, run_id, POINTS)
                    for index, run_id in enumerate(ids)
                ),
            )
        for (sql,) in kept:
            database.execute(sql)


def report(folder: Path, *options: str) -> dict[str, float]:
    """Seconds and peak memory of one report."""
    command = [sys.executable, "-m", "lqray", "report", "big", "--uri", f"sqlite:///{folder}/big.db", *options]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    assert status == 0
    assert "200" in text, text
    return {"seconds": seconds, "peak_mib": usage.ru_maxrss / 1024}


def main() -> None:
    """Fill, read, record."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        fill(folder / "big.db")
        figures = {
            "runs": RUNS,
            "metrics": METRICS,
            "points": POINTS,
            "store_gib": (folder / "big.db").stat().st_size / 2**30,
            "seconds_to_fill": time.perf_counter() - started,
            "report": report(folder),
            "report_with_target": report(folder, "--target", "0.9"),
            "report_json": report(folder, "--format", "json"),
        }
        print(json.dumps(figures, indent=1))
    record(
        "report",
        figures,
        {
            "1,000 runs x 20 metrics x 1,000 points reported in under 10 s": figures["report"]["seconds"] < 10,
            "with less than 1 GiB": figures["report"]["peak_mib"] < 1024,
        },
    )


if __name__ == "__main__":
    main()
