"""`lqray submit` in a process of its own, and what a cluster says of its jobs."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import requests
from mlflow import MlflowClient

from tests.testing.heads import TOKEN, without

TEXT = """
name: far
base:
  data: {name: digits}
  model: {name: mlp, layers: [16]}
  optimizer: {name: sgd, lr: 0.1}
  schedule: {iterations: ITERATIONS, batch_size: 16, evaluate_every: 500}
  workers: 1
  quantizer: {method: qsgd_inf, bucket_size: 128}
"""
OF_CLIENT, OF_CLUSTER = "secret-of-the-client", "secret-of-the-cluster"


def store(cluster) -> str:
    """Where the sweeps of a cluster's jobs are recorded."""
    return f"sqlite:///{cluster.log.parent}/lqray.db"


def start(folder: Path, *arguments: str, token: str | None = TOKEN, **environment: str) -> subprocess.Popen[str]:
    """A command in a folder of its own, which is no git repository; its output goes to files there."""
    clean = without("RAY_") | ({"RAY_AUTH_TOKEN": token} if token else {}) | {"HOME": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=clean | {"MLFLOW_TRACKING_PASSWORD": OF_CLIENT, "AWS_SECRET_ACCESS_KEY": OF_CLIENT} | environment,
        stdout=(folder / "out.txt").open("a"),
        stderr=(folder / "err.txt").open("a"),
        text=True,
        start_new_session=True,
    )


@contextmanager
def submitting(folder: Path, *arguments: str, **environment: str):
    """`lqray submit`, which ends with this context."""
    process = start(folder, "lqray", "submit", *arguments, **environment)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def submit(folder: Path, *arguments: str, expected: int = 0, **environment: str) -> str:
    """Everything that the command has said."""
    before = len(said(folder))
    with submitting(folder, *arguments, **environment) as process:
        assert process.wait(400) == expected, said(folder)
    return said(folder)[before:]


def said(folder: Path, name: str = "err.txt") -> str:
    """What the commands of a folder have written to stderr, or to stdout (out.txt)."""
    return (folder / name).read_text() if (folder / name).exists() else ""


def wait_for(ready, folder: Path, seconds: float = 300.0) -> None:
    """Wait until `ready()`; what the commands of the folder have said where that takes too long."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, said(folder) + said(folder, "out.txt")
        time.sleep(0.1)


def experiment(folder: Path, iterations: int, name: str = "far") -> Path:
    """An experiment file of one trial."""
    folder.mkdir(exist_ok=True)
    path = folder / "far.yaml"
    path.write_text(TEXT.replace("ITERATIONS", str(iterations)).replace("far", name, 1))
    return path


def ask(cluster, path: str, token: str | None = TOKEN) -> requests.Response:
    """What the cluster's dashboard answers."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return requests.get(cluster.dashboard + path, headers=headers, timeout=30)


def jobs(cluster, name: str) -> dict[str, dict]:
    """The jobs of an experiment, by submission id."""
    found = ask(cluster, "/api/jobs/").json()
    return {job["submission_id"]: job for job in found if (job["submission_id"] or "").startswith(f"{name}-")}


def runs(cluster, name: str) -> list:
    """The runs of an experiment."""
    client = MlflowClient(store(cluster))
    return client.search_runs([client.get_experiment_by_name(name).experiment_id])
