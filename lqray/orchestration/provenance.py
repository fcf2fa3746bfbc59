"""Where a run comes from: code, machine, command."""

from __future__ import annotations

import getpass
import hashlib
import importlib.metadata
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import lqray
from lqray.experiment.secrets import is_secret_file, masked
from lqray.orchestration.signals import starting_processes

_TRAINING_ROOMS = ("experiment", "ops", "quantization", "communication", "training")
_WORKER_PARTS = (
    *("channel", "failures", "fencing", "group", "loopback_groups", "points", "private_folder", "rank_logs", "spool"),
    *("stop_rules", "system_metrics", "worker"),
)


def provenance() -> dict[str, str]:
    """Tags of the process that launches: git commit and dirty flag of lqray's code, versions, host, command."""
    tags = {
        "lqray.version": importlib.metadata.version("lqray"),
        "lqray.code": code_version(),
        "lqray.python": platform.python_version(),
        "lqray.host": socket.gethostname(),
        "lqray.command": masked(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "mlflow.user": _user(),
    }
    for package in ("torch", "ray", "mlflow"):
        tags[f"lqray.{package}"] = importlib.metadata.version(package)
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags["lqray.git_commit"] = tags["mlflow.source.git.commit"] = commit
        tags["lqray.git_dirty"] = str(bool(_git("status", "--porcelain"))).lower()
    return tags


@cache
def code_version() -> str:
    """12 hexadecimal digits of the SHA-256 of lqray's own Python files, as this process found them."""
    folder = Path(lqray.__file__).resolve().parent
    return _digest(folder, sorted(folder.rglob("*.py")))


@cache
def training_code() -> str:
    """As `code_version`, of the files that training runs: what a launch and its workers must have in common."""
    folder = Path(lqray.__file__).resolve().parent
    files = [file for room in _TRAINING_ROOMS for file in (folder / room).rglob("*.py")]
    files += [folder / "orchestration" / f"{part}.py" for part in _WORKER_PARTS]
    return _digest(folder, sorted(files))


def _digest(folder: Path, files: Sequence[Path]) -> str:
    """Hidden files are an editor's, and no code; one that is gone meanwhile is a difference of its own."""
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue
        digest.update(f"{name}\0".encode())
        with suppress(FileNotFoundError):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def code_changes() -> str:
    """What differs from the last commit in lqray's code, as a diff; files that git does not know are part of it. ""
    without a difference, or without git."""
    if not _git("status", "--porcelain"):
        return ""
    index = Path(_git("rev-parse", "--absolute-git-dir")) / "index"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "index"  # the user's own stays as it is
        if index.is_file():
            shutil.copyfile(index, copy)
        environment = os.environ | {"GIT_INDEX_FILE": str(copy)}
        _git("add", "--intent-to-add", ".", environment=environment)
        changed = _git("diff", "HEAD", "--name-only", "-z", "--relative", "--", ".", environment=environment)
        # Whoever reads the store reads this.
        secret = [f":(exclude,literal){name}" for name in changed.split("\0") if is_secret_file(name)]
        changes = _git("diff", "HEAD", "--", ".", *secret, environment=environment)
    return changes + "\n" if changes else ""


def _git(*arguments: str, environment: Mapping[str, str] | None = None) -> str:
    folder = Path(lqray.__file__).resolve().parent
    command = ["git", "-C", str(folder), *arguments]
    try:
        with starting_processes():
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=10, env=environment, check=False
            )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
