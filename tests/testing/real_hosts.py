"""Several hosts on one machine that are hosts in all but their kernel: network, processes, host name, /root, /tmp, /run
and /dev/shm of their own; with sshd where it is wanted.

    with real_hosts(2, ssh=True) as hosts:
        hosts.run(0, ["ssh-keyscan", "host-1"])

This machine is on their network, too (`hosts.here`), like somebody's laptop. They have no way to other networks. Every
host sees this source tree (read only) and this Python environment at their own paths; what a host writes into the
environment stays in that host. Needs root and Linux's namespaces. A host ends when its context does, or this process.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_TOOLS = ("ip", "unshare", "nsenter", "mount", "hostname")
_FOR_SSH = ("/usr/sbin/sshd", "ssh", "ssh-keygen")
_OF_THE_HOST = ("/root", "/tmp", "/run", "/dev/shm")
_SYSTEM = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
_OPTIONS = ["UsePAM=no", "StrictModes=no", "PermitRootLogin=yes", "PasswordAuthentication=no", "PidFile=none"]


def why_not(*programs: str, ssh: bool = False) -> str | None:
    """What is missing to make hosts, or None. ssh: hosts with sshd. programs: that a test wants besides."""
    if os.geteuid() != 0:
        return "hosts of namespaces need root"
    tools = [*_TOOLS, *(_FOR_SSH if ssh else ()), *programs]
    if missing := [Path(tool).name for tool in tools if not shutil.which(tool)]:
        return f"needs {', '.join(missing)} (Debian's iproute2, util-linux, openssh-server, rsync, ...)"
    if not re.search(r"\boverlay$", Path("/proc/filesystems").read_text(), re.MULTILINE):
        return "this kernel has no overlay file system"
    link = f"lq{os.getpid()}p"
    probes = (
        ["unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "mount", "-t", "tmpfs", "none", "/mnt"],
        ["ip", "link", "add", link, "type", "bridge"],
        ["ip", "link", "del", link],
    )
    for probe in probes:
        done = subprocess.run(probe, capture_output=True, text=True)
        if done.returncode:
            return f"no hosts of namespaces here: {' '.join(probe)}: {done.stderr.strip()}"
    return None


@dataclass
class _Host:
    unshared: subprocess.Popen[str]
    init: int
    sshd: subprocess.Popen[str] | None = None


@dataclass
class Hosts:
    """names, addresses: of the hosts. here: this machine's address on their network. key: private key that their root
    lets in. folder: of files outside the hosts, which ends with them."""

    names: Sequence[str]
    addresses: Sequence[str]
    here: str
    folder: Path
    _tag: str
    _hosts: dict[int, _Host] = field(default_factory=dict)
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def key(self) -> Path:
        return self.folder / "key"

    def root(self, host: int) -> Path:
        """What the host has at /root, as seen from this machine."""
        return self.folder / self.names[host] / "root"

    def tmp(self, host: int) -> Path:
        """What the host has at /tmp, as seen from this machine."""
        return self.folder / self.names[host] / "tmp"

    def start(
        self,
        host: int,
        command: Sequence[str],
        environment: Mapping[str, str] = {},
        folder: str = "/root",
        **options: object,
    ) -> subprocess.Popen[str]:
        """Start a command on a host, in a folder there. The environment is what is given and `usual_environment`, and
        nothing of this process. Signals for the command are for `send`: what returns is `nsenter`."""
        # A command in a shell's background ignores SIGINT, and so would what it starts.
        entered = [
            "env",
            "--default-signal=INT",
            "nsenter",
            "-t",
            str(self._hosts[host].init),
            "-m",
            "-u",
            "-i",
            "-n",
            "-p",
        ]
        inside = ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", folder, *command]
        process = subprocess.Popen(
            [*entered, *inside], env=usual_environment() | environment, text=True, start_new_session=True, **options
        )
        self._started.append(process)
        return process

    def run(self, host: int, command: Sequence[str], timeout: float = 120, expected: int = 0, **options: object) -> str:
        """What a command said, to its end, on stdout and stderr. Raises RuntimeError where its exit status is another
        than expected, or it takes too long."""
        process = self.start(host, command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
        try:
            said = process.communicate(timeout=timeout)[0]
        except subprocess.TimeoutExpired as error:
            self.send(process, signal.SIGKILL)
            said = process.communicate()[0]
            raise RuntimeError(f"{self.names[host]}: {shlex.join(command)} took {timeout} s:\n{said}") from error
        if process.returncode != expected:
            raise RuntimeError(f"{self.names[host]}: {shlex.join(command)} ended with {process.returncode}:\n{said}")
        return said

    def send(self, process: subprocess.Popen[str], number: int) -> None:
        """Send a signal to what was started, and not to the `nsenter` that waits for it."""
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), number)

    def processes(self, host: int) -> dict[int, str]:
        """Command lines of what runs on a host, by their numbers on this machine; without what makes it a host."""
        everything = self._everything(host)
        del everything[self._hosts[host].init]
        return {number: command for number, command in everything.items() if "sshd -D" not in command}

    def cut(self, host: int) -> None:
        """Take a host off the network."""
        _run("ip", "link", "set", f"{self._tag}h{host}", "down")

    def join(self, host: int) -> None:
        """Put a host that was cut off back on the network."""
        _run("ip", "link", "set", f"{self._tag}h{host}", "up")

    def kill(self, host: int) -> None:
        """Pull a host's plug: all its processes end at once, and it is no host any more."""
        made = self._hosts.pop(host)
        with contextlib.suppress(ProcessLookupError):
            os.kill(made.init, signal.SIGKILL)
        made.unshared.wait()

    def serve_ssh(self, host: int) -> None:
        """Start sshd with a new host key, also where one runs: what a machine has that was replaced by another."""
        made = self._hosts[host]
        if made.sshd:
            self.send(made.sshd, signal.SIGKILL)
            made.sshd.wait()
        key = self.folder / self.names[host] / "host_key"
        for file in (key, key.with_suffix(".pub")):
            file.unlink(missing_ok=True)
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.names[host], "-f", str(key))
        shutil.copy2(key, self.root(host) / ".host_key")
        options = [part for option in [*_OPTIONS, "HostKey=/root/.host_key"] for part in ("-o", option)]
        log = key.parent / "sshd.log"
        serving = ["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", *options]
        made.sshd = self.start(host, serving, stderr=log.open("w"))
        deadline = time.monotonic() + 30
        while "Server listening" not in log.read_text():
            assert made.sshd.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    def _everything(self, host: int) -> dict[int, str]:
        space = _process_space(self._hosts[host].init)
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if command and _process_space(folder.name) == space:  # a zombie has no command line
                    found[int(folder.name)] = command
        return found

    def _make(self, host: int, kept: Sequence[Path]) -> None:
        own = self.folder / self.names[host]
        for name in ("root", "tmp"):
            (own / name).mkdir(parents=True)
        (own / "init").write_text("\n".join(_beginning(self.names[host], own, kept)))
        spaces = ["--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child"]
        unshared = subprocess.Popen(
            ["unshare", *spaces, "bash", str(own / "init")],
            env=usual_environment(),
            stdin=subprocess.PIPE,  # a host ends when nobody holds its other end
            stdout=subprocess.PIPE,
            stderr=(own / "made.log").open("w"),
            text=True,
            start_new_session=True,
        )
        assert unshared.stdout
        said = unshared.stdout.readline().split()
        if said[:1] != ["ready"]:
            unshared.kill()
            unshared.wait()
            raise RuntimeError(f"{self.names[host]} could not be made: {(own / 'made.log').read_text()}")
        self._hosts[host] = _Host(unshared, int(said[1]))
        outer = f"{self._tag}h{host}"
        _run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", said[1])
        _run("ip", "link", "set", outer, "master", f"{self._tag}b", "up")
        for inside in (
            ["ip", "addr", "add", f"{self.addresses[host]}/24", "dev", "eth0"],
            ["ip", "link", "set", "eth0", "up"],
            ["ip", "link", "set", "lo", "up"],
        ):
            self.run(host, inside)

    def _end(self) -> None:
        for host in list(self._hosts):
            self.kill(host)
        for process in self._started:
            if process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
            if process.poll() is None:
                process.kill()
                process.wait()


@contextlib.contextmanager
def real_hosts(
    count: int, ssh: bool = False, shared: Sequence[Path] = (), environment: Mapping[str, str] = {}
) -> Iterator[Hosts]:
    """`count` hosts, named host-0, host-1, ...

    ssh: with sshd, whose root lets `Hosts.key` in. shared: folders of this machine that all of them see, and may write,
    at the same path. environment: of the shells there, besides `usual_environment`, by ~/.bashrc.
    """
    _sweep()
    tag, net = f"lq{os.getpid()}", _free_network()
    folder = Path(tempfile.mkdtemp(prefix=f"lqray-hosts-{os.getpid()}-"))
    names = [f"host-{host}" for host in range(count)]
    hosts = Hosts(names, [f"{net}.{host + 10}" for host in range(count)], f"{net}.1", folder, tag)
    try:
        _run("ip", "link", "add", f"{tag}b", "type", "bridge")
        _run("ip", "addr", "add", f"{hosts.here}/24", "dev", f"{tag}b")
        _run("ip", "link", "set", f"{tag}b", "up")
        lines = [f"{address} {name}" for address, name in zip(hosts.addresses, names, strict=True)]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        (folder / "shadow").write_text("root:*:20000:0:99999:7:::\nsshd:!:20000::::::\n")
        (folder / "shadow").chmod(0o600)
        if ssh:
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(hosts.key))
        for host in range(count):
            hosts._make(host, shared)
            _furnish(hosts.root(host), environment, hosts.key.with_suffix(".pub") if ssh else None)
            if ssh:
                hosts.serve_ssh(host)
        yield hosts
    finally:
        hosts._end()
        _remove_links(lambda pid: pid == os.getpid())
        shutil.rmtree(folder, ignore_errors=True)


def usual_environment() -> dict[str, str]:
    """Of commands on a host: this Python environment's programs, this source tree's modules."""
    return {
        "HOME": "/root",
        "USER": "root",
        "LOGNAME": "root",
        "LANG": "C.UTF-8",
        "PATH": ":".join([str(Path(sys.prefix) / "bin"), *_SYSTEM]),
        "PYTHONPATH": str(ROOT),
        **_FOR_RAY,
    }


_FOR_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "MLFLOW_DISABLE_TELEMETRY": "1"}


def _furnish(home: Path, environment: Mapping[str, str], key: Path | None) -> None:
    """A home whose login shells read .bashrc, as Debian's do."""
    (home / ".profile").write_text('[ -f "$HOME/.bashrc" ] && . "$HOME/.bashrc"\n')
    settings = _FOR_RAY | environment
    (home / ".bashrc").write_text("".join(f"export {key}={shlex.quote(value)}\n" for key, value in settings.items()))
    if key:
        (home / ".ssh").mkdir(mode=0o700)
        shutil.copy(key, home / ".ssh/authorized_keys")


def _beginning(name: str, own: Path, kept: Sequence[Path]) -> Iterator[str]:
    """The script that makes a host in the namespaces in which it is begun, says so, and stays."""
    prefix, python = Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()
    read_only = [ROOT] if python.is_relative_to("/usr") else [ROOT, python]
    yield "set -eu"
    yield "read -r pid _ </proc/self/stat"  # its number outside: /proc is still the machine's
    yield f"hostname {name}"
    # What the host's own folders will hide is put aside before, and put back after.
    yield "mount -t tmpfs none /mnt && mkdir /mnt/environment /mnt/upper /mnt/work"
    yield f"mount --bind {shlex.quote(str(prefix))} /mnt/environment"
    for number, path in enumerate([*read_only, *kept, own]):
        yield f"mkdir /mnt/{number} && mount --bind {shlex.quote(str(path))} /mnt/{number}"
        if path in read_only:
            yield f"mount -o remount,bind,ro /mnt/{number}"
    mine = f"/mnt/{len(read_only) + len(kept)}"
    yield f"mkdir /mnt/outside && mount --bind {shlex.quote(str(own.parent))} /mnt/outside"
    yield f"mount --bind {mine}/root /root && mount --bind {mine}/tmp /tmp && mount -t proc proc /proc"
    yield "mount -t tmpfs none /run && mount -t tmpfs none /dev/shm && mkdir /run/sshd /run/lock"
    yield "mount --bind /mnt/outside/hosts /etc/hosts && mount --bind /mnt/outside/shadow /etc/shadow"
    for number, path in enumerate([*read_only, *kept]):
        if path in kept or any(path.is_relative_to(hidden) for hidden in _OF_THE_HOST) or path == ROOT:
            yield f"mkdir -p {shlex.quote(str(path))} && mount --bind /mnt/{number} {shlex.quote(str(path))}"
    place = shlex.quote(str(prefix))
    yield f"mkdir -p {place}"
    yield f"mount -t overlay -o lowerdir=/mnt/environment,upperdir=/mnt/upper,workdir=/mnt/work overlay {place}"
    yield "cd / && umount -l /mnt"
    yield 'echo "ready $pid"'
    yield "exec >/dev/null; while read -r _; do :; done"  # bash reaps the processes of others that it inherits


def _process_space(number: int | str) -> str:
    return str(Path(f"/proc/{number}/ns/pid").readlink())


def _free_network() -> str:
    taken = subprocess.run(["ip", "-4", "-o", "addr"], check=True, capture_output=True, text=True).stdout
    for shift in range(250):
        net = f"10.79.{(os.getpid() + shift) % 250}"
        if f" {net}." not in taken:
            return net
    raise RuntimeError("no free network in 10.79.0.0/16")


def _sweep() -> None:
    """Remove the links and folders of processes that were killed before they could."""
    _remove_links(lambda pid: not Path(f"/proc/{pid}").exists())
    for folder in Path(tempfile.gettempdir()).glob("lqray-hosts-*"):
        number = folder.name.split("-")[2]
        if number.isdigit() and not Path(f"/proc/{number}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _remove_links(of: Callable[[int], bool]) -> None:
    """Those of some processes, by their numbers: the kernel takes those of a network that has ended away some time
    later."""
    links = subprocess.run(["ip", "-o", "link"], check=True, capture_output=True, text=True).stdout
    for name, pid in re.findall(r"^\d+: (lq(\d+)[bhp]\d*)[@:]", links, re.MULTILINE):
        if of(int(pid)):
            subprocess.run(["ip", "link", "del", name], capture_output=True)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
