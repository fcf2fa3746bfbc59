"""A PostgreSQL server of the tests' own, run as the user postgres (initdb refuses root)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.object_store import free_port


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


@contextmanager
def postgresql() -> Iterator[str]:
    """The URI of an empty database, with a password; the server ends with the context, and its folder goes."""
    programs = _programs()
    assert programs
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    port = free_port()
    # Below pytest's own folder only root may look.
    with tempfile.TemporaryDirectory(prefix="lqray-pg-") as name:
        folder = Path(name)
        (folder / "password").write_text("secret-word\n")
        if as_user:
            shutil.chown(folder, "postgres")
            shutil.chown(folder / "password", "postgres")

        def run(*command: str) -> None:
            done = subprocess.run([*as_user, *command], cwd=folder, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr

        run(
            *(f"{programs}/initdb", "--pgdata", f"{folder}/data", "--username", "lqray", "--pwfile", "password"),
            *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync"),
        )
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
        pg_ctl = (f"{programs}/pg_ctl", "--pgdata", f"{folder}/data", "--log", f"{folder}/log.txt", "-w")
        run(*pg_ctl, "--options", options, "start")
        try:
            yield f"postgresql+psycopg://lqray:secret-word@127.0.0.1:{port}/postgres"
        finally:
            run(*pg_ctl, "--mode", "immediate", "stop")
