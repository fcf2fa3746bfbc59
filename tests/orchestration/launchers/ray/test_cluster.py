"""Joining a Ray that already runs, of this test's own: its own ports, folder and processes."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from tests.testing.dataset_files import write_idx
from tests.testing.heads import TOKEN, ray_head
from tests.testing.sweeps import marked

pytestmark = pytest.mark.ray

TEXT = """
name: joined
base:
  data: {name: mnist}
  model: {name: mlp, layers: [16]}
  optimizer: {name: sgd, lr: 0.1}
  schedule: {iterations: 5, batch_size: 16}
  workers: 2
  quantizer: {method: qsgd_inf, bucket_size: 128}
sweep:
  - matrix: {seed: [1]}
"""
SEARCHED = (
    TEXT.replace("{name: mnist}", "{name: digits}")
    .replace("iterations: 5, batch_size: 16", "iterations: 600, batch_size: 16, evaluate_every: 25")
    .replace(
        "sweep:\n  - matrix: {seed: [1]}\n",
        """search:
  sampler: grid
  space: {optimizer.lr: {choice: [0.05, 1.0e-6, 2.0e-6]}}
  early_stopping: {metric: test/accuracy, grace_period: 50, reduction_factor: 2}
""",
    )
)
LEFT = """
import json, time, ray
ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
from ray.util import placement_group_table
for _ in range(100):
    groups = [one["state"] for one in placement_group_table().values() if one["state"] != "REMOVED"]
    total, free = ray.cluster_resources(), ray.available_resources()
    if not groups and free.get("CPU") == total["CPU"]:
        break
    time.sleep(0.1)
print(json.dumps([groups, total["CPU"] - free.get("CPU", 0)]))
"""


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """Address of a Ray head that asks for TOKEN, on a machine that has MNIST in a place of its own."""
    folder = tmp_path_factory.mktemp("r")
    write_idx(folder / "data")
    with ray_head(folder, dashboard=False, LQRAY_DATA=str(folder / "data")) as running:
        yield running.address


def lqray_run(
    folder: Path, address: str, *options: str, text: str = TEXT, **environment: str
) -> subprocess.CompletedProcess[str]:
    (folder / "joined.yaml").write_text(text)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    return subprocess.run(
        [sys.executable, "-m", "lqray", "run", "joined.yaml", *options],
        cwd=folder,
        # Where data is here says nothing of where it is on the machines that train.
        env=clean | {"RAY_ADDRESS": address, "LQRAY_DATA": str(folder / "nowhere")} | environment,
        capture_output=True,
        text=True,
        timeout=400,
    )


def test_a_sweep_joins_a_running_ray_and_leaves_it_running(tmp_path, head):
    for options in ([], ["--rerun", "--launcher", "warm"]):
        done = lqray_run(tmp_path, head, *options, RAY_AUTH_TOKEN=TOKEN)
        assert done.returncode == 0, done.stdout + done.stderr
    client = MlflowClient(f"sqlite:///{tmp_path}/lqray.db")
    runs = client.search_runs([client.get_experiment_by_name("joined").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]

    assert sorted(run.data.tags["lqray.attempt"] for run in runs) == ["1", "2"]

    refused = lqray_run(tmp_path, head, "--rerun", RAY_AUTH_MODE="disabled")
    assert refused.returncode != 0
    assert "RAY_AUTH_TOKEN" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_data_that_no_node_has_are_refused_before_a_trial_begins(tmp_path, head):
    """By what the nodes say, whose folder of data is not the launch's."""
    text = TEXT.replace("{name: mnist}", "{name: svhn, extra: false}")
    done = lqray_run(tmp_path, head, "--launcher", "warm", text=text, RAY_AUTH_TOKEN=TOKEN)
    assert done.returncode == 2, done.stdout + done.stderr
    said = " ".join(done.stderr.split())
    assert "Error: on every node that could run a trial" in said
    assert said.count("dataset svhn: not found looked in: ") == 1
    assert "/data (the environment variable LQRAY_DATA)" in said
    assert "nowhere" not in said
    assert "No trial was begun." in said
    client = MlflowClient(f"sqlite:///{tmp_path}/lqray.db")
    assert client.search_runs([client.get_experiment_by_name("joined").experiment_id]) == []


@pytest.mark.slow
def test_early_stopping_on_a_shared_ray_leaves_no_placement_group(tmp_path, head):
    done = lqray_run(tmp_path, head, "--launcher", "isolated", text=SEARCHED, RAY_AUTH_TOKEN=TOKEN)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "early stopping after" in done.stdout
    environment = os.environ | {"RAY_ADDRESS": head, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    asked = subprocess.run([sys.executable, "-c", LEFT], env=environment, capture_output=True, text=True, timeout=60)
    assert json.loads(asked.stdout.splitlines()[-1]) == [[], 0], asked.stdout + asked.stderr


AUTOSCALING = {
    **{"cluster_name": "growing", "max_workers": 1, "docker": {}, "auth": {}},
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {"CPU": 2, "object_store_memory": 100_000_000},
            **{"node_config": {}, "min_workers": 0, "max_workers": 1},
        },
    },
    **{"head_node_type": "head", "idle_timeout_minutes": 5, "upscaling_speed": 1.0, "file_mounts": {}},
    **{f"{kind}_commands": [] for kind in ("initialization", "setup", "head_setup", "worker_setup")},
    **{"head_start_ray_commands": [], "worker_start_ray_commands": [], "cluster_synced_files": []},
    **{"file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": []},
}
"""It begins as a head without CPUs."""


@pytest.mark.slow
@pytest.mark.cluster
def test_a_cluster_that_has_no_workers_yet_grows_for_the_sweep(tmp_path_factory, tmp_path):
    folder = tmp_path_factory.mktemp("a")
    write_idx(folder / "data")
    environment = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "LQRAY_TEST_MARK": str(folder)}
    environment |= {"LQRAY_DATA": str(folder / "data")}
    with ray_head(folder, dashboard=True, cpus=0, growing=AUTOSCALING, **environment) as running:
        nonsense = lqray_run(tmp_path, running.address, RAY_AUTH_TOKEN=TOKEN, LQRAY_CLUSTER_LIMIT="many")
        assert nonsense.returncode == 2
        assert "LQRAY_CLUSTER_LIMIT: found 'many'" in nonsense.stderr
        grown = lqray_run(
            tmp_path, running.address, "--launcher", "warm", RAY_AUTH_TOKEN=TOKEN, LQRAY_CLUSTER_LIMIT="CPU=2"
        )
        assert grown.returncode == 0, grown.stdout + grown.stderr
    for number in marked(folder):  # the worker, which only an autoscaler would end
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def test_a_node_that_leaves_while_its_head_lives_does_not_take_the_launch_with_it(tmp_path_factory, tmp_path):
    """The head tells that it is gone. Ray, which tries to have objects again that were there, ends a process that owns
    some, without a word."""
    folder = tmp_path_factory.mktemp("n")
    text = TEXT.replace("{name: mnist}", "{name: digits}").replace("iterations: 5,", "iterations: 1000000,")
    (tmp_path / "joined.yaml").write_text(text.replace("seed: [1]", "seed: [1, 2]"))
    with ray_head(folder, dashboard=False) as head:
        environment = os.environ | {"RAY_ADDRESS": head.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        command = [sys.executable, "-m", "lqray", "run", "joined.yaml"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        launch = subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)
        watch = threading.Timer(300, launch.kill)
        watch.start()
        said = ""
        for line in launch.stdout:
            said += line
            if ": step" in line:
                _end_raylet(folder)
        watch.cancel()
        launch.wait()
    assert "Ray is gone: this machine's node manager, the raylet (process " in said
    assert launch.returncode == 1, said
    client = MlflowClient(f"sqlite:///{tmp_path}/lqray.db")
    runs = client.search_runs([client.get_experiment_by_name("joined").experiment_id])
    assert "KILLED" in {run.info.status for run in runs} <= {"KILLED", "SCHEDULED"}, said


def _end_raylet(folder: Path) -> None:
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "raylet" and str(folder) in " ".join(process.info["cmdline"] or ()):
            process.terminate()
