"""An sshd of a test's own on 127.0.0.1, and an ssh whose user has a configuration of the test's own."""

from __future__ import annotations

import getpass
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.testing.heads import free_port

_SSHD = "/usr/sbin/sshd"


def why_not() -> str | None:
    """What is missing for it, or None."""
    missing = [tool for tool in (_SSHD, "ssh", "ssh-keygen") if not shutil.which(tool)]
    return f"needs {', '.join(missing)} (Debian's openssh-server)" if missing else None


class Server:
    """folder: the server's. key: lets this user in. user: who that is."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.user, self.port = folder, getpass.getuser(), free_port()
        self.key = make_key(folder / "key")
        self._ssh = shutil.which("ssh")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """With a new host key, also where it runs already."""
        self.stop()
        host_key = make_key(self.folder / "host_key")
        Path("/run/sshd").mkdir(exist_ok=True) if self.user == "root" else None
        options = ["UsePAM=no", "StrictModes=no", "PidFile=none", "ListenAddress=127.0.0.1", f"HostKey={host_key}"]
        options += [f"AuthorizedKeysFile={self.key}.pub", "PermitRootLogin=yes"]
        arguments = [part for option in options for part in ("-o", option)]
        log = self.folder / "sshd.log"
        command = [_SSHD, "-D", "-e", "-f", "/dev/null", "-p", str(self.port), *arguments]
        self._process = subprocess.Popen(command, stderr=log.open("w"))
        deadline = time.monotonic() + 30
        while "Server listening" not in log.read_text():
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def ssh(self, *lines: str) -> Path:
        """A folder with an `ssh`, for PATH, whose user has these lines in his configuration, and known_hosts in
        `folder`."""
        program = self.folder / "bin/ssh"
        program.parent.mkdir(exist_ok=True)
        own = [
            f"Port {self.port}",
            f'UserKnownHostsFile "{self.folder}/known_hosts"',
            "BatchMode yes",
            "IdentityAgent none",
        ]
        (self.folder / "config").write_text("\n".join([*lines, *own, ""]))
        program.write_text(f'#!/bin/sh\nexec {self._ssh} -F "{self.folder}/config" "$@"\n')
        program.chmod(0o755)
        return program.parent


def make_key(path: Path) -> Path:
    """A new key, in place of one that there is."""
    path.unlink(missing_ok=True)
    Path(f"{path}.pub").unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


@contextmanager
def sshd(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
