"""Launches on one machine: whose cores are whose, and what is left of them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lqray.orchestration.launchers.presence import MARK_VARIABLE, Presence, end_processes_of

CHILD = """
import sys, time
from pathlib import Path
from lqray.orchestration.launchers.presence import Presence
with Presence(Path(sys.argv[1])) as presence:
    presence.take(2, 6, 8)
    print(presence.folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def root(tmp_path):
    return tmp_path / "launches"


def test_the_first_takes_what_it_can_use_and_the_next_what_is_free(root):
    with Presence(root) as first, Presence(root) as second, Presence(root) as third:
        assert first.take(2, 6, 8).cores == 6
        share = second.take(2, 100, 8)
        assert (share.cores, [cores for _, cores in share.others]) == (2, [6])
        crowded = third.take(4, None, 8)
        assert crowded.cores == 4
        assert "only 0 are free" in str(crowded)
    assert not root.exists()


def test_a_launch_without_ray_says_once_that_the_machine_is_crowded(root, monkeypatch, caplog):
    monkeypatch.setattr("lqray.orchestration.launchers.presence.available_cores", lambda: 4)
    with Presence(root) as first, Presence(root) as second:
        first.take(2, 2)
        for cores in (1, 1, 3, 3):
            second.use(cores)
    assert [record.getMessage() for record in caplog.records] == [
        f"another lqray shares this machine's 4 cores (process {os.getpid()} has 2); this launch takes 3, though only "
        "2 are free: all of them will be slower"
    ]


def test_a_launch_alone_takes_all_cores_and_at_least_what_it_needs(root):
    with Presence(root) as presence:
        assert presence.take(2, None, 8).cores == 8
        assert presence.take(16, None, 8).cores == 16
        assert presence.take(1, None, 8).others == ()


@pytest.mark.processes
def test_what_a_killed_launch_left_is_removed_and_its_cores_are_free(root):
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(root)], stdout=subprocess.PIPE, text=True)
    try:
        left = Path(child.stdout.readline().strip())
        with Presence(root) as presence:
            assert presence.take(1, None, 8).others == ((child.pid, 6),)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert left.exists()
    with Presence(root) as presence:
        assert not left.exists()
        assert presence.take(1, None, 8).cores == 8
    assert not root.exists()


def test_a_folder_that_others_can_write_to_is_refused(root):
    root.mkdir(mode=0o700)
    root.chmod(0o777)
    with pytest.raises(PermissionError, match="only this user"), Presence(root):
        pass


def test_a_folder_in_which_an_ending_process_still_writes_is_removed(root):
    """As a Ray's does that is being shut down."""
    script = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
print("ready", flush=True)
while True:
    (folder / "session" / str(time.monotonic_ns())).mkdir(parents=True, exist_ok=True)
"""
    with Presence(root) as presence:
        writer = subprocess.Popen(
            [sys.executable, "-c", script, str(presence.folder)],
            stdout=subprocess.PIPE,
            env=os.environ | {MARK_VARIABLE: str(presence.folder)},
        )
        assert writer.stdout.readline() == b"ready\n"
    writer.wait(60)  # it was ended, and psutil has its exit status
    assert not presence.folder.exists()


def test_a_process_of_rays_that_wrote_over_its_environment_is_ended(root):
    """As Ray's agents do, which outlive a killed raylet by a minute; the files they have open tell whose they are."""
    script = "import sys, time; log = open(sys.argv[1], 'w'); print('ready', flush=True); time.sleep(600)"
    with Presence(root) as presence:
        logs = presence.folder / "session_2026" / "logs"
        logs.mkdir(parents=True)
        environment = {key: value for key, value in os.environ.items() if key != MARK_VARIABLE}
        command = [sys.executable, "-c", script]
        agent = subprocess.Popen([*command, str(logs / "agent.out")], stdout=subprocess.PIPE, env=environment)
        other = subprocess.Popen([*command, str(root.parent / "other.out")], stdout=subprocess.PIPE, env=environment)
        try:
            assert agent.stdout.readline() == other.stdout.readline() == b"ready\n"
            end_processes_of(presence.folder, patience=0.0)
            agent.wait(10)
            assert other.poll() is None
        finally:
            for process in (agent, other):
                process.kill()
                process.wait()
