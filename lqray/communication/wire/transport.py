"""How rows of bytes travel between processes: as they are, or with their codes entropy coded.

Both ways give the receiver the same rows. All functions wait; every process of a group calls them in the same order.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from lqray import ops
from lqray.communication.wire.collectives import gather_now
from lqray.communication.wire.volume import Volume
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.quantization.payload import CodePlanes


@dataclass(frozen=True)
class Rows:
    """bytes: (workers, R) uint8. pieces: where codes lie in each row, ascending."""

    bytes: Tensor
    pieces: Sequence[CodePlanes]


class Transport(Protocol):
    """Moves rows and counts what it moves."""

    def gather(
        self, own: Tensor, pieces: Sequence[Sequence[CodePlanes]], group: dist.ProcessGroup, volume: Volume
    ) -> Tensor:
        """Every process's rows `own` (workers, R) uint8, in the order of ranks: (W * workers, R), R the same on all.
        pieces: those of each of the W * workers rows."""
        ...

    def scatter(self, to: Sequence[Rows], group: dist.ProcessGroup, volume: Volume) -> Tensor:
        """Rows `to[r]` for every process r; those that all of them have for this one: (W * workers, R_own). R_r is the
        same on all."""
        ...


class FixedWidth:
    """Rows as they are."""

    def gather(
        self, own: Tensor, pieces: Sequence[Sequence[CodePlanes]], group: dist.ProcessGroup, volume: Volume
    ) -> Tensor:
        """See `Transport.gather`."""
        rows = gather_now(own, group)
        volume.payload_bytes += own.numel()
        volume.moved(rows.numel() - own.numel(), rows.numel() - own.numel())
        return rows

    def scatter(self, to: Sequence[Rows], group: dist.ProcessGroup, volume: Volume) -> Tensor:
        """See `Transport.scatter`."""
        kept = to[group.rank()].bytes
        arriving = [kept.numel()] * group.size()
        received = _all_to_all([rows.bytes.reshape(-1) for rows in to], arriving, group, volume)
        return received.view(group.size() * kept.shape[0], kept.shape[1])


class EntropyCoded:
    """Codes of every row through rANS, on the CPU; a row says its length first."""

    def gather(
        self, own: Tensor, pieces: Sequence[Sequence[CodePlanes]], group: dist.ProcessGroup, volume: Volume
    ) -> Tensor:
        """See `Transport.gather`. Streams travel padded to the longest."""
        first, workers, device = group.rank() * own.shape[0], own.shape[0], own.device
        stream, lengths = _squeezed(own, pieces[first : first + workers])
        all_lengths = gather_now(torch.tensor(lengths, device=device), group).view(group.size(), -1)
        _check_lengths(all_lengths, own.shape[1], pieces)
        longest = int(all_lengths.sum(dim=1).max())
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: stream.size] = torch.from_numpy(stream)
        rows = gather_now(padded.to(device), group).view(group.size(), longest)
        moved = (group.size() - 1) * (longest + 8 * len(lengths))
        volume.payload_bytes += longest + 8 * len(lengths)
        volume.moved(moved, moved)
        return _expanded(list(rows.cpu().numpy()), all_lengths.tolist(), pieces, own.shape[1]).to(device)

    def scatter(self, to: Sequence[Rows], group: dist.ProcessGroup, volume: Volume) -> Tensor:
        """See `Transport.scatter`."""
        squeezed = [_squeezed(rows.bytes, [rows.pieces] * rows.bytes.shape[0]) for rows in to]
        own = to[group.rank()]
        device, workers = own.bytes.device, own.bytes.shape[0]
        lengths = [torch.tensor(each, device=device).view(torch.uint8) for _, each in squeezed]
        coming = _all_to_all(lengths, [8 * workers] * group.size(), group, volume)
        all_lengths = coming.view(torch.int64).view(group.size(), workers)
        _check_lengths(all_lengths, own.bytes.shape[1], [own.pieces])
        arriving = all_lengths.sum(dim=1).tolist()
        streams = [torch.from_numpy(stream).to(device) for stream, _ in squeezed]
        received = _all_to_all(streams, arriving, group, volume).cpu()
        parts = [part.numpy() for part in received.split(arriving)]
        pieces = [own.pieces] * (group.size() * workers)
        return _expanded(parts, all_lengths.tolist(), pieces, own.bytes.shape[1]).to(device)


def load_transport(options: ExchangeOptions) -> Transport:
    """The transport that `options.entropy` asks for."""
    return EntropyCoded() if options.entropy == "rans" else FixedWidth()


def _all_to_all(parts: Sequence[Tensor], arriving: Sequence[int], group: dist.ProcessGroup, volume: Volume) -> Tensor:
    """Send parts[r], uint8 (n_r,), to every r; what arrives, `arriving[r]` bytes from each, one after the other."""
    received = parts[0].new_empty(sum(arriving))
    lengths, rank = [part.numel() for part in parts], group.rank()
    dist.all_to_all_single(received, torch.cat(list(parts)), list(arriving), lengths, group=group)
    volume.payload_bytes += sum(lengths)
    volume.moved(sum(lengths) - lengths[rank], sum(arriving) - arriving[rank])
    return received


def _check_lengths(lengths: Tensor, size: int, pieces: Sequence[Sequence[CodePlanes]]) -> None:
    """lengths: (W, workers), of rows of `size` bytes as they arrive coded; as long as can be with no piece coded."""
    most = size + 4 * max(len(each) for each in pieces)
    if int(lengths.min()) < 0 or int(lengths.max()) > most:
        raise ValueError(
            f"ranks announce entropy-coded rows of {lengths.tolist()} bytes; allowed: 0 to {most} for each. What "
            "arrived was damaged, or ranks exchange different tensors"
        )


def _squeezed(rows: Tensor, pieces: Sequence[Sequence[CodePlanes]]) -> tuple[NDArray[np.uint8], list[int]]:
    """All rows with their codes coded, one after the other, and the bytes of each."""
    streams = [_squeeze(row, of_row) for row, of_row in zip(rows.cpu().numpy(), pieces, strict=True)]
    return np.concatenate(streams), [stream.size for stream in streams]


def _expanded(
    streams: Sequence[NDArray[np.uint8]],
    lengths: Sequence[Sequence[int]],
    pieces: Sequence[Sequence[CodePlanes]],
    size: int,
) -> Tensor:
    """Rows (len(pieces), size) of every process's stream; lengths: of the rows in each."""
    rows: list[NDArray[np.uint8]] = []
    for stream, each in zip(streams, lengths, strict=True):
        begin = 0
        for length in each:
            rows.append(_expand(stream[begin : begin + length], pieces[len(rows)], size))
            begin += length
    return torch.from_numpy(np.stack(rows))


def _squeeze(row: NDArray[np.uint8], pieces: Sequence[CodePlanes]) -> NDArray[np.uint8]:
    """Each piece becomes its length, uint32, and a stream of so many bytes; length 0: planes of fixed width follow,
    because the stream would not be smaller."""
    parts, done = [], 0
    for piece in pieces:
        parts.append(row[done : piece.begin])
        planes = row[piece.begin : piece.end]
        stream = ops.rans_encode(ops.unpack(torch.from_numpy(planes), piece.n, piece.bits), piece.bits).numpy()
        chosen, length = (stream, stream.size) if stream.size < planes.size else (planes, 0)
        parts += [np.frombuffer(struct.pack("<I", length), dtype=np.uint8), chosen]
        done = piece.end
    return np.concatenate([*parts, row[done:]])


def _expand(squeezed: NDArray[np.uint8], pieces: Sequence[CodePlanes], size: int) -> NDArray[np.uint8]:
    """The row (size,) that `_squeeze` was given. Raises ValueError for bytes that are not what it made of one."""
    row = np.empty(size, dtype=np.uint8)
    done = taken = 0

    def take(count: int) -> NDArray[np.uint8]:
        nonlocal taken
        if taken + count > squeezed.size:
            raise ValueError(
                f"an entropy-coded row ends too early: {squeezed.size} bytes of at least {taken + count} arrived"
            )
        taken += count
        return squeezed[taken - count : taken]

    for piece in pieces:
        row[done : piece.begin] = take(piece.begin - done)
        (length,) = struct.unpack("<I", take(4).tobytes())
        if length:
            codes = ops.rans_decode(torch.from_numpy(take(length)), piece.n, piece.bits)
            row[piece.begin : piece.end] = ops.pack(codes, piece.bits).numpy()
        else:
            row[piece.begin : piece.end] = take(piece.end - piece.begin)
        done = piece.end
    row[done:] = take(size - done)
    if taken != squeezed.size:
        raise ValueError(f"an entropy-coded row of {taken} bytes is {squeezed.size} long")
    return row
