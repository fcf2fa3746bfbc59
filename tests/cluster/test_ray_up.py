"""cluster.yaml as it is shipped, on real hosts: `ray up`, what is submitted to it from a third host, `ray down`.

One cluster for all tests, in the order of this file: what `ray up` starts takes a minute or two.
"""

import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lqray.training.checkpoint_file import read_checkpoint
from tests.testing.launched import HEAD, LAPTOP, TREE, WORKER, launched
from tests.testing.real_hosts import why_not
from tests.testing.sweeps import histories, recorded, run, write

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.hosts,
    pytest.mark.ray,
    pytest.mark.skipif(why_not("rsync", ssh=True) is not None, reason=str(why_not("rsync", ssh=True))),
]
CPU = torch.device("cpu")
PROCESSES = "ray::RayTrainWorker"
TEXT = """
name: sweep
base:
  data: {name: digits}
  model: {name: mlp, layers: [32]}
  optimizer: {name: sgd, lr: 0.02, momentum: 0.9}
  schedule: {iterations: 200, batch_size: 16, evaluate_every: 100}
  workers: 2
  quantizer: {method: alq, bucket_size: 128, update_at: [0, 20], update_every: 100}
  telemetry: {every: 5}
resources: {cpus_per_process: CPUS}
storage: {checkpoint_every: 100}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with launched(tmp_path_factory.mktemp("shared")) as made:
        for name, text in (("sweep", TEXT), ("long", TEXT.replace("200", "100000"))):
            # A process takes all CPUs of a host: two of them need both.
            text = text.replace("name: sweep", f"name: {name}").replace("CPUS", str(cpus(made)))
            (made.hosts.root(LAPTOP) / Path(TREE).name / f"{name}.yaml").write_text(text)
        yield made


def cpus(cluster) -> int:
    return int(cluster.hosts.run(HEAD, ["nproc"]))


def named(cluster, host: int, name: str) -> dict[int, str]:
    """Processes of a host whose command line has a name."""
    return {number: line for number, line in cluster.hosts.processes(host).items() if name in line}


class Submitting:
    """`lqray submit` on the laptop, which goes on while the test does something else."""

    def __init__(self, cluster, name: str, *options: str, command: str = "") -> None:
        self.cluster, self.log = cluster, cluster.shared / f"said-{time.monotonic_ns()}.txt"
        arguments = shlex.split(command) or ["lqray", "submit", f"{name}.yaml", "--cluster", "cluster.yaml", *options]
        self.process = cluster.hosts.start(
            LAPTOP, arguments, folder=TREE, stdout=self.log.open("w"), stderr=subprocess.STDOUT
        )

    def wait_for(self, ready, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < deadline, self.said()
            assert self.process.poll() is None or ready(), self.said()
            time.sleep(0.1)

    def said(self) -> str:
        return self.log.read_text()

    def ended(self, seconds: float = 240) -> int:
        return self.process.wait(seconds)


def test_ray_up_again_leaves_what_runs(cluster):
    """With --no-restart; kernels are not built again, and no other Ray is started."""
    before = [named(cluster, host, "raylet/raylet") for host in (HEAD, WORKER)]
    assert [len(found) for found in before] == [1, 1]
    built = cluster.hosts.run(HEAD, ["stat", "-c", "%Y", *libraries(cluster)])
    said = cluster.laptop("ray", "up", "-y", "--no-restart", "cluster.yaml")
    assert "Error" not in said
    assert "ulimit" not in re.sub(r".*command_runner\.py.*", "", cluster.up)
    assert [named(cluster, host, "raylet/raylet") for host in (HEAD, WORKER)] == before
    assert cluster.hosts.run(HEAD, ["stat", "-c", "%Y", *libraries(cluster)]) == built


def libraries(cluster) -> list[str]:
    found = cluster.hosts.run(HEAD, ["sh", "-c", "ls /root/lqray-tree/lqray/_native*.so"]).split()
    assert found
    return found


def test_what_is_submitted_is_followed_to_its_table_and_has_the_bits_of_a_run_here(cluster, tmp_path):
    submitting = Submitting(cluster, "sweep")
    submitting.wait_for(lambda: all(named(cluster, host, PROCESSES) for host in (HEAD, WORKER)))
    assert [len(named(cluster, host, PROCESSES)) for host in (HEAD, WORKER)] == [1, 1]
    assert submitting.ended() == 0, submitting.said()
    said = submitting.said()
    assert ": SUCCEEDED" in said
    assert re.search(r"method +runs +test accuracy", said)
    assert "on host-0" in said
    assert "reference operators" not in said
    here = write(tmp_path / "here", text=TEXT.replace("CPUS", str(cpus(cluster))))
    run(here, "--launcher", "inline", "--set", f"storage.folder={here.parent}/storage")
    store = f"sqlite:///{here.parent}/lqray.db"
    assert histories(cluster.store) == histories(store)
    folders = [next(iter(recorded(one).values())).data.tags["lqray.folder"] for one in (cluster.store, store)]
    there, same = (dict(flat(read_checkpoint(Path(one) / "step-0000000200.pt", CPU))) for one in folders)
    timeless = {key for key in there if not key.startswith((".shared.seconds", ".run"))}
    assert there.keys() == same.keys()
    assert len(timeless) > 100
    assert [key for key in timeless if not equal(there[key], same[key])] == []


def flat(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """What a checkpoint holds, by the keys on the way to it."""
    if isinstance(value, dict | list | tuple):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(one, f"{name}.{key}")
    else:
        yield name, value


def equal(one: object, other: object) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.slow
def test_ctrl_c_leaves_the_job_and_says_how_to_go_on(cluster):
    first = Submitting(cluster, "long")
    first.wait_for(lambda: re.search(r"step \d+/", first.said()))
    cluster.hosts.send(first.process, signal.SIGINT)
    assert first.ended(60) == 130
    assert [len(named(cluster, host, PROCESSES)) for host in (HEAD, WORKER)] == [1, 1]
    follow, trials, job = re.findall(r"^  (?:follow it|stop trials|stop it): +(.*)$", first.said(), re.MULTILINE)
    second = Submitting(cluster, "long", command=follow)
    second.wait_for(lambda: re.search(r"runs already.* step \d+/", second.said(), re.DOTALL))
    cluster.laptop(*shlex.split(trials))
    assert second.ended() == 0
    assert "(lqray stop)" in second.said()
    assert recorded(cluster.store, "long")["alq"].info.status == "KILLED"
    third = Submitting(cluster, "long")
    third.wait_for(lambda: "continued" in third.said())
    again = re.search(r"^(long-[0-9a-f]+-2): submitted", third.said(), re.MULTILINE)[1]
    assert job.count(again.removesuffix("-2")) == 1
    cluster.laptop(*shlex.split(job.replace(again.removesuffix("-2"), again)))
    assert third.ended() == 1
    assert "STOPPED" in third.said()
    assert [named(cluster, host, PROCESSES) for host in (HEAD, WORKER)] == [{}, {}]


def test_ray_submit_runs_the_tree_that_ray_up_sent(cluster):
    chosen = ["--only", "alq-seed1", "--set", "schedule.iterations=20", "--set", "schedule.decay_at=[]"]
    command = ["ray", "submit", "cluster.yaml", "lqray/submit.py", "--", "experiments/quickstart.yaml", *chosen]
    said = cluster.laptop(*command)
    assert "(1/1) alq-seed1: finished" in said
    assert recorded(cluster.store, "quickstart")["alq-seed1"].info.status == "FINISHED"


def test_a_head_with_another_host_key_is_refused_until_the_old_one_is_forgotten(cluster):
    cluster.hosts.serve_ssh(HEAD)
    refused = cluster.lqray("submit", "sweep.yaml", "--cluster", "cluster.yaml", expected=2)
    assert f"the host key of {cluster.hosts.addresses[HEAD]} has changed" in refused
    assert "/root/.local/state/lqray/known_hosts/lqray-" in refused
    cluster.laptop(*shlex.split(refused.strip().splitlines()[-1]))
    said = cluster.lqray("submit", "sweep.yaml", "--cluster", "cluster.yaml")
    assert ": SUCCEEDED" in said


def test_ray_down_leaves_no_ray(cluster):
    cluster.laptop("ray", "down", "-y", "cluster.yaml")
    deadline = time.monotonic() + 120
    while left := [line for host in (HEAD, WORKER) for line in cluster.hosts.processes(host).values()]:
        # Ray ends a machine of one's own by its losing the head, and forgets the log monitor there.
        if all("log_monitor.py" in line for line in left) or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert [line for line in left if "log_monitor.py" not in line] == []
    cluster.hosts.run(WORKER, ["bash", "--login", "-c", "ray stop"])
    assert cluster.hosts.processes(WORKER) == {}
