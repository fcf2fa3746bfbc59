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
from lqray.experiment.options.resources import Resources
from lqray.experiment.schema import Trial
from lqray.orchestration.launch import Presentation, Ran, run_plan
from lqray.orchestration.launchers.placement import (
    PlacementError,
    backend_of,
    concurrent_trials,
    device_of,
    needed,
    processes_of,
)
from lqray.orchestration.plan.plan import Plan, RunOptions, make_plan

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
LAUNCHERS = ["inline", "isolated", "warm"]


class Silent:
    def __init__(self):
        self.names = []
        self.reports = 0

    def started(self, named, continued):
        self.names.append(named.name)

    def progressed(self, trial_id, report):
        self.reports += 1

    def retrying(self, named, failure, seconds):
        raise AssertionError(failure.traceback)

    def ended(self, result):
        pass


def prepare(folder: Path, name: str, text: str = TEXT) -> Experiment:
    path = folder / f"{name}.yaml"
    text = text.replace("name: contract", f"name: {name}")
    path.write_text(f"{text}tracking: {{uri: 'sqlite:///{folder}/runs.db'}}\nstorage: {{folder: {folder}/storage}}\n")
    return read_experiment(path)


def launch(experiment: Experiment, launcher: str, observer=None, **options) -> tuple[Plan, Ran]:
    chosen = RunOptions(launcher, **options)
    plan = make_plan(experiment, chosen)
    return plan, run_plan(plan, chosen, observer or Silent(), Presentation(machine=lambda uri: "as doctor says"))


def runs_of(plan: Plan, name: str) -> dict:
    client = MlflowClient(plan.uri)
    found = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    assert len({run.data.tags["lqray.trial_name"] for run in found}) == len(found)
    return {run.data.tags["lqray.trial_name"]: run for run in found}


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Results, MLflow runs and observer of all launchers, on the same trials."""
    folder = tmp_path_factory.mktemp("store")
    outcome = {}
    for name in LAUNCHERS:
        observer = Silent()
        plan, ran = launch(prepare(folder, name), name, observer)
        results = {result.named.name: result for result in ran.results}
        outcome[name] = (results, runs_of(plan, name), observer, MlflowClient(plan.uri))
    return outcome


pytestmark = pytest.mark.ray
NAMES = ["alq-lr0.1", "sgd-lr0.1", "full_precision-lr1e+30"]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_trial_is_one_flat_run_with_its_status(launched, name):
    results, runs, observer, _ = launched[name]
    assert sorted(results) == sorted(runs) == sorted(observer.names) == sorted(NAMES)
    assert observer.reports > 0
    for trial_name, status in zip(NAMES, ["FINISHED", "FINISHED", "FAILED"], strict=True):
        assert results[trial_name].status == runs[trial_name].info.status == status, results[trial_name].failure
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
    assert run.data.tags["lqray.launch"]
    for key, value in result.metrics.items():
        assert run.data.metrics[key] == value
    steps = [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")]
    assert steps == [1, 6, 11, 16, 21, 26]
    artifacts = {a.path for a in client.list_artifacts(run.info.run_id)}
    own = {"experiment.yaml", "trial.yaml", "density.json", "levels.json"}
    assert own | {"doctor.txt", "requirements.txt"} <= artifacts
    assert run.data.metrics["varied/optimizer.lr"] == 0.1
    assert "system/cpu_utilization_percentage" in run.data.metrics
    assert [one.dataset.name for one in run.inputs.dataset_inputs] == ["digits", "digits"]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_failed_trial_says_why(launched, name):
    results, runs, _, client = launched[name]
    run = runs["full_precision-lr1e+30"]
    assert "DivergedError" in run.data.tags["lqray.error"]
    assert run.data.tags["lqray.failure"] == "non_finite"
    assert "traceback.txt" in {a.path for a in client.list_artifacts(run.info.run_id)}
    assert "loop.py" in results["full_precision-lr1e+30"].failure.traceback


def timeless(metrics: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if not key.startswith("time/")}


def test_launchers_give_the_same_bits(launched):
    for trial_name in NAMES[:2]:
        inline, isolated, warm = (timeless(launched[name][0][trial_name].metrics) for name in LAUNCHERS)
        assert inline == isolated == warm


def test_workers_leave_a_log_and_checkpoints(launched):
    for name in LAUNCHERS:
        folder = Path(launched[name][1]["alq-lr0.1"].data.tags["lqray.folder"])
        assert "step 15/30" in (folder / "rank-0.log").read_text()
        assert (folder / "step-0000000030.pt").exists()


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_second_launch_has_nothing_to_do_but_what_failed(launched, name):
    folder = Path(launched[name][1]["alq-lr0.1"].data.tags["lqray.folder"]).parents[2]
    experiment = read_experiment(folder / f"{name}.yaml")
    plan = make_plan(experiment, RunOptions())
    assert [one.what for one in plan.trials] == ["done", "done", "retry"]
    assert [named.name for named in plan.due] == NAMES[2:]


@pytest.mark.slow  # tests/orchestration/test_interrupted.py ends every launcher by a signal
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


CONFIG = {
    "data": {"name": "digits"},
    "model": {"name": "cnn"},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "schedule": {"iterations": 1, "batch_size": 1},
    "workers": 4,
    "quantizer": {"method": "qsgd"},
}


def test_placement():
    trial = Trial.model_validate(CONFIG)
    need = needed([trial], Resources(cpus_per_process=2))
    assert need == {"CPU": 8.0}
    assert concurrent_trials(need, {"CPU": 20.0}, Resources()) == 2
    assert concurrent_trials(need, {"CPU": 20.0}, Resources(concurrent_trials=1)) == 1
    with pytest.raises(PlacementError, match="needs 8 CPU cores, the cluster has 4; lower resources.cpus_per_process"):
        concurrent_trials(need, {"CPU": 4.0}, Resources())
    assert [processes_of(trial, Resources(processes=p)) for p in (None, 1, 2, 4)] == [4, 1, 2, 4]
    shared = Resources(gpus_per_process=0.4)
    need = needed([trial], shared)
    assert concurrent_trials(need, {"CPU": 64, "GPU": 4.0}, shared) == 2  # two processes on each GPU, not 2.5
    with pytest.raises(PlacementError, match="2 fit on one"):
        concurrent_trials(needed([trial], shared), {"CPU": 64, "GPU": 1.7}, shared)
    assert [device_of(rank, shared) for rank in range(4)] == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
    assert [backend_of(Resources(gpus_per_process=share)) for share in (0, 0.5, 1, 2)] == [
        "gloo",
        "gloo",
        "nccl",
        "nccl",
    ]
    with pytest.raises(ValueError, match="a share of one below 1"):
        Resources(gpus_per_process=1.5)
    with pytest.raises(PlacementError, match="allowed: 1, 2, 4,"):
        processes_of(trial, Resources(processes=3))


@pytest.mark.parametrize(
    ("workers", "hosts", "fit", "other"), [(12, 4, (1, 2, 4, 12), (3, 6)), (12, 6, (2, 3, 12), (4,))]
)
def test_a_process_holds_whole_hosts_or_a_host_whole_processes(workers, hosts, fit, other):
    exchange = {"reduction": "hierarchical", "hosts": hosts}
    trial = Trial.model_validate({**CONFIG, "workers": workers, "exchange": exchange})
    assert [processes_of(trial, Resources(processes=p)) for p in fit] == list(fit)
    for processes in other:
        with pytest.raises(PlacementError, match=f"processes is {processes} and exchange.hosts {hosts}; allowed"):
            processes_of(trial, Resources(processes=processes))
    placed = Trial.model_validate({**CONFIG, "workers": workers, "exchange": exchange | {"hosts": None}})
    assert processes_of(placed, Resources(processes=2)) == 2
    with pytest.raises(PlacementError, match="exchange.hosts is null, for as many hosts .*, and one process has all"):
        processes_of(placed, Resources(processes=1))
    plain = Trial.model_validate({**CONFIG, "workers": workers, "exchange": exchange, "quantizer": {"method": "bf16"}})
    assert processes_of(plain, Resources(processes=other[0])) == other[0]
