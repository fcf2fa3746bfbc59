"""The paper's exchange: every worker sends its payload to all others; each decodes all of them and averages."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from lqray.communication import streams
from lqray.communication.wire.collectives import all_gather_into_tensor
from lqray.communication.wire.parcel import CHECK_BYTES, CheckWords, Parcel
from lqray.communication.wire.stage import Stage
from lqray.communication.wire.transport import Piece, load_transport
from lqray.communication.wire.volume import Volume
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.quantization import Quantizer


class AllGather:
    """(W - 1) payloads sent per rank. All ranks decode the same bytes in the same order: results equal to the bit."""

    def __init__(self, options: ExchangeOptions, group: dist.ProcessGroup, checks: CheckWords) -> None:
        self._group = group
        self._checks = checks
        # Coded streams have lengths that must be known first: steps that wait for each other.
        self._stage = None if options.entropy == "none" else Stage(group, host_waits=True)
        self._transport = load_transport(options)

    def reduce(self, parcel: Parcel, quantizer: Quantizer, volume: Volume) -> Future[list[Tensor]]:
        """See `lqray.communication.reduction.Reduction.reduce`."""
        check = parcel.check_word()
        own = torch.cat([part for row in parcel.payloads for part in (*(p.buffer for p in row), check)])
        world, workers, checks = self._group.size(), len(parcel.payloads), self._checks

        if self._stage is not None:
            stage, pieces = self._stage, [_pieces(parcel)] * (world * workers)

            def exchange_coded() -> list[Tensor]:
                with volume.timed("exchange", parcel.device):
                    gathered = self._transport.gather(own.view(workers, -1), pieces, stage.group, volume)
                return _means(gathered, parcel, quantizer, volume, checks)

            return stage.submit(parcel.device, exchange_coded, [own, quantizer.levels_on(parcel.device)])

        levels = quantizer.levels_on(own.device)
        gathered = own.new_empty((world * workers, own.numel() // workers))
        started = time.perf_counter()
        arriving = all_gather_into_tensor(gathered.view(-1), own, self._group)
        volume.payload_bytes += own.numel()
        volume.moved((world - 1) * own.numel(), (world - 1) * own.numel())

        # Runs in a thread of the group, which waits for itself where the group's last reference goes with this closure:
        # so it holds neither the group nor what holds it.
        def decode(arrived: Future[Any]) -> list[Tensor]:
            arrived.value()  # raises what the collective did
            streams.used_here(gathered, levels)
            if not streams.queues(gathered.device):
                volume.add_seconds("exchange", time.perf_counter() - started)
            return _means(gathered, parcel, quantizer, volume, checks)

        return arriving.then(decode)

    def close(self) -> None:
        """See `lqray.communication.reduction.Reduction.close`."""
        if self._stage is not None:
            self._stage.close()


def _means(rows: Tensor, parcel: Parcel, quantizer: Quantizer, volume: Volume, checks: CheckWords) -> list[Tensor]:
    """The means of all tensors, of all workers' rows (K, bytes). Raises ValueError for rows of another length."""
    expected = sum(payload.nbytes for payload in parcel.tensors) + CHECK_BYTES
    if rows.shape[1] != expected:
        raise ValueError(f"rows of {rows.shape[1]} bytes arrived; allowed: {expected}, as they were sent")
    checks.compare(rows[:, -CHECK_BYTES:], len(parcel.payloads))
    with volume.timed("decode", rows.device):
        parts = rows[:, :-CHECK_BYTES].split([payload.nbytes for payload in parcel.tensors], dim=1)
        return [quantizer.decode_mean(part, like) for part, like in zip(parts, parcel.tensors, strict=True)]


def _pieces(parcel: Parcel) -> list[Piece]:
    """Where codes lie in a row."""
    pieces, begin = [], 0
    for payload in parcel.tensors:
        pieces.append(Piece(begin + payload.norm_bytes, payload.coded, payload.bits))
        begin += payload.nbytes
    return pieces


REDUCTION = AllGather
