"""Checkpoints: files that a run continues from, bit for bit.

A file is a line that says what it is, the SHA-256 of the rest, and the rest: a dict saved by torch, which holds only
tensors and plain data. It is written aside, synced and renamed, so that a name stands for a whole file.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_FIRST_LINE = b"lqray checkpoint 1\n"
_DIGEST = hashlib.sha256().digest_size


class CheckpointError(RuntimeError):
    """A checkpoint that does not belong to this run, or that cannot be written."""


class CorruptCheckpointError(CheckpointError):
    """A file that is not a whole checkpoint."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one trial in one folder, which all its processes see.

    every: iterations from one to the next; the end of the run is always one. keep: how many of the last stay. The one
    with the best test accuracy stays, too, as best.pt.
    """

    folder: Path
    every: int = 1000
    keep: int = 2
    before_save: Callable[[], None] | None = None
    """Called on rank 0 before it writes: what must not be later than the checkpoint on disk."""

    def save(
        self, trial: str, iteration: int, shared: Any, own: Any, group: dist.ProcessGroup, best: bool = False
    ) -> None:
        """Write what all ranks have equal, `shared`, and what is each rank's `own`. Collective; rank 0 writes.

        trial: its id. best: as best.pt, beside the others. Raises CheckpointError where the folder cannot be written.
        """
        owns = _gathered(own, group)
        if group.rank() != 0:
            return
        if self.before_save:
            self.before_save()
        body = _packed({"trial": trial, "iteration": iteration, "shared": shared, "ranks": owns})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".*.tmp"):  # of a run that was killed while writing
                left.unlink(missing_ok=True)
            _write_whole(self.folder / ("best.pt" if best else f"step-{iteration:010d}.pt"), body)
        except OSError as error:
            raise CheckpointError(
                f"no checkpoint can be written to {self.folder}: {error}; free space there or choose another folder"
            ) from error
        for old in self._files()[self.keep :]:
            old.unlink(missing_ok=True)

    def load(self, trial: str, group: dist.ProcessGroup, device: torch.device) -> tuple[int, Any, Any] | None:
        """(iteration, shared, own) of the newest whole checkpoint, None without any. Collective.

        A corrupt one is passed over with a warning. Raises CheckpointError for one of another trial or of another
        number of processes.
        """
        chosen: list[str | None] = [None]
        if group.rank() == 0:
            chosen = [self._newest_whole()]
        dist.broadcast_object_list(chosen, group=group, group_src=0)
        if chosen[0] is None:
            return None
        file = self.folder / chosen[0]
        document = read_checkpoint(file, device)
        if document["trial"] != trial:
            raise CheckpointError(
                f"{file} is of trial {document['trial']}, this is {trial}: another configuration. Choose another "
                "folder, or remove this one to start anew"
            )
        if len(document["ranks"]) != group.size():
            raise CheckpointError(
                f"{file} was written by {len(document['ranks'])} processes, now there are {group.size()}; continue "
                "with as many, or remove the folder to start anew"
            )
        return document["iteration"], document["shared"], document["ranks"][group.rank()]

    def _newest_whole(self) -> str | None:
        for file in self._files():
            try:
                read_checkpoint(file, torch.device("cpu"))
            except CorruptCheckpointError as error:
                warnings.warn(f"{error}; falling back to the checkpoint before", stacklevel=4)
            else:
                return file.name
        return None

    def _files(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("step-*.pt"), reverse=True)


def read_checkpoint(file: Path, device: torch.device) -> dict[str, Any]:
    """{"trial", "iteration", "shared", "ranks"}, tensors on a device. Raises CorruptCheckpointError for a file that is
    truncated or changed, or is no checkpoint of lqray."""
    content = file.read_bytes()
    start = len(_FIRST_LINE) + _DIGEST
    if not content.startswith(_FIRST_LINE) or len(content) <= start:
        raise CorruptCheckpointError(f"{file} is not a checkpoint of lqray, or only its beginning")
    body = content[start:]
    if hashlib.sha256(body).digest() != content[len(_FIRST_LINE) : start]:
        raise CorruptCheckpointError(f"{file} is truncated or was changed: its checksum differs")
    document: dict[str, Any] = torch.load(io.BytesIO(body), map_location=device, weights_only=True)
    return document


def _packed(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _gathered(own: Any, group: dist.ProcessGroup) -> list[Any]:
    """Every rank's `own`, on rank 0; elsewhere an empty list."""
    if group.size() == 1:
        return [own]
    packed: list[Any] = [None] * group.size()
    dist.gather_object(_packed(own), packed if group.rank() == 0 else None, group=group, group_dst=0)
    if group.rank() != 0:
        return []
    return [torch.load(io.BytesIO(part), map_location="cpu", weights_only=True) for part in packed]


def _write_whole(file: Path, body: bytes) -> None:
    aside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with aside.open("wb") as stream:
        stream.write(_FIRST_LINE + hashlib.sha256(body).digest())
        stream.write(body)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
