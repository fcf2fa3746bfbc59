"""Ray's own processes end: the launch says so and leaves, wherever it is, but not in the middle of a record."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray

from lqray.cli import endings
from lqray.orchestration import signals
from lqray.orchestration.launch import Ran
from lqray.orchestration.launchers.contract import LaunchInterrupted
from lqray.orchestration.launchers.presence import MARK_VARIABLE
from lqray.orchestration.launchers.ray import cluster
from lqray.orchestration.launchers.ray import watch as ray_watch
from lqray.orchestration.launchers.ray.cluster import Cluster, RayLostError
from lqray.orchestration.launchers.ray.watch import Guarded, RayWatch
from lqray.orchestration.plan.plan import Plan
from lqray.store.launches import Launch

pytestmark = pytest.mark.processes
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def children(tmp_path):
    """A raylet that can be killed, and a worker of its, which carries the launch's mark."""
    found = [subprocess.Popen(SLEEP, env=os.environ | {MARK_VARIABLE: str(tmp_path)}) for _ in range(2)]
    yield found
    for child in found:
        child.kill()
        child.wait()


def watch_of(raylet: subprocess.Popen, folder: Path | None, monkeypatch) -> RayWatch:
    needed = [("the head, the gcs_server", psutil.Process(raylet.pid))]
    monkeypatch.setattr(ray_watch, "needed_processes", lambda cluster: needed)
    return RayWatch(Cluster({}, "127.0.0.1:1", "session", "socket", folder))


def nothing() -> None: ...


class Running:
    """A process as psutil shows it."""

    def __init__(self, name: str, *arguments: str) -> None:
        self.name, self.cmdline = lambda: name, lambda: [f"/ray/{name}", *arguments]


def test_the_raylet_that_another_node_of_this_machine_has_is_not_missed(monkeypatch):
    """A simulated cluster's autoscaler starts it, and ends it when it is idle; or it is in a container."""
    ours = Running("raylet", "--store=x", "--raylet_socket_name=/tmp/s1/sockets/raylet", "--node_ip_address=10.0.0.1")
    theirs = Running(
        "raylet", "--store=x", "--raylet_socket_name=/tmp/s1/sockets/raylet.1", "--node_ip_address=10.0.0.1"
    )
    contained = Running(
        "raylet", "--store=x", "--raylet_socket_name=/tmp/s1/sockets/raylet", "--node_ip_address=10.0.0.2"
    )
    head = Running("gcs_server", "--log_dir=/tmp/s1/logs")
    others = [Running("gcs_server", "--log_dir=/tmp/s2/logs"), Running("python", "/tmp/s1/sockets/raylet")]
    monkeypatch.setattr(psutil, "process_iter", lambda: [theirs, contained, *others, ours, head])
    found = ray_watch.needed_processes(Cluster({}, "127.0.0.1:1", "s1", "/tmp/s1/sockets/raylet", ip="10.0.0.1"))
    assert [process for _, process in found] == [ours, head]


def test_a_launch_that_waits_leaves_and_what_is_left_of_its_ray_is_ended(tmp_path, children, monkeypatch, caplog):
    raylet, worker = children
    watch = watch_of(raylet, tmp_path, monkeypatch)
    raylet.kill()
    with pytest.raises(RayLostError, match="gcs_server.*run the same command again") as raised:
        watch.wait_for(lambda: time.sleep(300), nothing)
    assert isinstance(raised.value, LaunchInterrupted)
    assert worker.wait(60) is not None  # psutil has taken its exit code
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_the_end_of_ray_that_a_signal_brought_is_no_error_of_its_own(tmp_path, children, monkeypatch, caplog):
    """A scheduler, or `timeout`, sends SIGTERM to the raylet as well."""
    raylet, _ = children
    watch = watch_of(raylet, tmp_path, monkeypatch)
    monkeypatch.setattr(ray_watch, "heard", lambda: 1)
    raylet.kill()
    with pytest.raises(RayLostError):
        watch.wait_for(lambda: time.sleep(300), nothing)
    assert not caplog.records


@pytest.mark.parametrize(("heard", "code", "word"), [(0, 1, "with Ray"), (1, 143, "Interrupted: ")])
def test_the_exit_code_is_the_signals_where_there_was_one(heard, code, word, monkeypatch, capsys):
    monkeypatch.setattr(signals, "heard", lambda: heard)
    monkeypatch.setattr(signals, "exit_code", lambda: 143)
    monkeypatch.setattr(os, "_exit", sys.exit)
    ran = Ran(Launch("", "", "", "", "", ""), interrupted=True, lost="Ray is gone")
    endings.say_why_it_ended(Plan(None, "", [], {}), ran)
    with pytest.raises(SystemExit) as raised:
        endings.leave(ran, endings.exit_code(ran, compared=True))
    assert raised.value.code == code
    assert word in capsys.readouterr().err


def test_nothing_of_a_ray_that_was_joined_is_ended(children, monkeypatch):
    raylet, worker = children
    watch = watch_of(raylet, None, monkeypatch)
    raylet.kill()
    with pytest.raises(RayLostError):
        watch.wait_for(lambda: time.sleep(300), nothing)
    assert worker.poll() is None


def test_what_is_being_recorded_is_recorded_whole_and_nothing_after_it(children, monkeypatch):
    raylet, _ = children
    watch = watch_of(raylet, None, monkeypatch)
    done = []
    left = threading.Event()

    class Queue:
        over = False

        def ended(self, result):
            raylet.kill()
            while watch.lost is None:
                time.sleep(0.01)
            time.sleep(0.2)
            done.append(result)

        def take(self):
            done.append("one more")

    queue = Guarded(Queue(), watch)

    def work():
        try:
            queue.ended("result")
            left.wait(60)
            queue.take()
        finally:
            left.set()

    with pytest.raises(RayLostError):
        watch.wait_for(work, nothing)
    assert done == ["result"]
    left.set()
    assert not queue.over
    assert done == ["result"]


def test_errors_of_the_work_are_raised_and_its_end_is_the_end(children, monkeypatch):
    watch = watch_of(children[0], None, monkeypatch)

    def fail():
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        watch.wait_for(fail, nothing)
    watch.wait_for(nothing, nothing)


def test_ctrl_c_asks_the_work_to_end_and_waits_for_that(children, monkeypatch):
    watch = watch_of(children[0], None, monkeypatch)
    asked = threading.Event()
    ended = []

    def work():
        os.kill(os.getpid(), signal.SIGINT)
        asked.wait(60)
        ended.append("well")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            watch.wait_for(work, asked.set)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == ["well"]


def test_a_ray_that_does_not_end_its_trials_is_left_behind(tmp_path, children, monkeypatch):
    """A head that hangs, say; whoever sent the signal may kill this process soon, and ends are not recorded yet."""
    watch = watch_of(children[0], tmp_path, monkeypatch)
    monkeypatch.setattr(ray_watch, "_HURRY_SECONDS", 0.1)
    over = threading.Event()

    def work():
        os.kill(os.getpid(), signal.SIGTERM)
        over.wait(60)

    with pytest.raises(RayLostError, match="it has not ended its trials within 0.1 s"), signals.heeded():
        watch.wait_for(work, nothing)
    assert children[1].wait(60) is not None
    over.set()


def test_ray_that_is_lost_is_left_after_the_work_on_it(children, monkeypatch):
    """Ray ends the process that uses it after its shutdown, also while it records how its trials stand."""
    watch = watch_of(children[0], None, monkeypatch)
    shut, over = threading.Event(), threading.Event()
    known = dict.fromkeys(["gcs_address", "session_dir", "raylet_socket_name", "node_ip_address"], "")
    monkeypatch.setattr(cluster, "_connected", lambda *_: SimpleNamespace(address_info=known))
    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setattr(ray, "shutdown", shut.set)
    children[0].kill()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(RayLostError), cluster.ray_cluster({}, verbose=False):
        watch.wait_for(lambda: over.wait(60), nothing)
    assert not shut.wait(0.5)
    over.set()
    assert shut.wait(60)


def test_ray_is_not_left_for_ever(monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(ray, "shutdown", lambda: over.wait(60))
    monkeypatch.setattr(cluster, "_LEAVE_SECONDS", 0.1)
    cluster._shut_down()
    over.set()


WITHIN_A_LOCK = """
import signal, threading
from lqray.orchestration import signals
from lqray.orchestration.launchers.ray.cluster import Cluster
from lqray.orchestration.launchers.ray.watch import RayWatch

enter, asked, works = threading.Condition.__enter__, threading.Event(), []

def entered(condition):
    taken = enter(condition)
    if works and threading.current_thread() is threading.main_thread():
        works.clear()
        signal.raise_signal(signal.SIGTERM)
    return taken

def work():
    works.append(True)
    asked.wait()

threading.Condition.__enter__ = entered
watch = RayWatch(Cluster({}, "127.0.0.1:1", "no session", "no socket"))
watch.look = lambda: None
try:
    with signals.heeded():
        watch.wait_for(work, asked.set)
except signals.Interrupted:
    print("ended")
"""


def test_a_signal_within_the_wait_leaves_no_lock_taken():
    """What is raised there would keep the event's, for which the end of the work waits, and then this thread."""
    done = subprocess.run([sys.executable, "-c", WITHIN_A_LOCK], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("ended\n", 0), done.stderr


def test_the_head_of_a_cluster_may_be_away_for_a_while(monkeypatch, caplog):
    monkeypatch.setattr(ray_watch, "needed_processes", lambda cluster: [])
    clock = [0.0]
    there = [False]
    monkeypatch.setattr(ray_watch, "answers", lambda address: there[0])
    monkeypatch.setattr(ray_watch.time, "monotonic", lambda: clock[0])
    watch = RayWatch(Cluster({}, "10.0.0.1:6379", "session", "socket"))
    assert watch.look() is None
    clock[0] = 10.0
    assert watch.look() is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    clock[0], there[0] = 13.0, True
    assert watch.look() is None
    clock[0], there[0] = 20.0, False
    assert watch.look() is None
    clock[0] = 35.0
    assert watch.look() is None
    clock[0] = 50.0
    assert watch.look() == "the head at 10.0.0.1:6379 is gone"
