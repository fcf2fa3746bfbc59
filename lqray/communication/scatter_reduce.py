"""Encoded scatter-reduce: each worker averages its share of the coordinates and sends the mean back, encoded again.

1. All-to-all: every worker gets everybody's codes of its share, about 1/K of the buckets; it decodes and averages them.
2. All-gather: it encodes the mean with uniform levels of `gather_bits` and linf norms; everybody decodes all shares.

2 (W - 1) / W payloads move for each rank, whatever W; all_gather moves W - 1. The second rounding is not averaged,
hence its wider codes. Both run beside the backward pass, step by step, each in a stage of its own.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from lqray import ops
from lqray.communication.parcel import CHECK_BYTES, CheckWords, Parcel
from lqray.communication.stage import Stage
from lqray.communication.transport import Piece, Rows, load_transport
from lqray.communication.volume import Volume
from lqray.experiment.options import ExchangeOptions
from lqray.quantization import Payload, Quantizer
from lqray.quantization.codec import assemble

# The upper half of the counter space, which no first encoding uses.
_SECOND_ROUNDING = 1 << 63


class ScatterReduce:
    """See the module. Results are equal to the bit on all ranks: they decode the same bytes."""

    def __init__(self, options: ExchangeOptions, group: dist.ProcessGroup, checks: CheckWords) -> None:
        self._bits = options.gather_bits
        self._levels = torch.linspace(-1.0, 1.0, 2**options.gather_bits)
        self._transport = load_transport(options)
        self._checks = checks
        self._scatter, self._gather = Stage(group), Stage(group)

    def reduce(self, parcel: Parcel, quantizer: Quantizer, volume: Volume) -> Future[list[Tensor]]:
        """See `lqray.communication.reduction.Reduction.reduce`."""
        device, levels = parcel.device, quantizer.levels_on(parcel.device)
        if self._levels.device != device:
            self._levels = self._levels.to(device)
        means = self._scatter.submit(device, lambda: self._own_means(parcel, levels, volume))
        return self._gather.submit(device, lambda: self._all_means(means.wait(), parcel, volume))

    def close(self) -> None:
        """See `lqray.communication.reduction.Reduction.close`."""
        self._scatter.close()
        self._gather.close()

    def _own_means(self, parcel: Parcel, levels: Tensor, volume: Volume) -> Tensor:
        """Rows of the means of the shares that this process's workers own, encoded: (workers, bytes)."""
        group, device, own_workers = self._scatter.group, parcel.device, len(parcel.payloads)
        first, world = group.rank() * own_workers, group.size()
        shares = [_shares(parcel, worker, world * own_workers) for worker in range(world * own_workers)]
        to = [_rows_of(parcel, shares[r * own_workers : (r + 1) * own_workers]) for r in range(world)]
        with volume.timed("exchange", device):
            received = self._transport.scatter(to, group, volume)

        rows, begin = [], 0
        wide, lengths = self._levels, self._row_bytes(parcel, world * own_workers)
        for index, (worker_shares, seed) in enumerate(
            zip(shares[first : first + own_workers], parcel.seeds, strict=True)
        ):
            parts = []
            for share, offset in zip(worker_shares, parcel.offsets, strict=True):
                codes, begin = received[:, begin : begin + share.nbytes], begin + share.nbytes
                with volume.timed("decode", device):
                    mean = ops.decode_sum(
                        codes, levels, share.n, share.like.bits, share.like.bucket_size, 1.0 / received.shape[0]
                    )
                with volume.timed("encode", device):
                    parts.append(
                        ops.encode_fused(
                            mean, wide, self._bits, share.like.bucket_size, "linf", seed, offset | _SECOND_ROUNDING
                        )
                    )
            parts += [payload.buffer[payload.head_bytes :] for payload in parcel.payloads[index]]
            padding = lengths - sum(part.numel() for part in parts)
            rows.append(torch.cat([*parts, parts[0].new_zeros(padding), parcel.check_word()]))
        return torch.stack(rows)

    def _all_means(self, own: Tensor, parcel: Parcel, volume: Volume) -> list[Tensor]:
        """The mean of every tensor, of the encoded means of all shares."""
        workers, device, wide = len(parcel.payloads), parcel.device, self._levels
        world = self._gather.group.size()
        shares = [_shares(parcel, worker, world * workers) for worker in range(world * workers)]
        with volume.timed("exchange", device):
            pieces = [self._pieces(worker_shares) for worker_shares in shares]
            rows = self._transport.gather(own, pieces, self._gather.group, volume)
        self._checks.compare(rows[:, -CHECK_BYTES:], workers)
        with volume.timed("decode", device):
            heads: list[list[tuple[int, Tensor]]] = [[] for _ in parcel.tensors]
            tails = [torch.zeros(payload.tail, device=device) for payload in parcel.tensors]
            for row, worker_shares in zip(rows, shares, strict=True):
                begin = 0
                for head, share in zip(heads, worker_shares, strict=True):
                    length = _encoded_bytes(share.n, self._bits, share.like.bucket_size)
                    code = row[begin : begin + length]
                    head.append((share.begin, ops.decode(code, wide, share.n, self._bits, share.like.bucket_size)))
                    begin += length
                for tail in tails:
                    tail += row[begin : begin + 4 * tail.numel()].clone().view(torch.float32)
                    begin += 4 * tail.numel()
            return [
                assemble(
                    torch.cat([part for _, part in sorted(head, key=lambda each: each[0])]), tail / len(rows), like
                )
                for head, tail, like in zip(heads, tails, parcel.tensors, strict=True)
            ]

    def _row_bytes(self, parcel: Parcel, workers: int) -> int:
        """Bytes of the longest worker's row of means, without its check."""
        tails = sum(4 * payload.tail for payload in parcel.tensors)
        return tails + max(
            sum(_encoded_bytes(s.n, self._bits, s.like.bucket_size) for s in _shares(parcel, worker, workers))
            for worker in range(workers)
        )

    def _pieces(self, worker_shares: list[_Share]) -> list[Piece]:
        """Where codes lie in a worker's row of means."""
        pieces, begin = [], 0
        for share in worker_shares:
            norms = ops.norm_bytes(share.n, share.like.bucket_size)
            pieces.append(Piece(begin + norms, share.n, self._bits))
            begin = pieces[-1].end
        return pieces


@dataclass(frozen=True)
class _Share:
    """Coded coordinates [begin, begin + n) of a tensor, whole buckets and whole groups of 32; `like`: its payload."""

    begin: int
    n: int
    like: Payload

    @property
    def nbytes(self) -> int:
        """Bytes of its norms and codes."""
        return _encoded_bytes(self.n, self.like.bits, self.like.bucket_size)

    def parts(self, payload: Payload) -> list[Tensor]:
        """Its norms and its codes in the payload of one worker."""
        first = self.begin // payload.bucket_size
        norms = payload.buffer[4 * first : 4 * first + ops.norm_bytes(self.n, payload.bucket_size)]
        word = payload.norm_bytes + ops.code_bytes(self.begin, payload.bits)
        return [norms, payload.buffer[word : word + ops.code_bytes(self.n, payload.bits)]]


def _encoded_bytes(n: int, bits: int, bucket_size: int) -> int:
    return ops.norm_bytes(n, bucket_size) + ops.code_bytes(n, bits)


def _shares(parcel: Parcel, worker: int, workers: int) -> list[_Share]:
    """What `worker` of `workers` averages of every tensor. Which part of a tensor it owns turns with the tensor, so
    that small ones, which only the last part has anything of, do not all go to one worker."""
    shares = []
    for number, payload in enumerate(parcel.tensors):
        unit = math.lcm(payload.bucket_size, 32)
        units = -(-payload.coded // unit)
        edges = [min(payload.coded, unit * (units * part // workers)) for part in range(workers + 1)]
        begin, end = list(itertools.pairwise(edges))[(worker + number) % workers]
        shares.append(_Share(begin, end - begin, payload))
    return shares


def _rows_of(parcel: Parcel, shares: list[list[_Share]]) -> Rows:
    """What goes to one process, whose workers own `shares`: a row for each worker of this one."""
    rows = []
    for payloads in parcel.payloads:
        parts = [
            part
            for worker_shares in shares
            for share, payload in zip(worker_shares, payloads, strict=True)
            for part in share.parts(payload)
        ]
        rows.append(torch.cat(parts))
    pieces, begin = [], 0
    for share in itertools.chain.from_iterable(shares):
        norms = ops.norm_bytes(share.n, share.like.bucket_size)
        pieces.append(Piece(begin + norms, share.n, share.like.bits))
        begin += share.nbytes
    return Rows(torch.stack(rows), pieces)


REDUCTION = ScatterReduce
