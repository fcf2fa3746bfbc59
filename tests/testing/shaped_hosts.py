"""Several "hosts" on one machine: network namespaces on a bridge, each with a link of limited rate.

python -m tests.testing.shaped_hosts --hosts 2 --rate 100mbit -- COMMAND ...    runs COMMAND once on each

Each copy has torchrun's variables (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) and GLOO_SOCKET_IFNAME=eth0. Needs root,
and `ip` and `tc` (Debian's iproute2).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


def why_not() -> str | None:
    """What is missing to make hosts, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "tc") if not shutil.which(tool)]
    if missing:
        return f"needs {' and '.join(missing)} (Debian's iproute2)"
    probe = subprocess.run(["ip", "netns", "add", f"lqray-probe-{os.getpid()}"], capture_output=True, text=True)
    if probe.returncode:
        return f"no network namespaces here: {probe.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", f"lqray-probe-{os.getpid()}"], check=True)
    return None


@dataclass(frozen=True)
class Hosts:
    """names: of the namespaces. addresses: theirs on the bridge."""

    names: Sequence[str]
    addresses: Sequence[str]
    switch: str

    def start(self, host: int, command: Sequence[str], **options: object) -> subprocess.Popen[str]:
        """Start a command on a host."""
        environment = {
            **os.environ,
            "RANK": str(host),
            "WORLD_SIZE": str(len(self.names)),
            "LOCAL_RANK": "0",
            "MASTER_ADDR": self.addresses[0],
            "MASTER_PORT": "29400",
            "GLOO_SOCKET_IFNAME": "eth0",
        }
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[host], *command], env=environment, text=True, **options
        )

    def run(self, command: Sequence[str], timeout: float) -> list[str]:
        """Run a command once on each host; what each printed. Raises RuntimeError where one fails."""
        processes = [
            self.start(host, command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            for host in range(len(self.names))
        ]
        try:
            said = [process.communicate(timeout=timeout)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        for host, process in enumerate(processes):
            if process.returncode:
                raise RuntimeError(f"host {host} ended with {process.returncode}:\n{said[host]}")
        return said

    def sent_bytes(self, host: int) -> int:
        """Bytes that a host's interface has sent, Ethernet headers included."""
        text = subprocess.run(
            ["ip", "netns", "exec", self.names[host], "cat", "/proc/net/dev"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        found = re.search(r"eth0:\s*(.*)", text)
        assert found
        return int(found.group(1).split()[8])

    def cut(self, host: int) -> None:
        """Take a host off the network."""
        _run("ip", "-n", self.switch, "link", "set", self._port(host), "down")

    def join(self, host: int) -> None:
        """Put a host that was cut off back on the network."""
        _run("ip", "-n", self.switch, "link", "set", self._port(host), "up")

    def processes(self, host: int) -> list[int]:
        """Numbers of the processes that run on a host."""
        text = subprocess.run(["ip", "netns", "pids", self.names[host]], check=True, capture_output=True, text=True)
        return [int(line) for line in text.stdout.split()]

    def _port(self, host: int) -> str:
        tag, _, number = self.names[host].rpartition("-")
        return f"{tag}s{number}"


@contextlib.contextmanager
def shaped_hosts(count: int, rate: str | None) -> Iterator[Hosts]:
    """`count` hosts whose links carry `rate` ("100mbit", "1gbit"; None: no limit) each way."""
    tag = f"lq{os.getpid() % 100_000}"
    net = f"10.78.{os.getpid() % 250}"
    names = [f"{tag}-{host}" for host in range(count)]
    hosts = Hosts(names, [f"{net}.{host + 1}" for host in range(count)], f"{tag}-sw")
    try:
        _run("ip", "netns", "add", hosts.switch)
        _run("ip", "-n", hosts.switch, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", hosts.switch, "link", "set", "br0", "up")
        for host, name in enumerate(names):
            inner, outer = f"{tag}e{host}", f"{tag}s{host}"
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", inner, "type", "veth", "peer", "name", outer)
            _run("ip", "link", "set", inner, "netns", name)
            _run("ip", "link", "set", outer, "netns", hosts.switch)
            _run("ip", "-n", name, "link", "set", inner, "name", "eth0")
            _run("ip", "-n", name, "addr", "add", f"{hosts.addresses[host]}/24", "dev", "eth0")
            _run("ip", "-n", name, "link", "set", "eth0", "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("ip", "-n", hosts.switch, "link", "set", outer, "master", "br0", "up")
            if rate:
                burst = str(max(16_000, _bits_per_second(rate) // 2000))  # 4 ms: what a 250 Hz clock needs
                shape = ["root", "tbf", "rate", rate, "burst", burst, "latency", "200ms"]
                _run("tc", "-n", name, "qdisc", "add", "dev", "eth0", *shape)
        yield hosts
    finally:
        for name in [*names, hosts.switch]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _bits_per_second(rate: str) -> int:
    found = re.fullmatch(r"(\d+)([mg])bit", rate)
    if not found:
        raise ValueError(f"a rate is whole mbit or gbit, such as 100mbit; found {rate!r}")
    return int(found.group(1)) * {"m": 10**6, "g": 10**9}[found.group(2)]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--rate")
    parser.add_argument("--timeout", type=float, default=3600)
    parser.add_argument("command", nargs="+")
    chosen = parser.parse_args()
    if reason := why_not():
        sys.exit(f"shaped_hosts: {reason}")
    with shaped_hosts(chosen.hosts, chosen.rate) as made:
        for index, text in enumerate(made.run(chosen.command, chosen.timeout)):
            for line in text.splitlines():
                sys.stdout.write(f"[host {index}] {line}\n")
