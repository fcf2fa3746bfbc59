"""Which edits of lqray's code matter to a launch, and what one that does matter does to it."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import lqray
from lqray.experiment import parts
from lqray.experiment.options.resources import Resources
from lqray.experiment.options.storage import Storage
from lqray.experiment.part_files import own_digests
from lqray.experiment.schema import Trial
from lqray.orchestration.code_version import _WORKER_PARTS, code_version, training_code
from lqray.orchestration.failures import CodeChangedError, failure_of
from lqray.orchestration.launchers.outcomes import result_of
from lqray.orchestration.worker.run import _check_own_parts, run_task
from lqray.orchestration.worker.task import Outcome, WorkerTask
from tests.orchestration.queue.test_queue import FakeRecorder, Threads, queue_of, trials


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package, as its files are seen."""
    folder = tmp_path / "lqray"
    shutil.copytree(Path(lqray.__file__).parent, folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    monkeypatch.setattr(lqray, "__file__", str(folder / "__init__.py"))
    return folder


@pytest.mark.parametrize(
    ("file", "matters"),
    [
        ("training/loop.py", True),
        ("quantization/methods/alq.py", True),
        ("communication/exchange.py", True),
        ("ops/reference.py", True),
        ("experiment/schema.py", True),
        ("orchestration/worker/run.py", True),
        ("reporting/report.py", False),
        ("cli/sweeps.py", False),
        ("orchestration/queue/queue.py", False),
        ("submit.py", False),
    ],
)
def test_only_what_training_runs_counts(package, file, matters):
    before = training_code.__wrapped__(), code_version.__wrapped__()
    with (package / file).open("a") as source:
        source.write("# a comment\n")
    assert (training_code.__wrapped__() != before[0]) == matters
    assert code_version.__wrapped__() != before[1]


def test_what_an_editor_leaves_is_no_code(package):
    before = training_code.__wrapped__()
    (package / "training" / ".#loop.py").symlink_to("me@host.1234")
    (package / "training" / ".ipynb_checkpoints").mkdir()
    (package / "training" / ".ipynb_checkpoints" / "loop-checkpoint.py").write_text("")
    assert training_code.__wrapped__() == before
    (package / "training" / "dangling.py").symlink_to("nowhere")
    assert training_code.__wrapped__() != before


def test_all_that_a_worker_imports_of_orchestration_is_known():
    code = "import sys, lqray.orchestration.worker.run; print(*(n for n in sys.modules if n.startswith('lqray.orch')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    found = {name.removeprefix("lqray.orchestration").removeprefix(".") for name in done.stdout.split()} - {""}
    others = {name.replace(".", "/") for name in found if name.split(".")[0] != "worker"}
    assert others <= set(_WORKER_PARTS)


def test_a_worker_with_other_code_says_so(tmp_path):
    task = WorkerTask("t", "n", {}, Resources(), Storage(), str(tmp_path), "r", 1, "gloo", "another")
    outcome = run_task(task, 1, "cpu", None, logged=False)
    assert outcome.failure.kind == "code_changed"
    assert "was another when this launch began" in outcome.failure.error


def test_a_worker_that_finds_other_code_for_a_users_part_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(parts, "_places", [])
    monkeypatch.setattr(parts, "_added", [])
    (tmp_path / "found_nets.py").write_text("def build(options, shape, classes): raise ValueError('built')")
    config = {
        "data": {"name": "digits"},
        "model": {"name": "found_nets:build"},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "schedule": {"iterations": 1, "batch_size": 1},
        "quantizer": {"method": "qsgd_inf"},
    }
    task = WorkerTask("t", "n", config, Resources(), Storage(), str(tmp_path), "r", 1, "gloo", training_code())
    task = replace(task, places=(str(tmp_path),))
    told = replace(task, own_parts={"model found_nets:build": "0123456789ab"})
    failure = run_task(told, 1, "cpu", None, logged=False).failure
    assert failure.kind == "user_error"
    (here,) = own_digests(Trial.model_validate(config)).values()
    assert f"model found_nets:build: its code is {here} on " in failure.error
    assert "and was 0123456789ab when this launch began" in failure.error
    _check_own_parts(replace(told, own_parts={"model found_nets:build": here}), Trial.model_validate(config))


def test_it_ends_the_launch_and_fails_no_trial():
    failure = failure_of(CodeChangedError("lqray's code is 1 and was 2"), 0)
    recorder, results = FakeRecorder(), []
    queue = queue_of(trials(5), recorder, results)

    def outcome(work):
        return result_of(work, {0: Outcome(failure=failure)}, None)

    Threads(1, outcome).launch(queue)
    deadline = time.monotonic() + 60
    while not results and time.monotonic() < deadline:  # ends are recorded on a thread of their own
        time.sleep(0.01)
    assert recorder.begun == ["0"]
    assert recorder.ended == [("0", "KILLED")]
    assert queue.halted == "lqray's code is 1 and was 2"
    assert queue.over
    assert not results[0].early
