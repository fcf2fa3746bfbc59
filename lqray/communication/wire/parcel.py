"""What a process puts into a collective for one DDP bucket: the payloads of its workers, and a word that says what they
mean."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lqray.communication import streams
from lqray.communication.wire.collectives import who_differs
from lqray.quantization import Compressor, Payload
from lqray.quantization.place import SHARED_SEED, Place, seed_of_part

CHECK_BYTES = 4
_ALONE = Place()


class LevelsDifferError(RuntimeError):
    """Payloads that were to be averaged were encoded with different levels, or belong to different steps."""


@dataclass(frozen=True)
class Parcel:
    """payloads: [worker][number], for every worker of this process the same: `parts` of one tensor after those of the
    other. seeds: of each worker, as its payloads were encoded with. check: equal on all ranks whose payloads mean the
    same. names: of each number, what it holds of which parameters, for what a reduction keeps from
    one iteration to the next."""

    payloads: Sequence[Sequence[Payload]]
    seeds: Sequence[int]
    check: int
    parts: int = 1
    names: Sequence[str] = ()
    iteration: int = 0

    @property
    def likes(self) -> Sequence[Payload]:
        """A payload of each number, for what its bytes mean."""
        return self.payloads[0]

    @property
    def device(self) -> torch.device:
        """Where the payloads are."""
        return self.likes[0].buffer.device

    def check_word(self) -> Tensor:
        """The check as it travels: (4,) uint8."""
        return torch.full((1,), self.check, dtype=torch.int32, device=self.device).view(torch.uint8)


def check_of(fingerprint: bytes, offset: int, shared_seed: int = SHARED_SEED) -> int:
    """A signed 32-bit checksum of what decoding depends on, of which tensor of which step a payload is, and of the seed
    of what workers draw together."""
    return zlib.crc32(struct.pack("<QQ", offset, shared_seed), zlib.crc32(fingerprint)) - 2**31


def part_sizes(n: int, parts: int, unit: int) -> list[int]:
    """Coordinates of `parts` neighbouring parts of a tensor (n,), all but the last multiples of `unit`, about equal."""
    units = -(-n // unit)
    edges = [min(n, unit * (units * part // parts)) for part in range(parts + 1)]
    return [after - before for before, after in itertools.pairwise(edges)]


def encoded_parts(
    tensor: Tensor, parts: int, compressor: Compressor, place: Place = _ALONE, *, seed: int, offset: int
) -> list[Payload]:
    """Payloads of `parts` neighbouring parts of a tensor (n,), each with rounding noise of its own. compressor: of the
    tensor's parameters; a plan, which has several, decodes what any of them has made."""
    pieces = [tensor] if parts == 1 else tensor.split(part_sizes(tensor.numel(), parts, compressor.unit))
    payloads = [
        compressor.encode_at(piece, replace(place, part=part), seed=seed_of_part(seed, part), offset=offset)
        for part, piece in enumerate(pieces)
    ]
    number = compressor.number
    return [replace(payload, owner=number) for payload in payloads] if number else payloads


def decoded_parts(payloads: Sequence[Payload], compressor: Compressor) -> Tensor:
    """The (n,) tensor whose parts these payloads stand for."""
    return joined([compressor.decode(payload) for payload in payloads])


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Parts, one after the other."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


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
