"""A PostgreSQL server of the tests' own, run as the user postgres (initdb refuses root)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.testing.object_store import free_port


def _programs() -> Path | None:
    """Debian keeps them out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).resolve().parent if on_path else None


def why_not() -> str | None:
    """What is missing, or None."""
    if _programs() is None:
        return "no PostgreSQL here (Debian's postgresql)"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed"
    if os.geteuid() == 0 and subprocess.run(["runuser", "-u", "postgres", "true"], capture_output=True).returncode:
        return "this is root, as whom PostgreSQL refuses to run, and there is no user postgres"
    return None


class Server:
    """A server on a folder of its own. uri: of its empty database, with a password."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self.uri = f"postgresql+psycopg://lqray:secret-word@127.0.0.1:{self._port}/postgres"
        (folder / "password").write_text("secret-word\n")
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
            shutil.chown(folder / "password", "postgres")
        self._run(
            *("initdb", "--pgdata", f"{folder}/data", "--username", "lqray", "--pwfile", "password"),
            *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync"),
        )

    def start(self) -> None:
        """Also after `kill`: it recovers what was committed."""
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self._folder}"
        self._control("--log", f"{self._folder}/log.txt", "--options", options, "start")

    def stop(self) -> None:
        """Its connections are cut."""
        self._control("--mode", "immediate", "stop")

    def kill(self) -> None:
        """SIGKILL of the postmaster; its children end when they notice."""
        file = self._folder / "data/postmaster.pid"
        os.kill(int(file.read_text().split()[0]), signal.SIGKILL)

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "--pgdata", f"{self._folder}/data", "-w", *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        programs = _programs()
        assert programs
        as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        command = [*as_user, str(programs / program), *arguments]
        done = subprocess.run(command, cwd=self._folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def server() -> Iterator[Server]:
    """A server that runs; it ends with the context, and its folder goes."""
    # Below pytest's own folder only root may look.
    with tempfile.TemporaryDirectory(prefix="lqray-pg-") as name:
        one = Server(Path(name))
        one.start()
        try:
            yield one
        finally:
            one.stop()


@contextmanager
def postgresql() -> Iterator[str]:
    """The URI of an empty database, with a password; the server ends with the context, and its folder goes."""
    with server() as one:
        yield one.uri
