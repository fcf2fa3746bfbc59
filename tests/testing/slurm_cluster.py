"""SLURM on hosts of namespaces: its own daemons, a controller on the first host and slurmd on each.

    with real_hosts(2, shared=[folder]) as hosts, slurm_on(hosts, folder) as slurm:
        job = slurm.submit(folder, "deploy/slurm.sh", "sweep.yaml")
        slurm.wait_for(job, "COMPLETED")

`folder`, which all hosts share, holds its configuration and logs. Nothing of the machine's own SLURM or munge is used.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.testing import real_hosts
from tests.testing.real_hosts import Hosts

_TOOLS = ("/usr/sbin/slurmctld", "/usr/sbin/slurmd", "/usr/sbin/munged", "sbatch", "scontrol", "squeue", "scancel")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
_DAEMONS = ("slurmctld", "slurmctld:", "slurmd", "munged")

# Nodes are said to have more processors than this machine may have; limits of time are looked at every 30 s at most.
_CONFIGURATION = """
ClusterName=lqray
SlurmctldHost=host-0
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=5,sched_min_interval=0
ReturnToService=2
SlurmdTimeout=20
KillWait=30
NodeName=host-[0-{last}] CPUs=4 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
_NO_CGROUPS = "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n"


def why_not() -> str | None:
    """What is missing for SLURM on hosts of namespaces, or None."""
    if missing := [Path(tool).name for tool in _TOOLS if not shutil.which(tool)]:
        return f"needs {', '.join(missing)} (Debian's slurmctld, slurmd, munge, slurm-client)"
    return real_hosts.why_not()


@dataclass(frozen=True)
class Slurm:
    """A running one, with all nodes idle at first."""

    hosts: Hosts
    folder: Path

    def do(self, *command: str, host: int = 0, expected: int = 0, folder: str = "/root") -> str:
        """What one of SLURM's commands says on a host."""
        return self.hosts.run(host, command, environment=self._environment, expected=expected, folder=folder)

    def submit(self, folder: Path, *command: str) -> int:
        """`sbatch COMMAND` in a folder that the hosts share; the job's number. Its output is `output`'s."""
        said = self.do("sbatch", "--parsable", f"--output={self.folder}/job-%j.txt", *command, folder=str(folder))
        return int(said.split()[-1])

    def output(self, job: int) -> str:
        file = self.folder / f"job-{job}.txt"
        return file.read_text(errors="replace") if file.exists() else ""

    def fields(self, job: int) -> dict[str, str]:
        """What `scontrol show job` says."""
        return dict(re.findall(r"(\w+)=(\S*)", self.do("scontrol", "show", "job", str(job))))

    def state(self, job: int) -> str:
        return self.fields(job)["JobState"]

    def wait_for(self, job: int, *states: str, timeout: float = 900) -> str:
        """The first of these states that the job has. Raises AssertionError where it ends in another, or with time."""
        found = ""

        def reached() -> bool:
            nonlocal found
            found = self.state(job)
            assert found in states or found not in ENDED, f"{found}:\n{self.output(job)}"
            return found in states

        self.until(reached, job, timeout)
        return found

    def until(self, ready: Callable[[], bool], job: int, timeout: float = 900) -> None:
        """Wait for something that a job does. Raises AssertionError where it has ended, or with time."""
        deadline = time.monotonic() + timeout
        while not ready():
            fields = self.fields(job)
            over = fields["JobState"] in ENDED or time.monotonic() > deadline
            assert not over or ready(), f"{fields}\n{self.output(job)}"
            time.sleep(0.5)

    def left(self) -> list[str]:
        """Processes and folders of jobs that are on some host."""
        found = []
        for host, name in enumerate(self.hosts.names):
            commands = self.hosts.processes(host).values()
            found += [f"{name}: {one}" for one in commands if Path(one.split()[0]).name not in _DAEMONS]
            found += [f"{name}: {one}" for one in self.hosts.tmp(host).glob("lqray-*")]
            found += [f"{name}: {one}" for one in self.hosts.tmp(host).glob("ray*")]
        return found

    @property
    def _environment(self) -> dict[str, str]:
        return {"SLURM_CONF": f"{self.folder}/slurm.conf"}

    def start(self, host: int) -> None:
        """slurmd of a host."""
        self._daemon(host, ["/usr/sbin/slurmd", "-D", "-N", self.hosts.names[host]])

    def _begin(self) -> None:
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o400)
        (self.folder / "state").mkdir()
        text = _CONFIGURATION.format(folder=self.folder, last=len(self.hosts.names) - 1)
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "cgroup.conf").write_text(_NO_CGROUPS)
        for host in range(len(self.hosts.names)):
            self.hosts.run(host, ["mount", "-t", "tmpfs", "none", "/sys/fs/cgroup"])
            self.hosts.run(host, ["mkdir", "-p", "/run/munge"])
            places = [f"--{name}-file=/run/munge/{name}" for name in ("pid", "seed", "log")]
            self._daemon(host, ["/usr/sbin/munged", "-F", f"--key-file={self.folder}/munge.key", *places])
        self._daemon(0, ["/usr/sbin/slurmctld", "-D", "-c"])
        for host in range(len(self.hosts.names)):
            self.start(host)
        self._wait_for_nodes()

    def _daemon(self, host: int, command: Sequence[str]) -> None:
        name = f"{Path(command[0]).name}-{host}.out"
        with (self.folder / name).open("a") as log:
            self.hosts.start(host, command, environment=self._environment, stdout=log, stderr=subprocess.STDOUT)

    def _wait_for_nodes(self) -> None:
        deadline, said = time.monotonic() + 60, ""
        while time.monotonic() < deadline:
            with contextlib.suppress(RuntimeError):  # the controller is not there yet
                said = self.do("sinfo", "--noheader", "--Node", "--format=%t")
                if said.split() == ["idle"] * len(self.hosts.names):
                    return
            time.sleep(0.3)
        logs = [f"{log.name}: {log.read_text(errors='replace')[-2000:]}" for log in self.folder.glob("*.out")]
        raise RuntimeError(f"SLURM's nodes are not idle after 60 s: {said}\n" + "\n".join(logs))


@contextlib.contextmanager
def slurm_on(hosts: Hosts, folder: Path) -> Iterator[Slurm]:
    """SLURM, which ends with the hosts. folder: an empty one that they share."""
    slurm = Slurm(hosts, folder)
    slurm._begin()
    yield slurm
