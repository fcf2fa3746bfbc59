"""What a real Ray says of its machines."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

TWO_MACHINES = """
import sys, time
import psutil, ray
from ray.cluster_utils import Cluster
from lqray.orchestration.launchers.ray import machines

folder = sys.argv[1]
options = {"include_dashboard": False, "temp_dir": folder}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **options})
ray.init(address=cluster.address, logging_level="ERROR")
other = cluster.add_node(num_cpus=2, **options)

@ray.remote(num_cpus=2)
class Busy:
    def here(self): ...

busy = Busy.remote()
ray.get(busy.here.remote())  # what is idle leaves at once when it is drained
first, second = sorted(machines.machines_there(), key=lambda one: one.resources["CPU"])
assert (first.needed, second.needed) == ("the head of the Ray cluster", ""), (first, second)
assert (first.resources["CPU"], second.resources["CPU"]) == (1.0, 2.0)
assert f"node:{second.name}" in second.resources
assert not first.drained and not second.drained

until = time.time() + 60
taken, why = ray._private.worker.global_worker.gcs_client.drain_node(second.node, 2, "gone soon", int(until * 1000))
assert taken, why
deadline = time.monotonic() + 30
while not any(one.drained for one in machines.machines_there()):
    assert time.monotonic() < deadline
    time.sleep(0.1)
first, second = sorted(machines.machines_there(), key=lambda one: one.resources["CPU"])
assert (first.drained, second.drained) == (False, True)
assert abs(second.gone_at - until) < 0.01

def of_the_head(process):
    return process.info["name"] == "gcs_server" and folder in " ".join(process.info["cmdline"] or ())

(head,) = filter(of_the_head, psutil.process_iter(["name", "cmdline"]))
head.suspend()
machines._ANSWER_SECONDS = 1.0
began = time.monotonic()
try:
    machines.machines_there()
except ray.exceptions.RpcError:
    assert time.monotonic() - began < 10
    print("no answer")
head.resume()
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.ray
def test_machines_are_counted_and_a_head_that_does_not_answer_is_an_error():
    """Ray's own questions wait for its head for ever, and end this process where that ends meanwhile."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with tempfile.TemporaryDirectory(prefix="m-", ignore_cleanup_errors=True) as folder:  # sockets have short paths
        (Path(folder) / "ray").mkdir()  # where Ray writes its address down
        done = subprocess.run(
            [sys.executable, "-c", TWO_MACHINES, folder],
            env=environment | {"RAY_TMPDIR": folder},
            capture_output=True,
            text=True,
            timeout=180,
        )
    assert done.stdout == "no answer\n", done.stdout + done.stderr
