"""What a sweep costs beside the training in it: time per trial, expansion, planning, recording.

python benchmarks/sweep.py [expansion dry_run trials hundred logging]   all, or the parts named; ten minutes

Overheads are of trials with (almost) nothing to train: two processes, one step. torchrun: the same two workers started
by torchrun on the same trial, through `lqray train`, side by side in the same run. The share of recording in a training
run is measured as CPU time that the recording process takes and as the ratio of step times with and without it, in
alternation.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import RESULTS, cpu, record

ROOT = Path(__file__).resolve().parents[1]
SMALL = """
name: small
base:
  data: {name: digits}
  model: {name: mlp, layers: [16]}
  optimizer: {name: sgd, lr: 0.05}
  schedule: {iterations: ITERATIONS, batch_size: 16, evaluate_every: 1000000}
  workers: 2
  quantizer: {method: qsgd_inf, bits: 3, bucket_size: 128}
  telemetry: {every: 0}
sweep:
  - matrix: {seed: SEEDS}
"""
LQRAY = [sys.executable, "-m", "lqray"]


def write(folder: Path, iterations: int, seeds: int) -> Path:
    path = folder / "small.yaml"
    numbers = str(list(range(1, seeds + 1)))
    path.write_text(SMALL.replace("ITERATIONS", str(iterations)).replace("SEEDS", numbers))
    return path


def run(path: Path, launcher: str) -> float:
    """Seconds of a whole `lqray run`."""
    started = time.perf_counter()
    subprocess.run(
        [*LQRAY, "run", path.name, "--launcher", launcher],
        cwd=path.parent,
        check=True,
        capture_output=True,
        env=os.environ | {"RAY_ADDRESS": "local"},
    )
    return time.perf_counter() - started


def ends(path: Path) -> list[float]:
    """When the trials ended, seconds since the epoch, in order."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{path.parent}/lqray.db")
    runs = client.search_runs([client.get_experiment_by_name("small").experiment_id], max_results=1000)
    assert all(one.info.status == "FINISHED" for one in runs)
    return sorted(one.info.end_time / 1000 for one in runs)


def per_trial(launcher: str, trials: int) -> dict[str, float]:
    """Between the ends of successive trials, without the first."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), 1, trials)
        whole = run(path, launcher)
        done = ends(path)
        gaps = [after - before for before, after in itertools.pairwise(done)]
        return {"median_s": statistics.median(gaps), "worst_s": max(gaps), "trials": trials, "whole_run_s": whole}


def torchrun() -> float:
    """Seconds of torchrun with the same two workers on the same trial."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), 1, 1)
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "lqray", "train"]
        started = time.perf_counter()
        done = subprocess.run([sys.executable, *command, path.name], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return time.perf_counter() - started


def trials() -> dict[str, object]:
    """Overhead of a trial under each launcher beside torchrun's."""
    beside = [torchrun()]
    isolated = per_trial("isolated", 6)
    beside += [torchrun(), torchrun()]
    warm = per_trial("warm", 12)
    base = statistics.median(beside)
    return {
        "torchrun_s": base,
        "isolated": isolated,
        "isolated_over_torchrun": isolated["median_s"] / base,
        "warm": warm,
        "warm_over_torchrun": warm["median_s"] / base,
    }


def hundred() -> dict[str, float]:
    """A hundred trials of about a second in `warm`."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), 500, 100)
        seconds = run(path, "warm")
        done = ends(path)
        gaps = [after - before for before, after in itertools.pairwise(done)]
        return {"seconds": seconds, "trials": 100, "median_s_per_trial": statistics.median(gaps)}


GRID = """
sweep:
  - matrix:
      quantizer.method: [qsgd, qsgd_inf, nuqsgd, alq, alq_n, amq, amq_n, optimal]
      quantizer.bits: [2, 3, 4, 5, 6]
      optimizer.lr: LRS
      seed: SEEDS
"""


def grid(path: Path, lrs: int, seeds: int) -> Path:
    """8 methods x 5 widths x learning rates x seeds."""
    base = SMALL[: SMALL.index("sweep:")].replace("ITERATIONS", "1000")
    rates = str([round(0.001 * number, 3) for number in range(1, lrs + 1)])
    path.write_text(base + GRID.replace("LRS", rates).replace("SEEDS", str(list(range(1, seeds + 1)))))
    return path


def expansion() -> dict[str, float]:
    """A million trials."""
    from lqray.experiment.grid import read_experiment

    with tempfile.TemporaryDirectory() as folder:
        path = grid(Path(folder) / "grid.yaml", 25, 1000)
        started = time.perf_counter()
        experiment = read_experiment(path)
        first = time.perf_counter() - started
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        count = sum(1 for _ in experiment.trials())
        seconds = time.perf_counter() - started
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"trials": count, "first_s": first, "all_s": seconds, "memory_grown_mib": grown}


def fill(uri: str, experiment: str, trials: list[tuple[str, str, dict[str, str]]]) -> None:
    """Finished runs, as many as trials, straight into MLflow's tables: 12 tags, all params, 20 metrics each."""
    import sqlalchemy
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    number = client.create_experiment(experiment)
    pattern = client.create_run(number).info.run_id
    engine = sqlalchemy.create_engine(uri)
    with engine.begin() as connection:
        query = sqlalchemy.text("SELECT * FROM runs WHERE run_uuid = :r")
        row = connection.execute(query, {"r": pattern}).mappings().one()
        columns = ", ".join(row)
        runs, tags, params, metrics = [], [], [], []
        for index, (trial_id, name, flat) in enumerate(trials):
            run_id = f"{index:032x}"
            runs.append(dict(row) | {"run_uuid": run_id, "name": name, "status": "FINISHED", "end_time": 1})
            own = {"lqray.trial_id": trial_id, "lqray.trial_name": name} | {f"lqray.tag{k}": "value" for k in range(10)}
            tags += [{"run_uuid": run_id, "key": key, "value": value} for key, value in own.items()]
            params += [{"run_uuid": run_id, "key": key, "value": value} for key, value in flat.items()]
            values = {f"m{k}": 0.5 for k in range(19)} | {"time/seconds_per_step": 0.004}
            metrics += [
                {"run_uuid": run_id, "key": key, "value": value, "timestamp": 1, "step": 1, "is_nan": False}
                for key, value in values.items()
            ]
        insert = sqlalchemy.text
        connection.execute(insert(f"INSERT INTO runs ({columns}) VALUES ({', '.join(':' + c for c in row)})"), runs)
        connection.execute(insert("INSERT INTO tags (run_uuid, key, value) VALUES (:run_uuid, :key, :value)"), tags)
        connection.execute(insert("INSERT INTO params (run_uuid, key, value) VALUES (:run_uuid, :key, :value)"), params)
        connection.execute(
            insert(
                "INSERT INTO latest_metrics (run_uuid, key, value, timestamp, step, is_nan) "
                "VALUES (:run_uuid, :key, :value, :timestamp, :step, :is_nan)"
            ),
            metrics,
        )
    engine.dispose()


def dry_run() -> dict[str, float]:
    """100,000 trials, half of them finished in the store."""
    from lqray.experiment.grid import read_experiment

    with tempfile.TemporaryDirectory() as folder:
        path = grid(Path(folder) / "grid.yaml", 25, 100)
        named = [one for index, one in enumerate(read_experiment(path).trials()) if index % 2]
        rows = [(one.trial.id, one.name, {k: str(v) for k, v in one.trial.flat().items()}) for one in named]
        fill(f"sqlite:///{folder}/lqray.db", "small", rows)
        started = time.perf_counter()
        done = subprocess.run([*LQRAY, "run", path.name, "--dry-run"], cwd=folder, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        assert "50,000 new, 50,000 finished" in done.stdout, done.stdout + done.stderr
    return {"trials": 100_000, "finished": 50_000, "seconds": seconds}


STEP = """
import sys, time, json, torch
from lqray.orchestration.recording.metrics import MetricDelivery
from lqray.orchestration.worker.reporter import Reporter
from lqray.orchestration.worker.task import Ack, Update, WorkerTask
from lqray.experiment.options.resources import Resources
from lqray.experiment.options.storage import Storage
from lqray.training.loop import Report
from mlflow import MlflowClient
folder, rounds = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
uri = f"sqlite:///{folder}/runs.db"
client = MlflowClient(uri)
run_id = client.create_run(client.create_experiment("e")).info.run_id
delivery = MetricDelivery(uri)
class Link:
    def send(self, update): delivery.write(run_id, update.points)
    def acknowledged(self): return Ack(delivery.delivered(run_id))
    def close(self): pass
task = WorkerTask("t", "n", {}, Resources(), Storage(), folder, run_id, 1, "gloo", "c")
reporter = Reporter(task, Link(), lambda line: None)
x, w = torch.randn(256, 512), torch.randn(512, 512, requires_grad=True)
def burn(seconds, logged):
    # Fixed work: as many multiplications as take about 20 ms, fifty times a second.
    global number
    started = time.perf_counter()
    for _ in range(int(50 * seconds)):
        for _ in range(amount):
            (x @ w).relu().sum().backward(); w.grad = None
        if logged:
            number += 1
            reporter.report(Report(number, 10**9, {f"group/metric{k}": number * 0.5 + k for k in range(20)}))
    return time.perf_counter() - started
number = 0
amount = 1
t = time.perf_counter()
for _ in range(50): (x @ w).relu().sum().backward(); w.grad = None
amount = max(1, round(0.02 / ((time.perf_counter() - t) / 50)))
burn(2, True)
pairs = []
def measured(logged):
    # In the steady state: what came before is delivered, and deliveries of this window have begun.
    assert delivery.settle(run_id, 60)
    burn(2 if logged else 0.2, logged)
    return burn(4, logged)
for round_ in range(rounds):
    first, second = measured(round_ % 2 == 0), measured(round_ % 2 == 1)
    logged, plain = (first, second) if round_ % 2 == 0 else (second, first)
    pairs.append(logged / plain)
reporter.close()
assert delivery.settle(run_id, 60)
steps = len({m.step for m in client.get_metric_history(run_id, "group/metric3")})
assert steps == number, (steps, number)
delivery.close()
print(json.dumps({"ratios": pairs, "points": 20 * number}))
"""


def logging() -> dict[str, object]:
    """A training process at 50 steps a second with 20 metrics each, recorded or not, in alternation."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "step.py"
        body = "".join(f"    {line}\n" for line in STEP.strip().splitlines())
        script.write_text(f"if __name__ == '__main__':\n{body}")
        done = subprocess.run(
            [sys.executable, str(script), folder, "20"], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
    said = json.loads(done.stdout.splitlines()[-1])
    return {
        "median_ratio_with_over_without": statistics.median(said["ratios"]),
        "ratios": said["ratios"],
        "points_delivered": said["points"],
    }


def main() -> None:
    """Measure all parts, or those named, and record them with those that were measured before."""
    parts = {part.__name__: part for part in (expansion, dry_run, trials, hundred, logging)}
    chosen = sys.argv[1:] or list(parts)
    kept = RESULTS / "sweep.json"
    figures = json.loads(kept.read_text())["figures"] if kept.exists() and chosen != list(parts) else {}
    for name in chosen:
        figures[name] = parts[name]() | {"measured": datetime.date.today().isoformat(), "cpu": cpu()}
        print(name, json.dumps(figures[name], indent=1), flush=True)
    if set(figures) != set(parts):
        return
    record(
        "sweep",
        figures,
        {
            "warm: at most 0.5 s a trial after the first": figures["trials"]["warm"]["median_s"] <= 0.5,
            "isolated: at most 10 s a trial": figures["trials"]["isolated"]["median_s"] <= 10,
            "isolated: at most 2.2 of a torchrun of the same workers": figures["trials"]["isolated_over_torchrun"]
            <= 2.2,
            "100 one-second trials in warm under 240 s": figures["hundred"]["seconds"] < 240,
            "a million trials: the first in under 0.1 s": figures["expansion"]["first_s"] < 0.1,
            "a million trials: all in under 60 s": figures["expansion"]["all_s"] < 60,
            "dry run of 100,000 trials, half of them finished, under 20 s": figures["dry_run"]["seconds"] < 20,
            "recording 1,000 points a second under 1% of a training process's time": (
                figures["logging"]["median_ratio_with_over_without"] < 1.01
            ),
        },
    )


if __name__ == "__main__":
    main()
