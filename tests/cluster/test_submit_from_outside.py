"""`lqray submit` from a host that is not of the cluster: it reaches the dashboard and the MLflow server, and no more.

(Hosts of these tests share a file system. The submitting one's working tree is in no folder that others are told of.)
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.testing.nodes import DASHBOARD, Nodes, nodes
from tests.testing.shaped_hosts import why_not
from tests.testing.sweeps import histories, recorded, run, write

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.ray,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

ROOT = Path(__file__).resolve().parents[2]
STORE = 5055
TEXT = """
name: sweep
base:
  data: {name: digits}
  model: {name: mlp, layers: [64]}
  optimizer: {name: sgd, lr: 0.02, momentum: 0.9}
  schedule: {iterations: 1500, batch_size: 16, evaluate_every: 250}
  workers: 2
  quantizer: {bucket_size: 1024, update_at: [0, 20], update_every: 100}
  telemetry: {every: 50}
sweep:
  - matrix: {quantizer.method: [qsgd_inf, alq]}
"""


@pytest.fixture
def cluster():
    """Two nodes with a dashboard, an MLflow server on the first, and a third host that is no node."""
    with nodes(3, "100mbit") as made:
        address = made.hosts.addresses[0]
        environment = {
            "MLFLOW_TRACKING_URI": f"http://{address}:{STORE}",
            "LQRAY_STORAGE": str(made.folder / "storage"),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # a job's `python`
        }
        log = made.base / "server.log"
        own = made.folder / "mlflow"
        own.mkdir()
        served = ["--host", "0.0.0.0", "--port", str(STORE), "--allowed-hosts", f"{address}:{STORE}", "--workers", "1"]
        made.run(0, "-m", "lqray", "server", *served, log=log, cwd=own, environment=environment)
        made.start(0, 1, environment=environment, dashboard=True)
        wait_for(log, lambda text: "startup complete" in text)
        yield made


def wait_for(log: Path, ready, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready(log.read_text() if log.exists() else ""):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def outside(cluster: Nodes, tree: Path, name: str, *arguments: str) -> tuple[subprocess.Popen[str], Path]:
    """lqray on the third host, in the tree; and what it says."""
    log = tree.parent / f"{name}.log"
    address = cluster.hosts.addresses[0]
    environment = {"MLFLOW_TRACKING_URI": f"http://{address}:{STORE}", "RAY_ADDRESS": "", "PYTHONPATH": str(tree)}
    return cluster.run(2, "-m", "lqray", *arguments, log=log, cwd=tree, environment=environment), log


@pytest.mark.slow
def test_submitted_twice_followed_stopped_and_continued(cluster, tmp_path):
    tree = tmp_path / "tree"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tree)], check=True)
    (tree / "far.yaml").write_text(TEXT)
    submit = [
        "submit",
        "far.yaml",
        "--address",
        f"http://{cluster.hosts.addresses[0]}:{DASHBOARD}",
        "--launcher",
        "warm",
    ]
    first, said = outside(cluster, tree, "first", *submit)
    wait_for(said, lambda text: "qsgd_inf: started" in text or first.poll() is not None)
    assert first.poll() is None, said.read_text()
    second, attached = outside(cluster, tree, "second", *submit)
    wait_for(attached, lambda text: "runs already" in text and "qsgd_inf: started" in text)
    stop, _ = outside(cluster, tree, "stop", "stop", "sweep")
    assert stop.wait(60) == 0
    assert first.wait(120) == 0, said.read_text()
    assert second.wait(60) == 0, attached.read_text()
    assert "(lqray stop)" in attached.read_text()
    uri = f"sqlite:///{cluster.folder}/mlflow/lqray.db"
    assert {one.info.status for one in recorded(uri).values()} == {"KILLED"}

    third, again = outside(cluster, tree, "third", *submit)
    assert third.wait(300) == 0, again.read_text()
    assert "qsgd_inf: continued" in again.read_text()
    assert ": SUCCEEDED" in again.read_text()
    assert {one.info.status for one in recorded(uri).values()} == {"FINISHED"}
    alone = write(tmp_path / "alone", text=TEXT)
    run(alone, "--launcher", "inline")
    assert histories(uri) == histories(f"sqlite:///{alone.parent}/lqray.db")


@pytest.mark.slow
def test_a_tree_that_takes_longer_than_a_minute_arrives_once(tmp_path):
    """27 MB over 3 Mbit/s: longer than any time-out of the whole."""
    with nodes(2, "3mbit") as cluster:
        store = f"sqlite:///{cluster.folder}/lqray.db"
        environment = {
            "MLFLOW_TRACKING_URI": store,
            "LQRAY_STORAGE": str(cluster.folder / "storage"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        cluster.start(0, environment=environment, dashboard=True)
        tree = tmp_path / "tree"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(tree)], check=True)
        (tree / "far.yaml").write_text(TEXT.replace("iterations: 1500", "iterations: 5"))
        (tree / "noise.bin").write_bytes(os.urandom(27 * 10**6))
        address = f"http://{cluster.hosts.addresses[0]}:{DASHBOARD}"
        log, begun = tree.parent / "said.log", time.monotonic()
        arguments = ["submit", "far.yaml", "--address", address, "--launcher", "inline", "--set", "workers=1"]
        process = cluster.run(
            1, "-m", "lqray", *arguments, log=log, cwd=tree, environment={"RAY_ADDRESS": "", "PYTHONPATH": str(tree)}
        )
        assert process.wait(400) == 0, log.read_text()
        said = log.read_text()
        assert time.monotonic() - begun > 27 * 8 / 3
        assert "the upload broke off" not in said
        assert len([line for line in said.splitlines() if line.startswith("sent ")]) >= 4
        assert "noise.bin 27.0 MB" in said
        assert ": SUCCEEDED" in said
        assert {one.info.status for one in recorded(store).values()} == {"FINISHED"}
