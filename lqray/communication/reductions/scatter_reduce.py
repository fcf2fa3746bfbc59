"""Encoded scatter-reduce: each worker averages its share of the coordinates and sends the mean back, encoded again.

1. All-to-all: every worker gets everybody's codes of its share, about 1/K of the buckets; it decodes and averages them.
2. All-gather: it encodes the mean with uniform levels of `gather_bits` and linf norms; everybody decodes all shares.

2 (W - 1) / W payloads move for each rank, whatever W; all_gather moves W - 1. The second rounding is not averaged,
hence its wider codes. Both run beside the backward pass, step by step, each in a stage of its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from lqray import ops
from lqray.communication.wire.parcel import CHECK_BYTES, CheckWords, Parcel
from lqray.communication.wire.stage import Stage
from lqray.communication.wire.transport import Piece, Rows, load_transport
from lqray.communication.wire.volume import Volume
from lqray.experiment.options.exchange import ExchangeOptions
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
        coded = options.entropy != "none"
        self._scatter = Stage(group, host_waits=coded)
        try:
            self._gather = Stage(group, host_waits=coded)
        except BaseException:
            self._scatter.close()
            raise

    def reduce(self, parcel: Parcel, quantizer: Quantizer, volume: Volume) -> Future[list[Tensor]]:
        """See `lqray.communication.reduction.Reduction.reduce`."""
        device, levels = parcel.device, quantizer.levels_on(parcel.device)
        if self._levels.device != device:
            self._levels = self._levels.to(device)
        sent = [payload.buffer for payloads in parcel.payloads for payload in payloads]
        means = self._scatter.submit(
            device, lambda: self._own_means(parcel, levels, volume), [*sent, levels, self._levels]
        )
        return self._gather.submit(device, lambda: self._all_means(means.wait(), parcel, volume), [self._levels])

    def close(self) -> None:
        """See `lqray.communication.reduction.Reduction.close`."""
        self._scatter.close()
        self._gather.close()

    def _own_means(self, parcel: Parcel, levels: Tensor, volume: Volume) -> Tensor:
        """Rows of the means of the shares that this process's workers own, encoded: (workers, bytes)."""
        group, device = self._scatter.group, parcel.device
        plan = _plan_of(parcel, group.size(), self._bits)
        to = [Rows(_row(parcel, plan.owned_by(rank)), plan.scattered[rank]) for rank in range(group.size())]
        with volume.timed("exchange", device):
            received = self._transport.scatter(to, group, volume)

        rows, begin = [], 0
        for payloads, worker_shares, seed in zip(
            parcel.payloads, plan.owned_by(group.rank()), parcel.seeds, strict=True
        ):
            parts = []
            for share, offset in zip(worker_shares, parcel.offsets, strict=True):
                codes, begin = received[:, begin : begin + share.nbytes], begin + share.nbytes
                if share.n:
                    parts.append(self._encoded_mean(codes, share, levels, seed, offset, volume))
            parts += [payload.buffer[payload.head_bytes :] for payload in payloads]
            padding = plan.row_bytes - sum(part.numel() for part in parts)
            rows.append(torch.cat([*parts, received.new_zeros(padding), parcel.check_word()]))
        return torch.stack(rows)

    def _encoded_mean(
        self, codes: Tensor, share: _Share, levels: Tensor, seed: int, offset: int, volume: Volume
    ) -> Tensor:
        """Of a share, all workers' codes (K, bytes): their mean, encoded with the wide levels."""
        with volume.timed("decode", codes.device):
            mean = ops.decode_sum(codes, levels, share.n, share.bits, share.bucket_size, 1.0 / codes.shape[0])
        with volume.timed("encode", codes.device):
            return ops.encode_fused(
                mean, self._levels, self._bits, share.bucket_size, "linf", seed, offset | _SECOND_ROUNDING
            )

    def _all_means(self, own: Tensor, parcel: Parcel, volume: Volume) -> list[Tensor]:
        """The mean of every tensor, of the encoded means of all shares."""
        workers, device = len(parcel.payloads), parcel.device
        plan = _plan_of(parcel, self._gather.group.size(), self._bits)
        with volume.timed("exchange", device):
            rows = self._transport.gather(own, plan.gathered, self._gather.group, volume)
        self._checks.compare(rows[:, -CHECK_BYTES:], workers)
        with volume.timed("decode", device):
            heads: list[list[tuple[int, Tensor]]] = [[] for _ in parcel.tensors]
            tails = [torch.zeros(payload.tail, device=device) for payload in parcel.tensors]
            for row, worker_shares in zip(rows, plan.shares, strict=True):
                begin = 0
                for head, share in zip(heads, worker_shares, strict=True):
                    if share.n:
                        code = row[begin : begin + _encoded_bytes(share.n, self._bits, share.bucket_size)]
                        decoded = ops.decode(code, self._levels, share.n, self._bits, share.bucket_size)
                        head.append((share.begin, decoded))
                        begin += code.numel()
                for tail in tails:
                    tail += row[begin : begin + 4 * tail.numel()].clone().view(torch.float32)
                    begin += 4 * tail.numel()
            return [
                assemble(_joined(head, device), tail / len(rows), like)
                for head, tail, like in zip(heads, tails, parcel.tensors, strict=True)
            ]


def _joined(parts: list[tuple[int, Tensor]], device: torch.device) -> Tensor:
    """Decoded shares, each with where it begins, as one tensor."""
    ordered = [part for _, part in sorted(parts, key=lambda each: each[0])]
    return torch.cat(ordered) if ordered else torch.zeros(0, device=device)


@dataclass(frozen=True)
class _Share:
    """Coded coordinates [begin, begin + n) of a tensor, whole buckets and whole groups of 32, as codes of `bits`."""

    begin: int
    n: int
    bits: int
    bucket_size: int

    @property
    def nbytes(self) -> int:
        """Bytes of its norms and codes."""
        return _encoded_bytes(self.n, self.bits, self.bucket_size)

    def parts(self, payload: Payload) -> list[Tensor]:
        """Its norms and its codes in the payload of one worker."""
        first = self.begin // payload.bucket_size
        norms = payload.buffer[4 * first : 4 * first + ops.norm_bytes(self.n, payload.bucket_size)]
        word = payload.norm_bytes + ops.code_bytes(self.begin, payload.bits)
        return [norms, payload.buffer[word : word + ops.code_bytes(self.n, payload.bits)]]


@dataclass(frozen=True)
class _Plan:
    """Who averages what. It follows from sizes alone, and is the same at every step.

    shares: [worker][tensor], of all workers of all ranks. scattered: where codes lie in the rows sent to each rank.
    gathered: where they lie in every worker's row of means. row_bytes: of the longest such row, without its check.
    """

    shares: Sequence[Sequence[_Share]]
    scattered: Sequence[Sequence[Piece]]
    gathered: Sequence[Sequence[Piece]]
    row_bytes: int

    def owned_by(self, rank: int) -> Sequence[Sequence[_Share]]:
        """The shares of a rank's workers."""
        workers = len(self.shares) // len(self.scattered)
        return self.shares[rank * workers : (rank + 1) * workers]


def _plan_of(parcel: Parcel, world: int, bits: int) -> _Plan:
    layout = tuple((payload.coded, payload.bits, payload.bucket_size) for payload in parcel.tensors)
    return _plan(layout, sum(4 * payload.tail for payload in parcel.tensors), world, len(parcel.payloads), bits)


@lru_cache(maxsize=256)
def _plan(layout: tuple[tuple[int, int, int], ...], tail_bytes: int, world: int, workers: int, bits: int) -> _Plan:
    """layout: (coded coordinates, bits, bucket_size) of every tensor. workers: of each of `world` ranks.

    Which part of a tensor a worker owns turns with the tensor, so that small ones, which only the last part has
    anything of, do not all go to one worker.
    """
    every = world * workers
    shares: list[list[_Share]] = [[] for _ in range(every)]
    for number, (coded, of_code, bucket_size) in enumerate(layout):
        unit = math.lcm(bucket_size, 32)
        units = -(-coded // unit)
        edges = [min(coded, unit * (units * part // every)) for part in range(every + 1)]
        for worker, of_worker in enumerate(shares):
            part = (worker + number) % every
            of_worker.append(_Share(edges[part], edges[part + 1] - edges[part], of_code, bucket_size))
    scattered = [
        _pieces(itertools.chain.from_iterable(shares[rank * workers : (rank + 1) * workers])) for rank in range(world)
    ]
    means = [[replace(share, bits=bits) for share in of_worker] for of_worker in shares]
    row_bytes = tail_bytes + max(sum(share.nbytes for share in of_worker) for of_worker in means)
    return _Plan(shares, scattered, [_pieces(of_worker) for of_worker in means], row_bytes)


def _pieces(shares: Iterable[_Share]) -> list[Piece]:
    """Where codes lie in a row of these shares."""
    pieces, begin = [], 0
    for share in shares:
        pieces.append(Piece(begin + ops.norm_bytes(share.n, share.bucket_size), share.n, share.bits))
        begin = pieces[-1].end
    return pieces


def _encoded_bytes(n: int, bits: int, bucket_size: int) -> int:
    return ops.norm_bytes(n, bucket_size) + ops.code_bytes(n, bits)


def _row(parcel: Parcel, shares: Sequence[Sequence[_Share]]) -> Tensor:
    """What goes to one process, whose workers own `shares`: a row for each worker of this one."""
    owned = [(number, share) for of_worker in shares for number, share in enumerate(of_worker) if share.n]
    none = parcel.tensors[0].buffer.new_empty(0)
    return torch.stack(
        [
            torch.cat([none, *(part for number, share in owned for part in share.parts(payloads[number]))])
            for payloads in parcel.payloads
        ]
    )


REDUCTION = ScatterReduce
