"""Sweeps over several nodes, each with its own network: the same bits, counted bytes, and nodes that go away.

The tests share one cluster, in the order of the file; each starts the nodes that it needs and finds missing.
"""

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

import lqray as lqray_package
from tests.testing.nodes import Nodes, lqray, nodes, wait_for
from tests.testing.shaped_hosts import why_not
from tests.testing.sweeps import histories, output, recorded, undisturbed, write

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.ray,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

TEXT = """
name: sweep
base:
  data: {name: digits}
  model: {name: mlp, layers: LAYERS}
  optimizer: {name: sgd, lr: 0.02, momentum: 0.9}
  schedule: {iterations: ITERATIONS, batch_size: 16, evaluate_every: 200}
  workers: 2
  quantizer: {bucket_size: 1024, update_at: [0, 20], update_every: 100}
  telemetry: {every: 1}
sweep:
  - matrix: {quantizer.method: METHODS}
tracking: {uri: "URI"}
storage: {folder: storage, checkpoint_every: 50}
resources: {timeout_seconds: 60}
"""
LARGE = "[1024, 512]"  # 0.6 million parameters: 2.4 MB of float32 gradients a step


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes(3, "100mbit") as made:
        yield made


def prepare(folder: Path, layers: str, methods: str, iterations: int) -> Path:
    text = TEXT.replace("LAYERS", layers).replace("METHODS", methods)
    return write(folder, iterations, f"sqlite:///{folder}/lqray.db", text)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict:
    """Histories of three small trials on one machine, by name."""
    folder = tmp_path_factory.mktemp("small")
    return undisturbed(folder / "one", prepare(folder / "file", "[64]", "[qsgd_inf, alq, nuqsgd]", 1200))


@contextmanager
def interfaces(cluster: Nodes, hosts: list[int]) -> Iterator[list[tuple[float, int]]]:
    """(time, bytes that the hosts' interfaces have sent until then), every few milliseconds."""
    samples: list[tuple[float, int]] = []
    over = threading.Event()
    # A process in the host's network shows its counters without the start of another one for each look.
    watched = [cluster.hosts.processes(host)[0] for host in hosts]

    def sent(number: int) -> int:
        lines = Path(f"/proc/{number}/net/dev").read_text().splitlines()
        return int(next(line for line in lines if "eth0:" in line).split(":")[1].split()[8])

    def watch() -> None:
        while not over.wait(0.01):
            samples.append((time.time(), sum(map(sent, watched))))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def at(samples: list[tuple[float, int]], when: float) -> int:
    return next(count for moment, count in samples if moment >= when)


def test_two_nodes_give_the_bits_of_one_and_send_what_was_counted(cluster, tmp_path, record_property):
    cluster.start(0, 1)
    path = prepare(cluster.folder / "two", LARGE, "[full_precision, alq]", 60)
    with interfaces(cluster, [0, 1]) as samples:
        # Ray's own traffic, on a cluster where nothing runs.
        time.sleep(3)
        idle = (samples[-1][1] - samples[0][1]) / (samples[-1][0] - samples[0][0])
        launch = lqray(cluster, path, "run", path.name, "--launcher", "warm")
        assert launch.wait(900) == 0, output(path)
    uri = f"sqlite:///{path.parent}/lqray.db"
    assert histories(uri) == undisturbed(tmp_path / "one", path)

    client = MlflowClient(uri)
    for name, one in recorded(uri).items():
        points = {point.step: point for point in client.get_metric_history(one.info.run_id, "train/loss")}
        # Without the first steps, in which DDP and the levels settle, and without the end.
        first, last = points[20], points[56]
        carried = at(samples, last.timestamp / 1000) - at(samples, first.timestamp / 1000)
        steps, duration = last.step - first.step, (last.timestamp - first.timestamp) / 1000
        counted = 2 * steps * client.get_metric_history(one.info.run_id, "wire/bytes_sent")[-1].value
        # A segment of 1448 bytes travels in a frame of 1514, and every other one is acknowledged by a frame of 66.
        overhead = counted * (66 / 1448 + 66 / 2896) + idle * duration
        record_property(name, json.dumps({"carried": carried, "counted": counted, "with overhead": counted + overhead}))
        assert counted < carried, name
        assert carried == pytest.approx(counted + overhead, rel=0.05), name
        seconds = one.data.metrics["time/seconds_per_step"]
        print(f"{name}: {seconds:.4f} s a step, {carried / 1e6:.2f} MB carried, {counted / 1e6:.2f} MB counted")


def test_hosts_are_the_nodes_that_a_trial_is_placed_on(cluster, tmp_path):
    cluster.start(0, 1)
    path = prepare(cluster.folder / "hosts", "[64]", "[alq]", 60)
    by_hosts = "workers: 4\n  exchange: {reduction: hierarchical}"
    text = path.read_text().replace("workers: 2", by_hosts).replace("seconds: 60", "seconds: 60, processes: 2")
    path.write_text(text)
    launch = lqray(cluster, path, "run", path.name, "--launcher", "warm")
    assert launch.wait(600) == 0, output(path)
    found = histories(f"sqlite:///{path.parent}/lqray.db")
    path.write_text(text.replace("hierarchical", "hierarchical, hosts: 2"))
    assert found == undisturbed(tmp_path / "one", path)
    assert found["alq"]["wire/bytes_between_hosts"] == found["alq"]["wire/bytes_sent"]


@pytest.mark.slow
def test_doctor_looks_at_every_node(cluster, tmp_path):
    """The third node has another version of lqray, and a folder of its own where the others share theirs."""
    package = Path(lqray_package.__file__).parent
    other = tmp_path / "other"
    shutil.copytree(package, other / "lqray", ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "lqray/names.py").open("w") as file:
        file.write("edited = True\n")
    cluster.start(0, 1)
    path = prepare(cluster.folder / "doctor", "[64]", "[alq]", 10)
    launch = lqray(cluster, path, "doctor", path.name, "--cluster")
    assert launch.wait(240) == 0, output(path)
    text = output(path)
    assert "BROKEN" not in text
    links = [float(found) for found in re.findall(r"link .*: (\d+) Mbit/s", text)]
    assert len(links) == 2
    assert all(60 < megabits < 105 for megabits in links), text
    assert re.search(r"ok +storage +all nodes: .*, the same on all nodes", text)
    assert re.search(r"ok +dataset +all nodes: digits: 1,437 training examples", text)

    cluster.start(2, environment={"PYTHONPATH": str(other)})
    path.write_text(path.read_text().replace("folder: storage", f"folder: {cluster.base}/t/mine"))
    launch = lqray(cluster, path, "doctor", path.name, "--cluster")
    assert launch.wait(240) == 1, output(path)
    text = output(path).removeprefix(text)
    addresses = [re.escape(address) for address in cluster.hosts.addresses]
    assert re.search(rf"BROKEN +lqray +{addresses[2]}: code \w+, the launch's is", text), text
    assert re.search(rf"ok +lqray +{addresses[0]}, {addresses[1]}: code", text), text
    assert len(re.findall("BROKEN +storage +.*is another folder here: it lacks what", text)) == 3, text
    assert "remedy: storage.folder must be shared by all nodes" in text
    cluster.kill(2)


def checkpointed(path: Path, trials: int = 1) -> bool:
    return len({file.parent for file in path.parent.glob("storage/sweep/*/step-*.pt")}) >= trials


def starts(path: Path, one) -> int:
    log = path.parent / "storage/sweep" / one.data.tags["lqray.trial_id"] / "rank-0.log"
    return log.read_text().count(", rank 0, ")


@pytest.mark.slow
def test_a_node_cut_off_the_network(cluster, small):
    cluster.start(0, 1, 2)
    path = prepare(cluster.folder / "cut", "[64]", "[alq, qsgd_inf]", 1200)
    launch = lqray(cluster, path, "run", path.name, "--launcher", "warm")
    wait_for(path, launch, lambda: checkpointed(path))
    host = next(host for host in (1, 2) if cluster.working(host))
    cluster.hosts.cut(host)
    cut = time.monotonic()
    wait_for(path, launch, lambda: "again in" in output(path))
    noticed = time.monotonic() - cut
    assert launch.wait(300) == 0, output(path)
    cluster.hosts.join(host)
    uri = f"sqlite:///{path.parent}/lqray.db"
    runs = recorded(uri)
    assert {one.info.status for one in runs.values()} == {"FINISHED"}, output(path)
    assert sorted(starts(path, one) for one in runs.values()) == [1, 2]
    assert histories(uri) == {name: small[name] for name in ("alq", "qsgd_inf")}
    print(f"noticed after {noticed:.1f} s")
    # The node returns: of what it trained nothing goes on.
    deadline = time.monotonic() + 90
    while any(cluster.working(one) for one in range(3)):
        assert time.monotonic() < deadline, {one: cluster.working(one) for one in range(3)}
        time.sleep(0.5)


@pytest.mark.slow
def test_the_head_killed_in_the_middle(cluster, small):
    cluster.start(0, 1)
    path = prepare(cluster.folder / "head", "[64]", "[qsgd_inf, alq, nuqsgd]", 1200)
    launch = lqray(cluster, path, "run", path.name, "--launcher", "warm")
    wait_for(path, launch, lambda: checkpointed(path, 2) and "(1/3)" in output(path))
    cluster.kill(0)
    try:
        assert launch.wait(150) != 0
    finally:
        if launch.poll() is None:
            os.killpg(launch.pid, signal.SIGKILL)
    uri = f"sqlite:///{path.parent}/lqray.db"
    before = {name: (one.info.status, one.info.end_time) for name, one in recorded(uri).items()}
    assert "FINISHED" in {status for status, _ in before.values()}
    for host in (1, 2):
        if cluster.runs(host):
            cluster.kill(host)
    cluster.start(0, 1)
    again = lqray(cluster, path, "run", path.name, "--launcher", "warm")
    assert again.wait(300) == 0, output(path)
    after = recorded(uri)
    for name, (status, end) in before.items():
        assert status != "FINISHED" or after[name].info.end_time == end
    assert output(path).count(": continued") == 1
    assert {one.info.status for one in after.values()} == {"FINISHED"}
    assert histories(uri) == small
