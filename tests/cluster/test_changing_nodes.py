"""Nodes that join, leave and are drained while a sweep runs: it uses those that are there, and loses nothing.

The tests share one cluster, in the order of the file; each starts the nodes that it needs and finds missing.
"""

import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.testing.nodes import Nodes, lqray, nodes, wait_for
from tests.testing.shaped_hosts import why_not
from tests.testing.sweeps import histories, output, recorded, undisturbed, write

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.hosts,
    pytest.mark.ray,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

ROOT = Path(__file__).resolve().parents[2]
TEXT = """
name: sweep
base:
  data: {name: digits}
  model: {name: mlp, layers: [64]}
  optimizer: {name: sgd, lr: 0.02, momentum: 0.9}
  schedule: {iterations: ITERATIONS, batch_size: 16, evaluate_every: 500}
  workers: 2
  quantizer: {method: alq, bucket_size: 1024, update_at: [0, 20], update_every: 100}
  telemetry: {every: 20}
sweep:
  - matrix: {seed: SEEDS}
tracking: {uri: "URI"}
storage: {folder: storage, checkpoint_every: 10000}
resources: {processes: PROCESSES, timeout_seconds: 60}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes(3, None) as made:
        yield made


def prepare(folder: Path, processes: int, seeds: str, iterations: int) -> Path:
    text = TEXT.replace("PROCESSES", str(processes)).replace("SEEDS", seeds)
    return write(folder, iterations, f"sqlite:///{folder}/lqray.db", text)


def launched(cluster: Nodes, path: Path, *options: str) -> subprocess.Popen[str]:
    return lqray(cluster, path, "run", path.name, "--launcher", "warm", *options)


@contextmanager
def trials_at_work(cluster: Nodes) -> Iterator[list[tuple[float, int]]]:
    """(time, how many processes train, or could), some ten times a second."""
    samples: list[tuple[float, int]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            samples.append((time.monotonic(), sum(len(cluster.working(host)) for host in range(3))))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def drain(cluster: Nodes, host: int, seconds: int) -> None:
    """What a machine does that has had notice."""
    log = cluster.base / "drain.log"
    asked = cluster.run(host, str(ROOT / "deploy/drain_on_notice.py"), "--now", str(seconds), log=log)
    assert asked.wait(120) == 0, log.read_text()


def log_of(path: Path, name: str) -> str:
    """Of a trial's rank 0."""
    trial_id = recorded(f"sqlite:///{path.parent}/lqray.db")[name].data.tags["lqray.trial_id"]
    return (path.parent / "storage/sweep" / trial_id / "rank-0.log").read_text()


@pytest.mark.slow
def test_trials_at_a_time_follow_the_nodes(cluster, tmp_path):
    cluster.start(0)
    path = prepare(cluster.folder / "joins", 1, "[1, 2, 3, 4, 5, 6, 7, 8]", 3000)
    launch = launched(cluster, path)
    with trials_at_work(cluster) as samples:
        wait_for(path, launch, lambda: "(1/8)" in output(path))
        assert max(count for _, count in samples) == 1
        cluster.start(1)
        wait_for(path, launch, lambda: cluster.working(1) and cluster.working(0))
        wait_for(path, launch, lambda: "trials at a time: 2, before 1" in output(path))
        cluster.kill(1)
        wait_for(path, launch, lambda: "trials at a time: 1, before 2" in output(path))
        fewer = time.monotonic()
        assert launch.wait(300) == 0, output(path)
    assert max(count for when, count in samples if when > fewer) == 1
    uri = f"sqlite:///{path.parent}/lqray.db"
    assert {one.info.status for one in recorded(uri).values()} == {"FINISHED"}
    assert histories(uri) == undisturbed(tmp_path / "one", path)


@pytest.mark.slow
def test_a_trial_leaves_a_node_that_is_drained_and_continues_on_one_that_joins(cluster, tmp_path):
    """From its only checkpoint, which it wrote when it left; meanwhile there is no room for it.

    A host is drained whose Ray is its first: Ray takes the socket of the head, whose process it sees on these hosts, to
    be this machine's, and a second Ray has another one.
    """
    cluster.start(0, 2)
    path = prepare(cluster.folder / "drained", 2, "[1, 2]", 4000)
    launch = launched(cluster, path, "--max-failures", "1")
    wait_for(path, launch, lambda: re.search(r"seed1: step \d+", output(path)))
    drain(cluster, 2, 25)
    wait_for(path, launch, lambda: "moves to another machine" in output(path), 25)
    wait_for(path, launch, lambda: "the cluster has no room for a trial now (2 processes of 1 CPU" in output(path))
    if cluster.runs(2):
        cluster.kill(2)
    cluster.start(1)
    assert launch.wait(300) == 0, output(path)
    text, address = output(path), re.escape(cluster.hosts.addresses[2])
    moved = re.search(rf"(seed\d): moves .* from its checkpoint: its machine {address} is being drained", text)
    assert moved, text
    other = {"seed1": "seed2", "seed2": "seed1"}[moved[1]]
    assert "there is room for trials again, 1 at a time" in text
    assert "again in" not in text  # no failure, no retry
    uri = f"sqlite:///{path.parent}/lqray.db"
    runs = recorded(uri)
    assert {one.info.status for one in runs.values()} == {"FINISHED"}
    assert histories(uri) == undisturbed(tmp_path / "one", path)
    assert [log_of(path, name).count(", rank 0, ") for name in (moved[1], other)] == [2, 1]
    (left,) = re.findall(r"stopped after (\d+) iterations", log_of(path, moved[1]))
    went_on = re.search(rf"{moved[1]}: continued\n.*?{moved[1]}: step (\d+)/", text, re.DOTALL)
    assert went_on, text
    assert int(left) <= int(went_on[1]) < int(left) + 500


@pytest.mark.slow
def test_the_head_drained_ends_the_sweep(cluster, tmp_path):
    cluster.start(0, 2)
    path = prepare(cluster.folder / "head", 2, "[1, 2, 3]", 3000)
    launch = launched(cluster, path)
    wait_for(path, launch, lambda: re.search(r"seed1: step \d+", output(path)))
    drain(cluster, 0, 60)
    assert launch.wait(90) == 1, output(path)
    text, address = output(path), re.escape(cluster.hosts.addresses[0])
    assert re.search(rf"the head of the Ray cluster, {address}, is being drained and gone in \d+ s, and with it", text)
    killed = re.search(r"(seed\d): killed .*\(the head of the Ray cluster", text)
    assert killed, text
    assert "Stopped: the head of the Ray cluster" in text
    uri = f"sqlite:///{path.parent}/lqray.db"
    assert recorded(uri)[killed[1]].info.status == "KILLED"
    assert "stopped after" in log_of(path, killed[1])
    for host in (0, 2):  # the head's server outlives its node
        cluster.kill(host)
    cluster.start(0, 1)
    again = launched(cluster, path)
    assert again.wait(300) == 0, output(path)
    assert output(path).count(": continued") == 1
    assert histories(uri) == undisturbed(tmp_path / "one", path)
