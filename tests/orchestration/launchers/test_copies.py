"""Worker processes that begin as copies: what they inherit, and what they must not."""

import errno
import os
import signal
import subprocess
import sys
from multiprocessing import forkserver
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path

import psutil
import pytest

from lqray.experiment.schema import Resources
from lqray.orchestration.launchers.copies import IMPORTED, copying, take_over
from lqray.orchestration.launchers.inline import _end_with_launcher, _Piped, _run_processes
from lqray.orchestration.worker.task import Ack, Update

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="copies are made on Linux alone")


@pytest.fixture(autouse=True)
def _no_original_of_other_tests():
    forkserver._forkserver._stop()


WITHOUT_A_GPU = """
import importlib, sys, threading
import torch

def touched(*arguments, **options):
    raise AssertionError("a process that was copied after this could not use a GPU")

torch.cuda.is_available = torch.cuda.device_count = torch.cuda.init = torch.cuda._lazy_init = touched
torch.accelerator.is_available = torch.accelerator.device_count = touched
for name in sys.argv[1:]:
    importlib.import_module(name)
assert threading.active_count() == 1, threading.enumerate()
"""


def test_what_the_original_imports_touches_no_gpu_and_starts_no_thread():
    done = subprocess.run([sys.executable, "-c", WITHOUT_A_GPU, *IMPORTED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _tell(pipe, environment):
    take_over(environment)
    loaded = "torch._dynamo" in sys.modules and "lqray.training.worker" in sys.modules
    pipe.send((os.environ.get("LQRAY_OF_A_TRIAL"), "LQRAY_OF_ANOTHER" in os.environ, loaded, os.getppid()))


def _copy(context):
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(sender, dict(os.environ)))
    process.start()
    sender.close()
    found = receiver.recv()
    process.join()
    return found


def test_copies_have_the_environment_of_now_and_the_original_ends_with_the_launch(tmp_path, monkeypatch):
    monkeypatch.setenv("LQRAY_OF_ANOTHER", "left")
    with copying(tmp_path) as context:
        assert _copy(context)[:3] == (None, True, True)
        monkeypatch.delenv("LQRAY_OF_ANOTHER")
        monkeypatch.setenv("LQRAY_OF_A_TRIAL", "new")
        *found, original = _copy(context)
        assert found == ["new", False, True]
        os.kill(original, signal.SIGKILL)  # by hand, or for memory: the next trial has another one
        os.waitid(os.P_PID, original, os.WEXITED | os.WNOWAIT)
        *found, another = _copy(context)
        assert found == ["new", False, True]
        assert another != original
    assert not Path(f"/proc/{another}").exists()


class Refused(SpawnProcess):
    def start(self):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


class NoMoreProcesses(SpawnContext):
    Process = Refused


def test_processes_that_cannot_be_started_are_a_failure_that_is_tried_again():
    outcomes = _run_processes(NoMoreProcesses(), None, 2, Resources(), lambda update: Ack())
    assert sorted(outcomes) == [0, 1]
    for outcome in outcomes.values():
        assert outcome.failure.kind == "infrastructure"
        assert "could not be started: [Errno 11]" in outcome.failure.error


def _speak(pipe):
    _Piped(pipe, None).send(Update("trial", 0, []))


def _wait(pipe):
    pipe.send(os.getpid())
    _end_with_launcher()


def test_a_copy_ends_with_the_original(tmp_path):
    """Of which alone the launcher learns that a copy has ended: to it, they are gone together."""
    with copying(tmp_path) as context:
        original = _copy(context)[3]
        receiver, sender = context.Pipe(duplex=False)
        context.Process(target=_wait, args=(sender,)).start()
        copy = psutil.Process(receiver.recv())
        os.kill(original, signal.SIGKILL)
        assert psutil.wait_procs([copy], timeout=10) == ([copy], [])


def test_a_process_whose_launcher_is_gone_ends_without_a_traceback(tmp_path, capfd):
    with copying(tmp_path) as context:
        receiver, sender = context.Pipe(duplex=False)
        receiver.close()
        process = context.Process(target=_speak, args=(sender,))
        process.start()
        process.join()
    assert process.exitcode == 1
    assert capfd.readouterr().err == ""


def test_a_second_launch_in_one_process(tmp_path):
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        with copying(folder) as context:
            assert _copy(context)[2]
        folder.rmdir()
