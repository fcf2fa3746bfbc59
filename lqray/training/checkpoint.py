"""Checkpoints: files that a run continues from, bit for bit.

A file is a line that says what it is, the SHA-256 of the rest, and the rest: a dict saved by torch, which holds only
tensors and plain data. It is written whole or not at all (`lqray.training.storage`).
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lqray.training.storage import Folder, StorageAwayError, open_folder

_FIRST_LINE = b"lqray checkpoint 1\n"
_DIGEST = hashlib.sha256().digest_size


class CheckpointError(RuntimeError):
    """A checkpoint that does not belong to this run, or that cannot be written."""


class CheckpointStorageAwayError(CheckpointError):
    """The object store that checkpoints are written to does not answer."""


class CorruptCheckpointError(CheckpointError):
    """A file that is not a whole checkpoint."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one trial in one folder, which all its processes see: a path, or the URI of a prefix in an
    object store.

    every: iterations from one to the next; the end of the run is always one. keep: how many of the last stay. The one
    with the best test accuracy stays, too, as best.pt.
    """

    folder: Path | str
    every: int = 1000
    keep: int = 2
    before_save: Callable[[], None] | None = None
    """Called on rank 0 before it writes: what must not be later than the checkpoint on disk."""

    @cached_property
    def _place(self) -> Folder:
        return open_folder(self.folder)

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
            self._place.tidy()
            name = "best.pt" if best else f"step-{iteration:010d}.pt"
            self._place.write(name, _FIRST_LINE + hashlib.sha256(body).digest(), body)
            for old in self._names()[self.keep :]:
                self._place.remove(old)
        except StorageAwayError as error:
            raise CheckpointStorageAwayError(f"no checkpoint can be written to {self.folder}: {error}") from error
        except OSError as error:
            raise CheckpointError(
                f"no checkpoint can be written to {self.folder}: {error}; free space there or choose another folder"
            ) from error

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
        file = f"{self.folder}/{chosen[0]}"
        document = _document(file, self._read(chosen[0]), device)
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
        try:
            names = self._names()
        except OSError as error:
            raise CheckpointStorageAwayError(f"{self.folder} cannot be looked into: {error}") from error
        for name in names:
            try:
                _document(f"{self.folder}/{name}", self._read(name), torch.device("cpu"))
            except CorruptCheckpointError as error:
                warnings.warn(f"{error}; falling back to the checkpoint before", stacklevel=4)
            else:
                return name
        return None

    def _read(self, name: str) -> bytes:
        try:
            return self._place.read(name)
        except StorageAwayError as error:
            raise CheckpointStorageAwayError(f"{name} cannot be read: {error}") from error

    def _names(self) -> list[str]:
        """Newest first."""
        return self._place.names("step-*.pt")[::-1]


def read_checkpoint(file: Path | str, device: torch.device) -> dict[str, Any]:
    """{"trial", "iteration", "shared", "ranks"}, tensors on a device. file: a path or a URI. Raises
    CorruptCheckpointError for a file that is truncated or changed, or is no checkpoint of lqray."""
    folder, _, name = str(file).rpartition("/")
    return _document(str(file), open_folder(folder or ".").read(name), device)


def _document(file: str, content: bytes, device: torch.device) -> dict[str, Any]:
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
