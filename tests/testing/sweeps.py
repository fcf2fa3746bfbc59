"""Real sweeps in processes of their own, to be killed, and what they leave in the store."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from click.testing import CliRunner
from mlflow import MlflowClient

from lqray.cli import main

TEXT = """
name: sweep
base:
  data: {name: digits}
  model: {name: mlp, layers: [32]}
  optimizer: {name: sgd, lr: 0.02, momentum: 0.9}
  schedule: {iterations: ITERATIONS, batch_size: 16, evaluate_every: 100}
  workers: 2
  quantizer: {method: alq, bucket_size: 128, update_at: [0, 20], update_every: 100}
  telemetry: {every: 5}
sweep:
  - matrix: {seed: [1, 2, 3]}
tracking: {uri: "URI"}
storage: {folder: storage, checkpoint_every: 50}
"""


def write(folder: Path, iterations: int = 500, uri: str = "sqlite:///lqray.db", text: str = TEXT) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "sweep.yaml"
    path.write_text(text.replace("ITERATIONS", str(iterations)).replace("URI", uri))
    return path


def start(path: Path, *options: str) -> subprocess.Popen[str]:
    """`lqray run`; its children carry the folder as a mark in their environment."""
    return subprocess.Popen(
        [sys.executable, "-m", "lqray", "run", path.name, *options],
        cwd=path.parent,
        env=os.environ | {"LQRAY_TEST_MARK": str(path.parent)},
        stdout=(path.parent / "output.txt").open("a"),
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def output(path: Path) -> str:
    return (path.parent / "output.txt").read_text()


def run(path: Path, *options: str, expected: int = 0) -> str:
    process = start(path, *options)
    assert process.wait(900) == expected, output(path)
    return output(path)


def run_here(path: Path, *options: str, expected: int = 0) -> str:
    """`lqray run` in this process, which has imported everything; what it says, and what earlier ones said."""
    with contextlib.chdir(path.parent):
        done = CliRunner().invoke(main, ["run", path.name, *options])
    with (path.parent / "output.txt").open("a") as file:
        file.write(done.output)
    assert done.exit_code == expected, output(path) + "".join(traceback.format_exception(done.exception))
    return output(path)


def wait_for(path: Path, ready: Callable[[], bool], seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, output(path)
        time.sleep(0.05)


def checkpointed(path: Path, trials: int) -> bool:
    """Whether so many trials have written a checkpoint after more than a hundred iterations."""
    return len({file.parent for file in path.parent.glob("storage/sweep/*/step-*[1-9]?0.pt")}) >= trials


def marked(folder: Path, name: str = "") -> dict[int, str]:
    """Processes that inherited the mark, by number: their command lines, where `name` is part of them."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"LQRAY_TEST_MARK={folder}\0".encode() in (process / "environ").read_bytes() + b"\0":
                line = (process / "cmdline").read_text().replace("\0", " ")
                if name in line:
                    found[int(process.name)] = line
        except OSError:
            continue
    return found


# Ray's agents notice only after a minute that their node was killed; they hold nothing of a sweep.
RAYS_OWN = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


def nothing_is_left(folder: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        left = {number: line for number, line in marked(folder).items() if not line.startswith(RAYS_OWN)}
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert left == {}


def recorded(uri: str, experiment: str = "sweep") -> dict[str, object]:
    """The runs of an experiment by trial name, each once."""
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run for run in runs}


def histories(uri: str) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Of every run and metric (but times, and how busy the machine was) the (step, value) in the order of their steps,
    each step once."""
    client = MlflowClient(uri)
    found = {}
    for name, run in recorded(uri).items():
        found[name] = {}
        for key in run.data.metrics:
            history = sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key))
            steps = [step for step, _ in history]
            assert len(set(steps)) == len(steps), (name, key, steps)
            if key.startswith("system/"):
                continue
            if not key.startswith("time/"):
                found[name][key] = history
            else:
                found[name][key] = [(step, 0.0) for step in steps]
    return found


def undisturbed(folder: Path, path: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Histories of a sweep as it is on one machine, in a new folder, without Ray."""
    folder.mkdir()
    here = folder / path.name
    here.write_text(path.read_text().replace(str(path.parent), str(folder)))
    run_here(here, "--launcher", "inline")
    return histories(f"sqlite:///{folder}/lqray.db")


@contextmanager
def killing(process: subprocess.Popen[str]) -> Iterator[None]:
    """Whatever happens, nothing of the sweep survives."""
    try:
        yield
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def another_ray() -> Iterator[None]:
    """What Ray takes for one more Ray on this machine: a process by the name of a raylet, with an address."""
    command = ["raylet", "-c", "import time; time.sleep(3600)", "--gcs-address=127.0.0.1:6"]
    process = subprocess.Popen(command, executable=sys.executable)
    try:
        yield
    finally:
        process.kill()
        process.wait()
