"""Where a run comes from: code, machine, command."""

from __future__ import annotations

import getpass
import importlib.metadata
import os
import platform
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from lqray.experiment.secrets import is_secret_file, masked
from lqray.orchestration import hardware
from lqray.orchestration.code_version import code_version, package_folder
from lqray.orchestration.invocation import command
from lqray.orchestration.signals import starting_processes
from lqray.orchestration.submitted import Sender, Submitted, sender, submitted
from lqray.store.tags import (
    CODE,
    COMMAND,
    GIT_COMMIT,
    GIT_DIRTY,
    HOST,
    MACHINE,
    MLFLOW,
    PYTHON,
    RAY,
    SUBMITTED_FROM,
    TORCH,
    VERSION,
)

_GIT_SECONDS = 30.0
"""Enough for the state of a large repository whose files nobody has looked at lately."""
_MOST_CHANGES = 2**20


def provenance(file: str | None = None) -> dict[str, str]:
    """Tags of the process that launches: git commit and dirty flag of lqray's code, versions, host and what it is
    made of, command. In a job of `lqray submit`, user and command are those of whoever submitted it, and so is the
    commit of code that was sent.

    file: of the experiment. The MLflow UI's source is the commit of the project that it is kept in; lqray's, where that
    has none.
    """
    sent, by = submitted() or Submitted(), sender()
    tags = {
        VERSION: _version("lqray"),
        CODE: code_version(),
        PYTHON: platform.python_version(),
        HOST: socket.gethostname(),
        MACHINE: hardware.machine(),
        COMMAND: by.command or masked(command()),
        "mlflow.user": by.user or _user(),
    }
    if by.host:
        tags[SUBMITTED_FROM] = by.host
    for key in (TORCH, RAY, MLFLOW):
        tags[key] = _version(key.removeprefix("lqray."))
    commit, dirty = (sent.commit, sent.dirty) if sent.code else _commit(package_folder())
    if commit:
        tags[GIT_COMMIT], tags[GIT_DIRTY] = commit, dirty
    project = (_git(Path(file).absolute().parent, "rev-parse", "HEAD") if file else None) or commit
    if project:
        tags["mlflow.source.git.commit"] = project
    return tags


def running_code() -> str:
    """Which lqray this process is, in a line that `lqray submit` looks for in a job's log: see `CODE_LINE`."""
    machine = f"Python {platform.python_version()}, Ray {_version('ray')}, on {socket.gethostname()}"
    return f"lqray {_version('lqray')}, code {code_version()}, from {package_folder()}; {machine}"


CODE_LINE = re.compile(
    r"(?m)^lqray .+, code (?P<code>[0-9a-f]{12}), from (?P<place>.+); Python (?P<python>\S+), Ray .+, on \S+$"
)


def origin(package: Path) -> Submitted:
    """Of lqray's code in a folder, which is to be sent; its digest is for who sends it."""
    commit, dirty = _commit(package)
    return Submitted(commit=commit, dirty=dirty, changes=masked(_changes(package)))


def this_sender() -> Sender:
    """Of what this process submits."""
    return Sender(_user(), socket.gethostname(), masked(command()))


def code_changes() -> str:
    """What differs from the last commit in lqray's code, as a diff; files that git does not know are part of it. ""
    without a difference, or without git. Of code that was sent to this job: what its sender saw."""
    sent = submitted()
    return sent.changes if sent and sent.code else _changes(package_folder())


def _changes(folder: Path) -> str:
    if _git(folder, "status", "--porcelain", ".") == "":
        return ""
    place = _git(folder, "rev-parse", "--absolute-git-dir")
    if not place:
        return ""
    index = Path(place) / "index"
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "index"  # the user's own stays as it is
        if index.is_file():
            shutil.copyfile(index, copy)
        environment = os.environ | {"GIT_INDEX_FILE": str(copy)}
        _git(folder, "add", "--intent-to-add", ".", environment=environment)
        changed = _git(folder, "diff", "HEAD", "--name-only", "-z", "--relative", "--", ".", environment=environment)
        if changed is None:
            return ""
        # Whoever reads the store reads this.
        secret = [f":(exclude,literal){name}" for name in changed.split("\0") if is_secret_file(name)]
        changes = _git(folder, "diff", "HEAD", "--", ".", *secret, environment=environment) or ""
    if len(changes.encode()) > _MOST_CHANGES:
        kept = changes.encode()[:_MOST_CHANGES].decode(errors="ignore")
        return f"{kept}\n[cut by lqray after 1 MiB; the whole diff has {len(changes.encode())} bytes]\n"
    return changes + "\n" if changes else ""


def _commit(folder: Path) -> tuple[str, str]:
    """(hash of the last commit, whether anything differs from it: true, false, or unknown where git takes too long);
    "" where there is no git."""
    commit = _git(folder, "rev-parse", "HEAD") or ""
    status = _git(folder, "status", "--porcelain") if commit else None
    return commit, "" if not commit else "unknown" if status is None else str(bool(status)).lower()


def _git(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str | None:
    """What it says; None where it fails."""
    asked = ["git", "-C", str(folder), *arguments]
    try:
        with starting_processes():
            done = subprocess.run(
                asked,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_GIT_SECONDS,
                env=environment,
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str:
    """That is installed; lqray itself may only have been sent."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
