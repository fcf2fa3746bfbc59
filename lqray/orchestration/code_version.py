"""Which code of lqray a process has."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

import lqray

_TRAINING_ROOMS = ("experiment", "ops", "quantization", "communication", "training", "orchestration/worker")
_WORKER_PARTS = (
    *("code_version", "failures", "private_folder", "queue/stop_rules"),
    *("launchers/ray/channel", "launchers/ray/group", "launchers/ray/loopback_groups"),
)
"""Of orchestration, what workers have besides."""


def digest_of(folder: Path, files: Iterable[Path]) -> str:
    """12 hexadecimal digits of the SHA-256 of files below a folder. Hidden files are an editor's, and no code; one that
    is gone meanwhile is a difference of its own."""
    digest = hashlib.sha256()
    for file in sorted(files):
        name = file.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue
        digest.update(f"{name}\0".encode())
        with suppress(FileNotFoundError):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


@cache
def code_version() -> str:
    """See `digest_of`: of lqray's own Python files, as this process found them."""
    return digest_of(package_folder(), package_folder().rglob("*.py"))


@cache
def training_code() -> str:
    """As `code_version`, of the files that training runs: what a launch and its workers must have in common."""
    folder = package_folder()
    files = [file for room in _TRAINING_ROOMS for file in (folder / room).rglob("*.py")]
    files += [folder / "orchestration" / f"{part}.py" for part in _WORKER_PARTS]
    return digest_of(folder, files)


def package_folder() -> Path:
    """Of lqray, as this process has it."""
    return Path(lqray.__file__).resolve().parent
