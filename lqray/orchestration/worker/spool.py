"""What a store does not have yet of a run, kept beside its checkpoints.

A file of lines of JSON: the first names trial and run, counts the points and gives the SHA-256 of the lines that
follow, one for each point. Earlier versions wrote no first line. What is damaged, or of another run, is never recorded:
it is renamed, and so are the checkpoints that it belongs to, where the store may lack what led to them. The run goes on
from an earlier one, or from its beginning, and measures that again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import torch

from lqray.orchestration.worker.points import Point
from lqray.training.checkpoint import CheckpointError, read_checkpoint
from lqray.training.storage import Folder, StorageAwayError

SPOOL = "undelivered.jsonl"
_FORMAT = "undelivered points 1"


class _UnfitSpoolError(ValueError):
    pass


def write_spool(folder: Folder, trial_id: str, run_id: str, points: Sequence[Point]) -> None:
    """In place of the one before. Raises CheckpointError where the folder cannot be written, StorageAwayError."""
    lines = [(json.dumps(vars(point)) + "\n").encode() for point in points]
    digest = hashlib.sha256(b"".join(lines)).hexdigest()
    first = {"format": _FORMAT, "trial": trial_id, "run": run_id, "points": len(lines), "sha256": digest}
    try:
        if points:
            folder.write(SPOOL, (json.dumps(first) + "\n").encode(), *lines)
        else:
            folder.remove(SPOOL)
    except StorageAwayError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"metrics that the store does not have yet cannot be kept in {folder}: {error}; free space there or choose "
            "another folder"
        ) from error


def read_spool(folder: Folder, trial_id: str, run_id: str, recorded: int) -> tuple[list[Point], str]:
    """The points that are kept for a run; and a word for the user where they had to be set aside. recorded: the last
    step that the store has of the run. Raises StorageAwayError."""
    try:
        return _points(folder.read(SPOOL), trial_id, run_id), ""
    except FileNotFoundError:
        if not _is_there(folder):
            return [], ""
        wrong = "it is a link to nothing"
    except StorageAwayError:
        raise
    except (OSError, _UnfitSpoolError) as error:
        wrong = str(error)
    aside = [_set_aside(folder, SPOOL), *(_set_aside(folder, name) for name in _later(folder, recorded))]
    return [], (
        f"{folder}/{SPOOL} is not used: {wrong}. Metrics that were waiting there are measured again, from the last "
        f"checkpoint up to step {recorded}, or from the beginning; kept there, for you to look at or remove: "
        f"{', '.join(aside)}"
    )


def _points(content: bytes, trial_id: str, run_id: str) -> list[Point]:
    """Raises _UnfitSpoolError."""
    first, _, rest = content.partition(b"\n")
    header = _parsed(first)
    if "format" not in header:
        if not content.endswith(b"\n"):
            raise _UnfitSpoolError("its last line is cut off")
        return [_point(line) for line in content.splitlines()]
    if header["format"] != _FORMAT:
        raise _UnfitSpoolError(f"its format is {header['format']!r}, this version writes {_FORMAT!r}")
    if (header.get("trial"), header.get("run")) != (trial_id, run_id):
        raise _UnfitSpoolError(
            f"it is of trial {header.get('trial')}, run {header.get('run')}; this is trial {trial_id}, run {run_id}"
        )
    if hashlib.sha256(rest).hexdigest() != header.get("sha256"):
        raise _UnfitSpoolError("it is truncated or was changed: its checksum differs")
    return [_point(line) for line in rest.splitlines()]


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:  # UnicodeDecodeError is one
        raise _UnfitSpoolError("a line is cut off or damaged") from None
    if not isinstance(found, dict):
        raise _UnfitSpoolError("a line is no point of metrics")
    return found


def _point(line: bytes) -> Point:
    found = _parsed(line)
    metrics = found.get("metrics")
    whole = (
        set(found) == {"step", "time", "metrics"}
        and isinstance(found["step"], int)
        and isinstance(found["time"], int)
        and isinstance(metrics, dict)
        and all(isinstance(value, int | float) for value in metrics.values())
    )
    if not whole:
        raise _UnfitSpoolError("a line is no point of metrics")
    return Point(**found)


def _later(folder: Folder, recorded: int) -> list[str]:
    """Checkpoints after more steps than the store has metrics of."""
    later = []
    for name in (*folder.names("step-*.pt"), *folder.names("best.pt")):
        number = name.removeprefix("step-").removesuffix(".pt")
        try:
            steps = (
                int(number)
                if number.isdigit()
                else read_checkpoint(f"{folder}/{name}", torch.device("cpu"))["iteration"]
            )
        except (CheckpointError, OSError):
            continue  # nothing continues from that
        if steps > recorded:
            later.append(name)
    return later


def _is_there(folder: Folder) -> bool:
    return SPOOL in folder.names("undelivered*")


def _set_aside(folder: Folder, name: str) -> str:
    """Rename what must not be used; its new name. Raises CheckpointError."""
    other = f"unused-{os.urandom(4).hex()}-{name}"
    try:
        folder.rename(name, other)
    except StorageAwayError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"{folder}/{name} must not be used and cannot be renamed: {error}; move it away"
        ) from error
    return other
