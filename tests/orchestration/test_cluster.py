"""Joining a Ray that already runs, of this test's own: its own ports, folder and processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.orchestration.heads import TOKEN, ray_head
from tests.training.dataset_files import write_idx

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


@pytest.fixture
def head(tmp_path_factory):
    """Address of a Ray head that asks for TOKEN, on a machine that has MNIST in a place of its own."""
    folder = tmp_path_factory.mktemp("r")
    write_idx(folder / "data")
    with ray_head(folder, dashboard=False, LQRAY_DATA=str(folder / "data")) as running:
        yield running.address


def lqray_run(folder: Path, address: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "joined.yaml").write_text(TEXT)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    return subprocess.run(
        [sys.executable, "-m", "lqray", "run", "joined.yaml", *options],
        cwd=folder,
        # Where data is here says nothing of where it is on the machines that train.
        env=clean | {"RAY_ADDRESS": address, "LQRAY_DATA": str(folder / "nowhere")} | environment,
        capture_output=True,
        text=True,
        timeout=180,
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
