"""Hosts of namespaces: what each has of its own, what they share, and that nothing is left of them."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.testing.real_hosts import real_hosts, why_not

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(why_not(ssh=True) is not None, reason=str(why_not(ssh=True)))]

KNOW_NOBODY = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
REACH = "import socket, sys; print(socket.create_connection((sys.argv[1], 22), 5).recv(8).decode())"


def links() -> str:
    return subprocess.run(["ip", "-o", "link"], check=True, capture_output=True, text=True).stdout


def mine(text: str) -> bool:
    return f"lq{os.getpid()}" in text


def reach(hosts, host: int, other: str) -> str:
    return hosts.run(host, [sys.executable, "-c", REACH, other]).strip()


def wait_for(ready) -> None:
    deadline = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_each_has_its_own_and_they_reach_each_other():
    with real_hosts(2, ssh=True, environment={"OF_THE_SHELLS": "is read"}) as hosts:
        assert [hosts.run(host, ["hostname"]).strip() for host in (0, 1)] == ["host-0", "host-1"]
        assert reach(hosts, 0, "host-1") == reach(hosts, 1, hosts.addresses[0]) == "SSH-2.0-"
        for host in (0, 1):
            hosts.run(host, ["bash", "-c", f"echo {host} >/tmp/here; echo {host} >~/here; echo {host} >/dev/shm/here"])
        assert [hosts.run(host, ["cat", "/tmp/here", "/root/here", "/dev/shm/here"]) for host in (0, 1)] == [
            "0\n0\n0\n",
            "1\n1\n1\n",
        ]
        assert (hosts.tmp(1) / "here").read_text() == (hosts.root(1) / "here").read_text() == "1\n"
        # This tree and this environment are there; what is written into the environment is that host's alone.
        assert hosts.run(0, [sys.executable, "-c", "import lqray; print(lqray.__file__)"]).startswith(
            str(Path(__file__).resolve().parents[2])
        )
        hosts.run(0, ["touch", f"{sys.prefix}/of-host-0"])
        assert not (Path(sys.prefix) / "of-host-0").exists()
        hosts.run(1, ["ls", f"{sys.prefix}/of-host-0"], expected=2)
        login = ["ssh", "-i", str(hosts.key), *KNOW_NOBODY, f"root@{hosts.addresses[0]}"]
        said = subprocess.run(
            [*login, "bash --login -c 'hostname; echo $OF_THE_SHELLS'"], capture_output=True, text=True
        )
        assert said.stdout == "host-0\nis read\n", said.stderr


def test_processes_are_of_one_host_and_end_with_it():
    with real_hosts(2, ssh=True) as hosts:
        assert hosts.processes(0) == hosts.processes(1) == {}
        hosts.run(0, ["bash", "-c", "setsid sleep 1001 >/dev/null 2>&1 & setsid sleep 1002 >/dev/null 2>&1 &"])
        wait_for(lambda: sorted(hosts.processes(0).values()) == ["sleep 1001", "sleep 1002"])
        assert hosts.processes(1) == {}
        hosts.run(1, ["bash", "-c", "kill -9 -1 || true"])  # everything there is, as `ray stop` may
        assert len(hosts.processes(0)) == 2
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a shell's background
        waiting = hosts.start(0, ["sleep", "1003"])
        signal.signal(signal.SIGINT, before)
        wait_for(lambda: "sleep 1003" in hosts.processes(0).values())
        hosts.send(waiting, signal.SIGINT)
        assert waiting.wait(10) != 0
        left = list(hosts.processes(0))
        hosts.kill(0)
        assert not any(Path(f"/proc/{number}").exists() for number in left)
        folder = hosts.folder
        assert mine(links())
    assert not mine(links())
    assert not folder.exists()


def test_a_host_that_is_cut_off_is_not_reached_until_it_joins():
    with real_hosts(2, ssh=True) as hosts:
        hosts.cut(1)
        hosts.run(0, [sys.executable, "-c", REACH.replace("5)", "1)"), "host-1"], expected=1)
        hosts.join(1)
        assert reach(hosts, 0, "host-1") == "SSH-2.0-"


PROGRAM = """
import sys, time
from tests.testing.real_hosts import real_hosts
with real_hosts(1) as hosts:
    hosts.start(0, ["sleep", "1004"])
    while not hosts.processes(0):
        time.sleep(0.01)
    print(hosts.folder, *hosts.processes(0), flush=True)
    time.sleep(1000)
"""


def test_hosts_of_a_killed_process_end_and_the_next_ones_remove_what_is_left():
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    folder, number = process.stdout.readline().split()
    process.kill()
    process.wait()
    wait_for(lambda: not Path(f"/proc/{number}").exists())
    assert Path(folder).is_relative_to(tempfile.gettempdir())
    assert Path(folder).exists()
    with real_hosts(1):
        assert not Path(folder).exists()
        assert f"lq{process.pid}b" not in links()


def test_hosts_whose_making_fails_leave_nothing(tmp_path):
    with (
        pytest.raises(RuntimeError, match=r"host-0 could not be made: .*no-such-folder"),
        real_hosts(1, shared=[tmp_path / "no-such-folder"]),
    ):
        pass
    assert not mine(links())
    assert not list(Path(tempfile.gettempdir()).glob(f"lqray-hosts-{os.getpid()}-*"))
