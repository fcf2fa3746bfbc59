"""Streams of tokens, in files that are mapped into memory, and their windows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from lqray.training.files import CorruptDataError

_HEADER_BYTES = 1024
_HEADERS = {20240520: (1, "<u2"), 20240801: (7, "<u4")}
"""Of files of tokens as llm.c and modded-nanogpt write them: magic number to version and type. 256 int32 come first:
magic number, version, count of tokens, zeros."""

Ids = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Windows:
    """The windows of `context` + 1 tokens in streams of ids, (n,) unsigned each; they overlap by the one token that is
    a target of the first and an input of the second, and do not reach from one stream into the next."""

    streams: tuple[Ids, ...]
    context: int

    @cached_property
    def _rows(self) -> list[Ids]:
        """A view of each stream, (windows, context + 1)."""
        long_enough = [one for one in self.streams if len(one) > self.context]
        return [sliding_window_view(one, self.context + 1)[:: self.context] for one in long_enough]

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """int64 (streams,): the number of windows up to the end of each."""
        return np.cumsum([len(rows) for rows in self._rows], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._rows else 0

    def __getitem__(self, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 (B, context + 1), of the windows `chosen`, int64 (B,)."""
        if len(self._rows) == 1:
            return self._rows[0][chosen].astype(np.int64)
        windows = np.empty((len(chosen), self.context + 1), np.int64)
        streams = np.searchsorted(self._ends, chosen, side="right")
        for stream in np.unique(streams):
            own, rows = streams == stream, self._rows[stream]
            windows[own] = rows[chosen[own] - (self._ends[stream] - len(rows))]
        return windows


def read_shard(path: Path) -> Ids:
    """The tokens of a file, mapped into memory, (n,): uint16 without a header, as nanoGPT writes them, or with the
    header of llm.c and modded-nanogpt. Raises CorruptDataError for one that is not whole, OSError."""
    size = path.stat().st_size
    header = np.fromfile(path, "<i4", 3) if size >= _HEADER_BYTES else np.zeros(3, "<i4")
    magic, version, count = map(int, header)
    if magic not in _HEADERS:
        return _raw(path, size)
    known, kind = _HEADERS[magic]
    if version != known:
        raise CorruptDataError(f"{path}: found version {version} of the form {magic}; allowed: version {known}")
    expected = _HEADER_BYTES + count * np.dtype(kind).itemsize
    if count < 0 or size != expected:
        raise CorruptDataError(
            f"{path}: found {size:,} bytes; its header says {count:,} tokens, which are {expected:,} bytes; delete it "
            "and get it again"
        )
    return mapped(path, kind, _HEADER_BYTES)


def _raw(path: Path, size: int) -> Ids:
    if size % 2:
        raise CorruptDataError(
            f"{path}: found {size:,} bytes; allowed: a multiple of 2, a file of uint16 without a header, or one with "
            "the header of llm.c; delete it and get it again"
        )
    return mapped(path, "<u2", 0)


def mapped(path: Path, kind: str, offset: int) -> Ids:
    """A file from a byte on, as tokens of a type."""
    if path.stat().st_size == offset:  # which cannot be mapped
        return np.empty(0, kind)
    return np.asarray(np.memmap(path, kind, "r", offset))
