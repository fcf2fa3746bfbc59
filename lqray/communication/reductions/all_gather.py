"""The paper's exchange: every worker sends its payload to all others; each decodes all of them and averages."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from lqray.communication import streams
from lqray.communication.wire.collectives import all_gather_into_tensor
from lqray.communication.wire.parcel import CHECK_BYTES, CheckWords, Parcel
from lqray.communication.wire.stage import Stage
from lqray.communication.wire.transport import load_transport
from lqray.communication.wire.volume import Volume
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.quantization import Compressor
from lqray.quantization.payload import CodePlanes


class AllGather:
    """(W - 1) payloads sent per rank. All ranks decode the same bytes in the same order: results equal to the bit."""

    def __init__(self, options: ExchangeOptions, group: dist.ProcessGroup, checks: CheckWords) -> None:
        self._group = group
        self._checks = checks
        # Coded streams have lengths that must be known first: steps that wait for each other.
        self._stage = None if options.entropy == "none" else Stage(group, host_waits=True)
        self._transport = load_transport(options)

    def parts(self, workers: int) -> int:
        """See `lqray.communication.reduction.Reduction.parts`: whole tensors."""
        return 1

    def reduce(self, parcel: Parcel, compressor: Compressor, volume: Volume) -> Future[list[Tensor]]:
        """See `lqray.communication.reduction.Reduction.reduce`."""
        check = parcel.check_word()
        own = torch.cat([part for row in parcel.payloads for part in (*(p.buffer for p in row), check)])
        world, workers, checks = self._group.size(), len(parcel.payloads), self._checks

        if self._stage is not None:
            stage, pieces = self._stage, [_pieces(parcel)] * (world * workers)

            def exchange_coded() -> list[Tensor]:
                with volume.timed("exchange", parcel.device):
                    gathered = self._transport.gather(own.view(workers, -1), pieces, stage.group, volume)
                return _means(gathered, parcel, compressor, volume, checks)

            return stage.submit(parcel.device, exchange_coded, [own, *compressor.tensors_on(parcel.device)])

        read = compressor.tensors_on(own.device)
        gathered = own.new_empty((world * workers, own.numel() // workers))
        started = time.perf_counter()
        arriving = all_gather_into_tensor(gathered.view(-1), own, self._group)
        volume.payload_bytes += own.numel()
        volume.moved((world - 1) * own.numel(), (world - 1) * own.numel())

        # Runs in a thread of the group, which waits for itself where the group's last reference goes with this closure:
        # so it holds neither the group nor what holds it.
        def decode(arrived: Future[Any]) -> list[Tensor]:
            arrived.value()  # raises what the collective did
            streams.used_here(gathered, *read)
            if not streams.queues(gathered.device):
                volume.add_seconds("exchange", time.perf_counter() - started)
            return _means(gathered, parcel, compressor, volume, checks)

        return arriving.then(decode)

    def close(self) -> None:
        """See `lqray.communication.reduction.Reduction.close`."""
        if self._stage is not None:
            self._stage.close()

    def state_dict(self) -> dict[str, Tensor]:
        """See `lqray.communication.reduction.Reduction.state_dict`: nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See `lqray.communication.reduction.Reduction.load_state_dict`."""


def _means(rows: Tensor, parcel: Parcel, compressor: Compressor, volume: Volume, checks: CheckWords) -> list[Tensor]:
    """The means of all payloads, of all workers' rows (K, bytes). Raises ValueError for rows of another length."""
    expected = sum(payload.nbytes for payload in parcel.likes) + CHECK_BYTES
    if rows.shape[1] != expected:
        raise ValueError(f"rows of {rows.shape[1]} bytes arrived; allowed: {expected}, as they were sent")
    checks.compare(rows[:, -CHECK_BYTES:], len(parcel.payloads))
    return decoded_means(rows[:, :-CHECK_BYTES], parcel, compressor, volume)


def decoded_means(rows: Tensor, parcel: Parcel, compressor: Compressor, volume: Volume) -> list[Tensor]:
    """The means of all payloads, of rows of nothing else (K, bytes)."""
    with volume.timed("decode", rows.device):
        parts = rows.split([payload.nbytes for payload in parcel.likes], dim=1)
        return [compressor.decode_mean(part, like) for part, like in zip(parts, parcel.likes, strict=True)]


def _pieces(parcel: Parcel) -> list[CodePlanes]:
    """Where codes lie in a row."""
    pieces: list[CodePlanes] = []
    begin = 0
    for payload in parcel.likes:
        pieces += [replace(planes, begin=begin + planes.begin) for planes in payload.planes()]
        begin += payload.nbytes
    return pieces


REDUCTION = AllGather
