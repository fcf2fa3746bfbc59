"""Joining a Ray that already runs, of this test's own: its own ports, folder and processes."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

pytestmark = pytest.mark.ray

TEXT = """
name: joined
base:
  data: {name: digits}
  model: {name: mlp, layers: [16]}
  optimizer: {name: sgd, lr: 0.1}
  schedule: {iterations: 5, batch_size: 16}
  workers: 2
  quantizer: {method: qsgd_inf, bucket_size: 128}
sweep:
  - matrix: {seed: [1]}
"""
TOKEN = "0" * 63 + "1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def head(tmp_path_factory):
    """Address of a Ray head that asks for TOKEN, in a process group of its own that ends with the test."""
    folder = tmp_path_factory.mktemp("r")
    port = free_port()
    arguments = ["--head", f"--port={port}", "--num-cpus=2", "--include-dashboard=false", "--block"]
    arguments += [f"--temp-dir={folder}", f"--ray-client-server-port={free_port()}", "--object-store-memory=100000000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments],
        env=os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_ADDRESS": ""},
        stdout=(folder / "head.log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while "Ray runtime started" not in (folder / "head.log").read_text() and time.monotonic() < deadline:
        assert process.poll() is None, (folder / "head.log").read_text()
        time.sleep(0.2)
    yield f"127.0.0.1:{port}"
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def lqray_run(folder: Path, address: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "joined.yaml").write_text(TEXT)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    return subprocess.run(
        [sys.executable, "-m", "lqray", "run", "joined.yaml", *options],
        cwd=folder,
        env=clean | {"RAY_ADDRESS": address} | environment,
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
