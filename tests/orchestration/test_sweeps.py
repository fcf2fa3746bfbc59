"""Sweeps that lose their launcher, a worker, a driver or their store, and end as if nothing had happened."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest

from tests.testing.sweeps import (
    another_ray,
    checkpointed,
    histories,
    killing,
    marked,
    nothing_is_left,
    output,
    recorded,
    run,
    start,
    wait_for,
    write,
)

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Metric histories of the sweep without any interruption."""
    path = write(tmp_path_factory.mktemp("undisturbed"))
    run(path, "--launcher", "inline")
    found = histories(f"sqlite:///{path.parent}/lqray.db")
    assert len(found) == 3
    return found


def ended_well(path, undisturbed) -> None:
    uri = f"sqlite:///{path.parent}/lqray.db"
    assert {one.info.status for one in recorded(uri).values()} == {"FINISHED"}, output(path)
    assert histories(uri) == undisturbed
    nothing_is_left(path.parent)


@pytest.mark.parametrize("launcher", [pytest.param("inline", marks=pytest.mark.slow), "warm"])
def test_a_launcher_killed_in_the_middle(tmp_path, undisturbed, launcher):
    path = write(tmp_path)
    # Files of the user's that are called as modules of Python: no process takes them for those.
    for name in ("queue", "statistics", "calendar", "secrets"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError(__file__)")
    process = start(path, "--launcher", launcher)
    with killing(process):
        wait_for(path, lambda: checkpointed(path, 2) and "(1/3)" in output(path))
        process.send_signal(signal.SIGKILL)
        process.wait()
        nothing_is_left(tmp_path)
    uri = f"sqlite:///{tmp_path}/lqray.db"
    before = {name: (one.info.status, one.info.end_time) for name, one in recorded(uri).items()}
    assert sorted(status for status, _ in before.values()) == ["FINISHED", "RUNNING"]

    assert "Traceback" not in output(path)
    text = run(path, "--launcher", launcher)
    assert "1 to run, 1 to continue, 1 finished before" in text
    assert text.count(": continued") == 1
    after = recorded(uri)
    for name, (status, end) in before.items():
        assert status == "RUNNING" or after[name].info.end_time == end
    ended_well(path, undisturbed)
    # The continued trial did not start from nothing.
    (continued,) = [name for name, (status, _) in before.items() if status == "RUNNING"]
    log = (tmp_path / f"storage/sweep/{after[continued].data.tags['lqray.trial_id']}/rank-0.log").read_text()
    assert len(re.findall("rank 0,", log)) == 2
    assert log.count("step 100/") == 1
    assert "0 to run" not in run(path, "--launcher", launcher)  # everything is done: nothing is launched


@pytest.mark.parametrize(
    ("victim", "others"),
    [
        # Beside another Ray nobody frees the workers' places but what knows the address of its own.
        (("RayTrainWorker", "TrialDriver"), True),
        pytest.param(("RayTrainWorker",), False, marks=pytest.mark.slow),
        pytest.param(("Mailbox",), False, marks=pytest.mark.slow),
    ],
)
def test_a_worker_or_the_driver_killed(tmp_path, undisturbed, victim, others):
    path = write(tmp_path)
    with another_ray() if others else nullcontext():
        process = start(path, "--launcher", "isolated" if "TrialDriver" in victim else "warm")
        with killing(process):
            for count, name in enumerate(victim, start=1):
                wait_for(path, lambda count=count: checkpointed(path, count))
                found: dict[int, str] = {}
                wait_for(
                    path, lambda name=name, found=found: bool(found.update(marked(tmp_path, name)) or found)
                )  # Ray renames processes as they work
                os.kill(max(found), signal.SIGKILL)
            assert process.wait(240) == 0, output(path)
    text = output(path)
    assert text.count(": again in 2 s") == len(victim)
    assert text.count(": continued") == len(victim)
    ended_well(path, undisturbed)


@pytest.mark.parametrize("victim", [pytest.param("raylet/raylet", marks=pytest.mark.slow), "gcs/gcs_server"])
def test_a_ray_that_dies_ends_the_launch_with_a_line_and_the_next_one_continues(tmp_path, undisturbed, victim):
    path = write(tmp_path)
    process = start(path, "--launcher", "warm")
    with killing(process):
        wait_for(path, lambda: checkpointed(path, 1))
        (number,) = marked(tmp_path, victim)
        os.kill(number, signal.SIGKILL)
        assert process.wait(120) == 1, output(path)
    text = output(path)
    assert f"(process {number}) has ended" in text
    assert "run the same command again" in text
    assert "Traceback" not in text
    assert "state-dump" not in text
    assert "runs" in text  # the table
    nothing_is_left(tmp_path)
    assert marked(tmp_path) == {}  # nor Ray's agents
    assert "RUNNING" not in {one.info.status for one in recorded(f"sqlite:///{tmp_path}/lqray.db").values()}
    if victim.startswith("raylet"):
        run(path, "--launcher", "inline")
        ended_well(path, undisturbed)


@pytest.mark.slow
def test_two_launches_have_a_ray_each_and_share_the_cores(tmp_path, undisturbed):
    first, second = write(tmp_path / "first", iterations=100_000), write(tmp_path / "second")
    one = start(first, "--launcher", "warm", "--limit", "1")
    with killing(one):
        wait_for(first, lambda: checkpointed(first, 1), 240)
        two = start(second, "--launcher", "warm")
        with killing(two):
            wait_for(second, lambda: "seed1: started" in output(second), 240)
            os.kill(one.pid, signal.SIGKILL)  # its Ray ends with it
            one.wait()
            assert two.wait(240) == 0, output(second)
    assert f"(process {one.pid} has 2)" in output(second)
    ended_well(second, undisturbed)
    nothing_is_left(first.parent)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve(folder, port: int, backend: str | None = None) -> subprocess.Popen:
    store = [
        "--backend-store-uri",
        backend or f"sqlite:///{folder}/lqray.db",
        "--artifacts-destination",
        f"{folder}/artifacts",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *store],
        stdout=(folder / "server.txt").open("a"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 90
    while True:
        assert time.monotonic() < deadline, (folder / "server.txt").read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return process
        except OSError:
            time.sleep(0.2)


@pytest.mark.slow
def test_an_mlflow_server_that_is_away_for_ten_seconds(tmp_path, undisturbed):
    port = free_port()
    server = serve(tmp_path, port)
    path = write(tmp_path, uri=f"http://127.0.0.1:{port}")
    process = start(path, "--launcher", "inline")
    try:
        with killing(process):
            wait_for(path, lambda: checkpointed(path, 1))
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            time.sleep(10)
            server = serve(tmp_path, port)
            assert process.wait(240) == 0, output(path)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    ended_well(path, undisturbed)


@pytest.mark.slow
def test_two_launches_of_the_same_file_share_its_trials(tmp_path, undisturbed):
    path = write(tmp_path)
    first = start(path, "--launcher", "inline")
    with killing(first):
        wait_for(path, lambda: checkpointed(path, 1))
        second = start(path, "--launcher", "inline")
        with killing(second):
            assert first.wait(240) == 0, output(path)
            assert second.wait(240) == 0, output(path)
    for log in tmp_path.glob("storage/sweep/*/rank-0.log"):
        assert len(re.findall("rank 0,", log.read_text())) == 1
    ended_well(path, undisturbed)


@pytest.mark.slow
def test_lqray_stop_and_an_edited_file_while_it_runs(tmp_path):
    path = write(tmp_path, iterations=40000)
    process = start(path, "--launcher", "inline")
    with killing(process):
        wait_for(path, lambda: checkpointed(path, 1))
        # A second launch with seed 2 dropped, and seed 4 added: it runs 3 and 4, the first one ends with seed 1.
        path.write_text(path.read_text().replace("[1, 2, 3]", "[1, 4, 3]"))
        second = start(path, "--launcher", "inline", "--only", "seed4")
        with killing(second):
            wait_for(path, lambda: checkpointed(path, 2))
            lqray = [sys.executable, "-m", "lqray"]
            done = subprocess.run(
                [*lqray, "stop", "sweep", "--only", "seed4"], cwd=tmp_path, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            assert second.wait(60) == 0, output(path)
        subprocess.run([*lqray, "stop", "sweep.yaml"], cwd=tmp_path, check=True, capture_output=True)
        assert process.wait(60) == 0, output(path)
    runs = recorded(f"sqlite:///{tmp_path}/lqray.db")
    assert {name: (one.info.status, one.data.tags["lqray.stopped"]) for name, one in runs.items()} == {
        "seed1": ("KILLED", "lqray stop"),
        "seed4": ("KILLED", "lqray stop"),
    }
    shown = subprocess.run([*lqray, "status"], cwd=tmp_path, capture_output=True, text=True).stdout
    assert "sweep: 2 stopped" in shown
    assert (
        "continue"
        in subprocess.run(
            [*lqray, "run", "sweep.yaml", "--dry-run"], cwd=tmp_path, capture_output=True, text=True
        ).stdout
    )


def status_of(path) -> dict[str, tuple[str, str]]:
    runs = recorded(f"sqlite:///{path.parent}/lqray.db")
    return {name: (one.info.status, one.data.tags.get("lqray.failure", "")) for name, one in runs.items()}


def lqray(path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lqray", *arguments]
    return subprocess.run(command, cwd=path.parent, capture_output=True, text=True)


FAILING = """
name: sweep
base:
  data: {name: digits}
  model: {name: mlp, layers: [32]}
  optimizer: {name: sgd, lr: 0.02}
  schedule: {iterations: 60, batch_size: 16}
  workers: 2
  quantizer: {method: qsgd, bucket_size: 128}
sweep:
  - include:
      - {seed: 1}
      - {seed: 2, optimizer.lr: 1.0e+30}
      - {seed: 3, data: {name: "lost:load"}}
      - {seed: 4}
"""


LOST = """
from lqray.training.files import MissingDataError

def load(options):
    raise MissingDataError("dataset lost: not found")
"""
"""Whose files a launch knows nothing of."""


@pytest.mark.parametrize("launcher", ["warm", pytest.param("inline", marks=pytest.mark.slow)])
def test_failures_of_a_trial_are_its_own(tmp_path, launcher):
    path = write(tmp_path, text=FAILING)
    (tmp_path / "lost.py").write_text(LOST)
    run(path, "--launcher", launcher, expected=1)
    found = {re.search(r"seed(\d)", name)[1]: state for name, state in status_of(path).items()}
    assert found == {
        "1": ("FINISHED", ""),
        "2": ("FAILED", "non_finite"),
        "3": ("FAILED", "user_error"),
        "4": ("FINISHED", ""),
    }
    shown = lqray(path, "failures", "sweep").stdout
    assert shown.index("non_finite: a retry gives the same bits") < shown.index("user_error: a retry fails again")
    assert "MissingDataError" in shown
    assert re.search(r"seed3\S* \(\S+, rank [01]\)", shown)
    assert "again in" not in output(path)
    assert "1/60" in lqray(path, "status", "sweep").stdout
    assert "DivergedError" in lqray(path, "logs", next(name for name in status_of(path) if "seed2" in name)).stdout


@pytest.mark.slow
def test_a_worker_beyond_its_memory_is_out_of_memory(tmp_path):
    path = write(tmp_path, iterations=100_000)
    limit = ["--set", "resources.memory_gib_per_process=0.2", "--only", "seed1"]
    run(path, "--launcher", "inline", *limit, expected=1)
    assert status_of(path) == {"seed1": ("FAILED", "out_of_memory")}
    assert "resources.memory_gib_per_process allows 0.2" in lqray(path, "failures", "sweep.yaml").stdout


SEARCHED = """
name: sweep
base:
  data: {name: digits}
  model: {name: mlp, layers: [32]}
  optimizer: {name: sgd, lr: 0.05}
  schedule: {iterations: 2000, batch_size: 16, evaluate_every: 50}
  workers: 2
  quantizer: {method: qsgd_inf, bucket_size: 128}
search:
  sampler: grid
  space: {optimizer.lr: {choice: [0.05, 1.0e-6, 2.0e-6, 3.0e-6]}}
  early_stopping: {metric: test/accuracy, grace_period: 100, reduction_factor: 2}
"""


@pytest.mark.parametrize("launcher", ["warm", pytest.param("isolated", marks=pytest.mark.slow)])
def test_early_stopping_stops_trials_and_leaves_nothing(tmp_path, launcher):
    path = write(tmp_path, text=SEARCHED)
    text = run(path, "--launcher", launcher)
    runs = recorded(f"sqlite:///{tmp_path}/lqray.db")
    assert {name: one.info.status for name, one in runs.items()} == {
        "lr0.05": "FINISHED",
        "lr1e-06": "KILLED",
        "lr2e-06": "KILLED",
        "lr3e-06": "KILLED",
    }, text
    assert all("early stopping after" in one.data.tags["lqray.early"] for name, one in runs.items() if name != "lr0.05")
    nothing_is_left(tmp_path)
    assert "3 stopped early before" in run(path, "--launcher", launcher)


@pytest.mark.slow
def test_early_stopping_by_a_metric_that_nobody_reports(tmp_path):
    path = write(tmp_path, text=SEARCHED.replace("metric: test/accuracy", "metric: test/acuracy"))
    text = run(path, "--launcher", "warm", "--limit", "1", expected=1)
    assert "no metric 'test/acuracy' is reported" in text
    assert "test/accuracy" in text
    assert status_of(path) == {"lr0.05": ("FAILED", "user_error")}
    assert "found --launcher inline" in run(path, "--launcher", "inline", expected=2)
