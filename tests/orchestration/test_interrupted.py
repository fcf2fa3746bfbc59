"""Real launches that are interrupted at awkward moments, by all that a terminal, a shell or a scheduler may send."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

pytestmark = pytest.mark.processes

TEXT = """
name: T
base:
  data: {name: gaussian_mixture}
  model: {name: mlp, layers: [8]}
  optimizer: {name: sgd, lr: 0.05}
  schedule: {iterations: ITERATIONS, batch_size: 16, evaluate_every: 10}
  workers: 2
  quantizer: {method: alq, bits: 3, bucket_size: 64, components: 5, update_at: [0, 10]}
resources: {processes: PROCESSES}
"""


def write(folder: Path, iterations: int, processes: int, more: str = "") -> None:
    text = TEXT.replace("ITERATIONS", str(iterations)).replace("PROCESSES", str(processes)) + more
    (folder / "T.yaml").write_text(text)


def start(folder: Path, iterations: int, processes: int, more: str = "", **options) -> subprocess.Popen:
    write(folder, iterations, processes, more)
    sigint, launcher = options.pop("sigint", signal.default_int_handler), options.pop("launcher", "inline")
    return subprocess.Popen(
        [sys.executable, "-m", "lqray", "run", "T.yaml", "--launcher", launcher],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, sigint),
        **options,
    )


def until(started: subprocess.Popen, word: str) -> None:
    for line in started.stdout:
        if word in line:
            return
    raise AssertionError(f"no {word!r} before the end")


def statuses(folder: Path) -> list[str]:
    client = MlflowClient(f"sqlite:///{folder}/lqray.db")
    return [run.info.status for run in client.search_runs([client.get_experiment_by_name("T").experiment_id])]


def test_ctrl_c_twice_while_processes_start(tmp_path):
    """They import for seconds, and the terminal sends it to them as well."""
    started = start(tmp_path, 1_000_000, 2, stderr=subprocess.STDOUT)
    until(started, "started")
    time.sleep(1.0)
    for _ in range(2):
        os.killpg(started.pid, signal.SIGINT)
        time.sleep(0.1)
    said, _ = started.communicate(timeout=240)
    assert started.returncode == 130, said
    assert "Traceback" not in said
    assert "Aborted" not in said
    assert "1 killed" in said
    assert statuses(tmp_path) == ["KILLED"]


WITHIN_A_LOCK = """
import signal, sys, threading
from lqray.cli import main
from lqray.cli.progress import Progress

shown, enter, progressed = [], threading.Condition.__enter__, Progress.progressed

def then_note(*arguments):
    progressed(*arguments)
    shown.append(True)

def entered(condition):
    taken = enter(condition)
    if shown and threading.current_thread() is threading.main_thread():
        Progress.progressed = progressed
        shown.clear()
        signal.raise_signal(signal.SIGTERM)
    return taken

Progress.progressed, threading.Condition.__enter__ = then_note, entered
main(["run", "T.yaml", "--launcher", "inline"])
"""


def test_a_signal_while_a_lock_is_taken_that_others_wait_for(tmp_path):
    """Condition and Event take theirs in Python: what is raised there leaves it taken, and the launch never ends."""
    write(tmp_path, 1_000_000, 1)
    command = [sys.executable, "-X", "faulthandler", "-c", WITHIN_A_LOCK]
    started = subprocess.Popen(command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        said, _ = started.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        started.send_signal(signal.SIGABRT)  # says where it stands
        said, _ = started.communicate()
    assert started.returncode == 143, said
    assert statuses(tmp_path) == ["KILLED"]


def test_sigterm_of_a_background_job_that_nobody_reads_any_more(tmp_path):
    """A script's `lqray run ... | head -1 &`: SIGINT is ignored, the pipe closed, the trial goes on until SIGTERM."""
    errors = tmp_path / "errors"
    started = start(tmp_path, 1_000_000, 1, stderr=errors.open("w"), sigint=signal.SIG_IGN)
    until(started, "started")
    started.stdout.close()
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("lqray-storage/T/*/step-*")) and time.monotonic() < deadline:
        assert started.poll() is None, errors.read_text()
        time.sleep(0.1)
    started.send_signal(signal.SIGTERM)
    assert started.wait(240) == 143
    assert "Traceback" not in errors.read_text()
    assert "Interrupted" in errors.read_text()
    assert statuses(tmp_path) == ["KILLED"]


def test_ctrl_c_after_the_last_trial_still_shows_the_table(tmp_path):
    started = start(tmp_path, 20, 1, stderr=subprocess.STDOUT)
    until(started, "finished")
    os.killpg(started.pid, signal.SIGINT)
    said, _ = started.communicate(timeout=240)
    assert started.returncode == 130, said
    assert "Traceback" not in said
    assert "test accuracy" in said
    assert statuses(tmp_path) == ["FINISHED"]


@pytest.mark.ray
@pytest.mark.parametrize(
    ("launcher", "number", "code"),
    [
        pytest.param("warm", signal.SIGTERM, 143, id="warm-SIGTERM"),
        pytest.param("isolated", signal.SIGINT, 130, id="isolated-SIGINT"),
        pytest.param("warm", signal.SIGINT, 130, id="warm-SIGINT", marks=pytest.mark.slow),
        pytest.param("isolated", signal.SIGTERM, 143, id="isolated-SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_every_launcher_with_its_exit_code(tmp_path, launcher, number, code):
    started = start(tmp_path, 1_000_000, 2, stderr=subprocess.STDOUT, launcher=launcher)
    until(started, ": step ")
    started.send_signal(number)
    said, _ = started.communicate(timeout=240)
    assert started.returncode == code, said
    assert "Traceback" not in said
    assert "Interrupted: trials that were running are recorded as KILLED" in said
    assert statuses(tmp_path) == ["KILLED"]
    assert list(tmp_path.glob("lqray-storage/T/*/step-*"))
