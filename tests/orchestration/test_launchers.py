"""The contract of every launcher, on real runs in a real MLflow store."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from lqray.experiment.grid import Experiment, read_experiment
from lqray.experiment.options import Resources
from lqray.experiment.schema import Trial
from lqray.experiment.store import absolute_store
from lqray.orchestration.inline import InlineLauncher
from lqray.orchestration.placement import PlacementError, concurrent_trials, needed, processes_of
from lqray.orchestration.sweep import RayLauncher
from lqray.orchestration.tracking import Launch, MetricWriter, open_launch, start_run

TEXT = """
name: contract
base:
  data: {name: digits}
  model: {name: mlp, layers: [16]}
  optimizer: {name: sgd, lr: 0.1}
  schedule: {iterations: 30, batch_size: 16, evaluate_every: 15}
  workers: 2
  quantizer: {method: alq, bucket_size: 128, update_at: [0, 5]}
  telemetry: {every: 5}
sweep:
  - matrix: {quantizer.method: [alq, sgd]}
  - matrix: {optimizer.lr: [1.0e+30], quantizer.method: [full_precision]}
"""
LAUNCHERS = {"inline": InlineLauncher, "ray": RayLauncher}


class Silent:
    def __init__(self):
        self.names = []
        self.reports = 0

    def started(self, named):
        self.names.append(named.name)

    def progressed(self, trial_id, report):
        self.reports += 1

    def ended(self, result):
        pass


def prepare(folder: Path, name: str) -> tuple[Experiment, Launch]:
    path = folder / f"{name}.yaml"
    path.write_text(TEXT)
    experiment = read_experiment(path)
    uri = absolute_store("sqlite:///runs.db", folder)
    return experiment, open_launch(uri, name, str(path), TEXT, {"lqray.host": "here"})


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Results, MLflow runs and observer of both launchers, on the same trials."""
    folder = tmp_path_factory.mktemp("store")
    outcome = {}
    for name, launcher in LAUNCHERS.items():
        experiment, launch = prepare(folder, name)
        results, observer = [], Silent()
        launcher(launch, experiment.resources, observer).launch(experiment.trials(), results.append)
        client = MlflowClient(launch.uri)
        runs = {r.data.tags["lqray.trial_name"]: r for r in client.search_runs([launch.experiment_id])}
        outcome[name] = ({r.named.name: r for r in results}, runs, observer, client)
    return outcome


pytestmark = pytest.mark.ray
NAMES = ["alq-lr0.1", "sgd-lr0.1", "full_precision-lr1e+30"]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_trial_is_one_flat_run_with_its_status(launched, name):
    results, runs, observer, _ = launched[name]
    assert sorted(results) == sorted(runs) == sorted(observer.names) == sorted(NAMES)
    assert observer.reports > 0
    for trial_name, status in zip(NAMES, ["FINISHED", "FINISHED", "FAILED"], strict=True):
        assert results[trial_name].status == runs[trial_name].info.status == status, results[trial_name].error
        assert results[trial_name].run_id == runs[trial_name].info.run_id
        assert "mlflow.parentRunId" not in runs[trial_name].data.tags


@pytest.mark.parametrize("name", LAUNCHERS)
def test_runs_carry_parameters_tags_metrics_and_artifacts(launched, name):
    results, runs, _, client = launched[name]
    run, result = runs["alq-lr0.1"], results["alq-lr0.1"]
    assert run.data.params["quantizer.bits"] == "3"
    assert run.data.params["schedule.decay_at"] == "[]"
    assert set(run.data.params) == set(result.named.trial.flat())
    assert run.data.tags["lqray.trial_id"] == result.named.trial.id
    assert run.data.tags["lqray.host"] == "here"
    for key, value in result.metrics.items():
        assert run.data.metrics[key] == value
    steps = [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")]
    assert steps == [1, 6, 11, 16, 21, 26]
    assert {a.path for a in client.list_artifacts(run.info.run_id)} == {"experiment.yaml", "trial.yaml"}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_failed_trial_says_why(launched, name):
    results, runs, _, client = launched[name]
    run = runs["full_precision-lr1e+30"]
    assert "DivergedError" in run.data.tags["lqray.error"]
    assert "traceback.txt" in {a.path for a in client.list_artifacts(run.info.run_id)}
    assert "loop.py" in results["full_precision-lr1e+30"].error


def test_launchers_give_the_same_bits(launched):
    for trial_name in NAMES[:2]:
        inline, ray = (
            {k: v for k, v in launched[name][0][trial_name].metrics.items() if not k.startswith("time/")}
            for name in LAUNCHERS
        )
        assert inline == ray


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ctrl_c_ends_running_trials_as_killed_and_leaves_no_process(tmp_path, launcher):
    path = tmp_path / "long.yaml"
    path.write_text(TEXT.replace("iterations: 30", "iterations: 1000000"))
    environment = os.environ | {"LQRAY_TEST_MARK": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "lqray", "run", str(path), "--launcher", launcher],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "step" in line:
            break
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=120)
    output = "".join(lines) + rest
    assert process.returncode == 130, output
    assert "Interrupted" in output
    client = MlflowClient(f"sqlite:///{tmp_path}/lqray.db")
    runs = client.search_runs([client.get_experiment_by_name("contract").experiment_id])
    assert [run.info.status for run in runs] == ["KILLED"]
    deadline = time.monotonic() + 30
    while marked(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert marked(tmp_path) == []


def marked(mark: Path) -> list[str]:
    """Command lines of processes that inherited this test's environment mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"LQRAY_TEST_MARK={mark}".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def test_metrics_are_buffered_and_all_arrive(tmp_path):
    experiment, launch = prepare(tmp_path, "buffer")
    run_id = start_run(launch, next(experiment.trials()))
    client = MlflowClient(launch.uri)
    with MetricWriter(launch.uri, run_id) as writer:
        for step in range(1500):
            writer.write(step, {"a": float(step), "b": float("nan")})
    history = client.get_metric_history(run_id, "a")
    assert [m.value for m in history] == [float(step) for step in range(1500)]
    assert "b" not in client.get_run(run_id).data.metrics


def test_placement():
    trial = Trial.model_validate(
        {
            "data": {"name": "digits"},
            "model": {"name": "cnn"},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "schedule": {"iterations": 1, "batch_size": 1},
            "workers": 4,
            "quantizer": {"method": "qsgd"},
        }
    )
    need = needed([trial], Resources(cpus_per_process=2))
    assert need == {"CPU": 8.0}
    assert concurrent_trials(need, {"CPU": 20.0}, Resources()) == 2
    assert concurrent_trials(need, {"CPU": 20.0}, Resources(concurrent_trials=1)) == 1
    with pytest.raises(PlacementError, match="needs 8 CPU, the cluster has 4"):
        concurrent_trials(need, {"CPU": 4.0}, Resources())
    assert [processes_of(trial, Resources(processes=p)) for p in (None, 1, 2, 4)] == [4, 1, 2, 4]
    with pytest.raises(PlacementError, match="allowed: 1, 2, 4,"):
        processes_of(trial, Resources(processes=3))
