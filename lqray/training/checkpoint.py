"""Checkpoints: files that a run continues from, bit for bit.

Each is written whole or not at all (`lqray.training.storage`), in one form (`lqray.training.checkpoint_file`). What is
found that cannot be continued from gets another name and stays.
"""

from __future__ import annotations

import errno
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lqray.training.checkpoint_file import (
    CheckpointError,
    CheckpointVersionError,
    CorruptCheckpointError,
    check_ends,
    document_of,
    packed,
    read_checkpoint,
    written_form,
)
from lqray.training.storage import Folder, NoSpaceError, StorageAwayError, open_folder

__all__ = [
    "CheckpointError",
    "CheckpointStorageAwayError",
    "CheckpointVersionError",
    "Checkpoints",
    "CorruptCheckpointError",
    "newest_first",
    "read_checkpoint",
]

BEST = "best.pt"
_STEP = re.compile(r"step-(\d+)\.pt")
_NO_FILE = {errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.ENOENT, errno.ENXIO}
"""Of reading what is no file: a folder, a link to itself or to nothing, a pipe. Other errors may pass."""


class CheckpointStorageAwayError(CheckpointError):
    """The object store that checkpoints are written to does not answer."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one trial in one folder, which all its processes see: a path, or the URI of a prefix in an
    object store.

    every: iterations from one to the next; the end of the run is always one. keep: how many of the last stay. The one
    with the best headline metric stays, too, as best.pt. run: what tells the run apart that they are of, in MLflow its
    id; None for one that nobody records. continued: whether the run was begun before; then those that do not name any
    run, as earlier versions wrote them, are its own.

    What does not pass its check is renamed broken-*, what another run wrote foreign-*: neither is continued from,
    counted or removed.
    """

    folder: Path | str
    every: int = 1000
    keep: int = 2
    before_save: Callable[[], None] | None = None
    """Called on rank 0 before it writes: what must not be later than the checkpoint on disk."""
    run: str | None = None
    continued: bool = True

    @cached_property
    def _place(self) -> Folder:
        return open_folder(self.folder)

    @cached_property
    def _own(self) -> set[str]:
        """Names of whole checkpoints of this run: seen by `load`, or written."""
        return set()

    @cached_property
    def _remarks(self) -> list[str]:
        return []

    def take_remarks(self) -> tuple[str, ...]:
        """What a user should know of the checkpoints that were found, said once; on rank 0."""
        said = tuple(self._remarks)
        self._remarks.clear()
        return said

    def save(
        self, trial: str, iteration: int, shared: Any, own: Any, group: dist.ProcessGroup, best: bool = False
    ) -> None:
        """Write what all ranks have equal, `shared`, and what is each rank's `own`. Collective; rank 0 writes.

        trial: its id. best: as best.pt, beside the others. Raises CheckpointError where the folder cannot be written,
        NoSpaceError where there is no room.
        """
        owns = _gathered(own, group)
        if group.rank() != 0:
            return
        if self.before_save:
            self.before_save()
        document = {"trial": trial, "iteration": iteration, "shared": shared, "ranks": owns, "run": self.run}
        name = BEST if best else f"step-{iteration:010d}.pt"
        try:
            self._place.tidy()
            self._write(name, document)
        except StorageAwayError as error:
            raise CheckpointStorageAwayError(f"no checkpoint can be written to {self.folder}: {error}") from error
        except NoSpaceError:
            raise
        except OSError as error:
            raise CheckpointError(
                f"no checkpoint can be written to {self.folder}: {error}; free space there or choose another folder"
            ) from error
        self._own.add(name)
        self._remove_before(iteration)

    def load(self, trial: str, group: dist.ProcessGroup, device: torch.device) -> tuple[int, Any, list[Any]] | None:
        """(iteration, shared, own of each rank that wrote it) of the newest whole checkpoint of this run, best.pt where
        no other is whole; None without any. Collective.

        One that is corrupt or cannot be read, whatever is wrong with it, is passed over with a warning, and so is one
        of another run. Raises CheckpointError for one of another trial, CheckpointVersionError for one in another form.
        """
        chosen: list[str | None] = [None]
        if group.rank() == 0:
            chosen = [self._newest_whole()]
        dist.broadcast_object_list(chosen, group=group, group_src=0)
        if chosen[0] is None:
            return None
        file = f"{self.folder}/{chosen[0]}"
        document = self._chosen(chosen[0], group.rank(), device)
        if document["trial"] != trial:
            raise CheckpointError(
                f"{file} is of trial {document['trial']}, this is {trial}: another configuration. Choose another "
                "folder, or remove this one to start anew"
            )
        return document["iteration"], document["shared"], document["ranks"]

    def _newest_whole(self) -> str | None:
        """Look at all that is there; what is not this run's, or not whole, is set aside."""
        try:
            names = newest_first(self._place)
        except OSError as error:
            raise CheckpointStorageAwayError(f"{self.folder} cannot be looked into: {error}") from error
        wrong: dict[str, Exception] = {}
        for name in names:  # all of them before any gets another name: one in another form leaves all as it is
            try:
                check_ends(self._place, name)
            except (CorruptCheckpointError, OSError) as error:
                wrong[name] = error
        unread: list[OSError] = []
        whole = [name for name in names if self._is_continued_from(name, wrong.get(name), unread)]
        if whole:
            return whole[0]
        if unread:
            hint = "make it readable, or move it away to start anew"
            kind = CheckpointError if isinstance(unread[0], PermissionError) else CheckpointStorageAwayError
            raise kind(f"no checkpoint in {self.folder} can be read: {unread[0]}; {hint}") from unread[0]
        if names:
            self._say(f"{self.folder} has no whole checkpoint of this run: it starts anew")
        return None

    def _is_continued_from(self, name: str, wrong: Exception | None, unread: list[OSError]) -> bool:
        """Whether it could be; if not, that is said. unread: takes the error of one that may be whole."""
        file, back = f"{self.folder}/{name}", "falling back to the checkpoint before"
        try:
            if wrong:
                raise wrong
            document = document_of(file, self._place.read(name), torch.device("cpu"))
        except (CorruptCheckpointError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_FILE:
                unread.append(error)
                self._say(f"{file} cannot be read, and stays: {error}; {back}")
            else:
                text = str(error) if isinstance(error, CheckpointError) else f"{file} is no checkpoint: {error}"
                self._say(f"{text}{self._set_aside(name, 'broken')}; {back}")
            return False
        written_by = document.get("run")
        if self.run is not None and self._is_foreign(document):
            kept = self._set_aside(name, _foreign(written_by))
            whose = f"run {written_by}" if written_by else "a run that it does not name"
            self._say(f"{file} is of {whose}, this is run {self.run}: it is not continued from{kept}")
            return False
        if self.run is not None or written_by is None:
            self._own.add(name)
        return True

    def _is_foreign(self, document: dict[str, Any]) -> bool:
        return document["run"] != self.run if "run" in document else not self.continued

    def _chosen(self, name: str, rank: int, device: torch.device) -> dict[str, Any]:
        try:
            return document_of(f"{self.folder}/{name}", self._place.read(name), device)
        except StorageAwayError as error:
            raise CheckpointStorageAwayError(f"{name} cannot be read: {error}") from error
        except OSError as error:
            raise CheckpointError(
                f"rank {rank} cannot read {self.folder}/{name}, which rank 0 has read: {error}; all processes of a "
                "trial have to see one folder"
            ) from error

    def _write(self, name: str, document: dict[str, Any]) -> None:
        """In place of one of this run only. Raises OSError."""
        if name not in self._own and self._place.names(name):
            written_by = self._writer(name)
            if written_by != self.run:
                other = self._renamed(name, _foreign(written_by))
                self._say(f"{self.folder}/{name} is not of this run: kept as {other}")
        self._place.write(name, *written_form(document))

    def _writer(self, name: str) -> str | None:
        """The run that wrote it; "" for what is no whole checkpoint."""
        try:
            document = document_of(name, self._place.read(name), torch.device("cpu"))
        except (CheckpointError, OSError):
            return ""
        run: str | None = document.get("run")
        return run

    def _remove_before(self, iteration: int) -> None:
        """Leave `keep` of this run's up to the one just written. Later ones, from before the run fell back, stay until
        it is there again."""
        earlier = [name for name in _sorted(self._own) if _iteration(name) <= iteration]
        for name in earlier[self.keep :]:
            try:
                self._place.remove(name)
            except OSError as error:
                self._say(f"{self.folder}/{name}, which is not needed any more, cannot be removed: {error}")
            self._own.discard(name)

    def _set_aside(self, name: str, mark: str) -> str:
        """Rename it; says so, as the end of a sentence."""
        try:
            return f" (kept as {self._renamed(name, mark)})"
        except OSError as error:
            return f" (it stays, since it cannot be renamed: {error})"

    def _renamed(self, name: str, mark: str) -> str:
        """Its new name, which nothing had. Raises OSError."""
        there = set(self._place.names(f"{mark}*{name}"))
        marks = (mark, *(f"{mark}-{number}" for number in range(2, len(there) + 3)))
        other = next(f"{one}-{name}" for one in marks if f"{one}-{name}" not in there)
        self._place.rename(name, other)
        return other

    def _say(self, text: str) -> None:
        self._remarks.append(text)
        warnings.warn(text, stacklevel=4)


def newest_first(folder: Folder) -> list[str]:
    """Names of checkpoints that a run may be continued from: by iteration, then best.pt. Raises OSError for a folder
    that cannot be looked into."""
    return [*_sorted(folder.names("step-*.pt")), *folder.names(BEST)]


def _sorted(names: Any) -> list[str]:
    return sorted((name for name in names if _STEP.fullmatch(name)), key=_iteration, reverse=True)


def _iteration(name: str) -> int:
    found = _STEP.fullmatch(name)
    assert found
    return int(found[1])


def _foreign(run: str | None) -> str:
    """What names of another run's checkpoints begin with."""
    return f"foreign-{re.sub(r'[^0-9A-Za-z]', '_', run[:8])}" if run else "foreign"


def _gathered(own: Any, group: dist.ProcessGroup) -> list[Any]:
    """Every rank's `own`, on rank 0; elsewhere an empty list."""
    if group.size() == 1:
        return [own]
    parts: list[Any] = [None] * group.size()
    dist.gather_object(packed(own), parts if group.rank() == 0 else None, group=group, group_dst=0)
    if group.rank() != 0:
        return []
    return [torch.load(io.BytesIO(part), map_location="cpu", weights_only=True) for part in parts]
