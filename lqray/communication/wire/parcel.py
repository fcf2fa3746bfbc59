"""What a process puts into a collective for one DDP bucket: the payloads of its workers, and a word that says what they
mean."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lqray.communication import streams
from lqray.communication.wire.collectives import who_differs
from lqray.quantization import Payload

CHECK_BYTES = 4


class LevelsDifferError(RuntimeError):
    """Payloads that were to be averaged were encoded with different levels, or belong to different steps."""


@dataclass(frozen=True)
class Parcel:
    """payloads: [worker][tensor], for every worker of this process the same tensors. seeds: of each worker. offsets:
    of each tensor; both as they were encoded with. check: equal on all ranks whose payloads mean the same."""

    payloads: Sequence[Sequence[Payload]]
    seeds: Sequence[int]
    offsets: Sequence[int]
    check: int

    @property
    def tensors(self) -> Sequence[Payload]:
        """A payload for each tensor, for what its bytes mean."""
        return self.payloads[0]

    @property
    def device(self) -> torch.device:
        """Where the payloads are."""
        return self.tensors[0].buffer.device

    def check_word(self) -> Tensor:
        """The check as it travels: (4,) uint8."""
        return torch.full((1,), self.check, dtype=torch.int32, device=self.device).view(torch.uint8)


def check_of(levels: Tensor, offset: int) -> int:
    """A signed 32-bit checksum of the levels (L,) and of which tensor of which step a payload is."""
    return zlib.crc32(struct.pack("<Q", offset), zlib.crc32(levels.numpy().tobytes())) - 2**31


class CheckWords:
    """Compares the check words of what arrived. On a GPU nothing waits for the answer: `raise_found` gives it when it
    has come, a step or two later, and `raise_all` waits for those of the last steps."""

    def __init__(self) -> None:
        self._pending: list[tuple[streams.HostCopy, int]] = []

    def compare(self, words: Tensor, workers: int) -> None:
        """words: (K, 4) uint8, in the order of ranks, `workers` of them from each. Raises LevelsDifferError."""
        if streams.queues(words.device):
            self._pending.append((streams.HostCopy(words), workers))
        else:
            _raise_for(words, workers)

    def raise_found(self) -> None:
        """Raises LevelsDifferError for what has meanwhile been found on a GPU."""
        while self._pending and self._pending[0][0].has_arrived():
            copy, workers = self._pending.pop(0)
            _raise_for(copy.values, workers)

    def raise_all(self) -> None:
        """Raises LevelsDifferError for whatever was compared so far; waits for a GPU."""
        for copy, _ in self._pending:
            copy.wait()
        self.raise_found()


def _raise_for(words: Tensor, workers: int) -> None:
    said = [tuple(tuple(word) for word in rank.tolist()) for rank in words.split(workers)]
    if differ := who_differs(said):
        raise LevelsDifferError(
            f"the ranks sent payloads of different levels or of different steps, so their mean would mean nothing: "
            f"{differ}. Every rank must update its levels, begin its steps and restore its state alike"
        )
