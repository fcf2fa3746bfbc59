"""Every command of the command line, called once on a real sweep."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from lqray.cli import main
from tests.testing.heads import free_port

EXPERIMENTS = len(list((Path(__file__).parents[2] / "experiments").glob("*.yaml")))
# What each prints where it works; FOLDER is one of the test's own.
CALLS = {
    "expand": ("small.yaml", "lr0.05"),
    "run": ("small.yaml --launcher inline --only lr0.05", "1 finished before"),
    "submit": ("small.yaml --dry-run --set storage.folder=/shared --set tracking.uri=http://server", "would be sent"),
    "train": ("small.yaml --trial lr0.05 --metrics FOLDER/metrics.jsonl", "30"),
    "capture": (
        "small.yaml --trial lr0.05 --at 3 --at 12 --samples 2 --output FOLDER/gradients.pt",
        "826 coordinates, 2 of each of 2 workers, after 3 and 12 steps",
    ),
    "status": ("small --once", "failed"),
    "stop": ("small", "stop within seconds"),
    "failures": ("small", "DivergedError"),
    "report": ("small", "1 failed, 1 finished"),
    "compare": ("lr0.05 lr1e+30", "optimizer.lr"),
    "export": ("small FOLDER/out", "README.md"),
    "plot": ("small --kind curves --format svg --out FOLDER/figures", "small-curves.svg"),
    "gc": ("small", "Nothing was removed. To remove it:"),
    "relocate": ("", "Nothing to correct"),
    "doctor": ("", "MLflow store"),
    "init": ("FOLDER/files", f"{EXPERIMENTS} experiment files written"),
}
SERVING = {"ui": ("small", "--no-browser"), "server": ("--workers", "1")}


def test_every_command_is_called_here():
    assert CALLS.keys() | SERVING.keys() | {"logs", "build-native"} == main.commands.keys()


@pytest.mark.parametrize("name", CALLS)
def test_a_command_that_ends(swept, tmp_path, monkeypatch, name):
    monkeypatch.chdir(swept[0])
    arguments, expected = CALLS[name]
    done = CliRunner().invoke(main, [name, *arguments.replace("FOLDER", str(tmp_path)).split()])
    assert done.exit_code == 0, done.output
    assert expected in done.output


@pytest.mark.processes
def test_logs_are_those_of_worker_processes(swept, tmp_path, monkeypatch):
    shutil.copy(swept[0] / "small.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    run = ["run", "small.yaml", "--launcher", "inline", "--only", "lr0.05", "--set", "resources.processes=2"]
    assert CliRunner().invoke(main, run).exit_code == 0
    done = CliRunner().invoke(main, ["logs", "lr0.05"])
    assert done.exit_code == 0, done.output
    assert done.output.count("==> ") == 2


@pytest.mark.cluster
@pytest.mark.parametrize("name", SERVING)
def test_a_command_that_serves_until_ctrl_c(swept, tmp_path, name):
    output = tmp_path / "output.txt"
    process = subprocess.Popen(
        [sys.executable, "-m", "lqray", name, *SERVING[name], "--port", str(free_port())],
        cwd=swept[0],
        env=os.environ,
        stdout=output.open("w"),
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 240
    while "Ctrl-C ends it" not in output.read_text():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0, output.read_text()
