"""Encoded scatter-reduce: each rank averages its share of the coordinates and sends the mean back, encoded again.

1. All-to-all: rank r gets everybody's codes of its share, about 1/W of the buckets; it decodes and averages them.
2. All-gather: it encodes the mean with uniform levels of `gather_bits` and linf norms; everybody decodes all shares.

2 (W - 1) / W payloads move for each rank, whatever W; all_gather moves W - 1. The second rounding is not averaged,
hence its wider codes. Both collectives are waited for: the second must come in the same order on all ranks.
"""

from __future__ import annotations

import itertools
import math
import time

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from lqray import ops
from lqray.communication.collectives import gather_now
from lqray.communication.volume import Volume
from lqray.experiment.options import ExchangeOptions
from lqray.quantization import Payload, Quantizer
from lqray.quantization.codec import assemble

# The upper half of the counter space, which no first encoding uses.
_SECOND_ROUNDING = 1 << 63


class ScatterReduce:
    """See the module. Results are equal to the bit on all ranks: they decode the same bytes."""

    def __init__(self, options: ExchangeOptions) -> None:
        self._bits = options.gather_bits
        self._levels = torch.linspace(-1.0, 1.0, 2**options.gather_bits)

    def reduce(
        self, payload: Payload, quantizer: Quantizer, group: dist.ProcessGroup, volume: Volume, seed: int, offset: int
    ) -> Future[Tensor]:
        """See `lqray.communication.reduction.Reduction.reduce`."""
        started = time.perf_counter()
        world, rank, device = group.size(), group.rank(), payload.buffer.device
        levels, wide = quantizer.levels.to(device), self._levels.to(device)
        bounds = shares(payload, world)
        sizes = [end - begin for begin, end in bounds]
        received, sent = _exchange_shares(payload, bounds, group)
        arrived = time.perf_counter()

        own = ops.decode_sum(received, levels, sizes[rank], payload.bits, payload.bucket_size, 1.0 / world)
        counter = offset | _SECOND_ROUNDING
        mean = ops.encode_fused(own, wide, self._bits, payload.bucket_size, "linf", seed, counter)
        averaged = time.perf_counter()

        lengths = [_bytes(size, self._bits, payload.bucket_size) for size in sizes]
        row = torch.cat([payload.buffer[payload.head_bytes :], mean, mean.new_zeros(max(lengths) - lengths[rank])])
        rows = gather_now(row, group).view(world, -1)
        gathered = time.perf_counter()

        tail_bytes = 4 * payload.tail
        heads = [
            ops.decode(part[tail_bytes : tail_bytes + length], wide, size, self._bits, payload.bucket_size)
            for part, length, size in zip(rows, lengths, sizes, strict=True)
        ]
        tail = torch.zeros(payload.tail, device=device)
        for part in rows:
            tail += part[:tail_bytes].clone().view(torch.float32)
        result: Future[Tensor] = Future(devices=[device] if device.type == "cuda" else None)
        result.set_result(assemble(torch.cat(heads), tail / world, payload))

        moved = (world - 1) * row.numel()
        volume.payload_bytes += payload.head_bytes + row.numel()
        volume.bytes_sent += sent + moved
        volume.bytes_received += received.numel() - received.shape[1] + moved
        volume.exchange_seconds += (arrived - started) + (gathered - averaged)
        volume.encode_seconds += averaged - arrived
        volume.decode_seconds += time.perf_counter() - gathered
        return result


def shares(payload: Payload, world: int) -> list[tuple[int, int]]:
    """[begin, end) of the coded coordinates that each rank averages: whole buckets and whole groups of 32."""
    unit = math.lcm(payload.bucket_size, 32)
    units = -(-payload.coded // unit)
    edges = [min(payload.coded, unit * (units * rank // world)) for rank in range(world + 1)]
    return list(itertools.pairwise(edges))


def _bytes(n: int, bits: int, bucket_size: int) -> int:
    return ops.norm_bytes(n, bucket_size) + ops.code_bytes(n, bits)


def _exchange_shares(payload: Payload, bounds: list[tuple[int, int]], group: dist.ProcessGroup) -> tuple[Tensor, int]:
    """Everybody's codes of this rank's share, (W, bytes) uint8, and the bytes sent to others for it."""
    split = ops.norm_bytes(payload.coded, payload.bucket_size)
    parts = []
    for begin, end in bounds:
        first = begin // payload.bucket_size
        norms = payload.buffer[4 * first : 4 * first + ops.norm_bytes(end - begin, payload.bucket_size)]
        word = split + ops.code_bytes(begin, payload.bits)
        parts.append(torch.cat([norms, payload.buffer[word : word + ops.code_bytes(end - begin, payload.bits)]]))
    lengths = [part.numel() for part in parts]
    own = lengths[group.rank()]
    received = payload.buffer.new_empty(own * len(parts))
    dist.all_to_all_single(received, torch.cat(parts), [own] * len(parts), lengths, group=group)
    return received.view(len(parts), own), sum(lengths) - own


REDUCTION = ScatterReduce
