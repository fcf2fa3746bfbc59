"""Where a run comes from: code, machine, command."""

from __future__ import annotations

import getpass
import hashlib
import importlib.metadata
import platform
import shlex
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

import lqray
from lqray.experiment.secrets import masked


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
    digest = hashlib.sha256()
    folder = Path(lqray.__file__).resolve().parent
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _git(*arguments: str) -> str:
    folder = Path(lqray.__file__).resolve().parent
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"
