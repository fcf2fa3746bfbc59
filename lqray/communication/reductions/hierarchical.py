"""All-gather between hosts, each of which sends its workers' mean once, however many processes it has.

All L processes of a host hold the same payload (`lqray.communication.hosts`). Each sends a slice of it, 1/L, to the
process of its place on every other host; then the processes of a host gather what has arrived, and each decodes the
payloads of all hosts. Both run beside the backward pass, step by step, each in a stage of its own. Where a process is a
host, or several, this is `all_gather`.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from lqray.communication.reductions.all_gather import AllGather, decoded_means
from lqray.communication.wire.collectives import gather_now
from lqray.communication.wire.parcel import CHECK_BYTES, CheckWords, Parcel
from lqray.communication.wire.stage import Stage
from lqray.communication.wire.volume import Volume
from lqray.experiment.options.exchange import ExchangeOptions
from lqray.quantization import Compressor


class Slices:
    """See the module. Results are equal to the bit on all ranks: they decode the same bytes."""

    def __init__(self, group: dist.ProcessGroup, inside: dist.ProcessGroup, checks: CheckWords) -> None:
        """group: of the processes of this one's place on all hosts. inside: of those of its host. Collective."""
        self._checks = checks
        self._between = Stage(group)
        try:
            self._inside = Stage(inside)
        except BaseException:
            self._between.close()
            raise

    def parts(self, workers: int) -> int:
        """See `lqray.communication.reduction.Reduction.parts`: whole tensors."""
        return 1

    def reduce(self, parcel: Parcel, compressor: Compressor, volume: Volume) -> Future[list[Tensor]]:
        """See `lqray.communication.reduction.Reduction.reduce`. The parcel is that of one sender, the host."""
        between, inside = self._between, self._inside
        own = torch.cat([payload.buffer for payload in parcel.likes])
        beside, place = inside.group.size(), inside.group.rank()
        size = -(-own.numel() // beside)
        mine = own[place * size : (place + 1) * size]
        slice_ = torch.cat([torch.nn.functional.pad(mine, (0, size - mine.numel())), parcel.check_word()])
        arriving = between.submit(parcel.device, lambda: _slices(slice_, between.group, beside, volume), [slice_])
        return inside.submit(
            parcel.device,
            lambda: self._means(arriving.wait(), own.numel(), inside.group, parcel, compressor, volume),
            compressor.tensors_on(parcel.device),
        )

    def close(self) -> None:
        """See `lqray.communication.reduction.Reduction.close`."""
        self._between.close()
        self._inside.close()

    def state_dict(self) -> dict[str, Tensor]:
        """See `lqray.communication.reduction.Reduction.state_dict`: nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See `lqray.communication.reduction.Reduction.load_state_dict`."""

    def _means(
        self,
        slices: Tensor,
        nbytes: int,
        inside: dist.ProcessGroup,
        parcel: Parcel,
        compressor: Compressor,
        volume: Volume,
    ) -> list[Tensor]:
        """Of the slices of this process's place (hosts, bytes)."""
        with volume.timed("exchange", slices.device):
            everything = gather_now(slices[None], inside).transpose(0, 1)
        others = (inside.size() - 1) * slices.numel()
        volume.moved(others, others, between=0)
        self._checks.compare(everything[:, :, -CHECK_BYTES:].reshape(-1, CHECK_BYTES), 1)
        rows = everything[:, :, :-CHECK_BYTES].reshape(slices.shape[0], -1)[:, :nbytes]
        return decoded_means(rows, parcel, compressor, volume)


def _slices(own: Tensor, group: dist.ProcessGroup, beside: int, volume: Volume) -> Tensor:
    """All hosts' (hosts, bytes). beside: how many processes of this host send one."""
    with volume.timed("exchange", own.device):
        slices = gather_now(own[None], group)
    others = (group.size() - 1) * own.numel()
    volume.payload_bytes += beside * own.numel()
    volume.moved(others, others)
    return slices


def reduction(
    options: ExchangeOptions, group: dist.ProcessGroup, checks: CheckWords, inside: dist.ProcessGroup | None = None
) -> AllGather | Slices:
    """group, inside: as of `Slices`; without `inside`, of processes that are a host or several. Collective."""
    return AllGather(options, group, checks) if inside is None else Slices(group, inside, checks)


REDUCTION = reduction
