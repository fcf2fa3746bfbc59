"""The paper's exchange: every worker sends its payload to all others; each decodes all of them and averages."""

from __future__ import annotations

import time

import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from lqray.communication.collectives import all_gather_into_tensor
from lqray.communication.volume import Volume
from lqray.experiment.options import ExchangeOptions
from lqray.quantization import Payload, Quantizer


class AllGather:
    """(W - 1) payloads sent per rank. All ranks decode the same bytes in the same order: results equal to the bit."""

    def __init__(self, options: ExchangeOptions) -> None:
        """Nothing to choose."""

    def reduce(
        self, payload: Payload, quantizer: Quantizer, group: dist.ProcessGroup, volume: Volume, seed: int, offset: int
    ) -> Future[Tensor]:
        """See `lqray.communication.reduction.Reduction.reduce`."""
        world = group.size()
        gathered = payload.buffer.new_empty((world, payload.nbytes))
        started = time.perf_counter()
        work = all_gather_into_tensor(gathered.view(-1), payload.buffer, group)
        volume.payload_bytes += payload.nbytes
        volume.bytes_sent += (world - 1) * payload.nbytes
        volume.bytes_received += (world - 1) * payload.nbytes

        def decode_mean(_: Future[Tensor]) -> Tensor:
            arrived = time.perf_counter()
            mean = quantizer.decode_mean(gathered, payload)
            volume.exchange_seconds += arrived - started
            volume.decode_seconds += time.perf_counter() - arrived
            return mean

        return work.get_future().then(decode_mean)


REDUCTION = AllGather
