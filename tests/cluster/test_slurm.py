"""`sbatch deploy/slurm.sh FILE` on a real SLURM of two nodes, each a host of namespaces: to the end, interrupted by all
that SLURM does to a job, continued, and without a node. Its trials are those of `--launcher inline`, bit by bit."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.testing.real_hosts import ROOT, real_hosts
from tests.testing.slurm_cluster import Slurm, slurm_on, why_not
from tests.testing.sweeps import histories, recorded

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.hosts,
    pytest.mark.ray,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

# Where a file `slow` is beside it, a trial is slow: it runs for as long as a test wants it to.
MODEL = """
import time
from pathlib import Path
import torch
from torch import nn

SLOW = Path(__file__).with_name("slow")

class Net(nn.Sequential):
    def forward(self, inputs):
        if SLOW.exists():
            time.sleep(0.2)
        return super().forward(inputs)

def build(options, shape, classes):
    return Net(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 16), nn.ReLU(), nn.Linear(16, classes))
"""
SWEEP = """
name: sweep
base:
  data: {name: digits}
  model: {name: "held:build"}
  optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
  schedule: {iterations: 400, batch_size: 16, evaluate_every: 100}
  workers: 2
  quantizer: {method: alq, bucket_size: 128, update_at: [0, 20], update_every: 50}
  telemetry: {every: 10}
sweep:
  - matrix: {seed: [1, 2]}
tracking: {uri: "sqlite:///FOLDER/STORE.db"}
storage: {folder: "FOLDER/STORE", checkpoint_every: 10}
"""
USUAL = ["--nodes=2", "--cpus-per-task=1"]
"""A processor of each node: a trial's two processes are on both."""


def sweep_in(folder: Path, store: str = "there", slow: bool = False) -> Path:
    """The sweep's file in a folder, as it records into a store of that name."""
    folder.mkdir(exist_ok=True)
    (folder / "held.py").write_text(MODEL)
    (folder / "slow").unlink(missing_ok=True)
    if slow:
        (folder / "slow").touch()
    file = folder / f"{store}.yaml"
    file.write_text(SWEEP.replace("FOLDER", str(folder)).replace("STORE", store))
    return file


def submit(slurm: Slurm, file: Path, *options: str, nodes: tuple[str, ...] = ()) -> int:
    return slurm.submit(file.parent, *USUAL, *nodes, str(ROOT / "deploy/slurm.sh"), file.name, *options)


def store_of(file: Path) -> str:
    return f"sqlite:///{file.with_suffix('.db')}"


def statuses(file: Path) -> list[str]:
    return sorted(run.info.status for run in recorded(store_of(file)).values())


def has_checkpoint(file: Path) -> bool:
    return any(file.with_suffix("").glob("sweep/*/step-*0.pt"))


def nothing_is_left(slurm: Slurm, job: int) -> None:
    deadline = time.monotonic() + 60
    while (left := slurm.left()) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left == [], slurm.output(job)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder that the nodes share, as over NFS."""
    return tmp_path_factory.mktemp("slurm")


@pytest.fixture(scope="module")
def slurm(shared):
    (shared / "own").mkdir()
    with real_hosts(2, shared=[shared]) as hosts, slurm_on(hosts, shared / "own") as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(shared):
    """What the sweep's trials record on one machine."""
    file = sweep_in(shared / "inline", "inline")
    called = [sys.executable, "-m", "lqray", "run", file.name, "--launcher", "inline"]
    subprocess.run(called, cwd=file.parent, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    return histories(store_of(file))


def test_a_sweep_runs_over_both_nodes_to_its_table(slurm, shared, undisturbed):
    file = sweep_in(shared / "whole")
    job = submit(slurm, file)
    slurm.wait_for(job, "COMPLETED")
    said = slurm.output(job)
    assert "Ray on 2 nodes" in said
    assert re.search(r"method +runs .*\n.*\n +alq +2 ", said), said
    assert slurm.fields(job)["ExitCode"] == "0:0"
    assert histories(store_of(file)) == undisturbed
    nothing_is_left(slurm, job)


@pytest.mark.parametrize("how", [["scancel"], ["scancel", "--signal=TERM", "--batch"]], ids=["whole", "script"])
def test_a_job_that_is_cancelled_records_its_trials_as_killed(slurm, shared, how):
    file = sweep_in(shared / f"cancelled-{len(how)}", slow=True)
    job = submit(slurm, file)
    slurm.until(lambda: has_checkpoint(file), job)
    slurm.do(*how, str(job))
    ended = slurm.wait_for(job, "CANCELLED", "FAILED")
    assert ended == ("CANCELLED" if how == ["scancel"] else "FAILED")
    nothing_is_left(slurm, job)
    said = slurm.output(job)
    assert "Traceback" not in said
    assert set(statuses(file)) == {"KILLED"}, said
    if ended == "FAILED":
        assert slurm.fields(job)["ExitCode"] == "143:0"
        assert "Interrupted: trials that were running are recorded as KILLED" in said


def test_a_job_ends_before_its_time_limit_and_the_next_one_continues(slurm, shared, undisturbed):
    file = sweep_in(shared / "limited", slow=True)
    job = submit(slurm, file, nodes=("--time=60", "--signal=B:TERM@110"))
    slurm.until(lambda: has_checkpoint(file), job)
    hours, minutes, _ = slurm.fields(job)["RunTime"].split(":")
    # A limit in whole minutes: the signal is due at once or within 10 s, and SLURM looks every 30 s.
    slurm.do("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * int(hours) + int(minutes) + 2}")
    slurm.wait_for(job, "FAILED")
    said = slurm.output(job)
    assert slurm.fields(job)["ExitCode"] == "143:0"
    assert "Interrupted: trials that were running are recorded as KILLED" in said
    assert set(statuses(file)) == {"KILLED"}, said
    nothing_is_left(slurm, job)

    (file.parent / "slow").unlink()
    again = submit(slurm, file)
    slurm.wait_for(again, "COMPLETED")
    assert "1 to continue" in slurm.output(again)
    assert histories(store_of(file)) == undisturbed
    nothing_is_left(slurm, again)


@pytest.mark.slow
def test_a_job_that_is_requeued_continues(slurm, shared, undisturbed):
    file = sweep_in(shared / "requeued", slow=True)
    job = submit(slurm, file)
    slurm.until(lambda: has_checkpoint(file), job)
    slurm.do("scontrol", "requeue", str(job))
    slurm.until(lambda: slurm.state(job) == "PENDING", job)
    (file.parent / "slow").unlink()
    slurm.do("scontrol", "update", f"JobId={job}", "StartTime=now")  # else two minutes later
    slurm.wait_for(job, "COMPLETED")
    assert slurm.fields(job)["Restarts"] == "1"
    assert histories(store_of(file)) == undisturbed
    nothing_is_left(slurm, job)


def test_a_file_that_is_wrong_ends_the_job_with_its_error(slurm, shared):
    file = sweep_in(shared / "wrong")
    file.write_text(file.read_text().replace("method: alq", "method: alqq"))
    job = submit(slurm, file)
    slurm.wait_for(job, "FAILED")
    said = slurm.output(job)
    assert slurm.fields(job)["ExitCode"] == "2:0"
    assert "the unknown name 'alqq'" in said
    assert "Traceback" not in said
    nothing_is_left(slurm, job)


@pytest.mark.slow
def test_a_node_that_fails_ends_the_job(slurm, shared):
    """The last test: the node stays away."""
    file = sweep_in(shared / "failing", slow=True)
    job = submit(slurm, file, nodes=("--no-requeue",))
    slurm.until(lambda: has_checkpoint(file), job)
    slurm.hosts.kill(1)
    slurm.wait_for(job, "NODE_FAIL")
    said = slurm.output(job)
    assert "Node failure on host-1" in said
    assert "Traceback" not in said, said
    # SLURM kills what has not ended 30 s later; a trial that could not be recorded by then is the next job's.
    assert set(statuses(file)) <= {"KILLED", "RUNNING"}, said
