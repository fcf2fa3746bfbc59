"""A Ray cluster on several hosts of one machine: each with a network and temporary files of its own.

What they share is one folder, as machines share one over NFS, and, unlike machines, the process table.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.testing.shaped_hosts import Hosts, shaped_hosts
from tests.testing.sweeps import marked, output

PORT, DASHBOARD = 6399, 8299
TOKEN = "0" * 63 + "2"
# Ray's own settings, for a cluster that finds out within seconds that a node is gone. By default it takes 5 failed
# checks, 3 s apart, of 10 s each; and a node that has lost its head gives up after a minute.
_IMPATIENT = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    # Ray gives workers the priority 15: on a busy machine they would not come to train.
    "RAY_worker_niceness": "0",
}


class Nodes:
    """One Ray node on each of `hosts`, with one CPU; the first is the head. folder: what they share."""

    def __init__(self, hosts: Hosts, base: Path) -> None:
        self.hosts, self.base = hosts, base
        self.folder = base / "shared"
        self.folder.mkdir()
        (base / "t").mkdir()
        self.address = f"{hosts.addresses[0]}:{PORT}"
        self._ray: dict[int, subprocess.Popen[str]] = {}
        self._programs: set[int] = set()

    def start(self, *which: int, environment: Mapping[str, str] = {}, dashboard: bool = False) -> None:
        """Start Ray on hosts where it does not run, the head first, and wait until the cluster has all of them.

        dashboard: with the head's dashboard and job server, for all hosts.
        """
        shown = ["--dashboard-host=0.0.0.0", f"--dashboard-port={DASHBOARD}"] if dashboard else []
        for host in which:
            if self.runs(host):
                continue
            log = self.base / f"ray-{host}.log"
            log.write_text("")
            where = (
                ["--head", f"--port={PORT}", f"--include-dashboard={dashboard}".lower(), *shown]
                if host == 0
                else [f"--address={self.address}"]
            )
            self._ray[host] = self.run(
                *(host, "-m", "ray.scripts.scripts", "start", *where, "--block", "--num-cpus=1"),
                *("--disable-usage-stats", "--object-store-memory=80000000"),
                *(f"--temp-dir={self.base}/t/r", f"--node-ip-address={self.hosts.addresses[host]}"),
                log=log,
                environment=environment,
            )
            deadline = time.monotonic() + 180
            while "Ray runtime started" not in log.read_text():
                assert self._ray[host].poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)

    def run(
        self, host: int, *arguments: str, log: Path, cwd: Path | None = None, environment: Mapping[str, str] = {}
    ) -> subprocess.Popen[str]:
        """Start a Python program on a host, in a process group of its own. It joins this cluster, where it uses Ray."""
        own = self.base / f"t{host}"
        own.mkdir(exist_ok=True)
        variables = {
            **_IMPATIENT,
            **environment,
            "TMPDIR": f"{self.base}/t",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "LQRAY_TEST_MARK": str(self.base),
        }
        if "ray.scripts.scripts" not in arguments:
            variables.setdefault("RAY_ADDRESS", self.address)
        # `ip netns exec` gives every process a view of the mounts of its own: each host sees its own files in t.
        command = ["sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"', str(own), f"{self.base}/t"]
        assignments = [f"{key}={value}" for key, value in variables.items()]
        # Those of torchrun, which a host's other programs get.
        not_wanted = ("RAY_ADDRESS", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        cleared = [part for key in not_wanted for part in ("-u", key)]
        process = self.hosts.start(
            host,
            [*command, "env", *cleared, *assignments, sys.executable, *arguments],
            stdout=log.open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=cwd,
        )
        if "ray.scripts.scripts" not in arguments:
            self._programs.add(process.pid)
        return process

    def runs(self, host: int) -> bool:
        """Whether Ray runs on a host."""
        return host in self._ray and self._ray[host].poll() is None

    def kill(self, host: int) -> None:
        """End a host's Ray at once, or what is left of it, with what it started there; programs that use it stay."""
        process = self._ray.pop(host, None)
        for number in self.hosts.processes(host):
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(number) not in self._programs:
                    os.kill(number, signal.SIGKILL)
        if process:
            process.wait(30)

    def working(self, host: int) -> dict[int, str]:
        """Processes on a host that train, or could."""
        ours = marked(self.base, "RayTrainWorker")
        return {number: ours[number] for number in self.hosts.processes(host) if number in ours}

    def end(self) -> None:
        """Leave no process behind."""
        for number in marked(self.base):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        for process in self._ray.values():
            process.wait(30)


@contextlib.contextmanager
def nodes(count: int, rate: str | None) -> Iterator[Nodes]:
    """`count` hosts, on which Ray can be started. Short paths: those of sockets are limited."""
    base = Path(tempfile.mkdtemp(prefix="lq", dir="/var/tmp"))
    try:
        with shaped_hosts(count, rate) as hosts:
            made = Nodes(hosts, base)
            try:
                yield made
            finally:
                made.end()
    finally:
        shutil.rmtree(base, ignore_errors=True)


def lqray(cluster: Nodes, path: Path, *arguments: str) -> subprocess.Popen[str]:
    """A command on the head, beside an experiment's file; what it prints is its `output`."""
    return cluster.run(0, "-m", "lqray", *arguments, cwd=path.parent, log=path.parent / "output.txt")


def wait_for(path: Path, launch: subprocess.Popen[str], ready: Callable[[], object], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert launch.poll() is None, output(path)
        assert time.monotonic() < deadline, output(path)
        time.sleep(0.1)
