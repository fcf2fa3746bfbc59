"""The form of a checkpoint's file: a line that says what it is and in which version of the form, the SHA-256 of the
rest, and the rest: a dict saved by torch, which holds only tensors and plain data."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from lqray.training.storage import Folder, open_folder

VERSION = 1
_FIRST_LINE = b"lqray checkpoint %d\n" % VERSION
_ANY_FIRST_LINE = re.compile(rb"lqray checkpoint (\d{1,9})\n")
_START = len(_FIRST_LINE) + hashlib.sha256().digest_size
_END_OF_ZIP, _END_BYTES = b"PK\x05\x06", 22
_KEYS = {"trial", "iteration", "shared", "ranks"}


class CheckpointError(RuntimeError):
    """A checkpoint that does not belong to this run, or that cannot be written."""


class CheckpointVersionError(CheckpointError):
    """A checkpoint in another version of the form than this lqray knows."""


class CorruptCheckpointError(CheckpointError):
    """A file that is not a whole checkpoint."""


def written_form(document: dict[str, Any]) -> tuple[bytes, bytes]:
    """A file's parts."""
    body = packed(document)
    return _FIRST_LINE + hashlib.sha256(body).digest(), body


def packed(value: Any) -> bytes:
    """Tensors and plain data, saved by torch."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def read_checkpoint(file: Path | str, device: torch.device) -> dict[str, Any]:
    """{"trial", "iteration", "shared", "ranks"} and, where a run wrote it, "run"; tensors on a device. file: a path or
    a URI. Raises CorruptCheckpointError for a file that is truncated or changed, or is no checkpoint of lqray,
    CheckpointVersionError for one in another form, OSError for what cannot be read."""
    folder, _, name = str(file).rpartition("/")
    return document_of(str(file), open_folder(folder or ".").read(name), device)


def check_ends(folder: Folder, name: str) -> None:
    """Look at a file's first and last bytes alone, however large it is. Raises as `read_checkpoint`."""
    file, size = f"{folder}/{name}", folder.size(name)
    head = folder.read(name, 0, _START) if size else b""
    _check_head(file, head)
    if size < _START + _END_BYTES or not folder.read(name, size - _END_BYTES, size).startswith(_END_OF_ZIP):
        raise CorruptCheckpointError(f"{file} is truncated or was changed: it does not end as a checkpoint does")


def document_of(file: str, content: bytes, device: torch.device) -> dict[str, Any]:
    """What a file's content says. Raises as `read_checkpoint`."""
    _check_head(file, content)
    body = content[_START:]
    if hashlib.sha256(body).digest() != content[len(_FIRST_LINE) : _START]:
        raise CorruptCheckpointError(f"{file} is truncated or was changed: its checksum differs")
    try:
        document = torch.load(io.BytesIO(body), map_location=device, weights_only=True)
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise CorruptCheckpointError(
            f"{file} is not a checkpoint that torch {torch.__version__} reads: {error}"
        ) from error
    if not isinstance(document, dict) or not document.keys() >= _KEYS:
        raise CorruptCheckpointError(
            f"{file} is not a checkpoint of lqray: it does not hold {', '.join(sorted(_KEYS))}"
        )
    return document


def _check_head(file: str, head: bytes) -> None:
    found = _ANY_FIRST_LINE.match(head)
    if found and int(found[1]) != VERSION:
        raise CheckpointVersionError(
            f"{file} is a checkpoint in version {int(found[1])} of the form; this lqray reads and writes version "
            f"{VERSION}. Nothing was changed: continue with the lqray that wrote it, or move the folder away to start "
            "anew"
        )
    if not head.startswith(_FIRST_LINE) or len(head) < _START:
        raise CorruptCheckpointError(f"{file} is not a checkpoint of lqray, or only its beginning")
